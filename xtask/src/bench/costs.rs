//! What sheepfs costs besides time: attaching, memory, sockets, and how these grow.

use std::fs::{self, File};
use std::os::unix::fs::FileExt as _;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use tests::{Mounted, NbdServer};

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
/// The volume that is copied, its bytes, and how often.
const COPIED: &str = "bench-copied";
const COPIED_SIZE: u64 = 1 << 30;
const COPIES: u32 = 5;
/// Bytes of an object: all volumes here have the default.
const OBJECT: usize = 4 << 20;

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

/// Copies of a volume of which a third is allocated: by nbdcopy from sheep-nbd, and by
/// qemu-img from the mount.
pub(crate) fn copies(testbed: &Testbed, results: &mut Results) -> anyhow::Result<()> {
    let tree = testbed.mounted().mountpoint();
    tell(&tree, "vdi/create", &format!("{COPIED} {COPIED_SIZE}"))?;
    tell(&tree, "vdi/mount", COPIED)?;
    let file = testbed.mounted().volume(COPIED);
    let volume = File::options().write(true).open(&file)?;
    let object = vec![0x5a; OBJECT];
    for at in (0..COPIED_SIZE).step_by(3 * OBJECT) {
        volume.write_all_at(&object, at)?;
    }
    drop(volume);
    let server = NbdServer::start_with(&["--address", &testbed.address(), "--lock=off", COPIED])?;
    let target = server.path("copy");
    let mut nbdcopy = Command::new("nbdcopy");
    nbdcopy.arg(server.uri(COPIED)).arg(&target);
    let mut convert = Command::new("qemu-img");
    convert.args(["convert", "-f", "raw", "-O", "raw"]);
    convert.arg(&file).arg(&target);
    let mut times = [Vec::new(), Vec::new()];
    for round in 1..=COPIES {
        eprintln!("copies: {round} of {COPIES}");
        for (command, times) in [&mut nbdcopy, &mut convert].into_iter().zip(&mut times) {
            let start = Instant::now();
            tests::run(command)?;
            times.push(start.elapsed());
            fs::remove_file(&target)?;
        }
    }
    let what = ["nbdcopy from sheep-nbd", "qemu-img convert from sheepfs"];
    for (what, mut times) in what.into_iter().zip(times) {
        times.sort_unstable();
        let median = times.get(times.len() / 2).context("no time")?;
        let what = format!("copying 1 GiB, a third of it allocated: {what}");
        results.cost(what, ms(*median));
    }
    drop(server);
    tell(&tree, "vdi/unmount", COPIED)?;
    tell(&tree, "vdi/delete", COPIED)
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
