//! What to write so that a tree gets more slots.

use std::sync::Arc;

use bytes::{BufMut as _, Bytes, BytesMut};
use sheep_proto::btree::{LeafEntry, NodeHeader, ROOT_WRITE_LEAD, ROOT_WRITE_OFFSET, RootEntry};
use sheep_proto::inode::BTREE_COUNTER_OFFSET;
use sheep_proto::{ObjectIndex, Oid, Vid};
use zerocopy::IntoBytes as _;

use super::leaf::{self, Leaf, Location};
use super::nodes::{Capacity, Level, Nodes};
use super::write::TreeWrite;
use crate::error::ClientError;

/// The tree with `slots` set, and the writes that make the cluster's tree equal.
pub(super) fn plan(
    tree: &Nodes,
    slots: &[(ObjectIndex, Vid)],
) -> Result<(Nodes, Vec<TreeWrite>), ClientError> {
    let mut plan = WritePlan::new(tree);
    let level = match &tree.level {
        Level::Slots(old) => plan.insert_into_root(old, slots),
        Level::Leaves(old) => Level::Leaves(plan.insert_into_leaves(old, slots)),
    };
    let (level, counter, writes) = plan.finish(level)?;
    let changed = Nodes {
        vid: tree.vid,
        level,
        counter,
        root_is_stale: false,
        capacity: tree.capacity,
    };
    Ok((changed, writes))
}

/// A change of a tree as it comes together.
struct WritePlan {
    vid: Vid,
    capacity: Capacity,
    counter: u32,
    root_changes: bool,
    /// Writes to leaves that are there already.
    edits: Vec<TreeWrite>,
}

impl WritePlan {
    fn new(tree: &Nodes) -> Self {
        Self {
            vid: tree.vid,
            capacity: tree.capacity,
            counter: tree.counter,
            root_changes: tree.root_is_stale,
            edits: Vec::new(),
        }
    }

    /// Sets slots of a root that holds slots.
    fn insert_into_root(
        &mut self,
        old: &Arc<Vec<LeafEntry>>,
        slots: &[(ObjectIndex, Vid)],
    ) -> Level {
        let merged = leaf::merge(old, slots);
        if merged == **old {
            return Level::Slots(Arc::clone(old));
        }
        self.root_changes = true;
        if merged.len() <= self.capacity.leaf {
            return Level::Slots(Arc::new(merged));
        }
        let parts = leaf::split(&merged, self.capacity.leaf);
        Level::Leaves(parts.into_iter().map(new_leaf).collect())
    }

    /// Sets slots of leaves, each in the leaf the root leads to, those behind
    /// every leaf in the last.
    fn insert_into_leaves(&mut self, old: &[Leaf], slots: &[(ObjectIndex, Vid)]) -> Vec<Leaf> {
        let mut leaves = Vec::with_capacity(old.len() + 1);
        let mut rest = slots;
        for (number, old_leaf) in old.iter().enumerate() {
            let here = if number + 1 == old.len() {
                rest.len()
            } else {
                rest.partition_point(|(index, _)| index.0 <= old_leaf.last())
            };
            let (into, behind) = rest.split_at(here);
            rest = behind;
            self.insert_into_leaf(old_leaf, into, &mut leaves);
        }
        if old.is_empty() && !rest.is_empty() {
            let slots = leaf::merge(&[], rest);
            leaves.extend(slots.chunks(self.capacity.leaf).map(new_leaf));
            self.root_changes = true;
        }
        leaves
    }

    /// Adds what becomes of `old` with `slots` to `leaves`.
    fn insert_into_leaf(
        &mut self,
        old: &Leaf,
        slots: &[(ObjectIndex, Vid)],
        leaves: &mut Vec<Leaf>,
    ) {
        let has_duplicates = matches!(old.location, Location::HasDuplicates(_));
        if slots.is_empty() && !has_duplicates {
            leaves.push(old.clone());
            return;
        }
        let merged = leaf::merge(old.slots(), slots);
        if merged == old.slots() && !has_duplicates {
            leaves.push(old.clone());
            return;
        }
        if merged.len() <= self.capacity.leaf {
            leaves.push(self.change_leaf(old, merged));
            return;
        }
        self.root_changes = true;
        if leaf::is_append_of(&merged, old.slots()) {
            // Behind the last slot: the old leaf is filled, not split.
            let mut parts = merged.chunks(self.capacity.leaf);
            let filled = parts.next().unwrap_or_default().to_vec();
            leaves.push(self.change_leaf(old, filled));
            leaves.extend(parts.map(new_leaf));
            return;
        }
        let mut parts = leaf::split(&merged, self.capacity.leaf);
        let upper = parts.pop().unwrap_or_default().to_vec();
        leaves.extend(parts.into_iter().map(new_leaf));
        leaves.push(self.change_leaf(old, upper));
    }

    /// The leaf in the object of `old` with the slots `new`.
    fn change_leaf(&mut self, old: &Leaf, new: Vec<LeafEntry>) -> Leaf {
        let location = match old.location {
            // Other VDIs may use the leaf of an ancestor, too.
            Location::Clean(oid) | Location::HasDuplicates(oid) if oid.vid() != Some(self.vid) => {
                Location::Unallocated
            }
            Location::Clean(oid) => {
                self.edits.extend(leaf::diff(oid, old.slots(), &new));
                Location::Clean(oid)
            }
            Location::HasDuplicates(oid) => {
                self.edits.push(leaf::rewrite(oid, &new));
                Location::Clean(oid)
            }
            Location::Unallocated => Location::Unallocated,
        };
        let changed = Leaf::new(location, new);
        self.root_changes |= location == Location::Unallocated || changed.last() != old.last();
        changed
    }

    /// Gives new leaves their numbers and puts the writes in order.
    fn finish(mut self, mut level: Level) -> Result<(Level, u32, Vec<TreeWrite>), ClientError> {
        let inode = Oid::inode(self.vid);
        let mut writes = Vec::new();
        if let Level::Leaves(leaves) = &mut level {
            if leaves.len() > self.capacity.root {
                return Err(ClientError::IndexFull(self.vid));
            }
            let creates = self.number_new_leaves(leaves)?;
            if !creates.is_empty() {
                writes.push(TreeWrite {
                    oid: inode,
                    offset: BTREE_COUNTER_OFFSET,
                    data: Bytes::copy_from_slice(&self.counter.to_le_bytes()),
                    create: false,
                });
                writes.extend(creates);
            }
        }
        if self.root_changes {
            writes.push(TreeWrite {
                oid: inode,
                offset: ROOT_WRITE_OFFSET,
                data: encode_root(&level),
                create: false,
            });
        }
        writes.append(&mut self.edits);
        Ok((level, self.counter, writes))
    }

    fn number_new_leaves(&mut self, leaves: &mut [Leaf]) -> Result<Vec<TreeWrite>, ClientError> {
        let mut creates = Vec::new();
        for leaf in leaves
            .iter_mut()
            .filter(|leaf| leaf.location == Location::Unallocated)
        {
            let oid = Oid::btree_node(self.vid, self.counter);
            self.counter = self
                .counter
                .checked_add(1)
                .ok_or(ClientError::IndexFull(self.vid))?;
            leaf.location = Location::Clean(oid);
            creates.push(TreeWrite {
                oid,
                offset: 0,
                data: leaf::encode(leaf.slots()),
                create: true,
            });
        }
        Ok(creates)
    }
}

fn new_leaf(slots: &[LeafEntry]) -> Leaf {
    Leaf::new(Location::Unallocated, slots.to_vec())
}

/// The bytes to write at [`ROOT_WRITE_OFFSET`].
fn encode_root(level: &Level) -> Bytes {
    let mut bytes = BytesMut::from(&ROOT_WRITE_LEAD[..]);
    match level {
        Level::Slots(slots) => {
            bytes.put_slice(leaf::header(slots.len()).as_bytes());
            bytes.put_slice(slots.as_bytes());
        }
        Level::Leaves(leaves) => {
            bytes.put_slice(NodeHeader::root(leaf::count(leaves.len())).as_bytes());
            for leaf in leaves {
                if let Location::Clean(oid) | Location::HasDuplicates(oid) = leaf.location {
                    let max = ObjectIndex(leaf.last());
                    bytes.put_slice(RootEntry::new(max, oid).as_bytes());
                }
            }
        }
    }
    bytes.freeze()
}
