//! Publishes new objects in the index of their VDI.
//!
//! Updates that are ready together go out together: while a few batches are on
//! their way the next one gathers. Each batch is cut into runs of neighbouring
//! slots, one request each, and nothing but newly made slots is in them, since
//! repeating an inherited one corrupts its reference count (protocol 4.5).
//! After the batch an empty write to one of its objects tells whether the VDI
//! became a snapshot meanwhile: a server refuses it from before it reads the
//! inode for the snapshot, so success means that the update will be in there
//! (protocol 7.4).
//!
//! The index of a hypervolume is a tree that one batch changes at a time; each
//! rewrites its root, so there is all the more to gain from gathering.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::join_all;
use sheep_client::call::KeepAlive;
use sheep_client::{Call, Client, ClientError, IndexTree};
use sheep_proto::{ObjectIndex, Oid, ResultCode, Vid};
use tokio::sync::oneshot;

use crate::slot_guard::SharedGuard;

/// Slots in one request; a server does work for each before it answers.
const MAX_RUN: usize = 1024;

/// Longest wait for a change of a tree that a silent sheep keeps.
const FENCE_TIMEOUT: Duration = Duration::from_secs(60);
/// Batches on their way at once, so that a slow one does not hold up the rest.
const MAX_BATCHES: usize = 4;

/// What became of a published slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Published {
    /// It is in the index of a working VDI.
    Working,
    /// The VDI has become a snapshot; its successor may not have the slot.
    Snapshot,
}

type Outcome = Result<Published, Arc<ClientError>>;

/// Gathers index updates of a volume.
#[derive(Debug)]
pub(crate) struct IndexWriter {
    client: Client,
    /// The index of a hypervolume.
    tree: Option<tokio::sync::Mutex<IndexTree>>,
    /// Held by every request that changes the tree until it cannot run any
    /// more: a late root would take the newer slots away.
    fence: Arc<tokio::sync::Mutex<()>>,
    queue: Mutex<Queue>,
}

#[derive(Debug, Default)]
struct Queue {
    waiting: Vec<Update>,
    /// Tasks that are sending; each takes what is waiting when it is done.
    sending: usize,
}

#[derive(Debug)]
struct Update {
    vid: Vid,
    index: ObjectIndex,
    guard: SharedGuard,
    done: oneshot::Sender<Outcome>,
}

impl IndexWriter {
    /// For a VDI with a flat index, or for a hypervolume and its `tree`.
    pub(crate) fn new(client: Client, tree: Option<IndexTree>) -> Arc<Self> {
        Arc::new(Self {
            client,
            tree: tree.map(tokio::sync::Mutex::new),
            fence: Arc::default(),
            queue: Mutex::default(),
        })
    }

    /// Sets the slot of an object that `vid` has just made.
    ///
    /// `guard` is the slot's.
    pub(crate) async fn publish(
        self: &Arc<Self>,
        vid: Vid,
        index: ObjectIndex,
        guard: SharedGuard,
    ) -> Outcome {
        let (done, outcome) = oneshot::channel();
        let start = {
            let mut queue = self.queue.lock().expect("no one panics with the queue");
            queue.waiting.push(Update {
                vid,
                index,
                guard,
                done,
            });
            let start = queue.sending < MAX_BATCHES;
            queue.sending += usize::from(start);
            start
        };
        if start {
            tokio::spawn(Arc::clone(self).send_all());
        }
        outcome
            .await
            .expect("the sending task answers every update")
    }

    async fn send_all(self: Arc<Self>) {
        loop {
            let batch = {
                let mut queue = self.queue.lock().expect("no one panics with the queue");
                if queue.waiting.is_empty() {
                    queue.sending -= 1;
                    return;
                }
                std::mem::take(&mut queue.waiting)
            };
            self.send_batch(batch).await;
        }
    }

    async fn send_batch(&self, mut batch: Vec<Update>) {
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
        let states = join_all(probes.iter().map(|&(vid, index)| self.state(vid, index))).await;

        let outcomes = written.into_iter().flatten().collect::<Vec<_>>();
        for (update, written) in batch.into_iter().zip(outcomes) {
            let at = probes
                .binary_search_by_key(&update.vid, |&(vid, _)| vid)
                .expect("each VID of the batch was probed");
            let outcome = written.and_then(|()| states[at].clone());
            // The volume may have been dropped with its callers.
            let _ = update.done.send(outcome);
        }
    }

    /// Writes a run and repeats its outcome for each of its updates.
    async fn write_run(&self, run: &[Update]) -> Vec<Result<(), Arc<ClientError>>> {
        let (vid, first) = (run[0].vid, run[0].index);
        let owners = vec![Some(vid); run.len()];
        let outcome = self
            .client
            .write_slots_holding(vid, first, &owners, &keep_alive(run))
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
        let mut keep = keep_alive(batch);
        match self.pass_fence().await {
            Ok(fence) => keep.push(fence),
            Err(error) => return vec![Err(Arc::new(error)); batch.len()],
        }
        let mut tree = tree.lock().await;
        let outcome = self
            .client
            .insert_tree_slots_holding(&mut tree, &slots, &keep)
            .await;
        vec![outcome.map_err(Arc::new); batch.len()]
    }

    /// Takes over the index of a hypervolume as it was just read; false when
    /// an update is under way. Anything but a hypervolume has none to replace.
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

    /// Removes an object of a hypervolume and clears its slot. When that fails
    /// the object must not be used before it is made again.
    ///
    /// The caller holds the slot's guard.
    pub(crate) async fn discard(
        &self,
        vid: Vid,
        index: ObjectIndex,
        guard: SharedGuard,
    ) -> Result<(), ClientError> {
        let Some(tree) = &self.tree else {
            return Err(ClientError::Unsuitable(
                "only objects of a hypervolume are discarded",
            ));
        };
        let fence = self.pass_fence().await?;
        let mut tree = tree.lock().await;
        let call = Call::discard_object(Oid::data(vid, index))
            .holding(guard)
            .holding(fence);
        let outcome = self.client.call(call).await.map(drop);
        tree.discarded(index);
        outcome
    }

    async fn pass_fence(&self) -> Result<KeepAlive, ClientError> {
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
        let probe = self
            .client
            .write_object(Oid::data(vid, index), 0, Bytes::new())
            .await;
        match probe {
            Ok(()) => Ok(Published::Working),
            Err(error) if error.code() == Some(ResultCode::ReadOnly) => Ok(Published::Snapshot),
            Err(error) => Err(Arc::new(error)),
        }
    }
}

/// The guards of some updates, for a request to hold.
fn keep_alive(updates: &[Update]) -> Vec<KeepAlive> {
    updates
        .iter()
        .map(|update| Arc::clone(&update.guard) as KeepAlive)
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
        fn runs_hold_every_update_once_and_nothing_between(
            slots in prop::collection::btree_set((1u32..3, 0u32..4000), 0..300),
        ) {
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            let guards = Arc::new(crate::slot_guard::SlotGuards::default());
            let guard = runtime.block_on(guards.acquire(ObjectIndex(0))).unwrap();
            let batch: Vec<_> = slots
                .iter()
                .map(|&(vid, index)| Update {
                    vid: Vid::new(vid).unwrap(),
                    index: ObjectIndex(index),
                    guard: Arc::clone(&guard),
                    done: oneshot::channel().0,
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
