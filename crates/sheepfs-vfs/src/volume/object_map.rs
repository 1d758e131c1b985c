//! The object map: the state of each slot of the head's index.
//!
//! ```text
//!              commit                     retire (no snapshot can have missed it)
//!   Hole ───────────────► Committed ───────────────► Owned
//!    ▲ ▲                      │                        │
//!    │ └────── reclaimed ── Reclaiming ◄──── unmap ────┘
//!    │
//!   resolve ◄── InDoubt ◄── mark_in_doubt (an update's outcome is unknown)
//! ```
//!
//! A slot is in exactly one state. Owners are kept in pages of 1,024 slots, and
//! only pages with an owner in them: an untouched volume of any size costs next
//! to nothing, a full one 4 bytes for each object. The transient states (recently
//! committed, in doubt, being reclaimed) are in a second table.
//!
//! A change for another head is refused with [`HeadMoved`], which names the new head;
//! the caller decides whether to migrate its object.
//!
//! A response about a slot can be older than a change that this client has made since.
//! So the caller begins a [`Revalidation`] before it sends the query. The response is
//! applied only to slots that were not changed since, and not locked at its begin.

use crate::poison;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::{RangeFrom, RangeInclusive};
use std::sync::{Arc, Mutex, MutexGuard, Weak};
use std::time::Duration;

use sheep_proto::{ObjectIndex, Vid};
use tokio::time::Instant;

const PAGE_SLOTS: u32 = 1024;

/// More time than a server takes between reading an inode for a snapshot and
/// writing it back. An index update in between is acknowledged and lost
/// (protocol 7.4), so commits are remembered for that long.
const SNAPSHOT_RACE_WINDOW: Duration = Duration::from_secs(60);

type Page = [Option<Vid>; PAGE_SLOTS as usize];

/// The owner of each object.
#[derive(Clone, Debug, Default)]
pub(crate) struct Owners {
    pages: BTreeMap<u32, Box<Page>>,
    allocated: u64,
}

const fn split(index: ObjectIndex) -> (u32, usize) {
    (index.0 / PAGE_SLOTS, (index.0 % PAGE_SLOTS) as usize)
}

impl Owners {
    /// The VID that owns an object; `None` for a hole.
    pub(crate) fn get(&self, index: ObjectIndex) -> Option<Vid> {
        let (page, at) = split(index);
        self.pages.get(&page)?[at]
    }
    pub(crate) fn set(&mut self, index: ObjectIndex, owner: Option<Vid>) {
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

    /// The slots with an owner from `range.start` on, in ascending order.
    pub(crate) fn allocated_from(
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

impl PartialEq for Owners {
    fn eq(&self, other: &Self) -> bool {
        let all = |owners: &Self| owners.allocated_from(ObjectIndex(0)..).collect::<Vec<_>>();
        self.allocated == other.allocated && all(self) == all(other)
    }
}

/// The state of a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Slot {
    /// No object: the range reads as zeros.
    Hole,
    /// An ancestor's object, which the first write copies.
    Inherited(Vid),
    /// The head's own object, which is written in place.
    Owned,
    /// An index update of this client failed, and its outcome is unknown. `last` is the
    /// owner before it.
    InDoubt {
        /// The owner before the update.
        last: Option<Vid>,
    },
    /// A hole with an object that the server may not have deleted yet.
    Reclaiming,
}

/// A transient state of a slot, besides its owner.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Transient {
    /// Set by this client `at`; `before` is the owner until then.
    Committed { before: Option<Vid>, at: Instant },
    /// An update failed. `cleared` when it was to clear the slot.
    InDoubt { cleared: Option<Instant> },
    /// Cleared by this client.
    Reclaiming { since: Instant },
}

/// The change is for a VDI that is not the head any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct HeadMoved {
    pub(crate) to: Vid,
    /// The owner of the slot there.
    pub(crate) owner: Option<Vid>,
}

/// A query of slots, from before it is sent until its response is applied; see
/// [`ObjectMap::observe`].
#[derive(Debug)]
pub(crate) struct Revalidation {
    head: Vid,
    changed: Arc<Mutex<BTreeSet<ObjectIndex>>>,
}

impl Revalidation {
    fn changed(&self) -> MutexGuard<'_, BTreeSet<ObjectIndex>> {
        lock(&self.changed)
    }

    /// The head of the queried slots.
    pub(crate) fn head(&self) -> Vid {
        self.head
    }
}

fn lock(changed: &Mutex<BTreeSet<ObjectIndex>>) -> MutexGuard<'_, BTreeSet<ObjectIndex>> {
    poison::lock(changed)
}

/// The slots of the head's index.
#[derive(Debug)]
pub(crate) struct ObjectMap {
    head: Vid,
    owners: Owners,
    transient: BTreeMap<ObjectIndex, Transient>,
    /// Commits in the order they were made.
    commits: VecDeque<(Instant, ObjectIndex)>,
    /// The slots that were changed since the begin of each revalidation.
    revalidations: Vec<Weak<Mutex<BTreeSet<ObjectIndex>>>>,
}

impl ObjectMap {
    /// The map of `head`, as it was read.
    pub(crate) fn new(head: Vid, owners: Owners) -> Self {
        Self {
            head,
            owners,
            transient: BTreeMap::new(),
            commits: VecDeque::new(),
            revalidations: Vec::new(),
        }
    }

    /// The owners of all objects as last known.
    pub(crate) fn owners(&self) -> &Owners {
        &self.owners
    }

    /// The owner of an object as last known.
    pub(crate) fn owner(&self, index: ObjectIndex) -> Option<Vid> {
        self.owners.get(index)
    }

    /// The state of a slot.
    pub(crate) fn slot(&self, index: ObjectIndex) -> Slot {
        let owner = self.owner(index);
        match (self.transient.get(&index), owner) {
            (Some(Transient::InDoubt { .. }), last) => Slot::InDoubt { last },
            (_, Some(owner)) if owner == self.head => Slot::Owned,
            (_, Some(owner)) => Slot::Inherited(owner),
            (Some(Transient::Reclaiming { .. }), None) => Slot::Reclaiming,
            (_, None) => Slot::Hole,
        }
    }

    /// Number of objects that exist, inherited ones included.
    pub(crate) fn allocated(&self) -> u64 {
        self.owners.allocated
    }

    /// The slots with an owner from `range.start` on, in ascending order.
    pub(crate) fn allocated_from(
        &self,
        range: RangeFrom<ObjectIndex>,
    ) -> impl Iterator<Item = (ObjectIndex, Vid)> + '_ {
        self.owners.allocated_from(range)
    }

    /// The slots in doubt between two objects, both included.
    pub(crate) fn in_doubt(&self, range: RangeInclusive<ObjectIndex>) -> Vec<ObjectIndex> {
        let in_doubt = |(&index, transient): (&ObjectIndex, &Transient)| {
            matches!(transient, Transient::InDoubt { .. }).then_some(index)
        };
        self.transient.range(range).filter_map(in_doubt).collect()
    }

    fn check_head(&self, head: Vid, index: ObjectIndex) -> Result<(), HeadMoved> {
        if head == self.head {
            return Ok(());
        }
        Err(HeadMoved {
            to: self.head,
            owner: self.owner(index),
        })
    }

    fn set(&mut self, index: ObjectIndex, owner: Option<Vid>) {
        self.owners.set(index, owner);
        self.revalidations.retain(|changed| {
            let Some(changed) = changed.upgrade() else {
                return false;
            };
            lock(&changed).insert(index);
            true
        });
    }

    /// Records that this client has set the slot of an object of `head`.
    ///
    /// # Errors
    /// [`HeadMoved`] when `head` is not the head any more; nothing is changed.
    pub(crate) fn commit(&mut self, head: Vid, index: ObjectIndex) -> Result<(), HeadMoved> {
        self.check_head(head, index)?;
        let (before, at) = (self.owner(index), Instant::now());
        self.set(index, Some(head));
        self.transient
            .insert(index, Transient::Committed { before, at });
        self.commits.push_back((at, index));
        Ok(())
    }

    /// Retires commits: a query sent at `asked` has shown that the head was not a
    /// snapshot then, so no snapshot can have missed commits before the race window.
    pub(crate) fn retire_commits(&mut self, asked: Instant) {
        while let Some(&(at, index)) = self.commits.front() {
            if at + SNAPSHOT_RACE_WINDOW > asked {
                break;
            }
            self.commits.pop_front();
            if matches!(self.transient.get(&index), Some(Transient::Committed { at: last, .. }) if *last == at)
            {
                self.transient.remove(&index);
            }
        }
    }

    /// Records that the outcome of an update of a slot of `head` is unknown.
    ///
    /// # Errors
    /// [`HeadMoved`] when `head` is not the head any more: a late update cannot
    /// reach the new one.
    pub(crate) fn mark_in_doubt(&mut self, head: Vid, index: ObjectIndex) -> Result<(), HeadMoved> {
        self.check_head(head, index)?;
        let cleared = match self.transient.get(&index) {
            Some(Transient::Reclaiming { since }) => Some(*since),
            Some(Transient::InDoubt { cleared }) => *cleared,
            Some(Transient::Committed { .. }) | None => None,
        };
        self.transient.insert(index, Transient::InDoubt { cleared });
        Ok(())
    }

    /// Applies the owner of a slot of `head` as read from the cluster. The caller has held
    /// the object's lock since before the query, so the response is authoritative.
    ///
    /// # Errors
    /// [`HeadMoved`] when `head` is not the head any more; nothing is changed.
    pub(crate) fn resolve(
        &mut self,
        head: Vid,
        index: ObjectIndex,
        owner: Option<Vid>,
    ) -> Result<(), HeadMoved> {
        self.check_head(head, index)?;
        let keep = match (self.transient.get(&index), owner) {
            (Some(Transient::InDoubt { cleared }), None) => {
                cleared.map(|since| Transient::Reclaiming { since })
            }
            (Some(Transient::InDoubt { .. } | Transient::Reclaiming { .. }), Some(_))
            | (None, _) => None,
            (Some(transient @ Transient::Reclaiming { .. }), None) => Some(*transient),
            (Some(transient @ Transient::Committed { .. }), _) => {
                (owner == self.owner(index)).then_some(*transient)
            }
        };
        if self.owner(index) != owner {
            self.set(index, owner);
        }
        match keep {
            Some(transient) => self.transient.insert(index, transient),
            None => self.transient.remove(&index),
        };
        Ok(())
    }

    /// Turns objects of `head` into holes, before their slots are cleared in the
    /// cluster. Returns the objects that existed, with their owners. The server deletes
    /// the head's own objects asynchronously after that.
    ///
    /// # Errors
    /// [`HeadMoved`] when `head` is not the head any more; nothing is changed.
    pub(crate) fn unmap(
        &mut self,
        head: Vid,
        indexes: &[ObjectIndex],
    ) -> Result<Vec<(ObjectIndex, Vid)>, HeadMoved> {
        let first = indexes.first().copied().unwrap_or(ObjectIndex(0));
        self.check_head(head, first)?;
        let since = Instant::now();
        let owner = |&index| Some((index, self.owner(index)?));
        let held: Vec<_> = indexes.iter().filter_map(owner).collect();
        for &(index, owner) in &held {
            self.set(index, None);
            if owner == head {
                self.transient
                    .insert(index, Transient::Reclaiming { since });
            } else {
                self.transient.remove(&index);
            }
        }
        Ok(held)
    }

    /// Turns an object of a hypervolume into a hole; its deletion is synchronous.
    pub(crate) fn remove(&mut self, index: ObjectIndex) {
        self.set(index, None);
        self.transient.remove(&index);
    }

    /// When this client cleared the slot, if the server may still have to delete the
    /// object. `None` for other objects and other heads.
    pub(crate) fn reclaiming_since(&self, head: Vid, index: ObjectIndex) -> Option<Instant> {
        match self.transient.get(&index) {
            _ if head != self.head => None,
            Some(Transient::Reclaiming { since }) => Some(*since),
            Some(Transient::InDoubt { cleared }) => *cleared,
            Some(Transient::Committed { .. }) | None => None,
        }
    }

    /// The objects that the server may still have to delete.
    pub(crate) fn reclaiming(&self) -> Vec<ObjectIndex> {
        self.transient
            .keys()
            .copied()
            .filter(|&index| self.reclaiming_since(self.head, index).is_some())
            .collect()
    }

    /// Records that the object of a cleared slot was deleted, or is an orphan.
    pub(crate) fn reclaimed(&mut self, head: Vid, index: ObjectIndex) {
        if head != self.head {
            return;
        }
        match self.transient.get_mut(&index) {
            Some(Transient::Reclaiming { .. }) => {
                self.transient.remove(&index);
            }
            Some(Transient::InDoubt { cleared }) => *cleared = None,
            Some(Transient::Committed { .. }) | None => {}
        }
    }

    /// Begins a query of slots of the head. The response is not applied to objects in
    /// `locked`, which are being created or cleared: it may be older than that change.
    pub(crate) fn revalidate(
        &mut self,
        locked: impl IntoIterator<Item = ObjectIndex>,
    ) -> Revalidation {
        let changed = Arc::new(Mutex::new(locked.into_iter().collect()));
        self.revalidations.retain(|other| other.strong_count() > 0);
        self.revalidations.push(Arc::downgrade(&changed));
        Revalidation {
            head: self.head,
            changed,
        }
    }

    /// Applies a response about some slots. `is_locked` tells which objects are being
    /// created or cleared by this client. Returns whether a slot has changed.
    ///
    /// Slots that this client has changed since the begin of the revalidation are
    /// skipped. So are recently committed ones: a racing snapshot can hide them until
    /// the head is followed and reconciled.
    ///
    /// # Errors
    /// [`HeadMoved`] when the head has changed since the begin of the revalidation.
    pub(crate) fn observe(
        &mut self,
        revalidation: &Revalidation,
        slots: impl IntoIterator<Item = (ObjectIndex, Option<Vid>)>,
        is_locked: impl Fn(ObjectIndex) -> bool,
    ) -> Result<bool, HeadMoved> {
        self.check_head(revalidation.head, ObjectIndex(0))?;
        let mut news = false;
        for (index, owner) in slots {
            if self.owner(index) == owner
                || self.is_changed_locally(revalidation, index, &is_locked)
            {
                continue;
            }
            news = true;
            self.set(index, owner);
            if owner.is_some()
                && matches!(
                    self.transient.get(&index),
                    Some(Transient::Reclaiming { .. })
                )
            {
                self.transient.remove(&index);
            }
        }
        Ok(news)
    }

    /// Applies a response about a slot after its object was found missing. It overrides
    /// a recent commit, too: the missing object proves that the commit was lost.
    ///
    /// # Errors
    /// As [`Self::observe`].
    pub(crate) fn observe_missing(
        &mut self,
        revalidation: &Revalidation,
        index: ObjectIndex,
        owner: Option<Vid>,
    ) -> Result<(), HeadMoved> {
        self.check_head(revalidation.head, index)?;
        if self.owner(index) != owner && !revalidation.changed().contains(&index) {
            self.set(index, owner);
            if matches!(
                self.transient.get(&index),
                Some(Transient::Committed { .. })
            ) {
                self.transient.remove(&index);
            }
        }
        Ok(())
    }

    /// Applies a whole index, as [`Self::observe`] does.
    ///
    /// # Errors
    /// As [`Self::observe`].
    pub(crate) fn observe_all(
        &mut self,
        revalidation: &Revalidation,
        read: &Owners,
        is_locked: impl Fn(ObjectIndex) -> bool,
    ) -> Result<bool, HeadMoved> {
        self.check_head(revalidation.head, ObjectIndex(0))?;
        let here = self.allocated_from(ObjectIndex(0)..);
        let there = read.allocated_from(ObjectIndex(0)..);
        let different = |index: &ObjectIndex| self.owner(*index) != read.get(*index);
        let different: BTreeSet<ObjectIndex> = here
            .chain(there)
            .map(|(index, _)| index)
            .filter(different)
            .collect();
        let slots = different.into_iter().map(|index| (index, read.get(index)));
        self.observe(revalidation, slots, is_locked)
    }

    fn is_changed_locally(
        &self,
        revalidation: &Revalidation,
        index: ObjectIndex,
        is_locked: impl Fn(ObjectIndex) -> bool,
    ) -> bool {
        matches!(
            self.transient.get(&index),
            Some(Transient::Committed { .. })
        ) || revalidation.changed().contains(&index)
            || is_locked(index)
    }

    /// Whether this client has changed any slot since the begin of the revalidation.
    pub(crate) fn is_changed_since(&self, revalidation: &Revalidation) -> bool {
        revalidation.head != self.head || !revalidation.changed().is_empty()
    }

    /// Adds the slots that came with a larger size.
    pub(crate) fn extend(&mut self, slots: impl IntoIterator<Item = (ObjectIndex, Vid)>) {
        for (index, owner) in slots {
            // A write of this client is newer than the response.
            if self.owner(index).is_none() && !self.transient.contains_key(&index) {
                self.set(index, Some(owner));
            }
        }
    }

    /// The recently committed objects that are missing in the index of a later head, each
    /// with its owner before the commit: the snapshot in between has overwritten the
    /// update. An entry that differs from that owner was written by another client
    /// since, and stays.
    pub(crate) fn missing_in(&self, later: &Owners) -> Vec<(ObjectIndex, Option<Vid>)> {
        let missing = |(&index, transient): (&ObjectIndex, &Transient)| match *transient {
            Transient::Committed { before, .. } if later.get(index) == before => {
                Some((index, before))
            }
            _ => None,
        };
        self.transient.iter().filter_map(missing).collect()
    }

    /// Switches to `head` with the index `owners`. `recommitted` are the slots that this
    /// client has just set there, each with its owner before.
    pub(crate) fn switch_head(
        &mut self,
        head: Vid,
        owners: Owners,
        recommitted: impl IntoIterator<Item = (ObjectIndex, Option<Vid>)>,
    ) {
        let at = Instant::now();
        // Transient states belong to the old head: it is read-only now, and its late
        // updates do not reach the new one.
        *self = Self::new(head, owners);
        for (index, before) in recommitted {
            self.transient
                .insert(index, Transient::Committed { before, at });
            self.commits.push_back((at, index));
        }
    }
}

#[cfg(test)]
mod tests;
