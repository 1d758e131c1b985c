//! Frames on their way into a socket, each whole and in order.
//!
//! While the socket has room, the thread that sends a frame writes it. Without
//! room, the rest of the frame and every frame after it are queued for the task
//! that runs [`SendQueue::write_queued`]. The dispatcher's budget bounds the
//! queue: a request that times out leaves it, see [`SendQueue::cancel_unsent`].

use std::collections::{HashSet, VecDeque};
use std::io::{self, IoSlice};
use std::sync::{Mutex, MutexGuard};

use bytes::{Buf as _, Bytes};
use sheep_proto::RequestHeader;
use sheep_proto::limits::HEADER_LEN;
use tokio::sync::Notify;
use zerocopy::IntoBytes;

use crate::connector::WriteHalf;
use crate::poison;

/// The sending side of a socket.
pub(super) struct SendQueue {
    socket: Box<dyn WriteHalf>,
    queue: Mutex<VecDeque<Frame>>,
    not_empty: Notify,
}

/// What is still to be written of a frame.
struct Frame {
    id: u32,
    header: [u8; HEADER_LEN],
    header_written: usize,
    payload: Bytes,
}

impl Frame {
    fn is_started(&self) -> bool {
        self.header_written > 0
    }

    fn is_written(&self) -> bool {
        self.header_written == HEADER_LEN && self.payload.is_empty()
    }

    fn parts(&self) -> [IoSlice<'_>; 2] {
        [
            IoSlice::new(&self.header[self.header_written..]),
            IoSlice::new(&self.payload),
        ]
    }

    fn advance(&mut self, written: usize) {
        let of_header = written.min(HEADER_LEN - self.header_written);
        self.header_written += of_header;
        self.payload.advance(written - of_header);
    }
}

impl SendQueue {
    pub(super) fn new(socket: Box<dyn WriteHalf>) -> Self {
        Self {
            socket,
            queue: Mutex::default(),
            not_empty: Notify::new(),
        }
    }

    /// Sends a frame without waiting; what the socket has no room for is queued.
    ///
    /// A failure shuts the socket down, which ends the reader.
    pub(super) fn send(&self, header: &RequestHeader, payload: Bytes) {
        let mut frame = Frame {
            id: header.id.get(),
            header: header.as_bytes().try_into().expect("a header has 48 bytes"),
            header_written: 0,
            payload,
        };
        // Held while writing: a frame of another thread must not come between.
        let mut queue = self.queue();
        if queue.is_empty() && self.write(&mut frame).is_err() {
            return;
        }
        if !frame.is_written() {
            queue.push_back(frame);
            self.not_empty.notify_one();
        }
    }

    /// Removes the frames with `ids` of which nothing has been written, and returns
    /// their ids.
    pub(super) fn cancel_unsent(&self, ids: &HashSet<u32>) -> Vec<u32> {
        let mut cancelled = Vec::new();
        self.queue().retain(|frame| {
            let keep = frame.is_started() || !ids.contains(&frame.id);
            if !keep {
                cancelled.push(frame.id);
            }
            keep
        });
        cancelled
    }

    /// Writes what callers could not write; returns when the socket is broken.
    pub(super) async fn write_queued(&self) {
        loop {
            self.not_empty.notified().await;
            loop {
                if self.socket.writable().await.is_err() {
                    return self.shut_down();
                }
                let mut queue = self.queue();
                let Some(frame) = queue.front_mut() else {
                    break;
                };
                if self.write(frame).is_err() {
                    queue.clear();
                    return;
                }
                if frame.is_written() {
                    queue.pop_front();
                }
            }
        }
    }

    /// Ends the connection in both directions, which wakes its reader.
    pub(super) fn shut_down(&self) {
        self.socket.shut_down();
    }

    fn queue(&self) -> MutexGuard<'_, VecDeque<Frame>> {
        poison::lock(&self.queue)
    }

    /// Writes as much of `frame` as the socket takes without waiting.
    fn write(&self, frame: &mut Frame) -> io::Result<()> {
        while !frame.is_written() {
            match self.socket.try_write_vectored(&frame.parts()) {
                Ok(0) => return self.fail(io::ErrorKind::WriteZero.into()),
                Ok(written) => frame.advance(written),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return self.fail(error),
            }
        }
        Ok(())
    }

    fn fail(&self, error: io::Error) -> io::Result<()> {
        tracing::debug!(%error, "cannot write to a sheep");
        self.shut_down();
        Err(error)
    }
}
