//! Making an object and committing its slot: for first writes, copies of inherited
//! objects, and objects that are made before they are written.
//!
//! ```text
//! lock the object ─► revalidate its slot ─► await the deletion of a former object
//!     ─► CREATE, with a part of the data (a copy of the ancestor's object)
//!     ─► commit the slot, probe          (data before index before acknowledgement)
//!            ├── still the head ─► done
//!            ├── frozen, ours in the map ─► follow, which brings it along
//!            └── another head by now ─► inherited there, or copied and committed there
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

/// Zeros that an object is made with; a server takes space for all of it.
const INITIAL_LEN: u32 = 4096;

/// Makes objects.
#[derive(Debug)]
pub(super) struct Allocator {
    head: Arc<Head>,
    io: ObjectIo,
    committer: Arc<IndexCommitter>,
    follower: Arc<Follower>,
    revalidator: Arc<Revalidator>,
    reclaims: Arc<Reclaims>,
}

/// An object whose slot is known for certain, and that nobody else makes.
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

    /// Locks an object that is to be made and revalidates its slot. When the head
    /// does not own it then, it may be made with [`Self::create`].
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

    /// Makes a locked object, a copy of the ancestor's if there is one, with `data`
    /// in `extent`. Its slot must be committed next.
    ///
    /// # Errors
    /// What the cluster answered.
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

    /// Commits the slot of an object that was just made under `vid`, under its lock,
    /// so that nobody makes it again. When the head has moved on, the object is
    /// brought there.
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
                    // When the head has moved on, the update cannot reach it.
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
                // Now that the slot is in the map, following the head brings it along.
                Ok(()) => return self.follower.follow(vid).await,
                // The new head has inherited the object.
                Err(HeadMoved { owner, .. }) if owner == Some(vid) => return Ok(()),
                Err(HeadMoved { to, .. }) => vid = self.migrate(vid, to, index, &lock).await?,
            }
        }
    }

    /// Copies an object made under a VID that has become a snapshot to the head,
    /// whose index does not name it. Returns the VID it has now.
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

    /// Makes the object of a hole, as zeros, while `is_wanted`. Does nothing where
    /// there is an object, or where one is still to be deleted: a real write waits
    /// for that, but nobody waits for this one, and a flush must not be delayed.
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
