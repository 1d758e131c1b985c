//! Extents of a volume by the VDI that owns their objects, and what differs between
//! two versions of it.
//!
//! An object that has the same owner in two versions has the same bytes in both: a VDI
//! writes only to its own objects, and a snapshot to none. So the two indexes tell what
//! differs, and no data is read. A changed object may have been rewritten with the same
//! bytes.

use std::iter;
use std::ops::Range;

use sheep_proto::{ObjectIndex, Vid};

use super::object_map::Owners;

/// The index of a VDI at one moment.
#[derive(Clone, Debug)]
pub struct ExtentMap {
    size: u64,
    object_shift: u8,
    owners: Owners,
}

/// An extent whose objects have one owner.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OwnedExtent {
    /// The first byte past it.
    pub end: u64,
    /// The VDI that has written it last; `None` for a hole.
    pub owner: Option<Vid>,
}

/// An extent that may have changed as a whole, or has not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChangedExtent {
    /// The first byte past it.
    pub end: u64,
    /// Whether its bytes may differ.
    pub changed: bool,
}

impl ExtentMap {
    pub(super) fn new(size: u64, object_shift: u8, owners: Owners) -> Self {
        Self {
            size,
            object_shift,
            owners,
        }
    }

    pub(super) fn view(&self) -> ExtentView<'_> {
        ExtentView {
            size: self.size,
            object_shift: self.object_shift,
            owners: &self.owners,
        }
    }
}

/// A borrowed index.
#[derive(Clone, Copy, Debug)]
pub(super) struct ExtentView<'a> {
    /// Bytes of the volume.
    pub(super) size: u64,
    /// Object size as a power of two.
    pub(super) object_shift: u8,
    pub(super) owners: &'a Owners,
}

impl<'a> ExtentView<'a> {
    /// The extents of a range, as far as the volume goes, in ascending order without
    /// gaps. Neighbours have different owners.
    pub(super) fn owned(self, range: Range<u64>) -> impl Iterator<Item = OwnedExtent> + 'a {
        let end = range.end.min(self.size);
        let mut at = range.start;
        let index_of = move |byte: u64| byte >> self.object_shift;
        let first = u32::try_from(index_of(at));
        let slots = first.into_iter().flat_map(move |first| {
            let slots = self.owners.allocated_from(ObjectIndex(first)..);
            slots.map(|(index, owner)| (u64::from(index.0), owner))
        });
        let mut slots = slots.peekable();
        iter::from_fn(move || {
            if at >= end {
                return None;
            }
            let mut index = index_of(at);
            let (owner, after) = match slots.peek().copied() {
                Some((next, owner)) if next == index => {
                    while slots.next_if_eq(&(index, owner)).is_some() {
                        index += 1;
                    }
                    (Some(owner), Some(index))
                }
                Some((next, _)) => (None, Some(next)),
                None => (None, None),
            };
            // The last object may go on past the end, and past 2^64.
            let start_of = |index: u64| index.checked_mul(1 << self.object_shift);
            at = after.and_then(start_of).map_or(end, |byte| byte.min(end));
            Some(OwnedExtent { end: at, owner })
        })
    }

    /// What may differ from `old` in a range, as far as this volume goes, in ascending
    /// order without gaps. Past the end of `old` everything does.
    pub(super) fn changed_since<'b>(
        self,
        old: ExtentView<'b>,
        range: Range<u64>,
    ) -> impl Iterator<Item = ChangedExtent> + use<'a, 'b> {
        let mut news = self.owned(range.clone()).peekable();
        let mut olds = old.owned(range).peekable();
        let is_comparable = self.object_shift == old.object_shift;
        let mut pieces = iter::from_fn(move || {
            let new = *news.peek()?;
            let changed = match olds.peek() {
                None => true,
                Some(old) if is_comparable => old.owner != new.owner,
                Some(old) => old.owner.is_some() || new.owner.is_some(),
            };
            let at = olds.peek().map_or(new.end, |old| old.end.min(new.end));
            news.next_if(|new| new.end == at);
            olds.next_if(|old| old.end == at);
            Some(ChangedExtent { end: at, changed })
        })
        .peekable();
        iter::from_fn(move || {
            let mut extent = pieces.next()?;
            while let Some(more) = pieces.next_if(|next| next.changed == extent.changed) {
                extent.end = more.end;
            }
            Some(extent)
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Owners by number, 0 for a hole.
    type Slots = Vec<u32>;

    fn map(shift: u8, slots: &Slots, cut: u64) -> ExtentMap {
        let mut owners = Owners::default();
        for (index, &owner) in (0..).zip(slots) {
            owners.set(ObjectIndex(index), Vid::new(owner));
        }
        let size = (slots.len() as u64) << shift;
        ExtentMap::new(size.saturating_sub(cut), shift, owners)
    }

    fn owner_at(map: &ExtentMap, byte: u64) -> Option<Vid> {
        let index = u32::try_from(byte >> map.object_shift).unwrap();
        map.owners.get(ObjectIndex(index))
    }

    fn slots() -> impl Strategy<Value = Slots> {
        prop::collection::vec(0..4u32, 1..40)
    }

    const TEST_SHIFT: u8 = 4;

    proptest! {
        #[test]
        fn extents_match_owners_in_index(
            slots in slots(), cut in 0..16u64, start in 0..700u64, len in 0..700u64,
        ) {
            let map = map(TEST_SHIFT, &slots, cut);
            let mut at = start;
            let mut last = None;
            for extent in map.view().owned(start..start + len) {
                prop_assert!(extent.end > at);
                prop_assert_ne!(last, Some(extent.owner), "neighbours are one extent");
                for byte in at..extent.end {
                    prop_assert_eq!(owner_at(&map, byte), extent.owner);
                }
                (at, last) = (extent.end, Some(extent.owner));
            }
            prop_assert_eq!(at, start.max((start + len).min(map.size)));
        }

        #[test]
        fn extents_change_exactly_where_owners_differ(
            new in slots(), old in slots(), cuts in (0..16u64, 0..16u64),
            start in 0..700u64, len in 0..700u64,
        ) {
            let (new, old) = (map(TEST_SHIFT, &new, cuts.0), map(TEST_SHIFT, &old, cuts.1));
            let mut at = start;
            let mut last = None;
            for extent in new.view().changed_since(old.view(), start..start + len) {
                prop_assert!(extent.end > at);
                prop_assert_ne!(last, Some(extent.changed));
                for byte in at..extent.end {
                    let differs = byte >= old.size || owner_at(&new, byte) != owner_at(&old, byte);
                    prop_assert_eq!(extent.changed, differs, "byte {}", byte);
                }
                (at, last) = (extent.end, Some(extent.changed));
            }
            prop_assert_eq!(at, start.max((start + len).min(new.size)));
        }

        #[test]
        fn extents_of_other_object_size_change_if_allocated(
            new in slots(), old in slots(),
        ) {
            let (new, old) = (map(TEST_SHIFT, &new, 0), map(TEST_SHIFT + 1, &old, 0));
            let mut at = 0;
            for extent in new.view().changed_since(old.view(), 0..new.size) {
                for byte in at..extent.end {
                    let is_hole = byte < old.size
                        && owner_at(&new, byte).is_none()
                        && owner_at(&old, byte).is_none();
                    prop_assert_eq!(extent.changed, !is_hole, "byte {}", byte);
                }
                at = extent.end;
            }
            prop_assert_eq!(at, new.size);
        }
    }

    #[test]
    fn extents_end_at_largest_volume_size() {
        let mut owners = Owners::default();
        owners.set(ObjectIndex(u32::MAX), Vid::new(7));
        let map = ExtentMap::new(u64::MAX, 32, owners);
        let extents: Vec<_> = map.view().owned(0..u64::MAX).collect();
        let start = u64::from(u32::MAX) << 32;
        let expected = [(start, None), (u64::MAX, Vid::new(7))];
        assert_eq!(
            extents,
            expected.map(|(end, owner)| OwnedExtent { end, owner })
        );
    }
}
