//! One socket to one sheep.
//!
//! A call is written by whoever makes it while the socket has room, without a
//! task in between ([`Outbox`]). The reader task completes the calls, in
//! whatever order the answers come. Anything a sheep would not send ends the
//! connection.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use bytes::BytesMut;
use futures_util::StreamExt as _;
use sheep_proto::ResponseHeader;
use tokio::io::AsyncRead;
use tokio::sync::{Notify, oneshot};
use tokio::task::AbortHandle;
use tokio::time::MissedTickBehavior;
use tokio_util::codec::FramedRead;

use crate::call::{Call, Response};
use crate::codec::ResponseCodec;
use crate::error::{ClientError, Hangup};
use crate::gateway::Completion;
use crate::in_flight::{InFlight, Pending};
use crate::network::Stream;
use crate::outbox::Outbox;

/// Bytes read at once at most while no payload is awaited: several answers of
/// the usual 4 KiB, each with its header.
pub(crate) const READ_BUFFER: usize = 16 << 10;
/// How often a connection looks for calls that have waited too long.
const SWEEP_INTERVAL: Duration = Duration::from_secs(1);
/// Calls without an answer that a connection may have before it is replaced.
const MAX_GIVEN_UP: usize = 128;
/// Longest wait for an answer to [`Connection::ask`].
pub(crate) const ASK_PATIENCE: Duration = Duration::from_secs(10);

/// What the owner of connections wants to hear from them.
pub(crate) trait Observer: Send + Sync {
    /// A call ended: with an answer, whatever its result code, or with the connection.
    fn ended(&self, pending: Pending, outcome: Result<Response, ClientError>);

    /// Too many calls were given up on the connection. It takes no more, and
    /// lives for as long as its owner keeps it.
    fn worn_out(&self, connection: &Arc<Shared>);

    /// The connection is no more; its calls have ended before this.
    fn closed(&self, connection: &Arc<Shared>, why: &Hangup);
}

/// A connection; the socket closes when this goes.
pub(crate) struct Connection {
    shared: Arc<Shared>,
}

/// What the callers, the writer and the reader share.
pub(crate) struct Shared {
    peer: SocketAddr,
    outbox: Outbox,
    in_flight: Arc<Mutex<InFlight>>,
    /// Cleared once and for ever, under the lock of `in_flight`: no call is
    /// entered after that.
    accepting: AtomicBool,
    bytes_in_flight: AtomicUsize,
    /// Tells [`Connection::drained`] that calls ended.
    fewer: Notify,
}

impl Connection {
    /// Starts the reader and writer tasks of a stream to `peer`.
    pub(crate) fn start(peer: SocketAddr, stream: Stream, observer: Arc<dyn Observer>) -> Self {
        let shared = Arc::new(Shared {
            peer,
            outbox: Outbox::new(stream.writer),
            in_flight: Arc::default(),
            accepting: AtomicBool::new(true),
            bytes_in_flight: AtomicUsize::new(0),
            fewer: Notify::new(),
        });
        let writing = Arc::clone(&shared);
        let writer = tokio::spawn(async move { writing.outbox.write_backlog().await });
        let reader = Reader {
            shared: Arc::clone(&shared),
            observer,
            writer: writer.abort_handle(),
            why: Hangup::Closed,
        };
        tokio::spawn(reader.run(stream.reader));
        Self { shared }
    }

    /// Sends a call; the observer hears of its end.
    ///
    /// # Errors
    /// Gives the call back, unsent, when the connection takes no more calls.
    #[expect(clippy::result_large_err, reason = "the error is the call itself")]
    pub(crate) fn send(&self, pending: Pending) -> Result<(), Pending> {
        let shared = &*self.shared;
        let mut header = pending.call.header(0);
        let payload = pending.call.payload().clone();
        let wire_len = pending.call.wire_len();
        {
            let mut in_flight = shared.in_flight();
            if !self.is_accepting() {
                return Err(pending);
            }
            header.id = in_flight.insert(pending).into();
        }
        shared
            .bytes_in_flight
            .fetch_add(wire_len, Ordering::Relaxed);
        shared.outbox.send(&header, payload);
        Ok(())
    }

    /// Sends a call and waits a bounded time for its answer.
    ///
    /// # Errors
    /// `Lost` when the connection is closed, `Unreachable` when no answer comes.
    pub(crate) async fn ask(&self, call: Call) -> Result<Response, ClientError> {
        let lost = ClientError::Lost {
            call: call.name(),
            gateway: self.peer(),
            why: Arc::new(Hangup::Closed),
        };
        let (outcome, answer) = oneshot::channel();
        // A caller that gave up does not hear of the end.
        let forward: Completion = Box::new(move |result| drop(outcome.send(result)));
        if self
            .send(Pending::new(call, ASK_PATIENCE, forward))
            .is_err()
        {
            return Err(lost);
        }
        answer.await.unwrap_or(Err(lost))
    }

    pub(crate) fn peer(&self) -> SocketAddr {
        self.shared.peer()
    }

    /// True until the connection is closed or retired.
    pub(crate) fn is_accepting(&self) -> bool {
        self.shared.accepting.load(Ordering::Acquire)
    }

    /// Bytes of the calls in flight, both ways.
    pub(crate) fn bytes_in_flight(&self) -> usize {
        self.shared.bytes_in_flight.load(Ordering::Relaxed)
    }

    pub(crate) fn is(&self, shared: &Arc<Shared>) -> bool {
        Arc::ptr_eq(&self.shared, shared)
    }

    /// Takes no more calls, and returns once nobody waits for an answer and no
    /// call without one holds anything.
    pub(crate) async fn drained(&self) {
        self.shared.retire();
        loop {
            let fewer = self.shared.fewer.notified();
            if self.shared.in_flight().is_idle() {
                return;
            }
            fewer.await;
        }
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.shared.outbox.shut_down();
    }
}

impl Shared {
    pub(crate) fn peer(&self) -> SocketAddr {
        self.peer
    }

    fn in_flight(&self) -> MutexGuard<'_, InFlight> {
        self.in_flight.lock().expect("no one panics with the table")
    }

    /// Takes no more calls from now on.
    fn retire(&self) {
        let _entering = self.in_flight();
        self.accepting.store(false, Ordering::Release);
    }

    fn complete(&self, header: ResponseHeader, payload: BytesMut, observer: &dyn Observer) {
        let Some(pending) = self.in_flight().remove(header.id.get()) else {
            return;
        };
        if !pending.is_given_up() {
            self.bytes_in_flight
                .fetch_sub(pending.call.wire_len(), Ordering::Relaxed);
        }
        let response = Response {
            call: pending.call.name(),
            header,
            payload,
        };
        observer.ended(pending, Ok(response));
        self.fewer.notify_waiters();
    }

    fn give_up_overdue(self: &Arc<Self>, observer: &dyn Observer) {
        let overdue = self.in_flight().give_up_overdue();
        if overdue.is_empty() {
            return;
        }
        let ids = overdue.iter().map(|call| call.id).collect();
        let unsent = self.outbox.withdraw(&ids);
        let (never_ran, given_up) = {
            let mut in_flight = self.in_flight();
            let never_ran: Vec<_> = unsent.iter().map(|&id| in_flight.remove(id)).collect();
            (never_ran, in_flight.given_up())
        };
        // What they hold goes without the lock.
        drop(never_ran);
        if given_up >= MAX_GIVEN_UP && self.accepting.load(Ordering::Acquire) {
            self.retire();
            observer.worn_out(self);
        }
        for call in overdue {
            self.bytes_in_flight
                .fetch_sub(call.wire_len, Ordering::Relaxed);
            (call.done)(Err(ClientError::Unreachable {
                gateway: self.peer.into(),
                waited: call.waited,
            }));
        }
        self.fewer.notify_waiters();
    }
}

/// The reader task.
///
/// What ends a connection is done on drop, so that no caller waits for ever
/// even when a completion panics or the runtime ends.
struct Reader {
    shared: Arc<Shared>,
    observer: Arc<dyn Observer>,
    writer: AbortHandle,
    why: Hangup,
}

impl Reader {
    /// Completes calls until the connection ends, then fails those that are left.
    async fn run(mut self, socket: Box<dyn AsyncRead + Send + Unpin>) {
        let codec = ResponseCodec::new(Arc::clone(&self.shared.in_flight));
        let mut frames = FramedRead::with_capacity(socket, codec, READ_BUFFER);
        let mut sweep = tokio::time::interval(SWEEP_INTERVAL);
        sweep.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                // In this order, or a sheep that never stops talking keeps
                // overdue calls waiting.
                biased;
                _ = sweep.tick() => self.shared.give_up_overdue(&*self.observer),
                frame = frames.next() => match frame {
                    Some(Ok((header, payload))) => {
                        self.shared.complete(header, payload, &*self.observer);
                    }
                    Some(Err(why)) => {
                        self.why = why;
                        return;
                    }
                    None => return,
                },
            }
        }
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        let shared = &self.shared;
        shared.retire();
        // Before anyone can send these calls elsewhere: who has just entered one
        // and not yet written it finds the socket closed.
        shared.outbox.shut_down();
        let left = shared.in_flight().drain();
        self.writer.abort();
        let why = Arc::new(std::mem::replace(&mut self.why, Hangup::Closed));
        // First, so that what is learnt of the sheep from now on is newer.
        for pending in left {
            let lost = ClientError::Lost {
                call: pending.call.name(),
                gateway: shared.peer,
                why: Arc::clone(&why),
            };
            self.observer.ended(pending, Err(lost));
        }
        self.observer.closed(shared, &why);
        shared.fewer.notify_waiters();
    }
}
