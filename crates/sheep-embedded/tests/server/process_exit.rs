//! Kills of the server under load: acknowledged requests survive.

use std::net::SocketAddr;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use sheep_proto::{Oid, Opcode, RequestBody, RequestFlags, RequestHeader, ResultCode, Vid};

use crate::client::{Client, based_on, data_oid, name_field, object};
use crate::program::Program;

#[test]
fn crash_during_snapshots_and_deletions_leaves_consistent_vdis() {
    const ROUNDS: usize = 6;
    let directory = tempfile::tempdir().unwrap();
    let mut acknowledged = 0;
    // A VDI with one object.
    let setup = Program::start(directory.path());
    let vid = Client::connect(setup.address).new_vdi("demo");
    Client::connect(setup.address).first_write(vid, 0, b"base");
    drop(setup);
    for _round in 0..ROUNDS {
        // Kills the server once snapshots and deletions are in progress.
        let program = Program::start(directory.path());
        let address = program.address;
        let started = std::sync::Arc::new(AtomicBool::new(false));
        let worker = thread::spawn({
            let started = std::sync::Arc::clone(&started);
            move || churn(address, &started)
        });
        let deadline = Instant::now() + Duration::from_secs(20);
        while !started.load(Ordering::Relaxed) {
            assert!(Instant::now() < deadline, "no snapshot was made");
            thread::yield_now();
        }
        program.kill();
        acknowledged += worker.join().unwrap().len();
        // Of the VDIs that exist, all but the head are snapshots with their data.
        let restarted = Program::start(directory.path());
        let mut client = Client::connect(restarted.address);
        let head = client.vdi_request(Opcode::GetVdiInfo, "demo", "", 0).vid();
        let used = client.vids(Opcode::ReadVdis);
        let deleted = client.vids(Opcode::ReadDelVdis);
        let live: Vec<_> = used.iter().filter(|vid| !deleted.contains(vid)).collect();
        for &&raw in &live {
            let vid = Vid::new(raw).unwrap();
            let is_head = vid == head;
            assert_eq!(client.header_of(vid).is_snapshot(), !is_head, "VDI {vid}");
            let owner = client.slot(vid, 0).unwrap();
            assert_eq!(client.bytes(data_oid(owner, 0), 0, 4), b"base");
        }
        // Deleted VDIs refer to no object.
        for &raw in &deleted {
            let slots = client.bytes(Oid::inode(Vid::new(raw).unwrap()), 4664, 4096);
            assert!(slots.iter().all(|&byte| byte == 0), "VDI {raw:x}");
        }
    }
    assert!(
        acknowledged >= ROUNDS,
        "snapshots were acknowledged in every round"
    );
}

/// Takes snapshots, rewrites the object of the head and deletes the oldest snapshots
/// until the server is killed; returns the tags of the acknowledged snapshots.
fn churn(address: SocketAddr, started: &AtomicBool) -> Vec<String> {
    let mut client = Client::connect(address);
    let mut made = Vec::new();
    let mut head = client.vdi_request(Opcode::GetVdiInfo, "demo", "", 0).vid();
    for number in 0u32.. {
        let tag = format!("{head}-{number}");
        // The requests of a snapshot and of the first write after it.
        let mut step = || -> std::io::Result<Vid> {
            client.try_write_request(
                Opcode::WriteObj,
                object(Oid::inode(head), 256),
                &name_field(&tag),
            )?;
            let body = RequestBody::Vdi(based_on(head, 1));
            let new = client
                .try_write_request(Opcode::NewVdi, body, &name_field("demo"))?
                .vid();
            let data = object(data_oid(new, 0), 0);
            client.try_write_request(Opcode::CreateAndWriteObj, data, b"base")?;
            let slot = object(Oid::inode(new), 4664);
            client.try_write_request(Opcode::WriteObj, slot, &new.get().to_le_bytes())?;
            Ok(new)
        };
        match step() {
            Ok(new) => head = new,
            Err(_killed) => return made,
        }
        started.store(number > 2, Ordering::Relaxed);
        made.push(tag);
        // Two snapshots are kept.
        if number > 1 {
            let oldest = made[made.len() - 3].clone();
            let payload = [name_field("demo"), name_field(&oldest)].concat();
            let body = RequestBody::Vdi(sheep_proto::VdiRequest::default());
            if client
                .try_write_request(Opcode::DelVdi, body, &payload)
                .is_err()
            {
                return made;
            }
        }
    }
    unreachable!("the loop ends with the server");
}

#[test]
fn shutdown_by_signal_or_client_exits_cleanly() {
    let directory = tempfile::tempdir().unwrap();
    let mut program = Program::start(directory.path());
    let pid = i32::try_from(program.child.id()).unwrap();
    kill(Pid::from_raw(pid), Signal::SIGTERM).unwrap();
    assert_eq!(program.wait(), Some(0));
    let mut program = Program::start(directory.path());
    let mut client = Client::connect(program.address);
    let response = client.request(Opcode::Shutdown, 0, RequestBody::NONE);
    assert_eq!(response.result(), ResultCode::Success);
    assert_eq!(program.wait(), Some(0));
}

#[test]
fn shutdown_completes_requests_in_flight() {
    const REQUESTS: u32 = 60;
    let directory = tempfile::tempdir().unwrap();
    let mut program = Program::start(directory.path());
    let mut client = Client::connect(program.address);
    let vid = client.new_vdi("demo");
    let data = vec![3; 256 << 10];
    let len = u32::try_from(data.len()).unwrap();
    let mut sent = std::collections::HashMap::new();
    for index in 0..REQUESTS {
        let body = object(data_oid(vid, index), 0);
        let header = RequestHeader::new(Opcode::CreateAndWriteObj, RequestFlags::WRITE, len, body);
        // It may take no more by then.
        if let Ok(id) = client.send(header, &data) {
            sent.insert(id, index);
        }
        if index == REQUESTS / 2 {
            let pid = i32::try_from(program.child.id()).unwrap();
            kill(Pid::from_raw(pid), Signal::SIGTERM).unwrap();
        }
    }
    let mut acknowledged = Vec::new();
    while let Ok(response) = client.receive() {
        assert_eq!(response.result(), ResultCode::Success);
        acknowledged.push(sent[&response.header.id.get()]);
    }
    assert_eq!(program.wait(), Some(0));
    let restarted = Program::start(directory.path());
    let mut client = Client::connect(restarted.address);
    assert!(!acknowledged.is_empty());
    for index in acknowledged {
        assert!(client.bytes(data_oid(vid, index), 0, data.len()) == data);
    }
}

#[test]
fn start_failure_prints_one_line() {
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
