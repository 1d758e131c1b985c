//! Cleanup after a test run, even an interrupted one: processes, mounts, loop devices.
//!
//! A guard's drop does not run in a process that was killed. But everything a
//! run makes is either our descendant or below our temporary directory:
//! orphans become our children, because this process is a subreaper, and mounts and
//! loop devices are found by their paths.

use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use ::tests::{mounts_below, output, wait_until};
use anyhow::Context as _;
use nix::sys::prctl;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::{Pid, getpid};
use tempfile::TempDir;

/// Servers, which are ended after all other processes.
const SERVERS: [&str; 4] = ["sheep", "sheep-embedded", "sheep-nbd", "sheepfs"];
/// Longest `umount` or `losetup --detach`.
const TOOL_LIMIT: Duration = Duration::from_secs(10);
/// From a signal to the end of whom it was sent to.
const END_LIMIT: Duration = Duration::from_secs(10);

/// A temporary directory, and everything that happens in it.
#[derive(Debug)]
pub(crate) struct Scratch {
    directory: TempDir,
}

impl Scratch {
    /// Makes a directory `below` another and becomes the parent of all orphans to come.
    pub(crate) fn new(below: &Path) -> anyhow::Result<Self> {
        prctl::set_child_subreaper(true).context("cannot become a subreaper")?;
        Ok(Self {
            directory: TempDir::with_prefix_in("sheepfs-xtask-", below)?,
        })
    }

    pub(crate) fn path(&self) -> &Path {
        self.directory.path()
    }

    /// Ends what tests left running, except servers that others may still use.
    ///
    /// Users before servers: a file system on a loop device on a volume can only be
    /// unmounted while the volume is served.
    pub(crate) fn end_tests(&self) {
        end_descendants(|program| !SERVERS.contains(&program), Signal::SIGKILL);
        release(self.path(), &[]);
        end_descendants(|program| program == "sheepfs", Signal::SIGTERM);
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        self.end_tests();
        end_descendants(|_| true, Signal::SIGTERM);
        end_descendants(|_| true, Signal::SIGKILL);
        // The processes that used these mounts have ended.
        release(self.path(), &["--lazy"]);
    }
}

/// Reaps zombie orphans, so that they are not counted as running.
///
/// `own` are children that are reaped elsewhere.
pub(crate) fn reap_orphans(own: &[u32]) {
    let me = getpid().as_raw();
    for process in processes() {
        if process.parent == me
            && process.state == 'Z'
            && !own.iter().any(|&pid| pid.cast_signed() == process.pid)
        {
            // Another thread may have reaped it already.
            let _: nix::Result<_> = waitpid(Pid::from_raw(process.pid), Some(WaitPidFlag::WNOHANG));
        }
    }
}

/// Sends `signal` to the descendants selected by program name, until they end.
fn end_descendants(chosen: impl Fn(&str) -> bool, signal: Signal) {
    let mut told = HashSet::new();
    let ended = wait_until(&format!("{signal} ends all"), END_LIMIT, || {
        reap_orphans(&[]);
        let mut left = descendants();
        left.retain(|process| process.state != 'Z' && chosen(&process.program));
        for process in &left {
            if told.insert(process.pid) {
                // It may have ended since.
                let _: nix::Result<()> = kill(Pid::from_raw(process.pid), signal);
            }
        }
        Ok(left.is_empty())
    });
    if let Err(error) = ended {
        eprintln!("xtask: {error:#}");
    }
}

/// Takes away mounts and loop devices of files below `directory`.
fn release(directory: &Path, umount_options: &[&str]) {
    let mut commands = Vec::new();
    match mounts_below(directory) {
        Ok(mounts) => commands.extend(mounts.iter().map(|mount| {
            let mut umount = Command::new("umount");
            umount.args(umount_options).arg(mount);
            umount
        })),
        Err(error) => eprintln!("xtask: {error:#}"),
    }
    commands.extend(loop_devices(directory).iter().map(|device| {
        let mut losetup = Command::new("losetup");
        losetup.arg("--detach").arg(device);
        losetup
    }));
    for mut command in commands {
        eprintln!("xtask: left behind: {command:?}");
        // A mount of sheepfs that is busy in the first round is unmounted in the last.
        if let Err(error) = output(TOOL_LIMIT, &mut command) {
            eprintln!("xtask: {error:#}");
        }
    }
}

/// Loop devices with a backing file below `directory`.
fn loop_devices(directory: &Path) -> Vec<PathBuf> {
    let Ok(devices) = fs::read_dir("/sys/block") else {
        return Vec::new();
    };
    devices
        .flatten()
        .filter(|device| {
            // Only an attached loop device has this file.
            fs::read_to_string(device.path().join("loop/backing_file"))
                .is_ok_and(|file| Path::new(file.trim_end()).starts_with(directory))
        })
        .map(|device| Path::new("/dev").join(device.file_name()))
        .collect()
}

/// One line of the process table.
#[derive(Clone, Debug)]
struct Process {
    pid: i32,
    parent: i32,
    state: char,
    program: String,
}

/// The children of this process, their children, and so on.
fn descendants() -> Vec<Process> {
    let mut others = processes();
    let mut family = HashSet::from([getpid().as_raw()]);
    let mut found = Vec::new();
    loop {
        let (children, rest): (Vec<_>, Vec<_>) = others
            .into_iter()
            .partition(|process| family.contains(&process.parent));
        if children.is_empty() {
            return found;
        }
        family.extend(children.iter().map(|child| child.pid));
        found.extend(children);
        others = rest;
    }
}

fn processes() -> Vec<Process> {
    let Ok(entries) = fs::read_dir("/proc") else {
        return Vec::new();
    };
    entries
        .flatten()
        // A process that has just ended has no file.
        .filter_map(|entry| fs::read(entry.path().join("stat")).ok())
        .filter_map(|stat| parse_stat(&String::from_utf8_lossy(&stat)))
        .collect()
}

/// Reads `PID (PROGRAM) STATE PARENT ...`; the name may hold anything.
fn parse_stat(stat: &str) -> Option<Process> {
    let (pid, rest) = stat.split_once(" (")?;
    let (program, rest) = rest.rsplit_once(") ")?;
    let mut fields = rest.split(' ');
    Some(Process {
        pid: pid.parse().ok()?,
        program: program.to_owned(),
        state: fields.next()?.chars().next()?,
        parent: fields.next()?.parse().ok()?,
    })
}

#[cfg(test)]
mod tests {
    use std::process::Stdio;

    use super::*;

    #[test]
    fn proc_stat_parses_name_with_parentheses() {
        let process = parse_stat("12 (a) S 1 (b) Z 7 12 12 0")
            .expect("the test passes a well-formed stat line");
        assert_eq!(process.program, "a) S 1 (b");
        assert_eq!((process.pid, process.state, process.parent), (12, 'Z', 7));
    }

    #[test]
    fn process_descendants_include_grandchildren() {
        let mut child = Command::new("sh")
            .args(["-c", "sleep 1000 & echo; wait"])
            .stdout(Stdio::piped())
            .spawn()
            .expect("every system has sh");
        let mut found = None;
        wait_until("sleep runs", Duration::from_secs(10), || {
            let mut descendants = descendants().into_iter();
            found = descendants.find(|process| process.program == "sleep");
            Ok(found.is_some())
        })
        .expect("the shell starts sleep within ten seconds");
        let grandchild = found.expect("the child is a descendant");
        kill(Pid::from_raw(grandchild.pid), Signal::SIGKILL)
            .expect("the child has not been killed yet");
        child
            .wait()
            .expect("the shell is a child that was not reaped");
    }
}
