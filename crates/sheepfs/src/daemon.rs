//! Going to the background without losing the outcome.
//!
//! The command starts the same program again, with its output on a pipe, and
//! waits for one line: that the tree is served, or why it cannot be. So the
//! command's exit status is the mount's, and no process is forked.

use std::env;
use std::ffi::OsString;
use std::fs::OpenOptions;
use std::io::{self, BufRead as _, BufReader, Read as _, Write as _, stdout};
use std::os::unix::process::CommandExt as _;
use std::process::{Command, Stdio};

use anyhow::{Context as _, bail};
use nix::unistd::{dup2_stderr, dup2_stdout, setsid};

use crate::settings::Mode;

/// The line that says the tree is served.
const READY: &str = "ready";
/// What comes before the reason in the other line.
const FAILED: &str = "failed ";
/// The longest line that is read.
const LONGEST_LINE: u64 = 64 << 10;
/// Tells the program that it is the one in the background.
const FLAG: &str = "--in-background";

/// Starts the program in the background; returns when it serves the tree.
///
/// # Errors
/// The reason it gave, or how it ended without giving one.
pub(crate) fn start(arguments: &[OsString]) -> anyhow::Result<()> {
    let program =
        env::current_exe().context("cannot find the program to start in the background")?;
    let mut command = Command::new(&program);
    if let Some((name, rest)) = arguments.split_first() {
        command.arg0(name).arg(FLAG).args(rest);
    }
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot start {} in the background", program.display()))?;
    let mut line = String::new();
    if let Some(output) = child.stdout.take() {
        let mut output = BufReader::new(output.take(LONGEST_LINE));
        output
            .read_line(&mut line)
            .context("cannot read from the background process")?;
    }
    let line = line.trim_end();
    if line == READY {
        return Ok(());
    }
    match line.strip_prefix(FAILED) {
        Some(reason) => bail!("{reason}"),
        None => bail!(
            "the background process ended before it served the tree: {}",
            child.wait()?
        ),
    }
}

/// Whoever waits for this process to serve the tree.
#[derive(Debug)]
pub(crate) struct Starter {
    mode: Mode,
}

impl Starter {
    /// In the background: leaves the terminal's session and the working
    /// directory, so that neither is kept busy.
    ///
    /// # Errors
    /// When the system refuses.
    pub(crate) fn begin(mode: Mode) -> anyhow::Result<Self> {
        if mode == Mode::InBackground {
            setsid().context("cannot leave the terminal's session")?;
            env::set_current_dir("/").context("cannot leave the working directory")?;
        }
        Ok(Self { mode })
    }

    /// Says that the tree is served, and lets go of the terminal.
    ///
    /// # Errors
    /// When nobody waits any more: the command was interrupted.
    pub(crate) fn ready(&self) -> anyhow::Result<()> {
        if self.mode == Mode::InBackground {
            say(READY).context("the command that started the background process is gone")?;
            let null = OpenOptions::new()
                .read(true)
                .write(true)
                .open("/dev/null")?;
            dup2_stdout(&null)?;
            dup2_stderr(&null)?;
        }
        Ok(())
    }
}

/// Says in the background why the tree is not served, in one line.
pub(crate) fn say_failed(reason: &str) {
    if let Err(error) = say(&format!("{FAILED}{reason}")) {
        tracing::debug!("the command that started the background process is gone: {error}");
    }
}

fn say(line: &str) -> io::Result<()> {
    let mut output = stdout().lock();
    writeln!(output, "{line}")?;
    output.flush()
}
