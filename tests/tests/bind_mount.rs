//! A bind mount of one file of the tree, as in a container: it refers to the inode, not to
//! the name.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use nix::errno::Errno;
use tests::{
    BindMount, MIB_U64, Mounted, TestCluster, errno, open, read_by_mmap, read_by_sendfile,
    read_by_splice, wait_until,
};

/// Longest time from the last close(2) to the RELEASE request.
const CLOSE_LIMIT: Duration = Duration::from_secs(5);

/// Runs `test` with direct I/O and with the page cache.
fn each_way(test: fn(&Mounted, &str) -> anyhow::Result<()>) -> anyhow::Result<()> {
    let cluster = TestCluster::start()?;
    for arguments in [&[][..], &["--pagecache"]] {
        let mounted = Mounted::start(&cluster, arguments)?;
        test(&mounted, &cluster.unique_name("bind")).with_context(|| format!("{arguments:?}"))?;
    }
    Ok(())
}

/// Runs a command that is refused until the last close has arrived.
fn when_closed(mounted: &Mounted, file: &str, line: &str) -> anyhow::Result<()> {
    wait_until("the close has arrived", CLOSE_LIMIT, || {
        match errno(mounted.command(file, line)) {
            None => Ok(true),
            Some(Errno::EBUSY) => Ok(false),
            Some(other) => anyhow::bail!("{file}: {line}: {other}"),
        }
    })
}

/// Checks that a file starts with `expected` in every way to read it, in spite of the
/// page cache.
fn shows(path: &Path, len: u64, expected: &[u8]) -> anyhow::Result<()> {
    ensure!(fs::metadata(path)?.len() == len, "another size");
    let file = File::open(path)?;
    for (how, bytes) in [
        ("sendfile", read_by_sendfile(&file)?),
        ("splice", read_by_splice(&file)?),
        ("read", fs::read(path)?),
    ] {
        ensure!(bytes.len() as u64 == len, "{how}: {} bytes", bytes.len());
        let (start, rest) = bytes.split_at(expected.len());
        ensure!(start == expected, "{how}: {}", start.escape_ascii());
        ensure!(rest.iter().all(|&byte| byte == 0), "{how}: more than that");
    }
    let mapped = read_by_mmap(path, expected.len())?;
    ensure!(mapped == expected, "mmap: {}", mapped.escape_ascii());
    Ok(())
}

fn write(path: &Path, bytes: &[u8]) -> anyhow::Result<()> {
    let file = open(path)?;
    file.write_all_at(bytes, 0)?;
    Ok(file.sync_all()?)
}

#[test]
fn bind_mount_of_volume_survives_rollback() -> anyhow::Result<()> {
    each_way(|mounted, name| {
        let path = mounted.create(name, "4M object_size=1M")?;
        let bound = BindMount::of(&path)?;
        write(&bound.path(), b"before the snapshot")?;
        mounted.command("vdi/snapshot", format!("{name} tag"))?;
        write(&bound.path(), b"after  the snapshot")?;
        mounted.command("vdi/resize", format!("{name} 6M"))?;
        shows(&bound.path(), 6 * MIB_U64, b"after  the snapshot")?;
        let number = fs::metadata(bound.path())?.ino();

        let open_file = File::open(bound.path())?;
        let refused = mounted.command("vdi/rollback", format!("{name}@tag"));
        ensure!(errno(refused) == Some(Errno::EBUSY), "it was open");
        drop(open_file);
        when_closed(mounted, "vdi/rollback", &format!("{name}@tag"))?;

        shows(&bound.path(), 4 * MIB_U64, b"before the snapshot")?;
        ensure!(fs::metadata(bound.path())?.ino() == number);
        write(&bound.path(), b"after  the rollback")?;
        shows(&path, 4 * MIB_U64, b"after  the rollback")
    })
}

#[test]
fn bind_mount_of_volume_survives_detach_and_attach() -> anyhow::Result<()> {
    each_way(|mounted, name| {
        let path = mounted.create(name, "4M object_size=1M")?;
        let bound = BindMount::of(&path)?;
        write(&bound.path(), b"the first of its name")?;
        shows(&bound.path(), 4 * MIB_U64, b"the first of its name")?;
        let number = fs::metadata(&path)?.ino();

        when_closed(mounted, "vdi/unmount", name)?;
        for (operation, outcome) in [
            ("stat", errno(fs::metadata(bound.path()))),
            ("open", errno(File::open(bound.path()))),
            ("truncate", errno(truncate(&bound.path()))),
        ] {
            ensure!(
                matches!(outcome, Some(Errno::ESTALE | Errno::ENOENT)),
                "{operation} while detached: {outcome:?}"
            );
        }
        mounted.attach(name)?;
        shows(&bound.path(), 4 * MIB_U64, b"the first of its name")?;

        // Another VDI of that name, of another size and with less data.
        when_closed(mounted, "vdi/delete", name)?;
        mounted.create(name, "2M object_size=1M")?;
        shows(&bound.path(), 2 * MIB_U64, b"")?;
        write(&bound.path(), b"the second")?;
        shows(&path, 2 * MIB_U64, b"the second")?;
        when_closed(mounted, "vdi/delete", name)?;
        mounted.create(name, "8M object_size=4M")?;
        shows(&bound.path(), 8 * MIB_U64, b"")?;
        ensure!(fs::metadata(&path)?.ino() == number);
        Ok(())
    })
}

fn truncate(path: &Path) -> std::io::Result<()> {
    Ok(nix::unistd::truncate(path, 0)?)
}

#[test]
fn bind_mount_never_leads_to_another_name() -> anyhow::Result<()> {
    each_way(|mounted, name| {
        let other = format!("{name}-other");
        let path = mounted.create(name, "4M object_size=1M")?;
        let bound = BindMount::of(&path)?;
        write(&bound.path(), b"one")?;
        let number = fs::metadata(&path)?.ino();
        mounted.create_unattached(&other, "4M object_size=1M")?;

        when_closed(mounted, "vdi/unmount", name)?;
        let path = mounted.attach(&other)?;
        write(&path, b"two")?;
        ensure!(fs::metadata(&path)?.ino() != number, "the same number");
        let opened = errno(File::open(bound.path()));
        ensure!(matches!(opened, Some(Errno::ESTALE | Errno::ENOENT)));
        mounted.attach(name)?;
        shows(&bound.path(), 4 * MIB_U64, b"one")
    })
}
