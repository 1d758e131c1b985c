//! From a request that was read to its answer on the wire.

use std::io::{self, IoSlice};
use std::iter;
use std::sync::Arc;
use std::sync::Mutex as StdMutex;

use sheep_proto::limits::HEADER_LEN;
use sheep_proto::{Opcode, RequestHeader, ResponseBody, ResponseHeader};
use tokio::io::AsyncWriteExt;
use tokio::net::tcp::OwnedWriteHalf;
use tokio::sync::{Mutex, OwnedMutexGuard};
use tokio_util::sync::CancellationToken;
use zerocopy::IntoBytes;

use crate::budget::Held;
use crate::call::Origin;
use crate::connection::{Closed, in_time};
use crate::faults::Fault;
use crate::payload::Payload;
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
    writer: Arc<Mutex<OwnedWriteHalf>>,
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
pub(crate) struct Finished {
    header: ResponseHeader,
    payload: Payload,
    _held: Option<Held>,
}

impl Finished {
    /// Bytes on the wire.
    pub(crate) fn len(&self) -> usize {
        HEADER_LEN + self.payload.len()
    }

    fn pieces(&self) -> impl Iterator<Item = &[u8]> {
        iter::once(self.header.as_bytes()).chain(self.payload.pieces())
    }
}

/// Answers of which the socket has taken a part.
pub(crate) struct Unsent {
    answers: Vec<Finished>,
    written: usize,
    /// Nobody else may write before the rest has left; `None` when somebody does.
    writer: Option<OwnedMutexGuard<OwnedWriteHalf>>,
}

impl Unsent {
    /// Bytes of all its answers.
    pub(crate) fn len(&self) -> usize {
        self.answers.iter().map(Finished::len).sum()
    }

    /// True when nobody else can write before these have left.
    pub(crate) fn keeps_the_socket(&self) -> bool {
        self.writer.is_some()
    }
}

impl Connection {
    pub(crate) fn new(node: Node, origin: Origin, writer: OwnedWriteHalf) -> Self {
        Self {
            node,
            origin,
            writer: Arc::new(Mutex::new(writer)),
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
            let done = async {
                let overtaken = match fault {
                    None => {
                        self.run_and_write(frame).await?;
                        None
                    }
                    Some((fault, healed)) => self.fail(frame, fault, healed).await?,
                };
                self.write_late(overtaken).await
            };
            if let Err(error) = self.unless_aborted(done).await {
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
        for finished in late.into_iter().flatten() {
            self.write(finished).await?;
        }
        Ok(())
    }

    async fn run_and_write(self: &Arc<Self>, frame: Frame) -> Result<(), Closed> {
        let finished = self.run(frame).await?;
        self.write(finished).await
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
                self.write(finished).await?;
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
                let bytes: Vec<u8> = finished.pieces().flatten().copied().take(len).collect();
                let mut writer = self.writer.lock().await;
                in_time(writer.write_all(&bytes)).await??;
                return Err(Closed::Fault);
            }
            Fault::WrongId => {
                let mut finished = self.run(frame).await?;
                finished.header.id = (!finished.header.id.get()).into();
                self.write(finished).await?;
            }
            Fault::Refuse(code) => {
                let body = ResponseBody::result(code);
                let finished = Finished {
                    header: ResponseHeader::answer(&frame.header, self.node.sheep.epoch(), 0, body),
                    payload: Payload::default(),
                    _held: Some(frame.held),
                };
                self.write(finished).await?;
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
            _held: Some(held),
        })
    }

    /// True for requests that are over sooner than another thread could begin with them.
    pub(crate) fn is_quick(&self, header: &RequestHeader, max_len: usize) -> bool {
        let is_object_io = matches!(
            Opcode::try_from(header.opcode),
            Ok(Opcode::ReadObj | Opcode::WriteObj | Opcode::CreateAndWriteObj)
        );
        is_object_io
            && header.data_length.get() as usize <= max_len
            && self.node.sheep.store.is_memory()
            && !self.node.faults.is_any()
    }

    /// Runs a quick request on this thread.
    pub(crate) fn run_here(
        &self,
        header: &RequestHeader,
        payload: &[u8],
        held: Option<Held>,
    ) -> Finished {
        let (header, payload) = self.node.sheep.answer(header, payload, &self.origin);
        Finished {
            header,
            payload,
            _held: held,
        }
    }

    /// Writes as much as the socket takes at once; returns what is left.
    pub(crate) fn try_write(&self, answers: Vec<Finished>) -> Result<Option<Unsent>, Closed> {
        let Ok(writer) = Arc::clone(&self.writer).try_lock_owned() else {
            return Ok(Some(Unsent {
                answers,
                written: 0,
                writer: None,
            }));
        };
        let len: usize = answers.iter().map(Finished::len).sum();
        let mut written = 0;
        let mut pieces = pieces(&answers);
        let mut left: &mut [IoSlice<'_>] = &mut pieces;
        while written < len {
            match writer.try_write_vectored(left) {
                Ok(0) => return Err(io::Error::from(io::ErrorKind::WriteZero).into()),
                Ok(now) => {
                    written += now;
                    IoSlice::advance_slices(&mut left, now);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    return Ok(Some(Unsent {
                        answers,
                        written,
                        writer: Some(writer),
                    }));
                }
                Err(error) => return Err(error.into()),
            }
        }
        Ok(None)
    }

    /// Writes what [`Connection::try_write`] has left, and what its requests hold until then.
    pub(crate) async fn write_rest(self: Arc<Self>, unsent: Unsent, held: Option<Held>) {
        let written = async {
            let writer = match unsent.writer {
                Some(writer) => writer,
                None => Arc::clone(&self.writer).lock_owned().await,
            };
            write_from(writer, &unsent.answers, unsent.written).await
        };
        if let Err(error) = self.unless_aborted(written).await {
            tracing::debug!("cannot answer: {error}");
            self.close.cancel();
        }
        drop(held);
    }

    async fn write(&self, finished: Finished) -> Result<(), Closed> {
        let writer = Arc::clone(&self.writer).lock_owned().await;
        write_from(writer, &[finished], 0).await
    }

    async fn unless_aborted(
        &self,
        work: impl Future<Output = Result<(), Closed>>,
    ) -> Result<(), Closed> {
        self.node
            .abort
            .run_until_cancelled(work)
            .await
            .unwrap_or(Err(Closed::Broken))
    }
}

fn pieces(answers: &[Finished]) -> Vec<IoSlice<'_>> {
    let pieces = answers.iter().flat_map(Finished::pieces);
    pieces.map(IoSlice::new).collect()
}

/// Writes answers but for the first `written` bytes of them.
async fn write_from(
    mut writer: OwnedMutexGuard<OwnedWriteHalf>,
    answers: &[Finished],
    written: usize,
) -> Result<(), Closed> {
    let mut pieces = pieces(answers);
    let mut left: &mut [IoSlice<'_>] = &mut pieces;
    IoSlice::advance_slices(&mut left, written);
    while !left.is_empty() {
        match in_time(writer.write_vectored(left)).await?? {
            0 => return Err(io::Error::from(io::ErrorKind::WriteZero).into()),
            now => IoSlice::advance_slices(&mut left, now),
        }
    }
    Ok(())
}
