//! Bytes from the network, whatever they are: no parser panics, and frames come out of a
//! stream the same wherever it is cut.

use proptest::collection::vec;
use proptest::prelude::*;
use sheep_proto::attribute::Attribute;
use sheep_proto::btree::{self, MAGIC, Node, NodeHeader};
use sheep_proto::cluster::{ClusterInfoHeader, parse_epoch_log};
use sheep_proto::decoder::{self, BadFrame};
use sheep_proto::limits::{
    ATTRIBUTE_LEN, HEADER_LEN, INODE_HEADER_LEN, MD_INFO_LEN, RECOVERY_STATE_LEN, STAT_LEN,
    VID_BITMAP_LEN,
};
use sheep_proto::name::unpad;
use sheep_proto::node::NodeRecord;
use sheep_proto::placement::Ring;
use sheep_proto::statistics::{MdInfo, RecoveryState, RequestCounters};
use sheep_proto::vdi_state::VdiState;
use sheep_proto::vid_bitmap::VidBitmap;
use sheep_proto::{
    Generation, InodeHeader, ObjectIndex, Oid, Opcode, RequestBody, RequestFlags, RequestHeader,
    ResponseBody, ResponseHeader, ResultCode, SnapshotTag, VdiName, Vid,
};
use zerocopy::{FromBytes as _, IntoBytes as _};

const NO_LIMIT: u32 = u32::MAX;

/// A payload of about the length a structure has: exact, a little off, or anything.
fn payload_near(len: usize) -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        vec(any::<u8>(), len),
        vec(any::<u8>(), len.saturating_sub(2)..=len + 2),
        vec(any::<u8>(), 0..=256),
    ]
}

/// A payload of a fixed great length, random only in a few places.
fn sparse_payload(len: usize) -> impl Strategy<Value = Vec<u8>> {
    vec((0..len, any::<u8>()), 0..64).prop_map(move |bytes| {
        let mut payload = vec![0; len];
        for (at, byte) in bytes {
            payload[at] = byte;
        }
        payload
    })
}

/// A node header that is likely to be right, with arbitrary entries.
fn node() -> impl Strategy<Value = Vec<u8>> {
    let magic = prop_oneof![9 => Just(MAGIC), 1 => any::<u16>()];
    let count = prop_oneof![9 => 0u32..20, 1 => any::<u32>()];
    (magic, 0u16..4, count, vec(any::<u8>(), 0..320)).prop_map(|(magic, depth, count, rest)| {
        let header = NodeHeader {
            magic: magic.into(),
            depth: depth.into(),
            entries: count.into(),
        };
        [header.as_bytes(), &rest].concat()
    })
}

/// Frames as a client sends them: any known opcode, any tail, a payload if WRITE is set.
fn requests() -> impl Strategy<Value = Vec<(RequestHeader, Vec<u8>)>> {
    let opcode = prop::sample::select(Opcode::ALL);
    let payload = prop::option::of(vec(any::<u8>(), 0..200));
    let frame = (
        opcode,
        any::<u16>(),
        any::<u32>(),
        any::<[u8; 32]>(),
        payload,
    )
        .prop_map(|(opcode, flags, id, tail, payload)| {
            let mut flags = RequestFlags::from_bits_retain(flags);
            flags.set(RequestFlags::WRITE, payload.is_some());
            let len = payload.as_ref().map_or(4096, Vec::len);
            let body = RequestBody::new(opcode.request_shape(), tail);
            let len = u32::try_from(len).expect("short");
            let mut header = RequestHeader::new(opcode, flags, len, body);
            header.id = id.into();
            (header, payload.unwrap_or_default())
        });
    vec(frame, 1..8)
}

/// Frames as a sheep sends them.
fn responses() -> impl Strategy<Value = Vec<(ResponseHeader, Vec<u8>)>> {
    let opcode = prop::sample::select(Opcode::ALL);
    let frame = (
        opcode,
        any::<[u8; 32]>(),
        any::<u32>(),
        vec(any::<u8>(), 0..200),
    )
        .prop_map(|(opcode, tail, epoch, payload)| {
            let request = RequestHeader::new(opcode, RequestFlags::empty(), 0, RequestBody::NONE);
            let body = ResponseBody::new(opcode.response_shape(), tail);
            let len = u32::try_from(payload.len()).expect("short");
            (ResponseHeader::answer(&request, epoch, len, body), payload)
        });
    vec(frame, 1..8)
}

/// Reads a stream that arrives in pieces, as a connection would.
///
/// `payload_len` says how much follows a header.
fn frames_of_stream<H>(
    stream: &[u8],
    cuts: &[usize],
    decode: impl Fn(&[u8], u32) -> Result<Option<H>, BadFrame>,
    payload_len: impl Fn(&H) -> u32,
) -> Vec<(H, Vec<u8>)> {
    let mut ends: Vec<_> = cuts.iter().map(|cut| cut % (stream.len() + 1)).collect();
    ends.push(stream.len());
    ends.sort_unstable();
    let (mut buffer, mut arrived, mut frames) = (Vec::new(), 0, Vec::new());
    for end in ends {
        buffer.extend_from_slice(&stream[arrived..end]);
        arrived = end;
        while let Some(header) = decode(&buffer, NO_LIMIT).expect("valid frames") {
            let frame_len = HEADER_LEN + payload_len(&header) as usize;
            if buffer.len() < frame_len {
                break;
            }
            let frame: Vec<_> = buffer.drain(..frame_len).collect();
            frames.push((header, frame[HEADER_LEN..].to_vec()));
        }
    }
    assert!(buffer.is_empty(), "{} bytes are left over", buffer.len());
    frames
}

proptest! {
    #[test]
    fn requests_come_out_of_a_stream_cut_anywhere(frames in requests(), cuts in vec(any::<usize>(), 0..20)) {
        let stream: Vec<_> = frames
            .iter()
            .flat_map(|(header, payload)| [header.as_bytes(), payload].concat())
            .collect();
        let found = frames_of_stream(&stream, &cuts, decoder::request, RequestHeader::payload_len);
        prop_assert_eq!(found, frames);
    }

    #[test]
    fn responses_come_out_of_a_stream_cut_anywhere(frames in responses(), cuts in vec(any::<usize>(), 0..20)) {
        let stream: Vec<_> = frames
            .iter()
            .flat_map(|(header, payload)| [header.as_bytes(), payload].concat())
            .collect();
        let found = frames_of_stream(&stream, &cuts, decoder::response, |header| header.data_length.get());
        prop_assert_eq!(found, frames);
    }

    #[test]
    fn arbitrary_request_is_within_limit_or_too_long(bytes: [u8; 32], tail: [u8; 16], limit: u32) {
        let bytes = [bytes.as_slice(), &tail].concat();
        match decoder::request(&bytes, limit) {
            Ok(header) => {
                let header = header.expect("48 bytes are a header");
                prop_assert_eq!(header.as_bytes(), &bytes);
                prop_assert!(header.payload_len() <= limit);
                // Whatever the shape, the tail keeps every bit.
                prop_assert_eq!(<[u8; 32]>::from(header.body()), header.tail);
            }
            Err(error) => {
                let too_long = matches!(error, BadFrame::TooLong { len, .. } if len > limit);
                prop_assert!(too_long, "{}", error);
            }
        }
    }

    #[test]
    fn response_with_version_or_flags_is_refused(
        bytes: [u8; 32],
        tail: [u8; 16],
        version in prop_oneof![Just(0u8), any::<u8>()],
        flags in prop_oneof![Just([0u8; 2]), any::<[u8; 2]>()],
        limit: u32,
    ) {
        let mut bytes = [bytes.as_slice(), &tail].concat();
        bytes[0] = version;
        bytes[2..4].copy_from_slice(&flags);
        if let Ok(header) = decoder::response(&bytes, limit) {
            let header = header.expect("48 bytes are a header");
            prop_assert_eq!((version, flags), (0, [0, 0]));
            prop_assert!(Opcode::try_from(bytes[1]).is_ok());
            prop_assert!(header.data_length.get() <= limit);
            prop_assert_eq!(<[u8; 32]>::from(header.body()), header.tail);
            let code = u32::from_le_bytes([bytes[16], bytes[17], bytes[18], bytes[19]]);
            prop_assert_eq!(u32::from(header.result()), code);
        }
    }

    #[test]
    fn arbitrary_tree_node_is_refused_or_searchable(bytes in node(), index: u32) {
        let used = btree::used_len(&bytes);
        match Node::parse(&bytes) {
            Ok(Node::Leaf(leaf)) => {
                prop_assert_eq!(used, Ok(8 + 8 * leaf.len()));
                if let Some(vid) = btree::leaf_lookup(leaf, ObjectIndex(index)) {
                    prop_assert!(leaf.iter().any(|entry| entry.vid.get() == vid.get()));
                }
            }
            Ok(Node::Root(root)) => {
                prop_assert_eq!(used, Ok(8 + 16 * root.len()));
                if let Some(oid) = btree::root_lookup(root, ObjectIndex(index)) {
                    prop_assert!(root.iter().any(|entry| entry.oid.get() == oid.raw()));
                }
            }
            Err(_) => prop_assert!(used.is_err() || used.is_ok_and(|used| used > bytes.len())),
        }
    }

    #[test]
    fn leaf_finds_exactly_its_slots(
        slots in prop::collection::btree_map(any::<u32>(), 1u32..1 << 24, 0..100),
        index: u32,
    ) {
        let entries: Vec<_> = slots
            .iter()
            .map(|(&index, &vid)| (ObjectIndex(index), Vid::new(vid).expect("24 bits")))
            .collect();
        let bytes = btree::encode_leaf(entries.iter().copied());
        let Ok(Node::Leaf(leaf)) = Node::parse(&bytes) else {
            return Err(TestCaseError::fail("a leaf was written"));
        };
        for (index, vid) in entries {
            prop_assert_eq!(btree::leaf_lookup(leaf, index), Some(vid));
        }
        let found = btree::leaf_lookup(leaf, ObjectIndex(index)).map(Vid::get);
        prop_assert_eq!(found, slots.get(&index).copied());
    }

    #[test]
    fn arbitrary_node_list_is_refused_or_whole(bytes in payload_near(160)) {
        match NodeRecord::parse_list(&bytes) {
            Ok(nodes) => {
                prop_assert_eq!(nodes.len() * 80, bytes.len());
                for node in nodes {
                    prop_assert_eq!(node.address().port(), node.port.get());
                }
            }
            Err(_) => prop_assert_ne!(bytes.len() % 80, 0),
        }
    }

    #[test]
    fn arbitrary_cluster_info_lists_only_its_nodes(
        mut bytes in payload_near(48 + 3 * 80),
        nr_nodes in prop_oneof![0u16..5, any::<u16>()],
    ) {
        if let Some(field) = bytes.get_mut(2..4) {
            field.copy_from_slice(&nr_nodes.to_le_bytes());
        }
        let room = bytes.len().checked_sub(48).map(|nodes| nodes / 80);
        match ClusterInfoHeader::parse(&bytes) {
            Ok((header, nodes)) => {
                prop_assert_eq!(nodes.len(), usize::from(nr_nodes));
                prop_assert!(header.store().len() < 16);
                let _ = (header.flags(), header.redundancy().nr_copies());
            }
            Err(_) => prop_assert!(room.is_none_or(|room| room < usize::from(nr_nodes))),
        }
    }

    #[test]
    fn arbitrary_epoch_log_lists_only_its_nodes(
        (nodes_nr, bytes) in prop_oneof![
            (0u32..4, 0usize..4).prop_flat_map(|(nodes_nr, records)| {
                (Just(nodes_nr), payload_near(records * (48 + 80 * nodes_nr as usize)))
            }),
            (any::<u32>(), payload_near(128)),
        ],
        nr_nodes in prop::option::of(0u32..5),
    ) {
        let mut bytes = bytes;
        let record_len = 48 + 80 * nodes_nr as usize;
        for record in bytes.chunks_exact_mut(record_len) {
            if let Some(nr_nodes) = nr_nodes {
                record[20..24].copy_from_slice(&nr_nodes.to_le_bytes());
            }
        }
        match parse_epoch_log(&bytes, nodes_nr) {
            Ok(log) => {
                prop_assert_eq!(log.len() * record_len, bytes.len());
                for (header, nodes) in log {
                    prop_assert_eq!(nodes.len(), header.nr_nodes.get() as usize);
                    prop_assert!(header.nr_nodes.get() <= nodes_nr);
                    let _ = (header.flags(), header.redundancy(), header.store());
                }
            }
            Err(_) => prop_assert!(
                bytes.len() % record_len != 0 || nr_nodes.is_none_or(|used| used > nodes_nr)
            ),
        }
    }

    #[test]
    fn arbitrary_inode_header_is_read_in_range(bytes in vec(any::<u8>(), INODE_HEADER_LEN), blank: bool) {
        let mut bytes = bytes;
        if blank {
            bytes[0] = 0;
        }
        let header = InodeHeader::ref_from_bytes(&bytes).expect("the length of a header");
        prop_assert_eq!(header.name().is_none(), bytes[0] == 0);
        prop_assert!(header.tag().as_bytes().len() < 256);
        prop_assert_eq!(header.is_snapshot(), bytes[520..528] != [0; 8]);
        prop_assert_eq!(header.is_hypervolume(), bytes[553] == 1);
        prop_assert!(header.vid().is_none_or(|vid| vid.get() < 1 << 24));
        prop_assert!(header.parent().is_none_or(|vid| vid.get() < 1 << 24));
        let _ = (header.redundancy().nr_copies(), header.redundancy().copy_policy());
        if let Some(shift) = header.object_shift() {
            prop_assert!((20..=31).contains(&shift));
        }
        let size = header.vdi_size.get();
        let objects = sheep_proto::inode::object_count(size, bytes[555]);
        prop_assert_eq!(objects == 0, size == 0);
    }

    #[test]
    fn names_and_tags_end_at_the_first_nul(field: [u8; 32], nul in 0usize..32) {
        let mut long = [b'x'; 256];
        long[..32].copy_from_slice(&field);
        long[nul] = 0;
        let tag = SnapshotTag::from_field(&long);
        prop_assert_eq!(tag.as_bytes(), unpad(&long));
        prop_assert!(tag.as_bytes().len() <= nul);
        let name = VdiName::from_field(&long);
        prop_assert_eq!(name.is_none(), tag.is_empty());
        prop_assert!(!tag.to_string().chars().any(char::is_control));
        let shown = format!("{name:?}");
        prop_assert!(!shown.chars().any(char::is_control));
    }

    #[test]
    fn arbitrary_names_are_refused_or_survive_their_field(bytes in vec(any::<u8>(), 0..300)) {
        let valid = bytes.len() <= 255 && !bytes.contains(&0);
        match SnapshotTag::new(&bytes) {
            Ok(tag) => prop_assert_eq!(SnapshotTag::from_field(&tag.to_field()), tag),
            Err(_) => prop_assert!(!valid),
        }
        prop_assert_eq!(VdiName::new(&bytes).is_ok(), valid && !bytes.is_empty());
    }

    #[test]
    fn arbitrary_node_lists_give_holders_in_distinct_zones(
        bytes in payload_near(3 * 80),
        count in 1_usize..4,
        oid in any::<u64>(),
    ) {
        if let Ok(ring) = Ring::parse(&bytes, count) {
            let holders: Vec<_> = ring.holders(Oid::from_raw(oid)).collect();
            prop_assert!(holders.len() <= count);
            prop_assert_eq!(holders.is_empty(), ring.is_empty());
            prop_assert!(holders.iter().all(|node| ring.nodes().any(|other| other == *node)));
        }
    }

    #[test]
    fn arbitrary_vdi_states_are_refused_or_whole(bytes in payload_near(2 * 1428)) {
        match VdiState::parse_list(&bytes) {
            Ok(states) => {
                let len = bytes.len();
                prop_assert!(states.len() * 1428 == len || states.len() * 1432 == len);
                for state in states {
                    let _ = state.lock_state();
                }
            }
            Err(_) => prop_assert!(bytes.len() % 1428 != 0 && bytes.len() % 1432 != 0),
        }
    }

    #[test]
    fn arbitrary_counters_and_progress_have_their_lengths(bytes in payload_near(STAT_LEN)) {
        prop_assert_eq!(RequestCounters::parse(&bytes).is_ok(), bytes.len() == STAT_LEN);
        prop_assert_eq!(RecoveryState::parse(&bytes).is_ok(), bytes.len() >= RECOVERY_STATE_LEN);
    }

    #[test]
    fn arbitrary_result_code_round_trips(raw: u32) {
        let code = ResultCode::from(raw);
        prop_assert_eq!(u32::from(code), raw);
        let _ = (code.retry(), code.to_string(), code.name());
    }
}

proptest! {
    // Cases of megabytes.
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn arbitrary_attribute_is_refused_or_has_value(
        mut bytes in sparse_payload(ATTRIBUTE_LEN),
        value_len in prop_oneof![0u32..70_000, any::<u32>()],
        short in 0usize..2,
    ) {
        bytes[524..528].copy_from_slice(&value_len.to_le_bytes());
        bytes.truncate(ATTRIBUTE_LEN - short);
        match Attribute::parse(&bytes) {
            Ok(attribute) => {
                prop_assert_eq!(attribute.value().len(), value_len as usize);
                prop_assert!(attribute.key().len() < 256);
            }
            Err(_) => prop_assert!(short > 0 || value_len > 65_536),
        }
    }

    #[test]
    fn arbitrary_disks_are_refused_or_all_there(
        mut bytes in sparse_payload(MD_INFO_LEN),
        disks in prop_oneof![0u32..70, any::<u32>()],
        short in 0usize..2,
    ) {
        bytes[263_680..263_684].copy_from_slice(&disks.to_le_bytes());
        bytes.truncate(MD_INFO_LEN - short);
        match MdInfo::parse(&bytes) {
            Ok(info) => {
                prop_assert_eq!(info.disks().len(), disks as usize);
                prop_assert!(info.disks().iter().all(|disk| disk.path().len() < 4096));
            }
            Err(_) => prop_assert!(short > 0 || disks > 64),
        }
    }

    #[test]
    fn arbitrary_bitmap_lists_the_vids_it_contains(
        bytes in sparse_payload(VID_BITMAP_LEN),
        vid in 1u32..1 << 24,
    ) {
        prop_assert!(VidBitmap::parse(&bytes[1..]).is_err());
        let bitmap = VidBitmap::parse(&bytes).expect("the right length");
        let listed: Vec<_> = bitmap.iter().collect();
        prop_assert!(listed.is_sorted());
        prop_assert!(listed.iter().all(|&vid| bitmap.contains(vid)));
        let bits: u32 = bytes.iter().map(|byte| byte.count_ones()).sum();
        // Bit 0 stands for no VDI.
        let none = u32::from(bytes[0] & 1);
        prop_assert_eq!(listed.len(), (bits - none) as usize);
        let vid = Vid::new(vid).expect("24 bits");
        prop_assert_eq!(listed.contains(&vid), bitmap.contains(vid));
    }
}

proptest! {
    #[test]
    fn records_of_any_generation_are_read_or_refused(
        bytes in vec(any::<u8>(), 0..4096),
        pad in prop::sample::select(vec![0, 57_376, 491_568]),
        nodes_nr: u32,
    ) {
        let mut bytes = bytes;
        bytes.resize(bytes.len().max(pad), 0);
        for generation in Generation::ALL {
            if let Ok(nodes) = generation.parse_nodes(&bytes) {
                prop_assert_eq!(nodes.len() * generation.node_record_len(), bytes.len());
            }
            if let Ok(log) = generation.parse_epoch_log(&bytes, nodes_nr % 64) {
                for (_, nodes) in log {
                    prop_assert!(nodes.len() <= generation.max_nodes());
                }
            }
            if let Ok((header, nodes)) = generation.parse_cluster_info(&bytes) {
                prop_assert_eq!(nodes.len(), usize::from(header.nr_nodes.get()));
            }
        }
    }
}
