//! Allocates objects and commits their slots: first writes, copy-up of inherited
//! objects, preallocation.
//!
//! ```text
//! lock the object ─► revalidate its slot ─► await the reclaim of a former object
//!     ─► CREATE, with a part of the data (copy-up of the ancestor's object)
//!     ─► commit the slot, probe          (data before index before acknowledgement)
//!            ├── still the head ─► done
//!            ├── frozen, slot in the map ─► follow, which reconciles it
//!            └── the head has moved ─► inherited there, or migrate and commit there
//! ```

use std::sync::Arc;

use bytes::Bytes;
use sheep_client::ClientError;
use sheep_proto::{ObjectIndex, Vid};
use tokio::time::Instant;

use super::error::VolumeError;
use super::extent::Extent;
use super::follow::{Follower, RETRY_DEADLINE};
use super::head::{Head, SlotView};
use super::index_commit::{CommitOutcome, IndexCommitter};
use super::object_io::{ObjectIo, zeros};
use super::object_lock::SharedObjectLock;
use super::object_map::HeadMoved;
use super::reclaim::Reclaims;
use super::revalidate::Revalidator;

/// Zeros in the create of a preallocated object; the server allocates the whole object.
const INITIAL_LEN: u32 = 4096;
#[derive(Debug)]
pub(super) struct Allocator {
    head: Arc<Head>,
    io: ObjectIo,
    committer: Arc<IndexCommitter>,
    follower: Arc<Follower>,
    revalidator: Arc<Revalidator>,
    reclaims: Arc<Reclaims>,
}

/// A locked object with a revalidated slot; no other task or client creates it.
pub(super) struct Locked {
    pub(super) lock: SharedObjectLock,
    pub(super) view: SlotView,
}

impl Allocator {
    pub(super) fn new(
        head: Arc<Head>,
        committer: Arc<IndexCommitter>,
        follower: Arc<Follower>,
        revalidator: Arc<Revalidator>,
        reclaims: Arc<Reclaims>,
    ) -> Self {
        Self {
            io: ObjectIo::new(head.client.clone()),
            head,
            committer,
            follower,
            revalidator,
            reclaims,
        }
    }

    /// Locks an object and revalidates its slot. If the head does not own it, the caller
    /// may create it with [`Self::create`].
    ///
    /// # Errors
    /// `Io`, `Stale`.
    pub(super) async fn lock(&self, index: ObjectIndex) -> Result<Locked, VolumeError> {
        let lock = self.head.lock_object(index).await?;
        let view = self.revalidator.revalidate_slot(index).await?;
        if view.owner.is_none() {
            self.reclaims.await_reclaim(view.head, index).await?;
        }
        Ok(Locked { lock, view })
    }

    /// Creates a locked object, as a copy-up if an ancestor has it, with `data` in
    /// `extent`. The caller commits its slot next.
    ///
    /// # Errors
    /// The error of the cluster.
    pub(super) async fn create(
        &self,
        object: &Locked,
        extent: Extent,
        data: Bytes,
    ) -> Result<(), ClientError> {
        let SlotView { head, owner } = object.view;
        let created = self.io.create(head, owner, extent, data, &object.lock);
        created
            .await
            .inspect_err(|error| object.lock.abandon(error))
    }

    /// Commits the slot of an object that was just created under `vid`. Its lock excludes
    /// other creators until then. If the head has moved, the object is migrated.
    ///
    /// # Errors
    /// `Io`, `Stale`, `HeadReadOnly`; the slot is in doubt then.
    pub(super) async fn commit(
        &self,
        mut vid: Vid,
        index: ObjectIndex,
        lock: SharedObjectLock,
    ) -> Result<(), VolumeError> {
        loop {
            let committed = self.committer.commit_slot(vid, index, Arc::clone(&lock));
            let outcome = match committed.await {
                Ok(outcome) => outcome,
                Err(error) => {
                    // If the head has moved, the update cannot reach the new one.
                    let _moved = self.head.update(|map| map.mark_in_doubt(vid, index));
                    lock.abandon(&error);
                    return Err(self.head.io_error(error));
                }
            };
            let noted = self.head.update(|map| {
                let noted = map.commit(vid, index);
                if noted.is_ok() && outcome == CommitOutcome::Head {
                    map.retire_commits(Instant::now());
                }
                noted
            });
            match noted {
                Ok(()) if outcome == CommitOutcome::Head => return Ok(()),
                // The slot is in the map, so following the head reconciles it.
                Ok(()) => return self.follower.follow(vid).await,
                // The new head has inherited the object.
                Err(HeadMoved { owner, .. }) if owner == Some(vid) => return Ok(()),
                Err(HeadMoved { to, .. }) => vid = self.migrate(vid, to, index, &lock).await?,
            }
        }
    }

    /// Copies an object from a VID that has become a snapshot to the head, which has not
    /// inherited it. Returns the VID that it was copied to.
    async fn migrate(
        &self,
        from: Vid,
        mut to: Vid,
        index: ObjectIndex,
        lock: &SharedObjectLock,
    ) -> Result<Vid, VolumeError> {
        let begun = Instant::now();
        while begun.elapsed() < RETRY_DEADLINE {
            match self.io.copy(from, to, index, lock).await {
                Ok(()) => return Ok(to),
                Err(error) if error.is_read_only() => {
                    self.follower.follow(to).await?;
                    to = self.head.vid();
                }
                Err(error) => {
                    lock.abandon(&error);
                    return Err(self.head.io_error(error));
                }
            }
        }
        Err(VolumeError::HeadReadOnly(self.head.selector.to_string()))
    }

    /// Allocates the object of a hole, filled with zeros, while `is_wanted`. Does nothing
    /// if there is an object, or if one is pending reclaim: a real write waits for the
    /// reclaim, but preallocation must not delay a flush.
    ///
    /// # Errors
    /// `Io`, `Stale`.
    pub(super) async fn allocate_hole(
        &self,
        index: ObjectIndex,
        is_wanted: impl Fn() -> bool + Send,
    ) -> Result<(), VolumeError> {
        if !is_wanted() {
            return Ok(());
        }
        let lock = self.head.lock_object(index).await?;
        let view = self.revalidator.revalidate_slot(index).await?;
        if view.owner.is_some() || self.reclaims.is_pending(view.head, index).await? {
            return Ok(());
        }
        let object = Locked { lock, view };
        let initial = Extent {
            index,
            offset: 0,
            len: INITIAL_LEN,
        };
        let created = self.create(&object, initial, zeros(INITIAL_LEN)).await;
        created.map_err(|error| self.head.io_error(error))?;
        self.commit(view.head, index, object.lock).await
    }
}
