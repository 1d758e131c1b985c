//! Queue of replies.
//!
//! The thread that completes a request writes its reply if the socket buffer has room.
//! Otherwise, and with TLS, the reply is queued for the task that runs
//! [`ReplyQueue::write_queued`]. The budget of the connection bounds the queue.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::sync::{Mutex, MutexGuard};

use bytes::Buf as _;
use tokio::io::{AsyncWrite, AsyncWriteExt as _};
use tokio::sync::Notify;
use tokio::time::Instant;

use super::budget::Charge;
use super::error::{ConnectionError, MESSAGE_TIMEOUT, STALL_TIMEOUT, unless_late, unless_stalled};
use super::socket::DirectWrite;
use crate::protocol::reply::Frame;

/// Bytes that the client must read within the stall timeout.
const PART_LEN: usize = 1 << 20;
/// Where messages go.
pub(super) enum Sink {
    /// A socket that any thread may write to.
    Direct(Box<dyn DirectWrite>),
    /// A stream that only the task writes to.
    Stream(tokio::sync::Mutex<Box<dyn AsyncWrite + Send + Unpin>>),
}

/// The sending side of a connection in its transmission phase.
pub(super) struct ReplyQueue {
    sink: Sink,
    queue: Mutex<Queue>,
    not_empty: Notify,
}

#[derive(Default)]
struct Queue {
    frames: VecDeque<Queued>,
    /// The connection failed.
    is_broken: bool,
}

/// The unwritten rest of a message, and the charge of its request.
struct Queued {
    frame: Frame,
    /// When it must be written.
    deadline: Instant,
    _charge: Option<Charge>,
}

impl ReplyQueue {
    pub(super) fn new(sink: Sink) -> Self {
        Self {
            sink,
            queue: Mutex::default(),
            not_empty: Notify::new(),
        }
    }

    /// Sends a message without waiting. `charge` is dropped after it was written, or if
    /// the connection has failed.
    pub(super) fn send(&self, mut frame: Frame, charge: Option<Charge>) {
        // Held while writing, so that messages of several threads do not interleave.
        let mut queue = self.queue();
        if queue.is_broken {
            return;
        }
        if let Sink::Direct(socket) = &self.sink
            && queue.frames.is_empty()
            && write(&**socket, &mut frame).is_err()
        {
            queue.is_broken = true;
            // The task gets the error.
            self.not_empty.notify_one();
            return;
        }
        if !is_written(&frame) {
            queue.frames.push_back(Queued {
                frame,
                deadline: Instant::now() + MESSAGE_TIMEOUT,
                _charge: charge,
            });
            self.not_empty.notify_one();
        }
    }

    /// Writes queued messages; returns if the connection fails or the client does not
    /// read. Not cancel safe: a message may be partly written.
    pub(super) async fn write_queued(&self) -> ConnectionError {
        loop {
            if self.queue().is_broken {
                return io::Error::from(io::ErrorKind::BrokenPipe).into();
            }
            let written = match &self.sink {
                Sink::Direct(socket) => self.write_to_socket(&**socket).await,
                Sink::Stream(stream) => self.write_to_stream(&mut *stream.lock().await).await,
            };
            if let Err(error) = written {
                return error;
            }
            self.not_empty.notified().await;
        }
    }

    /// Whether the connection has failed: nobody receives messages.
    pub(super) fn is_broken(&self) -> bool {
        self.queue().is_broken
    }

    /// Ends the connection after the last message was written.
    pub(super) async fn close(&self) {
        // A socket is closed when it is dropped.
        if let Sink::Stream(stream) = &self.sink {
            let closed = unless_stalled(async { stream.lock().await.shutdown().await });
            // The client may have closed it first.
            drop(closed.await);
        }
    }

    /// Drops all queued and later messages.
    pub(super) fn abort(&self) {
        let mut queue = self.queue();
        queue.is_broken = true;
        queue.frames.clear();
    }

    async fn write_to_socket(&self, socket: &dyn DirectWrite) -> Result<(), ConnectionError> {
        let (mut part, mut stalled_at) = (0, Instant::now() + STALL_TIMEOUT);
        while let Some(deadline) = self.deadline() {
            unless_late(deadline.min(stalled_at), socket.writable()).await?;
            let mut queue = self.queue();
            while let Some(front) = queue.frames.front_mut() {
                part += write(socket, &mut front.frame)?;
                if !is_written(&front.frame) {
                    break;
                }
                queue.frames.pop_front();
            }
            if part >= PART_LEN {
                (part, stalled_at) = (0, Instant::now() + STALL_TIMEOUT);
            }
        }
        Ok(())
    }

    async fn write_to_stream(
        &self,
        stream: &mut (impl AsyncWrite + Unpin),
    ) -> Result<(), ConnectionError> {
        while let Some(next) = self.pop_front() {
            unless_late(next.deadline, stream.write_all(&next.frame.head)).await?;
            for part in next.frame.data.chunks(PART_LEN) {
                unless_late(next.deadline, stream.write_all(part)).await?;
            }
            if self.queue().frames.is_empty() {
                unless_late(next.deadline, stream.flush()).await?;
            }
        }
        Ok(())
    }

    /// When the first message must be written; `None` if there is none.
    fn deadline(&self) -> Option<Instant> {
        self.queue().frames.front().map(|front| front.deadline)
    }

    fn pop_front(&self) -> Option<Queued> {
        self.queue().frames.pop_front()
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue
            .lock()
            .expect("no code panics while it holds this lock")
    }
}

/// Writes as much of `frame` as the socket takes without waiting, and returns how much.
fn write(socket: &dyn DirectWrite, frame: &mut Frame) -> io::Result<usize> {
    let before = frame.wire_len();
    while !is_written(frame) {
        let parts = [IoSlice::new(&frame.head), IoSlice::new(&frame.data)];
        match socket.try_write_vectored(&parts) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => {
                let of_head = written.min(frame.head.len());
                frame.head.advance(of_head);
                frame.data.advance(written - of_head);
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
            Err(error) => return Err(error),
        }
    }
    Ok(before - frame.wire_len())
}

fn is_written(frame: &Frame) -> bool {
    frame.wire_len() == 0
}

#[cfg(test)]
mod tests {
    use std::pin::Pin;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::time::Duration;

    use bytes::Bytes;

    use super::*;
    use crate::protocol::reply::{ReplyStyle, ReplyTo};

    /// A client that reads so many bytes, then pauses.
    struct SlowSocket {
        len: usize,
        pause: Duration,
        is_full: AtomicBool,
    }

    impl DirectWrite for SlowSocket {
        fn try_write_vectored(&self, parts: &[IoSlice<'_>]) -> io::Result<usize> {
            match self.is_full.swap(true, Ordering::Relaxed) {
                true => Err(io::ErrorKind::WouldBlock.into()),
                false => Ok(self.len.min(parts.iter().map(|part| part.len()).sum())),
            }
        }

        fn writable(&self) -> Pin<Box<dyn Future<Output = io::Result<()>> + Send + '_>> {
            Box::pin(async {
                tokio::time::sleep(self.pause).await;
                self.is_full.store(false, Ordering::Relaxed);
                Ok(())
            })
        }
    }

    /// How a reply of 16 MiB to a client ends that reads `len` bytes per `pause`.
    async fn reading(len: usize, pause: Duration) -> Option<ConnectionError> {
        let socket = SlowSocket {
            len,
            pause,
            is_full: AtomicBool::new(false),
        };
        let replies = ReplyQueue::new(Sink::Direct(Box::new(socket)));
        let to = ReplyTo {
            style: ReplyStyle::Simple,
            cookie: 1,
            offset: 0,
        };
        replies.send(to.simple_data(Bytes::from(vec![1; 16 << 20])), None);
        let limit = Duration::from_secs(3600);
        let failed = tokio::time::timeout(limit, replies.write_queued()).await;
        assert!(failed.is_err() || replies.deadline().is_some());
        failed.ok()
    }

    #[tokio::test(start_paused = true)]
    async fn client_that_reads_too_slowly_is_dropped() {
        let second = Duration::from_secs(1);
        let failed = reading(1, second).await;
        assert!(matches!(failed, Some(ConnectionError::Slow)), "{failed:?}");
        // Enough for the stall timeout, but the whole takes 16 minutes.
        let failed = reading(PART_LEN, 58 * second).await;
        assert!(matches!(failed, Some(ConnectionError::Slow)), "{failed:?}");
        assert!(reading(PART_LEN, 10 * second).await.is_none());
    }
}
