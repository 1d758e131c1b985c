//! Malformed requests: they get a response or close their connection, and other
//! connections are still served.

use std::io::{Read, Write};
use std::net::Shutdown;

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use proptest::prelude::*;
use sheep_proto::decoder;
use sheep_proto::header::BODY_LEN;
use sheep_proto::limits::{HEADER_LEN, MAX_PAYLOAD_LEN, VID_BITMAP_LEN};
use sheep_proto::{
    ClusterFlags, ObjectRequest, Oid, Opcode, RequestBody, RequestFlags, RequestHeader, ResultCode,
    VdiRequest, Vid,
};
use zerocopy::IntoBytes;

use crate::client::{Client, OBJECT_LEN, Sheep, data_oid, name_field, object, sized};
use crate::program::Program;

fn assert_alive(sheep: &Sheep) {
    let response = sheep
        .connect()
        .request(Opcode::GetClusterDefault, 0, RequestBody::NONE);
    assert_eq!(response.result(), ResultCode::Success);
}

fn assert_closed(client: &mut Client) {
    let mut rest = Vec::new();
    // A reset is as good as an end of stream.
    if client.stream().read_to_end(&mut rest).is_ok() {
        assert!(rest.is_empty());
    }
}

#[test]
fn malformed_request_of_garbage_is_version_mismatch() {
    let sheep = Sheep::in_memory();
    let mut client = sheep.connect();
    client.stream().write_all(&[0xa8; 48]).unwrap();
    assert_eq!(client.receive().unwrap().result(), ResultCode::VerMismatch);
    assert_alive(&sheep);
}

#[test]
fn malformed_request_with_oversized_payload_closes_connection() {
    let sheep = Sheep::in_memory();
    for len in [u32::try_from(MAX_PAYLOAD_LEN).unwrap() + 1, u32::MAX] {
        let mut client = sheep.connect();
        let header = RequestHeader::new(
            Opcode::WriteObj,
            RequestFlags::WRITE,
            len,
            RequestBody::NONE,
        );
        client.stream().write_all(header.as_bytes()).unwrap();
        assert_closed(&mut client);
    }
    assert_alive(&sheep);
}

#[test]
fn stalled_frames_do_not_block_other_clients() {
    let sheep = Sheep::in_memory();
    let mut stalled: Vec<_> = (0..64).map(|_| sheep.connect()).collect();
    let len = u32::try_from(MAX_PAYLOAD_LEN).unwrap();
    let header = RequestHeader::new(
        Opcode::WriteObj,
        RequestFlags::WRITE,
        len,
        RequestBody::NONE,
    );
    for (number, client) in stalled.iter_mut().enumerate() {
        let cut = if number % 2 == 0 { 20 } else { 48 };
        client
            .stream()
            .write_all(&header.as_bytes()[..cut])
            .unwrap();
    }
    let mut client = sheep.connect();
    let vid = client.new_vdi("demo");
    assert_eq!(
        client.create(data_oid(vid, 0), 0, &vec![1; OBJECT_LEN]),
        ResultCode::Success
    );
    for client in &mut stalled {
        client.stream().shutdown(Shutdown::Write).unwrap();
        assert_closed(client);
    }
}

#[test]
fn malformed_request_with_wrong_buffer_size_is_refused() {
    let sheep = Sheep::in_memory();
    let mut client = sheep.connect();
    client.new_vdi("demo");
    for (opcode, wants) in [
        (Opcode::GetNodeList, &[0, 79][..]),
        (Opcode::ClusterInfo, &[0, 48, 491_567]),
        (Opcode::Stat, &[0, 119]),
        (Opcode::StatRecovery, &[0, 23]),
        (Opcode::GetLogLevel, &[0, 3]),
        (Opcode::GetVnodes, &[0]),
        (Opcode::GetStoreList, &[0, 11]),
        (Opcode::MdInfo, &[0, 263_687, 263_689]),
        (
            Opcode::ReadVdis,
            &[0, VID_BITMAP_LEN - 1, VID_BITMAP_LEN + 1],
        ),
        (Opcode::ReadDelVdis, &[0, VID_BITMAP_LEN - 1]),
    ] {
        for &want in wants {
            let response = client.request(opcode, want, RequestBody::NONE);
            assert_eq!(
                response.result(),
                ResultCode::InvalidParms,
                "{opcode} {want}"
            );
            assert!(response.payload.is_empty());
        }
    }
    let copies = client.request(Opcode::GetVdiCopies, 1427, RequestBody::NONE);
    assert_eq!(copies.result(), ResultCode::BufferSmall);
    let huge = client.request(
        Opcode::ReadObj,
        0xffff_ffff,
        object(Oid::inode(Vid::new(1).unwrap()), 0),
    );
    assert_eq!(huge.result(), ResultCode::NoObj);
}

#[test]
fn pipelining_completes_every_request_after_half_close() {
    const REQUESTS: usize = 500;
    let sheep = Sheep::in_memory();
    let mut client = sheep.connect();
    let vid = client.new_vdi("demo");
    let read = |want| {
        RequestHeader::new(
            Opcode::ReadObj,
            RequestFlags::empty(),
            want,
            object(Oid::inode(vid), 0),
        )
    };
    let mut expected: std::collections::HashMap<_, _> = (0..REQUESTS)
        .map(|number| {
            let want = if number % 50 == 0 { 12_587_576 } else { 4 };
            let id = client.send(read(want), &[]).unwrap();
            (id, want as usize)
        })
        .collect();
    // Half-closed: earlier requests still get their responses.
    client.stream().shutdown(Shutdown::Write).unwrap();
    for _ in 0..REQUESTS {
        let response = client.receive().unwrap();
        let want = expected.remove(&response.header.id.get()).unwrap();
        assert_eq!(response.payload.len(), want);
    }
    assert_closed(&mut client);
}

#[test]
fn stalled_reader_does_not_block_other_clients() {
    let sheep = Sheep::in_memory();
    let mut stalled = sheep.connect();
    let vid = stalled.new_vdi("demo");
    let header = RequestHeader::new(
        Opcode::ReadObj,
        RequestFlags::empty(),
        12_587_576,
        object(Oid::inode(vid), 0),
    );
    for _ in 0..200 {
        stalled.send(header, &[]).unwrap();
    }
    let mut client = sheep.connect();
    for index in 0..4 {
        assert_eq!(
            client.create(data_oid(vid, index), 0, &vec![1; OBJECT_LEN]),
            ResultCode::Success
        );
    }
}

#[test]
fn malformed_request_that_crashes_sheepdog_gets_a_response() {
    let sheep = Sheep::start(None, |config| config.format_if_new = false);
    let mut client = sheep.connect();
    let absent = Oid::inode(Vid::new(5).unwrap());
    let exist = client.request(Opcode::Exist, 0, object(absent, 0));
    assert_eq!(exist.result(), ResultCode::NoObj, "before the format");
    assert_eq!(
        client.format(ClusterFlags::USE_LOCK, 1),
        ResultCode::Success
    );
    let vid = client.new_vdi("demo");
    client.snapshot("demo", vid, "tag");

    for flags in [RequestFlags::empty(), RequestFlags::WRITE] {
        let header = RequestHeader::new(Opcode::GetVdiAttr, flags, 0, RequestBody::NONE);
        assert_eq!(client.call(header, &[]).result(), ResultCode::InvalidParms);
    }
    let digest = client.request(Opcode::GetHash, 0, object(absent, 0));
    assert_eq!(digest.result(), ResultCode::NoObj, "epoch 0, absent");
    let without_parity = VdiRequest {
        copies: 1,
        copy_policy: 0x20,
        ..sized()
    };
    let refused = client.create_vdi("parity", without_parity);
    assert_eq!(refused.result(), ResultCode::InvalidParms);
    let coherence = client.request(Opcode::InodeCoherence, 0, RequestBody::NONE);
    assert_eq!(coherence.result(), ResultCode::InvalidParms);

    // A name without a tag after it, and the id of a snapshot that has a tag.
    let body = RequestBody::Vdi(VdiRequest {
        snapid: 1.into(),
        ..VdiRequest::default()
    });
    for opcode in [Opcode::GetVdiInfo, Opcode::DelVdi] {
        let found = client.write_request(opcode, RequestFlags::empty(), body, &name_field("demo"));
        assert_eq!(found.vid(), vid, "{opcode}");
    }
}

#[test]
fn malformed_request_with_unknown_opcode_is_refused() {
    let sheep = Sheep::in_memory();
    let mut client = sheep.connect();
    for raw in (0..=u8::MAX).filter(|&raw| Opcode::try_from(raw).is_err()) {
        let mut header =
            RequestHeader::new(Opcode::ReadObj, RequestFlags::empty(), 0, RequestBody::NONE);
        header.opcode = raw;
        header.proto_ver = if raw < 0x80 { 2 } else { 10 };
        client.send(header, &[]).unwrap();
        let response = client.receive().unwrap();
        assert_eq!(response.result(), ResultCode::InvalidParms, "{raw:#x}");
        assert_eq!(response.header.opcode, raw);
    }
}

#[test]
fn frame_of_maximum_length_is_served() {
    let sheep = Sheep::in_memory();
    let mut client = sheep.connect();
    let large = VdiRequest {
        block_size_shift: 26,
        ..sized()
    };
    let vid = client.create_vdi("large", large).vid();
    let data: Vec<u8> = (0..MAX_PAYLOAD_LEN)
        .map(|at| u8::try_from(at >> 12 & 0xff).unwrap())
        .collect();
    assert_eq!(
        client.create(data_oid(vid, 0), 0, &data),
        ResultCode::Success
    );
    assert!(client.bytes(data_oid(vid, 0), 0, MAX_PAYLOAD_LEN) == data);
}

#[test]
fn frame_may_arrive_byte_by_byte() {
    let sheep = Sheep::in_memory();
    let mut client = sheep.connect();
    let vid = client.new_vdi("demo");
    let header = RequestHeader::new(
        Opcode::CreateAndWriteObj,
        RequestFlags::WRITE,
        100,
        object(data_oid(vid, 0), 0),
    );
    for byte in header.as_bytes().iter().chain(&[7; 100]) {
        client.stream().write_all(&[*byte]).unwrap();
    }
    assert_eq!(client.receive().unwrap().result(), ResultCode::Success);
    assert_eq!(client.bytes(data_oid(vid, 0), 98, 3), [7, 7, 0]);
}

/// Bytes of memory that the program uses.
fn resident_bytes(program: &Program) -> usize {
    let path = format!("/proc/{}/status", program.child.id());
    let status = std::fs::read_to_string(path).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:"));
    let kib = line.unwrap().split_whitespace().nth(1).unwrap();
    kib.parse::<usize>().unwrap() << 10
}

#[test]
fn connections_by_the_thousand_use_bounded_memory() {
    const CONNECTIONS: usize = 1000;
    const MOST_MEMORY: usize = 192 << 20;
    // The program's connections are its own; these are ours.
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, most, most).unwrap();
    let directory = tempfile::tempdir().unwrap();
    let program = Program::start(directory.path());
    let mut idle: Vec<_> = (0..CONNECTIONS)
        .map(|_| Client::connect(program.address))
        .collect();
    let vid = idle[0].new_vdi("demo");
    for client in &mut idle {
        assert_eq!(client.header_of(vid).vid(), Some(vid));
    }
    assert!(resident_bytes(&program) < MOST_MEMORY, "idle");

    // All but one announce as much as they may, and send little of it.
    let len = u32::try_from(MAX_PAYLOAD_LEN).unwrap();
    let body = object(data_oid(vid, 0), 0);
    let header = RequestHeader::new(Opcode::WriteObj, RequestFlags::WRITE, len, body);
    for client in &mut idle[1..] {
        let started = [header.as_bytes(), &[1; 1000]].concat();
        client.stream().write_all(&started).unwrap();
    }
    assert_eq!(
        idle[0].create(data_oid(vid, 0), 0, &vec![1; OBJECT_LEN]),
        ResultCode::Success
    );
    assert!(
        resident_bytes(&program) < MOST_MEMORY,
        "with frames started"
    );
}

fn opcode() -> impl Strategy<Value = u8> {
    let stops = [Opcode::Shutdown as u8, Opcode::KillNode as u8];
    prop_oneof![
        4 => prop::sample::select(Opcode::ALL).prop_map(|opcode| opcode as u8),
        1 => any::<u8>(),
    ]
    .prop_filter("it would stop the server", move |raw| !stops.contains(raw))
}

/// Parameters that reach deeper than random bytes do.
fn tail(vid: u32) -> impl Strategy<Value = [u8; BODY_LEN]> {
    let kind = prop::sample::select(vec![0u64, 1 << 63, 1 << 62, 1 << 61, 1 << 60, 1 << 59]);
    let number = prop_oneof![0u32..4, any::<u32>()];
    let offset = prop_oneof![
        0u32..5000,
        4_194_300u32..4_194_310,
        4_198_960u32..4_198_980,
        any::<u32>()
    ];
    let oid = move |kind: u64, number: u32| kind | u64::from(vid) << 32 | u64::from(number);
    prop_oneof![
        2 => (kind, number.clone(), number, offset).prop_map(move |(kind, a, b, offset)| {
            ObjectRequest {
                oid: oid(kind, a).into(),
                cow_oid: oid(kind, b).into(),
                offset: offset.into(),
                ..ObjectRequest::default()
            }
            .into()
        }),
        1 => any::<[u8; BODY_LEN]>(),
    ]
}

fn payload() -> impl Strategy<Value = Vec<u8>> {
    let bytes = prop_oneof![
        Just(b"demo".to_vec()),
        prop::collection::vec(any::<u8>(), 0..600)
    ];
    let len = prop::sample::select(vec![0usize, 4, 6, 255, 256, 512, 4096, 66_320]);
    (bytes, prop::option::of(len)).prop_map(|(mut bytes, len)| {
        if let Some(len) = len {
            bytes.resize(len, 0);
        }
        bytes
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn malformed_request_always_gets_a_response(
        frames in prop::collection::vec(
            (opcode(), any::<u16>(), prop_oneof![Just(2u8), Just(10), any::<u8>()], tail(0x76_d396), payload(), 0u32..300_000),
            1..40,
        ),
    ) {
        let sheep = Sheep::in_memory();
        let mut client = sheep.connect();
        client.new_vdi("demo");
        for (opcode, flags, proto_ver, tail, payload, want) in frames {
            let flags = RequestFlags::from_bits_retain(flags);
            let has_payload = flags.contains(RequestFlags::WRITE);
            let len = if has_payload { u32::try_from(payload.len()).unwrap() } else { want };
            let header = RequestHeader {
                proto_ver,
                opcode,
                flags: flags.bits().into(),
                epoch: 0.into(),
                id: 0.into(),
                data_length: len.into(),
                tail,
            };
            let payload = if has_payload { payload } else { Vec::new() };
            let response = client.try_call(header, &payload);
            prop_assert!(response.is_ok(), "{header:?}: {response:?}");
        }
    }
}

/// Frames, any of which may be cut short; the whole ones before it get responses.
fn complete_frames(bytes: &[u8]) -> usize {
    let limit = u32::try_from(MAX_PAYLOAD_LEN).unwrap();
    let mut rest = bytes;
    let mut count = 0;
    while let Ok(Some(header)) = decoder::request(rest, limit) {
        let len = HEADER_LEN + header.payload_len() as usize;
        if rest.len() < len {
            break;
        }
        count += 1;
        rest = &rest[len..];
    }
    count
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    /// The same entry as the fuzz target `connection`, on a stable compiler.
    #[test]
    fn malformed_request_does_not_affect_earlier_frames(
        frames in prop::collection::vec((opcode(), any::<bool>(), tail(0x76_d396), payload(), 0u32..5000), 0..12),
        behind in prop::collection::vec(any::<u8>(), 0..120),
    ) {
        let mut bytes = Vec::new();
        for (opcode, has_payload, tail, payload, want) in frames {
            let payload = if has_payload { payload } else { Vec::new() };
            let header = RequestHeader {
                proto_ver: if opcode < 0x80 { 2 } else { 10 },
                opcode,
                flags: u16::from(has_payload).into(),
                epoch: 0.into(),
                id: 0.into(),
                data_length: if has_payload { u32::try_from(payload.len()).unwrap() } else { want }.into(),
                tail,
            };
            bytes.extend_from_slice(header.as_bytes());
            bytes.extend_from_slice(&payload);
        }
        bytes.extend_from_slice(&behind);
        // No frame that starts in the bytes after it may stop the server.
        let stops = [Opcode::Shutdown as u8, Opcode::KillNode as u8];
        prop_assume!(behind.len() < HEADER_LEN || !stops.contains(&behind[1]));

        let sheep = Sheep::in_memory();
        let mut client = sheep.connect();
        client.new_vdi("demo");
        client.stream().write_all(&bytes).unwrap();
        client.stream().shutdown(Shutdown::Write).unwrap();
        for number in 0..complete_frames(&bytes) {
            prop_assert!(client.receive().is_ok(), "response {number}");
        }
        assert_alive(&sheep);
    }
}
