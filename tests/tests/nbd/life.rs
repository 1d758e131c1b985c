//! What happens to the cluster under a client that is connected.

use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use anyhow::{Context as _, ensure};
use nix::sys::signal::Signal;
use tests::{NbdServer, TestCluster};

use crate::{Fixture, libnbd, program};

/// A client that stays connected between two steps of a test.
struct Client {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

/// Runs what it reads, line by line, with the handle `h`.
const SHELL: &str = r"
import nbd, sys, errno
h = nbd.NBD()
h.set_strict_mode(0)
h.connect_uri(sys.argv[1])
print('ok', flush=True)
for line in sys.stdin:
    try:
        exec(line)
        print('ok', flush=True)
    except nbd.Error as error:
        print(errno.errorcode.get(error.errnum, error.string), flush=True)
    except AssertionError as error:
        print('wrong', error, flush=True)
";

impl Client {
    fn connect(server: &NbdServer, name: &str) -> anyhow::Result<Self> {
        let mut child = Command::new("/usr/bin/python3")
            .args(["-c", SHELL, &server.uri(name)])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let input = child.stdin.take().context("its standard input")?;
        let output = child.stdout.take().context("its standard output")?;
        let mut client = Self {
            child,
            input,
            output: BufReader::new(output),
        };
        let greeting = client.answer()?;
        ensure!(greeting == "ok", "{greeting}");
        Ok(client)
    }

    fn send(&mut self, line: &str) -> anyhow::Result<()> {
        Ok(writeln!(self.input, "{line}")?)
    }

    fn answer(&mut self) -> anyhow::Result<String> {
        let mut line = String::new();
        self.output.read_line(&mut line)?;
        Ok(line.trim_end().to_owned())
    }

    /// Runs a line and returns `ok`, or the name of the error.
    fn outcome(&mut self, line: &str) -> anyhow::Result<String> {
        self.send(line)?;
        self.answer()
    }

    fn run(&mut self, line: &str) -> anyhow::Result<()> {
        let outcome = self.outcome(line)?;
        ensure!(outcome == "ok", "{line}: {outcome}");
        Ok(())
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        // It may have ended by itself.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

#[test]
fn snapshot_keeps_connection_on_the_head() -> anyhow::Result<()> {
    let fixture = Fixture::start()?;
    let name = fixture.create("head", "8M object_size=1M")?;
    let server = NbdServer::start(&fixture.cluster, &["--all"])?;
    let mut client = Client::connect(&server, &name)?;
    client.run("h.pwrite(b'old', 0)")?;
    fixture.command("vdi/snapshot", &format!("{name} monday"))?;
    client.run("h.pwrite(b'new', 0, nbd.CMD_FLAG_FUA)")?;
    client.run("assert h.pread(3, 0) == b'new'")?;
    let mut snapshot = Client::connect(&server, &format!("{name}@monday"))?;
    snapshot.run("assert h.pread(3, 0) == b'old'")?;
    ensure!(snapshot.outcome("h.pwrite(b'x', 0)")? == "EPERM");
    Ok(())
}

#[test]
fn resize_is_seen_by_new_connections() -> anyhow::Result<()> {
    let fixture = Fixture::start()?;
    let name = fixture.create("growing", "8M object_size=1M")?;
    let server = NbdServer::start(&fixture.cluster, &[&name])?;
    let mut client = Client::connect(&server, &name)?;
    ensure!(client.outcome("h.pwrite(b'x', 9 << 20)")? == "ENOSPC");
    fixture.command("vdi/resize", &format!("{name} 16M"))?;
    let size = program("nbdinfo", &["--size", &server.uri(&name)])?;
    ensure!(size == "16777216\n", "{size}");
    let mut later = Client::connect(&server, &name)?;
    later.run("assert h.get_size() == 16 << 20")?;
    later.run("h.pwrite(b'x', 9 << 20)")?;
    // The device behind it is the same.
    client.run("assert h.pread(1, 9 << 20) == b'x'")?;
    Ok(())
}

#[test]
fn deleted_or_rolled_back_volume_fails_with_eio() -> anyhow::Result<()> {
    let fixture = Fixture::start()?;
    let name = fixture.create("gone", "8M object_size=1M")?;
    fixture.command("vdi/snapshot", &format!("{name} monday"))?;
    let server = NbdServer::start(&fixture.cluster, &["--lock=off", &name])?;
    let mut client = Client::connect(&server, &name)?;
    client.run("h.pwrite(b'new', 0)")?;
    fixture.command("vdi/rollback", &format!("{name}@monday"))?;
    // New clients have what is there now.
    let mut later = Client::connect(&server, &name)?;
    later.run("assert h.pread(3, 0) == bytearray(3)")?;
    ensure!(client.outcome("h.pread(3, 0)")? == "EIO");
    ensure!(client.outcome("h.pwrite(b'x', 0)")? == "EIO");
    later.run("h.pwrite(b'now', 0)")?;
    drop(later);
    fixture.command("vdi/delete", &name)?;
    let missing = "raises(errno.ENOENT, lambda: h.connect_uri(uri))";
    libnbd(&server.uri(&name), missing).map(drop)
}

#[test]
fn outage_is_pause_then_eio_until_recovery() -> anyhow::Result<()> {
    let mut fixture = Fixture::on(TestCluster::start_own()?)?;
    let name = fixture.create("away", "8M object_size=1M")?;
    let server = NbdServer::start(&fixture.cluster, &["--retry-for=2", &name])?;
    let mut client = Client::connect(&server, &name)?;
    client.run("h.pwrite(b'abc', 0)")?;
    fixture.cluster.own_sheep()?.kill()?;
    ensure!(client.outcome("h.pread(3, 0)")? == "EIO");
    fixture.cluster.own_sheep()?.start_again()?;
    tests::wait_until(
        "it answers again",
        std::time::Duration::from_secs(30),
        || Ok(client.outcome("assert h.pread(3, 0) == b'abc'")? == "ok"),
    )
}

#[test]
fn sigterm_drains_requests_and_releases_volume() -> anyhow::Result<()> {
    let mut fixture = Fixture::on(TestCluster::start_own()?)?;
    let name = fixture.create("drained", "8M object_size=1M")?;
    let mut server = NbdServer::start(&fixture.cluster, &[&name])?;
    let mut client = Client::connect(&server, &name)?;
    client.run("h.pwrite(b'abc', 0)")?;
    // A sheep that holds still holds the write up.
    let sheep = fixture.cluster.own_sheep()?;
    sheep.signal(Signal::SIGSTOP)?;
    client.run("data = nbd.Buffer.from_bytearray(bytearray(b'xyz'))")?;
    client.run("write = h.aio_pwrite(data, 0)")?;
    // Refused without the sheep, so the write before it has been taken.
    ensure!(client.outcome("h.pread(1, 1 << 40)")? == "EINVAL");
    server.signal(Signal::SIGTERM)?;
    server.wait_for_log("SIGTERM: ending")?;
    fixture.cluster.own_sheep()?.signal(Signal::SIGCONT)?;
    client.run("while not h.aio_command_completed(write): h.poll(-1)")?;
    ensure!(server.wait()?.success());
    let again = NbdServer::start(&fixture.cluster, &[&name])?;
    let mut client = Client::connect(&again, &name)?;
    client.run("assert h.pread(3, 0) == b'xyz'")?;
    ensure!(
        server.log().contains(&format!("detached {name}")),
        "{}",
        server.log()
    );
    Ok(())
}

#[test]
fn volume_is_attached_while_clients_are_connected() -> anyhow::Result<()> {
    let fixture = Fixture::start()?;
    let name = fixture.create("shared", "8M")?;
    let server = NbdServer::start(&fixture.cluster, &["--all"])?;
    let count = |text: &str| server.log().matches(&format!("{text} {name}")).count();
    program("nbdinfo", &["--list", &server.uri("")])?;
    ensure!(count(" attached") == 0, "looking attaches nothing");
    let first = Client::connect(&server, &name)?;
    let second = Client::connect(&server, &name)?;
    ensure!(count(" attached") == 1);
    drop(first);
    server.wait_for_log(&format!("disconnected from {name}"))?;
    ensure!(count("detached") == 0);
    drop(second);
    server.wait_for_log(&format!("detached {name}"))?;
    let mut third = Client::connect(&server, &name)?;
    third.run("h.pread(1, 0)")?;
    ensure!(count(" attached") == 2);
    Ok(())
}
