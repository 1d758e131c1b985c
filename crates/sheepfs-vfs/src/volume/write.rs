//! Writing: in place, or by making the object first.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::SystemTime;

use bytes::Bytes;
use futures_util::{StreamExt as _, stream};
use sheep_client::{Call, ClientError, pieces};
use sheep_proto::limits::MAX_PAYLOAD_LEN;
use sheep_proto::{ObjectIndex, Oid, ResultCode, Vid};
use tokio::sync::oneshot;
use tokio::time::Instant;
use tokio_util::task::task_tracker::TaskTrackerToken;

use super::doubt::is_absent;
use super::object_map::HeadMoved;
use super::read::MAX_MOVES;
use super::reload::PATIENCE;
use super::{Done, PARALLEL_CHUNKS, Volume, is_read_only};
use crate::chunk::{Chunk, chunks};
use crate::error::FsError;
use crate::index_writer::Published;
use crate::slot_guard::SharedGuard;

/// Where a write to an object has gone.
enum Placed {
    /// To the volume.
    Here,
    /// To what was the volume until it moved on to another VDI, which may have
    /// copied the object before.
    Behind,
}

impl Volume {
    /// Writes `data` at byte `offset` and runs `done` with the number of bytes
    /// written: fewer than given when the volume ends in between, or for more
    /// than 64 MiB.
    ///
    /// Does not block. A range within one object that exists is sent by the
    /// calling thread.
    pub fn write(&self, offset: u64, data: Bytes, done: Done<u32>) {
        if !self.behind.holds(offset, data.len() as u64) {
            return self.write_through(offset, data, done);
        }
        // Older bytes would land on top of these.
        let volume = self.arc();
        self.runtime.spawn(async move {
            volume.settle_behind().await;
            volume.write(offset, data, done);
        });
    }

    /// As [`Volume::write`], whatever is behind.
    pub(super) fn write_through(&self, offset: u64, data: Bytes, done: Done<u32>) {
        let (data, len) = match self.accept(offset, data) {
            Ok(accepted) => accepted,
            Err(error) => return done(Err(error)),
        };
        let done = self.look_ahead(offset, len, done);
        let token = self.begin_write();
        let volume = self.arc();
        let Some((vid, chunk)) = self.in_place(offset, len) else {
            self.runtime.spawn(async move {
                let written = volume.write_range(offset, data).await;
                drop(token);
                done(written.map(|()| len));
            });
            return;
        };
        let oid = Oid::data(vid, chunk.index);
        let again = data.clone();
        self.client
            .submit_write(oid, chunk.offset, data, move |written| {
                match written {
                    Ok(()) if volume.vid() == vid => {
                        volume.written();
                        drop(token);
                        return done(Ok(len));
                    }
                    // A volume that has moved on may have copied the object
                    // before this write reached it.
                    Ok(()) => {}
                    Err(error) if is_moved(&error) => {}
                    // It may still run: sent again, it could land on something newer.
                    Err(error) => {
                        drop(token);
                        return done(Err(volume.failed(error)));
                    }
                }
                let runtime = volume.runtime.clone();
                runtime.spawn(async move {
                    let written = volume.write_range(offset, again).await;
                    drop(token);
                    done(written.map(|()| len));
                });
            });
    }

    /// Writes `data` at byte `offset`; returns the number of bytes written,
    /// fewer than given when the volume ends in between.
    ///
    /// When the future is dropped the write still runs to its end.
    ///
    /// # Errors
    /// `ReadOnly`, `PastEnd` for a write that starts there, `VolumeIo` when the
    /// cluster refuses, `Stale`.
    pub async fn write_at(&self, offset: u64, data: Bytes) -> Result<u32, FsError> {
        let (done, written) = oneshot::channel();
        // Nobody may be waiting any more.
        self.write(
            offset,
            data,
            Box::new(move |result| drop(done.send(result))),
        );
        written.await.expect("every write is answered")
    }

    /// Cuts a write at the end of the volume.
    pub(super) fn accept(&self, offset: u64, mut data: Bytes) -> Result<(Bytes, u32), FsError> {
        if !self.writable {
            return Err(FsError::ReadOnly(self.selector.to_string()));
        }
        self.usable()?;
        let size = self.size();
        if offset >= size && !data.is_empty() {
            return Err(FsError::PastEnd(offset));
        }
        let room = usize::try_from(size.saturating_sub(offset)).unwrap_or(usize::MAX);
        data.truncate(room.min(MAX_PAYLOAD_LEN));
        let len = u32::try_from(data.len()).expect("just truncated");
        Ok((data, len))
    }

    /// The one object of a range, when the volume owns it already.
    pub(super) fn in_place(&self, offset: u64, len: u32) -> Option<(Vid, Chunk)> {
        let head = self.head();
        let mut parts = chunks(offset, u64::from(len), head.info.object_shift);
        match (parts.next(), parts.next()) {
            (Some(only), None) if head.map.owner(only.index) == Some(head.info.vid) => {
                Some((head.info.vid, only))
            }
            _ => None,
        }
    }

    pub(super) async fn write_range(&self, offset: u64, data: Bytes) -> Result<(), FsError> {
        let shift = self.head().info.object_shift;
        let mut at = 0;
        let parts = chunks(offset, data.len() as u64, shift).map(|chunk| {
            let end = at + chunk.len as usize;
            let part = data.slice(at..end);
            at = end;
            (chunk, part)
        });
        let outcomes: Vec<_> = stream::iter(parts.collect::<Vec<_>>())
            .map(|(chunk, part)| self.write_chunk(chunk, part))
            .buffer_unordered(PARALLEL_CHUNKS)
            .collect()
            .await;
        // Not before all have ended: a create left behind would wipe what is
        // written next.
        outcomes.into_iter().collect::<Result<(), _>>()?;
        self.written();
        Ok(())
    }

    /// Counts a write as under way until the token is dropped.
    pub(super) fn begin_write(&self) -> TaskTrackerToken {
        let token = self.writes.begin();
        self.dirty.store(true, Ordering::Release);
        token
    }

    pub(super) fn written(&self) {
        *self.modified.lock().expect("no one panics with the time") = SystemTime::now();
    }

    async fn write_chunk(&self, mut chunk: Chunk, mut data: Bytes) -> Result<(), FsError> {
        let mut refused_since = None;
        let mut moves = 0;
        loop {
            let mut seen = self.slot(chunk.index)?;
            let outcome = if seen.1 == Some(seen.0) {
                self.overwrite(seen.0, chunk, data.clone()).await
            } else {
                let guard = self.guard(chunk.index).await?;
                seen = self.certain_slot(chunk.index).await?;
                if seen.1 == Some(seen.0) {
                    // Another writer made it meanwhile.
                    continue;
                }
                if seen.1.is_none() {
                    self.settle(seen.0, chunk.index).await?;
                }
                // Made with no more than one piece: the rest is quicker written in place.
                let first = pieces(chunk.offset, chunk.len).next();
                let (first, rest) = chunk.split_at(first.map_or(0, |(_, len)| len));
                let part = data.slice(..first.len as usize);
                match self.create(seen, first, part, &guard).await {
                    // Published under the guard, so that nobody creates it again.
                    Ok(()) if rest.len == 0 => {
                        return self.publish(seen.0, chunk.index, guard).await;
                    }
                    Ok(()) => {
                        (chunk, data) = (rest, data.slice(first.len as usize..));
                        let (published, written) = tokio::join!(
                            self.publish(seen.0, chunk.index, guard),
                            self.overwrite(seen.0, chunk, data.clone())
                        );
                        published?;
                        written
                    }
                    Err(error) => {
                        guard.leave_with(&error);
                        Err(error)
                    }
                }
            };
            let error = match outcome {
                Ok(Placed::Here) => return Ok(()),
                Ok(Placed::Behind) => continue,
                Err(error) => error,
            };
            // Not from the beginning: it may have waited for a sheep until now.
            let since: Instant = *refused_since.get_or_insert_with(Instant::now);
            if since.elapsed() > PATIENCE {
                return Err(match is_read_only(&error) {
                    true => FsError::Frozen(self.selector.to_string()),
                    false => self.failed(error),
                });
            }
            match error.code() {
                Some(ResultCode::ReadOnly) => self.reload(seen.0).await?,
                Some(ResultCode::NoObj | ResultCode::NoVdi) if moves < MAX_MOVES => {
                    self.refresh_slot(chunk.index, seen, error).await?;
                    moves += 1;
                }
                _ => return Err(self.failed(error)),
            }
        }
    }

    /// Writes to an object of `vid`.
    async fn overwrite(&self, vid: Vid, chunk: Chunk, data: Bytes) -> Result<Placed, ClientError> {
        let oid = Oid::data(vid, chunk.index);
        self.client.write_object(oid, chunk.offset, data).await?;
        Ok(match self.vid() == vid {
            true => Placed::Here,
            false => Placed::Behind,
        })
    }

    /// Makes an object, a copy of the one in the slot, and writes to it.
    pub(super) async fn create(
        &self,
        (vid, owner): (Vid, Option<Vid>),
        chunk: Chunk,
        data: Bytes,
        guard: &SharedGuard,
    ) -> Result<(), ClientError> {
        let source = owner.map(|owner| Oid::data(owner, chunk.index));
        let oid = Oid::data(vid, chunk.index);
        let call = Call::create_object(oid, chunk.offset, data, source);
        let created = self.client.call(call.holding(Arc::clone(guard) as _)).await;
        if matches!(created, Err(ClientError::Lost { .. })) {
            // It may still run, and would wipe what the guard's next holder writes.
            self.client.settle().await;
        }
        created.map(drop)
    }

    /// Sets the slot of an object that was just made under `vid`.
    ///
    /// `guard` is the slot's. When the volume has moved on to another VDI
    /// meanwhile, the object is brought there.
    pub(super) async fn publish(
        &self,
        mut vid: Vid,
        index: ObjectIndex,
        guard: SharedGuard,
    ) -> Result<(), FsError> {
        loop {
            let published = self
                .index_writer
                .publish(vid, index, Arc::clone(&guard))
                .await;
            let published = match published {
                Ok(published) => published,
                Err(error) => {
                    // When the head has moved on, the update cannot reach it.
                    let _moved = self.head_mut().map.mark_in_doubt(vid, index);
                    guard.leave_with(&error);
                    return Err(self.failed(error));
                }
            };
            let committed = {
                let mut head = self.head_mut();
                let committed = head.map.commit(vid, index);
                if committed.is_ok() && published == Published::Working {
                    head.map.retire_commits(Instant::now());
                }
                committed
            };
            match committed {
                Ok(()) if published == Published::Working => return Ok(()),
                // Now that the slot is known here, following the head brings it along.
                Ok(()) => return self.reload(vid).await,
                // The new head has inherited the object.
                Err(HeadMoved { owner, .. }) if owner == Some(vid) => return Ok(()),
                Err(HeadMoved { to, .. }) => vid = self.carry_over(vid, to, index, &guard).await?,
            }
        }
    }

    /// Copies an object made under a VDI that has become a snapshot to the
    /// working one, which does not name it. Returns the VID it has now.
    async fn carry_over(
        &self,
        from: Vid,
        mut to: Vid,
        index: ObjectIndex,
        guard: &SharedGuard,
    ) -> Result<Vid, FsError> {
        let begun = Instant::now();
        while begun.elapsed() < PATIENCE {
            match self.copy_object(from, to, index, guard).await {
                Ok(()) => return Ok(to),
                Err(error) if is_read_only(&error) => {
                    self.reload(to).await?;
                    to = self.vid();
                }
                Err(error) => {
                    guard.leave_with(&error);
                    return Err(self.failed(error));
                }
            }
        }
        Err(FsError::Frozen(self.selector.to_string()))
    }

    /// Makes object `index` of `to` a copy of the one of `from`.
    pub(super) async fn copy_object(
        &self,
        from: Vid,
        to: Vid,
        index: ObjectIndex,
        guard: &SharedGuard,
    ) -> Result<(), ClientError> {
        let nothing = Chunk {
            index,
            offset: 0,
            len: 0,
        };
        self.create((to, Some(from)), nothing, Bytes::new(), guard)
            .await
    }
}

/// True when a refusal says that the volume's picture of the VDI is old.
fn is_moved(error: &ClientError) -> bool {
    is_read_only(error) || is_absent(error)
}
