//! sheepfs killed at random moments, again and again, with writers at work.

use std::fs;
use std::os::unix::fs::MetadataExt as _;

use anyhow::{Context as _, ensure};
use nix::sys::signal::Signal;
use tests::{Acknowledge, Mounted, NumberedWriters, TestCluster, is_mounted, seeded};

/// Times that sheepfs is killed.
const KILLS: u32 = 6;

/// Kills sheepfs while numbered writers run, and looks after each kill for
/// what was acknowledged.
fn loses_nothing(arguments: &[&str], acknowledge: Acknowledge) -> anyhow::Result<()> {
    let cluster = TestCluster::start()?;
    let administrator = Mounted::start(&cluster, &[])?;
    let name = cluster.unique_name("killed");
    administrator.command("vdi/create", format!("{name} 16M object_size=1M"))?;
    let writers = NumberedWriters::new(4, 1024);
    let mut random = seeded();
    for kill in 0..KILLS {
        // With a snapshot every object has to be made anew.
        if kill > 0 && random.bool() {
            let snapshot = format!("{name} tag{kill}");
            administrator.command("vdi/snapshot", snapshot)?;
        }
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

        let mounted = Mounted::start(&cluster, arguments)?;
        let path = mounted.attach(&name)?;
        let (oldest, newest) = (writers.acknowledged(), writers.begun());
        match acknowledge {
            Acknowledge::EachWrite => writers.check(&path, &oldest, &newest),
            // The kernel writes back in any order.
            Acknowledge::Fsync => writers.check_any_after(&path, &oldest, &newest),
        }
        .with_context(|| format!("after kill {kill}"))?;
        mounted.stop()?;
    }

    // Whatever was left over takes no part in anything: what remains can be
    // written, given back, and deleted.
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
fn what_was_acknowledged_is_there_after_every_kill() -> anyhow::Result<()> {
    loses_nothing(&[], Acknowledge::EachWrite)
}

#[test]
fn what_fsync_acknowledged_through_the_page_cache_is_there_after_every_kill() -> anyhow::Result<()>
{
    loses_nothing(&["--pagecache"], Acknowledge::Fsync)
}
