//! Work on a file: fio for what takes a while, plain calls for single passes.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};
use nix::libc::O_DIRECT;
use serde_json::Value;
use tests::output;

use super::work::Work;

/// What fio may take beyond the time of its jobs.
const FIO_EXTRA: Duration = Duration::from_secs(60);
/// Alignment of a buffer for direct I/O.
const PAGE: usize = 4096;

/// Operations per second of all jobs together, as fio counts them.
///
/// # Errors
/// When any operation of any job fails.
pub(crate) fn fio(path: &Path, size: u64, work: &Work, time: Duration) -> anyhow::Result<f64> {
    let mut command = Command::new("fio");
    command
        .args(["--ioengine=psync", "--direct=1", "--allow_file_create=0"])
        .arg(format!("--filename={}", path.display()))
        .arg(format!("--numjobs={}", work.jobs));
    let part = size / u64::from(work.jobs);
    if !work.random {
        command.arg(format!("--offset_increment={part}"));
    }
    run_fio(command, if work.random { size } else { part }, work, time)
}

/// As [`fio`], over one NBD connection with `work.jobs` operations in flight.
///
/// # Errors
/// As [`fio`].
pub(crate) fn fio_nbd(uri: &str, size: u64, work: &Work, time: Duration) -> anyhow::Result<f64> {
    let mut command = Command::new("fio");
    command
        .arg("--ioengine=nbd")
        .arg(format!("--uri={uri}"))
        .arg(format!("--iodepth={}", work.jobs));
    run_fio(command, size, work, time)
}

fn run_fio(mut command: Command, size: u64, work: &Work, time: Duration) -> anyhow::Result<f64> {
    let direction = if work.write { "write" } else { "read" };
    let order = if work.random { "rand" } else { "" };
    command
        .args(["--name=bench", "--thread", "--group_reporting"])
        .args(["--time_based", "--output-format=json"])
        .args(["--norandommap", "--randrepeat=0"])
        .arg(format!("--rw={order}{direction}"))
        .arg(format!("--size={size}"))
        .arg(format!("--bs={}", work.block))
        .arg(format!("--runtime={}", time.as_secs()));
    let finished = output(time + FIO_EXTRA, &mut command)?;
    ensure!(
        finished.status.success(),
        "fio: {}",
        finished.stderr.lines().next().unwrap_or("failed")
    );
    // The engine for NBD prints to standard output as well.
    let start = finished.stdout.iter().position(|&byte| byte == b'{');
    let report = &finished.stdout[start.context("no report by fio")?..];
    let report: Value = serde_json::from_slice(report).context("fio's report")?;
    let job = &report["jobs"][0];
    ensure!(job["error"] == 0, "fio: error {}", job["error"]);
    job[direction]["iops"].as_f64().context("fio's speed")
}

/// One pass of direct writes; operations per second.
pub(crate) fn fill(path: &Path, size: u64, work: &Work) -> anyhow::Result<f64> {
    let mut file = File::options()
        .write(true)
        .custom_flags(O_DIRECT)
        .open(path)?;
    let mut memory = vec![0x5a; work.block as usize + PAGE];
    let skip = memory.as_ptr().align_offset(PAGE);
    let block = &mut memory[skip..skip + work.block as usize];
    pass(size, work, || Ok(file.write_all(block)?))
}

/// One pass of reads through the page cache, with nothing in it at first;
/// operations per second.
pub(crate) fn read_cached(path: &Path, size: u64, work: &Work) -> anyhow::Result<f64> {
    let mut file = File::open(path)?;
    forget_pages(&file)?;
    let mut block = vec![0; work.block as usize];
    let speed = pass(size, work, || Ok(file.read_exact(&mut block)?));
    forget_pages(&file)?;
    speed
}

/// One pass of writes through the page cache, and `fsync`; operations per second.
pub(crate) fn write_cached(path: &Path, size: u64, work: &Work) -> anyhow::Result<f64> {
    let mut file = File::options().write(true).open(path)?;
    let block = vec![0x5a; work.block as usize];
    let mut left = size / u64::from(work.block);
    let speed = pass(size, work, || {
        file.write_all(&block)?;
        left -= 1;
        if left == 0 {
            file.sync_all()?;
        }
        Ok(())
    });
    forget_pages(&file)?;
    speed
}

/// Empties the page cache of a file. All targets then use the same memory:
/// some that a virtual machine has not used for a while is slow at first.
fn forget_pages(file: &File) -> anyhow::Result<()> {
    Ok(posix_fadvise(
        file,
        0,
        0,
        PosixFadviseAdvice::POSIX_FADV_DONTNEED,
    )?)
}

fn pass(
    size: u64,
    work: &Work,
    mut operation: impl FnMut() -> anyhow::Result<()>,
) -> anyhow::Result<f64> {
    let operations = size / u64::from(work.block);
    let start = Instant::now();
    for _ in 0..operations {
        operation()?;
    }
    Ok(operations as f64 / start.elapsed().as_secs_f64())
}
