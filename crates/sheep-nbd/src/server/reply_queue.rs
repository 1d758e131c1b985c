//! Replies on their way into a socket, each message whole.
//!
//! While the socket has room, the thread that completes a request writes its reply.
//! Without room, or with TLS, it is queued for the task that runs
//! [`ReplyQueue::write_queued`]. The budget of the connection bounds the queue.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::sync::{Mutex, MutexGuard};

use bytes::Buf as _;
use tokio::sync::Notify;

use super::budget::Charge;
use super::error::{ConnectionError, unless_stalled};
use super::socket::DirectWrite;
use crate::protocol::reply::Frame;

/// The sending side of a connection in its transmission phase.
pub(super) struct ReplyQueue {
    socket: Box<dyn DirectWrite>,
    queue: Mutex<Queue>,
    not_empty: Notify,
}

#[derive(Default)]
struct Queue {
    frames: VecDeque<Queued>,
    /// Nothing can be sent any more.
    is_broken: bool,
}

/// What is still to be written of a message, and what its request holds until then.
struct Queued {
    frame: Frame,
    _charge: Option<Charge>,
}

impl ReplyQueue {
    pub(super) fn new(socket: Box<dyn DirectWrite>) -> Self {
        Self {
            socket,
            queue: Mutex::default(),
            not_empty: Notify::new(),
        }
    }

    /// Sends a message without waiting. `charge` is given back when it is written,
    /// or cannot be.
    pub(super) fn send(&self, mut frame: Frame, charge: Option<Charge>) {
        // Held while writing: another thread's message must not come between.
        let mut queue = self.queue();
        if queue.is_broken {
            return;
        }
        if queue.frames.is_empty() && self.write(&mut frame).is_err() {
            queue.is_broken = true;
            // The task finds out why.
            self.not_empty.notify_one();
            return;
        }
        if !is_written(&frame) {
            queue.frames.push_back(Queued {
                frame,
                _charge: charge,
            });
            self.not_empty.notify_one();
        }
    }

    /// Writes what could not be written at once; returns when the connection is
    /// broken, or the client does not read.
    pub(super) async fn write_queued(&self) -> ConnectionError {
        loop {
            if self.queue().is_broken {
                return io::Error::from(io::ErrorKind::BrokenPipe).into();
            }
            while !self.queue().frames.is_empty() {
                let written = match unless_stalled(self.socket.writable()).await {
                    Ok(()) => self.write_front().map_err(ConnectionError::from),
                    Err(error) => Err(error),
                };
                if let Err(error) = written {
                    return error;
                }
            }
            self.not_empty.notified().await;
        }
    }

    /// Drops what was not sent; from now on nothing is.
    pub(super) fn break_off(&self) {
        let mut queue = self.queue();
        queue.is_broken = true;
        queue.frames.clear();
    }

    fn write_front(&self) -> io::Result<()> {
        let mut queue = self.queue();
        while let Some(front) = queue.frames.front_mut() {
            self.write(&mut front.frame)?;
            if !is_written(&front.frame) {
                break;
            }
            queue.frames.pop_front();
        }
        Ok(())
    }

    /// Writes as much of `frame` as the socket takes without waiting.
    fn write(&self, frame: &mut Frame) -> io::Result<()> {
        while !is_written(frame) {
            let parts = [IoSlice::new(&frame.head), IoSlice::new(&frame.data)];
            match self.socket.try_write_vectored(&parts) {
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
        Ok(())
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue
            .lock()
            .expect("no code panics while it holds this lock")
    }
}

fn is_written(frame: &Frame) -> bool {
    frame.wire_len() == 0
}
