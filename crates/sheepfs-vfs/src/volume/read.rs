//! Reading.

use bytes::{Bytes, BytesMut};
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use sheep_client::ClientError;
use sheep_proto::{Oid, ResultCode, Vid};

use super::doubt::is_absent;
use super::object_map::Slot;
use super::{Done, PARALLEL_CHUNKS, Volume, zeros};
use crate::chunk::{Chunk, chunks};
use crate::error::FsError;

/// How often a request follows a slot that changes under it.
pub(super) const MAX_MOVES: u32 = 8;

impl Volume {
    /// Reads up to `len` bytes at byte `offset`, fewer at the end of the
    /// volume, none behind it, and runs `done` with them.
    ///
    /// What any client's write was acknowledged for before this call is in them;
    /// after a snapshot that another client took, a second later.
    ///
    /// Does not block. A range within one object is asked for by the calling
    /// thread.
    pub fn read(&self, offset: u64, len: u32, done: Done<Bytes>) {
        if let Err(error) = self.usable() {
            return done(Err(error));
        }
        let (vid, chunk, slot) = {
            let head = self.head();
            let len = clamp(offset, len, head.info.size);
            let mut parts = chunks(offset, u64::from(len), head.info.object_shift);
            match (parts.next(), parts.next()) {
                (None, _) => return done(Ok(Bytes::new())),
                (Some(only), None) => (head.info.vid, only, head.map.slot(only.index)),
                (Some(_), Some(_)) => return self.spawn_read(offset, len, done),
            }
        };
        if !self.is_header_fresh() || self.behind.holds(offset, chunk.len.into()) {
            return self.spawn_read(offset, len, done);
        }
        match slot {
            Slot::Owned => self.read_from(vid, chunk, offset, done),
            Slot::Inherited(owner) if self.is_believed(slot) => {
                self.read_from(owner, chunk, offset, done);
            }
            Slot::Hole | Slot::Reclaiming if self.is_believed(slot) => {
                done(Ok(zeros(chunk.len)));
            }
            Slot::Hole | Slot::Reclaiming => {
                let volume = self.arc();
                self.arc()
                    .query_slot(chunk.index, move |answer| match answer {
                        Ok(answer) if answer.owner.is_none() && answer.head == volume.vid() => {
                            done(Ok(zeros(chunk.len)));
                        }
                        Ok(_written) => volume.spawn_read(offset, chunk.len, done),
                        Err(error) => done(Err(error)),
                    });
            }
            Slot::Inherited(_) | Slot::InDoubt { .. } => self.spawn_read(offset, len, done),
        }
    }

    /// Reads a range of an object that exists.
    fn read_from(&self, owner: Vid, chunk: Chunk, offset: u64, done: Done<Bytes>) {
        let volume = self.arc();
        let oid = Oid::data(owner, chunk.index);
        self.client
            .submit_read(oid, chunk.offset, chunk.len, move |read| match read {
                Ok(bytes) => done(Ok(bytes)),
                // Finds out what to do about it.
                Err(error) if is_absent(&error) => volume.spawn_read(offset, chunk.len, done),
                Err(error) => done(Err(volume.failed(error))),
            });
    }

    /// Reads up to `len` bytes at byte `offset`, fewer at the end of the volume,
    /// as [`Volume::read`] does.
    ///
    /// # Errors
    /// `VolumeIo` when the cluster cannot deliver, `Stale`.
    pub async fn read_at(&self, offset: u64, len: u32) -> Result<Bytes, FsError> {
        self.usable()?;
        self.revalidate_for_read().await?;
        if self.behind.holds(offset, len.into()) {
            self.settle_behind().await;
        }
        let (len, shift) = {
            let head = self.head();
            (clamp(offset, len, head.info.size), head.info.object_shift)
        };
        let mut parts = stream::iter(chunks(offset, u64::from(len), shift))
            .map(|chunk| self.read_chunk(chunk))
            .buffered(PARALLEL_CHUNKS);
        let first = parts.try_next().await?.unwrap_or_default();
        if first.len() == len as usize {
            return Ok(first);
        }
        let mut whole = BytesMut::with_capacity(len as usize);
        whole.extend_from_slice(&first);
        while let Some(part) = parts.try_next().await? {
            whole.extend_from_slice(&part);
        }
        Ok(whole.freeze())
    }

    fn spawn_read(&self, offset: u64, len: u32, done: Done<Bytes>) {
        let volume = self.arc();
        self.runtime
            .spawn(async move { done(volume.read_at(offset, len).await) });
    }

    async fn read_chunk(&self, chunk: Chunk) -> Result<Bytes, FsError> {
        let mut moves = 0;
        loop {
            let (seen, read) = self.read_current(chunk).await?;
            match read {
                Ok(bytes) => return Ok(bytes),
                Err(error) if error.code() == Some(ResultCode::NoObj) && moves < MAX_MOVES => {
                    self.refresh_slot(chunk.index, seen, error).await?;
                    moves += 1;
                }
                Err(error) => return Err(self.failed(error)),
            }
        }
    }

    /// Reads from whichever object the slot names now, and says which that was.
    async fn read_current(
        &self,
        chunk: Chunk,
    ) -> Result<((Vid, Option<Vid>), Result<Bytes, ClientError>), FsError> {
        let slot = self.head().map.slot(chunk.index);
        let read = |owner| {
            let oid = Oid::data(owner, chunk.index);
            self.client.read_object(oid, chunk.offset, chunk.len)
        };
        let seen = match slot {
            // Mostly it is still the ancestor's, whose objects do not change: read
            // it while the slot is asked for.
            Slot::Inherited(owner) if !self.is_believed(slot) => {
                let (seen, inherited) = tokio::join!(self.current_slot(chunk.index), read(owner));
                let seen = seen?;
                if seen.1 == Some(owner) {
                    return Ok((seen, inherited));
                }
                seen
            }
            _ => self.current_slot(chunk.index).await?,
        };
        let read = match seen.1 {
            None => Ok(zeros(chunk.len)),
            Some(owner) => read(owner).await,
        };
        Ok((seen, read))
    }
}

/// Bytes of `[offset, offset + len)` that lie in a volume of `size` bytes.
fn clamp(offset: u64, len: u32, size: u64) -> u32 {
    u32::try_from(size.saturating_sub(offset))
        .unwrap_or(u32::MAX)
        .min(len)
}
