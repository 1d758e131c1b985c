//! Errors of block device operations and their errno.

use std::sync::Arc;

use nix::errno::Errno;
use sheep_client::ClientError;

/// Why an operation on a volume failed. Cheap to clone.
///
/// The text does not repeat the text of `source()`; [`Chain`](crate::Chain) shows
/// both.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum VolumeError {
    /// A snapshot, or a volume that was attached to read.
    #[error("{0} is read-only")]
    ReadOnly(String),
    /// A write at or past the end.
    #[error("the volume ends before byte {0}")]
    EndOfDevice(u64),
    /// There is no data, or no hole, at or past the byte.
    #[error("there is no data or hole from byte {0} on")]
    NoMoreData(u64),
    /// The VDI was deleted or rolled back while it was attached.
    #[error("VDI {0} was deleted or rolled back while attached; detach and attach it again")]
    Stale(String),
    /// The cluster refuses writes to the head as if it were a snapshot, which a
    /// failed snapshot leaves behind.
    #[error(
        "the cluster refuses writes to {0} as if it were a snapshot; take a snapshot of it to repair that"
    )]
    HeadReadOnly(String),
    /// The VDI claims more bytes than an index of its kind has slots for.
    #[error("{volume} has {size} bytes, more than its index has slots for")]
    TooLarge {
        /// The volume.
        volume: String,
        /// Bytes it claims to have.
        size: u64,
    },
    /// Locks are required, and the cluster was formatted without locking.
    #[error("the cluster was formatted without locking, or its sheep have no locks")]
    NoLocking,
    /// A query about the VDI failed.
    #[error(transparent)]
    Cluster(Arc<ClientError>),
    /// Bytes could not be read or written.
    #[error("{volume}")]
    Io {
        /// The volume.
        volume: String,
        /// What happened.
        source: Arc<ClientError>,
    },
    /// Writes were acknowledged by the object cache of a sheep, and lost with it before
    /// a flush.
    #[error("{volume}: writes since the last fsync were lost with the object cache of the sheep")]
    CacheLost {
        /// The volume.
        volume: String,
        /// How the sheep was lost.
        source: Arc<ClientError>,
    },
    /// A task of this process panicked, which is a bug; the outcome of the operation is
    /// unknown.
    #[error("{0}: a task of this process panicked; report this with the log")]
    TaskPanicked(String),
}

impl VolumeError {
    /// The errno a system call reports.
    pub fn errno(&self) -> Errno {
        match self {
            Self::ReadOnly(_) => Errno::EROFS,
            Self::EndOfDevice(_) => Errno::ENOSPC,
            Self::NoMoreData(_) => Errno::ENXIO,
            Self::Stale(_) => Errno::ESTALE,
            Self::TooLarge { .. } | Self::NoLocking => Errno::EINVAL,
            Self::HeadReadOnly(_) | Self::CacheLost { .. } | Self::TaskPanicked(_) => Errno::EIO,
            Self::Cluster(error) => error.errno(),
            Self::Io { source, .. } => match source.errno() {
                errno @ (Errno::ENOSPC | Errno::ENOMEM) => errno,
                // A program that reads and writes a disk cannot act on the details.
                _ => Errno::EIO,
            },
        }
    }
}

impl From<ClientError> for VolumeError {
    fn from(error: ClientError) -> Self {
        Self::Cluster(Arc::new(error))
    }
}
