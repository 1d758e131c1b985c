//! Every captured header and payload, decoded and encoded again.

use std::collections::BTreeMap;

use sheep_proto::decoder::{self, BadFrame};
use sheep_proto::{
    Generation, Opcode, RequestBody, RequestHeader, RequestShape, ResponseBody, ResponseHeader,
    ResponseShape, ResultCode, UnknownOpcode,
};
use zerocopy::IntoBytes as _;

use crate::capture::{self, Exchange, Frame};
use crate::payload::{self, Kind};

const NO_LIMIT: u32 = u32::MAX;

/// The request shape that protocol 1.4 gives an operation.
fn documented_request_shape(operation: &str) -> RequestShape {
    match operation {
        "CREATE_AND_WRITE_OBJ"
        | "READ_OBJ"
        | "WRITE_OBJ"
        | "REMOVE_OBJ"
        | "DISCARD_OBJ"
        | "FLUSH_VDI"
        | "FLUSH_DEL_CACHE"
        | "DELETE_CACHE"
        | "READ_PEER"
        | "EXIST"
        | "GET_HASH" => RequestShape::Object,
        "NEW_VDI" | "LOCK_VDI" | "RELEASE_VDI" | "GET_VDI_INFO" | "DEL_VDI" | "GET_VDI_ATTR" => {
            RequestShape::Vdi
        }
        "MAKE_FS" | "STAT_CLUSTER" | "ALTER_CLUSTER_COPY" => RequestShape::Cluster,
        _ => RequestShape::Plain,
    }
}

/// The response shape that protocol 1.4 gives an operation.
fn documented_response_shape(operation: &str) -> ResponseShape {
    match operation {
        "GET_NODE_LIST" | "STAT_SHEEP" => ResponseShape::Node,
        "GET_HASH" => ResponseShape::Hash,
        "GET_CLUSTER_DEFAULT" => ResponseShape::ClusterDefault,
        other => match documented_request_shape(other) {
            RequestShape::Object => ResponseShape::Object,
            RequestShape::Vdi => ResponseShape::Vdi,
            _ => ResponseShape::Plain,
        },
    }
}

fn request_shape(body: &RequestBody) -> RequestShape {
    match body {
        RequestBody::Object(_) => RequestShape::Object,
        RequestBody::Vdi(_) => RequestShape::Vdi,
        RequestBody::Cluster(_) => RequestShape::Cluster,
        RequestBody::VdiState(_) => RequestShape::VdiState,
        RequestBody::Reference(_) => RequestShape::Reference,
        RequestBody::Forward(_) => RequestShape::Forward,
        RequestBody::Coherence(_) => RequestShape::Coherence,
        RequestBody::Checkpoint(_) => RequestShape::Checkpoint,
        RequestBody::Plain(_) => RequestShape::Plain,
    }
}

fn response_shape(body: &ResponseBody) -> ResponseShape {
    match body {
        ResponseBody::Object(_) => ResponseShape::Object,
        ResponseBody::Vdi(_) => ResponseShape::Vdi,
        ResponseBody::Node(_) => ResponseShape::Node,
        ResponseBody::Hash(_) => ResponseShape::Hash,
        ResponseBody::ClusterDefault(_) => ResponseShape::ClusterDefault,
        ResponseBody::Plain(_) => ResponseShape::Plain,
    }
}

/// The opcode of a frame, when its name is one; asserts that both sides agree.
///
/// SET_CACHE_SIZE is obsolete, and the captures know it only by its number.
fn opcode(frame: &Frame) -> Option<Opcode> {
    match Opcode::try_from(frame.header[1]) {
        Ok(Opcode::SetCacheSize) => {
            assert_eq!(frame.operation, "OP_a7");
            Some(Opcode::SetCacheSize)
        }
        Ok(opcode) => {
            assert_eq!(opcode.name(), frame.operation, "{}", frame.place());
            Some(opcode)
        }
        Err(UnknownOpcode(raw)) => {
            assert_eq!(
                frame.operation,
                format!("OP_{raw:02x}"),
                "{}",
                frame.place()
            );
            None
        }
    }
}

/// A request header made as a client makes it.
///
/// Only what clients are free to choose is taken from the captured header: the id, and the
/// version where the client has its own idea of it.
fn rebuilt(captured: &RequestHeader, opcode: Opcode) -> RequestHeader {
    let mut header = RequestHeader::new(
        opcode,
        captured.flags(),
        captured.data_length.get(),
        captured.body(),
    );
    header.proto_ver = captured.proto_ver;
    header.id = captured.id;
    header
}

#[test]
fn request_headers_round_trip() {
    let (mut requests, mut unknown, mut own_version) = (0, 0, 0);
    for Exchange { request: frame, .. } in capture::all_exchanges() {
        requests += 1;
        let place = frame.place();
        let header = decoder::request(&frame.header, NO_LIMIT).unwrap().unwrap();
        let Some(opcode) = opcode(&frame) else {
            unknown += 1;
            continue;
        };
        assert_eq!(header.payload_len() as usize, frame.payload.len, "{place}");
        assert_eq!(
            request_shape(&header.body()),
            documented_request_shape(&frame.operation),
            "{place}"
        );
        own_version += usize::from(header.proto_ver != Generation::V1_0.proto_ver(opcode));
        let again = rebuilt(&header, opcode);
        assert_eq!(again.as_bytes(), frame.header, "{place}");
    }
    // tgt and the C sheepfs send version 1 and 0; 08 tries wrong ones.
    assert_eq!((requests, unknown, own_version), (694, 6, 35));
}

#[test]
fn response_headers_round_trip() {
    let (mut responses, mut unknown, mut unanswered) = (0, 0, 0);
    let mut results = BTreeMap::new();
    for Exchange { request, response } in capture::all_exchanges() {
        let Some(frame) = response else {
            unanswered += 1;
            continue;
        };
        responses += 1;
        let place = frame.place();
        let header = frame.response();
        // Decoded to the documented body, unless the opcode is one we do not know.
        let decoded = decoder::response(&frame.header, NO_LIMIT);
        if opcode(&frame).is_some() {
            assert_eq!(decoded, Ok(Some(header)), "{place}");
            assert_eq!(
                response_shape(&header.body()),
                documented_response_shape(&frame.operation),
                "{place}"
            );
        } else {
            unknown += 1;
            assert_eq!(decoded, Err(BadFrame::UnknownOpcode(header.opcode)));
        }
        assert_eq!(
            header.data_length.get() as usize,
            frame.payload.len,
            "{place}"
        );
        *results.entry(u32::from(header.result())).or_insert(0) += 1;
        assert!(!matches!(header.result(), ResultCode::Other(_)), "{place}");

        // Encoded again to the same bytes.
        let again = ResponseHeader::answer(
            &request.request(),
            header.epoch.get(),
            header.data_length.get(),
            header.body(),
        );
        assert_eq!(again.as_bytes(), frame.header, "{place}");
    }
    // The request after KILL_NODE in capture 16 gets no response.
    assert_eq!((responses, unknown, unanswered), (693, 6, 1));
    assert_eq!(
        results.into_iter().collect::<Vec<_>>(),
        [
            (0x00, 568),
            (0x02, 23),
            (0x04, 5),
            (0x05, 21),
            (0x06, 1),
            (0x07, 7),
            (0x08, 9),
            (0x0b, 1),
            (0x0c, 2),
            (0x0e, 8),
            (0x14, 3),
            (0x15, 2),
            (0x16, 6),
            (0x17, 14),
            (0x19, 2),
            (0x1a, 7),
            (0x1d, 5),
            (0x81, 1),
            (0x88, 5),
            (0x89, 1),
            (0x8a, 1),
            (0x98, 1),
        ]
    );
}

/// Decodes and encodes the payloads that `select` finds, and counts their kinds.
fn count_kinds(
    select: impl Fn(&Exchange) -> Option<(&Frame, Kind, Vec<u8>)>,
) -> BTreeMap<String, usize> {
    let mut kinds = BTreeMap::new();
    for exchange in capture::all_exchanges() {
        let Some((frame, kind, bytes)) = select(&exchange) else {
            continue;
        };
        assert!(
            payload::encode_again(kind, &bytes) == bytes,
            "{} does not survive as {kind:?}",
            frame.place()
        );
        let name = format!("{kind:?}");
        let name = name.split(' ').next().unwrap_or_default();
        *kinds.entry(name.to_owned()).or_insert(0) += 1;
    }
    kinds
}

fn as_map<const N: usize>(counts: [(&str, usize); N]) -> BTreeMap<String, usize> {
    counts.map(|(kind, count)| (kind.to_owned(), count)).into()
}

#[test]
fn request_payloads_round_trip() {
    let kinds = count_kinds(|exchange| {
        opcode(&exchange.request)?;
        let header = exchange.request.request();
        let bytes = exchange.request.payload.bytes();
        let kind = payload::of_request(&header, &bytes);
        Some((&exchange.request, kind, bytes))
    });
    assert_eq!(
        kinds,
        as_map([
            ("Attribute", 12),
            ("BadLengthName", 4),
            ("BtreeCounter", 6),
            ("BtreeNode", 5),
            ("Bytes", 64),
            ("InodeHeader", 8),
            ("Name", 55),
            ("NameAndTag", 52),
            ("Nothing", 447),
            ("SignedNumber", 2),
            ("Slots", 26),
            ("StoreName", 3),
            ("Tag", 4)
        ])
    );
}

#[test]
fn response_payloads_round_trip() {
    let kinds = count_kinds(|exchange| {
        let response = exchange.response.as_ref()?;
        opcode(response)?;
        let asked = exchange.request.request();
        let header = response.response();
        let bytes = response.payload.bytes();
        let kind = payload::of_response(&asked, &header, &bytes);
        Some((response, kind, bytes))
    });
    assert_eq!(
        kinds,
        as_map([
            ("Attribute", 3),
            ("BtreeNode", 8),
            ("Bytes", 30),
            ("ClusterInfo", 7),
            ("Counters", 3),
            ("Disks", 2),
            ("Epochs", 46),
            ("InodeHeader", 108),
            ("Leftovers", 1),
            ("Nodes", 35),
            ("Nothing", 323),
            ("Recovery", 2),
            ("SignedNumber", 2),
            ("Slots", 57),
            ("StoreList", 1),
            ("Throttle", 1),
            ("VdiStates", 6),
            ("VidBitmap", 52)
        ])
    );
}
