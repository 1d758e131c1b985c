//! Sparse files: holes take no space, in the volume and in copies of it.

use std::fs::{self, File};
use std::os::fd::AsFd as _;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, fallocate};
use nix::unistd::{Whence, lseek};
use tempfile::TempDir;
use tests::{MIB_U64, Mounted, TestCluster, detach, exists, open, run, seeded, wait_until};

/// Largest size on disk of a copy of some bytes, with the metadata of the file system.
const SMALL: u64 = 8 * MIB_U64;

fn discard(mounted: &Mounted, name: &str) -> anyhow::Result<()> {
    detach(mounted, name)?;
    Ok(mounted.command("vdi/delete", name)?)
}

/// Data at both ends of a large hole.
fn fill(file: &File, len: u64) -> anyhow::Result<()> {
    let mut bytes = vec![0; 1 << 20];
    seeded().fill(&mut bytes);
    file.write_all_at(&bytes, 3 * MIB_U64)?;
    file.write_all_at(b"the end", len - 7)?;
    Ok(())
}

#[test]
fn sparse_copy_from_volume_keeps_holes() -> anyhow::Result<()> {
    const LEN: u64 = 512 * MIB_U64;
    let cluster = TestCluster::start()?;
    let mounted = Mounted::start(&cluster, &[])?;
    let name = cluster.unique_name("out");
    let volume = mounted.create(&name, "512M object_size=1M")?;
    fill(&open(&volume)?, LEN)?;
    let scratch = TempDir::with_prefix("sheepfs-test-sparse-")?;
    for (program, arguments) in [
        ("cp", &["--sparse=auto"][..]),
        ("cp", &["--sparse=always"]),
        ("qemu-img", &["convert", "-f", "raw", "-O", "raw"]),
        ("qemu-img", &["convert", "-f", "raw", "-O", "qcow2"]),
        ("rsync", &["--sparse"]),
    ] {
        let copy = scratch.path().join("copy");
        run(Command::new(program)
            .args(arguments)
            .arg(&volume)
            .arg(&copy))?;
        let used = fs::metadata(&copy)?.blocks() * 512;
        ensure!(
            (MIB_U64..SMALL).contains(&used),
            "{program} {arguments:?}: {used} bytes"
        );
        if !arguments.contains(&"qcow2") {
            run(Command::new("cmp").arg(&volume).arg(&copy))?;
        }
        fs::remove_file(copy)?;
    }
    discard(&mounted, &name)
}

#[test]
fn sparse_copy_into_volume_keeps_holes() -> anyhow::Result<()> {
    const LEN: u64 = 256 * MIB_U64;
    let cluster = TestCluster::start()?;
    let mounted = Mounted::start(&cluster, &[])?;
    let scratch = TempDir::with_prefix("sheepfs-test-sparse-")?;
    let image = scratch.path().join("image");
    let file = File::create(&image)?;
    file.set_len(LEN)?;
    fill(&file, LEN)?;
    for (program, arguments) in [
        ("cp", &["--sparse=always"][..]),
        ("qemu-img", &["convert", "-n", "-f", "raw", "-O", "raw"]),
        ("rsync", &["--sparse", "--inplace"]),
    ] {
        let name = cluster.unique_name("into");
        let volume = mounted.create(&name, "256M object_size=1M")?;
        run(Command::new(program)
            .args(arguments)
            .arg(&image)
            .arg(&volume))?;
        run(Command::new("cmp").arg(&volume).arg(&image))?;
        let mut used = 0;
        wait_until("its blocks show", Duration::from_secs(5), || {
            used = fs::metadata(&volume)?.blocks() * 512;
            Ok(used > 0)
        })?;
        ensure!(used < SMALL, "{program} {arguments:?}: {used} bytes");
        discard(&mounted, &name)?;
    }
    Ok(())
}

/// Each read of a hole asks the cluster, so that blocks of 4 KiB would be slow.
#[test]
fn volume_is_read_in_large_blocks() -> anyhow::Result<()> {
    let cluster = TestCluster::start()?;
    let mounted = Mounted::start(&cluster, &[])?;
    let name = cluster.unique_name("blocks");
    let volume = mounted.create(&name, "8M")?;
    assert_eq!(fs::metadata(&volume)?.blksize(), MIB_U64);
    discard(&mounted, &name)
}

/// Where data starts and ends, as a program that copies holes finds out.
fn data(file: &File) -> anyhow::Result<Vec<(u64, u64)>> {
    let mut found = Vec::new();
    let mut at = 0;
    loop {
        let start = match lseek(file.as_fd(), at, Whence::SeekData) {
            Ok(start) => start,
            Err(Errno::ENXIO) => return Ok(found),
            Err(error) => return Err(error).context("SEEK_DATA"),
        };
        at = lseek(file.as_fd(), start, Whence::SeekHole).context("SEEK_HOLE")?;
        ensure!(at > start, "a hole at {start}, where data starts");
        found.push((u64::try_from(start)?, u64::try_from(at)?));
    }
}

/// Runs of written objects as byte ranges.
fn ranges(written: &[bool], object: u64, len: u64) -> Vec<(u64, u64)> {
    let mut ranges: Vec<(u64, u64)> = Vec::new();
    for (number, _) in (0..).zip(written).filter(|(_, written)| **written) {
        let (start, end) = (number * object, len.min((number + 1) * object));
        match ranges.last_mut() {
            Some(last) if last.1 == start => last.1 = end,
            _ => ranges.push((start, end)),
        }
    }
    ranges
}

#[test]
fn sparse_seek_finds_data_and_holes() -> anyhow::Result<()> {
    let cluster = TestCluster::start()?;
    let mounted = Mounted::start(&cluster, &[])?;
    for (options, object, objects) in [
        ("object_size=1M", MIB_U64, 50),
        ("object_size=2M", 2 * MIB_U64, 20),
        ("object_size=4M", 4 * MIB_U64, 20),
        ("hyper", 4 * MIB_U64, 20),
    ] {
        if !exists(options) {
            continue;
        }
        // A fresh volume has no data; writes to random objects allocate just these.
        let len = object * objects - 1000;
        let name = cluster.unique_name("seek");
        let file = open(&mounted.create(&name, &format!("{len} {options}"))?)?;
        ensure!(data(&file)?.is_empty(), "{options}: data in a fresh volume");
        let mut random = seeded();
        let mut written = vec![false; usize::try_from(objects)?];
        for _ in 0..objects / 3 {
            let chosen = random.u64(..objects);
            let within = random.u64(..object - 1000);
            file.write_all_at(b"x", chosen * object + within)?;
            written[usize::try_from(chosen)?] = true;
            assert_eq!(data(&file)?, ranges(&written, object, len), "{options}");
        }
        // The last object is not whole.
        file.write_all_at(b"x", len - 1)?;
        written[usize::try_from(objects - 1)?] = true;
        assert_eq!(data(&file)?, ranges(&written, object, len), "{options}");

        // A discarded range is a hole again.
        let keep = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
        let (start, count) = (2 * object, 5 * object);
        fallocate(&file, keep, i64::try_from(start)?, i64::try_from(count)?)?;
        written[2..7].fill(false);
        assert_eq!(data(&file)?, ranges(&written, object, len), "{options}");

        // There is nothing past the end.
        let end = i64::try_from(len)?;
        for whence in [Whence::SeekData, Whence::SeekHole] {
            for behind in [end, end + 1] {
                assert_eq!(lseek(file.as_fd(), behind, whence), Err(Errno::ENXIO));
            }
        }
        drop(file);
        discard(&mounted, &name)?;
    }
    Ok(())
}

#[test]
fn discard_by_qemu_frees_space_with_every_cache() -> anyhow::Result<()> {
    let cluster = TestCluster::start()?;
    for (cache, arguments) in [
        ("none", &[][..]),
        ("writeback", &[]),
        ("none", &["--pagecache"]),
        ("writeback", &["--pagecache"]),
    ] {
        let mounted = Mounted::start(&cluster, arguments)?;
        let name = cluster.unique_name("discard");
        let volume = mounted.create(&name, "16M object_size=1M")?;
        let mut qemu_io = Command::new("qemu-io");
        qemu_io.args(["-f", "raw", "-t", cache, "-d", "unmap"]);
        // Discards of whole objects and of a part, a write into the hole, and write-zeroes
        // with unmap.
        for command in [
            "write -P 7 0 16M",
            "flush",
            "discard 2M 4M",
            "discard 8192k 4096",
            "read -P 7 0 2M",
            "read -P 0 2M 4M",
            "read -P 7 6M 2M",
            "read -P 7 9M 7M",
            "write -P 9 3M 512",
            "read -P 9 3M 512",
            "read -P 0 3146240 1048064",
            "write -z -u 10M 2M",
            "read -P 0 10M 2M",
        ] {
            qemu_io.args(["-c", command]);
        }
        let printed = String::from_utf8(run(qemu_io.arg(&volume))?)?;
        ensure!(
            !printed.contains("failed") && !printed.contains("rror"),
            "{cache} {arguments:?}: {printed}"
        );
        // 16 objects less 4 and 2, and one of them written again.
        wait_until("the space came back", Duration::from_secs(5), || {
            Ok(fs::metadata(&volume)?.blocks() * 512 == 11 * MIB_U64)
        })
        .with_context(|| format!("{cache} {arguments:?}: {printed}"))?;
        discard(&mounted, &name)?;
    }
    Ok(())
}
