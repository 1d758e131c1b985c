//! Discard: whole objects are deallocated, parts of objects are overwritten with zeros.
//!
//! An object is deallocated by clearing its slot; the server deletes it later
//! (`reclaim.rs`). DISCARD_OBJ is not used: it deletes the object immediately, and the
//! deferred deletion follows unseen. On a snapshot it would even take the head's
//! data (protocol 7.5).
//!
//! The index of a hypervolume is no array of references. There DISCARD_OBJ is the
//! way: nothing is deleted later, and no snapshot can be hit.
//!
//! Servers before 0.9 count no references: an object whose slot was cleared would stay
//! for ever. There DISCARD_OBJ is the way, too, with a look for a snapshot before and
//! after it. So it is for a volume that uses the object cache of a sheep before 1.0, from
//! which DISCARD_OBJ drops the object, too.

use std::sync::Arc;

use futures_util::{StreamExt as _, stream};
use sheep_client::{ClientError, VdiInfo};
use sheep_proto::generation::Reclaim;
use sheep_proto::{ObjectIndex, Vid};
use tokio::time::Instant;

use super::data_io::DataIo;
use super::error::VolumeError;
use super::extent::{Extent, extents};
use super::follow::{Follower, MAX_LINEAGE_LEN, RETRY_DEADLINE};
use super::head::Head;
use super::index_commit::IndexCommitter;
use super::io::ExtentIo;
use super::object_io::{ObjectIo, Probe, zeros};
use super::object_lock::SharedObjectLock;
use super::revalidate::Revalidator;

/// Slots cleared per batch; the server does work for each of them.
const MAX_BATCH: usize = 128;
/// Zeros written in one request.
const MAX_ZEROS: u32 = 1 << 20;
/// Objects discarded in parallel.
const PARALLEL_OBJECTS: usize = 16;

#[derive(Debug)]
pub(super) struct Deallocator {
    head: Arc<Head>,
    io: Arc<ExtentIo>,
    object: ObjectIo,
    data: Arc<DataIo>,
    committer: Arc<IndexCommitter>,
    follower: Arc<Follower>,
    revalidator: Arc<Revalidator>,
}

impl Deallocator {
    pub(super) fn new(
        head: Arc<Head>,
        io: Arc<ExtentIo>,
        committer: Arc<IndexCommitter>,
        follower: Arc<Follower>,
        revalidator: Arc<Revalidator>,
    ) -> Arc<Self> {
        Arc::new(Self {
            object: ObjectIo::new(head.client.clone()),
            data: Arc::clone(&io.data),
            head,
            io,
            committer,
            follower,
            revalidator,
        })
    }

    /// Makes `[offset, offset + len)` read as zeros, as far as the volume goes, and
    /// deallocates the objects that lie in it as a whole.
    ///
    /// # Errors
    /// `Io` when the cluster refuses, `Stale`, `HeadReadOnly`.
    pub(super) async fn discard(&self, offset: u64, len: u64) -> Result<(), VolumeError> {
        let (size, shift, hypervolume) = {
            let head = self.head.state();
            (
                head.info.size,
                head.info.object_shift,
                head.info.hypervolume,
            )
        };
        let len = len.min(size.saturating_sub(offset));
        if len == 0 {
            return Ok(());
        }
        let object_of = |byte: u64| ObjectIndex(u32::try_from(byte >> shift).unwrap_or(u32::MAX));
        let range = object_of(offset)..=object_of(offset + len - 1);
        self.revalidator.revalidate_range(range.clone()).await?;
        self.revalidator.resolve_in_doubt(range).await?;
        let object_end = |index: ObjectIndex| (u64::from(index.0) + 1) << shift;
        let mut whole = Vec::new();
        for extent in self.allocated_extents(offset, len, shift) {
            // Bytes of the object past the end of the volume do not count.
            let end = object_end(extent.index).min(size);
            let start = u64::from(extent.index.0) << shift;
            if extent.offset == 0 && start + u64::from(extent.len) == end {
                whole.push(extent.index);
            } else {
                self.write_zeros(start, extent).await?;
            }
        }
        for batch in whole.chunks(MAX_BATCH) {
            match self.head.generation.reclaim() {
                _ if hypervolume => self.discard_objects(batch).await?,
                // Also where a cache would keep its copy of an object that is gone.
                reclaim if reclaim == Reclaim::Never || self.data.uses_cache() => {
                    let outcomes: Vec<_> = stream::iter(batch.iter().copied())
                        .map(|index| self.discard_uncounted(index))
                        .buffer_unordered(PARALLEL_OBJECTS)
                        .collect()
                        .await;
                    // Return only after all have ended, as a write does.
                    outcomes.into_iter().collect::<Result<(), _>>()?;
                }
                _ => self.deallocate_objects(batch).await?,
            }
        }
        self.head.touch_mtime();
        Ok(())
    }

    /// The allocated extents of a range; a hole reads as zeros already.
    fn allocated_extents(&self, offset: u64, len: u64, shift: u8) -> Vec<Extent> {
        let Some(first) = extents(offset, len.min(1), shift).next() else {
            return Vec::new();
        };
        let head = self.head.state();
        let allocated = head.map.allocated_from(first.index..).map(|(index, _)| {
            let start = (u64::from(index.0) << shift).max(offset);
            let end = ((u64::from(index.0) + 1) << shift).min(offset + len);
            extents(start, end.saturating_sub(start), shift).next()
        });
        // The first object past the range has no part in it.
        allocated.take_while(Option::is_some).flatten().collect()
    }

    async fn write_zeros(&self, object_start: u64, extent: Extent) -> Result<(), VolumeError> {
        let end = extent.offset + extent.len;
        let mut at = extent.offset;
        while at < end {
            let len = (end - at).min(MAX_ZEROS);
            self.io
                .write_range(object_start + u64::from(at), zeros(len))
                .await?;
            at += len;
        }
        Ok(())
    }

    async fn discard_objects(&self, indexes: &[ObjectIndex]) -> Result<(), VolumeError> {
        for &index in indexes {
            let lock = self.head.lock_object(index).await?;
            let vid = self.head.vid();
            // Unmap before the request, and also if it fails: a later write then creates
            // the object again instead of relying on a missing one.
            self.head.update(|map| map.remove(index));
            let discarded = self.committer.discard(vid, index, Arc::clone(&lock)).await;
            if let Err(error) = discarded {
                lock.abandon(&error);
                return Err(self.head.io_error(error));
            }
            self.data.forget(vid, index);
        }
        Ok(())
    }

    /// Removes an object of a flat index and its slot, where the server counts no
    /// references, and in the gateway's object cache. An ancestor's object stays.
    ///
    /// A snapshot that begins in between hands the slot on to a new head, which then
    /// names an object that is gone; there it is discarded as well.
    async fn discard_uncounted(&self, index: ObjectIndex) -> Result<(), VolumeError> {
        let lock = self.head.lock_object(index).await?;
        let begun = Instant::now();
        while begun.elapsed() < RETRY_DEADLINE {
            let vid = self.head.vid();
            // Discarded in a snapshot, it would be the head's data that goes.
            if self.is_frozen(vid, index).await? {
                self.follower.follow(vid).await?;
                continue;
            }
            if self.head.update(|map| map.unmap(vid, &[index])).is_err() {
                continue;
            }
            match self.committer.discard(vid, index, Arc::clone(&lock)).await {
                Ok(()) => self.head.update(|map| map.reclaimed(vid, index)),
                // The answer to an earlier copy of the request was lost.
                Err(error) if error.is_missing_object() => {
                    self.head.update(|map| map.reclaimed(vid, index));
                }
                Err(error) if error.is_read_only() => {}
                Err(error) => {
                    // When the head has moved on, the update cannot reach it.
                    let _moved = self.head.update(|map| map.mark_in_doubt(vid, index));
                    return Err(self.abandoned(&[lock], error));
                }
            }
            self.data.forget(vid, index);
            if self.head.vid() == vid && !self.is_frozen(vid, index).await? {
                return Ok(());
            }
            self.follower.follow(vid).await?;
        }
        Err(VolumeError::HeadReadOnly(self.head.selector.to_string()))
    }

    /// Clears the slots of some objects, in ascending order, in the head and in every
    /// snapshot that is taken during the discard.
    async fn deallocate_objects(&self, indexes: &[ObjectIndex]) -> Result<(), VolumeError> {
        // Lock all objects. No deadlock: ascending order, and creators hold one lock only.
        let mut locks = Vec::with_capacity(indexes.len());
        for &index in indexes {
            locks.push(self.head.lock_object(index).await?);
        }
        // The first VID that was cleared, with its objects.
        let mut first: Option<(Vid, Vec<(ObjectIndex, Vid)>)> = None;
        let begun = Instant::now();
        while begun.elapsed() < RETRY_DEADLINE {
            let vid = self.head.vid();
            // Follow first: a slot that is cleared in a VDI that becomes a snapshot may
            // come back.
            if self.is_frozen(vid, indexes[0]).await? {
                self.follower.follow(vid).await?;
            }
            let VdiInfo { vid, parent, .. } = self.head.info();
            if let Some((oldest, held)) = &first {
                let unmapped = self.unmap_in_snapshots(*oldest, parent, held, &locks).await;
                unmapped.map_err(|error| self.abandoned(&locks, error))?;
            }
            // Unmap before clearing: reconciliation must not take a slot that is being
            // cleared for a lost commit.
            let Ok(held) = self.head.update(|map| map.unmap(vid, indexes)) else {
                continue;
            };
            let cleared: Vec<_> = held.iter().map(|&(index, _)| index).collect();
            if let Err(error) = self.committer.clear_slots(vid, &cleared, &locks).await {
                for &index in &cleared {
                    // If the head has moved, the update cannot reach the new one.
                    let _moved = self.head.update(|map| map.mark_in_doubt(vid, index));
                }
                return Err(self.abandoned(&locks, error));
            }
            first.get_or_insert((vid, held));
            // If a snapshot was taken meanwhile, the new head has inherited the objects,
            // and they must be deallocated there as well.
            if self.head.vid() == vid && !self.is_frozen(vid, indexes[0]).await? {
                return Ok(());
            }
            self.follower.follow(vid).await?;
        }
        Err(VolumeError::HeadReadOnly(self.head.selector.to_string()))
    }

    fn abandoned(&self, locks: &[SharedObjectLock], error: ClientError) -> VolumeError {
        locks.iter().for_each(|lock| lock.abandon(&error));
        self.head.io_error(error)
    }

    /// Clears slots once more, in the snapshots from `oldest` to `newest`, which
    /// descends from it.
    ///
    /// A racing snapshot can write the old slots back; they then reference deleted
    /// objects. The discard was concurrent with the snapshot, so the snapshot may show
    /// the hole.
    async fn unmap_in_snapshots(
        &self,
        oldest: Vid,
        newest: Option<Vid>,
        held: &[(ObjectIndex, Vid)],
        locks: &[SharedObjectLock],
    ) -> Result<(), ClientError> {
        let client = &self.head.client;
        let mut snapshot = newest;
        for _ in 0..MAX_LINEAGE_LEN {
            let Some(vid) = snapshot else {
                break;
            };
            for &(index, owner) in held {
                if client.inode(vid).read_slots(index, 1).await? == [Some(owner)] {
                    self.committer.clear_slots(vid, &[index], locks).await?;
                }
            }
            if vid == oldest {
                break;
            }
            snapshot = client.inode(vid).header().await?.parent();
        }
        Ok(())
    }

    /// True once a snapshot of the VDI has begun: later writes to its index may be lost.
    async fn is_frozen(&self, vid: Vid, index: ObjectIndex) -> Result<bool, VolumeError> {
        match self.object.probe(vid, index).await {
            Ok(Probe::Frozen) => Ok(true),
            Ok(Probe::Writable | Probe::NoObject) => Ok(false),
            Err(error) => Err(self.head.io_error(error)),
        }
    }
}
