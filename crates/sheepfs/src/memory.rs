//! Serving block I/O while memory is short.
//!
//! When the kernel reclaims memory for a process it may wait until dirty pages
//! are written back. Pages of a file system on a loop device over one of our
//! volumes are written back by this process, which must not wait for them: it
//! would wait for ever. The kernel spares it when it is told: `PR_SET_IO_FLUSHER`.
//! [`sheepfs_fuse::prefault_thread`] tells what is done for a process that may not.

use nix::unistd::geteuid;
use rustix::io::Errno;
use rustix::mm::{MlockAllFlags, mlockall};
use rustix::process::{Resource, configure_io_flusher_behavior, getrlimit, is_io_flusher};
use rustix::thread::{CapabilitySet, capabilities};

/// Tells the kernel what this process is for, and keeps its memory from being
/// swapped out, as far as it may. New threads inherit the former, so this comes
/// before the first one.
pub(crate) fn prepare() {
    if let Err(errno) = configure_io_flusher_behavior(true) {
        tracing::debug!("cannot become an I/O flusher: {errno}");
    }
    if !may_lock_all() {
        tracing::debug!("the memory of sheepfs can be swapped out: it may not be locked");
    } else if let Err(errno) = lock_all() {
        tracing::info!("the memory of sheepfs can be swapped out: {errno}");
    }
}

/// Warns when the kernel was not told and that is likely to matter: only root
/// can set a loop device up.
pub(crate) fn warn_unless_io_flusher() {
    if matches!(is_io_flusher(), Ok(true)) || !geteuid().is_root() {
        return;
    }
    tracing::warn!(
        "not an I/O flusher, which takes Linux 5.6 and the capability CAP_SYS_RESOURCE: a file \
         system on a loop device over a volume may hang when memory is short, see MEMORY in \
         sheepfs(8)"
    );
}

/// Whether no limit can be exceeded. Where one is, a process that locks what it
/// will allocate cannot allocate, and its stack cannot grow.
fn may_lock_all() -> bool {
    getrlimit(Resource::Memlock).current.is_none()
        || capabilities(None)
            .is_ok_and(|capabilities| capabilities.effective.contains(CapabilitySet::IPC_LOCK))
}

/// Reads in and locks what is there, the program's code above all, and locks
/// everything else as soon as it is touched.
fn lock_all() -> Result<(), Errno> {
    mlockall(MlockAllFlags::CURRENT)?;
    mlockall(MlockAllFlags::CURRENT | MlockAllFlags::FUTURE | MlockAllFlags::ONFAULT)
}
