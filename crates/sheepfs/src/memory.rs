//! Serving block I/O under memory pressure.
//!
//! Memory reclaim may wait for the write-back of dirty pages. Those of a file system
//! on a loop device over one of our volumes are written back by this process, so
//! waiting for them is a deadlock. `PR_SET_IO_FLUSHER` exempts the process from that
//! wait. Without the privilege, prefaulting is the substitute:
//! [`sheepfs_fuse::prefault_thread`].

use nix::unistd::geteuid;
use rustix::io::Errno;
use rustix::mm::{MlockAllFlags, mlockall};
use rustix::process::{Resource, configure_io_flusher_behavior, getrlimit, is_io_flusher};
use rustix::thread::{CapabilitySet, capabilities};

/// Makes this process an I/O flusher and locks its memory, as far as permitted. New
/// threads inherit the flag, so this must run before the first one starts.
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

/// Warns root, who can set up loop devices, if the process is no I/O flusher.
pub(crate) fn warn_unless_io_flusher() {
    if matches!(is_io_flusher(), Ok(true)) || !geteuid().is_root() {
        return;
    }
    tracing::warn!(
        "a file system on a loop device over a volume may hang when memory is short: grant sheepfs \
         the capability CAP_SYS_RESOURCE (and Linux 5.6), or see MEMORY in sheepfs(8)"
    );
}

/// Whether memory can be locked without a limit. Under a limit, allocations and
/// stack growth would fail once it is reached.
fn may_lock_all() -> bool {
    getrlimit(Resource::Memlock).current.is_none()
        || capabilities(None)
            .is_ok_and(|capabilities| capabilities.effective.contains(CapabilitySet::IPC_LOCK))
}

/// Locks all present pages, above all the program's code, and future ones when they
/// are first touched.
fn lock_all() -> Result<(), Errno> {
    mlockall(MlockAllFlags::CURRENT)?;
    mlockall(MlockAllFlags::CURRENT | MlockAllFlags::FUTURE | MlockAllFlags::ONFAULT)
}
