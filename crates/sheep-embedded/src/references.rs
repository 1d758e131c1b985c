//! Which index entries name which objects, and when an object may go.
//!
//! Data object *i* of a VDI may be named by entry *i* of its own index and of
//! the indexes of those made from it. It may be removed when the last of these
//! entries changes. There are no counters per object: for every pair of an
//! owner and a VDI that names at least one of its objects (a *namer*) the
//! number of such entries is kept, and when an entry changes, the same entry
//! of the owner's other namers is read from their inodes.
//!
//! Cost: some 20 bytes of memory per pair, so 1,000 snapshots in a row, each
//! with objects of its own, take 500,000 pairs and 10 MB, and 5,000 VDIs of
//! any size without snapshots 5,000 pairs. Nothing is kept on disk: the pairs
//! are counted at the start from the parts of the indexes that are not holes.
//! Releasing an object costs a read of 4 bytes per namer; runs of entries are
//! read together.
//!
//! Crashes. An entry is changed in its inode, made durable, and only then is
//! the old object looked at: an index on disk never names an object that was
//! removed because of it. Two namers may let go of the same object at once,
//! one durable and one not yet; so an object that anyone is still about to
//! release is left to the last of them. A crash in between leaves an object
//! that nobody names; it takes space until its VDI is deleted.
//!
//! A client that repeats an inherited entry unchanged changes nothing here.

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
/// Objects released under one hold of the lock.
const RELEASE_BATCH: usize = 1024;

/// Entries of a namer that name an owner's objects, by owner, then by namer.
type Pairs = HashMap<Vid, HashMap<Vid, u32>>;

/// See the module.
#[derive(Default)]
pub(crate) struct References(Mutex<Tables>);

#[derive(Default)]
struct Tables {
    pairs: Pairs,
    /// Objects someone is about to release, and how many do.
    releasing: HashMap<Oid, u32>,
}

/// Objects whose entries have changed; to be given to [`References::finish`] when that is durable.
#[must_use]
#[derive(Default)]
pub(crate) struct Released(Vec<Oid>);

impl Tables {
    fn count(&mut self, owner: Vid, namer: Vid) {
        *self
            .pairs
            .entry(owner)
            .or_default()
            .entry(namer)
            .or_default() += 1;
    }

    fn discount(&mut self, owner: Vid, namer: Vid) {
        let Some(namers) = self.pairs.get_mut(&owner) else {
            return;
        };
        if let Some(count) = namers.get_mut(&namer) {
            *count -= 1;
            if *count == 0 {
                namers.remove(&namer);
            }
        }
        if namers.is_empty() {
            self.pairs.remove(&owner);
        }
    }

    fn begin(&mut self, oid: Oid) {
        *self.releasing.entry(oid).or_default() += 1;
    }

    /// True when nobody else is about to release the object.
    fn end(&mut self, oid: Oid) -> bool {
        match self.releasing.get_mut(&oid) {
            Some(count) if *count > 1 => {
                *count -= 1;
                false
            }
            _ => {
                self.releasing.remove(&oid);
                true
            }
        }
    }
}

impl References {
    /// Counts the entries of an index; for the start of the server.
    pub(crate) fn load(&self, store: &dyn Store, namer: Vid) -> Result<(), StoreError> {
        let mut tables = lock(&self.0);
        for_each_slot(store, namer, |_index, owner| tables.count(owner, namer))
    }

    /// Notes that `copy` now has the same index as `original`.
    pub(crate) fn copy(&self, original: Vid, copy: Vid) {
        for namers in lock(&self.0).pairs.values_mut() {
            if let Some(&count) = namers.get(&original) {
                namers.insert(copy, count);
            }
        }
    }

    pub(crate) fn clear(&self) {
        *lock(&self.0) = Tables::default();
    }

    /// Writes `data` at `offset` of the index area of `namer`'s inode; not durable on return.
    ///
    /// # Errors
    /// `InvalidParms` for an entry that is no VID; nothing has changed then. Else the store's.
    pub(crate) fn write_index(
        &self,
        store: &dyn Store,
        namer: Vid,
        offset: u64,
        data: &[u8],
    ) -> Result<Released, ResultCode> {
        let slot_len = u64::from(SLOT_LEN);
        let area = INODE_HEADER_LEN as u64;
        // Whole slots around the written bytes.
        let start = area + (offset - area) / slot_len * slot_len;
        let end = area + (offset + data.len() as u64 - area).next_multiple_of(slot_len);
        let first = u32::try_from((start - area) / slot_len).expect("20 bits");
        let mut old = vec![0; usize::try_from(end - start).expect("a part of the index")];
        let mut tables = lock(&self.0);
        store.read(Oid::inode(namer), start, &mut old)?;
        let mut new = old.clone();
        let at = usize::try_from(offset - start).expect("less than a slot");
        new[at..at + data.len()].copy_from_slice(data);
        if slots(&new).any(|vid| vid != 0 && Vid::new(vid).is_none()) {
            return Err(ResultCode::InvalidParms);
        }
        let written = store.write(Oid::inode(namer), offset, data);
        if written.is_err() {
            // Part of it may be there, and is counted; its old objects just stay.
            store.read(Oid::inode(namer), start, &mut new)?;
        }
        let changes = (first..)
            .zip(slots(&old).zip(slots(&new)))
            .filter(|(_slot, (old, new))| old != new);
        let mut released = Released::default();
        for (slot, (old, new)) in changes {
            if let Some(owner) = Vid::new(new) {
                tables.count(owner, namer);
            }
            if let Some(owner) = Vid::new(old) {
                tables.discount(owner, namer);
                if written.is_ok() {
                    let oid = Oid::data(owner, ObjectIndex(slot));
                    tables.begin(oid);
                    released.0.push(oid);
                }
            }
        }
        written?;
        Ok(released)
    }

    /// Forgets what a deleted VDI names, and hands out what nobody may name
    /// any more: the objects of its index and its own.
    pub(crate) fn forget(
        &self,
        store: &dyn Store,
        namer: &Vdi,
        own: impl IntoIterator<Item = Oid>,
    ) -> Result<Released, StoreError> {
        let mut oids: BTreeSet<_> = own.into_iter().collect();
        if !namer.hypervolume {
            for_each_slot(store, namer.vid, |index, owner| {
                oids.insert(Oid::data(owner, index));
            })?;
        }
        let mut tables = lock(&self.0);
        tables.pairs.retain(|_owner, namers| {
            namers.remove(&namer.vid);
            !namers.is_empty()
        });
        for &oid in &oids {
            tables.begin(oid);
        }
        Ok(Released(oids.into_iter().collect()))
    }

    /// Removes those of the released objects that no index names.
    ///
    /// Failures only cost space, so they are logged and the object stays.
    pub(crate) fn finish(&self, store: &dyn Store, released: Released) {
        for batch in released.0.chunks(RELEASE_BATCH) {
            let mut tables = lock(&self.0);
            let mut by_owner: HashMap<Vid, BTreeSet<u32>> = HashMap::new();
            for &oid in batch {
                if tables.end(oid)
                    && let Some(owner) = oid.vid()
                {
                    by_owner.entry(owner).or_default().insert(oid.number());
                }
            }
            for (owner, mut numbers) in by_owner {
                let kept = tables
                    .pairs
                    .get(&owner)
                    .into_iter()
                    .flat_map(HashMap::keys)
                    .try_for_each(|&namer| strike_named(store, namer, owner, &mut numbers));
                if let Err(error) = kept {
                    tracing::warn!("objects of VDI {owner} stay: an index is unreadable: {error}");
                    continue;
                }
                for number in numbers {
                    let oid = Oid::data(owner, ObjectIndex(number));
                    match store.remove(oid) {
                        Ok(()) | Err(StoreError::NotFound) => {}
                        Err(error) => tracing::warn!("object {oid} stays: {error}"),
                    }
                }
            }
        }
    }

    /// Gives up a release because the change it belongs to may not be durable.
    pub(crate) fn abandon(&self, released: Released) {
        let mut tables = lock(&self.0);
        for oid in released.0 {
            tables.end(oid);
        }
    }
}

fn slots(bytes: &[u8]) -> impl Iterator<Item = u32> {
    let (slots, _rest) = bytes.as_chunks();
    slots.iter().map(|&slot| u32::from_le_bytes(slot))
}

/// Takes from `numbers` what `namer`'s index names as `owner`'s.
fn strike_named(
    store: &dyn Store,
    namer: Vid,
    owner: Vid,
    numbers: &mut BTreeSet<u32>,
) -> Result<(), StoreError> {
    let slots_at_once = u32::try_from(SCAN_LEN).expect("a constant") / SLOT_LEN;
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
        store.read(Oid::inode(namer), offset.into(), &mut bytes)?;
        for (number, vid) in (first..).zip(slots(&bytes)) {
            if vid == owner.get() {
                numbers.remove(&number);
            }
        }
    }
    Ok(())
}

/// Calls `visit` with every entry of a flat index that is not 0.
fn for_each_slot(
    store: &dyn Store,
    namer: Vid,
    mut visit: impl FnMut(ObjectIndex, Vid),
) -> Result<(), StoreError> {
    let area = INODE_HEADER_LEN as u64;
    let slot_len = u64::from(SLOT_LEN);
    let inode = Oid::inode(namer);
    for extent in store.extents(inode, area..INODE_GREF_OFFSET as u64)? {
        // An extent may begin or end within a slot only by a store's odd granularity.
        let mut at = area + (extent.start - area) / slot_len * slot_len;
        let end = area + (extent.end - area).next_multiple_of(slot_len);
        while at < end {
            let len = SCAN_LEN.min(end - at);
            let mut bytes = vec![0; usize::try_from(len).expect("at most SCAN_LEN")];
            store.read(inode, at, &mut bytes)?;
            let first = u32::try_from((at - area) / slot_len).expect("20 bits");
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
