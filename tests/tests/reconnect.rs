//! Restarts of a server under load: users see a pause and no error.

use std::fs::{self, File};
use std::os::unix::fs::FileExt as _;
use std::time::Duration;

use anyhow::ensure;
use nix::errno::Errno;
use tests::{Mounted, TestCluster, run, seeded, under_load, wait_until};

/// 16 MiB in blocks of 4 KiB: most first writes create an object.
const BLOCKS: usize = 4096;
const SIZE: &str = "16M object_size=1M";

#[test]
fn reconnect_after_kill_loses_no_acknowledged_write() -> anyhow::Result<()> {
    let mut cluster = TestCluster::start_own()?;
    let mounted = Mounted::start(&cluster, &[])?;
    let name = cluster.unique_name("killed");
    let path = mounted.create(&name, SIZE)?;

    let acknowledged = under_load(&path, BLOCKS, &mut seeded(), |progress| {
        for _ in 0..4 {
            progress.wait_for_more()?;
            let sheep = cluster.own_sheep()?;
            sheep.kill()?;
            sheep.start_again()?;
        }
        progress.wait_for_more()
    })?;

    acknowledged.check(&path)?;
    mounted.stop()?;
    let mounted = Mounted::start(&cluster, &[])?;
    acknowledged.check(&mounted.attach(&name)?)
}

#[test]
fn reconnect_after_clean_shutdown_loses_no_acknowledged_write() -> anyhow::Result<()> {
    let mut cluster = TestCluster::start_own()?;
    let mounted = Mounted::start(&cluster, &["--pagecache"])?;
    let name = cluster.unique_name("ended");
    let path = mounted.create(&name, SIZE)?;

    let acknowledged = under_load(&path, BLOCKS, &mut seeded(), |progress| {
        progress.wait_for_more()?;
        cluster.restart_if_own()?;
        progress.wait_for_more()
    })?;

    run(std::process::Command::new("sync").arg(&path))?;
    mounted.stop()?;
    let mounted = Mounted::start(&cluster, &[])?;
    acknowledged.check(&mounted.attach(&name)?)
}

#[test]
fn retry_timeout_ends_requests_with_eio_then_recovers() -> anyhow::Result<()> {
    let mut cluster = TestCluster::start_own()?;
    let mounted = Mounted::start(&cluster, &["--retry-for", "2"])?;
    let path = mounted.create(&cluster.unique_name("gone"), "8M")?;
    let file = File::options().read(true).write(true).open(&path)?;
    file.write_all_at(b"before", 0)?;

    cluster.own_sheep()?.kill()?;
    let errno = |result: std::io::Result<()>| Some(Errno::from_raw(result.err()?.raw_os_error()?));
    ensure!(errno(file.write_all_at(b"x", 100)) == Some(Errno::EIO));
    ensure!(errno(file.read_exact_at(&mut [0; 6], 0)) == Some(Errno::EIO));
    let report = fs::read_to_string(mounted.path("cluster/info"));
    ensure!(
        matches!(
            errno(report.map(|_| ())),
            Some(Errno::EIO | Errno::EHOSTUNREACH)
        ),
        "a report without a server is not an error"
    );

    cluster.own_sheep()?.start_again()?;
    wait_until("the volume answers again", Duration::from_secs(30), || {
        Ok(file.write_all_at(b"after", 100).is_ok())
    })?;
    let mut found = [0; 105];
    file.read_exact_at(&mut found, 0)?;
    ensure!(&found[..6] == b"before" && &found[100..] == b"after");
    mounted.report("cluster/info")?;
    Ok(())
}
