//! From a request that was read to its answer on the wire.

use std::io::{self, IoSlice};
use std::sync::Arc;
use std::sync::Mutex as StdMutex;

use sheep_proto::limits::HEADER_LEN;
use sheep_proto::{RequestHeader, ResponseBody, ResponseHeader};
use tokio::io::AsyncWriteExt;
use tokio::net::tcp::OwnedWriteHalf;
use tokio::sync::Mutex;
use tokio_util::sync::CancellationToken;
use zerocopy::IntoBytes;

use crate::budget::Held;
use crate::call::Origin;
use crate::connection::{Closed, in_time};
use crate::faults::Fault;
use crate::server::Node;
use crate::sync::lock;

/// A request that was read, with what it holds of the limits.
pub(crate) struct Frame {
    pub(crate) header: RequestHeader,
    pub(crate) payload: Vec<u8>,
    pub(crate) held: Held,
}

/// What the requests of a connection share.
pub(crate) struct Connection {
    node: Node,
    origin: Origin,
    writer: Mutex<OwnedWriteHalf>,
    /// Requests in flight, for [`Fault::Reorder`].
    reordering: StdMutex<Reordering>,
    /// Cancelled when an answer could not be written: the stream is broken.
    pub(crate) close: CancellationToken,
}

#[derive(Default)]
struct Reordering {
    in_flight: usize,
    /// The answer that comes after the next one.
    held_back: Option<Finished>,
}

/// An answer that is ready, and what its request holds.
struct Finished {
    header: ResponseHeader,
    payload: Vec<u8>,
    _held: Held,
}

impl Connection {
    pub(crate) fn new(node: Node, origin: Origin, writer: OwnedWriteHalf) -> Self {
        Self {
            node,
            origin,
            writer: Mutex::new(writer),
            reordering: StdMutex::default(),
            close: CancellationToken::new(),
        }
    }

    /// Runs one request and writes its answer. To be called in the order in
    /// which the requests came, and not only when the result is polled.
    pub(crate) fn answer(self: Arc<Self>, frame: Frame) -> impl Future<Output = ()> + Send {
        lock(&self.reordering).in_flight += 1;
        let fault = self.node.faults.meet(&frame.header);
        async move {
            let done = match fault {
                None => self.run_and_write(frame).await.map(|()| None),
                Some((fault, healed)) => self.fail(frame, fault, healed).await,
            };
            let done = match done {
                Ok(overtaken) => self.write_late(overtaken).await,
                Err(error) => Err(error),
            };
            if let Err(error) = done {
                tracing::debug!("cannot answer: {error}");
                self.close.cancel();
            }
        }
    }

    /// A request is over: writes the answer it has overtaken, and its own when
    /// it was to be overtaken and nobody is left to do so.
    async fn write_late(&self, overtaken: Option<Finished>) -> Result<(), Closed> {
        let late = {
            let mut reordering = lock(&self.reordering);
            reordering.in_flight -= 1;
            if overtaken.is_some() && reordering.in_flight > 0 && reordering.held_back.is_none() {
                reordering.held_back = overtaken;
                return Ok(());
            }
            [overtaken, reordering.held_back.take()]
        };
        for finished in late.iter().flatten() {
            self.write(finished).await?;
        }
        Ok(())
    }

    async fn run_and_write(self: &Arc<Self>, frame: Frame) -> Result<(), Closed> {
        let finished = self.run(frame).await?;
        self.write(&finished).await
    }

    /// Does what a fault says instead; returns an answer that is to be overtaken.
    async fn fail(
        self: &Arc<Self>,
        frame: Frame,
        fault: Fault,
        healed: CancellationToken,
    ) -> Result<Option<Finished>, Closed> {
        match fault {
            Fault::Delay(time) => {
                tokio::time::sleep(time).await;
                self.run_and_write(frame).await?;
            }
            Fault::DelayAnswer(time) => {
                let finished = self.run(frame).await?;
                tokio::time::sleep(time).await;
                self.write(&finished).await?;
            }
            Fault::Hold => {
                healed.cancelled().await;
                self.run_and_write(frame).await?;
            }
            Fault::Reorder => return self.run(frame).await.map(Some),
            Fault::DropRequest => {}
            Fault::DropAnswer => drop(self.run(frame).await?),
            Fault::CutRequest => return Err(Closed::Fault),
            Fault::CutAnswer(len) => {
                let finished = self.run(frame).await?;
                let header = finished.header.as_bytes();
                let in_header = len.min(HEADER_LEN);
                let in_payload = (len - in_header).min(finished.payload.len());
                let (header, payload) = (&header[..in_header], &finished.payload[..in_payload]);
                self.write_bytes(header, payload).await?;
                return Err(Closed::Fault);
            }
            Fault::WrongId => {
                let mut finished = self.run(frame).await?;
                finished.header.id = (!finished.header.id.get()).into();
                self.write(&finished).await?;
            }
            Fault::Refuse(code) => {
                let body = ResponseBody::result(code);
                let finished = Finished {
                    header: ResponseHeader::answer(&frame.header, self.node.sheep.epoch(), 0, body),
                    payload: Vec::new(),
                    _held: frame.held,
                };
                self.write(&finished).await?;
            }
        }
        Ok(None)
    }

    /// Runs a request on a thread where it may block.
    async fn run(self: &Arc<Self>, frame: Frame) -> Result<Finished, Closed> {
        let Frame {
            header,
            payload,
            held,
        } = frame;
        let running = Arc::clone(&self.node.limits.running).acquire_owned().await;
        let running = running.map_err(|_| Closed::Broken)?;
        let connection = Arc::clone(self);
        let work = move || {
            let answer = connection
                .node
                .sheep
                .answer(&header, &payload, &connection.origin);
            drop((payload, running));
            answer
        };
        let (header, payload) = tokio::task::spawn_blocking(work).await.map_err(|error| {
            tracing::error!("a request failed: {error}");
            Closed::Broken
        })?;
        Ok(Finished {
            header,
            payload,
            _held: held,
        })
    }

    async fn write(&self, finished: &Finished) -> Result<(), Closed> {
        self.write_bytes(finished.header.as_bytes(), &finished.payload)
            .await
    }

    /// Writes header and payload as one, as far as the socket takes them.
    async fn write_bytes(&self, header: &[u8], payload: &[u8]) -> Result<(), Closed> {
        let mut stream = self.writer.lock().await;
        let mut parts = [IoSlice::new(header), IoSlice::new(payload)];
        let mut parts: &mut [IoSlice<'_>] = &mut parts;
        while parts.iter().any(|part| !part.is_empty()) {
            match in_time(stream.write_vectored(parts)).await?? {
                0 => return Err(io::Error::from(io::ErrorKind::WriteZero).into()),
                written => IoSlice::advance_slices(&mut parts, written),
            }
        }
        Ok(())
    }
}
