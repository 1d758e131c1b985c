//! Two mounts: volumes change through one while they are open through the other.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use nix::errno::Errno;
use tests::{
    AckPolicy, DurabilityChecker, MIB_U64, Mounted, TestCluster, detach, errno, open, wait_until,
};

/// Longest time until an open volume shows changes by the other client.
const NOTICE_LIMIT: Duration = Duration::from_secs(10);

/// Detaches after the last close, if attached, and deletes.
fn delete(mounted: &Mounted, targets: &[&str]) -> anyhow::Result<()> {
    for target in targets {
        wait_until("the close has arrived", Duration::from_secs(5), || {
            let detached = errno(mounted.command("vdi/unmount", target));
            Ok(matches!(detached, None | Some(Errno::ENOENT)))
        })?;
        mounted
            .command("vdi/delete", target)
            .with_context(|| format!("vdi/delete: {target}"))?;
    }
    Ok(())
}

/// Waits until `file` gives EIO or ESTALE; until then, only what it had.
fn assert_goes_stale(file: &File, had: &[u8]) -> anyhow::Result<()> {
    let mut found = vec![0; had.len()];
    wait_until("the volume is stale", NOTICE_LIMIT, || {
        match errno(file.read_exact_at(&mut found, 0)) {
            None => {
                // A removed object reads as zeros.
                let zeros = found.iter().all(|&byte| byte == 0);
                ensure!(
                    found == had || zeros,
                    "other data: {}",
                    found.escape_ascii()
                );
                Ok(false)
            }
            Some(Errno::EIO | Errno::ESTALE) => Ok(true),
            other => anyhow::bail!("{other:?}"),
        }
    })?;
    let written = errno(file.write_all_at(b"lost", 0));
    ensure!(
        matches!(written, Some(Errno::EIO | Errno::ESTALE)),
        "a write to a stale volume: {written:?}"
    );
    Ok(())
}

#[test]
fn multi_client_resize_is_seen_within_two_seconds() -> anyhow::Result<()> {
    let cluster = TestCluster::start()?;
    let (user, administrator) = (
        Mounted::start(&cluster, &[])?,
        Mounted::start(&cluster, &[])?,
    );
    let name = cluster.unique_name("resized");
    let path = user.create(&name, "4M object_size=1M")?;
    let file = open(&path)?;
    file.write_all_at(b"kept", 0)?;
    administrator.command("vdi/resize", format!("{name} 9M"))?;
    wait_until("the size shows", Duration::from_secs(2), || {
        Ok(file.metadata()?.len() == 9 * MIB_U64)
    })?;
    file.write_all_at(b"end", 9 * MIB_U64 - 3)?;
    assert_eq!(
        errno(file.write_at(b"x", 9 * MIB_U64)),
        Some(Errno::ENOSPC),
        "past the new end"
    );

    let seen = fs::read(administrator.attach(&name)?)?;
    ensure!(seen.starts_with(b"kept") && seen.ends_with(b"\0end"));
    drop(file);
    administrator.command("vdi/unmount", &name)?;
    delete(&user, &[&name])
}

#[test]
fn snapshot_under_load_is_crash_consistent() -> anyhow::Result<()> {
    const SNAPSHOTS: u32 = 12;
    /// Between two snapshots, so that none is like the one before.
    const WRITES: u64 = 5;
    let cluster = TestCluster::start()?;
    let (user, administrator) = (
        Mounted::start(&cluster, &[])?,
        Mounted::start(&cluster, &[])?,
    );
    let name = cluster.unique_name("frozen");
    let path = user.create(&name, "8M object_size=1M")?;
    let writers = DurabilityChecker::new(4, 512);
    // Records for each snapshot the writes acknowledged before it and those begun by its end.
    let (bounds, errors) = writers.run(&path, AckPolicy::EachWrite, || {
        let mut bounds = Vec::new();
        for number in 0..SNAPSHOTS {
            writers.wait_for_more(WRITES)?;
            let oldest = writers.acknowledged();
            administrator
                .command("vdi/snapshot", format!("{name} tag{number}"))
                .context("vdi/snapshot")?;
            bounds.push((oldest, writers.begun()));
        }
        writers.wait_for_more(WRITES)?;
        Ok(bounds)
    })?;
    ensure!(errors.is_empty(), "{errors:?}");

    // The head has every write, and each snapshot a consistent set within its bounds.
    let last = writers.acknowledged();
    println!("after {SNAPSHOTS} snapshots: {last:?}");
    writers
        .check(&path, &last, &last)
        .context("the volume itself")?;
    // Each snapshot is deleted after its check.
    for (number, (oldest, newest)) in bounds.iter().enumerate() {
        let target = format!("{name}@tag{number}");
        let path = administrator.attach(&target)?;
        writers
            .check(&path, oldest, newest)
            .context(target.clone())?;
        delete(&administrator, &[&target])?;
    }
    writers
        .check(&path, &last, &last)
        .context("the volume without its snapshots")?;
    delete(&user, &[&name])
}

#[test]
fn multi_client_rollback_never_shows_foreign_data() -> anyhow::Result<()> {
    let cluster = TestCluster::start()?;
    let (user, administrator) = (
        Mounted::start(&cluster, &[])?,
        Mounted::start(&cluster, &[])?,
    );
    let name = cluster.unique_name("back");
    let path = user.create(&name, "4M object_size=1M")?;
    let file = open(&path)?;
    file.write_all_at(b"before the snapshot", 0)?;
    administrator.command("vdi/snapshot", format!("{name} tag"))?;
    file.write_all_at(b"after  the snapshot", 0)?;
    administrator.command("vdi/rollback", format!("{name}@tag"))?;
    assert_goes_stale(&file, b"after  the snapshot")?;
    drop(file);
    detach(&user, &name)?;
    let file = open(&user.attach(&name)?)?;
    let mut found = [0; 19];
    file.read_exact_at(&mut found, 0)?;
    assert_eq!(&found, b"before the snapshot");
    file.write_all_at(b"written", MIB_U64)?;
    drop(file);
    delete(&user, &[&name, &format!("{name}@tag")])
}

#[test]
fn multi_client_deletion_never_shows_foreign_data() -> anyhow::Result<()> {
    let cluster = TestCluster::start()?;
    for arguments in [&[][..], &["--pagecache"]] {
        let (user, administrator) = (
            Mounted::start(&cluster, arguments)?,
            Mounted::start(&cluster, arguments)?,
        );
        // A file that is open while another mount deletes its VDI and creates one of the same
        // name.
        let name = cluster.unique_name("gone");
        let path = user.create(&name, "4M object_size=1M")?;
        fs::write(&path, "old data")?;
        File::open(&path)?.sync_all()?;
        let file = open(&path)?;
        administrator.command("vdi/delete", &name)?;
        fs::write(
            administrator.create(&name, "8M object_size=1M")?,
            "new data",
        )?;
        File::open(administrator.volume(&name))?.sync_all()?;
        // Without a page cache every access fails once the deletion is noticed.
        if arguments.is_empty() {
            assert_goes_stale(&file, b"old data")?;
        } else {
            // The page cache may still have old bytes, but never a mix.
            let mut found = [0; 8];
            if file.read_exact_at(&mut found, 0).is_ok() {
                ensure!(found == *b"old data" || found == [0; 8], "{found:?}");
            }
        }
        // Attached again, the file is the new VDI.
        drop(file);
        detach(&user, &name)?;
        let path = user.attach(&name)?;
        let bytes = fs::read(&path)?;
        assert_eq!(bytes.len() as u64, 8 * MIB_U64);
        ensure!(bytes.starts_with(b"new data"), "old data after re-creation");
        ensure!(bytes[8..].iter().all(|&byte| byte == 0));
        user.command("vdi/unmount", &name)?;
        delete(&administrator, &[&name])?;
    }
    Ok(())
}

#[test]
fn multi_client_clone_is_independent() -> anyhow::Result<()> {
    let cluster = TestCluster::start()?;
    let (user, administrator) = (
        Mounted::start(&cluster, &[])?,
        Mounted::start(&cluster, &[])?,
    );
    let (name, clone) = (cluster.unique_name("base"), cluster.unique_name("clone"));
    let tagged = format!("{name}@tag");
    let file = open(&user.create(&name, "4M object_size=1M")?)?;
    file.write_all_at(b"both", 0)?;
    administrator.command("vdi/snapshot", format!("{name} tag"))?;
    administrator.command("vdi/clone", format!("{tagged} {clone}"))?;
    let other = open(&administrator.attach(&clone)?)?;
    let blocks = other.metadata()?.blocks();
    file.write_all_at(b"base", MIB_U64)?;
    other.write_all_at(b"copy", 0)?;
    other.write_all_at(b"copy", 2 * MIB_U64)?;

    for (file, expected) in [
        (&file, [b"both", b"base", &[0; 4]]),
        (&other, [b"copy", &[0; 4], b"copy"]),
    ] {
        for (offset, expected) in (0..).step_by(1 << 20).zip(expected) {
            let mut found = [0; 4];
            file.read_exact_at(&mut found, offset)?;
            assert_eq!(&found, expected, "at {offset}");
        }
    }
    let snapshot = fs::read(user.attach(&tagged)?)?;
    ensure!(snapshot.starts_with(b"both"));
    ensure!(snapshot[4..].iter().all(|&byte| byte == 0));
    wait_until("its own objects show", NOTICE_LIMIT, || {
        Ok(other.metadata()?.blocks() > blocks)
    })?;
    drop((file, other));
    delete(&administrator, &[&clone])?;
    delete(&user, &[&tagged, &name])
}
