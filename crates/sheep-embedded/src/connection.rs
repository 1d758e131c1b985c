//! One connection: frames in, answers out, in the order in which they are done.
//!
//! The reader takes one frame after the other and hands each request to a task
//! of its own, which runs it on a blocking thread and writes the answer. What a
//! client can make the server hold is bounded: requests in flight, and KiB of
//! payload, per connection and in all. A payload's memory grows with the bytes
//! that arrive, so announcing one costs nothing; a peer that stalls inside a
//! frame, or does not take its answers, is cut off after a while.

use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::sync::Arc;

use sheep_proto::decoder::{self, BadFrame};
use sheep_proto::limits::{HEADER_LEN, MAX_PAYLOAD_LEN};
use sheep_proto::{RequestHeader, ResponseHeader};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{Mutex, OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use zerocopy::IntoBytes;

use crate::config::{MAX_KIB_PER_CONNECTION, MAX_REQUESTS_PER_CONNECTION, STALL_TIMEOUT};
use crate::sheep::Sheep;

/// Bytes of payload read at a time.
const READ_LEN: usize = 256 << 10;

/// What all connections share.
#[derive(Clone)]
pub(crate) struct Limits {
    /// KiB of payload.
    pub(crate) payload_kib: Arc<Semaphore>,
    /// Requests that occupy a thread.
    pub(crate) running: Arc<Semaphore>,
    /// Cancelled when a shutdown has waited long enough.
    pub(crate) abort: CancellationToken,
}

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
}

/// A request that was read, with what it holds of the limits.
struct Frame {
    header: RequestHeader,
    payload: Vec<u8>,
    held: Held,
}

/// Shares of the limits; given back when dropped.
struct Held {
    _request: OwnedSemaphorePermit,
    kib: Vec<OwnedSemaphorePermit>,
}

/// The limits of one connection and those it shares.
struct Budget {
    requests: Arc<Semaphore>,
    kib: Arc<Semaphore>,
    all_kib: Arc<Semaphore>,
}

impl Budget {
    /// Takes a share for `bytes` more of payload.
    ///
    /// Whoever holds nothing of it may wait as long as the others work. Within
    /// a frame the wait is limited: frames that each hold a part could
    /// otherwise wait for each other for ever.
    async fn take(&self, held: &mut Held, bytes: usize) -> Result<(), Closed> {
        let kib = u32::try_from(bytes.div_ceil(1024)).expect("at most a frame");
        let own = Arc::clone(&self.kib).acquire_many_owned(kib).await;
        let shared = Arc::clone(&self.all_kib).acquire_many_owned(kib);
        let shared = if held.kib.is_empty() {
            shared.await
        } else {
            in_time(shared).await?
        };
        held.kib.extend([
            own.map_err(|_| Closed::Broken)?,
            shared.map_err(|_| Closed::Broken)?,
        ]);
        Ok(())
    }
}

async fn in_time<T>(work: impl Future<Output = T>) -> Result<T, Closed> {
    tokio::time::timeout(STALL_TIMEOUT, work)
        .await
        .map_err(|_elapsed| Closed::Stalled)
}

/// Serves a connection until the client closes it, breaks a rule, or the server stops.
pub(crate) async fn serve(
    stream: TcpStream,
    sheep: Arc<Sheep>,
    limits: Limits,
) -> Result<(), Closed> {
    stream.set_nodelay(true)?;
    let mut address = stream.local_addr()?;
    address.set_ip(address.ip().to_canonical());
    let (mut read_half, write_half) = stream.into_split();
    let connection = Arc::new(Connection {
        sheep,
        address,
        running: limits.running,
        writer: Mutex::new(write_half),
        close: CancellationToken::new(),
    });
    let budget = Budget {
        requests: Arc::new(Semaphore::new(MAX_REQUESTS_PER_CONNECTION)),
        kib: Arc::new(Semaphore::new(MAX_KIB_PER_CONNECTION)),
        all_kib: limits.payload_kib,
    };
    let requests = TaskTracker::new();
    let outcome = loop {
        let frame = tokio::select! {
            // A client's SHUTDOWN must be answered before this ends; the tracker waits for it.
            () = connection.sheep.stop.cancelled() => break Ok(()),
            () = connection.close.cancelled() => break Err(Closed::Broken),
            frame = read_frame(&mut read_half, &budget) => frame,
        };
        match frame {
            Ok(Some(frame)) => {
                let answer = answer(Arc::clone(&connection), frame);
                requests.spawn(limits.abort.clone().run_until_cancelled_owned(answer));
            }
            Ok(None) => break Ok(()),
            Err(error) => break Err(error),
        }
    };
    requests.close();
    requests.wait().await;
    outcome
}

/// What the requests of a connection share.
struct Connection {
    sheep: Arc<Sheep>,
    /// Where the client reached the server.
    address: SocketAddr,
    running: Arc<Semaphore>,
    writer: Mutex<OwnedWriteHalf>,
    /// Cancelled when an answer could not be written: the stream is broken.
    close: CancellationToken,
}

/// The next request, or `None` when the client has closed between two.
async fn read_frame(stream: &mut OwnedReadHalf, budget: &Budget) -> Result<Option<Frame>, Closed> {
    let request = Arc::clone(&budget.requests).acquire_owned().await;
    let mut held = Held {
        _request: request.map_err(|_| Closed::Broken)?,
        kib: Vec::new(),
    };
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
        budget.take(&mut held, wanted.min(MAX_PAYLOAD_LEN)).await?;
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

/// Runs one request and writes its answer.
async fn answer(connection: Arc<Connection>, frame: Frame) {
    if let Err(error) = run(&connection, frame).await {
        tracing::debug!("cannot answer: {error}");
        connection.close.cancel();
    }
}

async fn run(connection: &Connection, frame: Frame) -> Result<(), Closed> {
    let Frame {
        header,
        payload,
        held,
    } = frame;
    let (sheep, address) = (Arc::clone(&connection.sheep), connection.address);
    let running = Arc::clone(&connection.running).acquire_owned().await;
    let running = running.map_err(|_| Closed::Broken)?;
    let work = move || {
        let answer = sheep.answer(&header, &payload, address);
        drop((payload, running));
        answer
    };
    let (header, payload) = tokio::task::spawn_blocking(work).await.map_err(|error| {
        tracing::error!("a request failed: {error}");
        Closed::Broken
    })?;
    let mut writer = connection.writer.lock().await;
    write_frame(&mut writer, &header, &payload).await?;
    drop(held);
    Ok(())
}

/// Writes header and payload as one, as far as the socket takes them.
async fn write_frame(
    stream: &mut OwnedWriteHalf,
    header: &ResponseHeader,
    payload: &[u8],
) -> Result<(), Closed> {
    let mut parts = [IoSlice::new(header.as_bytes()), IoSlice::new(payload)];
    let mut parts: &mut [IoSlice<'_>] = &mut parts;
    while parts.iter().any(|part| !part.is_empty()) {
        match in_time(stream.write_vectored(parts)).await?? {
            0 => return Err(io::Error::from(io::ErrorKind::WriteZero).into()),
            written => IoSlice::advance_slices(&mut parts, written),
        }
    }
    Ok(())
}
