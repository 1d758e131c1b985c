//! The program killed in the middle of its work: what it answered is there afterwards.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use sheep_proto::{Oid, Opcode, RequestBody, ResultCode, Vid};

use crate::client::{Client, based_on, data_oid, field, object};

/// The program, with its log on a pipe.
struct Program {
    child: Child,
    address: SocketAddr,
}

impl Program {
    fn start(directory: &Path) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_sheep-embedded"))
            .args(["--listen", "127.0.0.1:0", "--dir"])
            .arg(directory)
            .env("RUST_LOG", "info")
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut log = BufReader::new(child.stderr.take().unwrap());
        let mut seen = String::new();
        let address = loop {
            let mut line = String::new();
            assert_ne!(log.read_line(&mut line).unwrap(), 0, "it ended: {seen}");
            if let Some((_, address)) = line.trim_end().split_once("listening on ") {
                break address.parse().unwrap();
            }
            seen.push_str(&line);
        };
        // Somebody has to read on, or the program waits for room in the pipe.
        thread::spawn(move || std::io::copy(&mut log, &mut std::io::sink()));
        Self { child, address }
    }

    fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    fn wait(&mut self) -> Option<i32> {
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status.code();
            }
            assert!(Instant::now() < deadline, "it does not end");
            thread::yield_now();
        }
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // Harmless when it has ended already.
        let _ended = self.child.kill();
        let _reaped = self.child.wait();
    }
}

/// Writes object after object until the connection dies; returns what was answered last per object.
fn write_until_killed(address: SocketAddr, vid: Vid, first: u32) -> Vec<(u32, u8)> {
    let mut client = Client::connect(address);
    let mut answered = Vec::new();
    for number in 0u32.. {
        let index = first + number % 8;
        let value = u8::try_from(number % 250 + 1).unwrap();
        let data = vec![value; 8192];
        let oid = data_oid(vid, index);
        let slot = 4664 + 4 * index;
        let steps: &[(Opcode, Oid, u32, &[u8])] = &[
            (Opcode::CreateAndWriteObj, oid, 0, &data),
            (
                Opcode::WriteObj,
                Oid::inode(vid),
                slot,
                &vid.get().to_le_bytes(),
            ),
            (Opcode::WriteObj, oid, 4096, &[value; 512]),
        ];
        for &(opcode, oid, offset, data) in steps {
            let len = u32::try_from(data.len()).unwrap();
            let flags = sheep_proto::RequestFlags::WRITE;
            let header = sheep_proto::RequestHeader::new(opcode, flags, len, object(oid, offset));
            match client.try_call(header, data) {
                Ok(answer) => assert_eq!(answer.result(), ResultCode::Success),
                Err(_killed) => return answered,
            }
        }
        answered.retain(|&(at, _)| at != index);
        answered.push((index, value));
    }
    unreachable!("a program that is killed answers no more");
}

#[test]
fn a_killed_server_keeps_every_answered_write() {
    const ROUNDS: u32 = 6;
    const WRITERS: u32 = 4;
    let directory = tempfile::tempdir().unwrap();
    let vid = Client::connect(Program::start(directory.path()).address).new_vdi("demo");
    for round in 0..ROUNDS {
        let program = Program::start(directory.path());
        let address = program.address;
        let first_of = move |writer: u32| (round * WRITERS + writer) * 8;
        let writers: Vec<_> = (0..WRITERS)
            .map(|writer| thread::spawn(move || write_until_killed(address, vid, first_of(writer))))
            .collect();
        let mut client = Client::connect(address);
        let last = data_oid(vid, first_of(WRITERS - 1) + round % 8);
        let deadline = Instant::now() + Duration::from_secs(20);
        while !client.exists(last) {
            assert!(Instant::now() < deadline, "nobody writes");
        }
        program.kill();
        let answered = writers
            .into_iter()
            .flat_map(|writer| writer.join().unwrap());
        let restarted = Program::start(directory.path());
        let mut client = Client::connect(restarted.address);
        for (index, value) in answered {
            assert_eq!(client.slot(vid, index), Some(vid), "entry {index}");
            let content = client.bytes(data_oid(vid, index), 0, 8192);
            // The writer may have begun to replace the object after this answer.
            let next = (value + 7) % 250 + 1;
            let later = content[0];
            assert!(
                content.iter().all(|&byte| byte == later),
                "object {index} is torn"
            );
            assert!(
                later == value || later == next,
                "object {index} has {later}, not {value}"
            );
        }
        assert_eq!(
            std::fs::read_dir(directory.path().join("new"))
                .unwrap()
                .count(),
            0
        );
    }
}

#[test]
fn a_kill_among_snapshots_and_deletions_leaves_one_head_and_no_loose_end() {
    const ROUNDS: usize = 6;
    let directory = tempfile::tempdir().unwrap();
    let mut answered = 0;
    let setup = Program::start(directory.path());
    let vid = Client::connect(setup.address).new_vdi("demo");
    Client::connect(setup.address).first_write(vid, 0, b"base");
    drop(setup);
    for _round in 0..ROUNDS {
        let program = Program::start(directory.path());
        let address = program.address;
        let begun = std::sync::Arc::new(AtomicBool::new(false));
        let worker = thread::spawn({
            let begun = std::sync::Arc::clone(&begun);
            move || churn(address, &begun)
        });
        let deadline = Instant::now() + Duration::from_secs(20);
        while !begun.load(Ordering::Relaxed) {
            assert!(Instant::now() < deadline, "no snapshot was made");
            thread::yield_now();
        }
        program.kill();
        answered += worker.join().unwrap().len();
        let restarted = Program::start(directory.path());
        let mut client = Client::connect(restarted.address);
        let head = client.on_vdi(Opcode::GetVdiInfo, "demo", "", 0).vid();
        let used = client.vids(Opcode::ReadVdis);
        let deleted = client.vids(Opcode::ReadDelVdis);
        let living: Vec<_> = used.iter().filter(|vid| !deleted.contains(vid)).collect();
        for &&raw in &living {
            let vid = Vid::new(raw).unwrap();
            let is_head = vid == head;
            assert_eq!(client.header_of(vid).is_snapshot(), !is_head, "VDI {vid}");
            let owner = client.slot(vid, 0).unwrap();
            assert_eq!(client.bytes(data_oid(owner, 0), 0, 4), b"base");
        }
        for &raw in &deleted {
            let slots = client.bytes(Oid::inode(Vid::new(raw).unwrap()), 4664, 4096);
            assert!(slots.iter().all(|&byte| byte == 0), "VDI {raw:x}");
        }
    }
    assert!(answered >= ROUNDS, "snapshots were answered in every round");
}

/// Snapshots the head, rewrites its object, deletes the oldest snapshots, until
/// killed; returns the tags of the snapshots that were answered.
fn churn(address: SocketAddr, begun: &AtomicBool) -> Vec<String> {
    let mut client = Client::connect(address);
    let mut made = Vec::new();
    let mut head = client.on_vdi(Opcode::GetVdiInfo, "demo", "", 0).vid();
    for number in 0u32.. {
        let tag = format!("{head}-{number}");
        let mut step = || -> std::io::Result<Vid> {
            client.try_tell(
                Opcode::WriteObj,
                object(Oid::inode(head), 256),
                &field(&tag),
            )?;
            let body = RequestBody::Vdi(based_on(head, 1));
            let new = client.try_tell(Opcode::NewVdi, body, &field("demo"))?.vid();
            let data = object(data_oid(new, 0), 0);
            client.try_tell(Opcode::CreateAndWriteObj, data, b"base")?;
            let slot = object(Oid::inode(new), 4664);
            client.try_tell(Opcode::WriteObj, slot, &new.get().to_le_bytes())?;
            Ok(new)
        };
        match step() {
            Ok(new) => head = new,
            Err(_killed) => return made,
        }
        begun.store(number > 2, Ordering::Relaxed);
        made.push(tag);
        if number > 1 {
            let oldest = made[made.len() - 3].clone();
            let payload = [field("demo"), field(&oldest)].concat();
            let body = RequestBody::Vdi(sheep_proto::VdiRequest::default());
            if client.try_tell(Opcode::DelVdi, body, &payload).is_err() {
                return made;
            }
        }
    }
    unreachable!("a program that is killed answers no more");
}

#[test]
fn a_terminated_server_ends_cleanly_and_so_does_one_shut_down_by_a_client() {
    let directory = tempfile::tempdir().unwrap();
    let mut program = Program::start(directory.path());
    let pid = program.child.id().to_string();
    let killed = Command::new("kill").args(["-TERM", &pid]).status().unwrap();
    assert!(killed.success());
    assert_eq!(program.wait(), Some(0));
    let mut program = Program::start(directory.path());
    let mut client = Client::connect(program.address);
    let answer = client.ask(Opcode::Shutdown, 0, RequestBody::NONE);
    assert_eq!(answer.result(), ResultCode::Success);
    assert_eq!(program.wait(), Some(0));
}

#[test]
fn a_start_that_fails_says_why_in_one_line() {
    let directory = tempfile::tempdir().unwrap();
    let _running = Program::start(directory.path());
    let output = Command::new(env!("CARGO_BIN_EXE_sheep-embedded"))
        .args(["--listen", "127.0.0.1:0", "--dir"])
        .arg(directory.path())
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    let error = String::from_utf8(output.stderr).unwrap();
    assert_eq!(error.lines().count(), 1, "{error}");
    assert!(error.starts_with("sheep-embedded: "), "{error}");
    assert!(error.contains("is in use by another server"), "{error}");
}
