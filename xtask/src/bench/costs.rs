//! What sheepfs costs besides time: attaching, memory, sockets, and how these grow.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use tests::Mounted;

use super::files;
use super::process::{open_files, peak_resident, resident};
use super::results::Results;
use super::target::{Testbed, tell};
use super::work::{MANY_READERS, Work};

/// Numbers of attached volumes to measure.
const ATTACHED: [usize; 4] = [10, 50, 100, 1000];
/// Numbers of VDIs to list.
const LISTED: [usize; 4] = [10, 100, 1000, 5000];
/// Jobs that read at the same time.
const JOBS: [u32; 7] = [1, 2, 4, 8, 16, 32, 64];
/// As the largest a volume of this kind could be expected to be.
const UNTOUCHED: &str = "64G";
const TIME: Duration = Duration::from_secs(2);

/// Measures all of it on a mount of its own.
pub(crate) fn measure(testbed: &Testbed, results: &mut Results) -> anyhow::Result<()> {
    // Memory of the mount that did the work of the benchmark, and of a new one.
    let worker = testbed.mounted().process_id();
    results.cost(
        "peak memory after all the work",
        mib(peak_resident(worker)?),
    );
    let mounted = Mounted::start_with(&["--address", &testbed.address()])?;
    let pid = mounted.process_id();
    results.cost("memory, idle", mib(resident(pid)?));
    jobs(testbed, results)?;

    // Time of a listing, for a growing number of VDIs.
    let tree = mounted.mountpoint();
    let mut made = 1;
    for count in LISTED {
        eprintln!("costs: {count} VDIs");
        for number in made..count {
            tell(&tree, "vdi/create", &format!("cost-{number} {UNTOUCHED}"))?;
        }
        made = count;
        let start = Instant::now();
        let list = fs::read(mounted.path("vdi/list"))?;
        let took = start.elapsed();
        let lines = list.iter().filter(|&&byte| byte == b'\n').count();
        anyhow::ensure!(lines == count + 1, "{lines} lines for {count} VDIs");
        results.cost(format!("listing {count} VDIs"), ms(took));
    }

    drop(mounted);
    // A new mount, as a long listing leaves freed memory with the process.
    let mounted = Mounted::start_with(&["--address", &testbed.address()])?;
    let (tree, pid) = (mounted.mountpoint(), mounted.process_id());
    let idle = resident(pid)?;
    // Time, memory and file descriptors of attached volumes, for a growing number.
    let mut attached = 0;
    for count in ATTACHED {
        let mut times = Vec::new();
        for number in attached + 1..=count {
            let start = Instant::now();
            tell(&tree, "vdi/mount", &format!("cost-{number}"))?;
            times.push(start.elapsed());
        }
        attached = count;
        times.sort_unstable();
        let median = times.get(times.len() / 2).context("no time")?;
        let each = resident(pid)?.saturating_sub(idle) / count as u64;
        let (files, sockets) = open_files(pid)?;
        results.cost(format!("attaching one volume, up to {count}"), ms(*median));
        results.cost(
            format!("memory of each of {count} volumes of {UNTOUCHED}"),
            format!("{:.1} KiB", each as f64 / 1024.0),
        );
        results.cost(
            format!("sockets, and all open files, with {count} volumes"),
            format!("{sockets}, {files}"),
        );
    }
    Ok(())
}

/// Operations per second should not fall with the number of jobs.
fn jobs(testbed: &Testbed, results: &mut Results) -> anyhow::Result<()> {
    for jobs in JOBS {
        eprintln!("costs: {jobs} jobs");
        let work = Work {
            jobs,
            ..MANY_READERS
        };
        let path = testbed.volume();
        let speed = files::fio(&path, testbed.size(), &work, TIME)?;
        results.cost(
            format!("4 KiB random read, {jobs} jobs"),
            format!("{speed:.0}/s"),
        );
    }
    Ok(())
}

fn ms(time: Duration) -> String {
    format!("{:.1} ms", time.as_secs_f64() * 1e3)
}

fn mib(bytes: u64) -> String {
    format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20))
}
