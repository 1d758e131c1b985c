//! Why a connection ended before its client said goodbye.

use std::io;
use std::time::Duration;

use tokio::time::timeout;

use crate::protocol::error::ProtocolError;

/// Longest wait for a byte that is due: of an option, of a request that has begun,
/// or room in the socket for a reply.
pub(super) const STALL_TIMEOUT: Duration = Duration::from_secs(60);

/// Why a connection ended.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConnectionError {
    /// The network failed, or the client went in the middle of a message.
    #[error("the connection broke")]
    Io(#[from] io::Error),
    /// The TLS handshake failed: no common version, or an invalid client certificate.
    #[error("the TLS handshake failed")]
    Tls(#[source] io::Error),
    /// The client sent what no client sends.
    #[error(transparent)]
    Protocol(#[from] ProtocolError),
    /// The client stopped in the middle of a message, or does not read its replies.
    #[error("the client has stood still for {} s", STALL_TIMEOUT.as_secs())]
    Stalled,
    /// The client chose an export, in a way that knows no error, that it cannot have.
    #[error("{0}")]
    Export(String),
}

/// Does `work` that waits for the client, but not for ever.
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
