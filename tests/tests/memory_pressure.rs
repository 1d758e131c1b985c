//! Memory that is short: the file system on a loop device over a volume, and the
//! sheepfs that its dirty pages are written through, in one small cgroup.

use std::fs;
use std::os::linux::fs::MetadataExt as _;
use std::path::PathBuf;
use std::process::{Child, Command};
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use tempfile::TempDir;
use tests::{LoopDevice, Mounted, TestCluster, run, wait_until};

/// Memory limit of the cgroup: less than the bytes written.
const LIMIT: u64 = 48 << 20;
/// MiB written.
const WRITTEN: u32 = 192;
/// Without a deadlock it takes a few seconds.
const TIMEOUT: Duration = Duration::from_secs(120);

/// A memory cgroup of its own, whichever kind this machine has.
struct Cgroup {
    hierarchy: TempDir,
    path: PathBuf,
}

impl Cgroup {
    fn new(limit: u64) -> anyhow::Result<Self> {
        let hierarchy = TempDir::with_prefix("sheepfs-test-cgroup-")?;
        let mount = |kind: &[&str]| {
            run(Command::new("mount")
                .args(kind)
                .arg("none")
                .arg(hierarchy.path()))
        };
        let path = hierarchy
            .path()
            .join(format!("sheepfs-test-{}", std::process::id()));
        let file = match mount(&["-t", "cgroup", "-o", "memory"]) {
            Ok(_) => "memory.limit_in_bytes",
            Err(_) => {
                mount(&["-t", "cgroup2"])?;
                let control = hierarchy.path().join("cgroup.subtree_control");
                fs::write(control, "+memory").context("no memory cgroups on this machine")?;
                "memory.max"
            }
        };
        fs::create_dir(&path)?;
        fs::write(path.join(file), limit.to_string())?;
        Ok(Self { hierarchy, path })
    }

    fn processes(&self) -> PathBuf {
        self.path.join("cgroup.procs")
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        // Its processes have ended, or are about to.
        let removed = wait_until("the cgroup is empty", Duration::from_secs(10), || {
            Ok(fs::remove_dir(&self.path).is_ok())
        });
        if let Err(error) = removed {
            eprintln!("{error:#}");
        }
        if let Err(error) = run(Command::new("umount").arg(self.hierarchy.path())) {
            eprintln!("{error:#}");
        }
    }
}

/// Ends a FUSE connection from outside, which is all that frees a deadlock.
fn abort(connection: u64) -> anyhow::Result<()> {
    let connections = TempDir::with_prefix("sheepfs-test-connections-")?;
    run(Command::new("mount")
        .args(["-t", "fusectl", "none"])
        .arg(connections.path()))?;
    let aborted = fs::write(connections.path().join(format!("{connection}/abort")), "1");
    run(Command::new("umount").arg(connections.path()))?;
    Ok(aborted?)
}

fn ends_within(child: &mut Child, limit: Duration) -> anyhow::Result<bool> {
    let mut status = None;
    let ended = wait_until("the writer ends", limit, || {
        status = child.try_wait()?;
        Ok(status.is_some())
    });
    if let Some(status) = status {
        ensure!(status.success(), "the writer ended with {status}");
    }
    Ok(ended.is_ok())
}

#[test]
fn memory_pressure_on_loop_device_does_not_deadlock() -> anyhow::Result<()> {
    let cluster = TestCluster::start()?;
    let mounted = Mounted::start(&cluster, &[])?;
    let name = cluster.unique_name("pressure");
    let volume = mounted.create(&name, "512M")?;
    let connection = nix::sys::stat::minor(fs::metadata(&volume)?.st_dev());
    let device = LoopDevice::attach(&volume)?;
    run(Command::new("mkfs.ext4").arg("-q").arg(device.path()))?;
    let directory = TempDir::with_prefix("sheepfs-test-pressure-")?;
    run(Command::new("mount")
        .arg(device.path())
        .arg(directory.path()))?;

    let cgroup = Cgroup::new(LIMIT)?;
    fs::write(cgroup.processes(), mounted.process_id().to_string())?;
    let mut writer = Command::new("sh")
        .args([
            "-c",
            "echo $$ > \"$1\" && exec dd if=/dev/zero of=\"$2\" bs=1M count=\"$3\" conv=fsync",
        ])
        .arg("writer")
        .arg(cgroup.processes())
        .arg(directory.path().join("file"))
        .arg(WRITTEN.to_string())
        .spawn()?;
    let ended = ends_within(&mut writer, TIMEOUT)?;
    if !ended {
        abort(connection)?;
        writer.wait()?;
    }
    let unmounted = run(Command::new("umount").arg(directory.path()));
    if !ended {
        bail!("the writer and sheepfs wait for each other");
    }
    unmounted?;
    drop(device);
    mounted.stop()
}
