//! The objects of one hypervolume in memory.

use std::collections::HashMap;

use sheep_proto::btree::{self, LeafEntry, Node, NodeHeader, RootEntry};
use sheep_proto::inode::BTREE_COUNTER_OFFSET;
use sheep_proto::limits::INODE_HEADER_LEN;
use sheep_proto::{ObjectIndex, Oid, Vid};
use zerocopy::IntoBytes as _;

use crate::tree::nodes::{Capacity, Nodes};
use crate::tree::repair::RawLeaf;
use crate::tree::{IndexTree, TreeWrite};

#[derive(Clone)]
pub(super) struct Objects {
    vid: Vid,
    capacity: Capacity,
    objects: HashMap<Oid, Vec<u8>>,
}

impl Objects {
    /// A new hypervolume; nodes are allowed `capacity` entries.
    pub(super) fn empty(vid: Vid, capacity: Capacity) -> Self {
        let mut new = Self {
            vid,
            capacity,
            objects: HashMap::new(),
        };
        let root = NodeHeader::leaf(0);
        new.put(Oid::inode(vid), INODE_HEADER_LEN, root.as_bytes());
        new
    }

    /// Makes a write as a server does.
    pub(super) fn write(&mut self, write: &TreeWrite) {
        let offset = usize::try_from(write.offset).unwrap();
        if write.oid == Oid::inode(self.vid) {
            assert!(offset < INODE_HEADER_LEN, "taken for a flat index");
        }
        assert_eq!(write.create, !self.objects.contains_key(&write.oid));
        self.put(write.oid, offset, &write.data);
    }

    pub(super) fn apply(&mut self, writes: &[TreeWrite]) {
        writes.iter().for_each(|write| self.write(write));
    }

    /// Puts bytes into an object, which is made when it is not there.
    pub(super) fn put(&mut self, oid: Oid, offset: usize, bytes: &[u8]) {
        let object = self.objects.entry(oid).or_default();
        object.resize(object.len().max(offset + bytes.len()), 0);
        object[offset..offset + bytes.len()].copy_from_slice(bytes);
    }

    pub(super) fn root(&self) -> &[u8] {
        &self.objects[&Oid::inode(self.vid)][INODE_HEADER_LEN..]
    }

    /// The tree, which must be readable.
    pub(super) fn read(&self) -> IndexTree {
        let at = usize::try_from(BTREE_COUNTER_OFFSET).unwrap();
        let counter = &self.objects[&Oid::inode(self.vid)][at..at + 4];
        let counter = u32::from_le_bytes(counter.try_into().unwrap());
        let nodes = match Node::parse(self.root()).unwrap() {
            Node::Leaf(slots) => {
                Nodes::from_slots(self.vid, counter, self.sorted(slots), self.capacity)
            }
            Node::Root(entries) => {
                let found = entries.iter().map(|entry| RawLeaf {
                    max: entry.max_index.get(),
                    oid: Oid::from_raw(entry.oid.get()),
                    slots: self.leaf(entry),
                });
                Nodes::from_leaves(self.vid, counter, found.collect(), self.capacity)
            }
        };
        IndexTree {
            nodes,
            in_doubt: false,
        }
    }

    fn leaf(&self, entry: &RootEntry) -> Vec<LeafEntry> {
        let bytes = &self.objects[&Oid::from_raw(entry.oid.get())];
        match Node::parse(bytes).unwrap() {
            Node::Leaf(slots) => self.sorted(slots),
            Node::Root(_) => panic!("a third level"),
        }
    }

    fn sorted(&self, slots: &[LeafEntry]) -> Vec<LeafEntry> {
        assert!(slots.is_sorted_by(|a, b| a.index < b.index), "{slots:?}");
        assert!(slots.len() <= self.capacity.leaf);
        slots.to_vec()
    }

    /// Looks a slot up as the C programs do, by the maxima of the root.
    pub(super) fn lookup(&self, index: u32) -> Option<Vid> {
        let index = ObjectIndex(index);
        match Node::parse(self.root()).unwrap() {
            Node::Leaf(slots) => btree::leaf_lookup(slots, index),
            Node::Root(entries) => {
                let oid = btree::root_lookup(entries, index)?;
                match Node::parse(&self.objects[&oid]).unwrap() {
                    Node::Leaf(slots) => btree::leaf_lookup(slots, index),
                    Node::Root(_) => panic!("a third level"),
                }
            }
        }
    }

    /// Makes a slot a hole as a server does; false when it finds none.
    pub(super) fn discard(&mut self, index: u32) -> bool {
        let (oid, base) = match Node::parse(self.root()).unwrap() {
            Node::Leaf(_) => (Oid::inode(self.vid), INODE_HEADER_LEN),
            Node::Root(entries) => match btree::root_lookup(entries, ObjectIndex(index)) {
                Some(oid) => (oid, 0),
                None => return false,
            },
        };
        let Node::Leaf(slots) = Node::parse(&self.objects[&oid][base..]).unwrap() else {
            panic!("a third level");
        };
        let Ok(at) = slots.binary_search_by_key(&index, |slot| slot.index.get()) else {
            return false;
        };
        let offset = base + size_of::<NodeHeader>() + at * size_of::<LeafEntry>();
        let hole = LeafEntry::new(ObjectIndex(index), None);
        self.put(oid, offset, hole.as_bytes());
        true
    }

    fn entries(&self) -> Vec<RootEntry> {
        match Node::parse(self.root()).unwrap() {
            Node::Root(entries) => entries.to_vec(),
            Node::Leaf(_) => Vec::new(),
        }
    }

    /// Maxima and object numbers of the leaves.
    pub(super) fn keys(&self) -> Vec<(u32, u32)> {
        let key = |entry: &RootEntry| {
            let oid = Oid::from_raw(entry.oid.get());
            (entry.max_index.get(), oid.number())
        };
        self.entries().iter().map(key).collect()
    }

    fn set_entries(&mut self, entries: &[RootEntry]) {
        let offset = INODE_HEADER_LEN + size_of::<NodeHeader>();
        self.put(Oid::inode(self.vid), offset, entries.as_bytes());
    }

    /// Stores a maximum for leaf `at` of the root, as the C program's split does.
    pub(super) fn set_max(&mut self, at: usize, max: u32) {
        let mut entries = self.entries();
        entries[at].max_index = max.into();
        self.set_entries(&entries);
    }

    pub(super) fn set_counter(&mut self, counter: u32) {
        let offset = usize::try_from(BTREE_COUNTER_OFFSET).unwrap();
        self.put(Oid::inode(self.vid), offset, &counter.to_le_bytes());
    }

    /// Makes leaf `at` one of another VDI.
    pub(super) fn give_away_leaf(&mut self, at: usize, to: Vid) {
        let mut entries = self.entries();
        let object = self.objects[&Oid::from_raw(entries[at].oid.get())].clone();
        let oid = Oid::btree_node(to, 0);
        self.objects.insert(oid, object);
        entries[at].oid = oid.raw().into();
        self.set_entries(&entries);
    }

    /// Hides leaf `at` and puts `slot`, which belongs there, into the leaf
    /// behind it, as the C program does after a split. False when it cannot.
    pub(super) fn hide_leaf(&mut self, at: usize, slot: LeafEntry) -> bool {
        let entries = self.entries();
        if at + 1 >= entries.len() {
            return false;
        }
        let behind = &entries[at + 1];
        let mut slots = self.leaf(behind);
        let index = slot.index.get();
        // With a maximum of 0, slot 0 would not be taken for missing.
        let is_in_reach = index > 0
            && index <= entries[at].max_index.get()
            && (at == 0 || index > entries[at - 1].max_index.get());
        if slots.len() == self.capacity.leaf || !is_in_reach {
            return false;
        }
        match slots.binary_search_by_key(&slot.index, |slot| slot.index) {
            Ok(_) => return false,
            Err(place) => slots.insert(place, slot),
        }
        let oid = Oid::from_raw(behind.oid.get());
        let node = crate::tree::leaf::encode(&slots);
        self.put(oid, 0, &node);
        self.set_max(at, 0);
        true
    }
}
