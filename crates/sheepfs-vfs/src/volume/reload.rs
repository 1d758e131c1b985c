//! Moving a volume to the new working VDI after someone took a snapshot.
//!
//! The old VID stays readable for ever, refuses data writes, and silently
//! accepts index writes. An index update that was under way while the server
//! made the snapshot may be missing in the new working VDI, or in both, though
//! it was answered with success (protocol 7.4). So every object this volume
//! knows to be the old VDI's own, and the new index does not show, is brought
//! over before the first request uses the new VDI.
//!
//! Snapshots may follow each other without a pause. Then all the time there is
//! for a write lies between the end of one and the beginning of the next, so
//! the way from finding the new VDI to the first write is kept short, and what
//! is left undone goes on at the next one for [`PATIENCE`].

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use futures_util::{StreamExt as _, stream};
use sheep_client::{ClientError, VdiInfo};
use sheep_proto::{ObjectIndex, ResultCode, Vid};
use tokio::time::Instant;

use super::object_map::Owners;
use super::{PARALLEL_CHUNKS, Volume, is_read_only, read_index};
use crate::error::FsError;
use crate::index_writer::Published;

/// Questions for a working VDI before one that refuses writes without being a
/// snapshot is given up (protocol 6.4).
const SAME_VID_TRIES: u32 = 6;
/// The first pause between them; each is twice the one before.
const SAME_VID_PAUSE: Duration = Duration::from_millis(25);
/// How long a volume that was found frozen is believed to be.
const FROZEN_FOR: Duration = Duration::from_secs(1);
/// How long a request goes on when snapshots follow each other too fast for it.
pub(super) const PATIENCE: Duration = Duration::from_secs(60);
/// Snapshots between the old and the new working VDI that are looked through.
pub(super) const MAX_GENERATIONS: u32 = 1024;

impl Volume {
    /// Leaves `old`, which has become a snapshot, for the working VDI of its
    /// name. Whoever comes second finds the work done.
    ///
    /// # Errors
    /// `Stale` when the working VDI is gone or does not descend from `old`;
    /// `VolumeIo` when the cluster does not answer, or flags the working VDI
    /// itself as read-only.
    pub(super) async fn reload(&self, old: Vid) -> Result<(), FsError> {
        let volume = self.arc();
        // As a task: half a move, with a lock taken or a copy under way, is
        // not to be left by a caller who gives up.
        let moved = self.runtime.spawn(async move { volume.move_on(old).await });
        moved
            .await
            .unwrap_or_else(|_ended| Err(self.silent(Duration::ZERO)))
    }

    async fn move_on(&self, old: Vid) -> Result<(), FsError> {
        let mut last_failure = self.reloading.lock().await;
        if last_failure.is_some_and(|failed: Instant| failed.elapsed() < FROZEN_FOR) {
            return Err(FsError::Frozen(self.selector.to_string()));
        }
        let moved = self.follow(old).await;
        // Those who waited for this failure share it.
        *last_failure = matches!(moved, Err(FsError::Frozen(_))).then(Instant::now);
        moved
    }

    async fn follow(&self, old: Vid) -> Result<(), FsError> {
        let deadline = Instant::now() + PATIENCE;
        let mut descendants = HashSet::from([old]);
        while Instant::now() < deadline {
            if self.vid() != old {
                return self.usable();
            }
            let Some(info) = self.find_successor(old).await? else {
                continue;
            };
            let to = info.vid;
            if self.locked && !self.lock_successor(to).await? {
                continue;
            }
            let moved = self.move_to(old, info, &mut descendants).await;
            if self.locked {
                // Of the two only the one in use stays locked.
                let unused = if matches!(moved, Ok(true)) { old } else { to };
                if let Err(error) = self.client.release(unused).await {
                    tracing::warn!("the lock of VDI {unused} is left behind: {error}");
                }
            }
            if moved? {
                tracing::info!("{} was snapshotted: VDI {old} -> {to}", self.selector);
                self.changed_elsewhere();
                return Ok(());
            }
        }
        Err(FsError::Frozen(self.selector.to_string()))
    }

    /// The working VDI after `old`; `None` when that became a snapshot, too.
    async fn find_successor(&self, old: Vid) -> Result<Option<VdiInfo>, FsError> {
        for tries in 0..SAME_VID_TRIES {
            let vid = match self.client.find(&self.selector).await {
                Ok(vid) => vid,
                Err(error) if error.code() == Some(ResultCode::NoVdi) => return Err(self.gone()),
                Err(error) => return Err(self.failed(error)),
            };
            if vid != old {
                let info = self.client.info(vid).await;
                return match info.map_err(|error| self.failed(error))? {
                    // It has no snapshots, so this is another VDI by that name.
                    Some(info) if info.hypervolume => Err(self.gone()),
                    found => Ok(found.filter(|info| !info.is_snapshot())),
                };
            }
            // Another sheep may know of the snapshot a moment later.
            tokio::time::sleep(SAME_VID_PAUSE * 2u32.pow(tries)).await;
        }
        Err(FsError::Frozen(self.selector.to_string()))
    }

    /// Makes the VDI of `info` the volume's; false when it became a snapshot
    /// itself meanwhile.
    async fn move_to(
        &self,
        old: Vid,
        info: VdiInfo,
        descendants: &mut HashSet<Vid>,
    ) -> Result<bool, FsError> {
        let (descends, map) = tokio::join!(
            self.check_descent(&info, descendants),
            read_index(&self.client, &info)
        );
        descends?;
        let map = map.map_err(|error| self.failed(error))?;
        self.reconcile(old, info, map).await
    }

    /// Locks the new working VDI, which a snapshot leaves unlocked; false when
    /// it is not `to` any more.
    async fn lock_successor(&self, to: Vid) -> Result<bool, FsError> {
        let mut asked = self.lock_asked.lock().await;
        let mut locked = self.client.lock(&self.selector).await;
        let refused = |locked: &Result<Vid, ClientError>| matches!(locked, Err(error) if error.code() == Some(ResultCode::VdiLocked));
        if refused(&locked) && *asked == Some(to) {
            // Our own lock, the answer to which was lost.
            self.client
                .release(to)
                .await
                .map_err(|error| self.failed(error))?;
            locked = self.client.lock(&self.selector).await;
        }
        *asked = match &locked {
            Ok(_) => None,
            Err(_) if refused(&locked) => None,
            Err(_) => Some(to),
        };
        let vid = locked.map_err(|error| self.failed(error))?;
        if vid != to {
            self.client
                .release(vid)
                .await
                .map_err(|error| self.failed(error))?;
        }
        Ok(vid == to)
    }

    /// Makes sure that `new` came from the volume's VDI by snapshots, not by a
    /// rollback, and adds it to those of which that is known.
    async fn check_descent(
        &self,
        new: &VdiInfo,
        descendants: &mut HashSet<Vid>,
    ) -> Result<(), FsError> {
        if new.object_shift != self.head().info.object_shift {
            return Err(self.gone());
        }
        let mut line = vec![new.vid];
        let mut parent = new.parent;
        for _ in 0..MAX_GENERATIONS {
            match parent {
                Some(vid) if descendants.contains(&vid) => {
                    descendants.extend(line);
                    return Ok(());
                }
                Some(vid) => {
                    line.push(vid);
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
    async fn reconcile(
        &self,
        old: Vid,
        info: VdiInfo,
        mut owners: Owners,
    ) -> Result<bool, FsError> {
        let to = info.vid;
        let mut brought = Vec::new();
        loop {
            let missing = {
                let mut head = self.head_mut();
                let missing = head.map.missing_in(&owners);
                if missing.is_empty() {
                    // Under the same lock, or a commit in between would be forgotten.
                    head.info = info;
                    head.map.switch_head(to, owners, brought);
                    return Ok(true);
                }
                missing
            };
            tracing::info!(
                "{}: {} objects written while the snapshot was made are brought over",
                self.selector,
                missing.len()
            );
            let outcomes: Vec<_> = stream::iter(missing.clone())
                .map(|(index, _)| self.bring_over(old, to, index))
                .buffered(PARALLEL_CHUNKS)
                .collect()
                .await;
            // Not before all have ended: none may be under way behind our back.
            for outcome in outcomes {
                if !outcome? {
                    return Ok(false);
                }
            }
            for &(index, _) in &missing {
                owners.set(index, Some(to));
            }
            brought.extend(missing);
        }
    }

    /// False when `to` has become a snapshot.
    ///
    /// The object is nobody else's to make: all others use `old` still.
    async fn bring_over(&self, old: Vid, to: Vid, index: ObjectIndex) -> Result<bool, FsError> {
        let guard = self.guard_of(&self.moving, index).await?;
        match self.copy_object(old, to, index, &guard).await {
            Ok(()) => {}
            Err(error) if is_read_only(&error) => return Ok(false),
            Err(error) => {
                guard.leave_with(&error);
                return Err(self.failed(error));
            }
        }
        let request = Arc::clone(&guard);
        match self.index_writer.publish(to, index, request).await {
            Ok(published) => Ok(published == Published::Working),
            Err(error) => {
                guard.leave_with(&error);
                Err(self.failed(error))
            }
        }
    }
}
