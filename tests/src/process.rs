//! State and signals of processes.

use std::fs;
use std::process::{Child, ExitStatus};
use std::time::Duration;

use anyhow::Context as _;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::wait::wait_until;

/// True while the process `pid` runs; a zombie has ended.
#[must_use]
pub fn is_running(pid: i32) -> bool {
    // An unreadable file is a process that is gone.
    let Ok(stat) = fs::read_to_string(format!("/proc/{pid}/stat")) else {
        return false;
    };
    // The state follows the program's name, which is in parentheses and may
    // hold anything, parentheses included.
    stat.rsplit_once(") ")
        .is_some_and(|(_, rest)| !rest.starts_with(['Z', 'X']))
}

/// Sends `signal` to `child`.
///
/// # Errors
/// When the process is gone.
pub fn send_signal(child: &Child, signal: Signal) -> anyhow::Result<()> {
    let pid = i32::try_from(child.id()).context("a process id")?;
    kill(Pid::from_raw(pid), signal).with_context(|| format!("sending {signal} to {pid}"))
}

/// Waits for the end of `child`.
///
/// # Errors
/// When it is still running after `limit`.
pub fn wait_for_exit(child: &mut Child, limit: Duration) -> anyhow::Result<ExitStatus> {
    let mut status = None;
    wait_until(&format!("process {} ends", child.id()), limit, || {
        status = child.try_wait()?;
        Ok(status.is_some())
    })?;
    status.context("a child without a status")
}

/// Ends `child` for a guard's drop: asks, waits for `limit`, then kills.
///
/// Prints errors, because `drop` cannot return them.
pub(crate) fn end(child: &mut Child, limit: Duration) {
    if matches!(child.try_wait(), Ok(Some(_))) {
        return;
    }
    let ended = send_signal(child, Signal::SIGTERM).and_then(|()| wait_for_exit(child, limit));
    if let Err(error) = ended {
        eprintln!("killing it: {error:#}");
        if let Err(error) = child.kill().and_then(|()| child.wait()) {
            eprintln!("cannot kill process {}: {error}", child.id());
        }
    }
}
