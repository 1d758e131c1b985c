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
//! first. How much is held is bounded; a writer that is faster than the cluster
//! waits for it. What could not be written is said by the next sync, and by
//! every close until then.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard};
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
/// Age at which a run goes to the cluster although nobody asks.
const RUN_AGE: Duration = Duration::from_millis(200);

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
    /// What the next sync must say.
    failed: Option<FsError>,
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

impl Volume {
    /// Takes `data` at byte `offset` to write it soon, and runs `done` with the
    /// number of bytes taken, as [`Volume::write`] does with those written.
    ///
    /// Does not block. `done` has to wait while as much is held as may be.
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
            let full = self.behind.held.load(Ordering::Acquire) >= MAX_HELD;
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
            self.behind.held.fetch_add(grown, Ordering::Release);
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
            let len = data.len() as u64;
            let in_the_way = || {
                let range = offset..offset + len;
                let full = volume.behind.held.load(Ordering::Acquire) > MAX_HELD / 2;
                full || volume.behind.state().is_under_way(&range)
            };
            loop {
                let ended = volume.behind.ended.notified();
                if !in_the_way() {
                    break;
                }
                // The run may be all that is held.
                volume.write_run_out();
                ended.await;
            }
            volume.write_behind(offset, data, done);
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
            loop {
                tokio::time::sleep(RUN_AGE).await;
                // A volume that is gone was closed before.
                let Some(volume) = volume.upgrade() else {
                    return;
                };
                let old = {
                    let mut state = volume.behind.state();
                    match &state.run {
                        None => {
                            state.watched = false;
                            return;
                        }
                        Some(run) if run.since.elapsed() < RUN_AGE => None,
                        Some(_) => state.take_run(),
                    }
                };
                volume.write_out(old);
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
                let behind = &volume.behind;
                {
                    let mut state = behind.state();
                    state.under_way.remove(&number);
                    behind.held.fetch_sub(len, Ordering::Release);
                    if let Some(error) = failed {
                        tracing::error!(
                            offset,
                            len,
                            "lost what was written to {}: {error}",
                            volume.selector
                        );
                        state.failed.get_or_insert(error);
                    }
                }
                behind.ended.notify_waiters();
            };
            self.write_through(offset, data, Box::new(done));
        }
    }

    /// Waits until what was taken before is on the cluster, or cannot be.
    pub(super) async fn settle_behind(&self) {
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

    /// Waits until what was taken before is on the cluster.
    ///
    /// # Errors
    /// Why something taken since the last [`Volume::sync`] could not be written.
    pub async fn flush(&self) -> Result<(), FsError> {
        self.settle_behind().await;
        match &self.behind.state().failed {
            Some(error) => Err(error.clone()),
            None => Ok(()),
        }
    }

    /// As [`Volume::flush`]; the error is not said again.
    pub(super) async fn flush_and_forget(&self) -> Result<(), FsError> {
        self.settle_behind().await;
        match self.behind.state().failed.take() {
            Some(error) => Err(error),
            None => Ok(()),
        }
    }
}
