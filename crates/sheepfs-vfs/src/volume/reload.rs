//! Moving a volume to the new working VDI after someone took a snapshot.
//!
//! The old VID stays readable for ever, refuses data writes, and silently
//! accepts index writes. An index update that was under way while the server
//! made the snapshot may be missing in the new working VDI, or in both, though
//! it was answered with success (protocol 7.4). So every object this volume
//! knows to be the old VDI's own, and the new index does not show, is brought
//! over before the first request uses the new VDI.

use std::time::Duration;

use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use sheep_proto::{ObjectIndex, ResultCode, Vid};

use super::{Head, PARALLEL_CHUNKS, Volume, is_read_only};
use crate::error::FsError;
use crate::index_writer::Published;

/// Questions for a working VDI before one that refuses writes without being a
/// snapshot is given up (protocol 6.4).
const SAME_VID_TRIES: u32 = 6;
/// The first pause between them; each is twice the one before.
const SAME_VID_PAUSE: Duration = Duration::from_millis(25);
/// Moves before giving up on snapshots that follow each other too fast.
const MAX_MOVES: u32 = 64;
/// Snapshots between the old and the new working VDI that are looked through.
const MAX_GENERATIONS: u32 = 1024;

impl Volume {
    /// Leaves `old`, which has become a snapshot, for the working VDI of its
    /// name. Whoever comes second finds the work done.
    ///
    /// # Errors
    /// `Stale` when the working VDI is gone or does not descend from `old`;
    /// `VolumeIo` when the cluster does not answer, or flags the working VDI
    /// itself as read-only.
    pub(super) async fn reload(&self, old: Vid) -> Result<(), FsError> {
        let _one_at_a_time = self.reloading.lock().await;
        for _ in 0..MAX_MOVES {
            if self.vid() != old {
                return self.usable();
            }
            let Some(mut new) = self.load_successor(old).await? else {
                continue;
            };
            let to = new.info.vid;
            if self.locked && !self.lock_successor(to).await? {
                continue;
            }
            let moved = match self.check_descent(&new, old).await {
                Ok(()) => self.reconcile(old, &mut new).await,
                Err(error) => Err(error),
            };
            if self.locked {
                // Of the two only the one in use stays locked.
                let unused = if matches!(moved, Ok(true)) { old } else { to };
                self.client
                    .release(unused)
                    .await
                    .map_err(|error| self.failed(error))?;
            }
            if moved? {
                tracing::info!("{} was snapshotted: VDI {old} -> {to}", self.selector);
                return Ok(());
            }
        }
        Err(FsError::Frozen(self.selector.to_string()))
    }

    /// The working VDI after `old`; `None` when that became a snapshot, too.
    async fn load_successor(&self, old: Vid) -> Result<Option<Head>, FsError> {
        for tries in 0..SAME_VID_TRIES {
            let vid = match self.client.find(&self.selector).await {
                Ok(vid) => vid,
                Err(error) if error.code() == Some(ResultCode::NoVdi) => return Err(self.gone()),
                Err(error) => return Err(self.failed(error)),
            };
            if vid != old {
                let loaded = Head::load(&self.client, vid).await;
                return match loaded.map_err(|error| self.failed(error))? {
                    // It has no snapshots, so this is another VDI by that name.
                    Some((_, Some(_hypervolume))) => Err(self.gone()),
                    Some((head, None)) => Ok(Some(head).filter(|head| !head.info.is_snapshot())),
                    None => Ok(None),
                };
            }
            // Another sheep may know of the snapshot a moment later.
            tokio::time::sleep(SAME_VID_PAUSE * 2u32.pow(tries)).await;
        }
        Err(FsError::Frozen(self.selector.to_string()))
    }

    /// Locks the new working VDI, which a snapshot leaves unlocked; false when
    /// it is not `to` any more.
    async fn lock_successor(&self, to: Vid) -> Result<bool, FsError> {
        let locked = self
            .client
            .lock(&self.selector)
            .await
            .map_err(|error| self.failed(error))?;
        if locked != to {
            self.client
                .release(locked)
                .await
                .map_err(|error| self.failed(error))?;
        }
        Ok(locked == to)
    }

    /// Makes sure that `new` came from `old` by snapshots, not by a rollback.
    async fn check_descent(&self, new: &Head, old: Vid) -> Result<(), FsError> {
        let mut parent = new.info.parent;
        for _ in 0..MAX_GENERATIONS {
            match parent {
                Some(vid) if vid == old => return Ok(()),
                Some(vid) => {
                    let header = self.client.read_header(vid).await;
                    parent = header.map_err(|error| self.failed(error))?.parent();
                }
                None => break,
            }
        }
        Err(self.gone())
    }

    /// Brings over what `new` lacks and makes it the volume's VDI; false when
    /// it became a snapshot itself meanwhile.
    async fn reconcile(&self, old: Vid, new: &mut Head) -> Result<bool, FsError> {
        let to = new.info.vid;
        loop {
            let missing: Vec<ObjectIndex> = {
                let mut head = self.head.write().expect("no one panics with the head");
                let lacks = |&(index, owner): &(ObjectIndex, Vid)| {
                    let there = new.map.get(index);
                    owner == old && there != Some(old) && there != Some(to)
                };
                let missing: Vec<_> = head
                    .map
                    .owned(ObjectIndex(0)..)
                    .filter(lacks)
                    .map(|(index, _)| index)
                    .collect();
                if missing.is_empty() {
                    // Under the same lock, or an update in between would be forgotten.
                    head.info = new.info.clone();
                    head.map = std::mem::take(&mut new.map);
                    // They were the old VDI's, and it makes no objects any more.
                    self.reclaimed
                        .lock()
                        .expect("no one panics with the set")
                        .clear();
                    return Ok(true);
                }
                missing
            };
            tracing::info!(
                "{}: {} objects written while the snapshot was made are brought over",
                self.selector,
                missing.len()
            );
            let brought: Vec<bool> = stream::iter(missing.clone())
                .map(|index| self.bring_over(old, to, index))
                .buffered(PARALLEL_CHUNKS)
                .try_collect()
                .await?;
            if brought.contains(&false) {
                return Ok(false);
            }
            for index in missing {
                new.map.set(index, Some(to));
            }
        }
    }

    /// False when `to` has become a snapshot.
    async fn bring_over(&self, old: Vid, to: Vid, index: ObjectIndex) -> Result<bool, FsError> {
        match self.copy_object(old, to, index).await {
            Ok(()) => {}
            Err(error) if is_read_only(&error) => return Ok(false),
            Err(error) => return Err(self.failed(error)),
        }
        match self.index_writer.publish(to, index).await {
            Ok(published) => Ok(published == Published::Working),
            Err(error) => Err(self.failed(error)),
        }
    }
}
