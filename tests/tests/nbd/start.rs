//! Starting and ending: sockets, files, the background.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::{UnixDatagram, UnixListener};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;
use tests::{
    NbdServer, TestCluster, free_ports, is_running, output, run, sheep_nbd_binary, wait_until,
};

use crate::program;

const LIMIT: Duration = Duration::from_secs(60);

/// What the program says when it does not start.
fn refusal(arguments: &[&str]) -> anyhow::Result<String> {
    let finished = output(LIMIT, Command::new(sheep_nbd_binary()?).args(arguments))?;
    ensure!(
        finished.status.code() == Some(1),
        "{arguments:?}: {finished:?}"
    );
    Ok(finished.stderr)
}

fn shown(path: &Path) -> String {
    path.display().to_string()
}

#[test]
fn start_error_is_one_line_with_advice() -> anyhow::Result<()> {
    let scratch = TempDir::new()?;
    let (live, plain) = (scratch.path().join("live"), scratch.path().join("plain"));
    let _listener = UnixListener::bind(&live)?;
    fs::write(&plain, "")?;
    let (live, plain) = (shown(&live), shown(&plain));
    let good = shown(&scratch.path().join("good"));
    let port = free_ports(1)?[0].to_string();
    let taken = std::net::TcpListener::bind("127.0.0.1:0")?;
    let taken = taken.local_addr()?.to_string();
    for (arguments, expected) in [
        (
            vec!["-f", "--embedded", "--socket", &live],
            format!("another server listens on {live}: end it, or choose another path"),
        ),
        (
            vec!["-f", "--embedded", "--socket", &plain],
            format!("{plain} exists and is not a socket: choose another path"),
        ),
        (
            vec!["-f", "--embedded", "--listen", &taken],
            format!("cannot listen on {taken}: Address already in use (os error 98)"),
        ),
        (
            vec!["-f", "--embedded"],
            "nowhere to listen: give --socket PATH or --listen ADDRESS".to_owned(),
        ),
        (
            vec!["-f", "--embedded", "--socket", &good, "nope"],
            "cannot export 'nope': there is no export 'nope'".to_owned(),
        ),
        (
            vec![
                "-f",
                "--retry-for=0",
                "-p",
                &port,
                "--socket",
                &good,
                "--all",
            ],
            format!("cannot connect to sheep 127.0.0.1:{port}"),
        ),
    ] {
        let said = refusal(&arguments)?;
        let line = said.lines().last().context("it said nothing")?;
        ensure!(
            line.starts_with(&format!("sheep-nbd: {expected}")),
            "{arguments:?}: {said}"
        );
        ensure!(!Path::new(&good).exists());
    }
    ensure!(Path::new(&live).exists() && Path::new(&plain).exists());
    Ok(())
}

#[test]
fn unix_socket_has_mode_0600_or_given() -> anyhow::Result<()> {
    let mode = |server: &NbdServer| -> anyhow::Result<u32> {
        Ok(fs::metadata(server.socket())?.permissions().mode() & 0o777)
    };
    let server = NbdServer::start_with(&["--embedded"])?;
    ensure!(mode(&server)? == 0o600);
    let size = program("nbdinfo", &["--size", &server.uri("")])?;
    ensure!(
        size == "1073741824\n",
        "the only export is the default one: {size}"
    );
    server.stop()?;
    let server = NbdServer::start_with(&["--embedded", "--socket-mode=660"])?;
    ensure!(mode(&server)? == 0o660);
    server.stop()
}

#[test]
fn port_beyond_loopback_warns_without_tls() -> anyhow::Result<()> {
    let port = free_ports(1)?[0];
    let listen = format!("--listen=0.0.0.0:{port}");
    let server = NbdServer::start_with(&["--embedded", &listen])?;
    ensure!(
        server.log().contains("without encryption"),
        "{}",
        server.log()
    );
    server.stop()
}

#[test]
fn daemon_is_ready_when_command_returns() -> anyhow::Result<()> {
    let scratch = TempDir::new()?;
    let (socket, pidfile) = (scratch.path().join("socket"), scratch.path().join("pid"));
    run(Command::new(sheep_nbd_binary()?)
        .args(["--embedded=data", "--socket", "socket", "--pidfile", "pid"])
        .current_dir(scratch.path()))?;
    let pid: i32 = fs::read_to_string(&pidfile)?.trim_end().parse()?;
    let uri = format!("nbd+unix:///demo?socket={}", socket.display());
    let size = program("nbdinfo", &["--size", &uri]);
    kill(Pid::from_raw(pid), Signal::SIGTERM)?;
    wait_until("it ends", LIMIT, || Ok(!is_running(pid)))?;
    ensure!(size? == "1073741824\n");
    ensure!(!socket.exists() && !pidfile.exists());
    Ok(())
}

#[test]
fn systemd_socket_activation_and_notification() -> anyhow::Result<()> {
    let cluster = TestCluster::start()?;
    let scratch = TempDir::new()?;
    let notify = UnixDatagram::bind(scratch.path().join("notify"))?;
    notify.set_read_timeout(Some(LIMIT))?;
    let socket = scratch.path().join("passed");
    // As systemd does it: the socket is descriptor 3 of the process it starts.
    let start = "import os, socket, sys
listener = socket.socket(socket.AF_UNIX)
listener.bind(sys.argv[1])
listener.listen()
os.dup2(listener.fileno(), 3)
os.set_inheritable(3, True)
os.environ['LISTEN_FDS'] = '1'
os.environ['LISTEN_PID'] = str(os.getpid())
os.execv(sys.argv[2], sys.argv[2:])";
    let mut child = Command::new("python3")
        .args(["-c", start])
        .arg(&socket)
        .arg(sheep_nbd_binary()?)
        .args(["-f", "--all", "-a", cluster.address()])
        .env("NOTIFY_SOCKET", scratch.path().join("notify"))
        .spawn()?;
    let mut told = [0; 4096];
    let mut hear = || -> anyhow::Result<String> {
        let len = notify.recv(&mut told)?;
        Ok(String::from_utf8_lossy(&told[..len]).into_owned())
    };
    let ready = hear()?;
    ensure!(
        ready.contains("READY=1") && ready.contains("STATUS=Listening on"),
        "{ready}"
    );
    let uri = format!("nbd+unix:///?socket={}", socket.display());
    let listed = program("nbdinfo", &["--list", &uri]);
    kill(Pid::from_raw(i32::try_from(child.id())?), Signal::SIGTERM)?;
    let stopping = hear()?;
    ensure!(child.wait()?.success());
    listed?;
    ensure!(stopping.contains("STOPPING=1"), "{stopping}");
    ensure!(socket.exists(), "it is systemd's to remove");
    Ok(())
}
