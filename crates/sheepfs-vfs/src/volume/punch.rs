//! Giving space back: parts of objects become zeros, whole objects go.
//!
//! An object goes by clearing its slot. The server then drops the reference,
//! and removes the object when it was the last one: later, on its own, some
//! time after it has answered. An object that was made again in between would
//! be removed in the old one's place, so a slot that was cleared is remembered
//! until its object is seen to be gone. DISCARD_OBJ is not used for the same
//! reason: it removes the object at once, and the late removal follows unseen.
//! On a snapshot it would even take the working VDI's data (protocol 7.5).
//!
//! The index of a hypervolume is no array of references. There DISCARD_OBJ is
//! the way: nothing is removed late, and no snapshot can be hit.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::join_all;
use futures_util::{StreamExt as _, stream};
use sheep_client::call::KeepAlive;
use sheep_client::{ClientError, VdiInfo};
use sheep_proto::{ObjectIndex, Oid, ResultCode, Vid};
use tokio::time::Instant;

use super::reload::{MAX_GENERATIONS, PATIENCE};
use super::{PARALLEL_CHUNKS, Volume, is_read_only, zeros};
use crate::chunk::{Chunk, chunks};
use crate::error::FsError;
use crate::slot_guard::SharedGuard;

/// Slots cleared together; a server does work for each of them.
const MAX_BATCH: usize = 128;
/// Zeros written in one piece.
const ZERO_PIECE: u32 = 1 << 20;
/// First and longest pause between two looks for an object that is to go.
const RECLAIM_PAUSES: (Duration, Duration) = (Duration::from_millis(2), Duration::from_millis(200));
/// Time after which an object that was not cleared here is taken for one that a
/// crash has left over.
const LEFT_OVER_AFTER: Duration = Duration::from_secs(3);
/// Longest wait for it, and time after which one cleared elsewhere has gone.
const RECLAIM_TIMEOUT: Duration = Duration::from_secs(60);

impl Volume {
    /// Makes `[offset, offset + len)` read as zeros, as far as the volume goes,
    /// and gives the space of objects back that lie in it as a whole.
    ///
    /// When the future is dropped, what was begun still ends.
    ///
    /// # Errors
    /// `ReadOnly`, `VolumeIo` when the cluster refuses, `Stale`.
    pub async fn punch_hole(&self, offset: u64, len: u64) -> Result<(), FsError> {
        if !self.writable {
            return Err(FsError::ReadOnly(self.selector.to_string()));
        }
        self.usable()?;
        let token = self.begin_write();
        let volume = self.arc();
        let task = self.runtime.spawn(async move {
            volume.settle_behind().await;
            let punched = volume.punch_range(offset, len).await;
            drop(token);
            punched
        });
        task.await
            .unwrap_or_else(|_ended| Err(self.silent(Duration::ZERO)))
    }

    async fn punch_range(&self, offset: u64, len: u64) -> Result<(), FsError> {
        let (size, shift, hypervolume) = {
            let head = self.head();
            (
                head.info.size,
                head.info.object_shift,
                head.info.hypervolume,
            )
        };
        let len = len.min(size.saturating_sub(offset));
        let object_of = |byte: u64| ObjectIndex(u32::try_from(byte >> shift).unwrap_or(u32::MAX));
        if len == 0 {
            return Ok(());
        }
        let range = object_of(offset)..=object_of(offset + len - 1);
        self.revalidate_range(range.clone()).await?;
        self.settle_doubts(range).await?;
        let object_end = |index: ObjectIndex| (u64::from(index.0) + 1) << shift;
        let mut whole = Vec::new();
        for chunk in self.held_chunks(offset, len, shift) {
            // What an object holds behind the end of the volume is nobody's.
            let end = object_end(chunk.index).min(size);
            let start = u64::from(chunk.index.0) << shift;
            if chunk.offset == 0 && start + u64::from(chunk.len) == end {
                whole.push(chunk.index);
            } else {
                self.write_zeros(start, chunk).await?;
            }
        }
        for batch in whole.chunks(MAX_BATCH) {
            if hypervolume {
                self.discard_objects(batch).await?;
            } else {
                self.free_objects(batch).await?;
            }
        }
        self.written();
        Ok(())
    }

    /// The chunks of a range whose objects exist; a hole is zeros already.
    fn held_chunks(&self, offset: u64, len: u64, shift: u8) -> Vec<Chunk> {
        let Some(first) = chunks(offset, len.min(1), shift).next() else {
            return Vec::new();
        };
        let head = self.head();
        let held = head.map.allocated_from(first.index..).map(|(index, _)| {
            let start = (u64::from(index.0) << shift).max(offset);
            let end = ((u64::from(index.0) + 1) << shift).min(offset + len);
            chunks(start, end.saturating_sub(start), shift).next()
        });
        // The first object behind the range has no part in it.
        held.take_while(Option::is_some).flatten().collect()
    }

    async fn write_zeros(&self, object_start: u64, chunk: Chunk) -> Result<(), FsError> {
        let end = chunk.offset + chunk.len;
        let mut at = chunk.offset;
        while at < end {
            let len = (end - at).min(ZERO_PIECE);
            self.write_range(object_start + u64::from(at), zeros(len))
                .await?;
            at += len;
        }
        Ok(())
    }

    async fn discard_objects(&self, indexes: &[ObjectIndex]) -> Result<(), FsError> {
        for &index in indexes {
            let guard = self.guard(index).await?;
            let vid = self.vid();
            // A hole before it is one in the cluster, and when that fails, too:
            // a write makes the object again instead of trusting a lost one.
            self.head_mut().map.remove(index);
            let request = Arc::clone(&guard);
            if let Err(error) = self.index_writer.discard(vid, index, request).await {
                guard.leave_with(&error);
                return Err(self.failed(error));
            }
        }
        Ok(())
    }

    /// Clears the slots of some objects, in ascending order.
    async fn free_objects(&self, indexes: &[ObjectIndex]) -> Result<(), FsError> {
        // In ascending order, and creators hold one guard only: no deadlock.
        let mut guards = Vec::with_capacity(indexes.len());
        for &index in indexes {
            guards.push(self.guard(index).await?);
        }
        // The VDI that was cleared first, and what it held.
        let mut first: Option<(Vid, Vec<(ObjectIndex, Vid)>)> = None;
        let begun = Instant::now();
        while begun.elapsed() < PATIENCE {
            let vid = self.vid();
            // Cleared in a VDI that is becoming a snapshot, a slot may come back,
            // and is left there by a crash.
            if self.is_frozen(vid, indexes[0]).await? {
                self.reload(vid).await?;
            }
            let VdiInfo { vid, parent, .. } = self.info();
            if let Some((oldest, held)) = &first
                && let Err(error) = self.clear_snapshots(*oldest, parent, held, &guards).await
            {
                guards.iter().for_each(|guard| guard.leave_with(&error));
                return Err(self.failed(error));
            }
            // Holes here before they are holes in the cluster: a reload must
            // not take a slot that is being cleared for one that was lost.
            let Ok(held) = self.head_mut().map.unmap(vid, indexes) else {
                continue;
            };
            if let Err(error) = self.clear_slots(vid, &held, &guards).await {
                let mut head = self.head_mut();
                for &(index, _) in &held {
                    // When the head has moved on, the update cannot reach it.
                    let _moved = head.map.mark_in_doubt(vid, index);
                }
                drop(head);
                guards.iter().for_each(|guard| guard.leave_with(&error));
                return Err(self.failed(error));
            }
            first.get_or_insert((vid, held));
            // A snapshot taken meanwhile has handed the objects on to a new
            // working VDI, where they have to go as well.
            if self.vid() == vid && !self.is_frozen(vid, indexes[0]).await? {
                return Ok(());
            }
            self.reload(vid).await?;
        }
        Err(FsError::Frozen(self.selector.to_string()))
    }

    async fn clear_slots(
        &self,
        vid: Vid,
        held: &[(ObjectIndex, Vid)],
        guards: &[SharedGuard],
    ) -> Result<(), ClientError> {
        let runs = held
            .chunk_by(|a, b| a.0.0 + 1 == b.0.0)
            .map(|run| async move {
                let none = vec![None; run.len()];
                let keep: Vec<_> = guards
                    .iter()
                    .map(|guard| Arc::clone(guard) as KeepAlive)
                    .collect();
                self.client
                    .write_slots_holding(vid, run[0].0, &none, &keep)
                    .await
            });
        // All are waited for; one that is given up keeps the guards.
        join_all(runs).await.into_iter().collect()
    }

    /// Clears slots once more, in the snapshots from `oldest` to `newest`, which
    /// descends from it.
    ///
    /// A server that reads the inode for a snapshot before slots are cleared
    /// writes them back after that, and they name objects that go. The hole was
    /// made while the snapshot was taken, so it may as well show there.
    async fn clear_snapshots(
        &self,
        oldest: Vid,
        newest: Option<Vid>,
        held: &[(ObjectIndex, Vid)],
        guards: &[SharedGuard],
    ) -> Result<(), ClientError> {
        let keep: Vec<_> = guards
            .iter()
            .map(|guard| Arc::clone(guard) as KeepAlive)
            .collect();
        let mut snapshot = newest;
        for _ in 0..MAX_GENERATIONS {
            let Some(vid) = snapshot else {
                break;
            };
            for &(index, owner) in held {
                if self.client.read_slots(vid, index, 1).await? == [Some(owner)] {
                    self.client
                        .write_slots_holding(vid, index, &[None], &keep)
                        .await?;
                }
            }
            if vid == oldest {
                break;
            }
            snapshot = self.client.read_header(vid).await?.parent();
        }
        Ok(())
    }

    /// True once a snapshot of the VDI has begun: what is written to its index
    /// from then on may be lost.
    ///
    /// A server refuses an empty write to a data object from before it reads the
    /// inode, and tells with `snap_ctime` only when it has written it back.
    async fn is_frozen(&self, vid: Vid, index: ObjectIndex) -> Result<bool, FsError> {
        let probe = Oid::data(vid, index);
        match self.client.write_object(probe, 0, Bytes::new()).await {
            Ok(()) => Ok(false),
            Err(error) if is_read_only(&error) => Ok(true),
            // It was looked for, so it may be written.
            Err(error) if error.code() == Some(ResultCode::NoObj) => Ok(false),
            Err(error) => Err(self.failed(error)),
        }
    }

    /// Waits until an object without a slot is gone, so that it can be made.
    /// The caller holds the slot's guard and has just asked for the slot.
    ///
    /// One whose slot was cleared is given time to go. What stays was left over
    /// by a crash, and making it replaces it.
    pub(super) async fn settle(&self, vid: Vid, index: ObjectIndex) -> Result<(), FsError> {
        let cleared = self.head().map.reclaiming_since(vid, index);
        let deadline = match cleared {
            Some(when) => when + RECLAIM_TIMEOUT,
            None => Instant::now() + LEFT_OVER_AFTER,
        };
        let mut pause = RECLAIM_PAUSES.0;
        while self.lingers(vid, index).await? && Instant::now() < deadline {
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(RECLAIM_PAUSES.1);
        }
        self.head_mut().map.reclaimed(vid, index);
        Ok(())
    }

    /// True while an object without a slot is there that may still go.
    ///
    /// Shortly after the volume was attached any object may be one that an
    /// earlier user cleared.
    pub(super) async fn lingers(&self, vid: Vid, index: ObjectIndex) -> Result<bool, FsError> {
        let cleared = self.head().map.reclaiming_since(vid, index).is_some();
        let attached_lately = self.opened.elapsed() <= RECLAIM_TIMEOUT;
        let suspected = cleared || (attached_lately && !self.info().hypervolume);
        if suspected && self.exists(vid, index).await? {
            return Ok(true);
        }
        self.head_mut().map.reclaimed(vid, index);
        Ok(false)
    }

    /// Waits a moment for all objects whose slots were cleared to go, so that
    /// whoever attaches the VDI next need not.
    pub(super) async fn settle_all(&self) {
        let (vid, cleared) = {
            let head = self.head();
            (head.info.vid, head.map.reclaiming())
        };
        let settled = stream::iter(cleared)
            .map(|index| self.settle(vid, index))
            .buffer_unordered(PARALLEL_CHUNKS)
            .collect::<Vec<_>>();
        if tokio::time::timeout(LEFT_OVER_AFTER, settled)
            .await
            .is_err()
        {
            tracing::warn!(
                "{} has discarded objects that the cluster still keeps",
                self.selector
            );
        }
    }

    pub(super) async fn exists(&self, vid: Vid, index: ObjectIndex) -> Result<bool, FsError> {
        match self.client.read_object(Oid::data(vid, index), 0, 1).await {
            Ok(_) => Ok(true),
            Err(error) if error.code() == Some(ResultCode::NoObj) => Ok(false),
            Err(error) => Err(self.failed(error)),
        }
    }
}
