//! Payloads of every kind: the first byte of the input chooses the parser.
//!
//! Structures with a fixed length of kilobytes or more are filled up with zeros, so that
//! a short input reaches their fields. The bitmap of VIDs is left to the property tests:
//! two megabytes without structure only make this slow.

#![no_main]

use libfuzzer_sys::fuzz_target;
use sheep_proto::attribute::Attribute;
use sheep_proto::btree::{self, Node};
use sheep_proto::cluster::{ClusterInfoHeader, parse_epoch_log};
use sheep_proto::hash::{attribute_id, first_vid};
use sheep_proto::inode::{max_volume_size, object_count};
use sheep_proto::limits::{
    ATTRIBUTE_LEN, INODE_HEADER_LEN, MD_INFO_LEN, MD_MAX_DISKS, VDI_STATE_LEN,
};
use sheep_proto::node::NodeRecord;
use sheep_proto::placement::Ring;
use sheep_proto::statistics::{MdInfo, RecoveryState, RequestCounters};
use sheep_proto::vdi_state::VdiState;
use sheep_proto::{InodeHeader, ObjectIndex, Oid, SnapshotTag, VdiName};
use zerocopy::FromBytes as _;

fuzz_target!(|input: &[u8]| {
    let Some((&parser, payload)) = input.split_first() else {
        return;
    };
    match parser % 10 {
        0 => inode(payload),
        1 => tree(payload),
        2 => nodes(payload),
        3 => epochs(payload),
        4 => cluster_info(payload),
        5 => vdi_states(payload),
        6 => disks(payload),
        7 => attribute(payload),
        8 => names(payload),
        _ => statistics(payload),
    }
});

/// `payload` with zeros up to `len`, or cut off there.
fn filled(payload: &[u8], len: usize) -> Vec<u8> {
    let mut bytes = payload.to_vec();
    bytes.resize(len, 0);
    bytes
}

fn inode(payload: &[u8]) {
    // The fields that are numbers come first, because names are long.
    let numbers = payload.len().min(64);
    let mut bytes = filled(&payload[numbers..], INODE_HEADER_LEN);
    bytes[512..512 + numbers].copy_from_slice(&payload[..numbers]);
    let header = InodeHeader::read_from_bytes(&bytes).expect("the length of a header");
    assert_eq!(header.name().is_none(), bytes[0] == 0);
    assert!(header.tag().as_bytes().len() < 256);
    assert!(header.redundancy().nr_copies() > 0 || header.nr_copies == 0 || header.copy_policy > 0);
    if let Some(vid) = header.vid() {
        let oid = Oid::inode(vid);
        assert_eq!((oid.vid(), Oid::from_raw(oid.raw())), (Some(vid), oid));
    }
    let _parent = header.parent();
    let size = header.vdi_size.get();
    for shift in [Some(header.block_size_shift), header.object_shift()]
        .into_iter()
        .flatten()
    {
        assert_eq!(object_count(size, shift) == 0, size == 0);
        assert!(max_volume_size(header.is_hypervolume(), shift) > 0);
    }
}

fn tree(payload: &[u8]) {
    let (index, node) = payload.split_at(payload.len().min(4));
    let index = index
        .iter()
        .fold(0, |index, &byte| index << 8 | u32::from(byte));
    let index = ObjectIndex(index);
    match Node::parse(node) {
        Ok(Node::Leaf(leaf)) => {
            assert_eq!(btree::used_len(node), Ok(8 + 8 * leaf.len()));
            let found = btree::leaf_lookup(leaf, index);
            assert!(found.is_none_or(|vid| leaf.iter().any(|slot| slot.vid.get() == vid.get())));
        }
        Ok(Node::Root(root)) => {
            assert_eq!(btree::used_len(node), Ok(8 + 16 * root.len()));
            let found = btree::root_lookup(root, index);
            assert!(found.is_none_or(|oid| root.iter().any(|leaf| leaf.oid.get() == oid.raw())));
        }
        Err(_) => assert!(btree::used_len(node).map_or(true, |used| used > node.len())),
    }
}

fn nodes(payload: &[u8]) {
    if let Ok(nodes) = NodeRecord::parse_list(payload) {
        assert_eq!(nodes.len() * 80, payload.len());
        for node in nodes {
            // An address that was read once does not change any more.
            let address = NodeRecord::new(node.address(), 0, 0, 0).address();
            let again = NodeRecord::new(address, 0, 0, 0).address();
            assert_eq!(again, address);
        }
    }
    // The first byte is the number of records.
    let Some((&count, payload)) = payload.split_first() else {
        return;
    };
    if let Ok(ring) = Ring::parse(payload, count.into()) {
        let holders = ring.holders(Oid::from_raw(count.into())).count();
        assert!(holders <= usize::from(count));
        assert_eq!(holders == 0, ring.is_empty());
    }
}

fn epochs(payload: &[u8]) {
    let Some((nodes_nr, log)) = payload.split_first_chunk() else {
        return;
    };
    let nodes_nr = u32::from_le_bytes(*nodes_nr);
    if let Ok(log) = parse_epoch_log(log, nodes_nr) {
        for (header, nodes) in log {
            assert_eq!(nodes.len(), header.nr_nodes.get() as usize);
            assert!(header.store().len() < header.store.len());
            let _settings = (header.flags(), header.redundancy());
        }
    }
}

fn cluster_info(payload: &[u8]) {
    if let Ok((header, nodes)) = ClusterInfoHeader::parse(payload) {
        assert_eq!(nodes.len(), usize::from(header.nr_nodes.get()));
        assert!(header.store().len() < header.store.len());
        let _settings = (header.flags(), header.redundancy());
    }
}

fn vdi_states(payload: &[u8]) {
    let len = payload.len().next_multiple_of(VDI_STATE_LEN);
    let bytes = filled(payload, len);
    let states = VdiState::parse_list(&bytes).expect("whole records");
    assert_eq!(states.len() * VDI_STATE_LEN, len);
    for state in states {
        let _lock = state.lock_state();
    }
    // Or whole records of the fork of 2026.
    let is_whole = payload.len() == len || payload.len().is_multiple_of(VDI_STATE_LEN + 4);
    assert!(is_whole || VdiState::parse_list(payload).is_err());
}

fn disks(payload: &[u8]) {
    let (count, records) = payload.split_at(payload.len().min(4));
    let mut bytes = filled(records, MD_INFO_LEN);
    bytes[MD_INFO_LEN - 8..][..count.len()].copy_from_slice(count);
    if let Ok(info) = MdInfo::parse(&bytes) {
        assert!(info.disks().len() <= MD_MAX_DISKS);
        assert_eq!(info.disks().len(), info.nr_disks.get() as usize);
        assert!(
            info.disks()
                .iter()
                .all(|disk| disk.path().len() < disk.path.len())
        );
    }
}

fn attribute(payload: &[u8]) {
    // ctime, snap_id and value_len come first, then the key, then the names.
    let mut bytes = vec![0; ATTRIBUTE_LEN];
    let at_front = payload.len().min(272);
    bytes[512..512 + at_front].copy_from_slice(&payload[..at_front]);
    let names = &payload[at_front..payload.len().min(at_front + 512)];
    bytes[..names.len()].copy_from_slice(names);
    if let Ok(read) = Attribute::parse(&bytes) {
        assert_eq!(read.value().len(), read.value_len.get() as usize);
        let _id = attribute_id(&read.name, &read.tag, read.snap_id.get(), &read.key);
        if let Some(name) = VdiName::from_field(&read.name) {
            let made = Attribute::new(&name, read.key(), read.value());
            assert_eq!(made.is_err(), read.key().is_empty());
        }
    }
}

fn names(payload: &[u8]) {
    if let Ok(name) = VdiName::new(payload) {
        assert_eq!(VdiName::from_field(&name.to_field()), Some(name));
    }
    if let Ok(tag) = SnapshotTag::new(payload) {
        assert_eq!(SnapshotTag::from_field(&tag.to_field()), tag);
        assert!(!tag.to_string().chars().any(char::is_control));
        assert!(!format!("{tag:?}").chars().any(char::is_control));
    }
    let _vid = first_vid(payload);
}

fn statistics(payload: &[u8]) {
    assert_eq!(
        RequestCounters::parse(payload).is_ok(),
        payload.len() == 120
    );
    assert_eq!(RecoveryState::parse(payload).is_ok(), payload.len() >= 24);
}
