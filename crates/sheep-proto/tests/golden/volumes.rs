//! VDIs, inodes, indexes, objects and attributes in the captures.

use sheep_proto::attribute::Attribute;
use sheep_proto::btree::{self, Node};
use sheep_proto::hash::{attribute_id, first_vid};
use sheep_proto::inode::{BTREE_COUNTER_OFFSET, TAG_OFFSET, slot_offset};
use sheep_proto::limits::INODE_HEADER_LEN;
use sheep_proto::{
    InodeHeader, ObjectIndex, ObjectRequest, Oid, Redundancy, RequestBody, RequestFlags,
    ResponseBody, ResultCode, SnapshotTag, VdiName, VdiRequest, VdiResponse, Vid,
};
use zerocopy::FromBytes as _;

use crate::capture::{self, Frame};

fn vid(raw: u32) -> Vid {
    Vid::new(raw).unwrap()
}

fn object_request(frame: &Frame) -> ObjectRequest {
    let RequestBody::Object(body) = frame.request().body() else {
        panic!("{} is object I/O", frame.place());
    };
    body
}

fn vdi_request(frame: &Frame) -> VdiRequest {
    let RequestBody::Vdi(body) = frame.request().body() else {
        panic!("{} is a VDI operation", frame.place());
    };
    body
}

fn vdi_response(frame: &Frame) -> VdiResponse {
    let ResponseBody::Vdi(body) = frame.response().body() else {
        panic!("{} answers a VDI operation", frame.place());
    };
    body
}

fn result(capture: &str, seq: u64) -> ResultCode {
    capture::frame(capture, seq).response().result()
}

fn inode(capture: &str, seq: u64) -> InodeHeader {
    let bytes = capture::frame(capture, seq).payload.bytes();
    InodeHeader::read_from_prefix(&bytes).unwrap().0
}

fn name(text: &str) -> Option<VdiName> {
    Some(VdiName::new(text).unwrap())
}

fn tag(text: &str) -> SnapshotTag {
    SnapshotTag::new(text).unwrap()
}

#[test]
fn vdi_creation_returns_hash_of_name() {
    for (ask, answer, text, size, asked_shift, shift, new) in [
        (7, 8, "demo", 16 << 20, 0, 22, 0x76_d396),
        (13, 14, "big", 1 << 30, 23, 23, 0x4f_d259),
    ] {
        let ask = capture::frame("02-", ask);
        let field = ask.payload.bytes().try_into().unwrap();
        assert_eq!(VdiName::from_field(&field), name(text));
        assert_eq!(first_vid(text.as_bytes()), vid(new));
        let body = vdi_request(&ask);
        assert_eq!(body.vdi_size.get(), size);
        assert_eq!(body.block_size_shift, asked_shift);
        let body = vdi_response(&capture::frame("02-", answer));
        assert_eq!(body.vdi_id.get(), new);
        assert_eq!((body.copies, body.block_size_shift), (1, shift));
    }
}

#[test]
fn first_write_creates_object_then_commits_slot() {
    let create = capture::frame("02-", 31);
    let body = object_request(&create);
    assert_eq!(
        Oid::from_raw(body.oid.get()),
        Oid::data(vid(0x76_d396), ObjectIndex(0))
    );
    assert_eq!(create.request().flags(), RequestFlags::WRITE);
    assert!(create.payload.bytes().starts_with(b"hello sheep"));

    let publish = capture::frame("02-", 33);
    let body = object_request(&publish);
    assert_eq!(Oid::from_raw(body.oid.get()), Oid::inode(vid(0x76_d396)));
    assert_eq!(Some(body.offset.get()), slot_offset(ObjectIndex(0)));
    assert_eq!(publish.payload.bytes(), [0x96, 0xd3, 0x76, 0x00]);
}

#[test]
fn snapshot_keeps_vid_and_head_gets_new() {
    assert_eq!(result("02-", 48), ResultCode::NoTag);
    let tagging = capture::frame("02-", 53);
    assert_eq!(object_request(&tagging).offset.get(), TAG_OFFSET);
    let field = tagging.payload.bytes().try_into().unwrap();
    assert_eq!(SnapshotTag::from_field(&field), tag("first"));

    let ask = vdi_request(&capture::frame("02-", 55));
    assert_eq!((ask.base_vdi_id.get(), ask.snapid.get()), (0x76_d396, 1));
    assert_eq!((ask.copies, ask.block_size_shift), (1, 22));
    let answer = vdi_response(&capture::frame("02-", 56));
    assert_eq!(answer.vdi_id.get(), 0x76_d397);

    let snapshot = inode("02-", 66);
    assert_eq!(
        (snapshot.name(), snapshot.tag()),
        (name("demo"), tag("first"))
    );
    assert_eq!(
        (snapshot.vid(), snapshot.parent()),
        (Some(vid(0x76_d396)), None)
    );
    assert!(snapshot.is_snapshot());
    assert_eq!(snapshot.snap_id.get(), 1);

    let head = inode("02-", 70);
    assert_eq!(
        (head.name(), head.tag()),
        (name("demo"), SnapshotTag::default())
    );
    assert_eq!(head.vid(), Some(vid(0x76_d397)));
    assert_eq!(head.parent(), Some(vid(0x76_d396)));
    assert!(!head.is_snapshot());
    assert_eq!((head.snap_id.get(), head.vdi_size.get()), (2, 16 << 20));
    assert_eq!(head.create_time, snapshot.snap_ctime);
    assert_eq!(head.redundancy(), Redundancy::Replicated(1));
    assert_eq!(head.object_shift(), Some(22));
}

#[test]
fn copy_on_write_names_both_objects() {
    let frame = capture::frame("02-", 77);
    let body = object_request(&frame);
    assert_eq!(
        frame.request().flags(),
        RequestFlags::WRITE | RequestFlags::COW
    );
    assert_eq!(
        Oid::from_raw(body.oid.get()),
        Oid::data(vid(0x76_d397), ObjectIndex(0))
    );
    assert_eq!(
        Oid::from_raw(body.cow_oid.get()),
        Oid::data(vid(0x76_d396), ObjectIndex(0))
    );
    assert_eq!((body.offset.get(), frame.payload.len), (512, 512));
}

#[test]
fn clone_is_new_name_on_snapshot() {
    let ask = capture::frame("02-", 95);
    assert!(ask.payload.bytes().starts_with(b"copy1\0"));
    let body = vdi_request(&ask);
    assert_eq!((body.base_vdi_id.get(), body.snapid.get()), (0x76_d396, 0));
    let answer = vdi_response(&capture::frame("02-", 96));
    assert_eq!(answer.vdi_id.get(), 0xe1_d3ef);
    let clone = inode("02-", 118);
    assert_eq!(clone.name(), name("copy1"));
    assert_eq!(
        (clone.snap_id.get(), clone.parent()),
        (1, Some(vid(0x76_d396)))
    );
}

#[test]
fn resizing_writes_a_header_with_another_size() {
    let frame = capture::frame("02-", 139);
    let bytes = frame.payload.bytes();
    let header = InodeHeader::ref_from_bytes(&bytes).unwrap();
    assert_eq!(header.vdi_size.get(), 32 << 20);
    assert_eq!(header.vid(), Some(vid(0x76_d398)));
}

#[test]
fn deleted_inode_loses_name_and_keeps_tag() {
    assert_eq!(result("05-", 24), ResultCode::ReadOnly);
    let deleted = inode("05-", 50);
    assert_eq!((deleted.name(), deleted.tag()), (None, tag("base")));
    assert_eq!(deleted.vdi_size.get(), 0);
    assert_eq!(deleted.vid(), Some(vid(0x01_7010)));
    assert!(deleted.is_snapshot());
}

#[test]
fn hypervolume_root_has_sorted_slots() {
    let create = vdi_request(&capture::frame("09-", 11));
    assert_eq!((create.vdi_size.get(), create.store_policy), (16 << 40, 1));
    let owner = vid(0x5e_9293);
    let bytes = capture::frame("09-", 60).payload.bytes();
    let Node::Leaf(leaf) = Node::parse(&bytes).unwrap() else {
        panic!("the root is a leaf");
    };
    let found: Vec<_> = leaf.iter().map(|entry| entry.index.get()).collect();
    assert_eq!(found, [0, 3, 7, 1_048_577]);
    for index in found {
        assert_eq!(btree::leaf_lookup(leaf, ObjectIndex(index)), Some(owner));
    }
    assert_eq!(btree::leaf_lookup(leaf, ObjectIndex(1)), None);
    assert_eq!(btree::leaf_lookup(leaf, ObjectIndex(1_048_578)), None);

    let header = inode("09-", 58);
    assert!(header.is_hypervolume());
    assert_eq!((header.vid(), header.btree_counter.get()), (Some(owner), 0));
}

#[test]
fn hypervolume_full_root_splits_into_two_leaves() {
    let owner = vid(0xb3_2793);
    let leaf_entries = |seq| {
        let bytes = capture::frame("09b-", seq).payload.bytes();
        match Node::parse(&bytes) {
            Ok(Node::Leaf(leaf)) => leaf.len(),
            other => panic!("{other:?} is no leaf"),
        }
    };
    // The entries of the full root, and the two leaves they are split into.
    assert_eq!(leaf_entries(5), 262_143);
    assert_eq!(leaf_entries(7), 262_144);
    let old = capture::frame("09b-", 4).payload.bytes();
    let Ok(Node::Leaf(old)) = Node::parse(&old[INODE_HEADER_LEN..]) else {
        panic!("the root was a leaf");
    };
    assert_eq!(old.len(), 524_287);

    // The new root refers to both leaves, by their largest index.
    let bytes = capture::frame("09b-", 15).payload.bytes();
    let (header, node) = InodeHeader::ref_from_prefix(&bytes).unwrap();
    assert_eq!(header.btree_counter.get(), 2);
    let Ok(Node::Root(root)) = Node::parse(node) else {
        panic!("the root points to leaves");
    };
    let children: Vec<_> = root
        .iter()
        .map(|entry| (entry.max_index.get(), Oid::from_raw(entry.oid.get())))
        .collect();
    let (left, right) = (Oid::btree_node(owner, 0), Oid::btree_node(owner, 1));
    assert_eq!(children, [(524_284, left), (1_048_584, right)]);
    for (index, leaf) in [
        (0, Some(left)),
        (524_284, Some(left)),
        (524_285, Some(right)),
        (1_048_584, Some(right)),
        (1_048_585, None),
    ] {
        assert_eq!(btree::root_lookup(root, ObjectIndex(index)), leaf);
    }
    // The counter of tree nodes is written last.
    let counter = capture::frame("09b-", 17);
    assert_eq!(object_request(&counter).offset.get(), BTREE_COUNTER_OFFSET);
    assert_eq!(counter.payload.bytes(), [2, 0, 0, 0]);
}

#[test]
fn erasure_coded_refused_read_has_payload() {
    let refusal = capture::frame("10-", 18);
    assert_eq!(refusal.response().result(), ResultCode::NoObj);
    assert_eq!(refusal.response().data_length.get(), 512);
    assert_eq!(refusal.payload.len, 512);

    let header = inode("10-", 6);
    assert_eq!(
        header.redundancy(),
        Redundancy::Erasure { data: 2, parity: 1 }
    );
    assert_eq!(header.nr_copies, 3);
    assert_eq!(
        inode("10-", 60).redundancy(),
        Redundancy::Erasure { data: 4, parity: 1 }
    );
    assert_eq!(result("10-", 42), ResultCode::SystemError);
}

#[test]
fn attribute_is_found_by_hash_of_fields() {
    let set = capture::frame("11-", 3);
    assert_eq!(
        set.request().flags(),
        RequestFlags::WRITE | RequestFlags::CREAT
    );
    let bytes = set.payload.bytes();
    let sent = Attribute::parse(&bytes).unwrap();
    assert_eq!((sent.key(), sent.value()), (&b"k1"[..], &b"hello"[..]));

    let answer = vdi_response(&capture::frame("11-", 4));
    let id = attribute_id(&sent.name, &sent.tag, sent.snap_id.get(), &sent.key);
    assert_eq!(answer.attr_id.get(), id);
    assert_eq!(answer.vdi_id.get(), first_vid(b"att").get());

    let oid = object_request(&capture::frame("11-", 7)).oid.get();
    assert_eq!(Oid::from_raw(oid), Oid::attribute(first_vid(b"att"), id));
    let bytes = capture::frame("11-", 8).payload.bytes();
    let stored = Attribute::parse(&bytes).unwrap();
    assert_eq!(stored.value(), b"hello");
    assert_ne!(stored.ctime.get(), 0);

    assert_eq!(result("11-", 12), ResultCode::VdiExist);
    let deletion = capture::frame("11-", 19).request().flags();
    assert_eq!(deletion, RequestFlags::WRITE | RequestFlags::DEL);
    assert_eq!(result("11-", 22), ResultCode::NoObj);
}

#[test]
fn lock_by_tgt_is_repeated_after_snapshot() {
    let lock = capture::frame("14-", 1).request();
    assert_eq!(lock.proto_ver, 1);
    assert_eq!(vdi_request(&capture::frame("14-", 1)).lock_type.get(), 1);
    assert_eq!(result("14-", 22), ResultCode::InvalidParms);
    assert_eq!(result("14-", 24), ResultCode::ReadOnly);
    let before = vdi_response(&capture::frame("14-", 2)).vdi_id.get();
    let after = vdi_response(&capture::frame("14-", 26)).vdi_id.get();
    assert_eq!((before, after), (0x6a_cfef, 0x6a_cff0));
    assert_eq!(inode("14-", 28).parent(), Vid::new(before));
    let redo = capture::frame("14-", 29).request().flags();
    let expected = RequestFlags::WRITE | RequestFlags::COW | RequestFlags::CACHE;
    assert_eq!(redo, expected | RequestFlags::TGT);
}

#[test]
fn full_cluster_refuses_creates_and_accepts_overwrites() {
    assert_eq!(result("18-", 16), ResultCode::NoSpace);
    assert_eq!(result("18-", 18), ResultCode::Success);
    assert_eq!(result("18-", 24), ResultCode::NoSpace);
}
