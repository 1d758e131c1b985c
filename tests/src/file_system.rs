//! A file system on a block device, made and mounted with the usual tools.

use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

use crate::program::run;

/// A mounted file system; dropping it takes the mount away.
#[derive(Debug)]
pub struct FileSystem {
    directory: TempDir,
    mounted: bool,
}

impl FileSystem {
    /// Makes a file system of type `kind` (`ext4`, `xfs`, `btrfs`) on `device`.
    ///
    /// # Errors
    /// When `mkfs.KIND` is missing or fails.
    pub fn make(kind: &str, device: &Path) -> anyhow::Result<()> {
        let quiet = if kind == "btrfs" { "--quiet" } else { "-q" };
        run(Command::new(format!("mkfs.{kind}")).arg(quiet).arg(device))?;
        Ok(())
    }

    /// Mounts `device` on a temporary directory.
    ///
    /// # Errors
    /// When `mount` fails.
    pub fn mount(kind: &str, device: &Path) -> anyhow::Result<Self> {
        let directory = TempDir::with_prefix("sheepfs-test-fs-")?;
        run(Command::new("mount")
            .args(["--types", kind])
            .arg(device)
            .arg(directory.path()))?;
        Ok(Self {
            directory,
            mounted: true,
        })
    }

    /// Checks an unmounted file system without repairing it.
    ///
    /// # Errors
    /// When the checker finds an error.
    pub fn check(kind: &str, device: &Path) -> anyhow::Result<()> {
        let mut command = match kind {
            "ext4" => Command::new("fsck.ext4"),
            "xfs" => Command::new("xfs_repair"),
            _ => Command::new("btrfs"),
        };
        command.args(match kind {
            "ext4" => &["-f", "-n"][..],
            "xfs" => &["-n"],
            _ => &["check", "--readonly", "--check-data-csum"],
        });
        run(command.arg(device))?;
        Ok(())
    }

    /// Where it is mounted.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        self.directory.path().to_owned()
    }

    /// Unmounts it, which writes everything to the device.
    ///
    /// # Errors
    /// When `umount` fails.
    pub fn unmount(mut self) -> anyhow::Result<()> {
        self.mounted = false;
        run(Command::new("umount").arg(self.directory.path()))?;
        Ok(())
    }
}

impl Drop for FileSystem {
    fn drop(&mut self) {
        if self.mounted {
            let unmounted = run(Command::new("umount")
                .arg("--lazy")
                .arg(self.directory.path()));
            if let Err(error) = unmounted {
                eprintln!("{error:#}");
            }
        }
    }
}
