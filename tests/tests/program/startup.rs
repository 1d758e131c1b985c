//! Start: options that show in the tree, and errors.

use std::fs;
use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::MetadataExt as _;

use nix::sys::signal::Signal;

use crate::support::{Place, Running, Sheep, output, program, until};

/// A port of the loopback interface without a listener.
fn unused_address() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
}

fn started(place: &Place, arguments: &[&str]) -> Running {
    let mut command = program("sheepfs");
    command.args(arguments);
    Running::start(place, command)
}

#[test]
fn startup_failure_is_one_line_and_status_1() {
    let (place, sheep) = (Place::new(), Sheep::start());
    let mnt = place.mnt.to_str().unwrap();
    let address = &*sheep.address().to_string();
    let unused = &*unused_address().to_string();
    let file = place.path("file");
    fs::write(&file, "").unwrap();
    let (file, data) = (file.to_str().unwrap(), place.path("file/data"));
    let kept = &*format!("--embedded={}", data.display());
    // Arguments, and what the error line contains.
    let cases: &[(&[&str], &str)] = &[
        (&[], "no MOUNTPOINT given"),
        (&["-x", mnt], "unexpected argument '-x'"),
        (&["-p", "65536", mnt], "a port is a number from 1 to 65535"),
        (&["-o", "ro", mnt], "use --read-only"),
        (&["--umask", "8", mnt], "a umask is an octal number"),
        (
            &["--uid", "nobody here", mnt],
            "there is no user 'nobody here'",
        ),
        (
            &["--gid", "nobody here", mnt],
            "there is no group 'nobody here'",
        ),
        (&["--log-format", "json", mnt], "add -f"),
        (
            &["--allow-other", "--allow-none", mnt],
            "cannot be used with",
        ),
        (&["--embedded", "-a", "h", mnt], "cannot be used with"),
        (&["-a", address, "/proc"], "/proc is a mount point already"),
        (&["-a", address, file], "is not a directory"),
        (
            &["-a", address, "/no/such/place"],
            "/no/such/place does not exist",
        ),
        (&["-a", unused, "--retry-for", "0", mnt], unused),
        (&["-a", "host.invalid", mnt], "host.invalid:7000"),
        (
            &["-a", address, "--attach", "none", mnt],
            "cannot attach none",
        ),
        (
            &["-a", address, "--pidfile", "/no/such/pid", mnt],
            "--pidfile /no/such/pid",
        ),
        (&[kept, mnt], "cannot start the embedded sheep"),
    ];
    for (arguments, words) in cases {
        let said = output(program("sheepfs").args(*arguments));
        let text = String::from_utf8(said.stderr).unwrap();
        assert_eq!(said.status.code(), Some(1), "{arguments:?}: {text}");
        assert_eq!(said.stdout, b"", "{arguments:?}");
        assert!(
            text.starts_with("sheepfs: ") && text.contains(words),
            "{text}"
        );
        let hint = usize::from(text.contains("Try 'sheepfs --help' for help."));
        assert_eq!(text.lines().count(), 1 + hint, "{text}");
        assert!(!place.is_mounted(), "{arguments:?}");
    }
}

#[test]
fn startup_uses_first_address_that_responds() {
    let sheep = Sheep::start_on("[::1]:0");
    let port = &*sheep.address().port().to_string();
    let unused = unused_address();
    for arguments in [
        &["-a", "::1", "-p", port][..],
        &["-a", &format!("[::1]:{port}")],
        &["-a", &format!("{unused},[::1]:{port}")],
        &[
            "--retry-for",
            "1",
            "-a",
            &format!("host.invalid,{unused},::1"),
            "-p",
            port,
        ],
    ] {
        let place = Place::new();
        let mut running = started(&place, arguments);
        let nodes = fs::read_to_string(place.mnt.join("node/list")).unwrap();
        assert!(nodes.contains(&format!("::1:{port}")), "{nodes}");
        running.signal(Signal::SIGTERM);
        assert!(running.wait().success());
    }
}

#[test]
fn startup_options_set_owner_mode_access_and_volumes() {
    let (place, sheep) = (Place::new(), Sheep::start());
    let address = &*sheep.address().to_string();
    // Two VDIs and a snapshot.
    let mut running = started(&place, &["-a", address]);
    for name in ["one", "two"] {
        place.volume(name);
    }
    fs::write(place.mnt.join("vdi/snapshot"), "one before").unwrap();
    running.signal(Signal::SIGINT);
    assert!(running.wait().success());

    // Attaches named volumes; sets owner, mode, access and pidfile.
    let pidfile = place.path("pid");
    let mut running = started(
        &place,
        &[
            "-a",
            address,
            "--attach=two",
            "--attach=one@before",
            "--uid=65534",
            "--gid=1234",
            "--umask=027",
            "--allow-other",
            "--pidfile",
            pidfile.to_str().unwrap(),
        ],
    );
    let volumes = place.mnt.join("volume");
    let mut found: Vec<_> = fs::read_dir(&volumes)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    found.sort();
    assert_eq!(found, ["one@before", "two"]);
    for (name, mode) in [("", 0o40750), ("one@before", 0o100_440), ("two", 0o100_640)] {
        let metadata = fs::metadata(volumes.join(name)).unwrap();
        assert_eq!(metadata.mode(), mode, "{name}: {:o}", metadata.mode());
        assert_eq!((metadata.uid(), metadata.gid()), (65534, 1234));
    }
    until("there is a pidfile", || pidfile.exists());
    let written = fs::read_to_string(&pidfile).unwrap();
    assert_eq!(written.trim(), running.child.id().to_string());
    // The mount table shows the gateway, and the users that have access.
    let table = fs::read_to_string("/proc/self/mounts").unwrap();
    let line = table
        .lines()
        .find(|line| line.contains(place.mnt.to_str().unwrap()));
    assert!(
        line.unwrap().starts_with(&format!("sheepfs:{address} ")),
        "{line:?}"
    );
    assert!(line.unwrap().contains("allow_other"), "{line:?}");
    running.signal(Signal::SIGTERM);
    assert!(running.wait().success());
    assert!(!pidfile.exists());

    // Attaches all volumes, read-only, for the owner alone.
    let mut running = started(
        &place,
        &["-a", address, "--attach-all", "--read-only", "--allow-none"],
    );
    assert_eq!(fs::read_dir(&volumes).unwrap().count(), 2);
    let refused = fs::write(place.mnt.join("vdi/create"), "three 1M").unwrap_err();
    assert_eq!(
        refused.raw_os_error(),
        Some(nix::errno::Errno::EROFS as i32)
    );
    let table = fs::read_to_string("/proc/self/mounts").unwrap();
    let line = table
        .lines()
        .find(|line| line.contains(place.mnt.to_str().unwrap()));
    assert!(
        line.unwrap().contains(" ro,") && !line.unwrap().contains("allow_other"),
        "{line:?}"
    );
    running.signal(Signal::SIGTERM);
    assert!(running.wait().success());
}

#[test]
fn xattr_of_volume_are_listed_and_read_only() {
    let (place, sheep) = (Place::new(), Sheep::start());
    let mut running = started(&place, &["-a", &sheep.address().to_string()]);
    let volume = place.volume("v");
    let shown = output(
        std::process::Command::new("getfattr")
            .arg("-d")
            .arg(&volume),
    );
    let shown = String::from_utf8(shown.stdout).unwrap();
    assert!(
        shown.contains("user.sheepdog.object_size=\"4194304\""),
        "{shown}"
    );
    assert!(shown.contains("user.sheepdog.copies=\"1\""), "{shown}");
    for (name, words) in [
        ("user.sheepdog.copies", "Operation not permitted"),
        ("user.comment", "Operation not supported"),
    ] {
        let refused = output(
            std::process::Command::new("setfattr")
                .env("LC_ALL", "C")
                .args(["-n", name, "-v", "2"])
                .arg(&volume),
        );
        assert!(
            String::from_utf8(refused.stderr).unwrap().contains(words),
            "{name}"
        );
    }
    running.signal(Signal::SIGTERM);
    assert!(running.wait().success());
}

#[test]
fn log_in_json_is_one_object_per_line() {
    let (place, sheep) = (Place::new(), Sheep::start());
    let address = &*sheep.address().to_string();
    let mut running = started(&place, &["-a", address, "--log-format", "json"]);
    running.signal(Signal::SIGTERM);
    assert!(running.wait().success());
    let log = running.log();
    assert!(log.contains("is mounted on"), "{log}");
    assert!(
        log.lines()
            .all(|line| line.starts_with("{\"timestamp\":") && line.ends_with('}'))
    );
}
