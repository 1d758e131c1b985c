//! Commits index entries: sets the slots of new objects, clears those of discarded ones.
//!
//! This is a group commit: while a few batches are in flight the next one collects
//! updates. Each batch is cut into runs of neighbouring slots, one request each,
//! and only newly made slots are in them, because repeating an inherited one
//! corrupts its reference count (protocol 4.5). After the batch one of its objects
//! is probed: success means that no snapshot can miss the batch (protocol 7.4).
//!
//! The index of a hypervolume is a tree that one batch changes at a time; each
//! rewrites its root, so batching saves even more.

use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use futures_util::future::join_all;
use sheep_client::unstable::{InFlightToken, IndexTree, Request};
use sheep_client::{Client, ClientError};
use sheep_proto::{ObjectIndex, Oid, ResultCode, Vid};
use tokio::sync::oneshot;

use super::object_io::{ObjectIo, Probe};
use super::object_lock::SharedObjectLock;
use crate::poison;

/// Slots in one request; the server does work for each before it responds.
const MAX_RUN: usize = 1024;

/// Longest wait for an earlier change of the tree that has timed out.
const FENCE_TIMEOUT: Duration = Duration::from_secs(60);
/// Batches in flight, so that a slow one does not hold up the rest.
const MAX_BATCHES: usize = 4;

/// The outcome of a commit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum CommitOutcome {
    /// It is in the index of a head.
    Head,
    /// The VDI has become a snapshot; the new head may lack the slot.
    Frozen,
}

type Outcome = Result<CommitOutcome, Arc<ClientError>>;

/// Commits the index changes of a volume.
#[derive(Debug)]
pub(crate) struct IndexCommitter {
    client: Client,
    io: ObjectIo,
    /// The index of a hypervolume.
    tree: Option<tokio::sync::Mutex<IndexTree>>,
    /// Pinned by every request that changes the tree until it cannot be executed any
    /// more: a late root would remove newer slots.
    fence: Arc<tokio::sync::Mutex<()>>,
    queue: Mutex<Queue>,
}

#[derive(Debug, Default)]
struct Queue {
    waiting: Vec<Update>,
    /// Commit loops that are running; each takes the waiting updates as its next batch.
    active: usize,
}

#[derive(Debug)]
struct Update {
    vid: Vid,
    index: ObjectIndex,
    lock: SharedObjectLock,
    completion: oneshot::Sender<Outcome>,
}

impl IndexCommitter {
    /// For a VDI with a flat index, or for a hypervolume and its `tree`.
    pub(crate) fn new(client: Client, tree: Option<IndexTree>) -> Arc<Self> {
        Arc::new(Self {
            io: ObjectIo::new(client.clone()),
            client,
            tree: tree.map(tokio::sync::Mutex::new),
            fence: Arc::default(),
            queue: Mutex::default(),
        })
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        poison::lock(&self.queue)
    }

    /// Sets the slot of an object that `vid` has just made. `lock` is the object's.
    ///
    /// # Errors
    /// The error of the cluster; the slot may be set all the same.
    pub(crate) async fn commit_slot(
        self: &Arc<Self>,
        vid: Vid,
        index: ObjectIndex,
        lock: SharedObjectLock,
    ) -> Outcome {
        let (completion, outcome) = oneshot::channel();
        let start = {
            let mut queue = self.queue();
            queue.waiting.push(Update {
                vid,
                index,
                lock,
                completion,
            });
            let start = queue.active < MAX_BATCHES;
            queue.active += usize::from(start);
            start
        };
        if start {
            tokio::spawn(Arc::clone(self).commit_loop());
        }
        outcome
            .await
            .expect("the commit loop completes every update")
    }

    async fn commit_loop(self: Arc<Self>) {
        loop {
            let batch = {
                let mut queue = self.queue();
                if queue.waiting.is_empty() {
                    queue.active -= 1;
                    return;
                }
                std::mem::take(&mut queue.waiting)
            };
            self.commit_batch(batch).await;
        }
    }

    async fn commit_batch(&self, mut batch: Vec<Update>) {
        batch.sort_unstable_by_key(|update| (update.vid, update.index));
        let mut probes: Vec<(Vid, ObjectIndex)> = batch
            .iter()
            .map(|update| (update.vid, update.index))
            .collect();
        probes.dedup_by_key(|&mut (vid, _)| vid);
        let written = match &self.tree {
            None => join_all(runs(&batch).map(|run| self.write_run(run))).await,
            Some(tree) => vec![self.insert(tree, &batch).await],
        };
        // Probe only after the updates have completed.
        let states = join_all(probes.iter().map(|&(vid, index)| self.state(vid, index))).await;

        let outcomes = written.into_iter().flatten().collect::<Vec<_>>();
        for (update, written) in batch.into_iter().zip(outcomes) {
            let at = probes
                .binary_search_by_key(&update.vid, |&(vid, _)| vid)
                .expect("each VID of the batch was probed");
            let outcome = written.and_then(|()| states[at].clone());
            // The caller may have been dropped.
            let _ = update.completion.send(outcome);
        }
    }

    /// Writes a run and repeats its outcome for each of its updates.
    async fn write_run(&self, run: &[Update]) -> Vec<Result<(), Arc<ClientError>>> {
        let (vid, first) = (run[0].vid, run[0].index);
        let owners = vec![Some(vid); run.len()];
        let outcome = self
            .client
            .inode(vid)
            .write_slots_with_tokens(
                first,
                &owners,
                &tokens(run.iter().map(|update| &update.lock)),
            )
            .await;
        vec![outcome.map_err(Arc::new); run.len()]
    }

    async fn insert(
        &self,
        tree: &tokio::sync::Mutex<IndexTree>,
        batch: &[Update],
    ) -> Vec<Result<(), Arc<ClientError>>> {
        let slots: Vec<_> = batch
            .iter()
            .map(|update| (update.index, update.vid))
            .collect();
        let mut tokens = tokens(batch.iter().map(|update| &update.lock));
        match self.acquire_fence().await {
            Ok(fence) => tokens.push(fence),
            Err(error) => return vec![Err(Arc::new(error)); batch.len()],
        }
        let mut tree = tree.lock().await;
        let outcome = tree.commit(self.client.objects(), &slots, &tokens).await;
        vec![outcome.map_err(Arc::new); batch.len()]
    }

    /// Replaces the index tree of a hypervolume by a newly read one; false if an update is
    /// in flight.
    pub(crate) fn replace_tree(&self, new: Option<IndexTree>) -> bool {
        match (&self.tree, new) {
            (Some(tree), Some(new)) => match tree.try_lock() {
                Ok(mut tree) => {
                    *tree = new;
                    true
                }
                Err(_) => false,
            },
            (None, None) => true,
            (Some(_), None) | (None, Some(_)) => false,
        }
    }

    /// Clears slots of a flat index, which are in ascending order. `locks` are
    /// those of the objects.
    ///
    /// # Errors
    /// The error of one of the requests. All are waited for; one
    /// that timed out keeps the locks.
    pub(crate) async fn clear_slots(
        &self,
        vid: Vid,
        indexes: &[ObjectIndex],
        locks: &[SharedObjectLock],
    ) -> Result<(), ClientError> {
        let runs = indexes
            .chunk_by(|a, b| a.0 + 1 == b.0)
            .map(|run| async move {
                let none = vec![None; run.len()];
                self.client
                    .inode(vid)
                    .write_slots_with_tokens(run[0], &none, &tokens(locks))
                    .await
            });
        join_all(runs).await.into_iter().collect()
    }

    /// Removes an object and clears its slot. When that fails the object must not be
    /// used before it is made again. `lock` is the object's.
    ///
    /// With a flat index only where the server counts no references: a server that does
    /// would remove an object that is made again in between.
    ///
    /// # Errors
    /// The error of the cluster.
    pub(crate) async fn discard(
        &self,
        vid: Vid,
        index: ObjectIndex,
        lock: SharedObjectLock,
    ) -> Result<(), ClientError> {
        let request = Request::discard_object(Oid::data(vid, index)).with_token(lock);
        let Some(tree) = &self.tree else {
            return self.client.send(request).await.map(drop);
        };
        let fence = self.acquire_fence().await?;
        let mut tree = tree.lock().await;
        let outcome = self.client.send(request.with_token(fence)).await.map(drop);
        tree.mark_hole(index);
        outcome
    }

    async fn acquire_fence(&self) -> Result<InFlightToken, ClientError> {
        let fence = Arc::clone(&self.fence).lock_owned();
        match tokio::time::timeout(FENCE_TIMEOUT, fence).await {
            Ok(fence) => Ok(Arc::new(fence)),
            Err(_) => Err(ClientError::Unreachable {
                gateway: self.client.address(),
                waited: FENCE_TIMEOUT,
            }),
        }
    }

    async fn state(&self, vid: Vid, index: ObjectIndex) -> Outcome {
        match self.io.probe(vid, index).await {
            Ok(Probe::Writable) => Ok(CommitOutcome::Head),
            Ok(Probe::Frozen) => Ok(CommitOutcome::Frozen),
            Ok(Probe::NoObject) => Err(Arc::new(ClientError::Refused {
                operation: Request::read_object(Oid::data(vid, index), 0, 0).operation(),
                code: ResultCode::NoObj,
            })),
            Err(error) => Err(Arc::new(error)),
        }
    }
}

/// The locks of some objects, for a request to pin.
fn tokens<'a>(locks: impl IntoIterator<Item = &'a SharedObjectLock>) -> Vec<InFlightToken> {
    let locks = locks.into_iter();
    locks
        .map(|lock| Arc::clone(lock) as InFlightToken)
        .collect()
}

/// Cuts sorted updates into runs of neighbours of one VDI.
fn runs(batch: &[Update]) -> impl Iterator<Item = &[Update]> {
    batch
        .chunk_by(|a, b| a.vid == b.vid && a.index.0 + 1 == b.index.0)
        .flat_map(|run| run.chunks(MAX_RUN))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn commit_runs_hold_every_update_once(
            slots in prop::collection::btree_set((1u32..3, 0u32..4000), 0..300),
        ) {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
            let locks = Arc::new(crate::volume::object_lock::ObjectLocks::default());
            let lock = runtime.block_on(locks.lock(ObjectIndex(0))).unwrap();
            let batch: Vec<_> = slots
                .iter()
                .map(|&(vid, index)| Update {
                    vid: Vid::new(vid).unwrap(),
                    index: ObjectIndex(index),
                    lock: Arc::clone(&lock),
                    completion: oneshot::channel().0,
                })
                .collect();
            let mut seen = Vec::new();
            for run in runs(&batch) {
                prop_assert!(run.len() <= MAX_RUN);
                for (at, update) in (0u32..).zip(run) {
                    prop_assert_eq!(update.vid, run[0].vid);
                    prop_assert_eq!(update.index.0, run[0].index.0 + at);
                    seen.push((update.vid.get(), update.index.0));
                }
            }
            prop_assert_eq!(seen, slots.into_iter().collect::<Vec<_>>());
        }
    }
}
