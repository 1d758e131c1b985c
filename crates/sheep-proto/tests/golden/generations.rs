//! What the captures of older releases say about their generation.

use sheep_proto::generation::{Detection, Generation, Probe, Unsupported};
use sheep_proto::{Opcode, RequestBody, ResponseHeader, ResultCode};
use zerocopy::IntoBytes as _;

use crate::capture::{self, Exchange};

const RELEASES: [(&str, Generation); 3] = [
    ("0.7.5", Generation::V0_7),
    ("0.8.3", Generation::V0_8),
    ("0.9.5", Generation::V0_9),
];

/// The exchanges of an operation that succeeded and brought a payload.
fn answers(release: &str, opcode: Opcode) -> impl Iterator<Item = (Exchange, Vec<u8>)> {
    capture::exchanges_of(release)
        .into_iter()
        .filter(move |exchange| exchange.request.request().opcode == opcode as u8)
        .filter_map(|exchange| {
            let payload = exchange.response.as_ref()?.payload.bytes();
            (!payload.is_empty()).then_some((exchange, payload))
        })
}

/// Asks a captured sheep what [`Detection`] wants to know.
fn detect(release: &str, captured: &str) -> (Vec<u8>, Detection) {
    let exchanges = capture::exchanges_of(release);
    let answer = |probe: Probe| -> ResponseHeader {
        let asked = |exchange: &&Exchange| {
            let mut header = exchange.request.request();
            header.id = 0.into();
            exchange.request.capture.starts_with(captured)
                && exchange.response.is_some()
                && header.as_bytes() == probe.header().as_bytes()
        };
        // The last one: the sheep is formatted by then.
        let exchange = exchanges.iter().rev().find(asked).unwrap();
        exchange.response.as_ref().unwrap().response()
    };
    let (mut versions, mut detection) = (Vec::new(), Detection::START);
    while let Detection::Ask(probe) = detection {
        versions.push(probe.proto_ver);
        detection = Detection::next(probe, &answer(probe));
    }
    (versions, detection)
}

#[test]
fn captured_sheep_are_told_apart_by_their_answers() {
    for (release, captured, versions, generation) in [
        ("0.7.5", "01-", &[8][..], Generation::V0_7),
        ("0.7.7", "01-", &[8], Generation::V0_7),
        ("0.8.3", "01-", &[8, 9, 9], Generation::V0_8),
        ("0.9.5", "01-", &[8, 9], Generation::V0_9),
    ] {
        assert_eq!(
            detect(release, captured),
            (versions.to_vec(), Detection::Known(generation)),
            "{release}"
        );
    }
}

#[test]
fn requests_of_each_dog_have_the_version_and_an_opcode_of_its_generation() {
    for (release, generation) in RELEASES {
        let mut checked = 0;
        for Exchange {
            request: frame,
            response,
        } in capture::exchanges_of(release)
        {
            let header = frame.request();
            // 01 tries versions, 05 errors, and the sheepfs in C a version of its own.
            let is_of_dog = !["01-", "05-", "07-", "08-"]
                .iter()
                .any(|by_hand| frame.capture.starts_with(by_hand));
            let Ok(opcode) = Opcode::try_from(header.opcode) else {
                assert!(!is_of_dog, "{}", frame.place());
                continue;
            };
            let was_refused =
                response.is_none_or(|response| response.response().result() != ResultCode::Success);
            if !is_of_dog || was_refused {
                continue;
            }
            assert!(generation.has_opcode(opcode), "{}", frame.place());
            if !opcode.is_public() {
                assert_eq!(
                    header.proto_ver,
                    generation.proto_ver(opcode),
                    "{}",
                    frame.place()
                );
            }
            checked += 1;
        }
        assert!(checked > 100, "{release}: {checked}");
    }
}

#[test]
fn requests_past_the_end_of_an_object_are_refused_in_the_captures_too() {
    for (release, generation) in RELEASES {
        for exchange in capture::exchanges_of(release) {
            let header = exchange.request.request();
            let Ok(opcode) = Opcode::try_from(header.opcode) else {
                continue;
            };
            let checked = generation.check(opcode, &header.body(), header.data_length.get());
            let by_hand = ["04-", "05-"]
                .iter()
                .any(|by_hand| exchange.request.capture.starts_with(by_hand));
            if matches!(checked, Err(Unsupported::PastEnd { .. })) {
                assert!(by_hand, "{}", exchange.request.place());
            }
        }
    }
}

#[test]
fn node_lists_survive_decoding_and_encoding() {
    for (release, generation) in RELEASES {
        let mut most = 0;
        for (exchange, payload) in answers(release, Opcode::GetNodeList) {
            let nodes = generation.parse_nodes(&payload).unwrap();
            for node in &nodes {
                let address = node.address();
                assert!(address.ip().is_loopback(), "{address}");
            }
            let mut again = Vec::new();
            for node in &nodes {
                generation.push_node(node, &mut again);
            }
            assert_eq!(again, payload, "{}", exchange.request.place());
            most = most.max(nodes.len());
        }
        assert_eq!(most, 3, "{release}");
    }
}

#[test]
fn epoch_logs_survive_decoding_and_encoding() {
    for (release, generation) in RELEASES {
        let mut most = 0;
        for (exchange, payload) in answers(release, Opcode::StatCluster) {
            let RequestBody::Cluster(body) = exchange.request.request().body() else {
                panic!("cluster parameters");
            };
            let nodes_nr = body.nodes_nr.get();
            let slots = usize::try_from(nodes_nr).unwrap();
            let log = generation.parse_epoch_log(&payload, nodes_nr).unwrap();
            let mut again = Vec::new();
            for (header, nodes) in &log {
                generation.push_epoch(header, nodes, slots, &mut again);
            }
            // Slots that are not in use hold garbage, which is not read.
            assert_eq!(again.len(), payload.len(), "{}", exchange.request.place());
            let record_len = generation.epoch_record_len(slots);
            for ((header, nodes), (again, captured)) in log
                .iter()
                .zip(again.chunks(record_len).zip(payload.chunks(record_len)))
            {
                let used = generation.epoch_record_len(slots)
                    - (slots_of(generation, slots) - nodes.len()) * generation.node_record_len();
                assert_eq!(
                    again[..used],
                    captured[..used],
                    "{}",
                    exchange.request.place()
                );
                assert_eq!(usize::try_from(header.nr_nodes.get()).unwrap(), nodes.len());
            }
            let newest = &log[0].0;
            let is_reported = generation.reports_redundancy();
            assert_eq!(
                newest.redundancy().nr_copies() > 0,
                is_reported,
                "{release}"
            );
            assert_eq!(newest.store() == b"plain", is_reported, "{release}");
            most = most.max(log.len());
        }
        assert!(most >= 3, "{release}: {most}");
    }
}

fn slots_of(generation: Generation, asked: usize) -> usize {
    if generation.sizes_epoch_records() {
        asked
    } else {
        generation.max_nodes()
    }
}
