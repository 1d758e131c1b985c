//! One connection: frames in, answers out, in the order in which they are done.
//!
//! ```text
//! reader -> header -> needs no disk: runs here, answers leave together
//!                  \-> else: a task, which runs it on a blocking thread
//! ```
//!
//! On a store in memory most requests take less time than handing them to
//! another thread would, so they run where they were read; what several of
//! them answer leaves in one system call once nothing more is to be read. The
//! rest may take as long as it likes: it runs beside, and others overtake it.
//!
//! What a client can make the server hold is bounded, see [`crate::budget`].
//! A payload's memory grows with the bytes that arrive, so announcing one
//! costs nothing; a peer that stalls inside a frame, or does not take its
//! answers, is cut off after a while.

use std::io;
use std::pin::pin;
use std::sync::Arc;

use sheep_proto::RequestHeader;
use sheep_proto::decoder::BadFrame;
use tokio::net::TcpStream;
use tokio_util::task::TaskTracker;

use crate::answering::{Connection, Finished, Frame, Unsent};
use crate::budget::Budget;
use crate::call::Origin;
use crate::config::{MAX_QUICK_LEN, SMALL_LEN, STALL_TIMEOUT};
use crate::reader::Reader;
use crate::server::Node;

/// Answers that wait for each other to leave together.
const MAX_BATCH: usize = 32;
/// Bytes of them.
const MAX_BATCH_LEN: usize = 256 << 10;

/// Why the server closes a connection.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Closed {
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error("{0}")]
    BadFrame(#[from] BadFrame),
    #[error("no byte moved for {} seconds", STALL_TIMEOUT.as_secs())]
    Stalled,
    #[error("a request could not be answered")]
    Broken,
    #[error("a fault was asked for")]
    Fault,
}

pub(crate) async fn in_time<T>(work: impl Future<Output = T>) -> Result<T, Closed> {
    tokio::time::timeout(STALL_TIMEOUT, work)
        .await
        .map_err(|_elapsed| Closed::Stalled)
}

/// Serves a connection until the client closes it, breaks a rule, or the node stops.
pub(crate) async fn serve(stream: TcpStream, node: Node) -> Result<(), Closed> {
    stream.set_nodelay(true)?;
    let mut address = stream.local_addr()?;
    address.set_ip(address.ip().to_canonical());
    let (read_half, write_half) = stream.into_split();
    let budget = Budget::new(&node.limits);
    let stop = node.stop.clone();
    let origin = Origin {
        address,
        node: node.local_address,
        stop: stop.clone(),
    };
    let connection = Arc::new(Connection::new(node, origin, write_half));
    let mut serving = Serving {
        reader: Reader::new(read_half),
        budget,
        connection: Arc::clone(&connection),
        requests: TaskTracker::new(),
        batch: Vec::new(),
        batch_len: 0,
        unsent: None,
    };
    let mut stopped = pin!(stop.cancelled());
    let mut broken = pin!(connection.close.cancelled());
    let outcome = loop {
        let step = tokio::select! {
            biased;
            // A client's SHUTDOWN must be answered before this ends; the tracker waits for it.
            () = &mut stopped => break Ok(()),
            () = &mut broken => break Err(Closed::Broken),
            step = serving.step() => step,
        };
        match step {
            Ok(true) => {}
            Ok(false) => break Ok(()),
            Err(error) => break Err(error),
        }
    };
    let flushed = serving.flush().await;
    serving.requests.close();
    serving.requests.wait().await;
    outcome.and(flushed)
}

/// What the reading side of a connection has.
struct Serving {
    reader: Reader,
    budget: Budget,
    connection: Arc<Connection>,
    requests: TaskTracker,
    /// Answers that are ready to leave.
    batch: Vec<Finished>,
    batch_len: usize,
    /// What the socket did not take, while it waits for its share of the limits.
    unsent: Option<Unsent>,
}

impl Serving {
    /// Takes the next request; false when there will be none.
    async fn step(&mut self) -> Result<bool, Closed> {
        if !self.reader.has_frame() {
            self.flush().await?;
        }
        let Some(header) = self.reader.header().await? else {
            return Ok(false);
        };
        let is_quick = self.connection.is_quick(&header, MAX_QUICK_LEN);
        let payload_len = header.payload_len() as usize;
        if is_quick
            && header.data_length.get() as usize <= SMALL_LEN
            && let Some(payload) = self.reader.small_payload(payload_len)
        {
            // Written at once: only what the socket does not take is worth a share
            // of the limits.
            let finished = self.connection.run_here(&header, payload, None);
            self.add(finished).await?;
            return Ok(true);
        }
        let frame = self.frame(header).await?;
        if is_quick {
            let Frame {
                header,
                payload,
                held,
            } = frame;
            let finished = self.connection.run_here(&header, &payload, Some(held));
            self.add(finished).await?;
        } else {
            let answer = Arc::clone(&self.connection).answer(frame);
            self.requests.spawn(answer);
        }
        Ok(true)
    }

    /// The rest of a frame, with its shares of the limits.
    async fn frame(&mut self, header: RequestHeader) -> Result<Frame, Closed> {
        let mut held = self.budget.request().await?;
        let payload_len = header.payload_len() as usize;
        if payload_len == 0 {
            // Room for the answer, as far as any may be given.
            let wanted = header.data_length.get() as usize;
            self.budget.take(&mut held, wanted).await?;
        }
        let payload = self
            .reader
            .payload(payload_len, &self.budget, &mut held)
            .await?;
        Ok(Frame {
            header,
            payload,
            held,
        })
    }

    async fn add(&mut self, finished: Finished) -> Result<(), Closed> {
        self.batch_len += finished.len();
        self.batch.push(finished);
        if self.batch.len() >= MAX_BATCH || self.batch_len >= MAX_BATCH_LEN {
            self.flush().await?;
        }
        Ok(())
    }

    /// Sends what is ready. What the socket does not take at once leaves by a
    /// task, so that a client may send all its requests before it reads.
    async fn flush(&mut self) -> Result<(), Closed> {
        if !self.batch.is_empty() {
            self.batch_len = 0;
            let batch = std::mem::take(&mut self.batch);
            self.unsent = self.connection.try_write(batch)?;
        }
        let Some(unsent) = &self.unsent else {
            return Ok(());
        };
        // Requests in flight hold the limits until they have written, so whoever
        // keeps them from it must not wait for the limits.
        let held = if unsent.keeps_the_socket() {
            None
        } else {
            let len = unsent.len();
            let mut held = self.budget.request().await?;
            self.budget.take(&mut held, len).await?;
            Some(held)
        };
        // Taken only now: this future may be dropped while it waits.
        if let Some(unsent) = self.unsent.take() {
            let rest = Arc::clone(&self.connection).write_rest(unsent, held);
            self.requests.spawn(rest);
        }
        Ok(())
    }
}
