//! Requests captured between real clients and a real sheep, sent to this server; its
//! responses must be equal.
//!
//! A capture is one JSON object per line: `dir` is `req` or `rsp`, `hdr` the
//! header in hex, `seg` the payload as `[offset, hex]` or `[offset, count,
//! byte]`, zero elsewhere. Times differ between runs and are masked, as are
//! facts about the node. Not replayed are 09b, which was recorded without most
//! of its bytes, and 13, where a node waits for others: here none ever does.

use std::collections::HashMap;
use std::ops::Range;

use serde_json::Value;
use sheep_proto::limits::{INODE_GREF_OFFSET, INODE_LEN};
use sheep_proto::vdi_state::VdiState;
use sheep_proto::{
    ClusterFlags, ClusterRequest, InodeHeader, ObjectKind, Oid, Opcode, RequestBody, RequestFlags,
    RequestHeader, ResponseBody, ResponseHeader, ResultCode, VdiRequest,
};
use zerocopy::{FromBytes, FromZeros};

use crate::client::{Client, Response, Sheep};

/// Answers that differ on purpose, by sequence number of the request.
pub(crate) type Deviations<'a> = &'a [(u64, Expected, &'a str)];

pub(crate) enum Expected {
    Code(ResultCode),
    /// The same code and length, other bytes.
    OtherBytes,
    /// The same code, and no payload with it.
    NoPayload,
}

pub(crate) use Expected::{Code, NoPayload, OtherBytes};

struct Exchange {
    seq: u64,
    connection: u64,
    request: RequestHeader,
    data: Vec<u8>,
    response: ResponseHeader,
    response_payload: Vec<u8>,
}

fn decode_hex(text: &str) -> Vec<u8> {
    let digits = text.as_bytes().chunks(2);
    digits
        .map(|pair| u8::from_str_radix(str::from_utf8(pair).unwrap(), 16).unwrap())
        .collect()
}

fn payload(line: &Value) -> Vec<u8> {
    let number = |value: &Value| usize::try_from(value.as_u64().unwrap()).unwrap();
    let mut payload = vec![0; number(&line["len"])];
    for segment in line["seg"].as_array().into_iter().flatten() {
        let segment = segment.as_array().unwrap();
        let start = number(&segment[0]);
        let bytes = match &segment[1..] {
            [literal] => decode_hex(literal.as_str().unwrap()),
            [count, byte] => decode_hex(byte.as_str().unwrap()).repeat(number(count)),
            _ => panic!("a segment of unknown form"),
        };
        payload[start..start + bytes.len()].copy_from_slice(&bytes);
    }
    payload
}

fn parse(capture: &str) -> Vec<Exchange> {
    let mut waiting = HashMap::new();
    let mut exchanges = Vec::new();
    for line in capture.lines() {
        let line: Value = serde_json::from_str(line).unwrap();
        let Some(header) = line["hdr"].as_str() else {
            continue;
        };
        let header = decode_hex(header);
        let connection = line["conn"].as_u64().unwrap();
        if line["dir"] == "req" {
            let request = RequestHeader::read_from_bytes(&header).unwrap();
            let seq = line["seq"].as_u64().unwrap();
            waiting.insert(
                (connection, request.id.get()),
                (seq, request, payload(&line)),
            );
        } else {
            let response = ResponseHeader::read_from_bytes(&header).unwrap();
            let key = (connection, response.id.get());
            let (seq, request, data) = waiting.remove(&key).unwrap();
            exchanges.push(Exchange {
                seq,
                connection,
                request,
                data,
                response,
                response_payload: payload(&line),
            });
        }
    }
    exchanges.sort_by_key(|exchange| exchange.seq);
    exchanges
}

/// Time of the VDI's creation in an attribute.
const ATTRIBUTE_TIME: Range<usize> = 512..520;

/// Hides the bytes of a response that may differ: times, reference counts, and everything
/// about the node.
fn mask(request: &RequestHeader, answer: &ResponseHeader, payload: &mut [u8]) {
    match (Opcode::try_from(request.opcode), request.body()) {
        (
            Ok(
                Opcode::GetNodeList
                | Opcode::StatCluster
                | Opcode::ClusterInfo
                | Opcode::MdInfo
                | Opcode::Stat,
            ),
            _,
        ) => payload.fill(0),
        (Ok(Opcode::GetVdiCopies), _) => {
            // Older generations say no more than that nobody holds a lock.
            let states = <[VdiState]>::mut_from_bytes(payload).unwrap_or_default();
            for state in states {
                state.owner = FromZeros::new_zeroed();
                state.participants = FromZeros::new_zeroed();
            }
        }
        (Ok(Opcode::ReadObj), RequestBody::Object(object)) => {
            let masked: &[Range<usize>] = match Oid::from_raw(object.oid.get()).kind() {
                // Time of creation and of the snapshot; reference counts, which are kept elsewhere.
                Some(ObjectKind::Inode) => &[512..528, INODE_GREF_OFFSET..INODE_LEN],
                Some(ObjectKind::Attribute) => std::slice::from_ref(&ATTRIBUTE_TIME),
                _ => &[],
            };
            let mut offset = object.offset.get() as usize;
            if let ResponseBody::Object(answer) = answer.body() {
                // Zeros in front that 0.7 leaves out.
                offset += usize::try_from(answer.offset.get()).unwrap();
            }
            for range in masked {
                let end = range.end.saturating_sub(offset).min(payload.len());
                let start = range.start.saturating_sub(offset).min(end);
                payload[start..end].fill(0);
            }
        }
        (Ok(Opcode::GetCacheInfo), _) => {
            // Size and use of the cache; behind its VDIs, what was in memory there.
            const VDIS: usize = 16;
            const COUNT: usize = 12_304;
            let count = payload.get(COUNT).copied().unwrap_or_default();
            let end = VDIS + usize::from(count) * 12;
            for range in [0..VDIS, end..COUNT, COUNT + 4..COUNT + 8] {
                if let Some(bytes) = payload.get_mut(range) {
                    bytes.fill(0);
                }
            }
        }
        _ => {}
    }
}

/// The tail of a response header without the fields about the node.
fn tail(exchange: &Exchange, response: &ResponseHeader) -> [u8; 32] {
    let mut tail = response.tail;
    // Space of the node; a digest of an inode with its times.
    if [Opcode::StatSheep, Opcode::GetHash]
        .contains(&Opcode::try_from(exchange.request.opcode).unwrap())
    {
        tail[4..].fill(0);
    }
    tail
}

fn check(exchange: &Exchange, got: Response, deviations: Deviations<'_>) {
    let (seq, request) = (exchange.seq, &exchange.request);
    let deviation = deviations.iter().find(|(at, ..)| *at == seq);
    // A documented deviation must differ from the captured response.
    let expected_code = match deviation {
        Some((_, Code(code), why)) => {
            assert_eq!(got.result(), *code, "#{seq}, which differs because {why}");
            assert_ne!(
                got.result(),
                exchange.response.result(),
                "#{seq} does not differ"
            );
            return;
        }
        Some((_, NoPayload, why)) => {
            assert_eq!(got.result(), exchange.response.result(), "#{seq}");
            assert!(
                got.payload.is_empty(),
                "#{seq}, which differs because {why}"
            );
            assert!(
                !exchange.response_payload.is_empty(),
                "#{seq} does not differ"
            );
            return;
        }
        _ => exchange.response.result(),
    };
    // Header and payload are equal, but for fields that depend on time and place.
    assert_eq!(got.result(), expected_code, "#{seq} {request:?}");
    assert_eq!(got.header.epoch, exchange.response.epoch, "#{seq}");
    if expected_code == ResultCode::Success {
        let (ours, theirs) = (
            tail(exchange, &got.header),
            tail(exchange, &exchange.response),
        );
        assert_eq!(ours, theirs, "#{seq} {request:?}");
    }
    let (mut ours, mut theirs) = (got.payload, exchange.response_payload.clone());
    assert_eq!(ours.len(), theirs.len(), "#{seq} {request:?}");
    mask(request, &got.header, &mut ours);
    mask(request, &exchange.response, &mut theirs);
    let same = ours == theirs;
    let at = ours.iter().zip(&theirs).position(|(a, b)| a != b);
    match deviation {
        Some((.., why)) => assert!(!same, "#{seq} does not differ, though {why}"),
        None => assert!(same, "#{seq} differs from byte {at:?} on: {request:?}"),
    }
}

/// One capture, with the actions of the test before some of its requests.
pub(crate) struct Replay<'a> {
    sheep: &'a Sheep,
    connections: HashMap<u64, Client>,
    exchanges: Vec<Exchange>,
    deviations: Deviations<'a>,
}

impl<'a> Replay<'a> {
    pub(crate) fn new(capture: &str, sheep: &'a Sheep, deviations: Deviations<'a>) -> Self {
        let exchanges = parse(capture);
        for (seq, ..) in deviations {
            let snapshot_exists = |exchange: &Exchange| exchange.seq == *seq;
            assert!(exchanges.iter().any(snapshot_exists), "#{seq}");
        }
        Self {
            sheep,
            connections: HashMap::new(),
            exchanges,
            deviations,
        }
    }

    /// Sends the requests that are left before number `end`.
    pub(crate) fn replay_until(&mut self, end: u64) -> &mut Self {
        let later = self
            .exchanges
            .partition_point(|exchange| exchange.seq < end);
        assert_ne!(later, 0, "no request before #{end}");
        for exchange in self.exchanges.drain(..later) {
            let client = self
                .connections
                .entry(exchange.connection)
                .or_insert_with(|| self.sheep.connect());
            let got = client.call(exchange.request, &exchange.data);
            check(&exchange, got, self.deviations);
        }
        self
    }

    /// Leaves out the requests that are left before number `end`.
    fn skip_until(&mut self, end: u64) -> &mut Self {
        self.exchanges.retain(|exchange| exchange.seq >= end);
        self
    }

    /// True when every request was sent.
    pub(crate) fn is_finished(&self) -> bool {
        self.exchanges.is_empty()
    }

    pub(crate) fn finish(&mut self) {
        self.replay_until(u64::MAX);
    }

    /// The inode header in a response.
    pub(crate) fn inode_in(&self, seq: u64) -> InodeHeader {
        let mut exchanges = self.exchanges.iter();
        let exchange = exchanges.find(|exchange| exchange.seq == seq).unwrap();
        // Zeros behind it may have been left out.
        let mut bytes = exchange.response_payload.clone();
        bytes.resize(size_of::<InodeHeader>().max(bytes.len()), 0);
        InodeHeader::read_from_prefix(&bytes).unwrap().0
    }

    /// Sends the next requests, as many as this.
    pub(crate) fn replay_next(&mut self, count: usize) {
        let end = self.exchanges.get(count).map_or(u64::MAX, |next| next.seq);
        self.replay_until(end);
    }
}

pub(crate) fn replay(capture: &str, sheep: &Sheep, deviations: Deviations<'_>) {
    Replay::new(capture, sheep, deviations).finish();
}

/// Replays a capture on a fresh server of each kind.
macro_rules! replays {
    ($($test:ident: $file:literal, $deviations:expr;)+) => {$(
        #[test]
        fn $test() {
            for (store, sheep) in Sheep::for_each_store() {
                println!("store: {store}");
                replay(include_str!(concat!("../captures/", $file)), &sheep, $deviations);
            }
        }
    )+};
}

replays! {
    replay_vdi_lifecycle: "02-vdi-lifecycle.jsonl", &[];
    replay_object_io: "04-object-io.jsonl", &[
        (25, Code(ResultCode::InvalidParms), "a range must lie in its object"),
    ];
    replay_copy_on_write: "05-cow-and-refcount.jsonl", &[
        (37, Code(ResultCode::NoObj), "there are no ledgers"),
    ];
    replay_discard: "06-discard-flush-cache.jsonl", &[
        (25, Code(ResultCode::ReadOnly), "a snapshot's objects cannot be discarded"),
        (27, OtherBytes, "the snapshot keeps its entry"),
        (31, Code(ResultCode::Success), "the head keeps its data"),
    ];
    replay_errors: "08-errors.jsonl", &[
        (25, Code(ResultCode::Success), "a failed snapshot leaves no trace"),
        (35, Code(ResultCode::NoObj), "a failed snapshot leaves no trace"),
    ];
    replay_hypervolume: "09-hypervolume-btree.jsonl", &[];
    replay_attributes: "11-attributes.jsonl", &[];
    replay_pipelining: "12-pipelining.jsonl", &[];
    replay_no_space: "18-no-space.jsonl", &[
        (15, Code(ResultCode::Success), "objects are sparse"),
        (23, Code(ResultCode::Success), "objects are sparse"),
    ];
    replay_traps: "17-traps.jsonl", &[
        (23, Code(ResultCode::Success), "a rewritten entry frees no object"),
        (53, Code(ResultCode::NoVdi), "a VDI is deleted with what is in its index"),
        (55, OtherBytes, "a VDI is deleted with what is in its index"),
        (57, Code(ResultCode::NoObj), "a VDI is deleted with what is in its index"),
        (59, Code(ResultCode::Success), "the name of a deleted VDI is free"),
    ];
}

#[test]
fn replay_unformatted_cluster_and_format() {
    let sheep = Sheep::start(None, |config| config.format_if_new = false);
    let capture = include_str!("../captures/01-unformatted-and-format.jsonl");
    replay(capture, &sheep, &[]);
}

#[test]
fn replay_strict_halt() {
    let sheep = Sheep::start(None, |config| config.format_if_new = false);
    let capture = include_str!("../captures/16-strict-halt-and-kill.jsonl");
    replay(
        capture,
        &sheep,
        &[
            (
                11,
                Code(ResultCode::NoVdi),
                "data goes only into VDIs that exist",
            ),
            (
                13,
                Code(ResultCode::NoObj),
                "data goes only into VDIs that exist",
            ),
        ],
    );
}

#[test]
fn replay_tgt_client() {
    let sheep = Sheep::in_memory();
    let mut admin = sheep.connect();
    let mut replay = Replay::new(include_str!("../captures/14-tgt-client.jsonl"), &sheep, &[]);
    let before = VdiRequest {
        vdi_size: replay.inode_in(3).vdi_size,
        ..VdiRequest::default()
    };
    let vid = admin.create_vdi("tv", before).vid();
    replay.replay_until(23);
    let tag = replay.inode_in(27).tag();
    assert!(tag.is_empty());
    let after = VdiRequest {
        base_vdi_id: vid.get().into(),
        snapid: 1.into(),
        ..before
    };
    admin.create_vdi("tv", after).vid();
    replay.finish();
}

#[test]
fn replay_original_sheepfs_client() {
    let sheep = Sheep::in_memory();
    let mut admin = sheep.connect();
    let capture = include_str!("../captures/15-sheepfs-c-client.jsonl");
    let mut replay = Replay::new(capture, &sheep, &[]);
    // The requests before these are about VDIs that are not in the capture.
    replay.skip_until(41);
    let before = VdiRequest {
        vdi_size: replay.inode_in(41).vdi_size,
        ..VdiRequest::default()
    };
    let vid = admin.create_vdi("fsv", before).vid();
    replay.replay_until(59);
    let after = VdiRequest {
        base_vdi_id: vid.get().into(),
        snapid: 1.into(),
        ..before
    };
    admin.create_vdi("fsv", after).vid();
    replay.finish();
}

/// Three nodes; the requests go to the first one.
fn start_three_nodes(flags: ClusterFlags, copies: u8, copy_policy: u8) -> [Sheep; 3] {
    let first = Sheep::start(None, |config| config.format_if_new = false);
    let (second, third) = (first.add_node(), first.add_node());
    let body = RequestBody::Cluster(ClusterRequest {
        ctime: (1_700_000_000u64 << 32).into(),
        copies,
        copy_policy,
        cluster_flags: flags.bits().into(),
        ..ClusterRequest::default()
    });
    let mut client = first.connect();
    let response = client.write_request(Opcode::MakeFs, RequestFlags::empty(), body, b"plain\0");
    assert_eq!(response.result(), ResultCode::Success);
    [first, second, third]
}

#[test]
fn replay_erasure_code_and_node_failure() {
    let [first, second, third] = start_three_nodes(ClusterFlags::AUTO_VNODES, 3, 0x11);
    let capture = include_str!("../captures/10-erasure-code.jsonl");
    replay(
        capture,
        &first,
        &[
            (17, NoPayload, "what is not there has no bytes"),
            (
                21,
                Code(ResultCode::InvalidParms),
                "a range must lie in its object",
            ),
            (
                41,
                Code(ResultCode::Success),
                "one copy is kept of everything",
            ),
        ],
    );
    // The same cluster later: one node dies and comes back.
    let deviations: Deviations<'_> = &[(65, NoPayload, "a refusal has no records")];
    let capture = include_str!("../captures/03-cluster-state.jsonl");
    let mut replay = Replay::new(capture, &first, deviations);
    replay.replay_until(57);
    let address = third.address();
    third.kill();
    replay.replay_until(69);
    let _again = second.add_node_at(address);
    replay.finish();
}

#[test]
fn replay_locks_of_two_nodes() {
    let flags = ClusterFlags::AUTO_VNODES | ClusterFlags::USE_LOCK;
    let [first, second, third] = start_three_nodes(flags, 2, 0);
    third.stop();
    let mut first_connection = first.connect();
    // Two were enough when it was recorded: one epoch less.
    assert_eq!(first_connection.format(flags, 2), ResultCode::Success);
    let a = include_str!("../captures/07a-lock-node-a.jsonl");
    let b = include_str!("../captures/07b-lock-node-b.jsonl");
    let (mut a, mut b) = (Replay::new(a, &first, &[]), Replay::new(b, &second, &[]));
    a.replay_until(9);
    b.replay_until(15);
    // From here on they share the lock.
    a.replay_until(25);
    b.replay_until(19);
    a.replay_until(31);
    b.replay_until(31);
    // The first node then lacks the last index entry of the second one.
    a.replay_until(33);
    b.replay_until(33);
    a.replay_until(37);
    b.finish();
    a.finish();
}
