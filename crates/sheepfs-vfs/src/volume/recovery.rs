//! Reconciles the new head: redoes commits that were lost in the snapshot race.
//!
//! ```text
//! index update of the old head ──► acknowledged, then overwritten by the snapshot
//!
//! for each recent commit that the new index shows as it was before:
//!     lock the object in the new head
//!     CREATE new/index as a copy of old/index        ──► READONLY: the next snapshot
//!     commit the slot in the new head, probe         ──► frozen: the next snapshot
//! none is missing: switch the object map to the new head, under its lock
//! ```
//!
//! Nothing here retries: if a further snapshot interrupts it, `follow.rs` starts again
//! with the next head.

use std::sync::{Arc, RwLock};
use std::time::Duration;

use futures_util::{StreamExt as _, stream};
use sheep_client::{ClientError, VdiInfo};
use sheep_proto::{ObjectIndex, Vid};

use super::head_state::HeadState;
use super::index_commit::{CommitOutcome, IndexCommitter};
use super::object_io::ObjectIo;
use super::object_lock::ObjectLocks;
use super::object_map::Owners;
use crate::poison;

/// Objects migrated in parallel.
const PARALLEL_OBJECTS: usize = 16;

/// Why an object could not be migrated.
#[derive(Debug)]
pub(super) enum RecoveryError {
    /// The cluster refused or did not answer.
    Cluster(Arc<ClientError>),
    /// An earlier request pins the object's lock; the wait timed out after this time.
    Locked(Duration),
}

/// Redoes commits in the new head.
#[derive(Debug)]
pub(super) struct Recovery {
    io: ObjectIo,
    /// Object locks of the new head. Writers that wait for the switch hold the locks of
    /// the same objects in the old head, so those cannot be used here.
    locks: Arc<ObjectLocks>,
    committer: Arc<IndexCommitter>,
}

impl Recovery {
    pub(super) fn new(io: ObjectIo, committer: Arc<IndexCommitter>) -> Self {
        Self {
            io,
            locks: Arc::default(),
            committer,
        }
    }

    /// True if no object is being migrated, and no abandoned request may still create one.
    pub(super) fn is_idle(&self) -> bool {
        self.locks.is_idle()
    }

    /// Migrates every object that was committed to `old` and is missing in `owners`, the
    /// index of the VDI of `info`. Then makes that VDI the head in `state`. False if it
    /// has become a snapshot itself.
    ///
    /// # Errors
    /// If an object could not be migrated; the old head stays.
    pub(super) async fn reconcile(
        &self,
        state: &RwLock<HeadState>,
        old: Vid,
        info: VdiInfo,
        mut owners: Owners,
    ) -> Result<bool, RecoveryError> {
        let to = info.vid;
        let mut recommitted = Vec::new();
        loop {
            // Compare the recent commits with the new index; switch if none is missing.
            let missing = {
                let mut head = poison::write(state);
                let missing = head.map.missing_in(&owners);
                if missing.is_empty() {
                    // Under the same lock, or a commit in between would be lost.
                    head.info = info;
                    head.map.switch_head(to, owners, recommitted);
                    return Ok(true);
                }
                missing
            };
            tracing::info!(
                "{}: redoing {} writes that raced with a snapshot",
                info.name,
                missing.len()
            );
            // Copy the missing objects and commit them in the new head.
            let outcomes: Vec<_> = stream::iter(missing.clone())
                .map(|(index, _)| self.recommit_object(old, to, index))
                .buffered(PARALLEL_OBJECTS)
                .collect()
                .await;
            // Return only after all have ended: none may be in flight after that.
            for outcome in outcomes {
                if !outcome? {
                    return Ok(false);
                }
            }
            // They are in the index now; the next round compares again.
            for &(index, _) in &missing {
                owners.set(index, Some(to));
            }
            recommitted.extend(missing);
        }
    }

    /// False when `to` has become a snapshot.
    ///
    /// No other task creates the object: until the switch all use the old head.
    async fn recommit_object(
        &self,
        old: Vid,
        to: Vid,
        index: ObjectIndex,
    ) -> Result<bool, RecoveryError> {
        let lock = self
            .locks
            .lock(index)
            .await
            .map_err(RecoveryError::Locked)?;
        match self.io.copy(old, to, index, &lock).await {
            Ok(()) => {}
            Err(error) if error.is_read_only() => return Ok(false),
            Err(error) => {
                lock.abandon(&error);
                return Err(RecoveryError::Cluster(Arc::new(error)));
            }
        }
        let committed = self
            .committer
            .commit_slot(to, index, Arc::clone(&lock))
            .await;
        match committed {
            Ok(outcome) => Ok(outcome == CommitOutcome::Head),
            Err(error) => {
                lock.abandon(&error);
                Err(RecoveryError::Cluster(error))
            }
        }
    }
}
