//! Moving a disk off the cluster while it is written to.

use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use anyhow::{Context as _, bail, ensure};
use serde_json::{Value, json};
use tests::{NbdServer, run};

use crate::Fixture;

/// A `qemu-storage-daemon` that is told what to do over its standard input.
struct StorageDaemon {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl StorageDaemon {
    fn start(arguments: &[&str]) -> anyhow::Result<Self> {
        let mut child = Command::new("qemu-storage-daemon")
            .args(["--chardev", "stdio,id=monitor", "--monitor", "monitor"])
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("qemu-storage-daemon")?;
        let input = child.stdin.take().context("its standard input")?;
        let output = child.stdout.take().context("its standard output")?;
        let mut daemon = Self {
            child,
            input,
            output: BufReader::new(output),
        };
        daemon.next()?;
        daemon.execute("qmp_capabilities", &json!({}))?;
        Ok(daemon)
    }

    fn next(&mut self) -> anyhow::Result<Value> {
        let mut line = String::new();
        self.output.read_line(&mut line)?;
        serde_json::from_str(&line).with_context(|| format!("qemu-storage-daemon said '{line}'"))
    }

    /// Runs a command; events before its end are passed over.
    fn execute(&mut self, command: &str, arguments: &Value) -> anyhow::Result<Value> {
        let request = json!({"execute": command, "arguments": arguments});
        writeln!(self.input, "{request}")?;
        loop {
            let answer = self.next()?;
            if answer.get("return").is_some() {
                return Ok(answer);
            }
            if answer.get("error").is_some() {
                bail!("{command}: {answer}");
            }
        }
    }

    fn wait_for(&mut self, event: &str) -> anyhow::Result<Value> {
        loop {
            let found = self.next()?;
            ensure!(found["event"] != "BLOCK_JOB_ERROR", "{found}");
            if found["event"] == event {
                return Ok(found);
            }
        }
    }
}

impl Drop for StorageDaemon {
    fn drop(&mut self) {
        // It may have ended by itself.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

fn node(name: &str, file: &Value) -> String {
    json!({"driver": "raw", "node-name": name, "file": file}).to_string()
}

/// The recipe of sheep-nbd(8), with fio in the place of the virtual machine.
#[test]
fn blockdev_mirror_moves_disk_under_fio() -> anyhow::Result<()> {
    let fixture = Fixture::start()?;
    let name = fixture.create("moving", "64M object_size=1M")?;
    let server = NbdServer::start(&fixture.cluster, &[&name])?;
    let target = server.path("target.raw");
    fs::File::create(&target)?.set_len(64 << 20)?;
    let guest = server.path("guest");
    let old = node(
        "old",
        &json!({"driver": "nbd", "export": name,
                "server": {"type": "unix", "path": server.socket()}}),
    );
    let new = node("new", &json!({"driver": "file", "filename": target}));
    let listen = format!("addr.type=unix,addr.path={}", guest.display());
    let mut daemon = StorageDaemon::start(&[
        "--blockdev",
        &old,
        "--blockdev",
        &new,
        "--nbd-server",
        &listen,
        "--export",
        "nbd,id=guest,node-name=old,name=disk,writable=on",
    ])?;
    let uri = format!("nbd+unix:///disk?socket={}", guest.display());
    let mut fio = start_fio(&uri, &server.path("fio.log"))?;
    let mirror = json!({"job-id": "move", "device": "old", "target": "new", "sync": "full",
                        "copy-mode": "write-blocking"});
    daemon.execute("blockdev-mirror", &mirror)?;
    daemon.wait_for("BLOCK_JOB_READY")?;
    ensure!(
        fio.wait()?.success(),
        "{}",
        fs::read_to_string(server.path("fio.log"))?
    );
    // From here on the machine uses the new disk.
    daemon.execute("block-job-complete", &json!({"device": "move"}))?;
    let completed = daemon.wait_for("BLOCK_JOB_COMPLETED")?;
    ensure!(completed["data"].get("error").is_none(), "{completed}");
    drop(daemon);
    run(Command::new("qemu-img")
        .args(["compare", "-f", "raw", "-F", "raw"])
        .arg(server.uri(&name))
        .arg(&target))?;
    server.stop()
}

fn start_fio(uri: &str, log: &Path) -> anyhow::Result<Child> {
    let log = fs::File::create(log)?;
    let child = Command::new("fio")
        .args([
            "--name=guest",
            "--ioengine=nbd",
            "--rw=randwrite",
            "--bs=16k",
        ])
        .args(["--size=64m", "--io_size=48m", "--iodepth=8", "--rate=24m"])
        .args([
            "--verify=crc32c",
            "--verify_fatal=1",
            "--verify_state_save=0",
            "--randseed=1",
        ])
        .arg(format!("--uri={uri}"))
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .spawn()?;
    Ok(child)
}
