//! A loop device on a volume's file.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::program::run;

/// An attached loop device; dropping it detaches it.
#[derive(Debug)]
pub struct LoopDevice {
    device: PathBuf,
}

impl LoopDevice {
    /// Attaches `file`.
    ///
    /// # Errors
    /// When `losetup` fails: no root, no free device, no such file.
    pub fn attach(file: &Path) -> anyhow::Result<Self> {
        Self::attach_with(&[], file)
    }

    /// Attaches `file`, and its partitions as `DEVICEp1` and so on.
    ///
    /// # Errors
    /// As [`LoopDevice::attach`], and when `partx` fails.
    pub fn attach_with_partitions(file: &Path) -> anyhow::Result<Self> {
        let attached = Self::attach_with(&["--partscan"], file)?;
        // Some kernels know no partition table; this reads it without them.
        run(Command::new("partx").arg("--update").arg(&attached.device))?;
        Ok(attached)
    }

    fn attach_with(options: &[&str], file: &Path) -> anyhow::Result<Self> {
        let name = run(Command::new("losetup")
            .args(["--find", "--show"])
            .args(options)
            .arg(file))?;
        Ok(Self {
            device: PathBuf::from(String::from_utf8(name)?.trim_end()),
        })
    }

    /// The device, such as `/dev/loop0`.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.device
    }

    /// Partition `number`, counted from 1.
    #[must_use]
    pub fn partition(&self, number: u32) -> PathBuf {
        let mut name = self.device.clone().into_os_string();
        name.push(format!("p{number}"));
        PathBuf::from(name)
    }
}

impl Drop for LoopDevice {
    fn drop(&mut self) {
        if let Err(error) = run(Command::new("losetup").arg("--detach").arg(&self.device)) {
            eprintln!("{error:#}");
        }
    }
}
