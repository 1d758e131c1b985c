//! The mountpoint of `--embedded`.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use anyhow::Context as _;

/// A mountpoint created by this process; dropping it removes the directory.
#[derive(Debug)]
pub(crate) struct TempMountpoint(PathBuf);

impl TempMountpoint {
    /// Creates `path`; `None` if it exists.
    ///
    /// # Errors
    /// If it cannot be created.
    pub(crate) fn make(path: &Path) -> anyhow::Result<Option<Self>> {
        match fs::create_dir(path) {
            Ok(()) => Ok(Some(Self(path.into()))),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(None),
            Err(error) if error.kind() == io::ErrorKind::NotFound => anyhow::bail!(
                "cannot make mountpoint {}: its parent does not exist: make it with `mkdir -p`",
                path.display()
            ),
            Err(error) => {
                Err(error).with_context(|| format!("cannot make mountpoint {}", path.display()))
            }
        }
    }
}

impl Drop for TempMountpoint {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir(&self.0) {
            tracing::warn!("cannot remove mountpoint {}: {error}", self.0.display());
        }
    }
}
