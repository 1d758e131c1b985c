//! The tree: reports, command files and settings.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::Write as _;
use std::os::unix::fs::MetadataExt as _;
use std::process::Command;
use std::thread;

use anyhow::{Context as _, ensure};
use nix::errno::Errno;
use serde_json::Value;
use tests::{Mounted, TestCluster, detach, errno, exists, run};

#[test]
fn tree_has_all_files_of_original() -> anyhow::Result<()> {
    let cluster = TestCluster::start()?;
    let mounted = Mounted::start(&cluster, &[])?;
    for (directory, files) in [
        ("", &["cluster", "config", "node", "vdi", "volume"][..]),
        ("cluster", &["info", "info.json"]),
        ("node", &["info", "list", "info.json", "list.json"]),
        ("config", &["object_cache", "page_cache", "sheep_info"]),
        (
            "vdi",
            &[
                "list",
                "list.json",
                "mount",
                "unmount",
                "create",
                "delete",
                "snapshot",
            ],
        ),
        ("vdi", &["clone", "rollback", "resize"]),
    ] {
        let found = mounted.names(directory)?;
        for file in files {
            ensure!(
                found.contains(OsStr::new(file)),
                "{directory:?} has no {file}: {found:?}"
            );
        }
    }
    Ok(())
}

#[test]
fn report_shows_cluster_state() -> anyhow::Result<()> {
    let cluster = TestCluster::start()?;
    let mounted = Mounted::start(&cluster, &[])?;
    let name = cluster.unique_name("listed");
    mounted.create(&name, "24M")?;

    ensure!(
        mounted
            .report("cluster/info")?
            .starts_with("Cluster status: running, auto-recovery enabled\n")
    );
    let list = mounted.report("vdi/list")?;
    let row = list
        .lines()
        .find(|line| line.contains(&name))
        .context("no row")?;
    ensure!(row.contains("24 MB"), "{row}");
    ensure!(mounted.report("node/list")?.contains(cluster.address()));
    ensure!(
        mounted
            .report("node/info")?
            .contains("Total virtual image size")
    );

    let json: Value = serde_json::from_str(&mounted.report("vdi/list.json")?)?;
    ensure!(json.to_string().contains(&name), "{json:#}");
    for file in ["cluster/info.json", "node/info.json", "node/list.json"] {
        let json: Value = serde_json::from_str(&mounted.report(file)?).context(file)?;
        ensure!(json.to_string().len() > 10, "{file}: {json}");
    }
    Ok(())
}

#[test]
fn report_size_from_stat_equals_text_length() -> anyhow::Result<()> {
    let cluster = TestCluster::start_own()?;
    let mounted = Mounted::start(&cluster, &[])?;
    for file in [
        "cluster/info",
        "node/list",
        "vdi/list",
        "config/page_cache",
        "config/sheep_info",
    ] {
        let length = fs::metadata(mounted.path(file))?.len();
        assert_eq!(length, mounted.report(file)?.len() as u64, "{file}");
    }
    Ok(())
}

#[test]
fn report_lists_created_vdi_at_next_open() -> anyhow::Result<()> {
    let cluster = TestCluster::start()?;
    let mounted = Mounted::start(&cluster, &[])?;
    for _ in 0..10 {
        let name = cluster.unique_name("fresh");
        mounted.command("vdi/create", format!("{name} 4M"))?;
        ensure!(
            mounted.report("vdi/list")?.contains(&name),
            "{name} is not listed"
        );
        mounted.command("vdi/delete", &name)?;
        ensure!(
            !mounted.report("vdi/list")?.contains(&name),
            "{name} is still listed"
        );
    }
    Ok(())
}

#[test]
fn report_is_whole_for_many_readers() -> anyhow::Result<()> {
    let cluster = TestCluster::start()?;
    let mounted = Mounted::start(&cluster, &[])?;
    let name = cluster.unique_name("crowd");
    mounted.create(&name, "4M")?;
    thread::scope(|scope| {
        let readers: Vec<_> = (0..32)
            .map(|_| scope.spawn(|| mounted.report("vdi/list")))
            .collect();
        for reader in readers {
            let text = reader
                .join()
                .expect("reader threads return errors instead of panicking")?;
            ensure!(text.contains(&name) && text.ends_with('\n'), "{text}");
        }
        Ok(())
    })
}

#[test]
fn settings_accept_integers_and_show_0_or_1() -> anyhow::Result<()> {
    let cluster = TestCluster::start()?;
    let mounted = Mounted::start(&cluster, &[])?;
    for file in ["config/page_cache", "config/object_cache"] {
        assert_eq!(mounted.report(file)?, "0\n");
        for (written, shown) in [
            ("1", "1\n"),
            ("0", "0\n"),
            ("2", "1\n"),
            ("00", "0\n"),
            ("-1", "1\n"),
            (" 0", "0\n"),
            ("+01", "1\n"),
            ("0 1", "0\n"),
            ("1 0\r", "1\n"),
        ] {
            mounted
                .command(file, written)
                .with_context(|| format!("{file}: {written:?}"))?;
            assert_eq!(mounted.report(file)?, shown, "{file}: {written:?}");
        }
        for malformed_response_of_garbage_drops_connection in ["yes", "", " ", "-", "x0"] {
            assert_eq!(
                errno(mounted.command(file, malformed_response_of_garbage_drops_connection)),
                Some(Errno::EINVAL),
                "{malformed_response_of_garbage_drops_connection:?}"
            );
        }
        assert_eq!(mounted.report(file)?, "1\n");
        fs::write(mounted.path(file), "0")?;
        assert_eq!(mounted.report(file)?, "0\n");
    }
    Ok(())
}

#[test]
fn settings_check_sheep_address_before_use() -> anyhow::Result<()> {
    let cluster = TestCluster::start()?;
    let mounted = Mounted::start(&cluster, &["--retry-for", "1"])?;
    let before = format!("{}\n", cluster.address());
    assert_eq!(mounted.report("config/sheep_info")?, before);
    for malformed_response_of_garbage_drops_connection in [
        "",
        "host:port",
        "127.0.0.1:0",
        "127.0.0.1:70000",
        "a b:7000",
    ] {
        let refused = mounted.command(
            "config/sheep_info",
            malformed_response_of_garbage_drops_connection,
        );
        assert_eq!(
            errno(refused),
            Some(Errno::EINVAL),
            "{malformed_response_of_garbage_drops_connection:?}"
        );
    }
    let nobody = format!("127.0.0.1:{}", tests::free_ports(1)?[0]);
    let refused = mounted.command("config/sheep_info", nobody);
    assert_eq!(errno(refused), Some(Errno::EHOSTUNREACH));
    assert_eq!(mounted.report("config/sheep_info")?, before);
    mounted.command("config/sheep_info", cluster.address())?;
    mounted.report("vdi/list")?;
    Ok(())
}

#[test]
fn attach_failure_returns_specific_errno() -> anyhow::Result<()> {
    let cluster = TestCluster::start()?;
    let mounted = Mounted::start(&cluster, &[])?;
    let name = cluster.unique_name("attach");
    mounted.command("vdi/create", format!("{name} 4M"))?;

    assert_eq!(
        errno(mounted.command("vdi/mount", "no-such-vdi")),
        Some(Errno::ENOENT)
    );
    let missing_tag = format!("{name}@no-such-tag");
    assert_eq!(
        errno(mounted.command("vdi/mount", missing_tag)),
        Some(Errno::ENOENT)
    );
    assert_eq!(errno(mounted.command("vdi/mount", "")), Some(Errno::EINVAL));
    let long = mounted.command("vdi/mount", "x".repeat(300));
    assert_eq!(errno(long), Some(Errno::ENAMETOOLONG));
    ensure!(
        mounted.log().contains("no-such-vdi"),
        "the log does not say what was refused"
    );

    mounted.attach(&name)?;
    // Attaching what is attached already succeeds.
    mounted.attach(&name)?;
    ensure!(mounted.names("volume")?.contains(OsStr::new(&name)));
    Ok(())
}

#[test]
fn detach_does_not_wait_for_other_volumes() -> anyhow::Result<()> {
    let cluster = TestCluster::start()?;
    let mounted = Mounted::start(&cluster, &[])?;
    let name = cluster.unique_name("detach");
    let path = mounted.create(&name, "4M")?;
    let mut file = File::options().read(true).write(true).open(&path)?;
    assert_eq!(
        errno(mounted.command("vdi/unmount", &name)),
        Some(Errno::EBUSY)
    );
    file.write_all(b"still open")?;
    ensure!(path.exists());
    drop(file);
    detach(&mounted, &name)?;
    ensure!(!path.exists() && !mounted.names("volume")?.contains(OsStr::new(&name)));
    assert_eq!(
        errno(mounted.command("vdi/unmount", &name)),
        Some(Errno::ENOENT)
    );
    mounted.attach(&name)?;
    ensure!(fs::read(&path)?.starts_with(b"still open"));
    Ok(())
}

#[test]
fn vdi_create_checks_options() -> anyhow::Result<()> {
    let cluster = TestCluster::start()?;
    let mounted = Mounted::start(&cluster, &[])?;
    // Valid options.
    for options in [
        "8M",
        "8388608",
        "1G copies=1",
        "8M object_size=8M",
        "1T hyper",
        "4M prealloc",
        "2G copies=1 object_size=16M",
    ] {
        // An object size is left out where there is only one.
        if options.contains("hyper") && !exists(options) {
            continue;
        }
        let name = cluster.unique_name("options");
        mounted.create(&name, options)?;
        mounted.command("vdi/unmount", &name)?;
        mounted.command("vdi/delete", &name)?;
    }
    // Invalid ones create nothing.
    let name = cluster.unique_name("refused");
    for options in [
        "",
        "x",
        "-1",
        "0x10",
        "8M copies=0",
        "8M copies=32",
        "8M copies=3:1",
        "8M copies=2:0",
        "8M object_size=3M",
        "8M object_size=512K",
        "8M object_size=4G",
        "8M size=4M",
        "8M hyper=1",
        "8M 8M",
        "99999999T",
        "8M hyper object_size=8M",
    ] {
        let refused = mounted.command("vdi/create", format!("{name} {options}"));
        assert_eq!(errno(refused), Some(Errno::EINVAL), "{options:?}");
    }
    ensure!(!mounted.report("vdi/list")?.contains(&name));
    // A name that exists is refused.
    mounted.command("vdi/create", format!("{name} 4M"))?;
    let again = mounted.command("vdi/create", format!("{name} 4M"));
    assert_eq!(errno(again), Some(Errno::EEXIST));
    Ok(())
}

#[test]
fn vdi_name_is_never_run_by_shell() -> anyhow::Result<()> {
    let cluster = TestCluster::start()?;
    let mounted = Mounted::start(&cluster, &[])?;
    let scratch = tempfile::TempDir::new()?;
    let proof = scratch.path().join("proof");
    let line = format!("x;touch {};#", proof.display());
    for file in [
        "vdi/mount",
        "vdi/unmount",
        "vdi/create",
        "vdi/delete",
        "vdi/snapshot",
        "config/sheep_info",
    ] {
        ensure!(mounted.command(file, &line).is_err(), "{file} took it");
    }
    ensure!(!proof.exists());
    Ok(())
}

#[test]
fn tree_refuses_changes_by_file_commands() -> anyhow::Result<()> {
    let cluster = TestCluster::start()?;
    let mounted = Mounted::start(&cluster, &[])?;
    let name = cluster.unique_name("fixed");
    let path = mounted.create(&name, "4M")?;
    assert_eq!(
        errno(File::create(mounted.volume("new"))),
        Some(Errno::EPERM)
    );
    assert_eq!(
        errno(fs::create_dir(mounted.volume("new"))),
        Some(Errno::EPERM)
    );
    assert_eq!(errno(fs::remove_file(&path)), Some(Errno::EPERM));
    assert_eq!(
        errno(fs::remove_file(mounted.path("vdi/list"))),
        Some(Errno::EPERM)
    );
    assert_eq!(
        errno(fs::remove_dir(mounted.path("volume"))),
        Some(Errno::EPERM)
    );
    ensure!(fs::write(mounted.path("vdi/list"), "x").is_err());
    ensure!(path.exists());
    Ok(())
}

#[test]
fn command_files_roll_back_resize_and_delete() -> anyhow::Result<()> {
    let cluster = TestCluster::start()?;
    let mounted = Mounted::start(&cluster, &[])?;
    let name = cluster.unique_name("life");
    let path = mounted.create(&name, "4M")?;
    fs::write(&path, "first")?;
    mounted.command("vdi/snapshot", format!("{name} tag"))?;
    let twice = mounted.command("vdi/snapshot", format!("{name} tag"));
    assert_eq!(errno(twice), Some(Errno::EEXIST));
    fs::write(&path, "other")?;

    mounted.command("vdi/rollback", format!("{name}@tag"))?;
    mounted.attach(&name)?;
    ensure!(fs::read(&path)?.starts_with(b"first"));

    mounted.command("vdi/resize", format!("{name} 12M"))?;
    tests::wait_until(
        "the new size shows",
        std::time::Duration::from_secs(5),
        || Ok(path.metadata()?.len() == 12 << 20),
    )?;
    let shrunk = mounted.command("vdi/resize", format!("{name} 4M"));
    assert_eq!(errno(shrunk), Some(Errno::EINVAL));

    mounted.command("vdi/unmount", &name)?;
    mounted.command("vdi/delete", format!("{name}@tag"))?;
    mounted.command("vdi/delete", &name)?;
    assert_eq!(
        errno(mounted.command("vdi/delete", &name)),
        Some(Errno::ENOENT)
    );
    ensure!(!mounted.report("vdi/list")?.contains(&name));
    Ok(())
}

#[test]
fn xattr_and_blocks_describe_volume() -> anyhow::Result<()> {
    let cluster = TestCluster::start()?;
    let mounted = Mounted::start(&cluster, &[])?;
    let path = mounted.create(&cluster.unique_name("facts"), "8M object_size=1M")?;
    assert_eq!(path.metadata()?.blocks(), 0);
    fs::write(&path, "one object")?;
    assert_eq!(path.metadata()?.blocks(), 2048);
    let shown = run(Command::new("getfattr")
        .args(["--absolute-names", "--dump"])
        .arg(&path))?;
    let shown = String::from_utf8(shown)?;
    for fact in [
        "vid",
        "snap_id",
        "copies",
        "policy",
        "object_size",
        "create_time",
    ] {
        ensure!(
            shown.contains(&format!("user.sheepdog.{fact}=")),
            "no {fact}: {shown}"
        );
    }
    ensure!(
        shown.contains("user.sheepdog.object_size=\"1048576\""),
        "{shown}"
    );
    let refused = run(Command::new("setfattr")
        .args(["--name", "user.sheepdog.vid", "--value", "1"])
        .arg(&path));
    ensure!(refused.is_err(), "an attribute was set");
    Ok(())
}

#[test]
fn statfs_shows_cluster_space() -> anyhow::Result<()> {
    let cluster = TestCluster::start()?;
    let mounted = Mounted::start(&cluster, &[])?;
    let space = nix::sys::statvfs::statvfs(&mounted.mountpoint())?;
    ensure!(space.blocks() > 0 && space.blocks_available() > 0);
    ensure!(space.blocks_available() <= space.blocks());
    Ok(())
}
