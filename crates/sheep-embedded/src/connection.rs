//! One connection: frames in, answers out, in the order in which they are done.
//!
//! The reader takes one frame after the other and hands each request to a task
//! of its own, which runs it on a blocking thread and writes the answer. What a
//! client can make the server hold is bounded: requests in flight, and KiB of
//! payload, per connection and in all. A payload's memory grows with the bytes
//! that arrive, so announcing one costs nothing; a peer that stalls inside a
//! frame, or does not take its answers, is cut off after a while.

use std::io;
use std::sync::Arc;

use sheep_proto::decoder::{self, BadFrame};
use sheep_proto::limits::{HEADER_LEN, MAX_PAYLOAD_LEN};
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio::net::tcp::OwnedReadHalf;
use tokio_util::task::TaskTracker;

use crate::answering::{Connection, Frame};
use crate::budget::Budget;
use crate::call::Origin;
use crate::config::STALL_TIMEOUT;
use crate::server::Node;

/// Bytes of payload read at a time.
const READ_LEN: usize = 256 << 10;

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
    let (mut read_half, write_half) = stream.into_split();
    let budget = Budget::new(&node.limits);
    let (stop, abort) = (node.stop.clone(), node.abort.clone());
    let origin = Origin {
        address,
        stop: node.stop.clone(),
    };
    let connection = Arc::new(Connection::new(node, origin, write_half));
    let requests = TaskTracker::new();
    let outcome = loop {
        let frame = tokio::select! {
            // A client's SHUTDOWN must be answered before this ends; the tracker waits for it.
            () = stop.cancelled() => break Ok(()),
            () = connection.close.cancelled() => break Err(Closed::Broken),
            frame = read_frame(&mut read_half, &budget) => frame,
        };
        match frame {
            Ok(Some(frame)) => {
                let answer = Arc::clone(&connection).answer(frame);
                requests.spawn(abort.clone().run_until_cancelled_owned(answer));
            }
            Ok(None) => break Ok(()),
            Err(error) => break Err(error),
        }
    };
    requests.close();
    requests.wait().await;
    outcome
}

/// The next request, or `None` when the client has closed between two.
async fn read_frame(stream: &mut OwnedReadHalf, budget: &Budget) -> Result<Option<Frame>, Closed> {
    let mut held = budget.request().await?;
    let mut bytes = [0; HEADER_LEN];
    // A client may be silent for ever before a frame, but not within one.
    let first = stream.read(&mut bytes).await?;
    if first == 0 {
        return Ok(None);
    }
    in_time(stream.read_exact(&mut bytes[first..])).await??;
    let limit = u32::try_from(MAX_PAYLOAD_LEN).expect("a constant");
    let Some(header) = decoder::request(&bytes, limit)? else {
        return Err(Closed::Broken);
    };
    let payload_len = header.payload_len() as usize;
    if payload_len == 0 {
        // Room for the answer, as far as any may be given.
        let wanted = header.data_length.get() as usize;
        budget.take(&mut held, wanted).await?;
    }
    let mut payload = Vec::new();
    while payload.len() < payload_len {
        let now = READ_LEN.min(payload_len - payload.len());
        budget.take(&mut held, now).await?;
        let start = payload.len();
        payload.resize(start + now, 0);
        in_time(stream.read_exact(&mut payload[start..])).await??;
    }
    Ok(Some(Frame {
        header,
        payload,
        held,
    }))
}
