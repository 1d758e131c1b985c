//! Helpers for the files of volumes.

use std::fs::File;
use std::path::Path;
use std::time::Duration;

use anyhow::Context as _;
use nix::errno::Errno;

use crate::mounted::Mounted;
use crate::wait::wait_until;

/// Opens a file to read and write.
///
/// # Errors
/// The system's, with the path.
pub fn open(path: &Path) -> anyhow::Result<File> {
    File::options()
        .read(true)
        .write(true)
        .open(path)
        .with_context(|| path.display().to_string())
}

/// The errno of an operation that must fail; `None` when it did not.
#[must_use]
pub fn errno<T>(result: std::io::Result<T>) -> Option<Errno> {
    Some(Errno::from_raw(result.err()?.raw_os_error()?))
}

/// Detaches a volume; waits until the kernel has sent the RELEASE of its last handle.
///
/// # Errors
/// When that takes more than 20 seconds.
pub fn detach(mounted: &Mounted, name: &str) -> anyhow::Result<()> {
    wait_until("the close has arrived", Duration::from_secs(20), || {
        Ok(mounted.command("vdi/unmount", name).is_ok())
    })
}
