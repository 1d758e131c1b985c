//! Frames on their way into a socket, each whole and in order.
//!
//! Whoever sends a frame writes it, while the socket has room. When it has not,
//! what is left of the frame and every frame behind it belong to the task that
//! runs [`Outbox::write_backlog`]. How much can pile up there is bounded by the
//! pool's budget: a call that is given up leaves it, see [`Outbox::withdraw`].

use std::collections::{HashSet, VecDeque};
use std::io::{self, IoSlice};
use std::sync::{Mutex, MutexGuard};

use bytes::{Buf as _, Bytes};
use sheep_proto::RequestHeader;
use sheep_proto::limits::HEADER_LEN;
use tokio::sync::Notify;
use zerocopy::IntoBytes;

use crate::network::SendingHalf;

/// The sending side of a socket.
pub(crate) struct Outbox {
    socket: Box<dyn SendingHalf>,
    backlog: Mutex<VecDeque<Frame>>,
    filled: Notify,
}

/// What is still to be written of a frame.
struct Frame {
    id: u32,
    header: [u8; HEADER_LEN],
    header_written: usize,
    payload: Bytes,
}

impl Frame {
    fn is_begun(&self) -> bool {
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

impl Outbox {
    pub(crate) fn new(socket: Box<dyn SendingHalf>) -> Self {
        Self {
            socket,
            backlog: Mutex::default(),
            filled: Notify::new(),
        }
    }

    /// Sends a frame without waiting; what the socket has no room for goes to
    /// the backlog.
    ///
    /// A failure shuts the socket down, and the reader finds out.
    pub(crate) fn send(&self, header: &RequestHeader, payload: Bytes) {
        let mut frame = Frame {
            id: header.id.get(),
            header: header.as_bytes().try_into().expect("a header has 48 bytes"),
            header_written: 0,
            payload,
        };
        // Held while writing: a frame of another thread must not come between.
        let mut backlog = self.backlog();
        if backlog.is_empty() && self.write(&mut frame).is_err() {
            return;
        }
        if !frame.is_written() {
            backlog.push_back(frame);
            self.filled.notify_one();
        }
    }

    /// Takes those of `ids` back of which nothing has been written, and returns them.
    pub(crate) fn withdraw(&self, ids: &HashSet<u32>) -> Vec<u32> {
        let mut withdrawn = Vec::new();
        self.backlog().retain(|frame| {
            let keep = frame.is_begun() || !ids.contains(&frame.id);
            if !keep {
                withdrawn.push(frame.id);
            }
            keep
        });
        withdrawn
    }

    /// Writes what callers could not; returns when the socket is broken.
    pub(crate) async fn write_backlog(&self) {
        loop {
            self.filled.notified().await;
            loop {
                if self.socket.writable().await.is_err() {
                    return self.shut_down();
                }
                let mut backlog = self.backlog();
                let Some(frame) = backlog.front_mut() else {
                    break;
                };
                if self.write(frame).is_err() {
                    backlog.clear();
                    return;
                }
                if frame.is_written() {
                    backlog.pop_front();
                }
            }
        }
    }

    /// Ends the connection in both directions, which wakes its reader.
    pub(crate) fn shut_down(&self) {
        self.socket.shut_down();
    }

    fn backlog(&self) -> MutexGuard<'_, VecDeque<Frame>> {
        self.backlog.lock().expect("no one panics with the backlog")
    }

    /// Writes as much of `frame` as the socket takes without waiting.
    fn write(&self, frame: &mut Frame) -> io::Result<()> {
        while !frame.is_written() {
            match self.socket.try_write_vectored(&frame.parts()) {
                Ok(0) => return self.give_up(io::ErrorKind::WriteZero.into()),
                Ok(written) => frame.advance(written),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return self.give_up(error),
            }
        }
        Ok(())
    }

    fn give_up(&self, error: io::Error) -> io::Result<()> {
        tracing::debug!(%error, "cannot write to a sheep");
        self.shut_down();
        Err(error)
    }
}
