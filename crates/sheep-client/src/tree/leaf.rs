//! A leaf: sorted slots and the object they are in; merging into it, dividing it.

use std::sync::Arc;

use bytes::{BufMut as _, Bytes, BytesMut};
use sheep_proto::btree::{LeafEntry, NodeHeader};
use sheep_proto::{ObjectIndex, Oid, Vid};
use zerocopy::IntoBytes as _;

use super::write::TreeWrite;

/// Runs of changed entries up to which they are written one by one.
const MAX_RUNS: usize = 8;

/// A leaf in a B-tree object. Never empty.
#[derive(Clone, Debug)]
pub(super) struct Leaf {
    pub(super) location: Location,
    slots: Arc<Vec<LeafEntry>>,
}

/// Where the cluster has a leaf.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Location {
    /// In this object, with the same slots.
    Clean(Oid),
    /// In this object, together with slots that belong to other leaves.
    HasDuplicates(Oid),
    /// Nowhere yet.
    Unallocated,
}

impl Leaf {
    pub(super) fn new(location: Location, slots: Vec<LeafEntry>) -> Self {
        debug_assert!(!slots.is_empty(), "a leaf has slots");
        Self {
            location,
            slots: Arc::new(slots),
        }
    }

    pub(super) fn slots(&self) -> &[LeafEntry] {
        &self.slots
    }

    pub(super) fn slots_mut(&mut self) -> &mut Arc<Vec<LeafEntry>> {
        &mut self.slots
    }

    pub(super) fn last(&self) -> u32 {
        self.slots.last().map_or(0, |slot| slot.index.get())
    }
}

/// The bytes of a leaf, without garbage behind them.
pub(super) fn encode(slots: &[LeafEntry]) -> Bytes {
    let mut node = BytesMut::with_capacity(size_of::<NodeHeader>() + size_of_val(slots));
    node.put_slice(header(slots.len()).as_bytes());
    node.put_slice(slots.as_bytes());
    node.freeze()
}

pub(super) fn header(entries: usize) -> NodeHeader {
    NodeHeader::leaf(count(entries))
}

pub(super) fn count(entries: usize) -> u32 {
    u32::try_from(entries).expect("a node has at most 524,287 entries")
}

/// `old` with `slots` in their places; both are sorted.
pub(super) fn merge(old: &[LeafEntry], slots: &[(ObjectIndex, Vid)]) -> Vec<LeafEntry> {
    let mut merged = Vec::with_capacity(old.len() + slots.len());
    let mut rest = old;
    for &(index, owner) in slots {
        let at = rest.partition_point(|slot| slot.index.get() < index.0);
        merged.extend_from_slice(&rest[..at]);
        rest = &rest[at..];
        if rest.first().is_some_and(|slot| slot.index.get() == index.0) {
            rest = &rest[1..];
        }
        merged.push(LeafEntry::new(index, Some(owner)));
    }
    merged.extend_from_slice(rest);
    merged
}

/// True when `new` is `old` with other owners at most, and more entries behind it.
pub(super) fn is_append_of(new: &[LeafEntry], old: &[LeafEntry]) -> bool {
    new.len() >= old.len() && old.iter().zip(new).all(|(old, new)| old.index == new.index)
}

/// The parts of a leaf with more than `room` slots: the lower half of a full leaf
/// and the rest, or equal parts when the rest is still too large.
pub(super) fn split(slots: &[LeafEntry], room: usize) -> Vec<&[LeafEntry]> {
    let half = room / 2;
    if slots.len() - half <= room {
        let (lower, upper) = slots.split_at(half);
        return vec![lower, upper];
    }
    let parts = slots.len().div_ceil(room);
    slots.chunks(slots.len().div_ceil(parts)).collect()
}

/// The writes that make the object of a leaf have the slots `new` instead of `old`.
pub(super) fn diff(oid: Oid, old: &[LeafEntry], new: &[LeafEntry]) -> Vec<TreeWrite> {
    let write = |entry: usize, data: &[u8]| TreeWrite {
        oid,
        offset: count(size_of::<NodeHeader>() + entry * size_of::<LeafEntry>()),
        data: Bytes::copy_from_slice(data),
        create: false,
    };
    let runs = if is_append_of(new, old) {
        changed_runs(old, new)
    } else {
        None
    };
    let Some(runs) = runs else {
        return vec![rewrite(oid, new)];
    };
    let mut writes: Vec<_> = runs
        .into_iter()
        .map(|(first, end)| write(first, new[first..end].as_bytes()))
        .collect();
    if new.len() > old.len() {
        writes.push(write(old.len(), new[old.len()..].as_bytes()));
        writes.push(TreeWrite {
            oid,
            offset: 0,
            data: Bytes::copy_from_slice(header(new.len()).as_bytes()),
            create: false,
        });
    }
    writes
}

/// The write of a whole leaf.
pub(super) fn rewrite(oid: Oid, slots: &[LeafEntry]) -> TreeWrite {
    TreeWrite {
        oid,
        offset: 0,
        data: encode(slots),
        create: false,
    }
}

/// Ranges of entries that differ; `None` when there are many.
fn changed_runs(old: &[LeafEntry], new: &[LeafEntry]) -> Option<Vec<(usize, usize)>> {
    let mut runs: Vec<(usize, usize)> = Vec::new();
    for (at, (old, new)) in old.iter().zip(new).enumerate() {
        if old == new {
            continue;
        }
        if let Some((_, end)) = runs.last_mut()
            && *end == at
        {
            *end += 1;
        } else if runs.len() < MAX_RUNS {
            runs.push((at, at + 1));
        } else {
            return None;
        }
    }
    Some(runs)
}
