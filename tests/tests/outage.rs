//! An outage longer than `--retry-for`: requests fail without waiting.

use std::fs::{self, File};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use nix::errno::Errno;
use nix::sys::signal::Signal;
use nix::sys::statvfs::statvfs;
use tests::{EVENT_LIMIT, Mounted, TestCluster, is_mounted, run, wait_until};

/// Documented limit of a shutdown.
const AT_MOST: Duration = Duration::from_secs(10);

/// A mount whose sheep has been unreachable for longer than the retry timeout, and a
/// volume that is open since before.
fn mounted_offline(
    cluster: &mut TestCluster,
    arguments: &[&str],
) -> anyhow::Result<(Mounted, File)> {
    let mounted = Mounted::start(cluster, &[&["--retry-for", "1"], arguments].concat())?;
    let path = mounted.create("v", "16M object_size=1M")?;
    let file = File::options().read(true).write(true).open(path)?;
    file.write_all_at(&[1; 4096], 0)?;
    file.sync_all()?;
    cluster.own_sheep()?.kill()?;
    // A buffered write succeeds, and fsync reports the error.
    let written = file.write_all_at(&[2; 4096], 8 << 20);
    let error = written.and_then(|()| file.sync_all()).err();
    ensure!(error.context("no error")?.raw_os_error() == Some(Errno::EIO as i32));
    Ok((mounted, file))
}

/// Threads of a process that no signal reaches.
fn stuck_in(process: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let mut stuck = Vec::new();
    for task in fs::read_dir(process.join("task"))? {
        let task = task?.path();
        // The thread may have ended since the directory was read.
        let stat = fs::read_to_string(task.join("stat")).unwrap_or_default();
        let state = stat.rsplit_once(") ").map(|(_, rest)| rest);
        if state.is_some_and(|state| state.starts_with('D')) {
            stuck.push(task);
        }
    }
    Ok(stuck)
}

#[test]
fn outage_fails_every_call_and_recovers() -> anyhow::Result<()> {
    let mut cluster = TestCluster::start_own()?;
    let (mounted, file) = mounted_offline(&mut cluster, &[])?;
    // All calls at the same time; each must return.
    let (tell, told) = mpsc::channel();
    let calls: [fn(&Path, &File); 8] = [
        |_, file| drop(file.read_at(&mut [0; 4096], 0)),
        |_, file| drop(file.write_at(&[2; 4096], 4096)),
        |_, file| drop(file.sync_all()),
        |_, file| drop(file.set_len(32 << 20)),
        |tree, _| drop(fs::metadata(tree.join("volume/v"))),
        |tree, _| drop(fs::read(tree.join("vdi/list"))),
        |tree, _| drop(fs::write(tree.join("vdi/create"), "w 16M")),
        |tree, _| {
            let _ = statvfs(tree);
        },
    ];
    for (number, call) in calls.into_iter().enumerate() {
        let (tree, file, tell) = (mounted.mountpoint(), file.try_clone()?, tell.clone());
        thread::spawn(move || {
            call(&tree, &file);
            // The receiver is gone if the test has failed.
            let _ = tell.send(number);
        });
    }
    let mut left: Vec<usize> = (0..calls.len()).collect();
    while !left.is_empty() {
        let returned = told.recv_timeout(EVENT_LIMIT);
        let returned = returned.with_context(|| format!("calls {left:?} do not return"))?;
        left.retain(|number| *number != returned);
    }
    // No thread of the test or of sheepfs is left in uninterruptible sleep.
    for process in ["self".to_owned(), mounted.process_id().to_string()] {
        let process = Path::new("/proc").join(process);
        wait_until("no thread is stuck", EVENT_LIMIT, || {
            Ok(stuck_in(&process)?.is_empty())
        })?;
    }

    // Once the sheep is back, the volume has the writes before and after the outage.
    cluster.own_sheep()?.start_again()?;
    wait_until("the volume answers", EVENT_LIMIT, || {
        Ok(file.write_all_at(&[3; 4096], 4096).is_ok())
    })?;
    let mut found = [0; 8192];
    file.read_exact_at(&mut found, 0)?;
    ensure!(found[..4096] == [1; 4096] && found[4096..] == [3; 4096]);
    drop(file);
    mounted.stop()
}

#[test]
fn outage_timeout_applies_once_per_walk() -> anyhow::Result<()> {
    /// Less than the timeouts of two reports.
    const REPORTS: Duration = Duration::from_secs(11);
    /// Less than the timeouts of three volumes.
    const VOLUMES: Duration = Duration::from_secs(6);
    let mut cluster = TestCluster::start_own()?;
    let mounted = Mounted::start(&cluster, &[])?;
    for name in ["a", "b", "c", "d", "e"] {
        mounted.create(name, "4M")?;
    }
    // Attributes of a volume are cached for a second.
    thread::sleep(Duration::from_millis(1100));
    cluster.own_sheep()?.signal(Signal::SIGSTOP)?;
    let find = |start: PathBuf, limit: Duration| -> anyhow::Result<_> {
        let asked = Instant::now();
        let found = tests::output(6 * limit, Command::new("find").arg(start).arg("-ls"))?;
        let took = asked.elapsed();
        println!("find: {took:?}");
        ensure!(took < limit, "find took {took:?}");
        Ok((String::from_utf8(found.stdout)?, found.stderr))
    };
    let (found, missing) = find(mounted.path("volume"), VOLUMES)?;
    ensure!(
        found.contains("volume/e") && missing.is_empty(),
        "{missing}"
    );
    let (found, missing) = find(mounted.mountpoint(), REPORTS)?;
    ensure!(found.contains("volume/e") && found.contains("vdi/create"));
    assert_eq!(missing.lines().count(), 8, "not all reports: {missing}");
    let asked = Instant::now();
    ensure!(statvfs(&mounted.mountpoint()).is_err());
    ensure!(asked.elapsed() < REPORTS, "df: {:?}", asked.elapsed());

    cluster.own_sheep()?.signal(Signal::SIGCONT)?;
    wait_until("the reports are back", Duration::from_secs(2), || {
        Ok(mounted.report("vdi/list").is_ok() && statvfs(&mounted.mountpoint()).is_ok())
    })?;
    mounted.stop()
}

#[test]
fn outage_ends_when_gateway_is_switched() -> anyhow::Result<()> {
    let mut cluster = TestCluster::start_own()?;
    let mounted = Mounted::start(&cluster, &[])?;
    let other = TestCluster::start_own()?;
    cluster.own_sheep()?.signal(Signal::SIGSTOP)?;
    ensure!(mounted.report("node/list").is_err());
    mounted.command("config/sheep_info", other.address())?;
    ensure!(mounted.report("node/list")?.contains(other.address()));
    cluster.own_sheep()?.signal(Signal::SIGCONT)?;
    mounted.stop()
}

fn assert_ends(arguments: &[&str], unmount: bool) -> anyhow::Result<()> {
    let mut cluster = TestCluster::start_own()?;
    let (mut mounted, file) = mounted_offline(&mut cluster, arguments)?;
    drop(file);
    let asked = Instant::now();
    if unmount {
        run(Command::new("umount").arg(mounted.mountpoint()))?;
    } else {
        mounted.signal(Signal::SIGTERM)?;
    }
    let status = mounted.wait()?;
    let took = asked.elapsed();
    println!("{arguments:?}, umount {unmount}: {status} after {took:?}");
    ensure!(took < AT_MOST, "it took {took:?}");
    ensure!(!is_mounted(&mounted.mountpoint())?, "its mount is left");
    ensure!(status.success(), "it ended with {status}");
    Ok(())
}

#[test]
fn outage_allows_unmount() -> anyhow::Result<()> {
    assert_ends(&[], true)?;
    assert_ends(&["--pagecache"], true)
}

#[test]
fn outage_allows_sigterm() -> anyhow::Result<()> {
    assert_ends(&[], false)?;
    assert_ends(&["--pagecache"], false)
}
