//! NBD error numbers of device errors.

use nix::errno::Errno;
use sheepfs_vfs::VolumeError;

use crate::protocol::error::ErrorCode;

/// The error number for the client.
pub(super) fn error_code(error: &VolumeError) -> ErrorCode {
    match error.errno() {
        Errno::EROFS => ErrorCode::Perm,
        Errno::ENOSPC => ErrorCode::NoSpace,
        Errno::ENOMEM => ErrorCode::NoMem,
        _ => ErrorCode::Io,
    }
}
