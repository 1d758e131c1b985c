//! As [`crate::replay`], with captures of older releases.
//!
//! Not replayed is `09`, where a node waits for another one: here none ever does.

use sheep_proto::{
    ClusterRequest, Generation, Opcode, RequestBody, RequestFlags, RequestHeader, ResultCode,
    VdiRequest,
};

use crate::client::{Client, OBJECT_LEN, Sheep, based_on};
use crate::replay::{Code, Deviations, NoPayload, Replay, replay};

/// The text of a capture.
macro_rules! capture {
    ($file:literal) => {
        include_str!(concat!("../../../sheep-proto/tests/golden/", $file))
    };
}

/// A fresh server that is like the last release of a generation, as those captured.
fn sheep_of(generation: Generation, object_cache: bool, format_if_new: bool) -> Sheep {
    Sheep::start(None, |config| {
        config.generation = generation;
        config.worst_release = false;
        config.object_cache = object_cache;
        config.format_if_new = format_if_new;
    })
}

/// Replays a capture on a fresh server.
macro_rules! replays {
    ($($test:ident: $generation:ident, $file:literal, $deviations:expr;)+) => {$(
        #[test]
        fn $test() {
            let sheep = sheep_of(Generation::$generation, false, true);
            replay(capture!($file), &sheep, $deviations);
        }
    )+};
}

/// What differs on purpose, as in the captures of 1.0.
const OBJECT_IO: Deviations<'_> = &[(
    35,
    Code(ResultCode::InvalidParms),
    "a range must lie in its object",
)];
const OBJECT_IO_OF_0_9: Deviations<'_> = &[
    (
        35,
        Code(ResultCode::InvalidParms),
        "a range must lie in its object",
    ),
    (
        103,
        Code(ResultCode::ReadOnly),
        "a snapshot's objects cannot be discarded",
    ),
    (105, Code(ResultCode::Success), "the head keeps its data"),
];
const ERRORS: Deviations<'_> = &[(
    31,
    Code(ResultCode::Success),
    "a failed snapshot leaves no trace",
)];

replays! {
    replay_0_7_vdi_lifecycle: V0_7, "0.7.5/02-vdi-lifecycle.jsonl", &[];
    replay_0_8_vdi_lifecycle: V0_8, "0.8.3/02-vdi-lifecycle.jsonl", &[];
    replay_0_9_vdi_lifecycle: V0_9, "0.9.5/02-vdi-lifecycle.jsonl", &[];
    replay_0_7_object_io: V0_7, "0.7.5/04-object-io.jsonl", OBJECT_IO;
    replay_0_8_object_io: V0_8, "0.8.3/04-object-io.jsonl", OBJECT_IO;
    replay_0_9_object_io: V0_9, "0.9.5/04-object-io.jsonl", OBJECT_IO_OF_0_9;
    replay_0_7_errors: V0_7, "0.7.5/05-errors.jsonl", ERRORS;
    replay_0_8_errors: V0_8, "0.8.3/05-errors.jsonl", ERRORS;
    replay_0_9_errors: V0_9, "0.9.5/05-errors.jsonl", ERRORS;
}

#[test]
fn replay_format_and_reports() {
    for (generation, capture) in [
        (
            Generation::V0_7,
            capture!("0.7.5/01-format-and-reports.jsonl"),
        ),
        (
            Generation::V0_8,
            capture!("0.8.3/01-format-and-reports.jsonl"),
        ),
        (
            Generation::V0_9,
            capture!("0.9.5/01-format-and-reports.jsonl"),
        ),
    ] {
        println!("{generation}");
        replay(capture, &sheep_of(generation, false, false), &[]);
    }
}

const A_REFUSAL: Deviations<'_> = &[(29, NoPayload, "a refusal has no records")];

/// Formats a cluster of a generation.
fn format(client: &mut Client, generation: Generation, copies: u8) {
    let body = RequestBody::Cluster(ClusterRequest {
        ctime: (1_700_000_000u64 << 32).into(),
        copies,
        ..ClusterRequest::default()
    });
    let store = b"plain\0";
    let len = u32::try_from(store.len()).unwrap();
    let mut header = RequestHeader::new(Opcode::MakeFs, RequestFlags::WRITE, len, body);
    header.proto_ver = generation.internal_proto_ver();
    assert_eq!(client.call(header, store).result(), ResultCode::Success);
}

#[test]
fn replay_node_failure() {
    for (generation, capture, killed, back) in [
        (
            Generation::V0_7,
            capture!("0.7.5/03-cluster-state.jsonl"),
            19,
            37,
        ),
        (
            Generation::V0_8,
            capture!("0.8.3/03-cluster-state.jsonl"),
            19,
            37,
        ),
        (
            Generation::V0_9,
            capture!("0.9.5/03-cluster-state.jsonl"),
            25,
            51,
        ),
    ] {
        println!("{generation}");
        let first = sheep_of(generation, false, false);
        let (second, third) = (first.add_node(), first.add_node());
        let mut client = first.connect();
        format(&mut client, generation, 2);
        let size = VdiRequest {
            vdi_size: (16u64 << 20).into(),
            ..VdiRequest::default()
        };
        client.create_vdi("v", size).vid();
        let deviations = if generation.sizes_epoch_records() {
            A_REFUSAL
        } else {
            &[]
        };
        let mut replay = Replay::new(capture, &first, deviations);
        replay.replay_until(killed);
        let address = third.address();
        third.kill();
        replay.replay_until(back);
        let _again = second.add_node_at(address);
        replay.finish();
    }
}

/// The volume of the captures with the sheepfs in C: two objects, full of one byte.
fn make_volume(client: &mut Client) -> VdiRequest {
    let size = VdiRequest {
        vdi_size: (16u64 << 20).into(),
        ..VdiRequest::default()
    };
    let vid = client.create_vdi("vol", size).vid();
    for index in 0..2 {
        client.first_write(vid, index, &vec![b'z'; OBJECT_LEN]);
    }
    VdiRequest {
        vdi_size: size.vdi_size,
        ..based_on(vid, 1)
    }
}

#[test]
fn replay_original_sheepfs_without_object_cache() {
    for (generation, capture) in [
        (
            Generation::V0_7,
            capture!("0.7.5/07-sheepfs-c-client.jsonl"),
        ),
        (
            Generation::V0_8,
            capture!("0.8.3/07-sheepfs-c-client.jsonl"),
        ),
        (
            Generation::V0_9,
            capture!("0.9.5/07-sheepfs-c-client.jsonl"),
        ),
    ] {
        println!("{generation}");
        let sheep = sheep_of(generation, false, true);
        let mut client = sheep.connect();
        let snapshot = make_volume(&mut client);
        let mut replay = Replay::new(capture, &sheep, &[]);
        replay.replay_until(25);
        client.create_vdi("vol", snapshot).vid();
        replay.finish();
    }
}

#[test]
fn replay_original_sheepfs_and_dog_with_object_cache() {
    for (generation, sheepfs, dog) in [
        (
            Generation::V0_7,
            capture!("0.7.5/08-sheepfs-c-client-objectcache.jsonl"),
            capture!("0.7.5/08b-dog-cache-commands.jsonl"),
        ),
        (
            Generation::V0_8,
            capture!("0.8.3/08-sheepfs-c-client-objectcache.jsonl"),
            capture!("0.8.3/08b-dog-cache-commands.jsonl"),
        ),
        (
            Generation::V0_9,
            capture!("0.9.5/08-sheepfs-c-client-objectcache.jsonl"),
            capture!("0.9.5/08b-dog-cache-commands.jsonl"),
        ),
    ] {
        println!("{generation}");
        let sheep = sheep_of(generation, true, true);
        make_volume(&mut sheep.connect());
        replay(sheepfs, &sheep, &[]);
        replay(dog, &sheep, &[]);
    }
}

/// Exchanges with the gateway that has a cache, and with the other one, in turn.
const TURNS: [[usize; 2]; 17] = [
    [2, 1],
    [1, 1],
    [3, 1],
    [2, 2],
    [2, 3],
    [1, 2],
    [3, 1],
    [1, 1],
    [1, 1],
    [1, 1],
    [1, 1],
    [4, 1],
    [2, 1],
    [9, 1],
    [2, 1],
    [2, 1],
    [3, 4],
];

#[test]
fn replay_object_cache_of_one_of_two_gateways() {
    for (generation, with, without) in [
        (
            Generation::V0_7,
            capture!("0.7.5/06a-object-cache-gateway-with.jsonl"),
            capture!("0.7.5/06b-object-cache-gateway-without.jsonl"),
        ),
        (
            Generation::V0_8,
            capture!("0.8.3/06a-object-cache-gateway-with.jsonl"),
            capture!("0.8.3/06b-object-cache-gateway-without.jsonl"),
        ),
        (
            Generation::V0_9,
            capture!("0.9.5/06a-object-cache-gateway-with.jsonl"),
            capture!("0.9.5/06b-object-cache-gateway-without.jsonl"),
        ),
    ] {
        println!("{generation}");
        let first = sheep_of(generation, true, false);
        let second = first.add_node();
        format(&mut first.connect(), generation, 2);
        let mut with = Replay::new(with, &first, &[]);
        let mut without = Replay::new(without, &second, &[]);
        for [here, there] in TURNS {
            with.replay_next(here);
            without.replay_next(there);
        }
        assert!(with.is_finished() && without.is_finished());
    }
}
