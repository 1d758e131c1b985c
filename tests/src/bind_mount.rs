//! A file of the tree mounted over another place, as containers get their volumes.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

use crate::program::run;

/// A bind mount of one file; dropping it takes the mount away.
#[derive(Debug)]
pub struct BindMount {
    directory: TempDir,
}

impl BindMount {
    /// Mounts `file` on a temporary file.
    ///
    /// # Errors
    /// When `mount` fails.
    pub fn of(file: &Path) -> anyhow::Result<Self> {
        let directory = TempDir::with_prefix("sheepfs-test-bind-")?;
        let mount = Self { directory };
        File::create(mount.path())?;
        run(Command::new("mount")
            .arg("--bind")
            .arg(file)
            .arg(mount.path()))?;
        Ok(mount)
    }

    /// Where it is mounted.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        self.directory.path().join("file")
    }
}

impl Drop for BindMount {
    fn drop(&mut self) {
        let unmounted = run(Command::new("umount").arg("--lazy").arg(self.path()));
        if let Err(error) = unmounted {
            eprintln!("{error:#}");
        }
    }
}
