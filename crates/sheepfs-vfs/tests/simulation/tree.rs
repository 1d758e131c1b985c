//! The index of a simulated hypervolume: a tree in the inode's index area.

use sheep_proto::btree::{
    LeafEntry, Node, NodeHeader, ROOT_OFFSET, RootEntry, root_lookup, used_len,
};
use sheep_proto::{ObjectIndex, ObjectKind, Oid, ResultCode, Vid};
use zerocopy::IntoBytes as _;

use crate::store::{Object, Store};

/// The slots in the two leaves of a tree that was deeper once; all of them are
/// holes, with others between and after them.
const OLD_LEAVES: [[u32; 2]; 2] = [[1, 2], [4, 7]];

/// The slot of an object, with the copy that a server has read before a change.
pub(crate) struct ReadSlot {
    inode: Oid,
    /// The inode from its start to the end of the root.
    start: Vec<u8>,
    /// The inode or B-tree object that the slot is in, and where its owner is.
    oid: Oid,
    owner_at: usize,
}

fn node_start(oid: Oid) -> usize {
    match oid.kind() {
        Some(ObjectKind::Inode) => ROOT_OFFSET as usize,
        _ => 0,
    }
}

fn parse(node: &[u8]) -> Node<'_> {
    Node::parse(node).expect("a client writes nodes that can be read")
}

fn encode<T: zerocopy::IntoBytes + zerocopy::Immutable>(
    header: NodeHeader,
    entries: &[T],
) -> Vec<u8> {
    [header.as_bytes(), entries.as_bytes()].concat()
}

impl Store {
    fn node(&self, oid: Oid) -> Result<Vec<u8>, ResultCode> {
        let (object, start) = (self.object(oid)?, node_start(oid));
        let head = object.read(start, size_of::<NodeHeader>());
        let len = used_len(&head).expect("a client writes nodes that can be read");
        Ok(object.read(start, len))
    }

    /// The slot of a data object; `None` for a hole.
    pub(crate) fn read_slot(
        &self,
        vid: Vid,
        index: ObjectIndex,
    ) -> Result<Option<ReadSlot>, ResultCode> {
        let inode = Oid::inode(vid);
        let (mut oid, mut node) = (inode, self.node(inode)?);
        let start = self.read(inode, 0, node_start(inode) + node.len())?;
        if let Node::Root(entries) = parse(&node) {
            let Some(leaf) = root_lookup(entries, index) else {
                return Ok(None);
            };
            (oid, node) = (leaf, self.node(leaf)?);
        }
        let Node::Leaf(slots) = parse(&node) else {
            unreachable!("a tree has two levels at most");
        };
        let at = slots
            .iter()
            .position(|slot| slot.index.get() == index.0 && slot.vid.get() != 0);
        let owner_at =
            |at| node_start(oid) + size_of::<NodeHeader>() + at * size_of::<LeafEntry>() + 4;
        Ok(at.map(owner_at).map(|owner_at| ReadSlot {
            inode,
            start,
            oid,
            owner_at,
        }))
    }

    /// Clears a slot as a C sheep does: it writes back the header and the root that it has
    /// read before.
    pub(crate) fn clear_slot(&mut self, mut slot: ReadSlot) -> Result<(), ResultCode> {
        if slot.oid == slot.inode {
            slot.start[slot.owner_at..][..4].fill(0);
        } else {
            self.write(slot.oid, slot.owner_at, &[0; 4])?;
        }
        self.write(slot.inode, 0, &slot.start)
    }

    /// Slots of a tree that name an owner.
    pub(crate) fn tree_slots(&self, vid: Vid) -> Vec<(u32, u32)> {
        let root = self.node(Oid::inode(vid)).expect("the inode is there");
        let leaves = match parse(&root) {
            Node::Leaf(_) => vec![root.clone()],
            Node::Root(entries) => entries
                .iter()
                .map(|entry| {
                    self.node(Oid::from_raw(entry.oid.get()))
                        .expect("leaves stay")
                })
                .collect(),
        };
        let slots = leaves.iter().flat_map(|leaf| match parse(leaf) {
            Node::Leaf(slots) => slots.to_vec(),
            Node::Root(_) => unreachable!("a tree has two levels at most"),
        });
        slots
            .map(|slot| (slot.index.get(), slot.vid.get()))
            .filter(|&(_, owner)| owner != 0)
            .collect()
    }

    /// Gives a new hypervolume an empty tree.
    pub(crate) fn plant(&mut self, vid: Vid) {
        let root = encode::<LeafEntry>(NodeHeader::leaf(0), &[]);
        self.write(Oid::inode(vid), ROOT_OFFSET as usize, &root)
            .expect("it was just made");
    }

    /// Makes an empty tree one of two levels, as those are that were large once.
    pub(crate) fn deepen(&mut self, vid: Vid) {
        let mut entries = Vec::new();
        for (number, slots) in (0..).zip(OLD_LEAVES) {
            let slots = slots.map(|index| LeafEntry::new(ObjectIndex(index), None));
            let last = slots.last().map_or(0, |slot| slot.index.get());
            let oid = Oid::btree_node(vid, number);
            let mut leaf = Object::default();
            leaf.write(0, &encode(NodeHeader::leaf(2), &slots));
            self.put(oid, leaf);
            entries.push(RootEntry::new(ObjectIndex(last), oid));
        }
        let root = encode(NodeHeader::root(2), &entries);
        self.write(Oid::inode(vid), ROOT_OFFSET as usize, &root)
            .expect("it was just made");
        self.change_header(vid, |header| header.btree_counter = 2.into());
    }
}
