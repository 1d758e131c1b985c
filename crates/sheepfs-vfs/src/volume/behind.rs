//! Writes that are answered before they are on the cluster, for handles that go
//! through the page cache.
//!
//! ```text
//! write 4 KiB, write 4 KiB, ...  -> appended to the run, answered at once
//! run full, or the next write is elsewhere, or a moment has passed
//!                                -> one write of the run, under way
//! sync, close, or a read of these bytes
//!                                -> waits until it has ended
//! ```
//!
//! What a run or a write under way holds is not read from the cluster, and not
//! written a second time, before it is there: whoever touches these bytes waits
//! first. How much is held is bounded, for one volume and for all of a process;
//! a writer that is faster than the cluster waits for it. What could not be
//! written is counted, and whoever has seen a lower count is told. After a loss
//! nothing is gathered until a write has succeeded again.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::sync::Notify;
use tokio::time::Instant;

use super::{Done, Volume};
use crate::error::FsError;

/// Bytes of one run: what the cluster takes in one write at full speed.
const RUN_BYTES: usize = 1 << 20;
/// Bytes held before writers wait.
const MAX_HELD: usize = 16 << 20;
/// Bytes held by all volumes of this process before writers wait.
const MAX_HELD_BY_ALL: usize = 256 << 20;
/// Writes under way before writers wait; more would only queue in the client.
const MAX_UNDER_WAY: usize = 256;
/// Age at which a run goes to the cluster although nobody asks.
const RUN_AGE: Duration = Duration::from_millis(200);

/// Between two looks whether a sheep is still reachable.
const LOOK_PAUSE: Duration = Duration::from_millis(100);

/// What all volumes hold: memory is the process's.
static HELD_BY_ALL: AtomicUsize = AtomicUsize::new(0);

/// How many gathered writes of a volume could not be written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Losses(u64);

/// What a volume still has to write.
#[derive(Debug, Default)]
pub(super) struct Behind {
    /// Bytes in the run and under way. It grows before its write is answered,
    /// so that whoever knows of the write finds it here.
    held: AtomicUsize,
    state: Mutex<State>,
    /// Tells those that wait that a write has ended.
    ended: Notify,
}

#[derive(Debug, Default)]
struct State {
    run: Option<Run>,
    /// Writes on their way, in the order they were sent.
    under_way: BTreeMap<u64, Range<u64>>,
    next: u64,
    losses: Losses,
    /// Why the last one was lost.
    last_loss: Option<FsError>,
    /// Nothing has been written since.
    failing: bool,
    /// Whether a task looks after the age of the run.
    watched: bool,
}

/// Bytes that follow each other, in one object.
#[derive(Debug)]
struct Run {
    offset: u64,
    data: BytesMut,
    since: Instant,
}

impl Run {
    fn range(&self) -> Range<u64> {
        self.offset..self.offset + self.data.len() as u64
    }

    /// Takes `data` over when it begins in the run or where the run ends.
    /// Returns how many bytes it has grown by.
    fn absorb(&mut self, offset: u64, data: &[u8]) -> Option<usize> {
        let range = self.range();
        if !(range.start..=range.end).contains(&offset) {
            return None;
        }
        let at = usize::try_from(offset - self.offset).ok()?;
        if at + data.len() > RUN_BYTES {
            return None;
        }
        let (again, new) = data.split_at(data.len().min(self.data.len() - at));
        self.data[at..at + again.len()].copy_from_slice(again);
        self.data.extend_from_slice(new);
        Some(new.len())
    }
}

/// A run that was taken out of the state, to be written.
struct Taken {
    number: u64,
    offset: u64,
    data: Bytes,
}

impl State {
    /// Moves the run to the writes under way; the caller must write it.
    fn take_run(&mut self) -> Option<Taken> {
        let run = self.run.take()?;
        Some(self.send(run.offset, run.data.freeze()))
    }

    /// Counts a write as under way; the caller must write it.
    fn send(&mut self, offset: u64, data: Bytes) -> Taken {
        let number = self.next;
        self.next += 1;
        let range = offset..offset + data.len() as u64;
        self.under_way.insert(number, range);
        Taken {
            number,
            offset,
            data,
        }
    }

    fn is_under_way(&self, range: &Range<u64>) -> bool {
        self.under_way.values().any(|other| overlap(other, range))
    }
}

fn overlap(one: &Range<u64>, other: &Range<u64>) -> bool {
    one.start < other.end && other.start < one.end
}

impl Behind {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no one panics with the state")
    }

    fn is_empty(&self) -> bool {
        self.held.load(Ordering::Acquire) == 0
    }

    fn hold(&self, len: usize) {
        HELD_BY_ALL.fetch_add(len, Ordering::Relaxed);
        self.held.fetch_add(len, Ordering::Release);
    }

    fn let_go(&self, len: usize) {
        self.held.fetch_sub(len, Ordering::Release);
        HELD_BY_ALL.fetch_sub(len, Ordering::Relaxed);
    }

    /// Whether a share of the bounds, one in `parts`, is used up.
    fn is_full(&self, state: &State, parts: usize) -> bool {
        state.under_way.len() >= MAX_UNDER_WAY / parts
            || self.held.load(Ordering::Acquire) >= MAX_HELD / parts
            || HELD_BY_ALL.load(Ordering::Relaxed) >= MAX_HELD_BY_ALL
    }

    /// Whether any byte of the range is not on the cluster yet.
    pub(super) fn holds(&self, offset: u64, len: u64) -> bool {
        if self.is_empty() {
            return false;
        }
        let range = offset..offset.saturating_add(len);
        let state = self.state();
        let in_run = state.run.as_ref().map(Run::range);
        in_run.is_some_and(|run| overlap(&run, &range)) || state.is_under_way(&range)
    }
}

impl Drop for Behind {
    fn drop(&mut self) {
        self.let_go(self.held.load(Ordering::Acquire));
    }
}

impl Volume {
    /// Takes `data` at byte `offset` to write it soon, and runs `done` with the
    /// number of bytes taken, as [`Volume::write`] does with those written.
    ///
    /// Does not block. `done` has to wait while as much is held as may be. The
    /// data is safe when [`Volume::flush`], [`Volume::sync`] or [`Volume::close`]
    /// has returned; a volume that is dropped before loses it.
    pub fn write_behind(&self, offset: u64, data: Bytes, done: Done<u32>) {
        let (data, len) = match self.accept(offset, data) {
            Ok(accepted) => accepted,
            Err(error) => return done(Err(error)),
        };
        if len == 0 {
            return done(Ok(0));
        }
        let range = offset..offset + u64::from(len);
        let mut taken = Vec::new();
        {
            let mut state = self.behind.state();
            let full = self.behind.is_full(&state, 1);
            // Or there is nothing here to wait for: it is others who hold so much.
            if state.failing || full && self.behind.is_empty() {
                drop(state);
                return self.write_at_once(offset, data, done);
            }
            if full || state.is_under_way(&range) {
                drop(state);
                return self.write_behind_later(offset, data, done);
            }
            let absorbed = match &mut state.run {
                Some(run) if self.in_one_object(run.offset, range.end) => run.absorb(offset, &data),
                _ => None,
            };
            let grown = absorbed.unwrap_or(data.len());
            if absorbed.is_none() {
                taken.extend(state.take_run());
                if state.is_under_way(&range) {
                    // The run had some of these bytes.
                    drop(state);
                    self.write_out(taken);
                    return self.write_behind_later(offset, data, done);
                }
                if data.len() >= RUN_BYTES {
                    taken.push(state.send(offset, data));
                } else {
                    state.run = Some(Run {
                        offset,
                        data: data.as_ref().into(),
                        since: Instant::now(),
                    });
                }
            }
            self.behind.hold(grown);
            let complete = state.run.as_ref().is_some_and(|run| {
                run.data.len() >= RUN_BYTES || !self.in_one_object(run.offset, run.range().end + 1)
            });
            if complete {
                taken.extend(state.take_run());
            } else if state.run.is_some() && !std::mem::replace(&mut state.watched, true) {
                self.watch_run();
            }
        }
        done(Ok(len));
        self.write_out(taken);
    }

    /// Waits for what is in the way, then goes on.
    fn write_behind_later(&self, offset: u64, data: Bytes, done: Done<u32>) {
        let volume = self.arc();
        self.runtime.spawn(async move {
            let range = offset..offset + data.len() as u64;
            loop {
                let ended = volume.behind.ended.notified();
                let (in_the_way, nothing_ends) = {
                    let state = volume.behind.state();
                    let full = volume.behind.is_full(&state, 2) && !volume.behind.is_empty();
                    let in_the_way = full || state.is_under_way(&range);
                    (in_the_way, state.under_way.is_empty())
                };
                if !in_the_way {
                    break;
                }
                if nothing_ends {
                    // The run is all that is held.
                    volume.write_run_out();
                }
                ended.await;
            }
            volume.write_behind(offset, data, done);
        });
    }

    /// Writes behind what was taken before, and answers with what becomes of it.
    fn write_at_once(&self, offset: u64, data: Bytes, done: Done<u32>) {
        let volume = self.arc();
        self.runtime.spawn(async move {
            volume.settle_behind().await;
            let recovering = Arc::clone(&volume);
            let done = move |written: Result<u32, FsError>| {
                if written.is_ok() {
                    recovering.behind.state().failing = false;
                }
                done(written);
            };
            volume.write_through(offset, data, Box::new(done));
        });
    }

    /// Whether `[start, end)` lies in one object.
    fn in_one_object(&self, start: u64, end: u64) -> bool {
        let shift = self.head().info.object_shift;
        start >> shift == (end - 1) >> shift
    }

    /// Writes the run out when it has become old, until there is none.
    fn watch_run(&self) {
        let volume = self.me.clone();
        self.runtime.spawn(async move {
            let mut old = Instant::now() + RUN_AGE;
            loop {
                tokio::time::sleep_until(old).await;
                // Who drops a volume without closing it gives this up.
                let Some(volume) = volume.upgrade() else {
                    return;
                };
                let taken = {
                    let mut state = volume.behind.state();
                    let Some(run) = &state.run else {
                        state.watched = false;
                        return;
                    };
                    old = run.since + RUN_AGE;
                    (old <= Instant::now()).then(|| state.take_run()).flatten()
                };
                volume.write_out(taken);
            }
        });
    }

    fn write_run_out(&self) {
        let taken = self.behind.state().take_run();
        self.write_out(taken);
    }

    fn write_out(&self, taken: impl IntoIterator<Item = Taken>) {
        for Taken {
            number,
            offset,
            data,
        } in taken
        {
            let volume = self.arc();
            let len = data.len();
            let done = move |written: Result<u32, FsError>| {
                let failed = match written {
                    Ok(written) if written as usize == len => None,
                    Ok(written) => Some(FsError::PastEnd(offset + u64::from(written))),
                    Err(error) => Some(error),
                };
                {
                    let mut state = volume.behind.state();
                    state.under_way.remove(&number);
                    volume.behind.let_go(len);
                    if let Some(error) = failed {
                        volume.note_loss(&mut state, offset, len, error);
                    }
                }
                volume.behind.ended.notify_waiters();
            };
            self.write_through(offset, data, Box::new(done));
        }
    }

    /// Waits until what was taken before is on the cluster, or cannot be.
    pub(crate) async fn settle_behind(&self) {
        if self.behind.is_empty() {
            return;
        }
        self.write_run_out();
        let before = self.behind.state().next;
        loop {
            let ended = self.behind.ended.notified();
            let first = self.behind.state().under_way.keys().next().copied();
            if first.is_none_or(|first| first >= before) {
                return;
            }
            ended.await;
        }
    }

    /// The first of several in a row is worth a line in the log.
    fn note_loss(&self, state: &mut State, offset: u64, len: usize, error: FsError) {
        if !std::mem::replace(&mut state.failing, true) {
            tracing::error!(
                offset,
                len,
                "lost what was written to {}: {error}; more may be lost until a write succeeds",
                self.selector
            );
        }
        state.losses.0 += 1;
        state.last_loss = Some(error);
    }

    /// How much was lost so far, for [`Volume::flush`].
    pub fn losses(&self) -> Losses {
        self.behind.state().losses
    }

    /// Waits until what was taken before is on the cluster.
    ///
    /// # Errors
    /// When a gathered write was lost since there were `known` losses: why the
    /// last one was.
    pub async fn flush(&self, known: Losses) -> Result<(), FsError> {
        self.settle_behind().await;
        self.lost_since(known)
    }

    /// As [`Volume::flush`] for close(2), which does not wait while no sheep is
    /// reachable: every exec(2) closes files, that of a sheep as well.
    ///
    /// # Errors
    /// As [`Volume::flush`], as far as it is known.
    pub(crate) async fn flush_while_reachable(&self, known: Losses) -> Result<(), FsError> {
        self.while_reachable(self.settle_behind()).await;
        self.settle_while_reachable().await;
        self.lost_since(known)
    }

    /// Waits for what nobody has asked for: objects that are made ahead.
    pub(crate) async fn settle_while_reachable(&self) {
        self.while_reachable(self.ahead.settle()).await;
    }

    async fn while_reachable(&self, work: impl Future<Output = ()>) {
        let unreachable = async {
            while self.client.peer().is_some() {
                tokio::time::sleep(LOOK_PAUSE).await;
            }
        };
        tokio::select! {
            biased;
            () = work => {}
            () = unreachable => {}
        }
    }

    fn lost_since(&self, known: Losses) -> Result<(), FsError> {
        let state = self.behind.state();
        match &state.last_loss {
            Some(error) if state.losses > known => Err(error.clone()),
            _ => Ok(()),
        }
    }
}
