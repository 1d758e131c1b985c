//! A loop device on a volume's file.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Context as _;
use nix::sys::stat::makedev;

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
    ///
    /// # Errors
    /// When the kernel has no such partition, or its device node cannot be made.
    pub fn partition(&self, number: u32) -> anyhow::Result<PathBuf> {
        let mut node = self.device.clone().into_os_string();
        node.push(format!("p{number}"));
        let node = PathBuf::from(node);
        make_node(&node).with_context(|| node.display().to_string())?;
        Ok(node)
    }
}

/// Makes the node of a partition where `/dev` is not the kernel's own file system,
/// as in a container. One that an earlier partition has left is replaced.
fn make_node(node: &Path) -> anyhow::Result<()> {
    let name = node.file_name().context("a device has a name")?;
    let numbers = fs::read_to_string(Path::new("/sys/class/block").join(name).join("dev"))?;
    let (major, minor) = numbers.trim_end().split_once(':').context("MAJOR:MINOR")?;
    let device = makedev(major.parse()?, minor.parse()?);
    if fs::metadata(node).is_ok_and(|found| found.rdev() == device) {
        return Ok(());
    }
    let _absent = fs::remove_file(node);
    run(Command::new("mknod").arg(node).args(["b", major, minor]))?;
    Ok(())
}

impl Drop for LoopDevice {
    fn drop(&mut self) {
        if let Err(error) = run(Command::new("losetup").arg("--detach").arg(&self.device)) {
            eprintln!("{error:#}");
        }
    }
}
