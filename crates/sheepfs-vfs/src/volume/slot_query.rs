//! Slot queries: reads of the index for data reads that cannot trust the cached slots.
//!
//! ```text
//! read ─┐
//! read ─┼─► waiting ──► one query: runs of slots ──────► object map, readers
//! read ─┘      ▲                                            │
//!              └────────────── the next query ◄─────────────┘
//! ```
//!
//! Another client can write into a hole or copy up an inherited object, and this client
//! gets no notification. So every read of a slot that the head does not own queries
//! that slot, unless the VDI's lock excludes other writers. A query serves all reads
//! that began before it was sent. Up to `MAX_QUERIES` are in flight; reads that arrive
//! meanwhile share the next one.

use std::collections::HashMap;
use std::ops::RangeInclusive;
use std::sync::{Arc, Mutex, MutexGuard};

use sheep_client::ClientError;
use sheep_proto::{ObjectIndex, Vid};
use tokio::runtime::Handle;
use tokio::sync::oneshot;

use super::error::VolumeError;
use super::head::{Head, SlotView};
use super::head_state::tree_owners;
use super::object_map::Revalidation;
use crate::poison;

/// Queries in flight: a single reader never waits for the query of another one, and many
/// readers share queries.
const MAX_QUERIES: usize = 4;
/// Largest gap between two wanted slots that one request reads through; a larger one
/// splits it into two requests.
const MAX_GAP: u32 = 1024;
/// Slots in one request: 16 KiB.
const MAX_RUN: u32 = 4096;

type Done = Box<dyn FnOnce(Result<SlotView, VolumeError>) + Send>;

/// Reads that wait for a slot, and the number of queries in flight.
pub(super) struct SlotQueries {
    head: Arc<Head>,
    runtime: Handle,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    waiting: Vec<(ObjectIndex, Done)>,
    in_flight: usize,
}

impl std::fmt::Debug for SlotQueries {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SlotQueries").finish_non_exhaustive()
    }
}

impl SlotQueries {
    pub(super) fn new(head: Arc<Head>, runtime: Handle) -> Arc<Self> {
        Arc::new(Self {
            head,
            runtime,
            state: Mutex::default(),
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        poison::lock(&self.state)
    }

    /// Queries a slot and runs `completion` with it; the result is not older than this call. Does not block.
    pub(super) fn query_slot(
        self: &Arc<Self>,
        index: ObjectIndex,
        completion: impl FnOnce(Result<SlotView, VolumeError>) + Send + 'static,
    ) {
        {
            let mut state = self.state();
            state.waiting.push((index, Box::new(completion)));
            if state.in_flight == MAX_QUERIES {
                return;
            }
            state.in_flight += 1;
        }
        self.send_query();
    }

    /// [`Self::query_slot`] as a future.
    ///
    /// # Errors
    /// `Io` when the cluster does not answer.
    async fn query_slot_async(
        self: &Arc<Self>,
        index: ObjectIndex,
    ) -> Result<SlotView, VolumeError> {
        let (completion, answer) = oneshot::channel();
        // The reader may have been dropped.
        self.query_slot(index, |result| drop(completion.send(result)));
        answer.await.expect("a query completes each of its readers")
    }

    /// The head and the owner of an object, no older than this call.
    ///
    /// # Errors
    /// `Io` when the cluster does not answer, `Stale`.
    pub(super) async fn current_slot(
        self: &Arc<Self>,
        index: ObjectIndex,
    ) -> Result<SlotView, VolumeError> {
        self.head.ensure_live()?;
        let (view, slot) = {
            let head = self.head.state();
            let (vid, owner) = (head.info.vid, head.map.owner(index));
            (SlotView { head: vid, owner }, head.map.slot(index))
        };
        match self.head.is_cache_valid(slot) {
            true => Ok(view),
            false => self.query_slot_async(index).await,
        }
    }

    /// Sends a query for all waiting reads; if there are none, ends this chain of queries.
    fn send_query(self: &Arc<Self>) {
        // Take all waiting reads.
        let readers = {
            let mut state = self.state();
            let readers = std::mem::take(&mut state.waiting);
            if readers.is_empty() {
                state.in_flight -= 1;
                return;
            }
            readers
        };
        // Begin the revalidation before the first request is sent.
        let hypervolume = self.head.state().info.hypervolume;
        let token = self.head.begin_revalidation();
        let runs = match hypervolume {
            true => Vec::new(),
            false => runs(readers.iter().map(|&(index, _)| index.0)),
        };
        let vid = token.head();
        let query = Arc::new(Query {
            queries: Arc::clone(self),
            token,
            progress: Mutex::new(Progress {
                requests_left: runs.len(),
                readers,
                owners: HashMap::new(),
                error: None,
            }),
        });
        // One task for a tree, one request per run for a flat index.
        if hypervolume {
            self.runtime.spawn(query.query_tree());
            return;
        }
        for run in runs {
            let query = Arc::clone(&query);
            let first = ObjectIndex(*run.start());
            let count = run.end() - run.start() + 1;
            self.head
                .client
                .inode(vid)
                .submit_read_slots(first, count, move |read| {
                    query.complete_request(first, read)
                });
        }
    }
}

/// A query until the last of its requests completes.
struct Query {
    queries: Arc<SlotQueries>,
    token: Revalidation,
    progress: Mutex<Progress>,
}

struct Progress {
    requests_left: usize,
    readers: Vec<(ObjectIndex, Done)>,
    owners: HashMap<ObjectIndex, Option<Vid>>,
    error: Option<VolumeError>,
}

impl Query {
    /// Records the response of one request; the last one completes the readers.
    fn complete_request(
        self: Arc<Self>,
        first: ObjectIndex,
        read: Result<Vec<Option<Vid>>, ClientError>,
    ) {
        let mut progress = self.progress();
        match read {
            Ok(owners) => {
                let indexes = (first.0..).map(ObjectIndex);
                progress.owners.extend(indexes.zip(owners));
            }
            Err(error) => progress.error = Some(self.queries.head.io_error(error)),
        }
        progress.requests_left -= 1;
        if progress.requests_left > 0 {
            return;
        }
        let owners = std::mem::take(&mut progress.owners);
        let result = match progress.error.take() {
            Some(error) => Err(error),
            None => Ok(owners),
        };
        drop(progress);
        self.complete(result);
    }

    /// Reads the index tree of a hypervolume, which has all slots.
    async fn query_tree(self: Arc<Self>) {
        let info = self.queries.head.info();
        let read = self.queries.head.client.index(&info).tree().await;
        let result = match read {
            Ok(tree) => {
                let owners = tree_owners(&tree, &info);
                let progress = self.progress();
                let wanted = progress.readers.iter().map(|&(index, _)| index);
                Ok(wanted.map(|index| (index, owners.get(index))).collect())
            }
            Err(error) => Err(self.queries.head.io_error(error)),
        };
        self.complete(result);
    }

    fn complete(self: Arc<Self>, result: Result<HashMap<ObjectIndex, Option<Vid>>, VolumeError>) {
        if let Ok(owners) = &result {
            let slots = owners.iter().map(|(&index, &owner)| (index, owner));
            self.queries.head.observe(&self.token, slots);
        }
        let head = self.token.head();
        let readers = std::mem::take(&mut self.progress().readers);
        for (index, completion) in readers {
            completion(
                result
                    .as_ref()
                    .map_err(Clone::clone)
                    .map(|owners| SlotView {
                        head,
                        owner: owners.get(&index).copied().flatten(),
                    }),
            );
        }
        self.queries.send_query();
    }

    fn progress(&self) -> MutexGuard<'_, Progress> {
        poison::lock(&self.progress)
    }
}

/// Splits slots, in any order, into runs of one request each.
fn runs(indexes: impl Iterator<Item = u32>) -> Vec<RangeInclusive<u32>> {
    let mut indexes: Vec<u32> = indexes.collect();
    indexes.sort_unstable();
    let mut runs: Vec<RangeInclusive<u32>> = Vec::new();
    for index in indexes {
        match runs.last_mut() {
            Some(run) if index - run.end() <= MAX_GAP && index - run.start() < MAX_RUN => {
                *run = *run.start()..=index;
            }
            _ => runs.push(index..=index),
        }
    }
    runs
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn slot_query_runs_hold_every_slot(
            indexes in prop::collection::vec(0u32..20_000, 1..200),
        ) {
            let runs = runs(indexes.iter().copied());
            prop_assert!(runs.is_sorted_by(|a, b| a.end() < b.start()));
            for run in &runs {
                prop_assert!(run.end() - run.start() < MAX_RUN);
            }
            for index in indexes {
                prop_assert_eq!(runs.iter().filter(|run| run.contains(&index)).count(), 1);
            }
        }
    }
}
