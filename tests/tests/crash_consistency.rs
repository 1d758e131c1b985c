//! sheepfs killed at random moments, again and again, with writers at work.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use nix::sys::signal::Signal;
use tempfile::TempDir;
use tests::{
    AckPolicy, DurabilityChecker, Mounted, TestCluster, is_mounted, run, seeded, sheepfs_binary,
    wait_until,
};

/// Times that sheepfs is killed.
const KILLS: u32 = 6;
/// Times that sheepfs is killed while it starts, each a little later than the last.
const KILLS_AT_START: u32 = 40;

/// Kills sheepfs while numbered writers run, and checks the acknowledged writes after each
/// kill.
fn loses_nothing(arguments: &[&str], acknowledge: AckPolicy) -> anyhow::Result<()> {
    let cluster = TestCluster::start()?;
    let administrator = Mounted::start(&cluster, &[])?;
    let name = cluster.unique_name("killed");
    administrator.create_unattached(&name, "16M object_size=1M")?;
    let writers = DurabilityChecker::new(4, 1024);
    let mut random = seeded();
    for kill in 0..KILLS {
        // After a snapshot every object has to be copied up.
        if kill > 0 && random.bool() {
            let snapshot = format!("{name} tag{kill}");
            administrator.command("vdi/snapshot", snapshot)?;
        }
        // Kills the mount after a random number of writes.
        let mut mounted = Mounted::start(&cluster, arguments)?;
        let path = mounted.attach(&name)?;
        let ((), errors) = writers.run(&path, acknowledge, || {
            // Creations come first, overwrites later.
            writers.wait_for_more(random.u64(1..200))?;
            if random.u8(0..4) == 0 {
                let snapshot = format!("{name} during{kill}");
                administrator.command("vdi/snapshot", snapshot)?;
            }
            mounted.signal(Signal::SIGKILL)?;
            mounted.wait()?;
            ensure!(is_mounted(&mounted.mountpoint())?, "its mount went as well");
            Ok(())
        })?;
        println!("kill {kill}: {:?}, {errors:?}", writers.acknowledged());
        drop(mounted);

        // A new mount has every acknowledged write.
        let mounted = Mounted::start(&cluster, arguments)?;
        let path = mounted.attach(&name)?;
        let (oldest, newest) = (writers.acknowledged(), writers.begun());
        match acknowledge {
            AckPolicy::EachWrite => writers.check(&path, &oldest, &newest),
            // The kernel writes back in any order.
            AckPolicy::Fsync => writers.check_any_after(&path, &oldest, &newest),
        }
        .with_context(|| format!("after kill {kill}"))?;
        mounted.stop()?;
    }

    // Orphans do no harm: the volume can be filled, and the VDI deleted.
    let mounted = Mounted::start(&cluster, arguments)?;
    let path = mounted.attach(&name)?;
    fs::write(&path, vec![7; 16 << 20])?;
    ensure!(fs::read(&path)? == vec![7; 16 << 20]);
    ensure!(fs::metadata(&path)?.blocks() * 512 == 16 << 20);
    mounted.stop()?;
    administrator.command("vdi/delete", &name)?;
    ensure!(
        !administrator
            .report("vdi/list")?
            .contains(&format!("  {name} "))
    );
    Ok(())
}

#[test]
fn crash_keeps_acknowledged_writes() -> anyhow::Result<()> {
    loses_nothing(&[], AckPolicy::EachWrite)
}

#[test]
fn crash_keeps_fsynced_writes_with_page_cache() -> anyhow::Result<()> {
    loses_nothing(&["--pagecache"], AckPolicy::Fsync)
}

/// While it starts, sheepfs makes requests of its own mount. A thread that waited for
/// one would keep the killed process, and with it the connection, for ever.
#[test]
fn crash_during_startup_leaves_unmountable_mount() -> anyhow::Result<()> {
    let cluster = TestCluster::start()?;
    let mut mounts = 0;
    for kill in 0..KILLS_AT_START {
        // Kept when the test fails, because to remove it could wait for ever as well.
        let mountpoint = TempDir::with_prefix("sheepfs-test-mount-")?.keep();
        let mut sheepfs = Command::new(sheepfs_binary()?)
            .args(["--foreground", "--address", cluster.address()])
            .arg(&mountpoint)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        // From before the mount until well after it.
        wait_until("it has begun", Duration::from_secs(30), || {
            Ok(is_mounted(&mountpoint)? || kill % 8 == 0)
        })?;
        thread::sleep(Duration::from_millis(2) * kill);
        sheepfs.kill()?;
        wait_until("it has ended", Duration::from_secs(30), || {
            Ok(sheepfs.try_wait()?.is_some())
        })
        .with_context(|| format!("kill {kill}"))?;
        if is_mounted(&mountpoint)? {
            mounts += 1;
            run(Command::new("umount").arg(&mountpoint))?;
        }
        fs::remove_dir(mountpoint)?;
    }
    ensure!(mounts > 0, "each was killed before it had mounted");
    Ok(())
}
