//! The command line: options, and messages for errors.

use std::fs::{self, File};
use std::net::TcpListener;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;
use tests::{
    EmbeddedSheep, Finished, Mounted, TestCluster, free_ports, is_mounted, is_running, output, run,
    sheepfs_binary, wait_until,
};

/// Longest start or refusal.
const LIMIT: Duration = Duration::from_secs(30);

fn sheepfs(arguments: &[&str]) -> anyhow::Result<Finished> {
    output(LIMIT, Command::new(sheepfs_binary()?).args(arguments))
}

/// An empty directory, and anything left mounted on it taken away at the end.
struct Mountpoint(TempDir);

impl Mountpoint {
    fn new() -> anyhow::Result<Self> {
        Ok(Self(TempDir::with_prefix("sheepfs-test-cli-")?))
    }

    fn path(&self) -> &str {
        self.0
            .path()
            .to_str()
            .expect("the prefix and the random part are ASCII")
    }
}

impl Drop for Mountpoint {
    fn drop(&mut self) {
        if is_mounted(self.0.path()).unwrap_or(true) {
            let unmounted = run(Command::new("umount").arg("--lazy").arg(self.0.path()));
            if let Err(error) = unmounted {
                eprintln!("{error:#}");
            }
        }
    }
}

/// Fails unless sheepfs refused with one reason on standard error and status 1.
fn refuses(arguments: &[&str], words: &[&str]) -> anyhow::Result<()> {
    let finished = sheepfs(arguments)?;
    let said = &finished.stderr;
    ensure!(
        finished.status.code() == Some(1),
        "{arguments:?}: {}: {said}",
        finished.status
    );
    ensure!(said.starts_with("sheepfs: "), "{arguments:?}: {said}");
    for word in words {
        ensure!(
            said.to_lowercase().contains(&word.to_lowercase()),
            "{arguments:?}: no {word:?} in: {said}"
        );
    }
    Ok(())
}

#[test]
fn cli_help_and_version_go_to_stdout() -> anyhow::Result<()> {
    for option in ["-h", "--help"] {
        let finished = sheepfs(&[option])?;
        let text = String::from_utf8(finished.stdout)?;
        ensure!(finished.status.success() && finished.stderr.is_empty());
        for flag in [
            "--address",
            "--port",
            "--debug",
            "--foreground",
            "--pagecache",
            "--objectcache",
        ] {
            ensure!(
                text.contains(flag),
                "{option} does not mention {flag}:\n{text}"
            );
        }
    }
    for option in ["-V", "--version"] {
        let finished = sheepfs(&[option])?;
        ensure!(finished.status.success() && finished.stderr.is_empty());
        ensure!(String::from_utf8(finished.stdout)?.starts_with("sheepfs "));
    }
    Ok(())
}

#[test]
fn cli_usage_error_is_one_line_and_hint() -> anyhow::Result<()> {
    let mountpoint = Mountpoint::new()?;
    for arguments in [
        &["--no-such-option", mountpoint.path()][..],
        &[],
        &["--port", "70000", mountpoint.path()],
        &["--port", "x", mountpoint.path()],
        &[mountpoint.path(), "/one/too/many"],
    ] {
        refuses(arguments, &["Try 'sheepfs --help'"])?;
        let said = sheepfs(arguments)?.stderr;
        ensure!(said.lines().count() == 2, "{arguments:?}: {said}");
    }
    Ok(())
}

#[test]
fn cli_mount_options_after_o_are_refused() -> anyhow::Result<()> {
    let mountpoint = Mountpoint::new()?;
    for options in ["ro", "allow_other", "rw,noatime", "uid=0"] {
        refuses(&["-o", options, mountpoint.path()], &[options])?;
    }
    Ok(())
}

#[test]
fn cli_error_names_unreachable_sheep() -> anyhow::Result<()> {
    let mountpoint = Mountpoint::new()?;
    let port = free_ports(1)?[0].to_string();
    let arguments = ["--retry-for", "1", "--port", &port, mountpoint.path()];
    refuses(&arguments, &[&format!("127.0.0.1:{port}")])?;
    ensure!(!is_mounted(Path::new(mountpoint.path()))?);
    Ok(())
}

#[test]
fn cli_error_names_peer_that_is_no_sheep() -> anyhow::Result<()> {
    let mountpoint = Mountpoint::new()?;
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?.to_string();
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            // sheepfs may have closed the connection already.
            drop(std::io::Write::write_all(&mut &stream, &[b'#'; 4096]));
        }
    });
    let arguments = ["--retry-for", "1", "--address", &address, mountpoint.path()];
    refuses(&arguments, &[&address])
}

#[test]
fn cli_error_names_bad_mountpoint() -> anyhow::Result<()> {
    let cluster = TestCluster::start()?;
    let mountpoint = Mountpoint::new()?;
    let missing = format!("{}/missing", mountpoint.path());
    refuses(&["--address", cluster.address(), &missing], &[&missing])?;
    let file = format!("{}/file", mountpoint.path());
    File::create(&file)?;
    refuses(
        &["--address", cluster.address(), &file],
        &[&file, "directory"],
    )
}

#[test]
fn cli_refuses_mountpoint_in_use() -> anyhow::Result<()> {
    let cluster = TestCluster::start()?;
    let mounted = Mounted::start(&cluster, &[])?;
    let mountpoint = mounted.mountpoint();
    let mountpoint = mountpoint.to_str().context("ASCII")?;
    refuses(
        &["--address", cluster.address(), mountpoint],
        &[mountpoint, "mounted"],
    )?;
    mounted.report("vdi/list")?;
    mounted.stop()
}

#[test]
fn cli_error_names_stale_mount() -> anyhow::Result<()> {
    let cluster = TestCluster::start()?;
    let mut mounted = Mounted::start(&cluster, &[])?;
    mounted.signal(Signal::SIGKILL)?;
    mounted.wait()?;
    let mountpoint = mounted.mountpoint();
    let mountpoint = mountpoint.to_str().context("ASCII")?;
    let arguments = ["--address", cluster.address(), mountpoint];
    refuses(&arguments, &[mountpoint, "umount"])?;

    run(Command::new("umount").arg(mountpoint))?;
    run(Command::new(sheepfs_binary()?).args(arguments))?;
    ensure!(Path::new(mountpoint).join("vdi/list").exists());
    run(Command::new("umount").arg(mountpoint))?;
    Ok(())
}

#[test]
fn cli_background_command_returns_when_served() -> anyhow::Result<()> {
    let cluster = TestCluster::start()?;
    let mountpoint = Mountpoint::new()?;
    let pidfile = TempDir::new()?.path().join("pid");
    fs::create_dir_all(pidfile.parent().context("it has one")?)?;
    let pidfile_text = pidfile.to_str().context("ASCII")?;
    let finished = sheepfs(&[
        "--address",
        cluster.address(),
        "--pidfile",
        pidfile_text,
        mountpoint.path(),
    ])?;
    ensure!(finished.status.success(), "{}", finished.stderr);
    let tree = Path::new(mountpoint.path());
    // No wait: that it is served already is the promise.
    ensure!(fs::read_to_string(tree.join("vdi/list"))?.contains("Name"));
    let pid: i32 = fs::read_to_string(&pidfile)?.trim().parse()?;
    ensure!(is_running(pid));

    kill(Pid::from_raw(pid), Signal::SIGTERM)?;
    wait_until("the daemon ends", LIMIT, || Ok(!is_running(pid)))?;
    ensure!(!is_mounted(tree)?, "its mount is still there");
    ensure!(!pidfile.exists(), "its pidfile is still there");
    Ok(())
}

#[test]
fn cli_clean_end_has_status_0_and_unmounts() -> anyhow::Result<()> {
    let cluster = TestCluster::start()?;
    let name = cluster.unique_name("polite");
    Mounted::start(&cluster, &[])?.create(&name, "8M")?;
    for signal in [Some(Signal::SIGTERM), Some(Signal::SIGINT), None] {
        let mut mounted = Mounted::start(&cluster, &["--attach", &name])?;
        fs::write(mounted.volume(&name), format!("{signal:?}"))?;
        match signal {
            Some(signal) => mounted.signal(signal)?,
            None => {
                run(Command::new("umount").arg(mounted.mountpoint()))?;
            }
        }
        let status = mounted.wait()?;
        ensure!(status.success(), "{signal:?}: {status}");
        ensure!(
            !is_mounted(&mounted.mountpoint())?,
            "{signal:?}: its mount is still there"
        );
    }
    Ok(())
}

/// Nothing that sheepfs does at its start keeps the mountpoint busy.
#[test]
fn unmount_right_after_mount_succeeds() -> anyhow::Result<()> {
    let cluster = TestCluster::start()?;
    for attempt in 0..10 {
        let mountpoint = Mountpoint::new()?;
        let mut sheepfs = Command::new(sheepfs_binary()?)
            .args(["--foreground", "--address", cluster.address()])
            .arg(mountpoint.path())
            .stdin(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        wait_until("it is mounted", LIMIT, || {
            is_mounted(Path::new(mountpoint.path()))
        })?;
        thread::sleep(Duration::from_millis(3) * attempt);
        run(Command::new("umount").arg(mountpoint.path()))?;
        wait_until("it has ended", LIMIT, || Ok(sheepfs.try_wait()?.is_some()))?;
        let status = sheepfs.wait()?;
        ensure!(status.success(), "attempt {attempt}: {status}");
    }
    Ok(())
}

#[test]
fn cli_options_may_follow_cluster_and_abbreviate() -> anyhow::Result<()> {
    let cluster = TestCluster::start()?;
    let (host, port) = cluster.address().rsplit_once(':').context("HOST:PORT")?;
    let mountpoint = Mountpoint::new()?;
    let finished = sheepfs(&[
        "--addr",
        host,
        mountpoint.path(),
        "-kn",
        "--pag",
        "-p",
        port,
    ])?;
    ensure!(finished.status.success(), "{}", finished.stderr);
    let tree = Path::new(mountpoint.path());
    ensure!(fs::read_to_string(tree.join("config/page_cache"))? == "1\n");
    ensure!(fs::read_to_string(tree.join("config/sheep_info"))? == format!("{host}:{port}\n"));
    run(Command::new("umount").arg(tree))?;
    Ok(())
}

#[test]
fn cli_flag_overrides_environment() -> anyhow::Result<()> {
    let cluster = TestCluster::start()?;
    let (host, port) = cluster.address().rsplit_once(':').context("HOST:PORT")?;
    for (variables, arguments) in [
        (
            [("SHEEPDOG_DOG_ADDR", host), ("SHEEPDOG_DOG_PORT", port)],
            &[][..],
        ),
        ([("SHEEPFS_ADDRESS", host), ("SHEEPFS_PORT", port)], &[]),
        (
            [("SHEEPFS_ADDRESS", "192.0.2.1"), ("SHEEPFS_PORT", "1")],
            &["-a", host, "-p", port],
        ),
    ] {
        let mountpoint = Mountpoint::new()?;
        run(Command::new(sheepfs_binary()?)
            .envs(variables)
            .args(arguments)
            .arg(mountpoint.path()))?;
        run(Command::new("umount").arg(mountpoint.path()))?;
    }
    Ok(())
}

#[test]
fn cli_embedded_creates_mountpoint_and_keeps_data() -> anyhow::Result<()> {
    let scratch = Mountpoint::new()?;
    let tree = Path::new(scratch.path()).join("tree");
    let data = format!("--embedded={}/data", scratch.path());
    for expected in [&[0; 5], b"hello"] {
        run(Command::new(sheepfs_binary()?).arg(&data).arg(&tree))?;
        let bytes = fs::read(tree.join("volume/demo"))?;
        ensure!(bytes.starts_with(expected), "{:?}", &bytes[..5]);
        fs::write(tree.join("volume/demo"), "hello")?;
        run(Command::new("umount").arg(&tree))?;
        wait_until("the mountpoint is removed", LIMIT, || Ok(!tree.exists()))?;
    }
    Ok(())
}

#[test]
fn cli_read_only_mount_refuses_every_change() -> anyhow::Result<()> {
    let cluster = TestCluster::start()?;
    let name = cluster.unique_name("read-only");
    Mounted::start(&cluster, &[])?.create(&name, "8M")?;
    let mounted = Mounted::start(&cluster, &["--read-only", "--attach", &name])?;
    ensure!(fs::read(mounted.volume(&name))?.len() == 8 << 20);
    ensure!(fs::write(mounted.volume(&name), "x").is_err());
    ensure!(mounted.command("vdi/delete", &name).is_err());
    mounted.stop()
}

#[test]
fn cli_attach_all_attaches_every_head() -> anyhow::Result<()> {
    let cluster = TestCluster::start()?;
    let names = [cluster.unique_name("all"), cluster.unique_name("all")];
    let first = Mounted::start(&cluster, &[])?;
    for name in &names {
        first.create(name, "4M")?;
    }
    first.stop()?;
    let mounted = Mounted::start(&cluster, &["--attach-all"])?;
    for name in &names {
        ensure!(mounted.volume(name).exists(), "{name} is not attached");
    }
    mounted.stop()
}

#[test]
fn cli_refuses_unformatted_cluster_with_remedy() -> anyhow::Result<()> {
    let scratch = TempDir::with_prefix("sheepfs-test-unformatted-")?;
    let sheep = EmbeddedSheep::start_unformatted(scratch.path())?;
    let mountpoint = Mountpoint::new()?;
    let address = sheep.address();
    refuses(
        &["--address", &address, mountpoint.path()],
        &[&address, "dog cluster format"],
    )
}
