//! The nodes of a tree in memory: the root, and the leaves it leads to.

use std::sync::Arc;

use sheep_proto::btree::{LEAF_MAX_ENTRIES, LeafEntry, ROOT_MAX_ENTRIES};
use sheep_proto::{ObjectIndex, Vid};

use super::leaf::Leaf;
use super::repair::{RawLeaf, repair};

/// What the cluster has of a tree. A clone is cheap and shares the leaves.
#[derive(Clone, Debug)]
pub(super) struct Nodes {
    pub(super) vid: Vid,
    pub(super) level: Level,
    /// Number of the next B-tree object.
    pub(super) counter: u32,
    /// Whether the root on the cluster is out of date.
    pub(super) root_is_stale: bool,
    pub(super) capacity: Capacity,
}

/// What the root holds.
#[derive(Clone, Debug)]
pub(super) enum Level {
    /// Slots, sorted.
    Slots(Arc<Vec<LeafEntry>>),
    /// Leaves, none of them empty, sorted, and without slots in common.
    Leaves(Vec<Leaf>),
}

/// Most entries of nodes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Capacity {
    pub(super) leaf: usize,
    pub(super) root: usize,
}

impl Capacity {
    pub(super) const PROTOCOL: Self = Self {
        leaf: LEAF_MAX_ENTRIES as usize,
        root: ROOT_MAX_ENTRIES as usize,
    };
}

impl Nodes {
    /// A tree whose root holds checked `slots`.
    pub(super) fn from_slots(
        vid: Vid,
        counter: u32,
        slots: Vec<LeafEntry>,
        capacity: Capacity,
    ) -> Self {
        Self {
            vid,
            level: Level::Slots(Arc::new(slots)),
            counter,
            root_is_stale: false,
            capacity,
        }
    }

    /// A tree whose root leads to leaves with checked slots.
    pub(super) fn from_leaves(
        vid: Vid,
        counter: u32,
        found: Vec<RawLeaf>,
        capacity: Capacity,
    ) -> Self {
        // The C programs write the counter last.
        let used = found
            .iter()
            .filter(|leaf| leaf.oid.vid() == Some(vid))
            .map(|leaf| leaf.oid.number().saturating_add(1));
        let counter = used.fold(counter, u32::max);
        let (leaves, root_is_stale) = repair(found, capacity.leaf);
        Self {
            vid,
            level: Level::Leaves(leaves),
            counter,
            root_is_stale,
            capacity,
        }
    }

    /// Every slot that names an owner, in ascending order of object number.
    pub(super) fn slots(&self) -> impl Iterator<Item = (ObjectIndex, Vid)> {
        let (root, leaves): (&[LeafEntry], &[Leaf]) = match &self.level {
            Level::Slots(slots) => (slots, &[]),
            Level::Leaves(leaves) => (&[], leaves),
        };
        root.iter()
            .chain(leaves.iter().flat_map(|leaf| leaf.slots().iter()))
            .filter_map(|slot| {
                Vid::new(slot.vid.get()).map(|owner| (ObjectIndex(slot.index.get()), owner))
            })
    }

    /// The VID that owns object `index`; `None` for a hole.
    pub(super) fn slot(&self, index: ObjectIndex) -> Option<Vid> {
        let slots = match &self.level {
            Level::Slots(slots) => slots,
            Level::Leaves(leaves) => {
                let at = leaves.partition_point(|leaf| leaf.last() < index.0);
                leaves.get(at)?.slots()
            }
        };
        sheep_proto::btree::leaf_lookup(slots, index)
    }

    /// Makes a slot a hole.
    pub(super) fn mark_hole(&mut self, index: ObjectIndex) {
        let slots = match &mut self.level {
            Level::Slots(slots) => slots,
            Level::Leaves(leaves) => {
                let at = leaves.partition_point(|leaf| leaf.last() < index.0);
                match leaves.get_mut(at) {
                    Some(leaf) => leaf.slots_mut(),
                    None => return,
                }
            }
        };
        if let Ok(at) = slots.binary_search_by_key(&index.0, |slot| slot.index.get()) {
            Arc::make_mut(slots)[at] = LeafEntry::new(index, None);
        }
    }
}
