//! Reading.

use bytes::{Bytes, BytesMut};
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use sheep_proto::{Oid, ResultCode};

use super::doubt::is_absent;
use super::{Done, PARALLEL_CHUNKS, Volume, zeros};
use crate::chunk::{Chunk, chunks};
use crate::error::FsError;

/// How often a request follows a slot that changes under it.
pub(super) const MAX_MOVES: u32 = 8;

impl Volume {
    /// Reads up to `len` bytes at byte `offset`, fewer at the end of the
    /// volume, none behind it, and runs `done` with them.
    ///
    /// Does not block. A range within one object is asked for by the calling
    /// thread.
    pub fn read(&self, offset: u64, len: u32, done: Done<Bytes>) {
        let (len, chunk, owner) = {
            let head = self.head();
            let len = clamp(offset, len, head.info.size);
            let mut parts = chunks(offset, u64::from(len), head.info.object_shift);
            match (parts.next(), parts.next()) {
                (Some(only), None) => (len, Some(only), head.map.get(only.index)),
                (chunk, _) => (len, chunk, None),
            }
        };
        if let Err(error) = self.usable() {
            return done(Err(error));
        }
        match (chunk, owner) {
            (None, _) => done(Ok(Bytes::new())),
            (Some(chunk), _) if chunk.len != len => self.spawn_read(offset, len, done),
            (Some(_), _) if self.behind.holds(offset, len.into()) => {
                self.spawn_read(offset, len, done);
            }
            (Some(chunk), _) if self.is_doubted(chunk.index) => {
                self.spawn_read(offset, len, done);
            }
            (Some(_), None) => done(Ok(zeros(len))),
            (Some(chunk), Some(owner)) => {
                let volume = self.arc();
                let oid = Oid::data(owner, chunk.index);
                self.client
                    .submit_read(oid, chunk.offset, chunk.len, move |read| match read {
                        Ok(bytes) => done(Ok(bytes)),
                        // Finds out what to do about it.
                        Err(error) if is_absent(&error) => {
                            volume.spawn_read(offset, len, done);
                        }
                        Err(error) => done(Err(volume.failed(error))),
                    });
            }
        }
    }

    /// Reads up to `len` bytes at byte `offset`, fewer at the end of the volume.
    ///
    /// # Errors
    /// `VolumeIo` when the cluster cannot deliver, `Stale`.
    pub async fn read_at(&self, offset: u64, len: u32) -> Result<Bytes, FsError> {
        self.usable()?;
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
            let seen = self.slot(chunk.index)?;
            let mut owner = seen.1;
            if self.is_doubted(chunk.index) {
                let slot = self.client.slot(&self.info(), chunk.index).await;
                owner = slot.map_err(|error| self.failed(error))?;
            }
            let Some(owner) = owner else {
                return Ok(zeros(chunk.len));
            };
            let oid = Oid::data(owner, chunk.index);
            match self.client.read_object(oid, chunk.offset, chunk.len).await {
                Ok(bytes) => return Ok(bytes),
                Err(error) if error.code() == Some(ResultCode::NoObj) && moves < MAX_MOVES => {
                    self.refresh_slot(chunk.index, seen, error).await?;
                    moves += 1;
                }
                Err(error) => return Err(self.failed(error)),
            }
        }
    }
}

/// Bytes of `[offset, offset + len)` that lie in a volume of `size` bytes.
fn clamp(offset: u64, len: u32, size: u64) -> u32 {
    u32::try_from(size.saturating_sub(offset))
        .unwrap_or(u32::MAX)
        .min(len)
}
