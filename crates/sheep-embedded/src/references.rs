//! Reference counting of data objects by referencing VDI.
//!
//! Data object *i* of a VDI is referenced by entry *i* of its own index and of
//! the indexes of its snapshots' heads and clones. It is freed with its last
//! reference. There are no counters per object: for every pair of an owner and a
//! VDI that references at least one of its objects (a *referrer*) the number of
//! such entries is kept, and when an entry changes, the same entry of the owner's
//! other referrers is read from their inodes.
//!
//! Cost: some 20 bytes of memory per pair, so 1,000 snapshots in a row, each
//! with objects of its own, take 500,000 pairs and 10 MB, and 5,000 VDIs of
//! any size without snapshots 5,000 pairs. Nothing is kept on disk: the pairs
//! are counted at the start from the parts of the indexes that are not holes.
//! Dropping a reference costs a read of 4 bytes per referrer; runs of entries are
//! read together.
//!
//! Crashes. An entry is changed in its inode and made durable before the old
//! object is freed, so an index on disk never references an object that was freed
//! because of it. Two referrers may drop the same object concurrently. Only the
//! last pending free removes it, so a drop that is not yet durable never deletes
//! data. A crash in between leaves an orphan, which takes space until its VDI is
//! deleted.
//!
//! Rewriting an inherited entry unchanged changes no count.

use std::collections::{BTreeSet, HashMap};
use std::sync::Mutex;

use sheep_proto::inode::{SLOT_LEN, slot_offset};
use sheep_proto::limits::{INODE_GREF_OFFSET, INODE_HEADER_LEN};
use sheep_proto::{ObjectIndex, Oid, ResultCode, Vid};

use crate::catalogue::Vdi;
use crate::poison::lock;
use crate::store::{Store, StoreError};

/// Index bytes read at a time.
const SCAN_LEN: u64 = 256 << 10;
/// Objects freed under one acquisition of the lock.
const FREE_BATCH: usize = 1024;

/// Number of a referrer's entries that reference an owner's objects, by owner, then by referrer.
type RefCounts = HashMap<Vid, HashMap<Vid, u32>>;

/// See the module.
#[derive(Default)]
pub(crate) struct References(Mutex<Tables>);

#[derive(Default)]
struct Tables {
    counts: RefCounts,
    /// Number of pending frees by object.
    pending_frees: HashMap<Oid, u32>,
}

/// Objects that lost a reference, for [`References::free_unreferenced`] once that is durable.
#[must_use]
#[derive(Default)]
pub(crate) struct PendingFree(Vec<Oid>);

impl Tables {
    fn acquire(&mut self, owner: Vid, referrer: Vid) {
        *self
            .counts
            .entry(owner)
            .or_default()
            .entry(referrer)
            .or_default() += 1;
    }

    fn release(&mut self, owner: Vid, referrer: Vid) {
        let Some(referrers) = self.counts.get_mut(&owner) else {
            return;
        };
        if let Some(count) = referrers.get_mut(&referrer) {
            *count -= 1;
            if *count == 0 {
                referrers.remove(&referrer);
            }
        }
        if referrers.is_empty() {
            self.counts.remove(&owner);
        }
    }

    fn begin_free(&mut self, oid: Oid) {
        *self.pending_frees.entry(oid).or_default() += 1;
    }

    /// Ends one pending free; true for the last one of the object.
    fn end_free(&mut self, oid: Oid) -> bool {
        match self.pending_frees.get_mut(&oid) {
            Some(count) if *count > 1 => {
                *count -= 1;
                false
            }
            _ => {
                self.pending_frees.remove(&oid);
                true
            }
        }
    }
}

impl References {
    /// Counts the entries of an index; for the start of the server.
    pub(crate) fn load(&self, store: &dyn Store, referrer: Vid) -> Result<(), StoreError> {
        let mut tables = lock(&self.0);
        for_each_entry(store, referrer, |_index, owner| {
            tables.acquire(owner, referrer)
        })
    }

    /// Notes that `copy` now has the same index as `original`.
    pub(crate) fn copy(&self, original: Vid, copy: Vid) {
        for referrers in lock(&self.0).counts.values_mut() {
            if let Some(&count) = referrers.get(&original) {
                referrers.insert(copy, count);
            }
        }
    }

    pub(crate) fn clear(&self) {
        *lock(&self.0) = Tables::default();
    }

    /// Writes `data` at `offset` of the index area of `referrer`'s inode; not durable on return.
    ///
    /// # Errors
    /// `InvalidParms` for an entry that is no VID; nothing has changed then. Else the store's.
    pub(crate) fn write_index(
        &self,
        store: &dyn Store,
        referrer: Vid,
        offset: u64,
        data: &[u8],
    ) -> Result<PendingFree, ResultCode> {
        let slot_len = u64::from(SLOT_LEN);
        let area = INODE_HEADER_LEN as u64;
        // Whole slots around the written bytes.
        let start = area + (offset - area) / slot_len * slot_len;
        let end = area + (offset + data.len() as u64 - area).next_multiple_of(slot_len);
        let first =
            u32::try_from((start - area) / slot_len).expect("a flat index has at most 2^20 slots");
        // Merge the new bytes into the old entries, and validate them.
        let mut old = vec![0; usize::try_from(end - start).expect("the range is within the index")];
        let mut tables = lock(&self.0);
        store.read(Oid::inode(referrer), start, &mut old)?;
        let mut new = old.clone();
        let at = usize::try_from(offset - start)
            .expect("the range starts at a slot boundary at or below the offset");
        new[at..at + data.len()].copy_from_slice(data);
        if slots(&new).any(|vid| vid != 0 && Vid::new(vid).is_none()) {
            return Err(ResultCode::InvalidParms);
        }
        let written = store.write(Oid::inode(referrer), offset, data);
        if written.is_err() {
            // A partial write is counted as far as it got; the old objects become orphans.
            store.read(Oid::inode(referrer), start, &mut new)?;
        }
        // Move the counts of each changed entry from its old to its new owner.
        let changes = (first..)
            .zip(slots(&old).zip(slots(&new)))
            .filter(|(_slot, (old, new))| old != new);
        let mut pending = PendingFree::default();
        for (slot, (old, new)) in changes {
            if let Some(owner) = Vid::new(new) {
                tables.acquire(owner, referrer);
            }
            if let Some(owner) = Vid::new(old) {
                tables.release(owner, referrer);
                if written.is_ok() {
                    let oid = Oid::data(owner, ObjectIndex(slot));
                    tables.begin_free(oid);
                    pending.0.push(oid);
                }
            }
        }
        written?;
        Ok(pending)
    }

    /// Drops all references of a deleted VDI; returns the objects that may be
    /// unreferenced now: those of its index and its own.
    pub(crate) fn remove_referrer(
        &self,
        store: &dyn Store,
        referrer: &Vdi,
        own: impl IntoIterator<Item = Oid>,
    ) -> Result<PendingFree, StoreError> {
        let mut oids: BTreeSet<_> = own.into_iter().collect();
        if !referrer.hypervolume {
            for_each_entry(store, referrer.vid, |index, owner| {
                oids.insert(Oid::data(owner, index));
            })?;
        }
        let mut tables = lock(&self.0);
        tables.counts.retain(|_owner, referrers| {
            referrers.remove(&referrer.vid);
            !referrers.is_empty()
        });
        for &oid in &oids {
            tables.begin_free(oid);
        }
        Ok(PendingFree(oids.into_iter().collect()))
    }

    /// Removes those of the pending objects that no index references.
    ///
    /// Failures only cost space, so they are logged and the object stays.
    pub(crate) fn free_unreferenced(&self, store: &dyn Store, pending: PendingFree) {
        for batch in pending.0.chunks(FREE_BATCH) {
            // Only the last pending free of an object may remove it.
            let mut tables = lock(&self.0);
            let mut by_owner: HashMap<Vid, BTreeSet<u32>> = HashMap::new();
            for &oid in batch {
                if tables.end_free(oid)
                    && let Some(owner) = oid.vid()
                {
                    by_owner.entry(owner).or_default().insert(oid.number());
                }
            }
            for (owner, mut numbers) in by_owner {
                // Keep the objects that any other referrer of the owner still references.
                let kept = tables
                    .counts
                    .get(&owner)
                    .into_iter()
                    .flat_map(HashMap::keys)
                    .try_for_each(|&referrer| {
                        remove_referenced(store, referrer, owner, &mut numbers)
                    });
                if let Err(error) = kept {
                    tracing::warn!("objects of VDI {owner} stay: an index is unreadable: {error}");
                    continue;
                }
                for number in numbers {
                    let oid = Oid::data(owner, ObjectIndex(number));
                    match store.remove(oid) {
                        Ok(()) | Err(StoreError::NotFound) => {}
                        Err(error) => tracing::warn!("object {oid} cannot be removed: {error}"),
                    }
                }
            }
        }
    }

    /// Cancels pending frees because their index update may not be durable.
    pub(crate) fn cancel(&self, pending: PendingFree) {
        let mut tables = lock(&self.0);
        for oid in pending.0 {
            tables.end_free(oid);
        }
    }
}

fn slots(bytes: &[u8]) -> impl Iterator<Item = u32> {
    let (slots, _rest) = bytes.as_chunks();
    slots.iter().map(|&slot| u32::from_le_bytes(slot))
}

/// Removes from `numbers` the objects of `owner` that `referrer`'s index references.
fn remove_referenced(
    store: &dyn Store,
    referrer: Vid,
    owner: Vid,
    numbers: &mut BTreeSet<u32>,
) -> Result<(), StoreError> {
    let slots_at_once = u32::try_from(SCAN_LEN).expect("SCAN_LEN is below 4 GiB") / SLOT_LEN;
    let mut next = numbers.first().copied();
    while let Some(first) = next {
        let end = first.saturating_add(slots_at_once);
        let last = numbers.range(first..end).next_back().copied();
        next = numbers.range(end..).next().copied();
        // Entries past a flat index cannot be named.
        let (Some(offset), Some(last)) = (slot_offset(ObjectIndex(first)), last) else {
            break;
        };
        let len = (last - first + 1) * SLOT_LEN;
        let mut bytes = vec![0; len as usize];
        store.read(Oid::inode(referrer), offset.into(), &mut bytes)?;
        for (number, vid) in (first..).zip(slots(&bytes)) {
            if vid == owner.get() {
                numbers.remove(&number);
            }
        }
    }
    Ok(())
}

/// Calls `visit` with every entry of a flat index that is not 0.
pub(crate) fn for_each_entry(
    store: &dyn Store,
    referrer: Vid,
    mut visit: impl FnMut(ObjectIndex, Vid),
) -> Result<(), StoreError> {
    let area = INODE_HEADER_LEN as u64;
    let slot_len = u64::from(SLOT_LEN);
    let inode = Oid::inode(referrer);
    for extent in store.extents(inode, area..INODE_GREF_OFFSET as u64)? {
        // An extent may begin or end within a slot only by a store's odd granularity.
        let mut at = area + (extent.start - area) / slot_len * slot_len;
        let end = area + (extent.end - area).next_multiple_of(slot_len);
        while at < end {
            let len = SCAN_LEN.min(end - at);
            let mut bytes =
                vec![0; usize::try_from(len).expect("each step reads at most SCAN_LEN bytes")];
            store.read(inode, at, &mut bytes)?;
            let first =
                u32::try_from((at - area) / slot_len).expect("a flat index has at most 2^20 slots");
            for (number, vid) in (first..).zip(slots(&bytes)) {
                if let Some(owner) = Vid::new(vid) {
                    visit(ObjectIndex(number), owner);
                }
            }
            at += len;
        }
    }
    Ok(())
}
