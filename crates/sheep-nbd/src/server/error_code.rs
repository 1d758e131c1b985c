//! NBD error numbers of device errors.

use nix::errno::Errno;
use sheepfs_vfs::VolumeError;

use crate::protocol::error::ErrorCode;
use crate::protocol::request::Command;

/// The error number for the client.
pub(super) fn error_code(command: Command, error: &VolumeError) -> ErrorCode {
    match error.errno() {
        _ if matches!(error, VolumeError::EndOfDevice(_)) => past_end(command),
        Errno::EROFS => ErrorCode::Perm,
        Errno::ENOSPC => ErrorCode::NoSpace,
        Errno::ENOMEM => ErrorCode::NoMem,
        _ => ErrorCode::Io,
    }
}

/// The error number of a range that goes past the end.
pub(super) fn past_end(command: Command) -> ErrorCode {
    match command {
        Command::Write | Command::WriteZeroes => ErrorCode::NoSpace,
        _ => ErrorCode::Invalid,
    }
}
