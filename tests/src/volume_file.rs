//! A volume's file, opened and refused as a test wants it.

use std::fs::File;
use std::path::Path;

use anyhow::Context as _;
use nix::errno::Errno;

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
