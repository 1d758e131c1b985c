//! A `sheep-embedded` process: the cluster of tests that were given none.

use std::fs::File;
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, bail};
use nix::sys::signal::Signal;

use crate::generation::generation;
use crate::process::{send_signal, wait_for_exit};
use crate::program::spawn;
use crate::wait::{free_ports, wait_until};
use crate::{process, sheep_embedded_binary};

/// From the start of the process to its first accepted connection.
const START_LIMIT: Duration = Duration::from_secs(30);
/// From SIGTERM to the end of the process.
const STOP_LIMIT: Duration = Duration::from_secs(10);

/// One node on a loopback port, formatted, with its data in a directory.
///
/// Dropping it ends the process; the directory is its creator's.
#[derive(Debug)]
pub struct EmbeddedSheep {
    port: u16,
    directory: PathBuf,
    log: PathBuf,
    generation: String,
    child: Child,
}

impl EmbeddedSheep {
    /// Starts one in `directory`, which must exist, on a free port.
    ///
    /// # Errors
    /// When it does not listen within half a minute.
    pub fn start(directory: &Path) -> anyhow::Result<Self> {
        Self::start_with(directory, &[])
    }

    /// As [`EmbeddedSheep::start`], with the data in memory and only the log in
    /// `directory`.
    ///
    /// # Errors
    /// As [`EmbeddedSheep::start`].
    pub fn start_in_memory(directory: &Path) -> anyhow::Result<Self> {
        Self::start_with(directory, &["--memory"])
    }

    fn start_with(directory: &Path, arguments: &[&str]) -> anyhow::Result<Self> {
        Self::launch_in(directory, &generation(), arguments)
    }

    /// As [`EmbeddedSheep::start`], like the sheep of these releases, whatever
    /// [`GENERATION_VARIABLE`](crate::GENERATION_VARIABLE) says.
    ///
    /// # Errors
    /// As [`EmbeddedSheep::start`].
    pub fn start_as(directory: &Path, generation: &str) -> anyhow::Result<Self> {
        Self::launch_in(directory, generation, &[])
    }

    fn launch_in(directory: &Path, generation: &str, arguments: &[&str]) -> anyhow::Result<Self> {
        let port = free_ports(1)?[0];
        let log = directory.join("sheep-embedded.log");
        let data = directory.join("data");
        let child = launch(port, &data, &log, generation, arguments)?;
        let mut sheep = Self {
            port,
            directory: data,
            log,
            generation: generation.to_owned(),
            child,
        };
        sheep.wait_until_it_answers()?;
        Ok(sheep)
    }

    /// As [`EmbeddedSheep::start`], with nothing formatted.
    ///
    /// # Errors
    /// As [`EmbeddedSheep::start`].
    pub fn start_unformatted(directory: &Path) -> anyhow::Result<Self> {
        Self::start_with(directory, &["--unformatted"])
    }

    /// `HOST:PORT` for clients.
    #[must_use]
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// The process, which this process waits for.
    #[must_use]
    pub fn process_id(&self) -> u32 {
        self.child.id()
    }

    /// Sends a signal to the process.
    ///
    /// # Errors
    /// When it is gone.
    pub fn signal(&self, signal: Signal) -> anyhow::Result<()> {
        send_signal(&self.child, signal)
    }

    /// Sends SIGKILL, so that nothing is flushed and no client is notified.
    ///
    /// # Errors
    /// When the process has ended by itself before.
    pub fn kill(&mut self) -> anyhow::Result<()> {
        if let Some(status) = self.child.try_wait()? {
            bail!(
                "sheep-embedded had already ended: {status}\n{}",
                self.log_text()
            );
        }
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    /// Starts a new process on the port and the data of the killed one.
    ///
    /// # Errors
    /// As [`EmbeddedSheep::start`].
    pub fn start_again(&mut self) -> anyhow::Result<()> {
        self.child = launch(self.port, &self.directory, &self.log, &self.generation, &[])?;
        self.wait_until_it_answers()
    }

    /// Ends the process with SIGTERM and checks that this is not an error.
    ///
    /// # Errors
    /// When it does not end within ten seconds, or not with status 0.
    pub fn stop(&mut self) -> anyhow::Result<()> {
        send_signal(&self.child, Signal::SIGTERM)?;
        let status = wait_for_exit(&mut self.child, STOP_LIMIT)?;
        if !status.success() {
            bail!("sheep-embedded ended with {status}\n{}", self.log_text());
        }
        Ok(())
    }

    fn wait_until_it_answers(&mut self) -> anyhow::Result<()> {
        let (child, port) = (&mut self.child, self.port);
        wait_until("sheep-embedded listens", START_LIMIT, || {
            if let Some(status) = child.try_wait()? {
                bail!("it ended: {status}");
            }
            // A refused connection means that it does not listen yet.
            Ok(TcpStream::connect(("127.0.0.1", port)).is_ok())
        })
        .with_context(|| self.log_text())
    }

    fn log_text(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_else(|error| format!("no log: {error}"))
    }
}

impl Drop for EmbeddedSheep {
    fn drop(&mut self) {
        process::end(&mut self.child, STOP_LIMIT);
    }
}

fn launch(
    port: u16,
    directory: &Path,
    log: &Path,
    generation: &str,
    arguments: &[&str],
) -> anyhow::Result<Child> {
    let log = File::options().create(true).append(true).open(log)?;
    let mut command = Command::new(sheep_embedded_binary()?);
    if !arguments.contains(&"--memory") {
        command.arg("--nosync").arg("--dir").arg(directory);
    }
    spawn(
        command
            .args(["--listen", &format!("127.0.0.1:{port}")])
            .args(["--generation", generation])
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log),
    )
}
