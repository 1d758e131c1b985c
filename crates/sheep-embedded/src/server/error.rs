//! Why a connection is closed, and the timeout that closes a stalled one.

use std::io;

use sheep_proto::decoder::BadFrame;

use crate::config::STALL_TIMEOUT;

/// Why the server closes a connection.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConnectionError {
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error("{0}")]
    BadFrame(#[from] BadFrame),
    #[error("no byte moved for {} seconds", STALL_TIMEOUT.as_secs())]
    Stalled,
    #[error("a request could not be answered")]
    Aborted,
    #[error("a fault was injected")]
    Fault,
}

/// Fails with [`ConnectionError::Stalled`] when `io` takes longer than [`STALL_TIMEOUT`].
pub(crate) async fn with_stall_timeout<T>(
    io: impl Future<Output = T>,
) -> Result<T, ConnectionError> {
    tokio::time::timeout(STALL_TIMEOUT, io)
        .await
        .map_err(|_elapsed| ConnectionError::Stalled)
}
