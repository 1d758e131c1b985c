//! VDI names of any bytes, and invalid lines in command files.

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io::Write as _;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::os::unix::fs::MetadataExt as _;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use nix::errno::Errno;
use serde_json::Value;
use tests::{Mounted, TestCluster, errno, is_capability_warning, wait_until};

/// Longest VDI name in bytes.
const NAME_MAX: usize = 255;
/// From the response of a command to its line in the log.
const LOG_LIMIT: Duration = Duration::from_secs(5);

/// Writes `bytes` with one write, without a newline of its own.
fn write(mounted: &Mounted, file: &str, bytes: &[u8]) -> std::io::Result<()> {
    File::options()
        .write(true)
        .open(mounted.path(file))?
        .write_all(bytes)
}

/// True when `vdi/list`, which need not be UTF-8, has `name`.
fn lists(mounted: &Mounted, name: &[u8]) -> anyhow::Result<bool> {
    let list = fs::read(mounted.path("vdi/list"))?;
    Ok(list.windows(name.len()).any(|part| part == name))
}

/// Names with every byte a VDI's name may have but blanks, which separate the
/// words of `vdi/create`.
fn odd_names(cluster: &TestCluster) -> Vec<OsString> {
    let blank_or_slash = |byte: &u8| byte.is_ascii_whitespace() || *byte == b'/';
    let unique = cluster.unique_name("odd").into_bytes();
    let with = |bytes: &[u8]| OsString::from_vec([unique.as_slice(), bytes].concat());
    let low: Vec<u8> = (1..=127).filter(|byte| !blank_or_slash(byte)).collect();
    let high: Vec<u8> = (128..=255).collect();
    let longest = vec![b'n'; NAME_MAX - unique.len()];
    vec![
        with(&low),
        with(&high),
        with(&longest),
        with("日本語-ü".as_bytes()),
        with(b"\xff\xfe\xc0"),
        with(b"@host.example"),
        with(b"'\"`$(x)*?[a-z]\\"),
        with(b"\x7f\x1b[31m"),
        with(b"..."),
    ]
}

#[test]
fn vdi_name_may_be_any_file_name() -> anyhow::Result<()> {
    let cluster = TestCluster::start()?;
    let mounted = Mounted::start(&cluster, &[])?;
    for name in odd_names(&cluster) {
        let mut line = name.clone();
        line.push(" 4M");
        mounted
            .command("vdi/create", &line)
            .with_context(|| format!("{line:?}"))?;
        mounted.command("vdi/mount", &name)?;
        ensure!(
            mounted.names("volume")?.contains(&name),
            "{name:?} is missing"
        );
        let path = mounted.path("volume").join(&name);
        fs::write(&path, name.as_bytes())?;
        ensure!(fs::read(&path)?.starts_with(name.as_bytes()), "{name:?}");
        ensure!(lists(&mounted, name.as_bytes())?, "{name:?} is not listed");
        serde_json::from_slice::<Value>(&fs::read(mounted.path("vdi/list.json"))?)
            .with_context(|| format!("{name:?}"))?;
        mounted.command("vdi/unmount", &name)?;
        ensure!(!path.exists(), "{name:?} is still there");
        mounted.command("vdi/delete", &name)?;
        assert_eq!(
            errno(mounted.command("vdi/mount", &name)),
            Some(Errno::ENOENT)
        );
    }
    for line in mounted.log().lines() {
        ensure!(
            !line.contains(['\x1b', '\x7f', '\u{1}']),
            "raw bytes of a name are in the log: {line:?}"
        );
    }
    Ok(())
}

#[test]
fn vdi_name_unfit_as_file_name_is_skipped() -> anyhow::Result<()> {
    // Of its own, as it attaches everything.
    let cluster = TestCluster::start_own()?;
    let mounted = Mounted::start(&cluster, &[])?;
    mounted.command("vdi/create", "plain 4M")?;
    for name in ["a/b", ".", ".."] {
        mounted.command("vdi/create", format!("{name} 4M"))?;
        assert_eq!(
            errno(mounted.command("vdi/mount", name)),
            Some(Errno::EINVAL),
            "{name:?}"
        );
    }
    wait_until("every refusal is in the log", LOG_LIMIT, || {
        Ok(warnings(&mounted) >= 3)
    })?;
    assert_eq!(warnings(&mounted), 3);
    ensure!(mounted.names("volume")?.is_empty());
    ensure!(mounted.report("vdi/list")?.contains("a/b"));

    let everything = Mounted::start(&cluster, &["--attach-all"])?;
    assert_eq!(
        everything.names("volume")?,
        [OsString::from("plain")].into()
    );
    assert_eq!(warnings(&everything), 3);
    for name in ["a/b", ".", ".."] {
        mounted.command("vdi/delete", name)?;
    }
    Ok(())
}

#[test]
fn vdi_name_precedes_snapshot_and_tag_precedes_id() -> anyhow::Result<()> {
    let cluster = TestCluster::start()?;
    let mounted = Mounted::start(&cluster, &[])?;
    let name = cluster.unique_name("versions");
    // Snapshot 1 has the tag "tag", snapshot 2 the tag "1".
    let path = mounted.create(&name, "4M object_size=1M")?;
    fs::write(&path, "first ")?;
    mounted.command("vdi/snapshot", format!("{name} tag"))?;
    fs::write(&path, "second")?;
    mounted.command("vdi/snapshot", format!("{name} 1"))?;
    fs::write(&path, "third ")?;
    mounted.command("vdi/unmount", &name)?;

    for (target, expected) in [
        (format!("{name}@tag"), "first "),
        (format!("{name}@2"), "second"),
        (format!("{name}@1"), "second"),
        (name.clone(), "third "),
    ] {
        // Snapshots are read-only, the head is not.
        let path = mounted.attach(&target)?;
        ensure!(
            fs::read(&path)?.starts_with(expected.as_bytes()),
            "{target}"
        );
        let written = File::options().write(true).open(&path);
        let read_only = target != name;
        let refusal = read_only.then_some(Errno::EROFS);
        assert_eq!(errno(written), refusal, "{target}");
        let mode = fs::metadata(&path)?.mode() & 0o777;
        assert_eq!(mode, if read_only { 0o444 } else { 0o644 }, "{target}");
    }
    for absent in ["3", "0", "4294967296", "TAG"] {
        let refused = mounted.command("vdi/mount", format!("{name}@{absent}"));
        assert_eq!(errno(refused), Some(Errno::ENOENT), "{absent}");
    }

    // The name of this VDI looks like a snapshot of the other one.
    let lookalike = format!("{name}@tag");
    mounted.command("vdi/unmount", &lookalike)?;
    fs::write(mounted.create(&lookalike, "4M")?, "lookalike")?;
    ensure!(fs::read(mounted.volume(&lookalike))?.starts_with(b"lookalike"));
    // Deletes everything.
    for target in [format!("{name}@2"), format!("{name}@1"), name.clone()] {
        mounted.command("vdi/unmount", target)?;
    }
    mounted.command("vdi/unmount", &lookalike)?;
    // The first deletes the VDI of that name, the second the snapshot.
    for _ in 0..2 {
        mounted.command("vdi/delete", &lookalike)?;
    }
    mounted.command("vdi/delete", format!("{name}@2"))?;
    mounted.command("vdi/delete", &name)?;
    ensure!(!lists(&mounted, name.as_bytes())?);
    Ok(())
}

/// Warnings in the log, each of which is one line.
fn warnings(mounted: &Mounted) -> usize {
    mounted
        .log()
        .lines()
        .filter(|line| line.contains(" WARN ") && !is_capability_warning(line))
        .count()
}

#[test]
fn command_file_refuses_garbage_and_logs_once() -> anyhow::Result<()> {
    let cluster = TestCluster::start_own()?;
    let mounted = Mounted::start(&cluster, &["--retry-for", "1"])?;
    mounted.create("bystander", "4M")?;
    // Empty lines, NUL bytes, two lines, control characters, shell syntax, too many bytes.
    let every_byte: Vec<u8> = (0..=255).collect();
    let invalid: [&[u8]; 16] = [
        b"\n",
        b"\n\n",
        b"\0",
        b"\0bystander",
        b"bystander\0",
        b"no-such\nbystander\n",
        b" ",
        b"\xff\xfe\xfd",
        b"$(reboot); `reboot` | reboot & reboot > /dev/null",
        b"../../../etc/passwd",
        b"no-such@",
        b"no-such \x1b[31m\x07",
        b"no-such:\n\x1b[31m",
        &every_byte,
        &[b'x'; 10_000],
        &[b'\n'; 1 << 20],
    ];
    // Every command file refuses each of them, with one log line that is printable and short.
    let before = state(&mounted)?;
    let mut count = 0;
    for file in [
        "vdi/mount",
        "vdi/unmount",
        "vdi/create",
        "vdi/delete",
        "vdi/snapshot",
        "vdi/clone",
        "vdi/rollback",
        "vdi/resize",
        "vdi/unlock",
        "config/page_cache",
        "config/object_cache",
        "config/sheep_info",
    ] {
        for bytes in invalid {
            let start = bytes[..bytes.len().min(40)].escape_ascii().to_string();
            let refused = errno(write(&mounted, file, bytes));
            ensure!(
                matches!(
                    refused,
                    Some(Errno::EINVAL | Errno::ENOENT | Errno::ENAMETOOLONG)
                ),
                "{file}: {start:?}: {refused:?}"
            );
            count += 1;
            wait_until("the refusal is in the log", LOG_LIMIT, || {
                Ok(warnings(&mounted) >= count)
            })?;
            ensure!(
                warnings(&mounted) == count,
                "{file}: {start:?}: more than one line"
            );
            let log = mounted.log();
            let line = log.lines().last().context("one line")?;
            ensure!(line.contains(file), "{file}: {start:?}: {line}");
            ensure!(
                line.chars().all(|letter| !letter.is_control()),
                "{file}: {start:?}: {line:?}"
            );
            ensure!(line.len() < 2000, "{file}: {start:?}: {} bytes", line.len());
        }
    }
    ensure!(state(&mounted)? == before, "something changed");
    mounted.stop()
}

/// All that a command could change.
fn state(mounted: &Mounted) -> anyhow::Result<(Vec<String>, BTreeSet<OsString>)> {
    let reports = [
        "vdi/list",
        "config/page_cache",
        "config/object_cache",
        "config/sheep_info",
    ];
    let texts = reports.iter().map(|report| mounted.report(report));
    let mut entries = BTreeSet::new();
    for directory in ["", "cluster", "config", "node", "vdi", "volume"] {
        for name in mounted.names(directory)? {
            let path = [OsStr::new(directory), &name].join(OsStr::new("/"));
            entries.insert(path);
        }
    }
    Ok((texts.collect::<anyhow::Result<_>>()?, entries))
}
