//! Repair of leaves that overlap.
//!
//! Usually none do. But the C programs store a wrong maximum when they split a
//! leaf; they then miss the slots below it, and insert them into the next leaf
//! again. And an interrupted plan leaves slots in two leaves.

use sheep_proto::Oid;
use sheep_proto::btree::LeafEntry;

use super::leaf::{Leaf, Location};

/// A leaf as the cluster has it.
#[derive(Debug)]
pub(super) struct RawLeaf {
    /// Its maximum, according to the root.
    pub(super) max: u32,
    /// Its object.
    pub(super) oid: Oid,
    /// Its slots, sorted; possibly none.
    pub(super) slots: Vec<LeafEntry>,
}

/// A copy of a slot in one of several overlapping leaves.
#[derive(Clone, Copy)]
struct SlotCopy {
    slot: LeafEntry,
    /// Position of its leaf in the root.
    leaf: usize,
}

/// The leaves in order without duplicates, and whether the root is out of date.
pub(super) fn repair(found: Vec<RawLeaf>, room: usize) -> (Vec<Leaf>, bool) {
    let keys: Vec<_> = found.iter().map(|leaf| (leaf.max, leaf.oid)).collect();
    let root = Root::new(&keys);
    let mut sorted: Vec<_> = found
        .into_iter()
        .enumerate()
        .filter(|(_, leaf)| !leaf.slots.is_empty())
        .collect();
    sorted.sort_by_key(|(_, leaf)| leaf.slots[0].index);

    let mut leaves = Vec::with_capacity(sorted.len());
    let mut group: Vec<(usize, RawLeaf)> = Vec::new();
    let mut group_last = 0;
    for (position, leaf) in sorted {
        let (first, last) = (leaf.slots[0].index.get(), last_index(&leaf.slots));
        if first > group_last {
            repair_group(std::mem::take(&mut group), &root, room, &mut leaves);
        }
        group_last = group_last.max(last);
        group.push((position, leaf));
    }
    repair_group(group, &root, room, &mut leaves);

    let needed = leaves.iter().map(|leaf| match leaf.location {
        Location::Clean(oid) | Location::HasDuplicates(oid) => Some((leaf.last(), oid)),
        Location::Unallocated => None,
    });
    let stale = !needed.eq(keys.iter().copied().map(Some));
    (leaves, stale)
}

/// Repairs leaves of which each overlaps another, or keeps a single one.
fn repair_group(
    mut group: Vec<(usize, RawLeaf)>,
    root: &Root,
    room: usize,
    leaves: &mut Vec<Leaf>,
) {
    // A leaf that overlaps no other is kept as it is.
    if group.len() <= 1 {
        let single = group.pop();
        leaves.extend(single.map(|(_, leaf)| Leaf::new(Location::Clean(leaf.oid), leaf.slots)));
        return;
    }
    // Pick one copy of each slot.
    let mut copies: Vec<_> = group
        .iter()
        .flat_map(|(position, leaf)| {
            leaf.slots.iter().map(|&slot| SlotCopy {
                slot,
                leaf: *position,
            })
        })
        .collect();
    copies.sort_by_key(|copy| (copy.slot.index, copy.leaf));
    let (slots, has_conflicts) = resolve_duplicates(&copies, root);
    drop(copies);

    if has_conflicts {
        // The picked slots go to new objects; a single write of the root replaces the
        // old leaves.
        let merged: Vec<_> = slots.iter().map(|copy| copy.slot).collect();
        let parts = merged.len().div_ceil(room);
        leaves.extend(
            merged
                .chunks(merged.len().div_ceil(parts))
                .map(|part| Leaf::new(Location::Unallocated, part.to_vec())),
        );
        return;
    }
    // Without conflicts each leaf keeps the slots picked from it, in its own object.
    for part in slots.chunk_by(|a, b| a.leaf == b.leaf) {
        let slots: Vec<_> = part.iter().map(|copy| copy.slot).collect();
        let home = group
            .iter()
            .find(|(position, _)| *position == part[0].leaf)
            .map(|(_, leaf)| leaf)
            .expect("slots come from leaves of the group");
        let location = if slots.len() == home.slots.len() {
            Location::Clean(home.oid)
        } else {
            Location::HasDuplicates(home.oid)
        };
        leaves.push(Leaf::new(location, slots));
    }
}

/// Picks one copy per slot: the one that the root leads to, or an equal one in an
/// earlier leaf. Also returns whether slots conflict, in which case the leaves
/// must be rewritten: a slot would have to move from one leaf to another.
fn resolve_duplicates(copies: &[SlotCopy], root: &Root) -> (Vec<SlotCopy>, bool) {
    let mut chosen: Vec<SlotCopy> = Vec::with_capacity(copies.len());
    let mut has_conflicts = false;
    for same in copies.chunk_by(|a, b| a.slot.index == b.slot.index) {
        let first = same[0];
        let leads_to = root.lookup(first.slot.index.get());
        let led = same
            .iter()
            .find(|copy| Some(copy.leaf) == leads_to)
            .unwrap_or(&first);
        if led.slot == first.slot {
            chosen.push(first);
        } else {
            has_conflicts = true;
            chosen.push(*led);
        }
    }
    has_conflicts |= !chosen.is_sorted_by_key(|copy| copy.leaf);
    (chosen, has_conflicts)
}

fn last_index(slots: &[LeafEntry]) -> u32 {
    slots.last().map_or(0, |slot| slot.index.get())
}

/// The keys of a root, for looking slots up as the C programs do.
struct Root {
    /// Largest maximum up to each entry: ascending even where maxima are not.
    largest: Vec<u32>,
}

impl Root {
    fn new(keys: &[(u32, Oid)]) -> Self {
        let mut largest = 0;
        Self {
            largest: keys
                .iter()
                .map(|&(max, _)| {
                    largest = largest.max(max);
                    largest
                })
                .collect(),
        }
    }

    /// Position of the first entry whose maximum is not below `index`.
    fn lookup(&self, index: u32) -> Option<usize> {
        let at = self.largest.partition_point(|&largest| largest < index);
        (at < self.largest.len()).then_some(at)
    }
}
