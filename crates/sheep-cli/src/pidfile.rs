//! The file given with --pidfile.

use std::fs;
use std::path::{Path, PathBuf};
use std::process;

use anyhow::Context as _;

/// The file given with --pidfile.
#[derive(Debug)]
pub struct Pidfile(PathBuf);

impl Pidfile {
    /// Writes it.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn write(path: &Path) -> anyhow::Result<Self> {
        fs::write(path, format!("{}\n", process::id()))
            .with_context(|| format!("cannot write --pidfile {}", path.display()))?;
        Ok(Self(path.into()))
    }

    /// Removes it.
    pub fn remove(&self) {
        if let Err(error) = fs::remove_file(&self.0) {
            tracing::warn!("cannot remove {}: {error}", self.0.display());
        }
    }
}
