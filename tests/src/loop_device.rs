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
    /// Attaches `file`, and its partitions as `DEVICEp1` and so on.
    ///
    /// # Errors
    /// When `losetup` fails: no root, no free device, no such file.
    pub fn attach(file: &Path) -> anyhow::Result<Self> {
        let name = run(Command::new("losetup")
            .args(["--find", "--show", "--partscan"])
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
