//! The slots this volume has set under its VID a moment ago.
//!
//! While a server makes a snapshot it reads the inode and writes it back, and
//! an index update in between is answered with success and forgotten. So the
//! last updates are remembered until the VDI was seen to be a working one so
//! much later that no snapshot can have been under way.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use sheep_proto::{ObjectIndex, Vid};
use tokio::time::Instant;

/// More time than a server takes between reading an inode for a snapshot and
/// writing it back.
const SNAPSHOT_TIME: Duration = Duration::from_secs(60);

/// Slots set lately, and who owned each before.
#[derive(Debug, Default)]
pub(super) struct PublishedSlots {
    before: BTreeMap<ObjectIndex, (Option<Vid>, Instant)>,
    order: VecDeque<(Instant, ObjectIndex)>,
}

impl PublishedSlots {
    pub(super) fn note(&mut self, index: ObjectIndex, before: Option<Vid>) {
        let now = Instant::now();
        self.before.insert(index, (before, now));
        self.order.push_back((now, index));
    }

    pub(super) fn forget(&mut self, index: ObjectIndex) {
        self.before.remove(&index);
    }

    /// The VDI was a working one when `asked`.
    pub(super) fn seen_working(&mut self, asked: Instant) {
        while let Some(&(set, index)) = self.order.front() {
            if set + SNAPSHOT_TIME > asked {
                break;
            }
            self.order.pop_front();
            if self
                .before
                .get(&index)
                .is_some_and(|&(_, last)| last == set)
            {
                self.before.remove(&index);
            }
        }
    }

    /// Each slot with its owner before it was set.
    pub(super) fn iter(&self) -> impl Iterator<Item = (ObjectIndex, Option<Vid>)> + '_ {
        self.before
            .iter()
            .map(|(&index, &(before, _))| (index, before))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_are_forgotten_once_no_snapshot_can_have_missed_them() {
        let mut slots = PublishedSlots::default();
        slots.note(ObjectIndex(1), None);
        slots.note(ObjectIndex(2), Vid::new(7));
        slots.forget(ObjectIndex(1));
        slots.note(ObjectIndex(1), Vid::new(8));
        slots.seen_working(Instant::now());
        assert_eq!(slots.iter().count(), 2);
        slots.seen_working(Instant::now() + SNAPSHOT_TIME);
        assert_eq!(slots.iter().count(), 0);
        assert!(slots.order.is_empty());
    }
}
