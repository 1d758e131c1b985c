//! Byte streams in memory that are slow, small, and cut at any byte.
//!
//! Bytes arrive in order, in the pieces in which they were written, each after
//! a delay of its own. A reset drops the bytes that have not arrived; an orderly end comes
//! after them.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Poll, Waker};

use sheep_client::unstable::{BoxFuture, WriteHalf};
use tokio::io::{AsyncRead, ReadBuf};
use tokio::sync::{Notify, mpsc};
use tokio::time::Instant;

use crate::locked;
use crate::sim_rng::SimRng;

/// Bytes in flight in one direction; a frame with a large payload does not fit.
const CAPACITY: usize = 16 << 10;

/// One direction of a connection.
#[derive(Default)]
pub(crate) struct Pipe {
    state: Mutex<State>,
    room: Notify,
    /// Wakes the carrier of a pipe that is cut.
    cut: Notify,
}

#[derive(Default)]
struct State {
    arrived: VecDeque<u8>,
    travelling: usize,
    end: Option<End>,
    reader: Option<Waker>,
    last_arrival: Option<Instant>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum End {
    Closed,
    Reset,
}

/// What travels.
enum Piece {
    Bytes(Instant, Vec<u8>),
    Close(Instant),
}

impl Pipe {
    fn state(&self) -> MutexGuard<'_, State> {
        locked(&self.state)
    }

    fn end(&self, end: End) {
        let mut state = self.state();
        state.end.get_or_insert(end);
        if end == End::Reset {
            state.end = Some(End::Reset);
            state.arrived.clear();
        }
        if let Some(reader) = state.reader.take() {
            reader.wake();
        }
        drop(state);
        self.room.notify_waiters();
        self.cut.notify_waiters();
    }

    /// Drops all bytes in the pipe.
    pub(crate) fn reset(&self) {
        self.end(End::Reset);
    }

    pub(crate) fn is_reset(&self) -> bool {
        self.state().end == Some(End::Reset)
    }
}

/// Delivers the pieces, each after its delay.
async fn carry(pipe: Arc<Pipe>, mut pieces: mpsc::UnboundedReceiver<Piece>) {
    while let Some(piece) = pieces.recv().await {
        let (at, bytes) = match piece {
            Piece::Bytes(at, bytes) => (at, Some(bytes)),
            Piece::Close(at) => (at, None),
        };
        tokio::select! {
            biased;
            () = pipe.cut.notified() => {}
            () = tokio::time::sleep_until(at) => {}
        }
        if pipe.is_reset() {
            return;
        }
        let Some(bytes) = bytes else {
            return pipe.end(End::Closed);
        };
        let mut state = pipe.state();
        state.travelling -= bytes.len();
        state.arrived.extend(bytes);
        if let Some(reader) = state.reader.take() {
            reader.wake();
        }
    }
}

/// The end of a pipe that is written to.
pub(crate) struct Sender {
    pipe: Arc<Pipe>,
    /// The other direction.
    back: Arc<Pipe>,
    pieces: mpsc::UnboundedSender<Piece>,
    rng: SimRng,
}

impl Sender {
    /// The sending end of `pipe`, with random delays.
    pub(crate) fn new(pipe: Arc<Pipe>, back: Arc<Pipe>, rng: SimRng) -> Self {
        let (pieces, carried) = mpsc::unbounded_channel();
        tokio::spawn(carry(Arc::clone(&pipe), carried));
        Self {
            pipe,
            back,
            pieces,
            rng,
        }
    }

    /// Sends all bytes, in spite of the limit.
    pub(crate) fn send(&self, bytes: Vec<u8>) {
        let mut state = self.pipe.state();
        if state.end.is_none() {
            state.travelling += bytes.len();
            let at = self.arrival(&mut state);
            // The carrier has ended if the pipe was reset.
            let _ = self.pieces.send(Piece::Bytes(at, bytes));
        }
    }

    fn arrival(&self, state: &mut State) -> Instant {
        let at = (Instant::now() + self.rng.latency())
            .max(state.last_arrival.unwrap_or_else(Instant::now));
        state.last_arrival = Some(at);
        at
    }
}

impl WriteHalf for Sender {
    fn try_write_vectored(&self, parts: &[IoSlice<'_>]) -> io::Result<usize> {
        let mut state = self.pipe.state();
        if state.end.is_some() {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        let len: usize = parts.iter().map(|part| part.len()).sum();
        let mut room = CAPACITY.saturating_sub(state.travelling + state.arrived.len());
        if room == 0 {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        if self.rng.one_in(8) {
            room = self.rng.up_to(room - 1) + 1;
        }
        let bytes: Vec<u8> = parts
            .iter()
            .flat_map(|part| part.iter().copied())
            .take(room.min(len))
            .collect();
        let written = bytes.len();
        state.travelling += written;
        let at = self.arrival(&mut state);
        // The carrier has ended if the pipe was reset.
        let _ = self.pieces.send(Piece::Bytes(at, bytes));
        Ok(written)
    }

    fn writable(&self) -> BoxFuture<'_, io::Result<()>> {
        Box::pin(async move {
            loop {
                let room = self.pipe.room.notified();
                {
                    let state = self.pipe.state();
                    if state.end.is_some() {
                        return Err(io::ErrorKind::BrokenPipe.into());
                    }
                    if state.travelling + state.arrived.len() < CAPACITY {
                        return Ok(());
                    }
                }
                room.await;
            }
        })
    }

    fn shut_down(&self) {
        let at = self.arrival(&mut self.pipe.state());
        // The carrier has ended if the pipe was reset.
        let _ = self.pieces.send(Piece::Close(at));
        self.back.end(End::Closed);
    }
}

/// The end of a pipe that is read from.
pub(crate) struct Receiver {
    pub(crate) pipe: Arc<Pipe>,
}

impl AsyncRead for Receiver {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let mut state = self.pipe.state();
        if state.arrived.is_empty() {
            return match state.end {
                Some(End::Closed) => Poll::Ready(Ok(())),
                Some(End::Reset) => Poll::Ready(Err(io::ErrorKind::ConnectionReset.into())),
                None => {
                    state.reader = Some(context.waker().clone());
                    Poll::Pending
                }
            };
        }
        let len = state.arrived.len().min(buffer.remaining());
        let (front, back) = state.arrived.as_slices();
        let of_front = front.len().min(len);
        buffer.put_slice(&front[..of_front]);
        buffer.put_slice(&back[..len - of_front]);
        state.arrived.drain(..len);
        drop(state);
        self.pipe.room.notify_waiters();
        Poll::Ready(Ok(()))
    }
}
