//! ENOSPC from a sheep: acknowledged data is kept, and writes succeed once there is
//! space again.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context as _, bail, ensure};
use nix::errno::Errno;
use tempfile::TempDir;
use tests::{EmbeddedSheep, MIB, Mounted, open, run};

/// A file system of 32 MiB in memory; dropping it takes it away.
struct SmallDisk {
    directory: TempDir,
}

impl SmallDisk {
    fn mount() -> anyhow::Result<Self> {
        let directory = TempDir::with_prefix("sheepfs-test-small-disk-")?;
        std::fs::create_dir(directory.path().join("data"))?;
        let disk = Self { directory };
        let options = ["-t", "tmpfs", "-o", "size=32M", "none"];
        run(Command::new("mount").args(options).arg(disk.path()))?;
        Ok(disk)
    }

    fn path(&self) -> PathBuf {
        self.directory.path().join("data")
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        if let Err(error) = run(Command::new("umount").arg(self.path())) {
            eprintln!("{error:#}");
        }
    }
}

/// Writes MiB after MiB until there is no space; returns how many there are.
fn fill(file: &File) -> anyhow::Result<usize> {
    for number in 0..64 {
        let value = u8::try_from(number + 1)?;
        match file.write_all_at(&vec![value; MIB], (number * MIB) as u64) {
            Ok(()) => {}
            Err(error) if error.raw_os_error() == Some(Errno::ENOSPC as i32) => return Ok(number),
            Err(error) => return Err(error).context("not ENOSPC"),
        }
    }
    bail!("64 MiB fit on a disk of 32")
}

fn check(file: &File, count: usize) -> anyhow::Result<()> {
    let mut found = vec![0; MIB];
    for number in 0..count {
        file.read_exact_at(&mut found, (number * MIB) as u64)?;
        let value = u8::try_from(number + 1)?;
        ensure!(found.iter().all(|&byte| byte == value), "MiB {number}");
    }
    Ok(())
}

#[test]
fn no_space_error_ends_when_space_is_freed() -> anyhow::Result<()> {
    let disk = SmallDisk::mount()?;
    let mut sheep = EmbeddedSheep::start(disk.directory.path())?;
    let mounted = Mounted::start_with(&["--address", &sheep.address()])?;
    let ballast = mounted.create("ballast", "8M object_size=1M")?;
    open(&ballast)?.write_all_at(&vec![0xee; 8 * MIB], 0)?;
    let path = mounted.create("disk", "64M object_size=1M")?;
    let file = open(&path)?;
    let count = fill(&file)?;
    ensure!(count > 10, "only {count} MiB fit");
    check(&file, count)?;
    // Existing objects can still be overwritten.
    file.write_all_at(&vec![1; MIB], 0)?;
    file.sync_all()?;

    mounted.command("vdi/unmount", "ballast")?;
    mounted.command("vdi/delete", "ballast")?;
    let more = vec![u8::try_from(count + 1)?; MIB];
    file.write_all_at(&more, (count * MIB) as u64)?;
    file.sync_all()?;
    check(&file, count + 1)?;
    drop(file);

    mounted.stop()?;
    sheep.kill()?;
    sheep.start_again()?;
    let mounted = Mounted::start_with(&["--address", &sheep.address()])?;
    check(&open(&mounted.attach("disk")?)?, count + 1)?;
    mounted.stop()?;
    sheep.stop()
}
