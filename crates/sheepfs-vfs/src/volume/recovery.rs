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
//! In the same way it saves what was written to the old head and is only in the object
//! cache of its gateway, which throws that away when it shall write it back: such objects
//! are read from that cache and made in the new head as a whole.
//!
//! Nothing here retries: if a further snapshot interrupts it, `follow.rs` starts again
//! with the next head.

use std::collections::BTreeMap;
use std::sync::{Arc, RwLock};
use std::time::Duration;

use futures_util::{StreamExt as _, stream};
use sheep_client::{ClientError, VdiInfo};
use sheep_proto::{ObjectIndex, Vid};

use super::data_io::{DataIo, Unflushed};
use super::extent::Extent;
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

/// What has become of an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Migrated {
    /// The new head has it.
    Done,
    /// The unflushed writes to it were lost, or discarded.
    Nothing,
    /// The new head has become a snapshot.
    Frozen,
}

/// Redoes commits in the new head.
#[derive(Debug)]
pub(super) struct Recovery {
    io: ObjectIo,
    /// Object locks of the new head. Writers that wait for the switch hold the locks of
    /// the same objects in the old head, so those cannot be used here.
    locks: Arc<ObjectLocks>,
    committer: Arc<IndexCommitter>,
    data: Arc<DataIo>,
}

impl Recovery {
    pub(super) fn new(io: ObjectIo, data: Arc<DataIo>, committer: Arc<IndexCommitter>) -> Self {
        Self {
            io,
            data,
            locks: Arc::default(),
            committer,
        }
    }

    /// True if no object is being migrated, and no abandoned request may still create one.
    pub(super) fn is_idle(&self) -> bool {
        self.locks.is_idle()
    }

    /// Migrates every object that was committed to `old` and is missing in `owners`, the
    /// index of the VDI of `info`, or that has unflushed writes. Then makes that VDI the
    /// head in `state`. False if it has become a snapshot itself.
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
        let object_len = u32::try_from(info.object_size()).unwrap_or(u32::MAX);
        let mut recommitted = Vec::new();
        let mut saved = Unflushed::new();
        loop {
            // Compare the recent commits with the new index, and the writes with those that
            // were saved; switch if none is missing.
            let objects = {
                let mut head = poison::write(state);
                let missing = head.map.missing_in(&owners);
                let is_owned = |index| head.map.owner(index) == Some(old);
                if missing.is_empty() && self.data.switch_head(to, &saved, is_owned) {
                    // Under the same lock, or a commit in between would be lost.
                    head.info = info;
                    head.map.switch_head(to, owners, recommitted);
                    return Ok(true);
                }
                let mut unflushed = self.data.unflushed(old);
                unflushed
                    .retain(|&index, number| saved.get(&index) != Some(number) && is_owned(index));
                let missing = missing.into_iter().map(|(index, _before)| (index, None));
                let unflushed = unflushed.into_iter().map(|(index, n)| (index, Some(n)));
                missing.chain(unflushed).collect::<BTreeMap<_, _>>()
            };
            tracing::info!(
                "{}: redoing {} writes that raced with a snapshot",
                info.name,
                objects.len()
            );
            // Copy the objects and commit them in the new head.
            let outcomes: Vec<_> = stream::iter(objects)
                .map(|(index, number)| {
                    let len = number.map(|_| object_len);
                    let owner = owners.get(index);
                    let is_others = owner == Some(to) && !saved.contains_key(&index);
                    async move {
                        let done = match is_others {
                            // Another client has written it in the new head.
                            true => Ok(Migrated::Done),
                            false => self.migrate(old, to, index, len, owner != Some(to)).await,
                        };
                        done.map(|done| (index, number, done))
                    }
                })
                .buffered(PARALLEL_OBJECTS)
                .collect()
                .await;
            // Return only after all have ended: none may be in flight after that.
            for outcome in outcomes {
                let (index, number, migrated) = outcome?;
                match migrated {
                    Migrated::Frozen => return Ok(false),
                    // The next round compares again.
                    Migrated::Nothing => continue,
                    Migrated::Done => {}
                }
                saved.extend(number.map(|number| (index, number)));
                let before = owners.get(index);
                if before != Some(to) {
                    owners.set(index, Some(to));
                    recommitted.push((index, before));
                }
            }
        }
    }

    /// Makes an object of `to` as `old` has it, or as the cache has that, of `unflushed`
    /// bytes, and commits it there.
    ///
    /// No other task creates the object: until the switch all use the old head.
    async fn migrate(
        &self,
        old: Vid,
        to: Vid,
        index: ObjectIndex,
        unflushed: Option<u32>,
        commit: bool,
    ) -> Result<Migrated, RecoveryError> {
        let lock = self
            .locks
            .lock(index)
            .await
            .map_err(RecoveryError::Locked)?;
        let cluster = |error| RecoveryError::Cluster(Arc::new(error));
        let created = match unflushed {
            None => self.io.copy(old, to, index, &lock).await,
            Some(len) => {
                let whole = Extent {
                    index,
                    offset: 0,
                    len,
                };
                let Some(data) = self
                    .data
                    .read_unflushed(old, whole)
                    .await
                    .map_err(cluster)?
                else {
                    return Ok(Migrated::Nothing);
                };
                self.io.create(to, None, whole, data, &lock).await
            }
        };
        match created {
            Ok(()) if commit => {}
            Ok(()) => return Ok(Migrated::Done),
            Err(error) if error.is_read_only() => return Ok(Migrated::Frozen),
            Err(error) => {
                lock.abandon(&error);
                return Err(cluster(error));
            }
        }
        let committed = self
            .committer
            .commit_slot(to, index, Arc::clone(&lock))
            .await;
        match committed {
            Ok(CommitOutcome::Head) => Ok(Migrated::Done),
            Ok(CommitOutcome::Frozen) => Ok(Migrated::Frozen),
            Err(error) => {
                lock.abandon(&error);
                Err(RecoveryError::Cluster(error))
            }
        }
    }
}
