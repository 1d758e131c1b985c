//! Brings commits that a snapshot has swallowed to the new head.
//!
//! ```text
//! index update of the old head ──► acknowledged, but written over by the snapshot
//!
//! for each recent commit that the new index shows as it was before:
//!     lock the object in the new head
//!     CREATE new/index as a copy of old/index        ──► READONLY: the next snapshot
//!     commit the slot in the new head, probe         ──► frozen: the next snapshot
//! none is missing: switch the object map to the new head, under its lock
//! ```
//!
//! Only requests that do not retry are used here: what a further snapshot
//! interrupts starts again at the next head.

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

/// Objects brought over at once.
const PARALLEL_OBJECTS: usize = 16;

/// Why an object could not be brought over.
#[derive(Debug)]
pub(super) enum RecoveryError {
    /// The cluster refused or did not answer.
    Cluster(Arc<ClientError>),
    /// A request for the object is at a silent sheep, for so long.
    Locked(Duration),
}

/// Redoes commits in the new head.
#[derive(Debug)]
pub(super) struct Recovery {
    io: ObjectIo,
    /// Locks of objects of the new head: those who wait for the switch hold the
    /// same objects' locks of the old one.
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

    /// True when no object is being brought over, and no abandoned request may
    /// still make one.
    pub(super) fn is_idle(&self) -> bool {
        self.locks.is_idle()
    }

    /// Makes the VDI of `info`, whose index is `owners`, the head in `state`, once
    /// it has every object that was committed to `old`. False when it became a
    /// snapshot itself meanwhile.
    ///
    /// # Errors
    /// When an object could not be brought over: the old head stays.
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
            let missing = {
                let mut head = state.write().expect("map transitions do not panic");
                let missing = head.map.missing_in(&owners);
                if missing.is_empty() {
                    // Under the same lock, or a commit in between would be forgotten.
                    head.info = info;
                    head.map.switch_head(to, owners, recommitted);
                    return Ok(true);
                }
                missing
            };
            tracing::info!(
                "{}: {} objects written while the snapshot was made are brought over",
                info.name,
                missing.len()
            );
            let outcomes: Vec<_> = stream::iter(missing.clone())
                .map(|(index, _)| self.recommit_object(old, to, index))
                .buffered(PARALLEL_OBJECTS)
                .collect()
                .await;
            // Not before all have ended: none may be in flight behind our back.
            for outcome in outcomes {
                if !outcome? {
                    return Ok(false);
                }
            }
            for &(index, _) in &missing {
                owners.set(index, Some(to));
            }
            recommitted.extend(missing);
        }
    }

    /// False when `to` has become a snapshot.
    ///
    /// No one else makes the object: all others use the old head still.
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
