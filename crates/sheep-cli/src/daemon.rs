//! Daemonization that reports whether the start succeeded.
//!
//! The command spawns the same program again with stdout on a pipe and waits for
//! one line: `ready` or `failed`. So the exit status of the command tells whether
//! the service runs, and nothing is forked.

use std::env;
use std::ffi::OsString;
use std::fs::OpenOptions;
use std::io::{self, BufRead as _, BufReader, Read as _, Write as _, stdout};
use std::os::fd::RawFd;
use std::os::unix::process::CommandExt as _;
use std::process::{self, Child, Command, ExitStatus, Stdio};

use anyhow::Context as _;
use nix::unistd::{dup2_stderr, dup2_stdout, setsid};

use crate::notify;

/// Prefix of the line sent when the service is ready; the status follows.
const READY: &str = "ready ";
/// Prefix of the line sent when the start failed; the reason follows.
const FAILED: &str = "failed ";
/// Maximum length of the line.
const LONGEST_LINE: u64 = 64 << 10;
/// First argument of the daemon child.
const FLAG: &str = "--in-background";
/// The first descriptor that is not standard input, output or error; also the
/// first one of sd_listen_fds(3).
const FIRST_FD: RawFd = 3;

/// Why no daemon is ready.
#[derive(Debug)]
pub enum SpawnError {
    /// The child ended before it was ready.
    Ended {
        /// Its exit status.
        status: ExitStatus,
        /// The reason it sent.
        reason: String,
    },
    /// The child could not be started or read from.
    System(anyhow::Error),
}

impl From<anyhow::Error> for SpawnError {
    fn from(error: anyhow::Error) -> Self {
        Self::System(error)
    }
}

/// Removes the flag from `arguments`; true if it was there.
pub fn take_flag(arguments: &mut Vec<OsString>) -> bool {
    let there = arguments.get(1).is_some_and(|word| word == FLAG);
    if there {
        arguments.remove(1);
    }
    there
}

/// Spawns the daemon child and waits until it is ready.
///
/// # Errors
/// `Ended` with the reason the child sent, `System` if it cannot be started.
pub fn start(arguments: &[OsString]) -> Result<(), SpawnError> {
    let mut child = spawn(arguments)?;
    let mut line = String::new();
    if let Some(output) = child.stdout.take() {
        let mut output = BufReader::new(output.take(LONGEST_LINE));
        output
            .read_line(&mut line)
            .context("cannot read from the background process")?;
    }
    let line = line.trim_end();
    if let Some(status) = line.strip_prefix(READY) {
        notify::notify_main_pid(child.id(), status);
        return Ok(());
    }
    let status = child
        .wait()
        .context("cannot wait for the background process")?;
    let reason = match line.strip_prefix(FAILED) {
        Some(reason) => reason.to_owned(),
        None => format!("the background process ended before it was ready: {status}"),
    };
    Err(SpawnError::Ended { status, reason })
}

fn spawn(arguments: &[OsString]) -> anyhow::Result<Child> {
    let program =
        env::current_exe().context("cannot find the program to start in the background")?;
    let mut command = Command::new(&program);
    if let Some((name, rest)) = arguments.split_first() {
        command.arg0(name).arg(FLAG).args(rest);
    }
    // Inherited descriptors may hold a lock, a pipe or a file system. The daemon
    // must not keep them for its lifetime.
    let passed = passed_fds(|name| env::var(name).ok(), process::id());
    close_fds::set_fds_cloexec(FIRST_FD, &passed);
    command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot start {} in the background", program.display()))
}

/// The descriptors that a service manager passed on purpose: sd_listen_fds(3).
pub fn passed_fds(environment: impl Fn(&str) -> Option<String>, pid: u32) -> Vec<RawFd> {
    let number = |name| environment(name).and_then(|text| text.parse::<u32>().ok());
    // Variables left over from a parent that is a service itself name its own
    // descriptors, not ours.
    if environment("LISTEN_PID").is_some() && number("LISTEN_PID") != Some(pid) {
        return Vec::new();
    }
    let count = number("LISTEN_FDS").and_then(|count| u16::try_from(count).ok());
    (FIRST_FD..).take(count.unwrap_or(0).into()).collect()
}

/// Where this process reports that it is ready: the parent of a daemon child, or the
/// service manager.
#[derive(Debug)]
pub struct ParentLink {
    program: &'static str,
    is_daemon_child: bool,
    notice: Option<&'static str>,
}

impl ParentLink {
    /// In a daemon child, leaves the session of the terminal and the working
    /// directory, so that neither stays in use.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn detach(program: &'static str, is_daemon_child: bool) -> anyhow::Result<Self> {
        if is_daemon_child {
            setsid().context("cannot leave the terminal's session")?;
            env::set_current_dir("/").context("cannot leave the working directory")?;
        }
        Ok(Self {
            program,
            is_daemon_child,
            notice: None,
        })
    }

    /// Adds a notice to print on standard error when the service is ready.
    pub fn add_notice(&mut self, notice: &'static str) {
        self.notice = Some(notice);
    }

    /// Reports that the service is ready, and closes the terminal.
    ///
    /// # Errors
    /// If the parent has ended, because it was interrupted.
    pub fn ready(&self, status: &str) -> anyhow::Result<()> {
        if let Some(notice) = self.notice {
            eprintln!("{}: {notice}", self.program);
        }
        if self.is_daemon_child {
            write_line(READY, status)
                .context("the command that started the background process is gone")?;
            let null = OpenOptions::new()
                .read(true)
                .write(true)
                .open("/dev/null")?;
            dup2_stdout(&null)?;
            dup2_stderr(&null)?;
        } else {
            notify::ready(status);
        }
        Ok(())
    }
}

/// Sends the reason for a failed start to the parent, in one line.
pub fn report_failure(reason: &str) {
    if let Err(error) = write_line(FAILED, reason) {
        tracing::debug!("the command that started the background process is gone: {error}");
    }
}

fn write_line(what: &str, text: &str) -> io::Result<()> {
    let mut output = stdout().lock();
    writeln!(output, "{what}{text}")?;
    output.flush()
}

#[cfg(test)]
mod tests {
    use super::passed_fds;

    #[test]
    fn daemon_keeps_descriptors_named_by_listen_fds() {
        let passed = |fds: Option<&str>, pid: Option<&str>| {
            let variable = |name: &str| match name {
                "LISTEN_FDS" => fds.map(str::to_owned),
                _ => pid.map(str::to_owned),
            };
            passed_fds(variable, 42)
        };
        assert_eq!(passed(Some("2"), Some("42")), [3, 4]);
        assert_eq!(passed(Some("1"), None), [3]);
        assert!(passed(Some("2"), Some("41")).is_empty());
        assert!(passed(Some("2"), Some("x")).is_empty());
        assert!(passed(None, Some("42")).is_empty());
        assert!(passed(Some("-1"), Some("42")).is_empty());
    }
}
