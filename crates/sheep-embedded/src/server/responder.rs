//! Runs the requests of a connection and writes their responses.

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

use super::error::{ConnectionError, with_stall_timeout};
use super::limits::Permits;
use super::node_context::NodeContext;
use crate::faults::Fault;
use crate::payload::Payload;
use crate::poison::lock;
use crate::request::{Fate, Origin};

/// A request that was read, with its permits.
pub(crate) struct Frame {
    pub(crate) header: RequestHeader,
    pub(crate) payload: Vec<u8>,
    pub(crate) permits: Permits,
}

/// What the requests of a connection share.
pub(crate) struct Responder {
    node: NodeContext,
    origin: Origin,
    writer: Arc<Mutex<OwnedWriteHalf>>,
    reorder_fault: StdMutex<ReorderFault>,
    /// Cancelled when a response could not be written: the stream is broken.
    pub(crate) close: CancellationToken,
}

/// State of [`Fault::Reorder`].
#[derive(Default)]
struct ReorderFault {
    in_flight: usize,
    /// The response that is written after the next one.
    delayed: Option<Response>,
}

/// A response that is ready, with the permits of its request.
pub(crate) struct Response {
    header: ResponseHeader,
    payload: Payload,
    /// Ends the node when this is written.
    death: Option<&'static str>,
    _permits: Option<Permits>,
}

impl Response {
    /// Bytes on the wire.
    pub(crate) fn len(&self) -> usize {
        HEADER_LEN + self.payload.len()
    }

    fn slices(&self) -> impl Iterator<Item = &[u8]> {
        iter::once(self.header.as_bytes()).chain(self.payload.slices())
    }
}

/// Responses of which the socket has taken a part.
pub(crate) struct PartialWrite {
    responses: Vec<Response>,
    written: usize,
    /// Keeps other responses out of a started one; `None` when nothing is written yet.
    writer: Option<OwnedMutexGuard<OwnedWriteHalf>>,
}

impl PartialWrite {
    /// Bytes of all its responses.
    pub(crate) fn len(&self) -> usize {
        self.responses.iter().map(Response::len).sum()
    }

    /// True when no other response can be written before these.
    pub(crate) fn owns_writer(&self) -> bool {
        self.writer.is_some()
    }
}

impl Responder {
    pub(crate) fn new(node: NodeContext, origin: Origin, writer: OwnedWriteHalf) -> Self {
        Self {
            node,
            origin,
            writer: Arc::new(Mutex::new(writer)),
            reorder_fault: StdMutex::default(),
            close: CancellationToken::new(),
        }
    }

    /// Runs one request and writes its response.
    ///
    /// The call itself counts the request for the faults, so it has to be made
    /// in the order of arrival, whenever the future is polled.
    pub(crate) fn respond(self: Arc<Self>, frame: Frame) -> impl Future<Output = ()> + Send {
        lock(&self.reorder_fault).in_flight += 1;
        let fault = self.node.faults.match_request(&frame.header);
        async move {
            let done = async {
                let reordered = match fault {
                    None => {
                        self.run_and_write(frame).await?;
                        None
                    }
                    Some((fault, cleared)) => self.apply_fault(frame, fault, cleared).await?,
                };
                self.flush_delayed(reordered).await
            };
            self.close_on_error(done).await;
        }
    }

    /// Ends a request: writes the delayed response, if any, and `reordered`
    /// if no other request is left to be written before it.
    async fn flush_delayed(&self, reordered: Option<Response>) -> Result<(), ConnectionError> {
        let due = {
            let mut fault = lock(&self.reorder_fault);
            fault.in_flight -= 1;
            if reordered.is_some() && fault.in_flight > 0 && fault.delayed.is_none() {
                fault.delayed = reordered;
                return Ok(());
            }
            [reordered, fault.delayed.take()]
        };
        for response in due.into_iter().flatten() {
            self.write(response).await?;
        }
        Ok(())
    }

    async fn run_and_write(self: &Arc<Self>, frame: Frame) -> Result<(), ConnectionError> {
        let response = self.run(frame).await?;
        self.write(response).await
    }

    /// Handles a request as its fault says; returns a response that is to be reordered.
    async fn apply_fault(
        self: &Arc<Self>,
        frame: Frame,
        fault: Fault,
        cleared: CancellationToken,
    ) -> Result<Option<Response>, ConnectionError> {
        match fault {
            // Late: before or after the request is executed.
            Fault::Delay(time) => {
                tokio::time::sleep(time).await;
                self.run_and_write(frame).await?;
            }
            Fault::DelayResponse(time) => {
                let response = self.run(frame).await?;
                tokio::time::sleep(time).await;
                self.write(response).await?;
            }
            Fault::Hold => {
                cleared.cancelled().await;
                self.run_and_write(frame).await?;
            }
            // Out of order: the caller writes it after the next response.
            Fault::Reorder => return self.run(frame).await.map(Some),
            // Lost, with the connection open or closed.
            Fault::DropRequest => {}
            Fault::DropResponse => drop(self.run(frame).await?),
            Fault::CutRequest => return Err(ConnectionError::Fault),
            Fault::CutResponse(len) => {
                let response = self.run(frame).await?;
                let bytes: Vec<u8> = response.slices().flatten().copied().take(len).collect();
                let mut writer = self.writer.lock().await;
                with_stall_timeout(writer.write_all(&bytes)).await??;
                return Err(ConnectionError::Fault);
            }
            // Wrong: a response to no request, a result that the store did not give.
            Fault::WrongId => {
                let mut response = self.run(frame).await?;
                response.header.id = (!response.header.id.get()).into();
                self.write(response).await?;
            }
            Fault::Refuse(code) => {
                let body = ResponseBody::result(code);
                let response = Response {
                    header: ResponseHeader::answer(&frame.header, self.node.sheep.epoch(), 0, body),
                    payload: Payload::default(),
                    death: None,
                    _permits: Some(frame.permits),
                };
                self.write(response).await?;
            }
        }
        Ok(None)
    }

    /// Runs a request on a thread where it may block.
    async fn run(self: &Arc<Self>, frame: Frame) -> Result<Response, ConnectionError> {
        let Frame {
            header,
            payload,
            permits,
        } = frame;
        let running = Arc::clone(&self.node.limits.running).acquire_owned().await;
        let running = running.map_err(|_closed| ConnectionError::Aborted)?;
        let responder = Arc::clone(self);
        let work = move || {
            let response = responder
                .node
                .sheep
                .handle(&header, &payload, &responder.origin);
            drop((payload, running));
            response
        };
        let (header, payload, fate) = tokio::task::spawn_blocking(work).await.map_err(|error| {
            tracing::error!("a request failed: {error}");
            ConnectionError::Aborted
        })?;
        let death = match fate {
            Fate::Lives => None,
            Fate::DiesAfterAnswer(reason) => Some(reason),
            Fate::Hangs => std::future::pending().await,
            Fate::Dies(reason) => {
                self.node.die(reason);
                return Err(ConnectionError::Aborted);
            }
        };
        Ok(Response {
            header,
            payload,
            death,
            _permits: Some(permits),
        })
    }

    /// True for requests that take less time than handing them to another thread.
    pub(crate) fn can_run_inline(&self, header: &RequestHeader, max_len: usize) -> bool {
        let is_object_io = matches!(
            Opcode::try_from(header.opcode),
            Ok(Opcode::ReadObj | Opcode::WriteObj | Opcode::CreateAndWriteObj)
        );
        is_object_io
            && header.data_length.get() as usize <= max_len
            && self.node.sheep.runs_inline()
            && !self.node.faults.is_any()
    }

    /// Runs such a request on this thread.
    pub(crate) fn run_inline(
        &self,
        header: &RequestHeader,
        payload: &[u8],
        permits: Option<Permits>,
    ) -> Response {
        // A sheep that requests can end runs none of them here.
        let (header, payload, _lives) = self.node.sheep.handle(header, payload, &self.origin);
        Response {
            header,
            payload,
            death: None,
            _permits: permits,
        }
    }

    /// Writes as much as the socket takes without waiting; returns the rest.
    pub(crate) fn try_write(
        &self,
        responses: Vec<Response>,
    ) -> Result<Option<PartialWrite>, ConnectionError> {
        let Ok(writer) = Arc::clone(&self.writer).try_lock_owned() else {
            return Ok(Some(PartialWrite {
                responses,
                written: 0,
                writer: None,
            }));
        };
        let len: usize = responses.iter().map(Response::len).sum();
        let mut written = 0;
        let mut slices = slices(&responses);
        let mut left: &mut [IoSlice<'_>] = &mut slices;
        while written < len {
            match writer.try_write_vectored(left) {
                Ok(0) => return Err(io::Error::from(io::ErrorKind::WriteZero).into()),
                Ok(now) => {
                    written += now;
                    IoSlice::advance_slices(&mut left, now);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    return Ok(Some(PartialWrite {
                        responses,
                        written,
                        writer: Some(writer),
                    }));
                }
                Err(error) => return Err(error.into()),
            }
        }
        Ok(None)
    }

    /// Writes the rest of a [`PartialWrite`] and then gives `permits` back.
    pub(crate) async fn write_rest(
        self: Arc<Self>,
        partial: PartialWrite,
        permits: Option<Permits>,
    ) {
        let written = async {
            let writer = match partial.writer {
                Some(writer) => writer,
                None => Arc::clone(&self.writer).lock_owned().await,
            };
            write_from(writer, &partial.responses, partial.written).await
        };
        self.close_on_error(written).await;
        drop(permits);
    }

    /// Writes a response, and ends the node if that was its last one.
    async fn write(&self, response: Response) -> Result<(), ConnectionError> {
        let writer = Arc::clone(&self.writer).lock_owned().await;
        let death = response.death;
        write_from(writer, &[response], 0).await?;
        match death {
            None => Ok(()),
            Some(reason) => {
                self.node.die(reason);
                Err(ConnectionError::Aborted)
            }
        }
    }

    /// Runs `work` unless the node aborts; closes the connection when it fails.
    async fn close_on_error(&self, work: impl Future<Output = Result<(), ConnectionError>>) {
        let done = self.node.abort.run_until_cancelled(work).await;
        if let Err(error) = done.unwrap_or(Err(ConnectionError::Aborted)) {
            tracing::debug!("cannot respond: {error}");
            self.close.cancel();
        }
    }
}

fn slices(responses: &[Response]) -> Vec<IoSlice<'_>> {
    let slices = responses.iter().flat_map(Response::slices);
    slices.map(IoSlice::new).collect()
}

/// Writes responses except for the first `written` bytes of them.
async fn write_from(
    mut writer: OwnedMutexGuard<OwnedWriteHalf>,
    responses: &[Response],
    written: usize,
) -> Result<(), ConnectionError> {
    let mut slices = slices(responses);
    let mut left: &mut [IoSlice<'_>] = &mut slices;
    IoSlice::advance_slices(&mut left, written);
    while !left.is_empty() {
        match with_stall_timeout(writer.write_vectored(left)).await?? {
            0 => return Err(io::Error::from(io::ErrorKind::WriteZero).into()),
            now => IoSlice::advance_slices(&mut left, now),
        }
    }
    Ok(())
}
