//! The background process: it keeps nothing busy that its starter had open.

use std::fs::{self, File};
use std::io;
use std::path::PathBuf;
use std::process::Command;
use std::thread;

use anyhow::{Context as _, ensure};
use nix::fcntl::{Flock, FlockArg};
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use tempfile::TempDir;
use tests::{
    EVENT_LIMIT, TestCluster, is_mounted, is_running, run, run_within, sheepfs_binary, wait_until,
};

/// A directory with a mountpoint; dropping it unmounts what a failed test has left.
struct Scratch(TempDir);

impl Scratch {
    fn new() -> anyhow::Result<Self> {
        let directory = TempDir::with_prefix("sheepfs-test-background-")?;
        fs::create_dir(directory.path().join("mnt"))?;
        Ok(Self(directory))
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Has a shell start `sheepfs` in the background as `script` says, where
    /// `"$@"` is its command line; the working directory is this one.
    fn start(&self, cluster: &TestCluster, script: &str) -> anyhow::Result<Daemon> {
        run_within(
            EVENT_LIMIT,
            Command::new("sh")
                .args(["-ec", script, "sh"])
                .arg(sheepfs_binary()?)
                .args(["--address", cluster.address(), "--pidfile"])
                .args([self.path("pid"), self.path("mnt")])
                .current_dir(self.0.path()),
        )?;
        let pid = fs::read_to_string(self.path("pid"))?.trim().parse()?;
        Ok(Daemon {
            pid,
            mountpoint: self.path("mnt"),
        })
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        for name in ["mnt", "tmpfs"] {
            if is_mounted(&self.path(name)).unwrap_or(true)
                && let Err(error) = run(Command::new("umount").arg("-l").arg(self.path(name)))
            {
                eprintln!("{error:#}");
            }
        }
    }
}

struct Daemon {
    pid: i32,
    mountpoint: PathBuf,
}

impl Daemon {
    fn serves(&self) -> bool {
        is_running(self.pid) && self.mountpoint.join("vdi/list").exists()
    }

    /// What descriptor `number` leads to.
    fn file(&self, number: u32) -> io::Result<PathBuf> {
        fs::read_link(format!("/proc/{}/fd/{number}", self.pid))
    }

    fn files(&self) -> anyhow::Result<Vec<PathBuf>> {
        fs::read_dir(format!("/proc/{}/fd", self.pid))?
            // The descriptor may have been closed since the directory was read.
            .map(|entry| Ok(fs::read_link(entry?.path()).unwrap_or_default()))
            .collect()
    }

    fn stop(self) -> anyhow::Result<()> {
        run(Command::new("umount").arg(&self.mountpoint))?;
        wait_until("the daemon ends", EVENT_LIMIT, || Ok(!is_running(self.pid)))
    }
}

#[test]
fn daemon_releases_inherited_lock() -> anyhow::Result<()> {
    let (cluster, scratch) = (TestCluster::start()?, Scratch::new()?);
    let daemon = scratch.start(&cluster, "exec 9> lock; flock 9; \"$@\"")?;
    let file = File::open(scratch.path("lock"))?;
    let lock = Flock::lock(file, FlockArg::LockExclusiveNonblock)
        .map_err(|(_, errno)| errno)
        .context("the lock of the starter, which has ended")?;
    ensure!(daemon.serves());
    drop(lock);
    daemon.stop()
}

#[test]
fn daemon_closes_inherited_pipe() -> anyhow::Result<()> {
    let (cluster, scratch) = (TestCluster::start()?, Scratch::new()?);
    let pipe = scratch.path("pipe");
    mkfifo(&pipe, Mode::S_IRWXU)?;
    let reader = thread::spawn(|| fs::read(pipe));
    let daemon = scratch.start(&cluster, "exec 7> pipe; \"$@\"")?;
    wait_until("the pipe ends", EVENT_LIMIT, || Ok(reader.is_finished()))?;
    ensure!(daemon.serves());
    daemon.stop()
}

#[test]
fn daemon_keeps_no_other_file_system_busy() -> anyhow::Result<()> {
    let (cluster, scratch) = (TestCluster::start()?, Scratch::new()?);
    let other = scratch.path("tmpfs");
    fs::create_dir(&other)?;
    run(Command::new("mount")
        .args(["-t", "tmpfs", "none"])
        .arg(&other))?;
    let daemon = scratch.start(&cluster, "cd tmpfs; exec 8> open 9< .; \"$@\"")?;
    run(Command::new("umount").arg(&other))?;
    ensure!(daemon.serves());
    daemon.stop()
}

#[test]
fn daemon_keeps_descriptors_passed_by_listen_fds() -> anyhow::Result<()> {
    let (cluster, scratch) = (TestCluster::start()?, Scratch::new()?);
    for name in ["passed", "leaked"] {
        File::create(scratch.path(name))?;
    }
    let script = "LISTEN_FDS=1 LISTEN_PID=$$ exec \"$@\" 3< passed 4< leaked";
    let daemon = scratch.start(&cluster, script)?;
    ensure!(daemon.file(3)? == scratch.path("passed"));
    ensure!(!daemon.files()?.contains(&scratch.path("leaked")));
    daemon.stop()?;

    // Those of a service that starts sheepfs are its own.
    let script = "LISTEN_FDS=1 LISTEN_PID=1 exec \"$@\" 3< leaked";
    let daemon = scratch.start(&cluster, script)?;
    ensure!(!daemon.files()?.contains(&scratch.path("leaked")));
    daemon.stop()
}
