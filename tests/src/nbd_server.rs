//! A running `sheep-nbd`.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use nix::sys::signal::Signal;
use tempfile::TempDir;

use crate::process::{self, send_signal, wait_for_exit};
use crate::program::spawn;
use crate::wait::wait_until;
use crate::{TestCluster, sheep_nbd_binary};

/// From the start of `sheep-nbd` to its socket.
const START_LIMIT: Duration = Duration::from_secs(30);
/// From SIGTERM to the end of `sheep-nbd`.
const STOP_LIMIT: Duration = Duration::from_secs(30);
/// Lines of the log that are worth showing when a test fails.
const LOG_LINES: usize = 60;

/// `sheep-nbd` in the foreground, on a Unix socket in a temporary directory.
///
/// Dropping it ends the process and prints the end of the log, which the test runner
/// shows for tests that fail.
#[derive(Debug)]
pub struct NbdServer {
    child: Child,
    directory: TempDir,
}

impl NbdServer {
    /// Serves volumes of `cluster`; `arguments` go to `sheep-nbd` as they are.
    ///
    /// # Errors
    /// When it does not listen within half a minute.
    pub fn start(cluster: &TestCluster, arguments: &[&str]) -> anyhow::Result<Self> {
        let mut all = vec!["--address", cluster.address()];
        all.extend(arguments);
        Self::start_with(&all)
    }

    /// As [`NbdServer::start`], with nothing but `arguments` and its socket.
    ///
    /// # Errors
    /// As [`NbdServer::start`].
    pub fn start_with(arguments: &[&str]) -> anyhow::Result<Self> {
        let directory = TempDir::with_prefix("sheepfs-test-nbd-")?;
        let child = launch(directory.path(), arguments)?;
        let mut server = Self { child, directory };
        server.wait_for_socket()?;
        Ok(server)
    }

    /// Starts it again on the same socket, after it was killed.
    ///
    /// # Errors
    /// As [`NbdServer::start`].
    pub fn start_again(&mut self, cluster: &TestCluster, arguments: &[&str]) -> anyhow::Result<()> {
        let mut all = vec!["--address", cluster.address()];
        all.extend(arguments);
        self.child = launch(self.directory.path(), &all)?;
        self.wait_for_socket()
    }

    /// Its socket.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.directory.path().join("socket")
    }

    /// A file name beside the socket.
    #[must_use]
    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// How clients name an export.
    #[must_use]
    pub fn uri(&self, export: &str) -> String {
        format!("nbd+unix:///{export}?socket={}", self.socket().display())
    }

    /// Ends it with SIGTERM and checks that it left cleanly.
    ///
    /// # Errors
    /// When it does not end within half a minute, ends with another status than 0, or
    /// leaves its socket behind.
    pub fn stop(mut self) -> anyhow::Result<()> {
        self.signal(Signal::SIGTERM)?;
        let status = self.wait()?;
        ensure!(status.success(), "sheep-nbd ended with {status}");
        ensure!(!self.socket().exists(), "sheep-nbd left its socket behind");
        Ok(())
    }

    /// The process, which this process waits for.
    #[must_use]
    pub fn process_id(&self) -> u32 {
        self.child.id()
    }

    /// Sends it a signal.
    ///
    /// # Errors
    /// When it has ended.
    pub fn signal(&self, signal: Signal) -> anyhow::Result<()> {
        send_signal(&self.child, signal)
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// When it still runs after half a minute.
    pub fn wait(&mut self) -> anyhow::Result<ExitStatus> {
        wait_for_exit(&mut self.child, STOP_LIMIT)
    }

    /// What it has logged so far.
    #[must_use]
    pub fn log(&self) -> String {
        fs::read_to_string(self.directory.path().join("log"))
            .unwrap_or_else(|error| format!("no log: {error}"))
    }

    /// Waits until it has logged `text`.
    ///
    /// # Errors
    /// When it has not after half a minute.
    pub fn wait_for_log(&self, text: &str) -> anyhow::Result<()> {
        wait_until(&format!("it logs '{text}'"), START_LIMIT, || {
            Ok(self.log().contains(text))
        })
    }

    fn wait_for_socket(&mut self) -> anyhow::Result<()> {
        let log = self.directory.path().join("log");
        let child = &mut self.child;
        wait_until("sheep-nbd listens", START_LIMIT, || {
            if let Some(status) = child.try_wait()? {
                bail!("it ended: {status}");
            }
            Ok(fs::read_to_string(&log)?.contains("Listening on"))
        })
        .with_context(|| self.log())
    }
}

impl Drop for NbdServer {
    fn drop(&mut self) {
        process::end(&mut self.child, STOP_LIMIT);
        let log = self.log();
        let skipped = log.lines().count().saturating_sub(LOG_LINES);
        for line in log.lines().skip(skipped) {
            println!("sheep-nbd: {line}");
        }
    }
}

fn launch(directory: &Path, arguments: &[&str]) -> anyhow::Result<Child> {
    // A new one: what the last process has logged is no sign of this one.
    let log = File::create(directory.join("log"))?;
    spawn(
        Command::new(sheep_nbd_binary()?)
            .arg("--foreground")
            .arg("--socket")
            .arg(directory.join("socket"))
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log),
    )
}
