//! Unmounting after the last sheep of the cluster has ended.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::ensure;
use tests::{Mounted, TestCluster, is_mounted, run};

/// Documented limit of a shutdown.
const AT_MOST: Duration = Duration::from_secs(10);

/// Writes to a volume, kills the last sheep, unmounts; returns whether that succeeded and
/// the log since the kill.
fn unmount_without_a_sheep(arguments: &[&str], unwritten: bool) -> anyhow::Result<(bool, String)> {
    let mut cluster = TestCluster::start_own()?;
    let mut mounted = Mounted::start(&cluster, arguments)?;
    let path = mounted.create("v", "16M object_size=1M")?;
    let file = File::options().read(true).write(true).open(path)?;
    file.write_all_at(&[1; 4096], 0)?;
    file.sync_all()?;
    let logged = mounted.log().len();
    cluster.own_sheep()?.kill()?;
    if unwritten {
        file.write_all_at(&[2; 4096], 4096)?;
    }
    drop(file);
    let asked = Instant::now();
    run(Command::new("umount").arg(mounted.mountpoint()))?;
    let status = mounted.wait()?;
    let took = asked.elapsed();
    ensure!(took < AT_MOST, "it took {took:?}");
    ensure!(!is_mounted(&mounted.mountpoint())?, "its mount is left");
    let log = mounted.log();
    Ok((status.success(), log[logged..].to_owned()))
}

#[test]
fn unmount_offline_without_dirty_data_succeeds() -> anyhow::Result<()> {
    for arguments in [&[][..], &["--pagecache"]] {
        let (success, log) = unmount_without_a_sheep(arguments, false)?;
        ensure!(success, "{arguments:?}: it failed: {log}");
        ensure!(!log.contains("lock"), "a word about locks: {log}");
    }
    Ok(())
}

#[test]
fn unmount_offline_with_dirty_data_fails() -> anyhow::Result<()> {
    let (success, log) = unmount_without_a_sheep(&["--pagecache"], true)?;
    ensure!(!success, "what was lost is a success: {log}");
    Ok(())
}
