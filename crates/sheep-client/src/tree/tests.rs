//! Plans applied to objects in memory, and read back after every single write.

mod model;
mod objects;

use sheep_proto::btree::{LeafEntry, Node, NodeHeader, RootEntry};
use sheep_proto::limits::INODE_HEADER_LEN;
use sheep_proto::{ObjectIndex, Oid, Vid};
use zerocopy::IntoBytes as _;

use super::TreeWrite;
use super::nodes::Capacity;
use crate::ClientError;
use objects::Objects;

fn vid() -> Vid {
    Vid::new(0xb3_2793).unwrap()
}

/// `indexes` as slots of the VDI itself.
fn own(indexes: impl IntoIterator<Item = u32>) -> Vec<(ObjectIndex, Vid)> {
    let slots = indexes.into_iter().map(|index| (ObjectIndex(index), vid()));
    slots.collect()
}

fn tiny(leaf: usize) -> Objects {
    Objects::empty(vid(), Capacity { leaf, root: 400 })
}

/// Object number or counter, offset, length and whether it is made.
fn outline(writes: &[TreeWrite]) -> Vec<(&'static str, u32, u32, usize, bool)> {
    let line = |write: &TreeWrite| {
        let kind = match write.oid {
            oid if oid == Oid::inode(vid()) => "inode",
            _ => "node",
        };
        let len = write.data.len();
        (kind, write.oid.number(), write.offset, len, write.create)
    };
    writes.iter().map(line).collect()
}

#[test]
fn tree_root_bytes_match_the_capture() {
    let vid = Vid::new(0x5e_9293).unwrap();
    let mut objects = Objects::empty(vid, Capacity::PROTOCOL);
    let mut tree = objects.read();
    for index in [0, 7, 3, 1_048_577] {
        let writes = tree.insert(&[(ObjectIndex(index), vid)]).unwrap();
        objects.apply(&writes);
    }
    let root = [
        0x74, 0x62, 1, 0, 4, 0, 0, 0, //
        0, 0, 0, 0, 0x93, 0x92, 0x5e, 0, //
        3, 0, 0, 0, 0x93, 0x92, 0x5e, 0, //
        7, 0, 0, 0, 0x93, 0x92, 0x5e, 0, //
        1, 0, 0x10, 0, 0x93, 0x92, 0x5e, 0,
    ];
    assert_eq!(objects.root()[..root.len()], root);
    let found: Vec<_> = objects.read().slots().map(|(index, _)| index.0).collect();
    assert_eq!(found, [0, 3, 7, 1_048_577]);
}

#[test]
fn tree_root_write_starts_within_the_header() {
    let mut tree = tiny(8).read();
    let writes = tree.insert(&own([5])).unwrap();
    assert_eq!(outline(&writes), [("inode", 0, 4656, 8 + 8 + 8, false)]);
    assert_eq!(writes[0].data[..8], [0; 8]);
    let writes = tree.insert(&own([4, 6])).unwrap();
    assert_eq!(outline(&writes), [("inode", 0, 4656, 8 + 8 + 24, false)]);
}

#[test]
fn tree_root_split_matches_the_c_program() {
    let mut objects = Objects::empty(vid(), Capacity::PROTOCOL);
    let mut tree = objects.read();
    // A full root is written whole, after the magic number.
    let writes = tree.insert(&own((0..524_287).map(|i| 2 * i))).unwrap();
    assert_eq!(outline(&writes), [("inode", 0, 4656, 8 + (4 << 20), false)]);
    objects.apply(&writes);

    // One more slot makes two leaves: first the counter, then the leaves, then the root.
    let writes = tree.insert(&own([1_048_584])).unwrap();
    assert_eq!(
        outline(&writes),
        [
            ("inode", 0, 568, 4, false),
            ("node", 0, 0, 8 + 8 * 262_143, true),
            ("node", 1, 0, 8 + 8 * 262_145, true),
            ("inode", 0, 4656, 8 + 8 + 2 * 16, false),
        ]
    );
    assert_eq!(writes[0].data, [2, 0, 0, 0][..]);
    objects.apply(&writes);
    let root = [
        0x74, 0x62, 2, 0, 2, 0, 0, 0, //
        0xfc, 0xff, 7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x93, 0x27, 0xb3, 0x10, //
        8, 0, 0x10, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0x93, 0x27, 0xb3, 0x10,
    ];
    assert_eq!(objects.root()[..root.len()], root);

    // A leaf is written whole.
    let writes = tree.insert(&own([1])).unwrap();
    let whole_leaf = ("node", 0, 0, 8 + 8 * 262_144, false);
    assert_eq!(outline(&writes), [whole_leaf]);
    objects.apply(&writes);

    // Slots are found in the tree in memory, and by a lookup on the objects.
    let tree = objects.read();
    assert_eq!(tree.slots().count(), 524_289);
    for (index, owner) in [
        (0, Some(vid())),
        (1, Some(vid())),
        (3, None),
        (524_284, Some(vid())),
        (524_286, Some(vid())),
        (1_048_584, Some(vid())),
        (1_048_585, None),
    ] {
        assert_eq!(tree.slot(ObjectIndex(index)), owner, "{index}");
        assert_eq!(objects.lookup(index), owner, "{index}");
    }
}

#[test]
fn tree_append_writes_slots_before_their_count() {
    let mut objects = tiny(4);
    let mut tree = objects.read();
    objects.apply(&tree.insert(&own([0, 10, 20, 30, 40])).unwrap());
    let writes = tree.insert(&own([50])).unwrap();
    assert_eq!(
        outline(&writes),
        [
            ("inode", 0, 4656, 8 + 8 + 2 * 16, false),
            ("node", 1, 8 + 3 * 8, 8, false),
            ("node", 1, 0, 8, false),
        ]
    );
    assert_eq!(writes[2].data, NodeHeader::leaf(4).as_bytes());
    objects.apply(&writes);

    let writes = tree.insert(&own([60, 70])).unwrap();
    assert_eq!(
        outline(&writes),
        [
            ("inode", 0, 568, 4, false),
            ("node", 2, 0, 8 + 2 * 8, true),
            ("inode", 0, 4656, 8 + 8 + 3 * 16, false),
        ]
    );
}

#[test]
fn tree_leaf_split_moves_lower_half() {
    let mut objects = tiny(4);
    let mut tree = objects.read();
    objects.apply(&tree.insert(&own([0, 10, 20, 30, 40, 50])).unwrap());
    let writes = tree.insert(&own([25])).unwrap();
    assert_eq!(
        outline(&writes),
        [
            ("inode", 0, 568, 4, false),
            ("node", 2, 0, 8 + 2 * 8, true),
            ("inode", 0, 4656, 8 + 8 + 3 * 16, false),
            ("node", 1, 0, 8 + 3 * 8, false),
        ]
    );
    objects.apply(&writes);
    assert_eq!(objects.keys(), [(10, 0), (25, 2), (50, 1)]);
}

#[test]
fn tree_hole_is_filled_in_place() {
    let mut objects = tiny(4);
    let mut tree = objects.read();
    objects.apply(&tree.insert(&own([0, 10, 20, 30, 40, 50])).unwrap());
    tree.mark_hole(ObjectIndex(40));
    tree.mark_hole(ObjectIndex(41));
    assert_eq!(tree.slot(ObjectIndex(40)), None);
    assert_eq!(tree.slots().count(), 5);
    let writes = tree.insert(&own([40])).unwrap();
    assert_eq!(outline(&writes), [("node", 1, 8 + 2 * 8, 8, false)]);
    assert_eq!(tree.insert(&own([0, 40])).unwrap(), []);
}

#[test]
fn tree_interrupted_split_is_completed_by_next_plan() {
    let mut objects = tiny(4);
    let mut tree = objects.read();
    objects.apply(&tree.insert(&own([0, 10, 20, 30, 40, 50])).unwrap());
    let writes = tree.insert(&own([25])).unwrap();
    objects.apply(&writes[..3]);

    let mut tree = objects.read();
    let writes = tree.insert(&[]).unwrap();
    assert_eq!(outline(&writes), [("node", 1, 0, 8 + 3 * 8, false)]);
    objects.apply(&writes);
    assert_eq!(objects.read().insert(&[]).unwrap(), []);
    assert_eq!(objects.keys(), [(10, 0), (25, 2), (50, 1)]);
}

#[test]
fn tree_repair_corrects_maximum_that_hides_slots() {
    let mut objects = tiny(4);
    let mut tree = objects.read();
    objects.apply(&tree.insert(&own([0, 10, 20, 30, 40, 50])).unwrap());
    objects.set_max(0, 0);
    assert_eq!(objects.lookup(10), None);

    let mut tree = objects.read();
    let found: Vec<_> = tree.slots().collect();
    assert_eq!(found, own([0, 10, 20, 30, 40, 50]));
    // What is changed elsewhere in the tree corrects it as well.
    tree.mark_hole(ObjectIndex(30));
    let writes = tree.insert(&own([30])).unwrap();
    assert_eq!(
        outline(&writes),
        [
            ("inode", 0, 4656, 8 + 8 + 2 * 16, false),
            ("node", 1, 8 + 8, 8, false),
        ]
    );
    objects.apply(&writes);
    assert_eq!(objects.lookup(10), Some(vid()));
}

#[test]
fn tree_repair_recovers_slots_after_hidden_leaf() {
    let mut objects = tiny(4);
    let mut tree = objects.read();
    objects.apply(&tree.insert(&own([0, 10, 20, 30, 40])).unwrap());
    // What a real dog did when it split a leaf: it hid the lower half and put
    // the slot that belongs there into the upper one.
    assert!(objects.hide_leaf(0, LeafEntry::new(ObjectIndex(5), Some(vid()))));
    assert_eq!(objects.lookup(10), None);

    let mut tree = objects.read();
    let everything = own([0, 5, 10, 20, 30, 40]);
    assert_eq!(tree.slots().collect::<Vec<_>>(), everything);
    let writes = tree.insert(&[]).unwrap();
    assert_eq!(
        outline(&writes),
        [
            ("inode", 0, 568, 4, false),
            ("node", 2, 0, 8 + 3 * 8, true),
            ("node", 3, 0, 8 + 3 * 8, true),
            ("inode", 0, 4656, 8 + 8 + 2 * 16, false),
        ]
    );
    objects.apply(&writes);
    assert_eq!(objects.keys(), [(10, 2), (40, 3)]);
}

#[test]
fn tree_write_copies_inherited_leaves() {
    let ancestor = Vid::new(7).unwrap();
    let mut objects = tiny(4);
    let mut tree = objects.read();
    objects.apply(&tree.insert(&own([0, 10, 20, 30, 40, 50])).unwrap());
    objects.give_away_leaf(0, ancestor);
    let mut tree = objects.read();
    assert_eq!(tree.slots().count(), 6);
    let writes = tree.insert(&own([5])).unwrap();
    assert_eq!(
        outline(&writes),
        [
            ("inode", 0, 568, 4, false),
            ("node", 2, 0, 8 + 3 * 8, true),
            ("inode", 0, 4656, 8 + 8 + 2 * 16, false),
        ]
    );
}

#[test]
fn tree_without_room_is_refused_unchanged() {
    let mut objects = Objects::empty(vid(), Capacity { leaf: 2, root: 2 });
    let mut tree = objects.read();
    objects.apply(&tree.insert(&own([0, 1, 2])).unwrap());
    let before: Vec<_> = tree.slots().collect();
    let refused = tree.insert(&own([3, 4, 5]));
    assert!(matches!(refused, Err(ClientError::IndexFull(_))));
    assert_eq!(tree.slots().collect::<Vec<_>>(), before);

    let mut objects = tiny(2);
    objects.set_counter(u32::MAX);
    let refused = objects.read().insert(&own([0, 1, 2]));
    assert!(matches!(refused, Err(ClientError::IndexFull(_))));
}

#[test]
fn tree_root_of_empty_leaves_takes_slots() {
    let mut objects = tiny(4);
    let root = [
        NodeHeader::root(1).as_bytes(),
        RootEntry::new(ObjectIndex(0), Oid::btree_node(vid(), 0)).as_bytes(),
    ]
    .concat();
    objects.put(Oid::inode(vid()), INODE_HEADER_LEN, &root);
    let empty = NodeHeader::leaf(0);
    objects.put(Oid::btree_node(vid(), 0), 0, empty.as_bytes());
    let mut tree = objects.read();
    assert_eq!(tree.slots().next(), None);
    objects.apply(&tree.insert(&own([1, 2, 3, 4, 5])).unwrap());
    assert_eq!(objects.keys(), [(4, 1), (5, 2)]);
    assert!(matches!(Node::parse(objects.root()), Ok(Node::Root(_))));
}
