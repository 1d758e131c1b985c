//! The tree as other programs meet it: reads, open modes, walks, maps, modes.

use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Read as _, Write as _};
use std::os::unix::fs::{FileExt as _, MetadataExt as _, PermissionsExt as _, chown, symlink};
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, ensure};
use nix::errno::Errno;
use nix::sys::stat::{Mode, SFlag, mknod};
use tempfile::TempDir;
use tests::{Mounted, TestCluster, errno, is_mounted, run, seeded, sheepfs_binary};

/// Every report.
const REPORTS: [&str; 8] = [
    "cluster/info",
    "cluster/info.json",
    "node/info",
    "node/info.json",
    "node/list",
    "node/list.json",
    "vdi/list",
    "vdi/list.json",
];

#[test]
fn report_is_stable_per_handle_fresh_per_open() -> anyhow::Result<()> {
    let cluster = TestCluster::start()?;
    let mounted = Mounted::start(&cluster, &[])?;
    let name = cluster.unique_name("later");
    for report in ["vdi/list", "vdi/list.json"] {
        let mut file = File::open(mounted.path(report))?;
        let mut start = [0; 1];
        file.read_exact(&mut start)?;
        mounted.command("vdi/create", format!("{name} 4M"))?;
        let mut text = start.to_vec();
        file.read_to_end(&mut text)?;
        let text = String::from_utf8(text)?;
        ensure!(!text.contains(&name), "{report} changed under its reader");

        let mut again = vec![0; text.len() + 1000];
        let len = file.read_at(&mut again, 0)?;
        ensure!(again[..len] == *text.as_bytes(), "{report}: another text");
        ensure!(mounted.report(report)?.contains(&name), "{report} is old");
        mounted.command("vdi/delete", &name)?;
    }
    Ok(())
}

#[test]
fn report_reads_work_at_any_offset_and_size() -> anyhow::Result<()> {
    // A cluster of its own, so that no other test changes the text between two opens.
    let cluster = TestCluster::start_own()?;
    let mounted = Mounted::start(&cluster, &[])?;
    for number in 0..40 {
        mounted.command("vdi/create", format!("listed-{number} 4M"))?;
    }
    let mut random = seeded();
    for report in REPORTS {
        let file = File::open(mounted.path(report))?;
        let mut text = Vec::new();
        (&file).read_to_end(&mut text)?;
        for _ in 0..100 {
            let start = random.usize(..=text.len());
            let mut found = vec![0; random.usize(1..500)];
            let len = file.read_at(&mut found, start as u64)?;
            let end = (start + found.len()).min(text.len());
            ensure!(
                found[..len] == text[start..end],
                "{report}: {len} at {start}"
            );
        }
        for behind in [0, 1, 4096, 1 << 40] {
            assert_eq!(file.read_at(&mut [0; 10], text.len() as u64 + behind)?, 0);
        }
    }
    let byte_by_byte = run(Command::new("dd")
        .args(["bs=1", "status=none"])
        .arg(format!("if={}", mounted.path("vdi/list").display())))?;
    assert_eq!(
        String::from_utf8(byte_by_byte)?,
        mounted.report("vdi/list")?
    );
    Ok(())
}

#[test]
fn command_file_accepts_append() -> anyhow::Result<()> {
    let cluster = TestCluster::start()?;
    let mounted = Mounted::start(&cluster, &[])?;
    let name = cluster.unique_name("append");
    mounted.command("vdi/create", format!("{name} 4M"))?;
    // Several lines through one handle, each with its own write.
    let mut file = OpenOptions::new()
        .append(true)
        .open(mounted.path("vdi/mount"))?;
    file.write_all(name.as_bytes())?;
    file.write_all(format!("{name}\n").as_bytes())?;
    run(Command::new("sh")
        .args(["-c", "echo \"$0\" >> \"$1\""])
        .args([&name])
        .arg(mounted.path("vdi/unmount")))?;
    ensure!(!mounted.volume(&name).exists());
    mounted.command("vdi/delete", &name)?;
    Ok(())
}

#[test]
fn report_open_for_writing_fails() -> anyhow::Result<()> {
    let cluster = TestCluster::start()?;
    let mounted = Mounted::start(&cluster, &[])?;
    for report in REPORTS {
        let path = mounted.path(report);
        for options in [
            OpenOptions::new().write(true),
            OpenOptions::new().read(true).write(true),
            OpenOptions::new().append(true),
            OpenOptions::new().write(true).truncate(true),
            OpenOptions::new().write(true).create(true).truncate(false),
        ] {
            assert_eq!(
                errno(options.open(&path)),
                Some(Errno::EACCES),
                "{report}: {options:?}"
            );
        }
        let new = OpenOptions::new().write(true).create_new(true).open(&path);
        assert_eq!(errno(new), Some(Errno::EEXIST), "{report}");
        assert_eq!(fs::metadata(&path)?.mode() & 0o7777, 0o444, "{report}");
    }
    Ok(())
}

#[test]
fn name_operations_fail_with_eperm() -> anyhow::Result<()> {
    let cluster = TestCluster::start()?;
    let mounted = Mounted::start(&cluster, &[])?;
    let name = cluster.unique_name("fixed");
    let volume = mounted.create(&name, "4M")?;
    let list = mounted.path("vdi/list");
    // Names, inode numbers, modes and owners of the whole tree.
    let everything = |mounted: &Mounted| {
        run(Command::new("find")
            .arg(mounted.mountpoint())
            .args(["-printf", "%p %i %m %U %G\n"]))
    };
    let before = everything(&mounted)?;
    // New names, in every directory.
    for directory in ["", "cluster", "config", "node", "vdi", "volume"] {
        let new = mounted.path(directory).join("new");
        for (what, result) in [
            ("create", File::create(&new).map(drop)),
            ("mkdir", fs::create_dir(&new)),
            ("symlink", symlink("target", &new)),
            ("link", fs::hard_link(&list, &new)),
            ("rename a report", fs::rename(&list, &new)),
            ("rename a volume", fs::rename(&volume, &new)),
            ("mknod", make_fifo(&new)),
        ] {
            assert_eq!(errno(result), Some(Errno::EPERM), "{what} in {directory:?}");
        }
        for missing in [&new, &new.join("below")] {
            assert_eq!(errno(fs::metadata(missing)), Some(Errno::ENOENT));
            assert_eq!(errno(File::open(missing)), Some(Errno::ENOENT));
            assert_eq!(errno(fs::remove_file(missing)), Some(Errno::ENOENT));
        }
    }
    // Directories and files of the tree cannot be removed or renamed.
    for directory in ["cluster", "config", "node", "vdi", "volume"] {
        let path = mounted.path(directory);
        assert_eq!(errno(fs::remove_dir(&path)), Some(Errno::EPERM));
        assert_eq!(
            errno(fs::rename(&path, mounted.path("other"))),
            Some(Errno::EPERM)
        );
    }
    for file in ["vdi/mount", "config/page_cache", "node/info"] {
        assert_eq!(
            errno(fs::remove_file(mounted.path(file))),
            Some(Errno::EPERM)
        );
    }
    assert_eq!(
        errno(fs::metadata(list.join("below"))),
        Some(Errno::ENOTDIR)
    );
    ensure!(everything(&mounted)? == before, "something changed");
    mounted.command("vdi/unmount", &name)?;
    mounted.command("vdi/delete", &name)?;
    Ok(())
}

fn make_fifo(path: &Path) -> std::io::Result<()> {
    Ok(mknod(path, SFlag::S_IFIFO, Mode::S_IRUSR, 0)?)
}

#[test]
fn tree_walk_by_programs_finds_no_error() -> anyhow::Result<()> {
    let cluster = TestCluster::start()?;
    let mounted = Mounted::start(&cluster, &[])?;
    walk(&mounted).context("nothing attached")?;
    let name = cluster.unique_name("walk");
    fs::write(mounted.create(&name, "8M object_size=4M")?, "data")?;
    mounted.command("vdi/snapshot", format!("{name} tag"))?;
    mounted.attach(&format!("{name}@tag"))?;
    let listed = walk(&mounted).context("two volumes")?;
    for expected in [format!("{name}\n"), format!("{name}@tag\n")] {
        ensure!(listed.contains(&expected), "no {expected:?} in {listed}");
    }
    let used = run(Command::new("du")
        .args(["--block-size=1"])
        .arg(mounted.volume(&name)))?;
    ensure!(used.starts_with(b"4194304\t"), "{}", used.escape_ascii());
    Ok(())
}

/// Runs each program over the whole tree and returns what `find` printed.
fn walk(mounted: &Mounted) -> anyhow::Result<String> {
    let tree = mounted.mountpoint();
    for line in [
        "ls -lR \"$0\"",
        "ls -la \"$0\"/*",
        "find \"$0\" -exec stat {} +",
        "du --all \"$0\"",
        "df \"$0\"",
        "df --inodes \"$0\"/volume",
        "find \"$0\" -type f -exec cat {} +",
        "getfattr --recursive --dump \"$0\"",
        "tar --create --file=- --directory=\"$0\" config | tar --list",
    ] {
        let finished = tests::output(
            std::time::Duration::from_secs(60),
            Command::new("sh").args(["-c", line]).arg(&tree),
        )?;
        // getfattr says that it strips the leading slash.
        let said = finished.stderr.trim();
        ensure!(
            finished.status.success() && (said.is_empty() || line.starts_with("getfattr")),
            "{line}: {}: {said}",
            finished.status
        );
    }
    Ok(String::from_utf8(run(Command::new("find")
        .arg(tree)
        .args(["-type", "f"]))?)?)
}

#[test]
fn mmap_of_volume_reads_and_writes() -> anyhow::Result<()> {
    let cluster = TestCluster::start()?;
    for arguments in [&[][..], &["--pagecache"]] {
        let mounted = Mounted::start(&cluster, arguments)?;
        let name = cluster.unique_name("mapped");
        let path = mounted.create(&name, "4M object_size=1M")?;
        fs::write(&path, "written before")?;
        // The second page of the map is past an object's border.
        let start = ((1 << 20) - 4096).to_string();
        let mut xfs_io = Command::new("xfs_io");
        for command in [
            format!("mmap -rw {start} 8192"),
            format!("mwrite -S 0x41 {start} 8000"),
            "msync -s".to_owned(),
            "munmap".to_owned(),
            "mmap -r 0 4096".to_owned(),
            "mread -v 0 14".to_owned(),
        ] {
            xfs_io.arg("-c").arg(command);
        }
        let printed = String::from_utf8(run(xfs_io.arg(&path))?)?;
        ensure!(printed.contains("written.before"), "{printed}");
        mounted.stop()?;

        let mounted = Mounted::start(&cluster, arguments)?;
        let bytes = fs::read(mounted.attach(&name)?)?;
        let map = &bytes[(1 << 20) - 4096..(1 << 20) + 4096];
        ensure!(map[..8000] == [0x41; 8000] && map[8000..] == [0; 192]);
        ensure!(bytes.starts_with(b"written before"));
        mounted.command("vdi/unmount", &name)?;
        mounted.command("vdi/delete", &name)?;
    }
    Ok(())
}

#[test]
fn mmap_of_report_reads() -> anyhow::Result<()> {
    let cluster = TestCluster::start()?;
    let mounted = Mounted::start(&cluster, &[])?;
    let printed = run(Command::new("xfs_io")
        .args(["-r", "-c", "mmap -r 0 4096", "-c", "mread -v 0 14"])
        .arg(mounted.path("cluster/info")))?;
    let printed = String::from_utf8(printed)?;
    ensure!(printed.contains("Cluster.status"), "{printed}");
    Ok(())
}

#[test]
fn setattr_of_mode_and_owner_must_change_nothing() -> anyhow::Result<()> {
    let cluster = TestCluster::start()?;
    let mounted = Mounted::start(&cluster, &[])?;
    let path = mounted.create(&cluster.unique_name("modes"), "4M")?;
    let before = fs::metadata(&path)?;
    let owner = (before.uid(), before.gid());
    for mode in [0o600, 0o666, 0o755, 0o4644, 0] {
        let changed = fs::set_permissions(&path, fs::Permissions::from_mode(mode));
        assert_eq!(errno(changed), Some(Errno::EPERM), "{mode:o}");
    }
    for (uid, gid) in [(owner.0 + 1, owner.1), (owner.0, owner.1 + 1)] {
        assert_eq!(
            errno(chown(&path, Some(uid), Some(gid))),
            Some(Errno::EPERM)
        );
    }
    fs::set_permissions(&path, fs::Permissions::from_mode(0o644))?;
    chown(&path, Some(owner.0), Some(owner.1))?;
    run(Command::new("touch")
        .args(["--date", "2001-01-01"])
        .arg(&path))?;
    let after = fs::metadata(&path)?;
    assert_eq!((after.uid(), after.gid()), owner);
    assert_eq!(after.mode(), before.mode());
    assert_eq!(after.mtime(), before.mtime());

    // A copy that keeps modes and times works in and out of the tree.
    let scratch = TempDir::new()?;
    let (source, copy) = (scratch.path().join("in"), scratch.path().join("out"));
    fs::write(&source, "copied")?;
    fs::set_permissions(&source, fs::Permissions::from_mode(0o644))?;
    run(Command::new("cp").arg("-p").args([&source, &path]))?;
    run(Command::new("cp").arg("-p").args([&path, &copy]))?;
    ensure!(fs::read(&copy)?.starts_with(b"copied"));
    assert_eq!(fs::metadata(&copy)?.mtime(), fs::metadata(&path)?.mtime());
    Ok(())
}

/// Mounts below a directory, taken away when it is dropped.
struct Background(TempDir);

impl Drop for Background {
    fn drop(&mut self) {
        for mount in tests::mounts_below(self.0.path()).unwrap_or_default() {
            let unmounted = run(Command::new("umount").arg("--lazy").arg(mount));
            if let Err(error) = unmounted {
                eprintln!("{error:#}");
            }
        }
    }
}

#[test]
fn startup_in_same_directory_keeps_mounts_apart() -> anyhow::Result<()> {
    let cluster = TestCluster::start()?;
    let name = cluster.unique_name("twice");
    let place = Background(TempDir::with_prefix("sheepfs-test-twice-")?);
    let (one, two) = (place.0.path().join("one"), place.0.path().join("two"));
    for mountpoint in ["one", "two"] {
        fs::create_dir(place.0.path().join(mountpoint))?;
        run(Command::new(sheepfs_binary()?)
            .args(["--address", cluster.address(), mountpoint])
            .current_dir(place.0.path()))?;
    }
    fs::write(one.join("vdi/create"), format!("{name} 4M"))?;
    fs::write(one.join("vdi/mount"), &name)?;
    fs::write(one.join("volume").join(&name), "through one")?;
    let elsewhere = fs::metadata(two.join("volume").join(&name));
    ensure!(elsewhere.is_err_and(|error| error.kind() == ErrorKind::NotFound));
    fs::write(two.join("config/page_cache"), "1")?;
    ensure!(fs::read_to_string(one.join("config/page_cache"))? == "0\n");

    fs::write(two.join("vdi/mount"), &name)?;
    run(Command::new("umount").arg(&one))?;
    ensure!(!is_mounted(&one)? && is_mounted(&two)?);
    ensure!(fs::read(two.join("volume").join(&name))?.starts_with(b"through one"));
    fs::write(two.join("vdi/unmount"), &name)?;
    fs::write(two.join("vdi/delete"), &name)?;
    // Nothing was left where they were started.
    let mut left: Vec<_> = fs::read_dir(place.0.path())?
        .map(|entry| Ok(entry?.file_name()))
        .collect::<std::io::Result<_>>()?;
    left.sort();
    assert_eq!(left, ["one", "two"]);
    Ok(())
}
