//! The resources that a process has used, from `/proc`.

use std::fs;
use std::time::Duration;

use anyhow::Context as _;

/// Clock ticks of `/proc` per second; the same on every Linux that runs Rust.
const TICKS: u64 = 100;

/// Processor time, its own and the kernel's on its account.
pub(crate) fn cpu_time(pid: u32) -> anyhow::Result<Duration> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let (_, fields) = stat.rsplit_once(") ").context("a stat line")?;
    let ticks: u64 = fields
        .split(' ')
        .skip(11)
        .take(2)
        .map(|field| field.parse::<u64>().context("a number of ticks"))
        .sum::<anyhow::Result<_>>()?;
    Ok(Duration::from_millis(ticks * 1000 / TICKS))
}

/// Bytes of memory in use.
pub(crate) fn resident(pid: u32) -> anyhow::Result<u64> {
    status(pid, "VmRSS:")
}

/// The most bytes of memory in use so far.
pub(crate) fn peak_resident(pid: u32) -> anyhow::Result<u64> {
    status(pid, "VmHWM:")
}

fn status(pid: u32, field: &str) -> anyhow::Result<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let kib: u64 = status
        .lines()
        .find_map(|line| line.strip_prefix(field))
        .and_then(|rest| rest.trim().strip_suffix(" kB"))
        .with_context(|| format!("no {field}"))?
        .parse()?;
    Ok(kib << 10)
}

/// Open files, and how many of them are sockets.
pub(crate) fn open_files(pid: u32) -> anyhow::Result<(usize, usize)> {
    let mut all = 0;
    let mut sockets = 0;
    for entry in fs::read_dir(format!("/proc/{pid}/fd"))?.flatten() {
        all += 1;
        // The descriptor may have been closed since the directory was read.
        let to = fs::read_link(entry.path()).unwrap_or_default();
        sockets += usize::from(to.to_string_lossy().starts_with("socket:"));
    }
    Ok((all, sockets))
}
