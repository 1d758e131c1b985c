//! The transmission phase: reads requests for the [`Session`].

use std::io;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, BufReader};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::budget::Budget;
use super::error::{ConnectionError, MESSAGE_TIMEOUT, unless_late, unless_stalled};
use super::session::{Session, TOO_LONG};
use super::socket::Reader;
use crate::export::Export;
use crate::protocol::error::ProtocolError;
use crate::protocol::limits::{MAX_PAYLOAD_LEN, MAX_SKIPPED_PAYLOAD_LEN, MAX_STATUS_PAYLOAD_LEN};
use crate::protocol::reply::ReplyTo;
use crate::protocol::request::{Command, MAX_HEADER_LEN, RequestHeader};

/// Size of the read buffer.
const READ_LEN: usize = 64 << 10;
/// Bytes of a payload that the client must send within the stall timeout.
const PART_LEN: usize = 1 << 20;

/// Serves a client until it disconnects or `shutdown`; requests in flight complete.
///
/// # Errors
/// Why the connection ended before that.
pub(super) async fn serve<E: Export>(
    reader: Reader,
    session: &Arc<Session<E>>,
    budget: &Budget,
    shutdown: &CancellationToken,
) -> Result<(), ConnectionError> {
    let mut requests = Requests {
        reader: BufReader::with_capacity(READ_LEN, reader),
        session,
        budget,
    };
    let writing = session.replies.write_queued();
    tokio::pin!(writing);
    let ended = tokio::select! {
        ended = requests.serve() => ended,
        error = &mut writing => Err(error),
        () = shutdown.cancelled() => Ok(()),
    };
    let ended = match ended {
        // The client still reads replies.
        Ok(()) => tokio::select! {
            () = budget.drained() => {
                session.replies.close().await;
                return Ok(());
            }
            error = &mut writing => Err(error),
        },
        failed => failed,
    };
    session.replies.abort();
    budget.drained().await;
    ended
}

/// The receiving side of a connection.
struct Requests<'a, E: Export> {
    reader: BufReader<Reader>,
    session: &'a Arc<Session<E>>,
    budget: &'a Budget,
}

impl<E: Export> Requests<'_, E> {
    /// Reads requests until the client disconnects.
    async fn serve(&mut self) -> Result<(), ConnectionError> {
        while let Some(request) = self.next().await? {
            if request.command == Command::Disconnect {
                break;
            }
            self.take(request).await?;
        }
        Ok(())
    }

    /// The next header; `None` at the end of the stream.
    async fn next(&mut self) -> Result<Option<RequestHeader>, ConnectionError> {
        // No timeout between requests.
        if self.reader.fill_buf().await?.is_empty() {
            return Ok(None);
        }
        let style = self.session.header_style();
        let mut header = [0; MAX_HEADER_LEN];
        let header = &mut header[..style.header_len()];
        unless_stalled(self.reader.read_exact(header)).await?;
        Ok(Some(RequestHeader::parse(style, header)?))
    }

    /// Reads the payload of a request, and starts or refuses it.
    async fn take(&mut self, request: RequestHeader) -> Result<(), ConnectionError> {
        let payload_len = request.payload_len(self.session.header_style());
        let max = match request.command {
            Command::BlockStatus => MAX_STATUS_PAYLOAD_LEN,
            _ => u64::from(MAX_PAYLOAD_LEN),
        };
        if payload_len > MAX_SKIPPED_PAYLOAD_LEN {
            return Err(ProtocolError::PayloadTooLong(payload_len).into());
        }
        let checked = match self.session.check(&request) {
            Ok(()) if payload_len > max => Err(TOO_LONG),
            checked => checked,
        };
        match checked {
            Ok(()) => {
                let charge = self.budget.charge(cost(&request, payload_len)).await;
                let payload = self.payload(payload_len).await?;
                self.session.begin(request, payload, charge);
            }
            Err((code, why)) => {
                self.skip(payload_len).await?;
                let to = ReplyTo {
                    style: self.session.style,
                    cookie: request.cookie,
                    offset: request.offset,
                };
                tracing::debug!("{:?} at byte {}: {why}", request.command, request.offset);
                // Error replies count for the limit, too.
                let charge = self.budget.charge(0).await;
                self.session.replies.send(to.error(code, why), Some(charge));
            }
        }
        Ok(())
    }

    /// Reads a payload, with a timeout for each part.
    async fn payload(&mut self, len: u64) -> Result<Bytes, ConnectionError> {
        let len = usize::try_from(len).expect("at most 32 MiB");
        let deadline = Instant::now() + MESSAGE_TIMEOUT;
        let mut payload = BytesMut::with_capacity(len);
        while payload.len() < len {
            let end = len.min(payload.len() + PART_LEN);
            let part = async {
                while payload.len() < end {
                    let missing = (end - payload.len()) as u64;
                    if (&mut self.reader)
                        .take(missing)
                        .read_buf(&mut payload)
                        .await?
                        == 0
                    {
                        return Err(io::ErrorKind::UnexpectedEof.into());
                    }
                }
                Ok(())
            };
            unless_late(deadline, part).await?;
        }
        Ok(payload.freeze())
    }

    async fn skip(&mut self, len: u64) -> Result<(), ConnectionError> {
        let mut left = len;
        while left > 0 {
            let found = unless_stalled(self.reader.fill_buf()).await?.len();
            if found == 0 {
                return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
            }
            let skipped = usize::try_from(left).unwrap_or(usize::MAX).min(found);
            self.reader.consume(skipped);
            left -= skipped as u64;
        }
        Ok(())
    }
}

/// Bytes charged for a request.
fn cost(request: &RequestHeader, payload_len: u64) -> u32 {
    let held = match request.command {
        Command::Read => request.len,
        // The concurrent steps of the read-ahead.
        Command::Cache => request.len.min(4 << 20),
        // The largest reply.
        Command::BlockStatus => 1 << 20,
        _ => payload_len,
    };
    u32::try_from(held).unwrap_or(u32::MAX)
}
