//! One connection: frames in, responses out, in the order of completion.
//!
//! ```text
//! reader -> header -> needs no disk: runs inline, responses are batched
//!                  \-> else: a task, which runs it on a blocking thread
//! ```
//!
//! On a store in memory most requests take less time than handing them to
//! another thread would, so they run where they were read. Their responses
//! leave in one system call once no complete frame is buffered any more. Other
//! requests may take as long as they need; later ones overtake them.
//!
//! The memory that a client can occupy is bounded, see [`super::limits`]. A
//! payload's memory grows with the bytes that arrive, so announcing one costs
//! nothing. A peer that stalls inside a frame, or does not read its responses,
//! is disconnected after a while.

use std::pin::pin;
use std::sync::Arc;

use sheep_proto::RequestHeader;
use tokio::net::TcpStream;
use tokio_util::task::TaskTracker;

use super::error::ConnectionError;
use super::limits::ConnectionLimits;
use super::node_context::NodeContext;
use super::reader::Reader;
use super::responder::{Frame, PartialWrite, Responder, Response};
use crate::config::{MAX_INLINE_LEN, MAX_UNCOUNTED_LEN};
use crate::request::Origin;

/// Most responses in a batch.
const MAX_BATCH: usize = 32;
/// Bytes of a batch after which it is written.
const MAX_BATCH_LEN: usize = 256 << 10;

/// Serves a connection until the client closes it, breaks a rule, or the node stops.
pub(crate) async fn serve(stream: TcpStream, node: NodeContext) -> Result<(), ConnectionError> {
    // Divide the connection into a reader, which is this task, and a responder.
    stream.set_nodelay(true)?;
    let mut address = stream.local_addr()?;
    address.set_ip(address.ip().to_canonical());
    let (read_half, write_half) = stream.into_split();
    let limits = ConnectionLimits::new(&node.limits);
    let stop = node.stop.clone();
    let origin = Origin {
        address,
        node: node.local_address,
        stop: stop.clone(),
    };
    // The responder outlives this loop in the tasks of requests in flight.
    let responder = Arc::new(Responder::new(node, origin, write_half));
    let mut connection = Connection {
        reader: Reader::new(read_half),
        limits,
        responder: Arc::clone(&responder),
        requests: TaskTracker::new(),
        batch: Vec::new(),
        batch_len: 0,
        unsent: None,
    };
    // Read and dispatch until the connection or the node ends.
    let mut stopped = pin!(stop.cancelled());
    let mut broken = pin!(responder.close.cancelled());
    let outcome = loop {
        let step = tokio::select! {
            biased;
            // A client's SHUTDOWN must be answered before this ends; the tracker waits for it.
            () = &mut stopped => break Ok(()),
            () = &mut broken => break Err(ConnectionError::Aborted),
            step = connection.step() => step,
        };
        match step {
            Ok(true) => {}
            Ok(false) => break Ok(()),
            Err(error) => break Err(error),
        }
    };
    // Drain: write the batch, then wait for the requests in flight.
    let flushed = connection.flush().await;
    connection.requests.close();
    connection.requests.wait().await;
    outcome.and(flushed)
}

/// The reading side of a connection.
struct Connection {
    reader: Reader,
    limits: ConnectionLimits,
    responder: Arc<Responder>,
    requests: TaskTracker,
    /// Responses of inline requests, not written yet.
    batch: Vec<Response>,
    batch_len: usize,
    /// What the socket did not take, while it waits for permits.
    unsent: Option<PartialWrite>,
}

impl Connection {
    /// Takes the next request; false when the client has closed the connection.
    async fn step(&mut self) -> Result<bool, ConnectionError> {
        if !self.reader.has_frame() {
            self.flush().await?;
        }
        let Some(header) = self.reader.header().await? else {
            return Ok(false);
        };
        let is_inline = self.responder.can_run_inline(&header, MAX_INLINE_LEN);
        let payload_len = header.payload_len() as usize;
        if is_inline
            && header.data_length.get() as usize <= MAX_UNCOUNTED_LEN
            && let Some(payload) = self.reader.small_payload(payload_len)
        {
            // No permits: the response is written now, and flush() takes
            // permits for the part that the socket does not take.
            let response = self.responder.run_inline(&header, payload, None);
            self.push(response).await?;
            return Ok(true);
        }
        let frame = self.frame(header).await?;
        if is_inline {
            let Frame {
                header,
                payload,
                permits,
            } = frame;
            let response = self.responder.run_inline(&header, &payload, Some(permits));
            self.push(response).await?;
        } else {
            let response = Arc::clone(&self.responder).respond(frame);
            self.requests.spawn(response);
        }
        Ok(true)
    }

    /// Reads the rest of a frame, with its permits.
    async fn frame(&mut self, header: RequestHeader) -> Result<Frame, ConnectionError> {
        let mut permits = self.limits.request().await?;
        let payload_len = header.payload_len() as usize;
        if payload_len == 0 {
            // For the payload of the response, at most what a frame may have.
            let wanted = header.data_length.get() as usize;
            self.limits.acquire(&mut permits, wanted).await?;
        }
        let payload = self
            .reader
            .payload(payload_len, &self.limits, &mut permits)
            .await?;
        Ok(Frame {
            header,
            payload,
            permits,
        })
    }

    /// Adds a response to the batch, and writes a full one.
    async fn push(&mut self, response: Response) -> Result<(), ConnectionError> {
        self.batch_len += response.len();
        self.batch.push(response);
        if self.batch.len() >= MAX_BATCH || self.batch_len >= MAX_BATCH_LEN {
            self.flush().await?;
        }
        Ok(())
    }

    /// Writes the batch. A task writes what the socket does not take now, so
    /// that a client may send all its requests before it reads a response.
    async fn flush(&mut self) -> Result<(), ConnectionError> {
        if !self.batch.is_empty() {
            self.batch_len = 0;
            let batch = std::mem::take(&mut self.batch);
            self.unsent = self.responder.try_write(batch)?;
        }
        let Some(unsent) = &self.unsent else {
            return Ok(());
        };
        // The owner of the writer must not wait for permits: requests in flight
        // have them until they have written, and they wait for the writer.
        let permits = if unsent.owns_writer() {
            None
        } else {
            let len = unsent.len();
            let mut permits = self.limits.request().await?;
            self.limits.acquire(&mut permits, len).await?;
            Some(permits)
        };
        // Taken only now: this future may be dropped while it waits.
        if let Some(unsent) = self.unsent.take() {
            let rest = Arc::clone(&self.responder).write_rest(unsent, permits);
            self.requests.spawn(rest);
        }
        Ok(())
    }
}
