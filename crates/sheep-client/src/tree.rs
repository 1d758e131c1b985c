//! The index of a hypervolume in memory: reading it, and changing it.
//!
//! ```text
//! IndexTree  one leaf, or leaves in order        8 bytes per slot
//!    |       insert: what to write, in order     plan.rs, no I/O
//! TreeWrite  oid, offset, bytes
//!    |       one after the other
//! Client     writes and creates objects
//! ```
//!
//! # The order of writes
//!
//! Whatever was in the tree before is found in it after each single write, so
//! it does not matter where a crash or a failure cuts a plan off:
//!
//! 1. The counter of B-tree objects, so that no number is used twice.
//! 2. New leaves. Nothing points to them yet.
//! 3. The root, in one write, as it shall be in the end. Each slot is found
//!    now where it will stay: in a new leaf, which is complete, or in the leaf
//!    it was in before, which has not changed. A leaf that was split still has
//!    the slots that moved out of it as well; the root leads past them.
//! 4. The leaves that were there before. At the end of a leaf new entries come
//!    first and the count of entries after them; anything else is one write
//!    from the leaf's first byte on.
//!
//! The root never names a maximum below a leaf's last slot, which would hide
//! slots from the C programs. What they and interrupted plans leave behind is
//! put in order while reading (`untangle.rs`), and on the cluster by the next
//! plan.
//!
//! # The root
//!
//! Is written from [`ROOT_WRITE_OFFSET`](sheep_proto::btree::ROOT_WRITE_OFFSET)
//! on, and always whole: a server misunderstands a write within the index area
//! and destroys data. Nothing of the inode's header is written but the counter,
//! so that what others change there stays.
//!
//! Source: protocol 4.6.

mod leaf;
mod plan;
mod read;
#[cfg(test)]
mod tests;
mod untangle;

use std::sync::Arc;

use bytes::Bytes;
use sheep_proto::btree::{LEAF_MAX_ENTRIES, LeafEntry, ROOT_MAX_ENTRIES};
use sheep_proto::{ObjectIndex, Oid, Vid};

use crate::call::{Call, KeepAlive};
use crate::error::ClientError;
use crate::object::Objects;
use leaf::Leaf;
pub(crate) use read::load_tree;

/// The index of one hypervolume. A clone is cheap and shares its leaves.
///
/// There is one writer of a VDI, so what is in memory stays true.
#[derive(Clone, Debug)]
pub struct IndexTree {
    vid: Vid,
    level: Level,
    /// Number of the next B-tree object.
    counter: u32,
    /// Whether the root must be written although no slot asks for it.
    root_is_stale: bool,
    /// Whether a plan was begun whose end nobody has seen.
    in_doubt: bool,
    capacity: Capacity,
}

/// What the root holds.
#[derive(Clone, Debug)]
enum Level {
    /// Slots, sorted.
    Slots(Arc<Vec<LeafEntry>>),
    /// Leaves, none of them empty, sorted, and without slots in common.
    Leaves(Vec<Leaf>),
}

/// Most entries of nodes.
#[derive(Clone, Copy, Debug)]
struct Capacity {
    leaf: usize,
    root: usize,
}

impl Capacity {
    const PROTOCOL: Self = Self {
        leaf: LEAF_MAX_ENTRIES as usize,
        root: ROOT_MAX_ENTRIES as usize,
    };
}

/// A write to an object, one step of a change of an [`IndexTree`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TreeWrite {
    /// The inode, or a B-tree object.
    pub oid: Oid,
    /// Byte offset in it.
    pub offset: u32,
    /// The bytes.
    pub data: Bytes,
    /// Whether the object is made by this write.
    pub create: bool,
}

impl IndexTree {
    /// The VDI whose index this is.
    pub fn vid(&self) -> Vid {
        self.vid
    }

    /// Every slot that names an owner, in ascending order of object number.
    pub fn slots(&self) -> impl Iterator<Item = (ObjectIndex, Vid)> {
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
    pub fn slot(&self, index: ObjectIndex) -> Option<Vid> {
        let slots = match &self.level {
            Level::Slots(slots) => slots,
            Level::Leaves(leaves) => {
                let at = leaves.partition_point(|leaf| leaf.last() < index.0);
                leaves.get(at)?.slots()
            }
        };
        sheep_proto::btree::leaf_lookup(slots, index)
    }

    /// Sets slots in memory and returns the writes, in order, that make the
    /// cluster's tree equal; see the module for what holds in between.
    ///
    /// `slots` are in ascending order of object number. Objects must have been
    /// created before the writes are made (protocol 7.4).
    /// [`IndexTree::commit`] does both, and keeps memory and cluster together
    /// when a write fails.
    ///
    /// # Errors
    /// `IndexFull` when the root is full, or no number for a B-tree object is
    /// left; the tree is as before then.
    ///
    /// # Panics
    /// When `slots` are not in ascending order.
    pub fn insert(&mut self, slots: &[(ObjectIndex, Vid)]) -> Result<Vec<TreeWrite>, ClientError> {
        assert!(
            slots.is_sorted_by(|(before, _), (after, _)| before < after),
            "slots are inserted in ascending order"
        );
        let (changed, writes) = plan::plan(self, slots)?;
        *self = changed;
        Ok(writes)
    }

    /// Sets slots on the cluster as well, after their objects were created.
    ///
    /// `slots` are in ascending order; those that are there already are changed
    /// in place. With none, only what is out of order on the cluster is repaired.
    /// After a failure, or when this is dropped before its end, the tree is as it
    /// was before, the cluster has all slots it had, perhaps some of the new ones
    /// as well, and the next call reads the tree anew first. Every request that
    /// is sent for it pins `tokens` ([`Call::holding`]).
    ///
    /// # Errors
    /// `IndexFull` when the tree has no room left, otherwise as
    /// [`Objects::write`], [`Objects::create`] and [`Index::tree`].
    ///
    /// # Panics
    /// As [`IndexTree::insert`].
    ///
    /// [`Index::tree`]: crate::Index::tree
    pub async fn commit(
        &mut self,
        objects: Objects<'_>,
        slots: &[(ObjectIndex, Vid)],
        tokens: &[KeepAlive],
    ) -> Result<(), ClientError> {
        if self.in_doubt {
            *self = load_tree(objects.sender, self.vid).await?;
        }
        let mut changed = self.clone();
        let writes = changed.insert(slots)?;
        self.in_doubt = true;
        apply_writes(objects, writes, tokens).await?;
        *self = changed;
        Ok(())
    }

    /// Makes a slot a hole in memory, after [`Objects::discard`] made it one on
    /// the cluster.
    ///
    /// Without it the next change would name the discarded object again. No
    /// change of the tree may be under way while an object is discarded, as the
    /// server changes the tree too.
    pub fn discarded(&mut self, index: ObjectIndex) {
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

/// Makes the writes of a plan, each after the one before was answered.
///
/// # Errors
/// As [`Objects::write`] and [`Objects::create`]; nothing is written after the
/// write that failed.
pub async fn apply_writes(
    objects: Objects<'_>,
    writes: Vec<TreeWrite>,
    tokens: &[KeepAlive],
) -> Result<(), ClientError> {
    for write in writes {
        let call = if write.create {
            Call::create_object(write.oid, write.offset, write.data, None)
        } else {
            Call::write_object(write.oid, write.offset, write.data)
        };
        objects.sender.send(call.holding_all(tokens)).await?;
    }
    Ok(())
}
