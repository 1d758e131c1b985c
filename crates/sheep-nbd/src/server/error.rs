//! Why a connection ended before the client disconnected.

use std::io;
use std::time::Duration;

use tokio::time::{Instant, timeout, timeout_at};

use crate::protocol::error::ProtocolError;

/// Timeout inside an option, a request or a reply.
pub(super) const STALL_TIMEOUT: Duration = Duration::from_secs(60);

/// Time in which the client must send a payload, or read a reply with those queued
/// before it. Both use memory that is shared with other clients.
pub(super) const MESSAGE_TIMEOUT: Duration = Duration::from_secs(300);

/// Why a connection ended.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConnectionError {
    /// A network error, or an end of file inside a message.
    #[error("the connection broke")]
    Io(#[from] io::Error),
    /// The TLS handshake failed: no common version, or an invalid client certificate.
    #[error("the TLS handshake failed")]
    Tls(#[source] io::Error),
    /// The client violated the protocol.
    #[error(transparent)]
    Protocol(#[from] ProtocolError),
    /// The client stopped inside a message, or does not read its replies.
    #[error("the client made no progress for {} s", STALL_TIMEOUT.as_secs())]
    Stalled,
    /// The client negotiates, sends or reads too slowly.
    #[error("the client is too slow")]
    Slow,
    /// `EXPORT_NAME` failed, which has no error reply.
    #[error("{0}")]
    Export(String),
}

impl ConnectionError {
    /// Whether the client has just closed the connection.
    pub(super) fn is_disconnect(&self) -> bool {
        use io::ErrorKind::{BrokenPipe, ConnectionReset, UnexpectedEof};
        let Self::Io(error) = self else {
            return false;
        };
        matches!(error.kind(), BrokenPipe | ConnectionReset | UnexpectedEof)
    }
}

/// Waits for the client for up to [`STALL_TIMEOUT`].
///
/// # Errors
/// `Stalled`, and those of `work`.
pub(super) async fn unless_stalled<T>(
    work: impl Future<Output = io::Result<T>>,
) -> Result<T, ConnectionError> {
    match timeout(STALL_TIMEOUT, work).await {
        Ok(done) => Ok(done?),
        Err(_elapsed) => Err(ConnectionError::Stalled),
    }
}

/// Waits for the client for up to [`STALL_TIMEOUT`], and until `deadline`.
///
/// # Errors
/// `Slow` at the deadline, otherwise as [`unless_stalled`].
pub(super) async fn unless_late<T>(
    deadline: Instant,
    work: impl Future<Output = io::Result<T>>,
) -> Result<T, ConnectionError> {
    match timeout_at(deadline, unless_stalled(work)).await {
        Ok(done) => done,
        Err(_elapsed) => Err(ConnectionError::Slow),
    }
}
