//! Asking the cluster for slots, for reads that may not believe the cached ones.
//!
//! ```text
//! read ─┐
//! read ─┼─► waiting ──► one question: runs of slots ──► object map, readers
//! read ─┘      ▲                                            │
//!              └───────────── the next question ◄───────────┘
//! ```
//!
//! Another client that writes into a hole, or copies an inherited object, tells
//! nobody. So a slot that is not the head's own is asked for with every read that
//! needs it, unless the VDI's lock keeps other writers out. A question serves all
//! reads that began before it was sent; a few are under way at once, and reads
//! that come meanwhile share the next one.

use std::collections::HashMap;
use std::ops::RangeInclusive;
use std::sync::{Arc, Mutex, MutexGuard};

use sheep_client::ClientError;
use sheep_proto::{ObjectIndex, Vid};
use tokio::sync::oneshot;

use super::object_map::Revalidation;
use super::{Volume, tree_owners};
use crate::error::FsError;

/// Questions under way at once: one reader never waits for another's, and
/// many readers share them.
const MAX_QUESTIONS: usize = 4;
/// Unwanted slots between two wanted ones that are rather read along than skipped
/// with a request of its own.
const MAX_GAP: u32 = 1024;
/// Slots in one request: 16 KiB.
const MAX_RUN: u32 = 4096;

/// A slot as the cluster has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct SlotAnswer {
    /// The head that was asked about.
    pub(super) head: Vid,
    /// The owner in its index.
    pub(super) owner: Option<Vid>,
}

type Done = Box<dyn FnOnce(Result<SlotAnswer, FsError>) + Send>;

/// Reads that wait for a slot, and how many questions are under way.
#[derive(Default)]
pub(super) struct SlotQueries {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    waiting: Vec<(ObjectIndex, Done)>,
    under_way: usize,
}

impl std::fmt::Debug for SlotQueries {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SlotQueries").finish_non_exhaustive()
    }
}

impl SlotQueries {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state
            .lock()
            .expect("nothing is called while it is held")
    }
}

/// The requests of one question until the last is answered.
struct Question {
    volume: Arc<Volume>,
    token: Revalidation,
    progress: Mutex<Progress>,
}

struct Progress {
    requests_left: usize,
    readers: Vec<(ObjectIndex, Done)>,
    owners: HashMap<ObjectIndex, Option<Vid>>,
    error: Option<FsError>,
}

impl Volume {
    /// Asks the cluster for a slot and runs `done` with the answer, which is no
    /// older than this call. Does not block.
    pub(super) fn query_slot(
        self: &Arc<Self>,
        index: ObjectIndex,
        done: impl FnOnce(Result<SlotAnswer, FsError>) + Send + 'static,
    ) {
        {
            let mut state = self.slot_queries.state();
            state.waiting.push((index, Box::new(done)));
            if state.under_way == MAX_QUESTIONS {
                return;
            }
            state.under_way += 1;
        }
        self.send_question();
    }

    /// The same as a future.
    ///
    /// # Errors
    /// `VolumeIo` when the cluster does not answer.
    pub(super) async fn queried_slot(
        self: &Arc<Self>,
        index: ObjectIndex,
    ) -> Result<SlotAnswer, FsError> {
        let (done, answer) = oneshot::channel();
        // The reader may have gone.
        self.query_slot(index, |result| drop(done.send(result)));
        answer.await.expect("every question is answered")
    }

    /// Sends a question for all that wait, or ends the turn when none does.
    fn send_question(self: &Arc<Self>) {
        let readers = {
            let mut state = self.slot_queries.state();
            let readers = std::mem::take(&mut state.waiting);
            if readers.is_empty() {
                state.under_way -= 1;
                return;
            }
            readers
        };
        let (token, hypervolume) = {
            let mut head = self.head_mut();
            (head.map.revalidate(), head.info.hypervolume)
        };
        let runs = match hypervolume {
            true => Vec::new(),
            false => runs(readers.iter().map(|&(index, _)| index.0)),
        };
        let vid = token.head();
        let question = Arc::new(Question {
            volume: Arc::clone(self),
            token,
            progress: Mutex::new(Progress {
                requests_left: runs.len(),
                readers,
                owners: HashMap::new(),
                error: None,
            }),
        });
        if hypervolume {
            self.runtime.spawn(question.ask_tree());
            return;
        }
        for run in runs {
            let question = Arc::clone(&question);
            let first = ObjectIndex(*run.start());
            let count = run.end() - run.start() + 1;
            self.client
                .submit_slots(vid, first, count, move |read| question.note(first, read));
        }
    }
}

impl Question {
    /// Notes the answer to one request; after the last, answers the readers.
    fn note(self: Arc<Self>, first: ObjectIndex, read: Result<Vec<Option<Vid>>, ClientError>) {
        let mut progress = self.progress();
        match read {
            Ok(owners) => {
                let indexes = (first.0..).map(ObjectIndex);
                progress.owners.extend(indexes.zip(owners));
            }
            Err(error) => progress.error = Some(self.volume.failed(error)),
        }
        progress.requests_left -= 1;
        if progress.requests_left > 0 {
            return;
        }
        let owners = std::mem::take(&mut progress.owners);
        let answers = match progress.error.take() {
            Some(error) => Err(error),
            None => Ok(owners),
        };
        drop(progress);
        self.answer(answers);
    }

    /// Reads the tree of a hypervolume, which holds all slots.
    async fn ask_tree(self: Arc<Self>) {
        let info = self.volume.info();
        let read = self.volume.client.read_tree(&info).await;
        let answers = match read {
            Ok(tree) => {
                let owners = tree_owners(&tree, &info);
                let progress = self.progress();
                let wanted = progress.readers.iter().map(|&(index, _)| index);
                Ok(wanted.map(|index| (index, owners.get(index))).collect())
            }
            Err(error) => Err(self.volume.failed(error)),
        };
        self.answer(answers);
    }

    fn answer(self: Arc<Self>, answers: Result<HashMap<ObjectIndex, Option<Vid>>, FsError>) {
        if let Ok(owners) = &answers {
            let slots = owners.iter().map(|(&index, &owner)| (index, owner));
            self.volume.observe(&self.token, slots);
        }
        let head = self.token.head();
        let readers = std::mem::take(&mut self.progress().readers);
        for (index, done) in readers {
            done(
                answers
                    .as_ref()
                    .map_err(Clone::clone)
                    .map(|owners| SlotAnswer {
                        head,
                        owner: owners.get(&index).copied().flatten(),
                    }),
            );
        }
        self.volume.send_question();
    }

    fn progress(&self) -> MutexGuard<'_, Progress> {
        self.progress.lock().expect("collecting does not panic")
    }
}

/// Cuts slots, in any order, into runs that are worth a request each.
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
        fn runs_hold_every_slot_and_stay_short(
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
