//! Crash consistency of the server over fifty kills under load.
//!
//! Each writer has a VDI of its own, with first writes, overwrites, discards, snapshots and
//! deletions. It records the acknowledged requests and the one in flight. After each kill
//! every sector has its last acknowledged write or the one in flight, snapshots are
//! unchanged, and the VDIs are those of the writers. At the end all VDIs are deleted, and
//! only the inodes of deleted VDIs remain.

use std::collections::BTreeSet;
use std::io;
use std::net::SocketAddr;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use sheep_proto::{ObjectIndex, ObjectRequest, inode::slot_offset};
use sheep_proto::{Oid, Opcode, RequestBody, RequestFlags, RequestHeader, ResultCode, Vid};

use crate::client::{Client, Response, based_on, data_oid, name_field, object};
use crate::program::Program;

const KILLS: usize = 50;
const WRITERS: usize = 3;
/// Objects of a VDI that are written to.
const OBJECTS: u32 = 6;
/// Sectors of an object that are written to.
const SECTORS: usize = 24;
const SECTOR_LEN: usize = 512;
const SNAPSHOTS: usize = 3;

/// The content of the sectors of one object: the number of a write, 0 for none.
type Sectors = [u64; SECTORS];

/// The owner of an object of the head, and its content.
#[derive(Clone, Copy, Default)]
struct Content {
    owner: Option<Vid>,
    sectors: Sectors,
}

type Contents = [Content; OBJECTS as usize];

/// The request in flight.
enum Pending {
    Nothing,
    Write(u32, Range<usize>, u64),
    Discard(u32),
    Snapshot(String),
    Delete(String),
}

struct Writer {
    name: String,
    head: Vid,
    contents: Contents,
    snapshots: Vec<(String, Contents)>,
    pending: Pending,
    writes: u64,
    random: u64,
}

impl Writer {
    fn new(client: &mut Client, number: usize) -> Self {
        let name = format!("writer{number}");
        Self {
            head: client.new_vdi(&name),
            name,
            contents: Contents::default(),
            snapshots: Vec::new(),
            pending: Pending::Nothing,
            writes: 0,
            random: number as u64 + 1,
        }
    }

    /// A number below `limit`.
    fn below(&mut self, limit: usize) -> usize {
        self.random = self
            .random
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(self.random >> 33).unwrap() % limit
    }

    /// Works until the server is killed.
    fn run(mut self, address: SocketAddr, acknowledged: &AtomicUsize) -> Self {
        let mut client = Client::connect(address);
        while self.step(&mut client).is_ok() {
            self.pending = Pending::Nothing;
            acknowledged.fetch_add(1, Ordering::Relaxed);
        }
        self
    }

    fn step(&mut self, client: &mut Client) -> io::Result<()> {
        let index = u32::try_from(self.below(OBJECTS as usize)).unwrap();
        match self.below(20) {
            0 => self.snapshot(client),
            1 | 2 => self.discard(client, index),
            _ => self.write(client, index),
        }
    }

    fn write(&mut self, client: &mut Client, index: u32) -> io::Result<()> {
        let start = self.below(SECTORS);
        let range = start..start + 1 + self.below(SECTORS - start);
        self.writes += 1;
        let number = self.writes;
        self.pending = Pending::Write(index, range.clone(), number);
        let data = number.to_le_bytes().repeat(range.len() * SECTOR_LEN / 8);
        let at = u32::try_from(start * SECTOR_LEN).unwrap();
        let oid = data_oid(self.head, index);
        let content = self.contents[index as usize];
        match content.owner {
            Some(owner) if owner == self.head => {
                expect_success(client.try_write_request(
                    Opcode::WriteObj,
                    object(oid, at),
                    &data,
                )?);
            }
            owner => {
                expect_success(create(
                    client,
                    oid,
                    owner.map(|vid| data_oid(vid, index)),
                    at,
                    &data,
                )?);
                self.set_slot(client, index, self.head.get())?;
            }
        }
        let content = &mut self.contents[index as usize];
        content.owner = Some(self.head);
        content.sectors[range].fill(number);
        Ok(())
    }

    fn set_slot(&self, client: &mut Client, index: u32, owner: u32) -> io::Result<()> {
        let offset = slot_offset(ObjectIndex(index)).unwrap();
        let slot = object(Oid::inode(self.head), offset);
        expect_success(client.try_write_request(Opcode::WriteObj, slot, &owner.to_le_bytes())?);
        Ok(())
    }

    fn discard(&mut self, client: &mut Client, index: u32) -> io::Result<()> {
        self.pending = Pending::Discard(index);
        let body = object(data_oid(self.head, index), 0);
        let header = RequestHeader::new(Opcode::DiscardObj, RequestFlags::empty(), 0, body);
        expect_success(client.try_call(header, &[])?);
        self.contents[index as usize] = Content::default();
        Ok(())
    }

    fn snapshot(&mut self, client: &mut Client) -> io::Result<()> {
        if self.snapshots.len() == SNAPSHOTS {
            let at = self.below(SNAPSHOTS);
            let tag = self.snapshots[at].0.clone();
            self.pending = Pending::Delete(tag.clone());
            let payload = [name_field(&self.name), name_field(&tag)].concat();
            let body = RequestBody::Vdi(sheep_proto::VdiRequest::default());
            expect_success(client.try_write_request(Opcode::DelVdi, body, &payload)?);
            self.snapshots.remove(at);
            self.pending = Pending::Nothing;
        }
        self.writes += 1;
        let tag = format!("tag{}", self.writes);
        self.pending = Pending::Snapshot(tag.clone());
        let tag_field = object(Oid::inode(self.head), 256);
        expect_success(client.try_write_request(Opcode::WriteObj, tag_field, &name_field(&tag))?);
        let body = RequestBody::Vdi(based_on(self.head, 1));
        self.head = client
            .try_write_request(Opcode::NewVdi, body, &name_field(&self.name))?
            .vid();
        self.snapshots.push((tag, self.contents));
        Ok(())
    }

    /// Compares the VDI and its snapshots with the model, and adds to the model the
    /// unacknowledged request if it was executed.
    fn check(&mut self, client: &mut Client) {
        // A snapshot or deletion without a response may have been executed or not.
        match std::mem::replace(&mut self.pending, Pending::Nothing) {
            Pending::Snapshot(tag) if self.snapshot_exists(client, &tag) => {
                self.snapshots.push((tag, self.contents));
            }
            Pending::Delete(tag) if !self.snapshot_exists(client, &tag) => {
                self.snapshots.retain(|(other, _)| *other != tag);
            }
            pending => self.pending = pending,
        }
        // Each sector has its last acknowledged write, or the pending one.
        self.head = client
            .vdi_request(Opcode::GetVdiInfo, &self.name, "", 0)
            .vid();
        for index in 0..OBJECTS {
            let found = read(client, self.head, index);
            let expected = self.contents[index as usize].sectors;
            for (sector, (value, expected)) in found.sectors.into_iter().zip(expected).enumerate() {
                let is_pending = match &self.pending {
                    Pending::Write(at, range, number) => {
                        *at == index && range.contains(&sector) && value == *number
                    }
                    Pending::Discard(at) => *at == index && found.owner.is_none() && value == 0,
                    _ => false,
                };
                assert!(
                    value == expected || is_pending,
                    "{} object {index} sector {sector}: write {value}, not {expected}",
                    self.name,
                );
            }
            self.contents[index as usize] = found;
        }
        self.pending = Pending::Nothing;
        // Snapshots have the bytes of the moment they were taken.
        for (tag, contents) in &self.snapshots {
            let vid = client
                .vdi_request(Opcode::GetVdiInfo, &self.name, tag, 0)
                .vid();
            for index in 0..OBJECTS {
                let found = read(client, vid, index).sectors;
                let expected = contents[index as usize].sectors;
                assert_eq!(found, expected, "{}@{tag} object {index}", self.name);
            }
        }
    }

    fn snapshot_exists(&self, client: &mut Client, tag: &str) -> bool {
        match client
            .vdi_request(Opcode::GetVdiInfo, &self.name, tag, 0)
            .result()
        {
            ResultCode::Success => true,
            ResultCode::NoTag => false,
            other => panic!("GET_VDI_INFO of {}@{tag}: {other}", self.name),
        }
    }

    fn delete(&self, client: &mut Client) {
        let tags = self.snapshots.iter().map(|(tag, _)| tag.as_str());
        for tag in tags.chain([""]) {
            expect_success(client.vdi_request(Opcode::DelVdi, &self.name, tag, 0));
        }
    }
}

fn expect_success(response: Response) {
    assert_eq!(
        response.result(),
        ResultCode::Success,
        "{:?}",
        response.header
    );
}

fn create(
    client: &mut Client,
    oid: Oid,
    source: Option<Oid>,
    offset: u32,
    data: &[u8],
) -> io::Result<Response> {
    let mut flags = RequestFlags::WRITE;
    flags.set(RequestFlags::COW, source.is_some());
    let body = RequestBody::Object(ObjectRequest {
        oid: oid.raw().into(),
        cow_oid: source.map_or(0, Oid::raw).into(),
        offset: offset.into(),
        ..ObjectRequest::default()
    });
    let len = u32::try_from(data.len()).unwrap();
    client.try_call(
        RequestHeader::new(Opcode::CreateAndWriteObj, flags, len, body),
        data,
    )
}

/// The content of an object as the index of a VDI refers to it. No sector is torn.
fn read(client: &mut Client, vid: Vid, index: u32) -> Content {
    let Some(owner) = client.slot(vid, index) else {
        return Content::default();
    };
    let bytes = client.bytes(data_oid(owner, index), 0, SECTORS * SECTOR_LEN);
    let mut sectors = Sectors::default();
    for (sector, bytes) in sectors.iter_mut().zip(bytes.chunks(SECTOR_LEN)) {
        let (numbers, _) = bytes.as_chunks::<8>();
        *sector = u64::from_le_bytes(numbers[0]);
        assert!(
            numbers.iter().all(|number| *number == numbers[0]),
            "object {index} of VDI {vid} has a torn sector"
        );
    }
    Content {
        owner: Some(owner),
        sectors,
    }
}

fn files_except_inodes(directory: &Path) -> Vec<String> {
    let vids = std::fs::read_dir(directory.join("objects")).unwrap();
    let files = vids.flat_map(|vid| std::fs::read_dir(vid.unwrap().path()).unwrap());
    let mut names: Vec<_> = files
        .map(|file| file.unwrap().file_name().into_string().unwrap())
        .filter(|name| !name.starts_with("80"))
        .collect();
    let new = std::fs::read_dir(directory.join("new")).unwrap();
    names.extend(new.map(|file| file.unwrap().file_name().into_string().unwrap()));
    names
}

#[test]
fn crash_under_load_loses_no_acknowledged_write() {
    let directory = tempfile::tempdir().unwrap();
    // Writers with a VDI each.
    let first = Program::start(directory.path());
    let mut client = Client::connect(first.address);
    let mut writers: Vec<_> = (0..WRITERS)
        .map(|number| Writer::new(&mut client, number))
        .collect();
    first.kill();
    for round in 1..=KILLS {
        // After each kill, every writer finds its writes, and no other VDI exists.
        let program = Program::start(directory.path());
        let mut client = Client::connect(program.address);
        let mut live = 0;
        for writer in &mut writers {
            writer.check(&mut client);
            live += 1 + writer.snapshots.len();
        }
        let used: BTreeSet<_> = client.vids(Opcode::ReadVdis).into_iter().collect();
        let deleted: BTreeSet<_> = client.vids(Opcode::ReadDelVdis).into_iter().collect();
        assert!(deleted.is_subset(&used));
        assert_eq!(used.len() - deleted.len(), live, "kill {round}");

        // Kills the server after a number of further writes.
        let acknowledged = Arc::new(AtomicUsize::new(0));
        let address = program.address;
        let running: Vec<_> = writers
            .drain(..)
            .map(|writer| {
                let acknowledged = Arc::clone(&acknowledged);
                thread::spawn(move || writer.run(address, &acknowledged))
            })
            .collect();
        let deadline = Instant::now() + Duration::from_secs(60);
        while acknowledged.load(Ordering::Relaxed) < 20 + 3 * round {
            assert!(Instant::now() < deadline, "no write was acknowledged");
            thread::yield_now();
        }
        program.kill();
        writers.extend(running.into_iter().map(|writer| writer.join().unwrap()));
    }
    // At the end every VDI can be deleted, and no object is left.
    let last = Program::start(directory.path());
    let mut client = Client::connect(last.address);
    for writer in &mut writers {
        writer.check(&mut client);
        writer.delete(&mut client);
    }
    last.kill();
    // The next start removes the rest of VDIs whose deletion was interrupted.
    Program::start(directory.path()).kill();
    let left = files_except_inodes(directory.path());
    assert!(left.is_empty(), "{left:?}");
}
