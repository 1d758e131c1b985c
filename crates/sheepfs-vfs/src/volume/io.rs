//! Reads and writes of one extent, with retries while the head or the slot changes.
//!
//! ```text
//! read:    hole           -> zeros, no request    (after a slot query, unless the
//!          owner          -> READ_OBJ              index is exclusive)
//! write:   owned          -> WRITE_OBJ                                (one round trip)
//!          hole, ancestor -> lock, revalidate, CREATE, commit, probe  (four, in sequence)
//!
//! WRITE_OBJ / CREATE ─► READONLY          ─► follow the head ────────┐
//!                    ─► NO_OBJ            ─► revalidate the slot ────┤─► once more
//!                    ─► the head moved on ─► it may lack this write ─┘
//! ```

use std::sync::Arc;

use bytes::Bytes;
use futures_util::{StreamExt as _, stream};
use sheep_client::ClientError;
use sheep_client::unstable::split_io;
use sheep_proto::ResultCode;
use tokio::time::Instant;

use super::allocate::Allocator;
use super::data_io::DataIo;
use super::error::VolumeError;
use super::extent::{Extent, extents};
use super::follow::{Follower, RETRY_DEADLINE};
use super::head::{Head, SlotView};
use super::object_io::{ObjectIo, zeros};
use super::object_map::Slot;
use super::revalidate::Revalidator;
use super::slot_query::SlotQueries;

/// Extents of one operation in flight.
pub(super) const PARALLEL_EXTENTS: usize = 16;
/// Retries of a request while its slot changes.
const MAX_SLOT_CHANGES: u32 = 8;

/// Where a write has landed.
enum WroteTo {
    Head,
    /// A former head. The new head may have copied the object before this write.
    FormerHead,
}

/// Reads and writes extents.
#[derive(Debug)]
pub(super) struct ExtentIo {
    head: Arc<Head>,
    object: ObjectIo,
    pub(super) data: Arc<DataIo>,
    revalidator: Arc<Revalidator>,
    follower: Arc<Follower>,
    pub(super) queries: Arc<SlotQueries>,
    allocator: Arc<Allocator>,
}

impl ExtentIo {
    pub(super) fn new(
        head: Arc<Head>,
        data: Arc<DataIo>,
        revalidator: Arc<Revalidator>,
        follower: Arc<Follower>,
        queries: Arc<SlotQueries>,
        allocator: Arc<Allocator>,
    ) -> Arc<Self> {
        Arc::new(Self {
            object: ObjectIo::new(head.client.clone()),
            data,
            head,
            revalidator,
            follower,
            queries,
            allocator,
        })
    }

    /// Reads an extent.
    ///
    /// # Errors
    /// `Io` when the cluster cannot deliver, `Stale`.
    pub(super) async fn read(&self, extent: Extent) -> Result<Bytes, VolumeError> {
        let mut changes = 0;
        loop {
            let (seen, read) = self.read_current(extent).await?;
            match read {
                Ok(bytes) => return Ok(bytes),
                Err(error) if error.is_missing_object() && changes < MAX_SLOT_CHANGES => {
                    self.revalidator
                        .revalidate_missing_object(extent.index, seen, error)
                        .await?;
                    changes += 1;
                }
                Err(error) => return Err(self.head.io_error(error)),
            }
        }
    }

    /// Reads the object that the slot names now; also returns that slot.
    async fn read_current(
        &self,
        extent: Extent,
    ) -> Result<(SlotView, Result<Bytes, ClientError>), VolumeError> {
        let slot = self.head.state().map.slot(extent.index);
        let seen = match slot {
            // Mostly the object is still inherited, and an ancestor's objects are
            // immutable: read it in parallel with the slot query.
            Slot::Inherited(owner) if !self.head.is_cache_valid(slot) => {
                let (seen, inherited) = tokio::join!(
                    self.queries.current_slot(extent.index),
                    self.object.read(owner, extent)
                );
                let seen = seen?;
                if seen.owner == Some(owner) {
                    return Ok((seen, inherited));
                }
                seen
            }
            _ => self.queries.current_slot(extent.index).await?,
        };
        let read = match seen.owner {
            None => Ok(zeros(extent.len)),
            Some(owner) => self.data.read(owner, extent).await,
        };
        Ok((seen, read))
    }

    /// Writes `data` at byte `offset`, inside the volume.
    ///
    /// # Errors
    /// `Io` when the cluster refuses, `Stale`, `HeadReadOnly`. No request is in flight
    /// then, except after a timeout.
    pub(super) async fn write_range(&self, offset: u64, data: Bytes) -> Result<(), VolumeError> {
        let shift = self.head.state().info.object_shift;
        let mut at = 0;
        let parts = extents(offset, data.len() as u64, shift).map(|extent| {
            let end = at + extent.len as usize;
            let part = data.slice(at..end);
            at = end;
            (extent, part)
        });
        let outcomes: Vec<_> = stream::iter(parts.collect::<Vec<_>>())
            .map(|(extent, part)| self.write(extent, part))
            .buffer_unordered(PARALLEL_EXTENTS)
            .collect()
            .await;
        // Return only after all have ended: a late create would overwrite the next write.
        outcomes.into_iter().collect::<Result<(), _>>()?;
        self.head.touch_mtime();
        Ok(())
    }

    /// Writes an extent, and creates its object if the head does not own it.
    ///
    /// ```text
    ///          ┌──────────── retry: READONLY (follow), NO_OBJ (revalidate the slot)
    ///          ▼
    /// owned ─► WRITE_OBJ ─────────────────────────────────────────► in the head: done
    /// else ──► lock, revalidate ─► CREATE first part ─► commit ─┬──► done
    ///                                            └─► WRITE rest ┘
    /// ```
    async fn write(&self, mut extent: Extent, mut data: Bytes) -> Result<(), VolumeError> {
        let mut refused_since = None;
        let mut changes = 0;
        loop {
            let mut seen = self.head.slot_view(extent.index)?;
            // In place, or through the allocator.
            let outcome = if seen.is_owned() {
                self.overwrite(seen, extent, data.clone()).await
            } else {
                let object = self.allocator.lock(extent.index).await?;
                seen = object.view;
                if seen.is_owned() {
                    // Another writer has created it in the meantime.
                    continue;
                }
                // Create it with what fits one request; the rest is written in place, in
                // parallel with the commit.
                let first = split_io(extent.offset, extent.len).next();
                let (first, rest) = extent.split_at(first.map_or(0, |(_, len)| len));
                let part = data.slice(..first.len as usize);
                match self.allocator.create(&object, first, part).await {
                    Ok(()) if rest.len == 0 => {
                        let lock = object.lock;
                        return self.allocator.commit(seen.head, extent.index, lock).await;
                    }
                    Ok(()) => {
                        (extent, data) = (rest, data.slice(first.len as usize..));
                        let (committed, written) = tokio::join!(
                            self.allocator.commit(seen.head, extent.index, object.lock),
                            self.overwrite(seen, extent, data.clone())
                        );
                        committed?;
                        written
                    }
                    Err(error) => Err(error),
                }
            };
            // A write that landed on a former head is repeated on the new one.
            let error = match outcome {
                Ok(WroteTo::Head) => return Ok(()),
                Ok(WroteTo::FormerHead) => continue,
                Err(error) => error,
            };
            // The deadline starts at the first refusal; time spent waiting for a
            // connection does not count.
            let since: Instant = *refused_since.get_or_insert_with(Instant::now);
            if since.elapsed() > RETRY_DEADLINE {
                return Err(match error.is_read_only() {
                    true => VolumeError::HeadReadOnly(self.head.selector.to_string()),
                    false => self.head.io_error(error),
                });
            }
            // Repair the cached state that led here, then retry.
            match error.code() {
                Some(ResultCode::ReadOnly) => self.follower.follow(seen.head).await?,
                Some(ResultCode::NoObj | ResultCode::NoVdi) if changes < MAX_SLOT_CHANGES => {
                    self.revalidator
                        .revalidate_missing_object(extent.index, seen, error)
                        .await?;
                    changes += 1;
                }
                _ => return Err(self.head.io_error(error)),
            }
        }
    }

    /// Writes in place.
    async fn overwrite(
        &self,
        seen: SlotView,
        extent: Extent,
        data: Bytes,
    ) -> Result<WroteTo, ClientError> {
        self.data.write(seen.head, extent, data).await?;
        Ok(match self.head.vid() == seen.head {
            true => WroteTo::Head,
            false => WroteTo::FormerHead,
        })
    }
}
