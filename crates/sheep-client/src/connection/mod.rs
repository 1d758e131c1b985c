//! One socket to one sheep.
//!
//! While the socket has room, the thread that sends a request writes its frame,
//! without a task in between ([`SendQueue`]). The reader task completes the
//! requests, in whatever order the responses arrive. Anything that a sheep would
//! not send ends the connection.

mod cache_bypass;
mod codec;
mod pending;
mod send_queue;

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt as _;
use sheep_proto::cache_info::CacheInfo;
use sheep_proto::generation::{Detected, Detection};
use sheep_proto::limits::CACHE_INFO_LEN;
use sheep_proto::{Generation, Opcode, RequestBody, RequestHeader, ResultCode, Retry};
use tokio::io::AsyncRead;
use tokio::sync::{Notify, oneshot};
use tokio::task::AbortHandle;
use tokio::time::MissedTickBehavior;
use tokio_util::codec::FramedRead;

use crate::connector::ByteStream;
use crate::error::{ClientError, DisconnectReason};
use crate::poison;
use crate::request::{Request, Response};
use crate::transport::Completion;
use codec::{Completed, ResponseCodec};
use pending::InFlight;
pub(crate) use pending::{Pending, RequestOwner};
use send_queue::SendQueue;

/// Most bytes of one read while no payload is awaited: several responses of
/// the usual 4 KiB, each with its header.
pub(crate) const READ_BUFFER: usize = 16 << 10;
/// How often a connection looks for requests that have timed out.
const EXPIRE_INTERVAL: Duration = Duration::from_secs(1);
/// Timed-out requests that a connection may have before it is replaced.
const MAX_TIMED_OUT: usize = 128;
/// Longest wait for the response to [`Connection::request`].
pub(crate) const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);

/// Hears what becomes of a connection.
pub(crate) trait ConnectionObserver: Send + Sync {
    /// Too many requests have timed out. The connection accepts no new ones, and
    /// lives for as long as its owner keeps it.
    fn unresponsive(&self, connection: &Arc<Shared>);

    /// The connection has ended, and so have its requests, before this.
    fn closed(&self, connection: &Arc<Shared>, reason: &DisconnectReason);
}

/// A connection; the socket closes when this is dropped.
pub(crate) struct Connection {
    shared: Arc<Shared>,
}

/// What the callers, the writer and the reader share.
pub(crate) struct Shared {
    peer: SocketAddr,
    send_queue: SendQueue,
    in_flight: Arc<Mutex<InFlight>>,
    /// Cleared once and for ever, under the lock of `in_flight`: no request is
    /// added after that.
    accepting: AtomicBool,
    bytes_in_flight: AtomicUsize,
    /// Tells [`Connection::drained`] that requests have ended; only used once
    /// no new ones are accepted.
    completed: Notify,
    /// Whether the sheep has an object cache, once it has said so.
    has_cache: OnceLock<bool>,
    /// What the sheep is; only questions about that are sent before it is known.
    detected: OnceLock<Detected>,
    /// The generation of its cluster, where `detected` leaves it open.
    decided: OnceLock<Generation>,
}

impl Connection {
    /// Starts the reader and writer tasks of a stream to `peer`.
    pub(crate) fn start(
        peer: SocketAddr,
        stream: ByteStream,
        observer: Option<Arc<dyn ConnectionObserver>>,
    ) -> Self {
        let shared = Arc::new(Shared {
            peer,
            send_queue: SendQueue::new(stream.writer),
            in_flight: Arc::default(),
            accepting: AtomicBool::new(true),
            bytes_in_flight: AtomicUsize::new(0),
            completed: Notify::new(),
            has_cache: OnceLock::new(),
            detected: OnceLock::new(),
            decided: OnceLock::new(),
        });
        let writing = Arc::clone(&shared);
        let writer = tokio::spawn(async move { writing.send_queue.write_queued().await });
        let reader = Reader {
            shared: Arc::clone(&shared),
            observer,
            writer: writer.abort_handle(),
            // Unless it gets to know better before it ends.
            reason: DisconnectReason::Aborted,
        };
        tokio::spawn(reader.run(stream.reader));
        Self { shared }
    }

    /// Sends a request; its owner, or else its completion, is notified of its end.
    ///
    /// One that the sheep's generation must not get fails here, unsent.
    ///
    /// # Errors
    /// Gives the request back, unsent, when the connection accepts no more.
    #[expect(clippy::result_large_err, reason = "the error is the request itself")]
    pub(crate) fn send(&self, pending: Pending) -> Result<(), Pending> {
        let shared = &*self.shared;
        let (mut header, payload) = match shared.checked_frame(&pending.request) {
            Ok(frame) => frame,
            Err(error) => {
                pending.complete(Err(error));
                return Ok(());
            }
        };
        let wire_len = pending.request.wire_len();
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
        shared.send_queue.send(&header, payload);
        Ok(())
    }

    /// Sends a request once and waits a bounded time for its response.
    ///
    /// # Errors
    /// `Lost` when the connection ends, `Unreachable` when no response arrives.
    pub(crate) async fn request(&self, request: Request) -> Result<Response, ClientError> {
        let lost = ClientError::Lost {
            operation: request.operation(),
            gateway: self.peer(),
            why: Arc::new(DisconnectReason::Closed),
        };
        let (outcome, answer) = oneshot::channel();
        // A caller that was dropped is not notified.
        let forward: Completion = Box::new(move |result| drop(outcome.send(result)));
        let pending = Pending::new(request, REQUEST_TIMEOUT, forward);
        if self.send(pending).is_err() {
            return Err(lost);
        }
        answer.await.unwrap_or(Err(ClientError::Panicked {
            task: "complete a request",
        }))
    }

    /// Learns the generation of the sheep; other requests may be sent after that. False
    /// for a sheep of no known generation, which gets no other request.
    ///
    /// One question at a time, in ascending order of version: some sheep die of a
    /// version that is newer than their own. A remembered answer is not used, since
    /// another daemon may listen at the address by now.
    ///
    /// # Errors
    /// As [`Connection::request`].
    pub(crate) async fn detect(&self) -> Result<bool, ClientError> {
        let mut detection = Detection::START;
        let detected = loop {
            match detection {
                Detection::Ask(probe) => {
                    let answer = self.request(Request::probe(probe)).await?;
                    detection = Detection::next(probe, &answer.header);
                }
                Detection::Known(generation) => break Detected::Certain(generation),
                Detection::Undecided => break Detected::Undecided,
                Detection::Unknown => return Ok(false),
            }
        };
        self.shared.detected.get_or_init(|| detected);
        if detected.generation().has_object_cache() {
            self.detect_cache().await?;
        }
        Ok(true)
    }

    /// Asks whether the sheep has an object cache. One of a cluster that waits does not
    /// say; it is taken to have one, and asked again.
    pub(crate) async fn detect_cache(&self) -> Result<(), ClientError> {
        let len = u32::try_from(CACHE_INFO_LEN).expect("the answer has 12,312 bytes");
        let request = Request::new(Opcode::GetCacheInfo, RequestBody::NONE);
        let response = self.request(request.with_max_response_len(len)).await?;
        let code = response.header.result();
        match CacheInfo::parse(&response.payload) {
            Ok(info) => self.shared.has_cache.get_or_init(|| info.is_enabled()),
            Err(_refused) if code == ResultCode::WaitForFormat || code.retry() == Retry::Later => {
                return Ok(());
            }
            // It will not say.
            Err(_refused) => self.shared.has_cache.get_or_init(|| true),
        };
        Ok(())
    }

    /// True when the sheep has to be asked for its object cache before it gets `request`.
    pub(crate) fn must_ask_for_cache(&self, request: &Request) -> bool {
        let is_unknown = self.shared.has_cache.get().is_none();
        is_unknown && request.is_of_object() && self.detected().generation().has_object_cache()
    }

    /// What the sheep is.
    pub(crate) fn detected(&self) -> Detected {
        *self
            .shared
            .detected
            .get()
            .expect("a connection is not used before it is known")
    }

    /// Says of which generation the cluster is, for a sheep that left it open.
    pub(crate) fn decide(&self, generation: Generation) {
        self.shared.decided.get_or_init(|| generation);
    }

    pub(crate) fn peer(&self) -> SocketAddr {
        self.shared.peer()
    }

    /// True until the connection has ended or was retired.
    pub(crate) fn is_accepting(&self) -> bool {
        self.shared.is_accepting()
    }

    /// Bytes of a request on the wire, both ways, as it is sent here.
    pub(crate) fn wire_len(&self, request: &Request) -> usize {
        let fill = match self.shared.generation() {
            Some(generation) if generation.has_object_cache() => {
                cache_bypass::fill_len(request, self.shared.may_have_cache())
            }
            _ => 0,
        };
        request.wire_len() + fill
    }

    /// Bytes of the requests in flight, both ways.
    pub(crate) fn bytes_in_flight(&self) -> usize {
        self.shared.bytes_in_flight.load(Ordering::Relaxed)
    }

    pub(crate) fn is(&self, shared: &Arc<Shared>) -> bool {
        Arc::ptr_eq(&self.shared, shared)
    }

    /// Accepts no more requests, and returns once no caller waits for a response
    /// and no request in flight pins a token.
    pub(crate) async fn drained(&self) {
        self.shared.retire();
        loop {
            let completed = self.shared.completed.notified();
            if self.shared.in_flight().is_idle() {
                return;
            }
            completed.await;
        }
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.shared.send_queue.shut_down();
    }
}

impl Shared {
    pub(crate) fn peer(&self) -> SocketAddr {
        self.peer
    }

    fn in_flight(&self) -> MutexGuard<'_, InFlight> {
        poison::lock(&self.in_flight)
    }

    fn is_accepting(&self) -> bool {
        self.accepting.load(Ordering::Acquire)
    }

    /// The generation of the sheep, or what to assume; `None` before it is known.
    fn generation(&self) -> Option<Generation> {
        let decided = self.decided.get().copied();
        decided.or_else(|| self.detected.get().map(|detected| detected.generation()))
    }

    /// False for a sheep that has no object cache. One that was not asked, or did not
    /// answer, may have one.
    fn may_have_cache(&self) -> bool {
        self.has_cache.get().copied().unwrap_or(true)
    }

    /// Header and payload of a request, if the sheep may get it.
    fn checked_frame(&self, request: &Request) -> Result<(RequestHeader, Bytes), ClientError> {
        let generation = match self.generation() {
            Some(generation) => generation,
            // A probe is the same for all of them.
            None if request.is_probe() => Generation::V0_7,
            None => {
                return Err(ClientError::Lost {
                    operation: request.operation(),
                    gateway: self.peer,
                    why: Arc::new(DisconnectReason::Aborted),
                });
            }
        };
        request.check(generation)?;
        let (header, payload) = (request.header(generation), request.payload().clone());
        if !generation.has_object_cache() {
            return Ok((header, payload));
        }
        Ok(cache_bypass::bypass(header, payload, self.may_have_cache()))
    }

    /// Accepts no more requests from now on.
    fn retire(&self) {
        let _adding = self.in_flight();
        self.accepting.store(false, Ordering::Release);
    }

    fn complete(&self, completed: Completed) {
        let Completed {
            pending,
            header,
            payload,
        } = completed;
        if !pending.is_expired() {
            self.bytes_in_flight
                .fetch_sub(pending.request.wire_len(), Ordering::Relaxed);
        }
        pending.respond(header, payload);
        // `drained` retires the connection first, and looks at the table after that.
        if !self.is_accepting() {
            self.completed.notify_waiters();
        }
    }

    fn expire_overdue(self: &Arc<Self>, observer: Option<&dyn ConnectionObserver>) {
        let overdue = self.in_flight().expire_overdue();
        if overdue.is_empty() {
            return;
        }
        let ids = overdue.iter().map(|request| request.id).collect();
        let unsent = self.send_queue.cancel_unsent(&ids);
        let (never_sent, expired) = {
            let mut in_flight = self.in_flight();
            let never_sent: Vec<_> = unsent.iter().map(|&id| in_flight.remove(id)).collect();
            (never_sent, in_flight.expired())
        };
        // Their tokens are released without the lock.
        drop(never_sent);
        if expired >= MAX_TIMED_OUT && self.is_accepting() {
            self.retire();
            if let Some(observer) = observer {
                observer.unresponsive(self);
            }
        }
        for request in overdue {
            self.bytes_in_flight
                .fetch_sub(request.wire_len, Ordering::Relaxed);
            (request.completion)(Err(ClientError::Unreachable {
                gateway: self.peer.into(),
                waited: request.waited,
            }));
        }
        self.completed.notify_waiters();
    }
}

/// The reader task.
///
/// What the end of a connection requires is done on drop, so that no caller
/// waits for ever even when a completion panics or the runtime ends.
struct Reader {
    shared: Arc<Shared>,
    observer: Option<Arc<dyn ConnectionObserver>>,
    writer: AbortHandle,
    reason: DisconnectReason,
}

impl Reader {
    /// Completes requests until the connection ends, then fails the rest.
    async fn run(mut self, socket: Box<dyn AsyncRead + Send + Unpin>) {
        let codec = ResponseCodec::new(Arc::clone(&self.shared.in_flight));
        let mut responses = FramedRead::with_capacity(socket, codec, READ_BUFFER);
        let mut expire = tokio::time::interval(EXPIRE_INTERVAL);
        expire.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                // In this order, or a sheep that never stops sending keeps
                // requests from timing out.
                biased;
                _ = expire.tick() => self.shared.expire_overdue(self.observer.as_deref()),
                response = responses.next() => match response {
                    Some(Ok(completed)) => self.shared.complete(completed),
                    Some(Err(reason)) => {
                        self.reason = reason;
                        return;
                    }
                    None => {
                        self.reason = DisconnectReason::Closed;
                        return;
                    }
                },
            }
        }
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        let shared = &self.shared;
        shared.retire();
        // Before anyone can send these requests elsewhere: a caller that has
        // just added one and not yet written it finds the socket closed.
        shared.send_queue.shut_down();
        let left = shared.in_flight().drain();
        self.writer.abort();
        let reason = Arc::new(std::mem::replace(
            &mut self.reason,
            DisconnectReason::Aborted,
        ));
        // Pending requests end before the close is reported, so that a later
        // refusal of a connection is seen as newer.
        for pending in left {
            let lost = ClientError::Lost {
                operation: pending.request.operation(),
                gateway: shared.peer,
                why: Arc::clone(&reason),
            };
            pending.disconnect(lost);
        }
        if let Some(observer) = &self.observer {
            observer.closed(shared, &reason);
        }
        shared.completed.notify_waiters();
    }
}
