//! Remounting a tree read-only or writable.
//!
//! The kernel enforces read-only mounts itself: writes fail before they become FUSE
//! requests. So the serving process takes no part in a remount.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::mount::{MsFlags, mount};
use sheepfs_vfs::MOUNT_OPTIONS;

use crate::mountpoint::{Mounted, mounted_at};

const KIND: &str = "fuse.sheepfs";
/// Longer than any list of options that mount(8) can pass.
const LONGEST_OPTIONS: usize = 64 << 10;

/// Why a mounted tree was not remounted. Each is one line that says what to do.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RemountError {
    /// There is no sheepfs there.
    #[error("cannot remount {}: no sheepfs is mounted there", .0.display())]
    NotMounted(PathBuf),
    /// The serving process did not return its mount options.
    #[error("cannot remount {}: cannot find out how it was mounted: {reason}", mountpoint.display())]
    UnknownOptions {
        /// Where.
        mountpoint: PathBuf,
        /// What the system says.
        reason: io::Error,
    },
    /// A file or a loop device can still be written.
    #[error(
        "cannot remount {} read-only: a file in it is open for writing: close it, or detach its loop device",
        .0.display()
    )]
    Busy(PathBuf),
    /// The kernel refused.
    #[error("cannot remount {}: {}", .0.display(), .1.desc())]
    Refused(PathBuf, Errno),
}

/// A sheepfs that is mounted, served by another process.
#[derive(Debug)]
pub struct MountedTree {
    mountpoint: PathBuf,
    table: Mounted,
    options: String,
}

impl MountedTree {
    /// Looks for one that is mounted exactly on `path`.
    ///
    /// # Errors
    /// `NotMounted`, `UnknownOptions`.
    pub fn find(path: &Path) -> Result<Self, RemountError> {
        let mountpoint = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
        let table = mounted_at(&mountpoint).filter(|mounted| mounted.kind == KIND);
        let Some(table) = table else {
            return Err(RemountError::NotMounted(mountpoint));
        };
        let mut options = Vec::with_capacity(LONGEST_OPTIONS);
        let read = rustix::fs::getxattr(
            &mountpoint,
            MOUNT_OPTIONS,
            rustix::buffer::spare_capacity(&mut options),
        );
        match read {
            Ok(_length) => Ok(Self {
                mountpoint,
                table,
                options: String::from_utf8_lossy(&options).into_owned(),
            }),
            Err(error) => Err(RemountError::UnknownOptions {
                mountpoint,
                reason: error.into(),
            }),
        }
    }

    /// Where it is mounted, without symbolic links.
    pub fn mountpoint(&self) -> &Path {
        &self.mountpoint
    }

    /// Its name in the mount table.
    pub fn source(&self) -> &str {
        &self.table.source
    }

    /// What was given to [`sheepfs_vfs::Tree::set_mount_options`].
    pub fn options(&self) -> &str {
        &self.options
    }

    /// True when the mount table shows this mount option.
    pub fn shows(&self, option: &str) -> bool {
        let mut shown = self.table.flags.iter().chain(&self.table.options);
        shown.any(|shown| shown == option)
    }

    /// Changes nothing but write permission.
    ///
    /// # Errors
    /// `Busy`, `Refused`.
    pub fn remount(&self, read_only: bool) -> Result<(), RemountError> {
        // mount(2) clears flags that are not passed again.
        let mut flags = MsFlags::MS_REMOUNT;
        flags.set(MsFlags::MS_RDONLY, read_only);
        for (name, flag) in [
            ("nosuid", MsFlags::MS_NOSUID),
            ("nodev", MsFlags::MS_NODEV),
            ("noexec", MsFlags::MS_NOEXEC),
            ("noatime", MsFlags::MS_NOATIME),
        ] {
            flags.set(flag, self.shows(name));
        }
        let none = None::<&str>;
        match mount(none, &self.mountpoint, none, flags, none) {
            Ok(()) => Ok(()),
            Err(Errno::EBUSY) => Err(RemountError::Busy(self.mountpoint.clone())),
            Err(errno) => Err(RemountError::Refused(self.mountpoint.clone(), errno)),
        }
    }
}
