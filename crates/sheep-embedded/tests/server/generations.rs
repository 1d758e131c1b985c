//! What older releases do otherwise, as the worst one of each generation does it.

use std::io;
use std::net::TcpStream;
use std::thread;
use std::time::{Duration, Instant};

use sheep_embedded::{Config, Server, StoreKind};
use sheep_proto::generation::{Detection, Generation};
use sheep_proto::{
    ObjectKind, ObjectRequest, Oid, Opcode, RequestBody, RequestFlags, RequestHeader, ResponseBody,
    ResultCode, VdiRequest, Vid,
};
use zerocopy::IntoBytes;

use crate::client::{
    Client, OBJECT_LEN, Response, Sheep, based_on, data_oid, name_field, object, sized,
};
use crate::program::Program;

/// The generations that have another server than the default one.
const OLD: [Generation; 3] = [Generation::V0_7, Generation::V0_8, Generation::V0_9];

fn sheep_of(generation: Generation) -> Sheep {
    Sheep::start(None, |config| config.generation = generation)
}

fn header_of(
    generation: Generation,
    opcode: Opcode,
    want: usize,
    body: RequestBody,
) -> RequestHeader {
    let want = u32::try_from(want).unwrap();
    let mut header = RequestHeader::new(opcode, RequestFlags::empty(), want, body);
    header.proto_ver = generation.proto_ver(opcode);
    header
}

/// Sends a request to a node that ends of it without an answer.
fn assert_ends(sheep: &Sheep, header: RequestHeader, payload: &[u8]) {
    let answer = sheep.connect().try_call(header, payload);
    assert!(answer.is_err(), "{header:?} is answered");
    assert_is_gone(sheep);
}

fn assert_is_gone(sheep: &Sheep) {
    let death = sheep.wait_for_end();
    assert!(death.starts_with("ended, as sheep 0."), "{death}");
    let deadline = Instant::now() + Duration::from_secs(20);
    while TcpStream::connect(sheep.address()).is_ok() {
        assert!(Instant::now() < deadline, "it still listens");
        thread::yield_now();
    }
}

fn assert_lives(sheep: &Sheep) {
    let header = RequestHeader::new(
        Opcode::ReadVdis,
        RequestFlags::empty(),
        2 << 20,
        RequestBody::NONE,
    );
    let answer = sheep.connect().call(header, &[]);
    assert_eq!(answer.result(), ResultCode::Success);
    assert_eq!(sheep.server().death(), None);
}

fn detect(sheep: &Sheep) -> Detection {
    let mut client = sheep.connect();
    let mut detection = Detection::START;
    while let Detection::Ask(probe) = detection {
        let answer = client.call(probe.header(), &[]);
        detection = Detection::next(probe, &answer.header);
    }
    detection
}

#[test]
fn generation_is_detected_and_no_sheep_ends() {
    for generation in Generation::ALL {
        let sheep = sheep_of(generation);
        assert_eq!(detect(&sheep), Detection::Known(generation));
        assert_lives(&sheep);
        let unformatted = Sheep::start(None, |config| {
            config.generation = generation;
            config.format_if_new = false;
        });
        let expected = match generation {
            Generation::V0_8 | Generation::V0_9 => Detection::Undecided,
            known => Detection::Known(known),
        };
        assert_eq!(detect(&unformatted), expected);
    }
}

#[test]
fn version_newer_is_refused_and_ends_0_7() {
    for generation in Generation::ALL {
        let sheep = sheep_of(generation);
        let mut header = header_of(generation, Opcode::StatCluster, 48, RequestBody::NONE);
        header.proto_ver += 1;
        let answer = sheep.connect().call(header, &[]);
        assert_eq!(answer.result(), ResultCode::VerMismatch, "{generation}");
        if generation == Generation::V0_7 {
            assert_is_gone(&sheep);
        } else {
            assert_lives(&sheep);
        }
    }
}

#[test]
fn opcode_unknown_is_refused_or_ends_sheep() {
    for (generation, raw, ends) in [
        (Generation::V0_7, 0x18, true),
        (Generation::V0_7, 0x19, true),
        (Generation::V0_7, 0xbe, true),
        (Generation::V0_8, 0x18, false),
        (Generation::V0_8, 0xc9, true),
        (Generation::V0_8, 0xbe, true),
        (Generation::V0_9, 0x18, false),
        (Generation::V0_9, 0xc9, false),
        (Generation::V0_9, 0xca, false),
        (Generation::V1_0, 0x19, false),
        (Generation::V1_0, 0xb6, false),
    ] {
        let sheep = sheep_of(generation);
        let mut header = header_of(generation, Opcode::ReadVdis, 2 << 20, RequestBody::NONE);
        header.opcode = raw;
        if raw >= 0x80 {
            header.proto_ver = generation.internal_proto_ver();
        }
        println!("{raw:x} on {generation}");
        if ends {
            assert_ends(&sheep, header, &[]);
        } else {
            let answer = sheep.connect().call(header, &[]);
            assert_eq!(answer.result(), ResultCode::InvalidParms);
            assert_lives(&sheep);
        }
    }
}

#[test]
fn opcode_of_deleted_vids_ends_0_8_in_any_version() {
    for proto_ver in [0, 8, 9, 10] {
        let sheep = sheep_of(Generation::V0_8);
        let mut header = header_of(
            Generation::V0_8,
            Opcode::ReadDelVdis,
            2 << 20,
            RequestBody::NONE,
        );
        header.proto_ver = proto_ver;
        assert_ends(&sheep, header, &[]);
    }
    // Another one that it lacks is refused for its version first.
    let sheep = sheep_of(Generation::V0_8);
    let mut header = header_of(Generation::V0_8, Opcode::ClusterInfo, 48, RequestBody::NONE);
    header.proto_ver = 10;
    let answer = sheep.connect().call(header, &[]);
    assert_eq!(answer.result(), ResultCode::VerMismatch);
    assert_lives(&sheep);
}

#[test]
fn node_list_longer_than_buffer_ends_old_sheep() {
    for generation in OLD {
        let sheep = sheep_of(generation);
        let _other = sheep.add_node();
        let want = 2 * generation.node_record_len();
        let ask = |want| header_of(generation, Opcode::GetNodeList, want, RequestBody::NONE);
        let answer = sheep.connect().call(ask(want), &[]);
        assert_eq!(answer.payload.len(), want);
        assert_ends(&sheep, ask(want - 1), &[]);
    }
}

#[test]
fn buffer_too_small_ends_old_sheep() {
    for generation in OLD {
        for (opcode, want) in [
            (Opcode::GetNodeList, 0),
            (Opcode::StatRecovery, 8),
            (Opcode::MdInfo, 8),
            (Opcode::GetCacheInfo, 8),
            (Opcode::Stat, 0),
            (Opcode::ClusterInfo, 48),
        ] {
            if !generation.has_opcode(opcode) {
                continue;
            }
            println!("{opcode} on {generation}");
            let sheep = sheep_of(generation);
            assert_ends(
                &sheep,
                header_of(generation, opcode, want, RequestBody::NONE),
                &[],
            );
        }
        let sheep = sheep_of(generation);
        sheep.connect().new_vdi("demo");
        let header = header_of(generation, Opcode::GetVdiCopies, 4, RequestBody::NONE);
        if generation == Generation::V0_9 {
            let answer = sheep.connect().call(header, &[]);
            assert_eq!(answer.result(), ResultCode::BufferSmall);
        } else {
            assert_ends(&sheep, header, &[]);
        }
    }
}

#[test]
fn lookup_by_id_without_tag_ends_old_sheep() {
    for generation in OLD {
        let sheep = sheep_of(generation);
        let mut client = sheep.connect();
        let vid = client.new_vdi("demo");
        client.snapshot("demo", vid, "tag");
        let body = RequestBody::Vdi(VdiRequest {
            snapid: 1.into(),
            ..VdiRequest::default()
        });
        let mut header = header_of(generation, Opcode::GetVdiInfo, 256, body);
        header.flags = RequestFlags::WRITE.bits().into();
        assert_ends(&sheep, header, &name_field("demo"));
    }
}

#[test]
fn erasure_code_without_parity_ends_old_sheep() {
    for generation in [Generation::V0_8, Generation::V0_9] {
        let sheep = sheep_of(generation);
        let body = RequestBody::Vdi(VdiRequest {
            copy_policy: 0x10,
            copies: 1,
            ..sized()
        });
        let mut header = header_of(generation, Opcode::NewVdi, 256, body);
        header.flags = RequestFlags::WRITE.bits().into();
        assert_ends(&sheep, header, &name_field("demo"));
    }
}

#[test]
fn digest_of_nothing_ends_old_sheep() {
    for generation in OLD {
        let sheep = sheep_of(generation);
        let vid = sheep.connect().new_vdi("demo");
        let body = object(data_oid(vid, 0), 0);
        let header = header_of(generation, Opcode::GetHash, 0, body);
        if generation == Generation::V0_7 {
            assert_eq!(
                sheep.connect().call(header, &[]).result(),
                ResultCode::NoObj
            );
        } else {
            assert_ends(&sheep, header, &[]);
        }
    }
}

#[test]
fn read_past_end_takes_old_node_out() {
    for (generation, len) in [(Generation::V0_7, 4_198_968), (Generation::V0_8, 4_198_976)] {
        let sheep = sheep_of(generation);
        let mut client = sheep.connect();
        let vid = client.new_vdi("demo");
        client.first_write(vid, 0, b"data");
        assert_eq!(client.bytes(Oid::inode(vid), 0, len).len(), len);
        let past = client.read(Oid::inode(vid), 0, len + 8);
        assert_eq!(past.result(), ResultCode::Halt);
        assert_eq!(past.header.epoch.get(), 2);
        assert_eq!(
            client.read(data_oid(vid, 0), 0, 4).result(),
            ResultCode::Halt
        );
        assert_eq!(client.write(data_oid(vid, 0), 0, b"more"), ResultCode::Halt);
        let found = client.vdi_request(Opcode::GetVdiInfo, "demo", "", 0);
        assert_eq!(found.result(), ResultCode::Halt);
        let made = client.create_vdi("other", sized());
        assert_eq!(made.result(), ResultCode::VdiWrite);
        let nodes = client.call(
            header_of(
                generation,
                Opcode::GetNodeList,
                generation.node_list_len(),
                RequestBody::NONE,
            ),
            &[],
        );
        assert_eq!(
            (nodes.result(), nodes.payload.len()),
            (ResultCode::Success, 0)
        );
        assert_lives(&sheep);
    }
}

#[test]
fn create_with_shift_is_copies_to_0_7() {
    for generation in OLD {
        let sheep = sheep_of(generation);
        let mut client = sheep.connect();
        let request = VdiRequest {
            block_size_shift: 23,
            ..sized()
        };
        let answer = client.create_vdi("demo", request);
        let vid = answer.vid();
        let header = client.header_of(vid);
        assert_eq!(header.block_size_shift, 22, "{generation}");
        let copies: [u8; 4] = answer.header.tail[16..20].try_into().unwrap();
        let (in_answer, in_inode) = (u32::from_le_bytes(copies), header.nr_copies);
        let expected = match generation {
            Generation::V0_7 => (0x1700_0000, 0),
            _ => (1, 1),
        };
        assert_eq!((in_answer, in_inode), expected, "{generation}");
    }
}

#[test]
fn discard_of_entry_keeps_object_before_0_9() {
    for generation in OLD {
        let sheep = sheep_of(generation);
        let mut client = sheep.connect();
        let vid = client.new_vdi("demo");
        for index in 0..2 {
            client.first_write(vid, index, b"data");
        }
        assert_eq!(client.set_slot(vid, 0, None), ResultCode::Success);
        assert_eq!(client.discard(data_oid(vid, 1)), ResultCode::Success);
        let read = |client: &mut Client, index| client.read(data_oid(vid, index), 0, 4).result();
        let kept = generation != Generation::V0_9;
        let expected = if kept {
            ResultCode::Success
        } else {
            ResultCode::NoObj
        };
        assert_eq!(read(&mut client, 0), expected, "{generation}");
        assert_eq!(read(&mut client, 1), ResultCode::NoObj, "{generation}");
        client.vdi_request(Opcode::DelVdi, "demo", "", 0);
        assert_eq!(read(&mut client, 0), expected, "{generation}");
    }
}

#[test]
fn delete_removes_objects_with_last_of_family() {
    for generation in [Generation::V0_7, Generation::V0_8] {
        let sheep = sheep_of(generation);
        let mut client = sheep.connect();
        let first = client.new_vdi("demo");
        client.first_write(first, 0, b"data");
        let second = client.snapshot("demo", first, "tag");
        let clone = client.clone_vdi("clone", first);
        client.copy_on_write(clone, first, 0, b"copy");
        let delete = |client: &mut Client, name, tag| {
            client.vdi_request(Opcode::DelVdi, name, tag, 0).result()
        };
        let has = |client: &mut Client, vid| {
            client.read(data_oid(vid, 0), 0, 4).result() == ResultCode::Success
        };
        assert_eq!(delete(&mut client, "demo", "tag"), ResultCode::Success);
        assert!(has(&mut client, first), "its relatives may need it");
        let blanked = client.header_of(first);
        assert_eq!((blanked.name(), blanked.vdi_size.get()), (None, 64 << 20));
        assert_eq!(delete(&mut client, "clone", ""), ResultCode::Success);
        assert!(!has(&mut client, clone), "a clone's own objects go at once");
        assert_eq!(client.header_of(clone).vdi_size.get(), 0);
        assert_eq!(delete(&mut client, "demo", ""), ResultCode::Success);
        assert!(!has(&mut client, first));
        let used = client.vids(Opcode::ReadVdis);
        assert!(used.contains(&first.get()) && used.contains(&second.get()));
    }
}

#[test]
fn create_takes_vid_that_clone_needs() {
    for (generation, is_worst, reused) in [
        (Generation::V0_7, true, true),
        (Generation::V0_7, false, true),
        (Generation::V0_8, true, true),
        (Generation::V0_8, false, false),
        (Generation::V0_9, true, false),
    ] {
        let sheep = Sheep::start(None, |config| {
            config.generation = generation;
            config.worst_release = is_worst;
        });
        let mut client = sheep.connect();
        let first = client.new_vdi("demo");
        client.first_write(first, 0, b"data");
        client.snapshot("demo", first, "tag");
        let clone = client.clone_vdi("clone", first);
        for tag in ["", "tag"] {
            if generation == Generation::V0_9 {
                let vid = client.vdi_request(Opcode::GetVdiInfo, "demo", tag, 0).vid();
                assert_eq!(client.set_slot(vid, 0, None), ResultCode::Success);
            }
            client.vdi_request(Opcode::DelVdi, "demo", tag, 0);
        }
        let new = client.new_vdi("demo");
        assert_eq!(new == first, reused, "{generation}");
        client.first_write(new, 0, b"lost");
        assert_eq!(client.slot(clone, 0), Some(first));
        let found = client.bytes(data_oid(first, 0), 0, 4);
        assert_eq!(found == b"lost", reused, "{generation}");
    }
}

#[test]
fn clone_count_is_limited_by_child_slots() {
    for (generation, code) in [
        (Generation::V0_7, Some(ResultCode::NoBaseVdi)),
        (Generation::V0_8, Some(ResultCode::FullVdi)),
        (Generation::V0_9, None),
    ] {
        let sheep = sheep_of(generation);
        let mut client = sheep.connect();
        let first = client.new_vdi("demo");
        client.snapshot("demo", first, "tag");
        let slot = |client: &mut Client| client.bytes(Oid::inode(first), 568, 8);
        let children = slot(&mut client);
        assert_eq!(children[..4] != [0; 4], code.is_some(), "{generation}");
        let full = [7; 4096];
        assert_eq!(
            client.write(Oid::inode(first), 568, &full),
            ResultCode::Success
        );
        let made = client.create_vdi("clone", based_on(first, 0)).result();
        assert_eq!(made, code.unwrap_or(ResultCode::Success), "{generation}");
    }
}

#[test]
fn delete_with_objects_does_nothing_in_0_9() {
    let sheep = sheep_of(Generation::V0_9);
    let mut client = sheep.connect();
    let vid = client.new_vdi("demo");
    client.first_write(vid, 0, b"data");
    let deleted = client.vdi_request(Opcode::DelVdi, "demo", "", 0);
    assert_eq!(deleted.result(), ResultCode::Success);
    assert_eq!(
        client.vdi_request(Opcode::GetVdiInfo, "demo", "", 0).vid(),
        vid
    );
    assert_eq!(client.set_slot(vid, 0, None), ResultCode::Success);
    client.vdi_request(Opcode::DelVdi, "demo", "", 0);
    let found = client.vdi_request(Opcode::GetVdiInfo, "demo", "", 0);
    assert_eq!(found.result(), ResultCode::NoVdi);
}

#[test]
fn store_stays_with_its_generation() {
    let directory = tempfile::tempdir().unwrap();
    let sheep = Sheep::start(Some(directory), |config| {
        config.generation = Generation::V0_8
    });
    sheep.connect().new_vdi("demo");
    let directory = sheep.stop().unwrap();
    let mut config = Config::new(StoreKind::Directory(directory.path().to_path_buf()));
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let refused = runtime.block_on(Server::start(config.clone())).unwrap_err();
    assert_eq!(
        refused.to_string(),
        "the store is one of sheep 0.8: start with --generation 0.8, or on an empty directory"
    );
    config.generation = Generation::V0_8;
    runtime.block_on(Server::start(config)).unwrap();
}

#[test]
fn object_cache_is_refused_by_1_0() {
    let mut config = Config::new(StoreKind::Memory);
    config.object_cache = true;
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let refused = runtime.block_on(Server::start(config)).unwrap_err();
    assert_eq!(refused.to_string(), "sheep 1.0 has no object cache");
}

/// A sheep with an object cache, a client of it, and a client of a node without one.
fn cached(generation: Generation) -> (Sheep, Sheep, Client, Client) {
    let sheep = Sheep::start(None, |config| {
        config.generation = generation;
        config.object_cache = true;
    });
    let other = sheep.add_node();
    let (here, there) = (sheep.connect(), other.connect());
    (sheep, other, here, there)
}

fn write_with(
    client: &mut Client,
    opcode: Opcode,
    flags: RequestFlags,
    oid: Oid,
    data: &[u8],
) -> io::Result<Response> {
    let len = u32::try_from(data.len()).unwrap();
    let offset = match oid.kind() {
        Some(ObjectKind::Inode) => 4664,
        _ => 0,
    };
    let body = RequestBody::Object(ObjectRequest {
        oid: oid.raw().into(),
        cow_oid: oid.raw().into(),
        offset: offset.into(),
        ..ObjectRequest::default()
    });
    client.try_call(
        RequestHeader::new(opcode, flags | RequestFlags::WRITE, len, body),
        data,
    )
}

fn flush(client: &mut Client, vid: Vid) -> io::Result<Response> {
    let body = object(Oid::inode(vid), 0);
    client.try_call(
        RequestHeader::new(Opcode::FlushVdi, RequestFlags::empty(), 0, body),
        &[],
    )
}

#[test]
fn object_cache_write_reaches_others_with_flush() {
    for generation in OLD {
        let (_sheep, _other, mut here, mut there) = cached(generation);
        let vid = here.new_vdi("demo");
        there.first_write(vid, 0, b"old!");
        let oid = data_oid(vid, 0);
        write_with(
            &mut here,
            Opcode::WriteObj,
            RequestFlags::CACHE,
            oid,
            b"new!",
        )
        .unwrap();
        assert_eq!(here.bytes(oid, 0, 4), b"new!");
        assert_eq!(there.bytes(oid, 0, 4), b"old!");
        assert_eq!(flush(&mut here, vid).unwrap().result(), ResultCode::Success);
        assert_eq!(there.bytes(oid, 0, 4), b"new!");
        assert_eq!(there.write(oid, 0, b"last"), ResultCode::Success);
        assert_eq!(here.bytes(oid, 0, 4), b"new!", "it knows nothing of that");
        let truth = here.request_with_flags(Opcode::ReadObj, RequestFlags::COW, 4, object(oid, 0));
        assert_eq!(truth.payload, b"last");
        assert_eq!(
            flush(&mut there, vid).unwrap().result(),
            ResultCode::InvalidParms
        );
    }
}

#[test]
fn object_cache_keeps_stale_copy_after_bypass() {
    let (_sheep, _other, mut here, mut there) = cached(Generation::V0_9);
    let vid = here.new_vdi("demo");
    there.first_write(vid, 0, b"old!");
    let oid = data_oid(vid, 0);
    assert_eq!(here.bytes(oid, 0, 4), b"old!");
    write_with(&mut here, Opcode::WriteObj, RequestFlags::COW, oid, b"new!").unwrap();
    assert_eq!(there.bytes(oid, 0, 4), b"new!");
    assert_eq!(here.bytes(oid, 0, 4), b"old!");
    // One that pushes, of another object, brings it back.
    let other = data_oid(vid, 1);
    let whole = vec![1; OBJECT_LEN];
    let flags = RequestFlags::COW;
    write_with(&mut here, Opcode::CreateAndWriteObj, flags, other, &whole).unwrap();
    write_with(
        &mut here,
        Opcode::WriteObj,
        RequestFlags::DIRECT,
        other,
        b"x",
    )
    .unwrap();
    assert_eq!(there.bytes(oid, 0, 4), b"old!");
}

#[test]
fn object_cache_create_of_copied_ends_sheep() {
    for generation in OLD {
        let (sheep, _other, mut here, _there) = cached(generation);
        let vid = here.new_vdi("demo");
        here.first_write(vid, 0, b"data");
        let oid = data_oid(vid, 0);
        let again = write_with(
            &mut here,
            Opcode::CreateAndWriteObj,
            RequestFlags::empty(),
            oid,
            b"again",
        );
        assert!(again.is_err());
        assert_is_gone(&sheep);
    }
}

#[test]
fn object_cache_flush_without_space_ends_sheep() {
    let sheep = Sheep::start(None, |config| {
        config.generation = Generation::V0_8;
        config.object_cache = true;
        config.memory_limit = 5 << 20;
    });
    let filler = sheep.add_node();
    let (mut here, mut there) = (sheep.connect(), filler.connect());
    let vid = here.new_vdi("demo");
    let data = vec![1; 3 << 20];
    let flags = RequestFlags::CACHE;
    write_with(
        &mut here,
        Opcode::CreateAndWriteObj,
        flags,
        data_oid(vid, 0),
        &data,
    )
    .unwrap();
    there.first_write(vid, 1, &data);
    assert!(flush(&mut here, vid).is_err());
    assert_is_gone(&sheep);
    assert_lives(&filler);
}

#[test]
fn object_cache_late_index_hangs_0_9() {
    const FIRST_OF_SECOND_BLOCK: u32 = 48_114;
    for (generation, index, answers) in [
        (Generation::V0_9, FIRST_OF_SECOND_BLOCK, false),
        (Generation::V0_9, FIRST_OF_SECOND_BLOCK - 1, true),
        (Generation::V0_8, FIRST_OF_SECOND_BLOCK, true),
    ] {
        let (_sheep, _other, mut here, mut there) = cached(generation);
        let vid = there
            .create_vdi(
                "demo",
                VdiRequest {
                    vdi_size: (1u64 << 40).into(),
                    ..VdiRequest::default()
                },
            )
            .vid();
        let body = object(Oid::inode(vid), 4664 + 4 * index);
        let header = RequestHeader::new(
            Opcode::WriteObj,
            RequestFlags::CACHE | RequestFlags::WRITE,
            4,
            body,
        );
        assert_eq!(
            here.call(header, vid.get().as_bytes()).result(),
            ResultCode::Success
        );
        here.stream()
            .set_read_timeout(Some(Duration::from_millis(500)))
            .unwrap();
        let flushed = flush(&mut here, vid);
        assert_eq!(flushed.is_ok(), answers, "{generation}, entry {index}");
        // It runs on otherwise.
        assert_eq!(there.slot(vid, 0), None);
    }
}

#[test]
fn object_cache_is_dirty_after_restart() {
    let directory = tempfile::tempdir().unwrap();
    let start = |directory| {
        Sheep::start(Some(directory), |config| {
            config.generation = Generation::V0_8;
            config.object_cache = true;
        })
    };
    let sheep = start(directory);
    let mut here = sheep.connect();
    let vid = here.new_vdi("demo");
    here.first_write(vid, 0, b"data");
    let bypass = RequestFlags::COW;
    let oid = data_oid(vid, 0);
    write_with(&mut here, Opcode::WriteObj, bypass, oid, b"new!").unwrap();
    drop(here);
    let sheep = start(sheep.stop().unwrap());
    let mut here = sheep.connect();
    let header = header_of(
        Generation::V0_8,
        Opcode::GetCacheInfo,
        12_312,
        RequestBody::NONE,
    );
    let info = here.call(header, &[]).payload;
    let number = |at: usize| u32::from_le_bytes(info[at..at + 4].try_into().unwrap());
    assert_eq!((number(16), number(20), number(24)), (vid.get(), 2, 2));
    assert_eq!(here.bytes(oid, 0, 4), b"data");
    assert_eq!(flush(&mut here, vid).unwrap().result(), ResultCode::Success);
    let truth = here.request_with_flags(Opcode::ReadObj, bypass, 4, object(oid, 0));
    assert_eq!(truth.payload, b"data", "what was newer is lost");
}

#[test]
fn program_death_has_its_own_status() {
    let directory = tempfile::tempdir().unwrap();
    let mut program = Program::start_with(directory.path(), &["--generation", "0.8"]);
    let header = header_of(
        Generation::V0_8,
        Opcode::ReadVdis,
        2 << 20,
        RequestBody::NONE,
    );
    let deadly = RequestHeader {
        opcode: Opcode::ReadDelVdis as u8,
        proto_ver: Generation::V0_8.internal_proto_ver(),
        ..header
    };
    assert!(
        Client::connect(program.address)
            .try_call(deadly, &[])
            .is_err()
    );
    assert_eq!(program.wait(), Some(70));
    // What it had answered is there.
    let again = Program::start_with(directory.path(), &["--generation", "0.8"]);
    let answer = Client::connect(again.address).call(header, &[]);
    assert_eq!(answer.result(), ResultCode::Success);
}

#[test]
fn lock_is_lookup_before_0_9() {
    for generation in [Generation::V0_7, Generation::V0_8] {
        let sheep = sheep_of(generation);
        let mut client = sheep.connect();
        let vid = client.new_vdi("demo");
        for _again in 0..2 {
            assert_eq!(
                client.vdi_request(Opcode::LockVdi, "demo", "", 0).vid(),
                vid
            );
        }
    }
}

#[test]
fn lock_is_always_taken_by_worst_0_9() {
    for (is_worst, again) in [(true, ResultCode::VdiLocked), (false, ResultCode::Success)] {
        let sheep = Sheep::start(None, |config| {
            config.generation = Generation::V0_9;
            config.worst_release = is_worst;
        });
        let mut client = sheep.connect();
        let vid = client.new_vdi("demo");
        let lock = |client: &mut Client| client.vdi_request(Opcode::LockVdi, "demo", "", 0);
        assert_eq!(lock(&mut client).vid(), vid);
        assert_eq!(lock(&mut client).result(), again);
        // The cluster does not say so.
        let header = header_of(
            Generation::V0_9,
            Opcode::ClusterInfo,
            491_568,
            RequestBody::NONE,
        );
        let info = client.call(header, &[]).payload;
        assert_eq!(info[16] & 0x08, 0);
    }
}

#[test]
fn read_in_version_2_leaves_zeros_out() {
    for generation in Generation::ALL {
        let sheep = sheep_of(generation);
        let mut client = sheep.connect();
        let vid = client.new_vdi("demo");
        client.first_write(vid, 0, b"");
        assert_eq!(
            client.write(data_oid(vid, 0), 8192, b"data"),
            ResultCode::Success
        );
        let body = object(data_oid(vid, 0), 4096);
        let answer = client.request(Opcode::ReadObj, 16_384, body);
        let ResponseBody::Object(body) = answer.header.body() else {
            panic!("{answer:?}");
        };
        let (front, len) = (body.offset.get(), answer.payload.len());
        let expected = match generation {
            Generation::V0_7 => (4096, 4096),
            _ => (0, 16_384),
        };
        assert_eq!((front, len), expected, "{generation}");
    }
}

#[test]
fn read_peer_is_served_where_dog_needs_it() {
    for generation in Generation::ALL {
        let sheep = sheep_of(generation);
        let mut client = sheep.connect();
        let vid = client.new_vdi("demo");
        client.first_write(vid, 0, b"data");
        let body = object(data_oid(vid, 0), 0);
        let mut header = header_of(generation, Opcode::ReadPeer, 4, body);
        header.epoch = 1.into();
        let expected = match generation {
            Generation::V0_7 | Generation::V0_8 => (ResultCode::Success, &b"data"[..]),
            Generation::V0_9 | Generation::V1_0 => (ResultCode::InvalidParms, &b""[..]),
        };
        let answer = client.call(header, &[]);
        assert_eq!(
            (answer.result(), &answer.payload[..]),
            expected,
            "{generation}"
        );
    }
}
