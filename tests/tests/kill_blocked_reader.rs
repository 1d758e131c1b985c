//! Ending processes that wait for an unresponsive cluster, in the ways of the manual page.

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use anyhow::{Context as _, ensure};
use nix::sys::signal::Signal;
use tests::{
    EVENT_LIMIT, Mounted, TestCluster, is_mounted, output, run, send_signal, wait_for_exit,
    wait_until,
};

/// A reader that is blocked in spite of SIGKILL, since the sheep does not respond. The
/// sheep continues when this is dropped.
struct KilledReader {
    child: Child,
    mounted: Mounted,
    cluster: TestCluster,
}

impl KilledReader {
    fn start(arguments: &[&str]) -> anyhow::Result<Self> {
        let mut cluster = TestCluster::start_own()?;
        let mounted = Mounted::start(&cluster, arguments)?;
        let volume = mounted.create("silent", "8M")?;
        fs::write(&volume, vec![1; 1 << 20])?;
        cluster.own_sheep()?.signal(Signal::SIGSTOP)?;
        let child = Command::new("dd")
            .arg(format!("if={}", volume.display()))
            .args(["of=/dev/null", "bs=4k", "count=1", "iflag=direct"])
            .stderr(Stdio::null())
            .spawn()?;
        let mut reader = Self {
            child,
            mounted,
            cluster,
        };
        wait_until("the reader waits in the kernel", EVENT_LIMIT, || {
            let state = fs::read_to_string(format!("/proc/{}/wchan", reader.child.id()))?;
            Ok(state == "request_wait_answer")
        })?;
        send_signal(&reader.child, Signal::SIGKILL)?;
        ensure!(reader.child.try_wait()?.is_none(), "SIGKILL was enough");
        Ok(reader)
    }

    /// Fails unless the reader ends of its SIGKILL while the sheep is silent.
    fn assert_ends(&mut self) -> anyhow::Result<()> {
        let status = wait_for_exit(&mut self.child, EVENT_LIMIT)?;
        ensure!(!status.success(), "it was killed: {status}");
        Ok(())
    }

    fn wait_for_unmount(&self) -> anyhow::Result<()> {
        let mountpoint = self.mounted.mountpoint();
        wait_until("the mount is gone", EVENT_LIMIT, || {
            Ok(!is_mounted(&mountpoint)?)
        })
    }
}

impl Drop for KilledReader {
    fn drop(&mut self) {
        let sheep = self.cluster.own_sheep();
        if let Err(error) = sheep.and_then(|sheep| sheep.signal(Signal::SIGCONT)) {
            eprintln!("{error:#}");
        }
    }
}

#[test]
fn timeout_ends_killed_reader() -> anyhow::Result<()> {
    let mut reader = KilledReader::start(&["--retry-for", "2"])?;
    reader.assert_ends()?;
    ensure!(is_mounted(&reader.mounted.mountpoint())?);
    Ok(())
}

#[test]
fn killed_reader_ends_when_unmounted_by_force() -> anyhow::Result<()> {
    let mut reader = KilledReader::start(&["--retry-for", "3600"])?;
    let mut umount = Command::new("umount");
    // umount reports "target is busy" if the reader has not ended yet.
    output(
        EVENT_LIMIT,
        umount.arg("-f").arg(reader.mounted.mountpoint()),
    )?;
    reader.assert_ends()?;
    reader.wait_for_unmount()
}

#[test]
fn killed_reader_ends_when_connection_is_aborted() -> anyhow::Result<()> {
    let mut reader = KilledReader::start(&["--retry-for", "3600"])?;
    let mut mountpoint = Command::new("mountpoint");
    let device = run(mountpoint.arg("-d").arg(reader.mounted.mountpoint()))?;
    let device = String::from_utf8(device)?;
    let (_, number) = device.trim().split_once(':').context("MAJOR:MINOR")?;
    let control = Path::new("/sys/fs/fuse/connections");
    let script = format!(
        "mountpoint -q {0} || mount -t fusectl none {0}; echo 1 > {0}/{number}/abort",
        control.display()
    );
    let mut unshare = Command::new("unshare");
    run(unshare.args(["--mount", "--propagation", "private", "sh", "-ec", &script]))?;
    reader.assert_ends()?;
    reader.wait_for_unmount()
}
