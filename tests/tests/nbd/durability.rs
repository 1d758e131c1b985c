//! What was acknowledged as durable survives everybody's end.

use std::fs;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use nix::sys::signal::Signal;
use tests::{NbdServer, TestCluster, seeded, wait_until};

use crate::{Fixture, libnbd};

/// Times that somebody is killed.
const KILLS: u32 = 4;

/// Writes numbered blocks and notes in a file up to which of them all are durable:
/// by FUA, or by a flush after every eighth.
const WRITER: &str = r"
import nbd, sys
uri, noted, first, fua = sys.argv[1], open(sys.argv[2], 'w'), int(sys.argv[3]), sys.argv[4] == 'fua'
h = nbd.NBD()
h.connect_uri(uri)
blocks = h.get_size() // 4096
number = first
while True:
    data = number.to_bytes(8, 'little') * 512
    h.pwrite(data, number * 257 % blocks * 4096, nbd.CMD_FLAG_FUA if fua else 0)
    if not fua and number % 8 == 0:
        h.flush()
    if fua or number % 8 == 0:
        noted.seek(0)
        noted.write(str(number))
        noted.flush()
    number += 1
";

struct Writer {
    child: Child,
    noted: PathBuf,
}

impl Writer {
    fn start(server: &NbdServer, name: &str, first: u64, how: &str) -> anyhow::Result<Self> {
        let noted = server.path("noted");
        fs::write(&noted, "")?;
        let child = Command::new("/usr/bin/python3")
            .args(["-c", WRITER, &server.uri(name)])
            .arg(&noted)
            .args([&first.to_string(), how])
            .stdin(Stdio::null())
            .spawn()?;
        Ok(Self { child, noted })
    }

    fn noted(&self) -> anyhow::Result<Option<u64>> {
        let text = fs::read_to_string(&self.noted)?;
        Ok(text.parse().ok())
    }

    /// Waits until it has noted a write past `number`.
    fn wait_for(&mut self, number: u64) -> anyhow::Result<u64> {
        let mut last = None;
        wait_until("writes go on", Duration::from_secs(60), || {
            if let Some(status) = self.child.try_wait()? {
                bail!("the writer ended: {status}");
            }
            last = self.noted()?;
            Ok(last.is_some_and(|last| last >= number))
        })?;
        last.context("it was noted")
    }

    fn end(mut self) -> anyhow::Result<u64> {
        self.child.kill()?;
        self.child.wait()?;
        self.noted()?.context("it has noted something")
    }
}

/// Looks whether every block has the last write up to `durable`, or a later one.
fn check(server: &NbdServer, name: &str, durable: u64) -> anyhow::Result<()> {
    let script = format!(
        r"
h.connect_uri(uri)
blocks = h.get_size() // 4096
durable = {durable}
for number in range(max(1, durable - blocks + 1), durable + 1):
    block = h.pread(4096, number * 257 % blocks * 4096)
    found = int.from_bytes(block[:8], 'little')
    assert found >= number and (found - number) % blocks == 0, (found, number)
    assert block == found.to_bytes(8, 'little') * 512, number
"
    );
    libnbd(&server.uri(name), &script).map(drop)
}

fn check_killed_server(how: &str) -> anyhow::Result<()> {
    let fixture = Fixture::start()?;
    let name = fixture.create("killed", "16M object_size=1M")?;
    let arguments = ["--lock=off", &name];
    let mut server = NbdServer::start(&fixture.cluster, &arguments)?;
    let mut random = seeded();
    let mut next = 1;
    for kill in 0..KILLS {
        let mut writer = Writer::start(&server, &name, next, how)?;
        writer.wait_for(next + random.u64(20..200))?;
        if kill % 2 == 1 {
            fixture.command("vdi/snapshot", &format!("{name} during{kill}"))?;
        }
        server.signal(Signal::SIGKILL)?;
        server.wait()?;
        let durable = writer.end()?;
        // The socket that it left behind is replaced.
        server.start_again(&fixture.cluster, &arguments)?;
        check(&server, &name, durable).with_context(|| format!("kill {kill}"))?;
        next = durable + 1;
    }
    server.stop()
}

#[test]
fn fua_writes_survive_killed_server() -> anyhow::Result<()> {
    check_killed_server("fua")
}

#[test]
fn flushed_writes_survive_killed_server() -> anyhow::Result<()> {
    check_killed_server("flush")
}

#[test]
fn fua_writes_survive_killed_sheep() -> anyhow::Result<()> {
    check_killed_sheep("fua")
}

#[test]
fn flushed_writes_survive_killed_sheep() -> anyhow::Result<()> {
    check_killed_sheep("flush")
}

/// The restart of a sheep is a pause for the writer.
fn check_killed_sheep(how: &str) -> anyhow::Result<()> {
    let mut fixture = Fixture::on(TestCluster::start_own()?)?;
    let name = fixture.create("pause", "16M object_size=1M")?;
    let server = NbdServer::start(&fixture.cluster, &[&name])?;
    let mut writer = Writer::start(&server, &name, 1, how)?;
    let mut number = 0;
    for _ in 0..KILLS {
        number = writer.wait_for(number + 50)?;
        fixture.cluster.own_sheep()?.kill()?;
        fixture.cluster.own_sheep()?.start_again()?;
    }
    let number = writer.wait_for(number + 50)?;
    let durable = writer.end()?;
    ensure!(durable >= number);
    check(&server, &name, durable)?;
    server.stop()
}
