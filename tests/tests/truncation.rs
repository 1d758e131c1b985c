//! Programs that truncate a volume and leave holes in it.

use std::fs::{self, File};
use std::io::Write as _;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use tempfile::TempDir;
use tests::{MIB, Mounted, TestCluster, open, run, seeded, wait_for_exit};

const OLD: u8 = b'x';

/// With and without the kernel's page cache.
const MODES: [&[&str]; 2] = [&[], &["--pagecache"]];

/// Fills a file with old bytes, and truncates nothing.
fn fill(path: &Path, len: usize) -> anyhow::Result<()> {
    let file = open(path)?;
    for start in (0..len).step_by(MIB) {
        let bytes = vec![OLD; MIB.min(len - start)];
        file.write_all_at(&bytes, start as u64)?;
    }
    Ok(())
}

/// A file of holes, with random data in some ranges.
fn make_image(path: &Path, len: usize, data: &[(usize, usize)]) -> anyhow::Result<()> {
    let file = File::create(path)?;
    file.set_len(len as u64)?;
    let mut random = seeded();
    for &(start, count) in data {
        let mut bytes = vec![0; count];
        random.fill(&mut bytes);
        file.write_all_at(&bytes, start as u64)?;
    }
    Ok(())
}

fn shell(line: &str, image: &Path, target: &Path) -> anyhow::Result<()> {
    run(Command::new("sh")
        .args(["-c", &format!("set -e; {line}")])
        .args([image, target]))?;
    Ok(())
}

/// Runs a shell command on a plain file and on a volume, both full of old bytes:
/// the volume must have the bytes of the file, followed by the old bytes.
fn compare_with_file(line: &str, image: &Path, volume: &Path, len: usize) -> anyhow::Result<()> {
    let scratch = TempDir::with_prefix("sheepfs-test-truncation-")?;
    let file = scratch.path().join("file");
    File::create(&file)?;
    fill(&file, len)?;
    fill(volume, len)?;
    shell(line, image, &file)?;
    shell(line, image, volume)?;
    let mut expected = fs::read(&file)?;
    ensure!(expected.len() <= len, "the test is wrong");
    expected.resize(len, OLD);
    let found = fs::read(volume)?;
    ensure!(found.len() == len, "{} bytes", found.len());
    let wrong = found.iter().zip(&expected).filter(|(a, b)| a != b).count();
    let first = found.iter().zip(&expected).position(|(a, b)| a != b);
    ensure!(wrong == 0, "{wrong} bytes differ, the first is {first:?}");
    Ok(())
}

#[test]
fn truncation_by_copies_with_trailing_hole_leaves_zeros() -> anyhow::Result<()> {
    const LEN: usize = 64 * MIB;
    let cluster = TestCluster::start()?;
    let scratch = TempDir::with_prefix("sheepfs-test-truncation-")?;
    let image = scratch.path().join("image");
    make_image(&image, LEN, &[(0, 2 * MIB)])?;
    for arguments in MODES {
        let mounted = Mounted::start(&cluster, arguments)?;
        for line in [
            r#"cp "$0" "$1""#,
            r#"cp --sparse=always "$0" "$1""#,
            r#"qemu-img convert -f raw -O raw "$0" "$1""#,
            r#"qemu-img convert -n -f raw -O raw "$0" "$1""#,
        ] {
            let name = cluster.unique_name("copy");
            let volume = mounted.create(&name, "64M")?;
            fill(&volume, LEN)?;
            shell(line, &image, &volume)?;
            run(Command::new("cmp").args([&image, &volume]))
                .with_context(|| format!("{line} {arguments:?}"))?;
        }
    }
    Ok(())
}

#[test]
fn truncation_by_programs_matches_plain_file() -> anyhow::Result<()> {
    let cluster = TestCluster::start()?;
    let scratch = TempDir::with_prefix("sheepfs-test-truncation-")?;
    let image = scratch.path().join("image");
    let data = [(300_000, MIB), (5 * MIB, 100), (7 * MIB, 12_345)];
    make_image(&image, 7 * MIB + 12_345, &data)?;
    for (arguments, volumes) in [
        (MODES[0], &[("1M", 9 * MIB + 513), ("4M", 10 * MIB + 7)][..]),
        (MODES[1], &[("2M", 8 * MIB + 1)]),
    ] {
        let mounted = Mounted::start(&cluster, arguments)?;
        for &(object, len) in volumes {
            let name = cluster.unique_name("truncated");
            let volume = mounted.create(&name, &format!("{len} object_size={object}"))?;
            for line in [
                r#"cp "$0" "$1""#,
                r#"cp --sparse=always "$0" "$1""#,
                r#"qemu-img convert -f raw -O raw "$0" "$1""#,
                r#"qemu-img convert -n -f raw -O raw "$0" "$1""#,
                r#"qemu-img create -q -f raw "$1" 3M"#,
                r#"rsync --sparse --inplace "$0" "$1""#,
                r#"dd if="$0" of="$1" bs=64k conv=sparse status=none"#,
                r#"dd if="$0" of="$1" bs=64k conv=sparse,fsync seek=3 status=none"#,
                r#"dd if="$0" of="$1" bs=64k conv=sparse,notrunc status=none"#,
                r#"dd if="$0" of="$1" bs=1000 seek=4000 count=3 status=none"#,
                r#"dd if="$0" of="$1" bs=4k seek=700 count=3 oflag=direct status=none"#,
                // Of several processes with one handle.
                r#"{ echo start; dd if="$0" bs=1000 seek=700 count=3 status=none; } > "$1""#,
                r#"{ echo start; dd if="$0" bs=9999 seek=9 conv=sparse status=none; } > "$1""#,
                r#"tar -cSf- -C "${0%/*}" image | tar -xOf- > "$1""#,
                r#"echo hello > "$1""#,
                r#"truncate --size=1M "$1""#,
                r#"xfs_io -t -c "pwrite -qS 1 0 5" -c "falloc 100k 1m" -c "pwrite -qS 2 3m 5" "$1""#,
                r#"xfs_io -t -c "pwrite -b 1m -qS 1 0 5m" -c "truncate 1m" -c "truncate 5m" "$1""#,
                r#"xfs_io -c "truncate 1m" -c "pwrite -qS 1 2m 9" -c "fzero 5m 4k" "$1""#,
                r#"xfs_io -t -c "falloc -k 1m 1m" -c "fpunch 1m 1k" -c "pwrite -qS 1 2m 9" "$1""#,
            ] {
                compare_with_file(line, &image, &volume, len)
                    .with_context(|| format!("{line} {arguments:?} {object}"))?;
            }
        }
    }
    Ok(())
}

#[test]
fn truncation_keeps_existing_mappings_valid() -> anyhow::Result<()> {
    const PAGES: u8 = 40;
    let cluster = TestCluster::start()?;
    for arguments in MODES {
        let mounted = Mounted::start(&cluster, arguments)?;
        let volume = mounted.create(&cluster.unique_name("mapped"), "8M object_size=1M")?;
        fill(&volume, 8 * MIB)?;
        let mut other = Command::new("xfs_io")
            .arg(&volume)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .context("xfs_io")?;
        let mut commands = other.stdin.take().context("its input")?;
        commands.write_all(b"mmap -rw 0 8m\n")?;
        for page in 1..=PAGES {
            let start = usize::from(page) * 100_000;
            commands.write_all(format!("mwrite -S {page} {start} 5000\n").as_bytes())?;
            commands.write_all(b"mread 7m 1m\n")?;
            fs::write(&volume, "hello")?;
            assert_eq!(fs::metadata(&volume)?.len(), 8 << 20);
        }
        commands.write_all(b"msync -s\nquit\n")?;
        drop(commands);
        let status = wait_for_exit(&mut other, Duration::from_secs(60))?;
        ensure!(status.success(), "{arguments:?}: xfs_io: {status}");

        let mut expected = vec![OLD; 8 * MIB];
        expected[..5].copy_from_slice(b"hello");
        for page in 1..=PAGES {
            let start = usize::from(page) * 100_000;
            expected[start..start + 5000].fill(page);
        }
        ensure!(fs::read(&volume)? == expected, "{arguments:?}");
    }
    Ok(())
}

#[test]
fn truncation_invalidates_pages_read_before() -> anyhow::Result<()> {
    const LEN: usize = 4 * MIB;
    let cluster = TestCluster::start()?;
    for arguments in MODES {
        let mounted = Mounted::start(&cluster, arguments)?;
        let volume = mounted.create(&cluster.unique_name("cached"), "4M object_size=1M")?;
        fill(&volume, LEN)?;
        let reader = File::open(&volume)?;
        let writer = File::create(&volume)?;
        let mut expected = vec![OLD; LEN];
        let mut end = 0;
        for (start, len) in [(5000, 10), (70_000, 4096), (2 * MIB, 1), (3 * MIB + 7, 5)] {
            // Now they are in the page cache.
            reader.read_exact_at(&mut vec![0; LEN], 0)?;
            writer.write_all_at(&vec![1; len], start as u64)?;
            expected[end..start].fill(0);
            expected[start..start + len].fill(1);
            // The page that the write begins in is dropped a moment later.
            let whole = start - start % (1 << 16);
            let mut found = vec![0; whole];
            reader.read_exact_at(&mut found, 0)?;
            ensure!(found == expected[..whole], "{arguments:?}: {start}");
            end = start + len;
            tests::wait_until("the page is dropped", Duration::from_secs(5), || {
                let mut found = vec![0; LEN];
                reader.read_exact_at(&mut found, 0)?;
                Ok(found == expected)
            })?;
        }
    }
    Ok(())
}
