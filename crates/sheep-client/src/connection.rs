//! One socket to one sheep.
//!
//! A call is written by whoever makes it while the socket has room, without a
//! task in between; when it has not, what is left of the frame and every frame
//! behind it belong to the writer task, so that a frame is never half sent.
//! The reader task completes the calls, in whatever order the answers come.
//! Anything a sheep would not send ends the connection.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::net::{Shutdown, SocketAddr};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::{Buf, Bytes};
use futures_util::StreamExt as _;
use socket2::{SockRef, TcpKeepalive};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::Notify;
use tokio_util::codec::FramedRead;
use zerocopy::IntoBytes;

use crate::call::Response;
use crate::codec::ResponseCodec;
use crate::error::{ClientError, Hangup};
use crate::in_flight::{InFlight, Pending};

/// Longest wait for a TCP connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Idle time before a silent host is probed.
const KEEPALIVE_TIME: Duration = Duration::from_secs(10);
/// Time between two probes.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(5);
/// Time after which a host that acknowledges nothing is dead.
const USER_TIMEOUT: Duration = Duration::from_secs(25);

/// What the owner of connections wants to hear from them.
pub(crate) trait Observer: Send + Sync {
    /// A call ended: with an answer, whatever its result code, or with the connection.
    fn ended(&self, pending: Pending, outcome: Result<Response, ClientError>);

    /// The connection is no more; its calls have ended.
    fn closed(&self, connection: &Arc<Shared>, why: &Hangup);
}

/// A connection; the last clone to go closes the socket.
pub(crate) struct Connection {
    shared: Arc<Shared>,
}

/// What the callers, the writer and the reader share.
pub(crate) struct Shared {
    peer: SocketAddr,
    in_flight: Arc<Mutex<InFlight>>,
    backlog: Mutex<VecDeque<Frame>>,
    backlog_filled: Notify,
    socket: OwnedWriteHalf,
    bytes_in_flight: AtomicUsize,
    closed: AtomicBool,
    drained: Notify,
}

/// What is still to be written of a frame.
struct Frame {
    header: Bytes,
    payload: Bytes,
}

impl Frame {
    fn is_empty(&self) -> bool {
        self.header.is_empty() && self.payload.is_empty()
    }

    fn advance(&mut self, written: usize) {
        let of_header = written.min(self.header.len());
        self.header.advance(of_header);
        self.payload.advance(written - of_header);
    }
}

impl Connection {
    /// Connects to `peer` and starts the reader and writer tasks.
    ///
    /// # Errors
    /// What the system says; `TimedOut` after five seconds.
    pub(crate) async fn open(peer: SocketAddr, observer: Arc<dyn Observer>) -> io::Result<Self> {
        let stream = tokio::time::timeout(CONNECT_TIMEOUT, TcpStream::connect(peer))
            .await
            .map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
        stream.set_nodelay(true)?;
        let socket = SockRef::from(&stream);
        let keepalive = TcpKeepalive::new()
            .with_time(KEEPALIVE_TIME)
            .with_interval(KEEPALIVE_INTERVAL);
        socket.set_tcp_keepalive(&keepalive)?;
        socket.set_tcp_user_timeout(Some(USER_TIMEOUT))?;

        let (read_half, write_half) = stream.into_split();
        let shared = Arc::new(Shared {
            peer,
            in_flight: Arc::default(),
            backlog: Mutex::default(),
            backlog_filled: Notify::new(),
            socket: write_half,
            bytes_in_flight: AtomicUsize::new(0),
            closed: AtomicBool::new(false),
            drained: Notify::new(),
        });
        tokio::spawn(write_backlog(Arc::clone(&shared)));
        tokio::spawn(read_responses(read_half, Arc::clone(&shared), observer));
        Ok(Self { shared })
    }

    /// Sends a call; the observer hears of its end.
    ///
    /// # Errors
    /// Gives the call back, unsent, when the connection is already closed.
    #[expect(clippy::result_large_err, reason = "the error is the call itself")]
    pub(crate) fn send(&self, pending: Pending) -> Result<(), Pending> {
        self.shared.send(pending)
    }

    pub(crate) fn peer(&self) -> SocketAddr {
        self.shared.peer
    }

    /// Bytes of the calls in flight, both ways.
    pub(crate) fn bytes_in_flight(&self) -> usize {
        self.shared.bytes_in_flight.load(Ordering::Relaxed)
    }

    pub(crate) fn is(&self, shared: &Arc<Shared>) -> bool {
        Arc::ptr_eq(&self.shared, shared)
    }

    /// Returns once no call is in flight.
    pub(crate) async fn drained(&self) {
        loop {
            let drained = self.shared.drained.notified();
            if self.shared.in_flight().is_empty() {
                return;
            }
            drained.await;
        }
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.shared.shut_down();
    }
}

impl Shared {
    fn in_flight(&self) -> std::sync::MutexGuard<'_, InFlight> {
        self.in_flight.lock().expect("no one panics with the table")
    }

    #[expect(clippy::result_large_err, reason = "the error is the call itself")]
    fn send(&self, pending: Pending) -> Result<(), Pending> {
        let len = pending.call.wire_len();
        let payload = pending.call.payload().clone();
        let header = {
            let mut in_flight = self.in_flight();
            // Read under the table's lock: the reader sets it before it drains
            // the table, so no call is entered after that.
            if self.closed.load(Ordering::Acquire) {
                return Err(pending);
            }
            let call = pending.call.clone();
            call.header(in_flight.insert(pending))
        };
        self.bytes_in_flight.fetch_add(len, Ordering::Relaxed);
        let mut frame = Frame {
            header: Bytes::copy_from_slice(header.as_bytes()),
            payload,
        };

        let mut backlog = self.backlog.lock().expect("no one panics with the backlog");
        // A failed write is left to the reader, which finds out why.
        if backlog.is_empty() && self.write(&mut frame).is_err() || frame.is_empty() {
            return Ok(());
        }
        backlog.push_back(frame);
        self.backlog_filled.notify_one();
        Ok(())
    }

    /// Writes as much of `frame` as the socket takes without waiting.
    fn write(&self, frame: &mut Frame) -> io::Result<()> {
        while !frame.is_empty() {
            let parts = [IoSlice::new(&frame.header), IoSlice::new(&frame.payload)];
            match self.socket.try_write_vectored(&parts) {
                Ok(0) => return self.give_up(io::ErrorKind::WriteZero.into()),
                Ok(written) => frame.advance(written),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return self.give_up(error),
            }
        }
        Ok(())
    }

    fn give_up(&self, error: io::Error) -> io::Result<()> {
        tracing::debug!(gateway = %self.peer, %error, "cannot write to a sheep");
        self.shut_down();
        Err(error)
    }

    /// Wakes the reader with an end of file; it does the rest.
    fn shut_down(&self) {
        // The socket may be gone already, which is what is wanted.
        let _ = SockRef::from(self.socket.as_ref()).shutdown(Shutdown::Both);
    }

    fn complete(
        &self,
        header: sheep_proto::ResponseHeader,
        payload: Bytes,
        observer: &dyn Observer,
    ) {
        let (pending, now_empty) = {
            let mut in_flight = self.in_flight();
            let pending = in_flight.remove(header.id.get());
            (pending, in_flight.is_empty())
        };
        let Some(pending) = pending else {
            return;
        };
        self.bytes_in_flight
            .fetch_sub(pending.call.wire_len(), Ordering::Relaxed);
        let response = Response {
            call: pending.call.name(),
            header,
            payload,
        };
        observer.ended(pending, Ok(response));
        if now_empty {
            self.drained.notify_waiters();
        }
    }
}

/// Writes what callers could not, in order, until the connection closes.
async fn write_backlog(shared: Arc<Shared>) {
    loop {
        shared.backlog_filled.notified().await;
        loop {
            if shared.closed.load(Ordering::Acquire) || shared.socket.writable().await.is_err() {
                return;
            }
            let mut backlog = shared
                .backlog
                .lock()
                .expect("no one panics with the backlog");
            let Some(frame) = backlog.front_mut() else {
                break;
            };
            if shared.write(frame).is_err() {
                return;
            }
            if frame.is_empty() {
                backlog.pop_front();
            }
        }
    }
}

/// Completes calls until the connection ends, then fails those that are left.
async fn read_responses(socket: OwnedReadHalf, shared: Arc<Shared>, observer: Arc<dyn Observer>) {
    let mut frames = FramedRead::new(socket, ResponseCodec::new(Arc::clone(&shared.in_flight)));
    let why = loop {
        match frames.next().await {
            Some(Ok((header, payload))) => shared.complete(header, payload, &*observer),
            Some(Err(why)) => break Arc::new(why),
            None => break Arc::new(Hangup::Closed),
        }
    };
    let left = {
        let mut in_flight = shared.in_flight();
        shared.closed.store(true, Ordering::Release);
        in_flight.drain()
    };
    shared.shut_down();
    shared
        .backlog
        .lock()
        .expect("no one panics with the backlog")
        .clear();
    // Lets the writer see that the connection is closed.
    shared.backlog_filled.notify_one();
    observer.closed(&shared, &why);
    for pending in left {
        let lost = ClientError::Lost {
            call: pending.call.name(),
            gateway: shared.peer,
            why: Arc::clone(&why),
        };
        observer.ended(pending, Err(lost));
    }
    shared.drained.notify_waiters();
}
