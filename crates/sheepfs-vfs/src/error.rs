//! What a file system call can fail with, and its errno.

use std::sync::Arc;

use nix::errno::Errno;
use sheep_client::ClientError;
use tracing::Level;

/// Why a call on the tree or on a volume failed. Cheap to clone.
#[derive(Clone, Debug, thiserror::Error)]
pub enum FsError {
    /// There is no such entry.
    #[error("no such file")]
    NoEntry,
    /// A directory was asked for what only a file can do.
    #[error("it is a directory")]
    IsDirectory,
    /// A file was asked for what only a directory can do.
    #[error("it is not a directory")]
    NotDirectory,
    /// The handle was never given out, or was released.
    #[error("no such open file")]
    BadHandle,
    /// A report cannot be written, and so on.
    #[error("this file cannot be written")]
    Access,
    /// A snapshot, or a mount that only reads.
    #[error("{0} is read-only")]
    ReadOnly(String),
    /// A write at or past the end of a volume.
    #[error("the volume ends before byte {0}")]
    PastEnd(u64),
    /// SEEK_DATA or SEEK_HOLE found nothing.
    #[error("there is no data or hole behind byte {0}")]
    NothingThere(u64),
    /// The volume is in use.
    #[error("{0} is open; close it, unmount its file system or detach its loop device first")]
    Busy(String),
    /// The VDI behind an attached volume was deleted or rolled back.
    #[error("VDI {0} was deleted or rolled back while attached; detach and attach it again")]
    Stale(String),
    /// The cluster refuses writes to a working VDI as if it were a snapshot,
    /// which a failed snapshot leaves behind.
    #[error("the cluster takes {0} for a snapshot, which it is not; taking one heals that")]
    Frozen(String),
    /// Text that is not what the file takes.
    #[error("{0}")]
    Invalid(String),
    /// The kind of operation does not exist here.
    #[error("not supported on this file")]
    Unsupported,
    /// The cluster could not answer a question or run a command.
    #[error("{0}")]
    Cluster(Arc<ClientError>),
    /// Bytes of a volume could not be read or written.
    #[error("{volume}: {source}")]
    VolumeIo {
        /// The volume, as in the tree.
        volume: String,
        /// What happened.
        source: Arc<ClientError>,
    },
    /// A line written to a command file was not carried out.
    #[error("{file}: '{line}': {source}")]
    Command {
        /// The file, as in the tree.
        file: &'static str,
        /// The line, shortened.
        line: String,
        /// Why not.
        source: Box<FsError>,
    },
}

impl FsError {
    /// The errno the system call reports; listed in sheepfs(8).
    pub fn errno(&self) -> Errno {
        match self {
            Self::NoEntry => Errno::ENOENT,
            Self::IsDirectory => Errno::EISDIR,
            Self::NotDirectory => Errno::ENOTDIR,
            Self::BadHandle => Errno::EBADF,
            Self::Access => Errno::EACCES,
            Self::ReadOnly(_) => Errno::EROFS,
            Self::PastEnd(_) => Errno::ENOSPC,
            Self::NothingThere(_) => Errno::ENXIO,
            Self::Busy(_) => Errno::EBUSY,
            Self::Stale(_) => Errno::ESTALE,
            Self::Frozen(_) => Errno::EIO,
            Self::Invalid(_) => Errno::EINVAL,
            Self::Unsupported => Errno::EOPNOTSUPP,
            Self::Cluster(error) => error.errno(),
            Self::VolumeIo { source, .. } => match source.errno() {
                errno @ (Errno::ENOSPC | Errno::ENOMEM) => errno,
                // Nothing a program that reads and writes a disk could act on.
                _ => Errno::EIO,
            },
            Self::Command { source, .. } => source.errno(),
        }
    }

    /// How loud it belongs in the log.
    pub fn level(&self) -> Level {
        match self {
            Self::NoEntry
            | Self::IsDirectory
            | Self::NotDirectory
            | Self::BadHandle
            | Self::Access
            | Self::ReadOnly(_)
            | Self::PastEnd(_)
            | Self::NothingThere(_)
            | Self::Unsupported => Level::DEBUG,
            Self::Busy(_)
            | Self::Stale(_)
            | Self::Frozen(_)
            | Self::Invalid(_)
            | Self::Cluster(_)
            | Self::Command { .. }
            | Self::VolumeIo { .. } => Level::WARN,
        }
    }
}

impl From<ClientError> for FsError {
    fn from(error: ClientError) -> Self {
        Self::Cluster(Arc::new(error))
    }
}
