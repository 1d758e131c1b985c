//! Reports for programs that rely on the length of stat(2), and that do not use read(2).

use std::fs::{self, File};
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use tests::{BindMount, Mounted, TestCluster, read_by_mmap, read_by_sendfile, read_by_splice, run};

/// Reports that a new VDI changes.
const LISTS: [&str; 2] = ["vdi/list", "vdi/list.json"];
/// Reports that do not change on an idle cluster.
const QUIET: [&str; 6] = [
    "cluster/info",
    "cluster/info.json",
    "node/list",
    "node/list.json",
    "vdi/list",
    "vdi/list.json",
];
/// Time for which stat(2) may show the old length of a file that is not looked up.
const STAT_AGE: Duration = Duration::from_secs(1);

/// The bytes of an open file, without its length.
fn read(file: &File) -> anyhow::Result<Vec<u8>> {
    let mut bytes = vec![0; 1 << 20];
    let len = file.read_at(&mut bytes, 0)?;
    bytes.truncate(len);
    Ok(bytes)
}

type ReadAll = fn(&Path) -> anyhow::Result<Vec<u8>>;

/// Every way to read a file that relies on the length in the kernel, each with an open of
/// its own.
const WAYS: [(&str, ReadAll); 6] = [
    ("sendfile", |path| read_by_sendfile(&File::open(path)?)),
    ("splice", |path| read_by_splice(&File::open(path)?)),
    ("its size", |path| {
        let file = File::open(path)?;
        let mut bytes = vec![0; usize::try_from(file.metadata()?.len())?];
        file.read_exact_at(&mut bytes, 0)?;
        Ok(bytes)
    }),
    ("mmap", |path| {
        let file = File::open(path)?;
        read_by_mmap(path, usize::try_from(file.metadata()?.len())?)
    }),
    ("cp", |path| {
        let copy = tempfile::NamedTempFile::new()?;
        run(Command::new("cp").args([path, copy.path()]))?;
        Ok(fs::read(copy.path())?)
    }),
    ("dd", |path| {
        let input = format!("if={}", path.display());
        run(Command::new("dd").args(["bs=4k", "status=none", &input]))
    }),
];

/// Reads `path` in every way after a change, with the length cached before it.
fn is_whole(path: &Path, change: impl Fn(&str) -> std::io::Result<()>) -> anyhow::Result<()> {
    for (way, read_all) in WAYS {
        fs::metadata(path)?;
        change(way)?;
        let bytes = read_all(path).with_context(|| way.to_owned())?;
        let now = read(&File::open(path)?)?;
        ensure!(
            bytes == now,
            "{way}: {} bytes of {}: {}",
            bytes.len(),
            now.len(),
            bytes.escape_ascii()
        );
    }
    Ok(())
}

/// Makes a VDI for each way between stat(2) and open(2), then deletes them so.
fn longer_and_shorter(mounted: &Mounted, path: &Path) -> anyhow::Result<()> {
    let name = |way: &str| way.replace(' ', "-");
    is_whole(path, |way| {
        mounted.command("vdi/create", format!("{} 4M", name(way)))
    })?;
    for (way, _) in WAYS {
        ensure!(fs::read_to_string(path)?.contains(&name(way)), "no {way}");
    }
    is_whole(path, |way| mounted.command("vdi/delete", name(way)))
}

#[test]
fn report_size_from_stat_reads_whole_text() -> anyhow::Result<()> {
    // A cluster of its own, so that no other test changes the text between two opens.
    let cluster = TestCluster::start_own()?;
    let mounted = Mounted::start(&cluster, &[])?;
    for report in LISTS {
        longer_and_shorter(&mounted, &mounted.path(report)).context(report)?;
    }
    Ok(())
}

#[test]
fn report_is_whole_in_bind_mount() -> anyhow::Result<()> {
    let cluster = TestCluster::start_own()?;
    let mounted = Mounted::start(&cluster, &[])?;
    for report in LISTS {
        let bound = BindMount::of(&mounted.path(report))?;
        let path = bound.path();
        // The file that was mounted has another text from here on.
        mounted.command("vdi/create", "first 4M")?;
        longer_and_shorter(&mounted, &path).context(report)?;
        mounted.command("vdi/delete", "first")?;
        tests::wait_until("stat shows the size", 2 * STAT_AGE, || {
            Ok(fs::metadata(&path)?.len() == fs::read(&path)?.len() as u64)
        })?;
    }
    Ok(())
}

#[test]
fn report_copied_within_mount_is_whole() -> anyhow::Result<()> {
    let cluster = TestCluster::start_own()?;
    let mounted = Mounted::start(&cluster, &[])?;
    let (report, copy) = (mounted.path("vdi/list"), mounted.create("copy", "4M")?);
    fs::metadata(&report)?;
    mounted.command("vdi/create", "another 4M")?;
    run(Command::new("cp").args([&report, &copy]))?;
    let copied = String::from_utf8(fs::read(&copy)?)?;
    let text = copied.trim_end_matches('\0');
    ensure!(text.contains("another") && text.ends_with('\n'), "{text}");
    assert_eq!(text.lines().count(), 3, "{text}");
    Ok(())
}

#[test]
fn report_text_of_open_handle_is_stable() -> anyhow::Result<()> {
    let cluster = TestCluster::start_own()?;
    let mounted = Mounted::start(&cluster, &[])?;
    for report in LISTS {
        let mut open = Vec::new();
        for number in 0..4 {
            let file = File::open(mounted.path(report))?;
            let text = read(&file)?;
            open.push((file, text));
            mounted.command("vdi/create", format!("kept-{number} 4M"))?;
        }
        for _ in 0..2 {
            for (file, text) in &open {
                let len = file.metadata()?.len();
                ensure!(len == text.len() as u64, "{report}: {len} bytes");
                ensure!(read_by_sendfile(file)? == *text, "{report}: sendfile");
                ensure!(read_by_splice(file)? == *text, "{report}: splice");
                ensure!(read(file)? == *text, "{report}: read");
            }
            open.reverse();
        }
        for number in 0..4 {
            mounted.command("vdi/delete", format!("kept-{number}"))?;
        }
    }
    Ok(())
}

#[test]
fn report_in_bind_mount_never_mixes_two_texts() -> anyhow::Result<()> {
    let cluster = TestCluster::start_own()?;
    let mounted = Mounted::start(&cluster, &[])?;
    let bound = BindMount::of(&mounted.path("vdi/list"))?;
    let old = File::open(bound.path())?;
    let old_text = read(&old)?;
    mounted.command("vdi/create", "between 4M")?;
    let new = File::open(bound.path())?;
    let new_text = read(&new)?;
    ensure!(old_text != new_text);
    for _ in 0..2 {
        for (file, text) in [(&old, &old_text), (&new, &new_text)] {
            // One file of the kernel cannot have both: it is the text, or it fails.
            for bytes in [read_by_sendfile(file), read_by_splice(file)] {
                ensure!(bytes.is_err() || bytes? == *text, "another text");
            }
            ensure!(read(file)? == *text);
        }
    }
    drop(old);
    tests::wait_until("the close has arrived", Duration::from_secs(5), || {
        Ok(read_by_sendfile(&new).is_ok_and(|bytes| bytes == new_text))
    })
}

#[test]
fn report_mtime_changes_only_with_text() -> anyhow::Result<()> {
    let cluster = TestCluster::start_own()?;
    let mounted = Mounted::start(&cluster, &[])?;
    let times = |report: &str| -> anyhow::Result<_> {
        let path = mounted.path(report);
        let file = File::open(&path)?;
        let [before, open, after] = [fs::metadata(&path)?, file.metadata()?, {
            drop(read(&file)?);
            fs::metadata(&path)?
        }];
        let all = [before, open, after].map(|found| {
            (
                found.ino(),
                (found.mtime(), found.mtime_nsec()),
                (found.ctime(), found.ctime_nsec()),
            )
        });
        ensure!(
            all.iter().all(|shown| *shown == all[0]),
            "{report}: {all:?}"
        );
        Ok(all[0])
    };
    let before = QUIET.map(times);
    // Longer than any cache TTL.
    thread::sleep(STAT_AGE + Duration::from_millis(100));
    let after = QUIET.map(times);
    for ((report, before), after) in QUIET.into_iter().zip(before).zip(after) {
        assert_eq!(before?, after?, "{report}");
    }

    let before = times("vdi/list")?;
    mounted.command("vdi/create", "new 4M")?;
    let after = times("vdi/list")?;
    ensure!(
        after.1 > before.1 && after.0 == before.0,
        "{before:?}, {after:?}"
    );
    Ok(())
}

#[test]
fn report_backup_sees_no_file_change() -> anyhow::Result<()> {
    let cluster = TestCluster::start_own()?;
    let mounted = Mounted::start(&cluster, &[])?;
    mounted.create("listed", "4M")?;
    let directory = tempfile::TempDir::new()?;
    let archive = directory.path().join("tar");
    for _ in 0..5 {
        run(Command::new("tar")
            .arg("--create")
            .arg("--file")
            .arg(&archive)
            .arg("--directory")
            .arg(mounted.mountpoint())
            .args(["cluster", "node", "vdi", "config"]))?;
    }
    run(Command::new("tar")
        .arg("--extract")
        .arg("--file")
        .arg(&archive)
        .arg("--directory")
        .arg(directory.path()))?;
    for report in QUIET {
        let (now, saved) = (mounted.path(report), directory.path().join(report));
        ensure!(fs::read(&saved)? == fs::read(&now)?, "{report}");
        ensure!(fs::metadata(&saved)?.mtime() == fs::metadata(&now)?.mtime());
    }
    Ok(())
}
