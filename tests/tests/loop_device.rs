//! A file system on a volume, through a loop device.

use std::fs;
use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use tempfile::TempDir;
use tests::{
    FileSystem, LoopDevice, MIB_U64, Mounted, TestCluster, TreeShape, assert_same_tree, make_tree,
    run, seeded, wait_until,
};

/// A few thousand files, about 40 MB.
const LARGE: TreeShape = TreeShape {
    directories: 30,
    files: 80,
    longest: 200_000,
};
const SMALL: TreeShape = TreeShape {
    directories: 4,
    files: 20,
    longest: 100_000,
};

fn copy_tree(from: &Path, to: &Path) -> anyhow::Result<()> {
    run(Command::new("cp").arg("-a").arg(from.join(".")).arg(to))?;
    Ok(())
}

/// Makes, fills, checks and, after everything was restarted, compares.
fn check_file_tree(
    kind: &str,
    size: &str,
    shape: TreeShape,
    arguments: &[&str],
) -> anyhow::Result<()> {
    let mut cluster = TestCluster::start()?;
    let name = cluster.unique_name(kind);
    let source = TempDir::with_prefix("sheepfs-test-source-")?;
    make_tree(source.path(), shape, &mut seeded())?;

    let mounted = Mounted::start(&cluster, arguments)?;
    let volume = mounted.create(&name, size)?;
    let device = LoopDevice::attach(&volume)?;
    FileSystem::make(kind, device.path())?;
    let files = FileSystem::mount(kind, device.path())?;
    copy_tree(source.path(), &files.path())?;
    assert_same_tree(source.path(), &files.path())?;
    files.unmount()?;
    FileSystem::check(kind, device.path())?;
    drop(device);
    mounted.stop()?;

    cluster.restart_if_own()?;
    let mounted = Mounted::start(&cluster, arguments)?;
    let device = LoopDevice::attach(&mounted.attach(&name)?)?;
    FileSystem::check(kind, device.path())?;
    let files = FileSystem::mount(kind, device.path())?;
    assert_same_tree(source.path(), &files.path())?;
    files.unmount()?;
    drop(device);
    mounted.stop()
}

#[test]
fn loop_device_ext4_holds_thousands_of_files() -> anyhow::Result<()> {
    check_file_tree("ext4", "256M", LARGE, &[])
}

#[test]
fn loop_device_ext4_with_page_cache_holds_tree() -> anyhow::Result<()> {
    check_file_tree("ext4", "64M object_size=1M", SMALL, &["--pagecache"])
}

#[test]
fn loop_device_xfs_holds_tree() -> anyhow::Result<()> {
    check_file_tree("xfs", "320M", SMALL, &[])
}

#[test]
fn loop_device_btrfs_holds_tree() -> anyhow::Result<()> {
    check_file_tree("btrfs", "256M", SMALL, &[])
}

#[test]
fn loop_device_partitions_are_usable() -> anyhow::Result<()> {
    let cluster = TestCluster::start()?;
    let mounted = Mounted::start(&cluster, &[])?;
    let name = cluster.unique_name("partitions");
    let volume = mounted.create(&name, "96M")?;
    partition(&volume, "label: gpt\nsize=32MiB\nsize=48MiB\n")?;

    {
        let device = LoopDevice::attach_with_partitions(&volume)?;
        for (number, text) in [(1, "one"), (2, "two")] {
            let partition = device.partition(number)?;
            FileSystem::make("ext4", &partition)?;
            let files = FileSystem::mount("ext4", &partition)?;
            fs::write(files.path().join("text"), text)?;
            files.unmount()?;
        }
    }
    mounted.stop()?;

    let mounted = Mounted::start(&cluster, &[])?;
    let device = LoopDevice::attach_with_partitions(&mounted.attach(&name)?)?;
    for (number, text) in [(1, "one"), (2, "two")] {
        let partition = device.partition(number)?;
        FileSystem::check("ext4", &partition)?;
        let files = FileSystem::mount("ext4", &partition)?;
        ensure!(fs::read_to_string(files.path().join("text"))? == text);
        files.unmount()?;
    }
    Ok(())
}

/// Lets sfdisk write a partition table described by `script`.
fn partition(volume: &Path, script: &str) -> anyhow::Result<()> {
    let mut sfdisk = Command::new("sfdisk")
        .args(["--quiet", "--no-reread"])
        .arg(volume)
        .stdin(Stdio::piped())
        .spawn()
        .context("this test needs the program `sfdisk`")?;
    sfdisk
        .stdin
        .take()
        .context("a pipe was asked for")?
        .write_all(script.as_bytes())?;
    let status = sfdisk.wait()?;
    ensure!(status.success(), "sfdisk failed: {status}");
    Ok(())
}

/// Bytes of a volume that `vdi/list` shows as used.
fn used(mounted: &Mounted, name: &str) -> anyhow::Result<u64> {
    let json: serde_json::Value = serde_json::from_str(&mounted.report("vdi/list.json")?)?;
    let vdis = json["vdis"].as_array().context("no list of VDIs")?;
    let vdi = vdis.iter().find(|vdi| vdi["name"] == name);
    let used = vdi.and_then(|vdi| vdi["used"].as_u64());
    used.with_context(|| format!("no {name} in {json:#}"))
}

#[test]
fn discard_from_file_system_frees_space() -> anyhow::Result<()> {
    use std::os::unix::fs::MetadataExt as _;

    let cluster = TestCluster::start()?;
    let mounted = Mounted::start(&cluster, &[])?;
    let name = cluster.unique_name("trim");
    let volume = mounted.create(&name, "64M object_size=1M")?;
    let device = LoopDevice::attach(&volume)?;
    FileSystem::make("ext4", device.path())?;
    let files = FileSystem::mount("ext4", device.path())?;
    let mut bytes = vec![0; 30 << 20];
    seeded().fill(&mut bytes);
    fs::write(files.path().join("large"), bytes)?;
    run(Command::new("sync").arg("--file-system").arg(files.path()))?;
    let full = used(&mounted, &name)?;
    ensure!(full >= 30 * MIB_U64, "{full} bytes are used");

    fs::remove_file(files.path().join("large"))?;
    run(Command::new("sync").arg("--file-system").arg(files.path()))?;
    run(Command::new("fstrim").arg(files.path()))?;
    files.unmount()?;
    FileSystem::check("ext4", device.path())?;
    wait_until("the space is given back", Duration::from_secs(10), || {
        Ok(used(&mounted, &name)? + 25 * MIB_U64 < full)
    })?;
    wait_until("the file shows it", Duration::from_secs(10), || {
        Ok(fs::metadata(&volume)?.blocks() * 512 == used(&mounted, &name)?)
    })
}
