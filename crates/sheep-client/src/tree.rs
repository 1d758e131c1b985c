//! The index of a hypervolume in memory: reading it, and changing it.
//!
//! ```text
//! IndexTree  the nodes: one leaf, or leaves in order    8 bytes per slot
//!    |       insert: what to write, in order            plan.rs, no I/O
//! TreeWrite  oid, offset, bytes
//!    |       one after the other
//! Objects    are written and created
//! ```
//!
//! # The order of writes
//!
//! After each single write, every slot that was in the tree before can be found,
//! so a crash or a failure may interrupt a plan anywhere:
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
//! slots from the C programs. Overlapping leaves, which they and interrupted
//! plans leave behind, are repaired while reading (`repair.rs`), and on the
//! cluster by the next plan.
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
mod nodes;
mod plan;
mod read;
mod repair;
#[cfg(test)]
mod tests;
mod write;

use sheep_proto::{ObjectIndex, Vid};

use crate::error::ClientError;
use crate::object::Objects;
use crate::request::InFlightToken;
use crate::sender::Sender;
use nodes::Nodes;
pub use write::{TreeWrite, apply_writes};

/// The index of one hypervolume. A clone is cheap and shares its leaves.
///
/// There is one writer of a VDI, so what is in memory stays true.
#[derive(Clone, Debug)]
pub struct IndexTree {
    nodes: Nodes,
    /// Whether the outcome of the last plan is unknown.
    in_doubt: bool,
}

impl IndexTree {
    /// Reads the index of a hypervolume.
    ///
    /// # Errors
    /// As [`Index::tree`](crate::Index::tree).
    pub(crate) async fn load(sender: &Sender, vid: Vid) -> Result<Self, ClientError> {
        Ok(Self {
            nodes: read::load(sender, vid).await?,
            in_doubt: false,
        })
    }

    /// The VDI whose index this is.
    pub fn vid(&self) -> Vid {
        self.nodes.vid
    }

    /// Every slot that names an owner, in ascending order of object number.
    pub fn slots(&self) -> impl Iterator<Item = (ObjectIndex, Vid)> {
        self.nodes.slots()
    }

    /// The VID that owns object `index`; `None` for a hole.
    pub fn slot(&self, index: ObjectIndex) -> Option<Vid> {
        self.nodes.slot(index)
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
        let (changed, writes) = plan::plan(&self.nodes, slots)?;
        self.nodes = changed;
        Ok(writes)
    }

    /// Sets slots on the cluster as well, after their objects were created.
    ///
    /// `slots` are in ascending order; those that are there already are changed
    /// in place. With no slots, only overlapping leaves on the cluster are repaired.
    /// After a failure, or when this is dropped before its end, the tree is as it
    /// was before, the cluster has all slots it had, perhaps some of the new ones
    /// as well, and the next call reads the tree anew first. Every request that
    /// is sent for it pins `tokens` ([`Request::with_token`](crate::request::Request::with_token)).
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
        tokens: &[InFlightToken],
    ) -> Result<(), ClientError> {
        if self.in_doubt {
            *self = Self::load(objects.sender, self.vid()).await?;
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
    /// change of the tree may be in flight while an object is discarded, as the
    /// server changes the tree, too.
    pub fn mark_hole(&mut self, index: ObjectIndex) {
        self.nodes.mark_hole(index);
    }
}
