//! A running `sheepfs` and its tree.

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use nix::sys::signal::Signal;
use tempfile::TempDir;

use crate::generation::supported_options;
use crate::mounts::is_mounted;
use crate::process::{self, send_signal, wait_for_exit};
use crate::program::{run_within, spawn};
use crate::wait::wait_until;
use crate::{TestCluster, sheepfs_binary};

/// From the start of `sheepfs` to its tree.
const MOUNT_LIMIT: Duration = Duration::from_secs(30);
/// From SIGTERM to the end of `sheepfs`.
const STOP_LIMIT: Duration = Duration::from_secs(30);
/// Lines of the log that are shown when a test fails.
const LOG_LINES: usize = 60;

/// `sheepfs` in the foreground on a temporary mountpoint.
///
/// Dropping it ends the process, takes the mount away and prints the end of
/// the log, which the test runner shows for tests that fail.
#[derive(Debug)]
pub struct Mounted {
    child: Child,
    directory: TempDir,
}

impl Mounted {
    /// Mounts `cluster`; `arguments` go to `sheepfs` as they are.
    ///
    /// # Errors
    /// When there is no `/dev/fuse`, or no tree within half a minute.
    pub fn start(cluster: &TestCluster, arguments: &[&str]) -> anyhow::Result<Self> {
        let mut all = vec!["--address", cluster.address()];
        all.extend(arguments);
        Self::start_with(&all)
    }

    /// As [`Mounted::start`], with nothing but `arguments`.
    ///
    /// # Errors
    /// As [`Mounted::start`].
    pub fn start_with(arguments: &[&str]) -> anyhow::Result<Self> {
        ensure!(
            Path::new("/dev/fuse").exists(),
            "this test needs /dev/fuse, which this machine does not have"
        );
        let directory = TempDir::with_prefix("sheepfs-test-mount-")?;
        fs::create_dir(directory.path().join("mnt"))?;
        let log = File::create(directory.path().join("log"))?;
        let child = spawn(
            Command::new(sheepfs_binary()?)
                .arg("--foreground")
                .args(arguments)
                .arg(directory.path().join("mnt"))
                .stdin(Stdio::null())
                .stdout(log.try_clone()?)
                .stderr(log),
        )?;
        let mut mounted = Self { child, directory };
        mounted.wait_for_tree()?;
        Ok(mounted)
    }

    /// Where the tree is.
    #[must_use]
    pub fn mountpoint(&self) -> PathBuf {
        self.directory.path().join("mnt")
    }

    /// A file of the tree, such as `vdi/list`.
    #[must_use]
    pub fn path(&self, name: impl AsRef<Path>) -> PathBuf {
        self.mountpoint().join(name)
    }

    /// The names in a directory of the tree.
    ///
    /// # Errors
    /// As reading the directory.
    pub fn names(&self, directory: &str) -> anyhow::Result<BTreeSet<OsString>> {
        let path = self.path(directory);
        fs::read_dir(&path)
            .with_context(|| path.display().to_string())?
            .map(|entry| Ok(entry?.file_name()))
            .collect()
    }

    /// The file of an attached volume.
    #[must_use]
    pub fn volume(&self, name: &str) -> PathBuf {
        self.path("volume").join(name)
    }

    /// The text of a report.
    ///
    /// # Errors
    /// As reading the file.
    pub fn report(&self, name: &str) -> anyhow::Result<String> {
        let path = self.path(name);
        fs::read_to_string(&path).with_context(|| path.display().to_string())
    }

    /// Writes one line to a command file, as `echo LINE > FILE` does.
    ///
    /// # Errors
    /// The error of the write, unchanged, for tests that check its errno.
    pub fn command(&self, file: &str, line: impl AsRef<OsStr>) -> std::io::Result<()> {
        let mut bytes = line.as_ref().as_encoded_bytes().to_vec();
        bytes.push(b'\n');
        File::options()
            .write(true)
            .truncate(true)
            .open(self.path(file))?
            .write_all(&bytes)
    }

    /// Creates a VDI and attaches it; `size_and_options` as for `vdi/create`.
    ///
    /// An object size is left out where a cluster has only one.
    ///
    /// # Errors
    /// When either is refused.
    pub fn create(&self, name: &str, size_and_options: &str) -> anyhow::Result<PathBuf> {
        self.create_unattached(name, size_and_options)
            .with_context(|| format!("vdi/create: {name} {size_and_options}"))?;
        self.attach(name)
    }

    /// The same without attaching it.
    ///
    /// # Errors
    /// As [`Self::command`].
    pub fn create_unattached(&self, name: &str, size_and_options: &str) -> std::io::Result<()> {
        let line = format!("{name} {}", supported_options(size_and_options));
        self.command("vdi/create", line)
    }

    /// Attaches `NAME` or `NAME@TAG` and returns its file.
    ///
    /// # Errors
    /// When it is refused, or the file does not appear.
    pub fn attach(&self, target: &str) -> anyhow::Result<PathBuf> {
        self.command("vdi/mount", target)
            .with_context(|| format!("vdi/mount: {target}"))?;
        let path = self.volume(target);
        ensure!(
            path.exists(),
            "{} is attached and not there",
            path.display()
        );
        Ok(path)
    }

    /// Ends `sheepfs` with SIGTERM and checks that it left cleanly.
    ///
    /// # Errors
    /// When it does not end within half a minute, ends with another status
    /// than 0, or leaves its mount behind.
    pub fn stop(mut self) -> anyhow::Result<()> {
        self.signal(Signal::SIGTERM)?;
        let status = self.wait()?;
        ensure!(status.success(), "sheepfs ended with {status}");
        ensure!(
            !is_mounted(&self.mountpoint())?,
            "sheepfs left its mount behind"
        );
        Ok(())
    }

    /// The process, which this process waits for.
    #[must_use]
    pub fn process_id(&self) -> u32 {
        self.child.id()
    }

    /// Sends a signal to `sheepfs`.
    ///
    /// # Errors
    /// When it has ended.
    pub fn signal(&self, signal: Signal) -> anyhow::Result<()> {
        send_signal(&self.child, signal)
    }

    /// Waits for the end of `sheepfs`.
    ///
    /// # Errors
    /// When it still runs after half a minute.
    pub fn wait(&mut self) -> anyhow::Result<ExitStatus> {
        wait_for_exit(&mut self.child, STOP_LIMIT)
    }

    /// Bytes of memory that are its own.
    ///
    /// # Errors
    /// When it has ended.
    pub fn memory(&self) -> anyhow::Result<u64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        // "VmRSS:      9876 kB"
        let line = status.lines().find(|line| line.starts_with("VmRSS:"));
        let number = line.and_then(|line| line.split_whitespace().nth(1));
        Ok(number.context("no VmRSS")?.parse::<u64>()? << 10)
    }

    /// What its file descriptors lead to.
    ///
    /// # Errors
    /// When it has ended.
    pub fn open_files(&self) -> anyhow::Result<Vec<PathBuf>> {
        fs::read_dir(format!("/proc/{}/fd", self.child.id()))?
            // The descriptor may have been closed since the directory was read.
            .map(|entry| Ok(fs::read_link(entry?.path()).unwrap_or_default()))
            .collect()
    }

    /// Its connections and other sockets.
    ///
    /// # Errors
    /// As [`Mounted::open_files`].
    pub fn sockets(&self) -> anyhow::Result<usize> {
        let is_socket = |file: &PathBuf| file.to_string_lossy().starts_with("socket:");
        Ok(self
            .open_files()?
            .iter()
            .filter(|file| is_socket(file))
            .count())
    }

    /// What `sheepfs` has logged so far.
    #[must_use]
    pub fn log(&self) -> String {
        fs::read_to_string(self.directory.path().join("log"))
            .unwrap_or_else(|error| format!("no log: {error}"))
    }

    fn wait_for_tree(&mut self) -> anyhow::Result<()> {
        let mountpoint = self.mountpoint();
        let child = &mut self.child;
        wait_until("sheepfs serves its tree", MOUNT_LIMIT, || {
            if let Some(status) = child.try_wait()? {
                bail!("it ended: {status}");
            }
            Ok(is_mounted(&mountpoint)? && mountpoint.join("volume").is_dir())
        })
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        process::end(&mut self.child, STOP_LIMIT);
        let mountpoint = self.mountpoint();
        // After SIGKILL, or if a file was still open.
        if is_mounted(&mountpoint).unwrap_or(true) {
            let unmounted = run_within(
                STOP_LIMIT,
                Command::new("umount").arg("--lazy").arg(&mountpoint),
            );
            if let Err(error) = unmounted {
                eprintln!("{error:#}");
            }
        }
        let log = self.log();
        let skipped = log.lines().count().saturating_sub(LOG_LINES);
        for line in log.lines().skip(skipped) {
            println!("sheepfs: {line}");
        }
    }
}

/// Whether a line of a log is the warning with which every mount begins where
/// root lacks `CAP_SYS_RESOURCE`, as in most containers.
#[must_use]
pub fn is_capability_warning(line: &str) -> bool {
    line.contains("CAP_SYS_RESOURCE")
}
