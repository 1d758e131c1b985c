//! The slots of an attached VDI in memory.
//!
//! Kept in pages of 1,024 slots, and only pages with an owner in them: an
//! untouched volume of any size costs next to nothing, a full one 4 bytes for
//! each object.

use std::collections::BTreeMap;
use std::ops::RangeFrom;

use sheep_proto::{ObjectIndex, Vid};

const PAGE_SLOTS: u32 = 1024;

type Page = [Option<Vid>; PAGE_SLOTS as usize];

/// Which VID owns each object; `None` for a hole.
#[derive(Clone, Debug, Default)]
pub(crate) struct InodeMap {
    pages: BTreeMap<u32, Box<Page>>,
    allocated: u64,
    changes: u64,
}

const fn split(index: ObjectIndex) -> (u32, usize) {
    (index.0 / PAGE_SLOTS, (index.0 % PAGE_SLOTS) as usize)
}

impl InodeMap {
    pub(crate) fn get(&self, index: ObjectIndex) -> Option<Vid> {
        let (page, at) = split(index);
        self.pages.get(&page)?[at]
    }

    pub(crate) fn set(&mut self, index: ObjectIndex, owner: Option<Vid>) {
        self.changes += 1;
        let (page, at) = split(index);
        if owner.is_none() && !self.pages.contains_key(&page) {
            return;
        }
        let slot = &mut self
            .pages
            .entry(page)
            .or_insert_with(|| Box::new([None; PAGE_SLOTS as usize]))[at];
        self.allocated -= u64::from(slot.is_some());
        self.allocated += u64::from(owner.is_some());
        *slot = owner;
    }

    /// Takes over the slots of another map.
    pub(crate) fn replace(&mut self, other: Self) {
        let changes = self.changes + 1;
        *self = Self { changes, ..other };
    }

    /// Grows with every change, so that whoever looked before can tell.
    pub(crate) fn changes(&self) -> u64 {
        self.changes
    }

    /// Number of objects that exist, inherited ones included.
    pub(crate) fn allocated(&self) -> u64 {
        self.allocated
    }

    /// The slots with an owner from `range.start` on, in ascending order.
    pub(crate) fn owned(
        &self,
        range: RangeFrom<ObjectIndex>,
    ) -> impl Iterator<Item = (ObjectIndex, Vid)> + '_ {
        let first = range.start;
        self.pages
            .range(split(first).0..)
            .flat_map(move |(&page, slots)| {
                let base = u64::from(page) * u64::from(PAGE_SLOTS);
                (base..)
                    .zip(slots.iter())
                    .filter_map(|(index, owner)| {
                        Some((ObjectIndex(u32::try_from(index).ok()?), (*owner)?))
                    })
                    .filter(move |&(index, _)| index >= first)
            })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn it_holds_what_was_set(
            changes in prop::collection::vec((0u32..5000, prop::option::of(1u32..9)), 0..200),
            from in 0u32..5000,
        ) {
            let (mut map, mut model) = (InodeMap::default(), HashMap::new());
            for (index, raw) in changes {
                let owner = raw.and_then(Vid::new);
                map.set(ObjectIndex(index), owner);
                model.insert(index, owner);
            }
            let mut expected: Vec<_> = model
                .iter()
                .filter_map(|(&index, &owner)| Some((ObjectIndex(index), owner?)))
                .collect();
            prop_assert_eq!(map.allocated(), expected.len() as u64);
            expected.retain(|&(index, _)| index.0 >= from);
            expected.sort_unstable();
            prop_assert_eq!(map.owned(ObjectIndex(from)..).collect::<Vec<_>>(), expected);
        }
    }
}
