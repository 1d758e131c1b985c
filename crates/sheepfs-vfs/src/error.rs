//! Errors of file system calls and their errno.

use std::sync::Arc;

use nix::errno::Errno;
use sheep_client::ClientError;
pub use sheep_client::error::Chain;
use tracing::Level;

use crate::volume::VolumeError;

/// Why a call on the tree failed. Cheap to clone.
///
/// The text does not repeat the text of `source()`; [`Chain`] shows both.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FsError {
    /// There is no such entry.
    #[error("no such file")]
    NotFound,
    /// The operation needs a file.
    #[error("it is a directory")]
    IsDirectory,
    /// The operation needs a directory.
    #[error("it is not a directory")]
    NotDirectory,
    /// The handle does not exist, or was released.
    #[error("no such open file")]
    BadHandle,
    /// A report cannot be written, and so on.
    #[error("this file cannot be written")]
    PermissionDenied,
    /// The mount only reads.
    #[error("this mount is read-only")]
    ReadOnly,
    /// The volume is in use.
    #[error("{0} is open; close it, unmount its file system or detach its loop device first")]
    Busy(String),
    /// The file does not accept this text.
    #[error("{0}")]
    Invalid(String),
    /// The page cache has another text than the handle. splice(2) and sendfile(2) fail
    /// with `EINVAL`, and the program falls back to read(2).
    #[error("the text of the file has changed; read it again")]
    Superseded,
    /// The file does not support the operation.
    #[error("not supported on this file")]
    Unsupported,
    /// A query or command of the cluster failed.
    #[error(transparent)]
    Cluster(Arc<ClientError>),
    /// An operation on a volume failed.
    #[error(transparent)]
    Volume(#[from] VolumeError),
    /// A line written to a command file failed.
    #[error("{file}: '{line}'")]
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
            Self::NotFound => Errno::ENOENT,
            Self::IsDirectory => Errno::EISDIR,
            Self::NotDirectory => Errno::ENOTDIR,
            Self::BadHandle => Errno::EBADF,
            Self::PermissionDenied => Errno::EACCES,
            Self::ReadOnly => Errno::EROFS,
            Self::Busy(_) => Errno::EBUSY,
            Self::Invalid(_) | Self::Superseded => Errno::EINVAL,
            Self::Unsupported => Errno::EOPNOTSUPP,
            Self::Cluster(error) => error.errno(),
            Self::Volume(error) => error.errno(),
            Self::Command { source, .. } => source.errno(),
        }
    }

    /// The log level of the error.
    pub fn level(&self) -> Level {
        match self {
            Self::NotFound
            | Self::IsDirectory
            | Self::NotDirectory
            | Self::BadHandle
            | Self::PermissionDenied
            | Self::ReadOnly
            | Self::Superseded
            | Self::Unsupported
            | Self::Volume(
                VolumeError::ReadOnly(_) | VolumeError::EndOfDevice(_) | VolumeError::NoMoreData(_),
            ) => Level::DEBUG,
            Self::Busy(_)
            | Self::Invalid(_)
            | Self::Cluster(_)
            | Self::Command { .. }
            | Self::Volume(_) => Level::WARN,
        }
    }
}

impl From<ClientError> for FsError {
    fn from(error: ClientError) -> Self {
        Self::Cluster(Arc::new(error))
    }
}
