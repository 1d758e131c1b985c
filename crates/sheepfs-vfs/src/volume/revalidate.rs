//! Noticing what other clients did to the VDI: a snapshot, another size, its
//! end, and what they wrote into holes.
//!
//! | asked for | how old an answer may be | by |
//! |---|---|---|
//! | header: snapshot, size, deleted | a second | reads, stat(2), open(2), lseek(2) |
//! | whole index | a second; now at open(2) | stat(2), lseek(2); open(2) |
//! | one slot that is not the head's own | not older than the read | reads (`slot_query.rs`) |
//!
//! Whoever holds the VDI's lock, or has opened a snapshot, need not ask for the
//! index: nobody else may change it.

use std::ops::RangeInclusive;
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, SystemTime};

use futures_util::FutureExt as _;
use futures_util::future::{BoxFuture, Shared};
use sheep_client::{ClientError, VdiInfo, WhichVersion};
use sheep_proto::{ObjectIndex, Vid};
use tokio::time::Instant;

use super::doubt::is_absent;
use super::object_map::{Revalidation, Slot};
use super::{Head, Volume};
use crate::error::FsError;

/// Age up to which what is known of the VDI is believed without asking.
const FRESH_FOR: Duration = Duration::from_secs(1);
/// Age from which reads have it asked for without waiting, so that readers who go
/// on and on never wait.
const ASK_AHEAD: Duration = Duration::from_millis(500);
/// Longest wait for an answer while the cluster is slow; what is known serves.
const CHECK_TIMEOUT: Duration = Duration::from_secs(2);
/// How often a hypervolume's index is read again when it changes while it is read.
const INDEX_READS: u32 = 8;
/// Slots read in one request before a change of them: 128 KiB.
const MAX_RANGE_READ: u32 = 32 << 10;

/// When something was asked for last, and the question that is under way.
#[derive(Debug)]
pub(super) struct Freshness(Mutex<Asked>);

/// Everyone who waits for it gets it.
type Answer = Shared<BoxFuture<'static, Result<(), FsError>>>;

#[derive(Debug)]
struct Asked {
    /// When the last question that has ended was begun.
    last: Instant,
    current: Option<(Instant, Answer)>,
}

impl Default for Freshness {
    /// Just asked for.
    fn default() -> Self {
        Self(Mutex::new(Asked {
            last: Instant::now(),
            current: None,
        }))
    }
}

impl Freshness {
    fn asked(&self) -> MutexGuard<'_, Asked> {
        self.0.lock().expect("nothing is called while it is held")
    }

    fn age(&self) -> Duration {
        self.asked().last.elapsed()
    }

    fn note(&self, begun: Instant) {
        let mut asked = self.asked();
        asked.last = asked.last.max(begun);
    }
}

/// A question that is under way until this is dropped.
struct UnderWay<'a> {
    about: &'a Freshness,
    begun: Instant,
}

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        self.about.note(self.begun);
        self.about.asked().current = None;
    }
}

/// What a question is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Subject {
    Header,
    Index,
}

impl Volume {
    /// Whether nobody else may change the index, so that the cached one is true.
    pub(super) fn is_index_ours(&self) -> bool {
        self.locked || self.selector.which != WhichVersion::Working
    }

    /// Notices what others did to the VDI up to a second ago.
    ///
    /// # Errors
    /// `Stale` when the VDI was deleted or rolled back. That the cluster does
    /// not answer is not an error here: what is known stays in use.
    pub async fn refresh(&self) -> Result<(), FsError> {
        self.ask_if_old(Subject::Header).await?;
        if self.is_index_ours() {
            return Ok(());
        }
        self.ask_if_old(Subject::Index).await
    }

    /// How long what is known of the VDI is not older than a second.
    pub fn fresh_for(&self) -> Duration {
        let header = self.header_asked.age();
        let age = match self.is_index_ours() {
            true => header,
            false => header.max(self.index_asked.age()),
        };
        FRESH_FOR.saturating_sub(age)
    }

    /// Notices a head that moved, the VDI's end and another size, as they were up
    /// to a second before this call.
    ///
    /// Unlike [`Volume::refresh`] it waits for the answer, however long that
    /// takes: bytes of a former head could be older than what another client was
    /// acknowledged.
    ///
    /// # Errors
    /// `Stale` when the VDI was deleted or rolled back, `VolumeIo` when the
    /// cluster does not answer.
    pub(super) async fn revalidate_for_read(&self) -> Result<(), FsError> {
        if self.is_header_fresh() {
            return Ok(());
        }
        let began = Instant::now();
        loop {
            let (since, answer) = self.join_question(Subject::Header);
            match answer.await {
                // A head that cannot be written can be read.
                Ok(()) | Err(FsError::Frozen(_)) => {}
                Err(error) => return Err(error),
            }
            if since + FRESH_FOR >= began {
                return Ok(());
            }
        }
    }

    /// Whether a read need not wait for a look at the header. Has it looked at
    /// when that will be due soon.
    pub(super) fn is_header_fresh(&self) -> bool {
        if self.selector.which != WhichVersion::Working {
            return true;
        }
        match self.header_asked.age() {
            age if age < ASK_AHEAD => true,
            age if age < FRESH_FOR => {
                drop(self.join_question(Subject::Header));
                true
            }
            _ => false,
        }
    }

    async fn ask_if_old(&self, subject: Subject) -> Result<(), FsError> {
        if self.freshness(subject).age() < FRESH_FOR {
            return self.usable();
        }
        let (since, answer) = self.join_question(subject);
        match tokio::time::timeout_at(since + CHECK_TIMEOUT, answer).await {
            Ok(Err(error @ FsError::Stale(_))) => Err(error),
            Ok(Err(error)) => {
                tracing::debug!("cannot revalidate {}: {error}", self.selector);
                self.usable()
            }
            Ok(Ok(())) | Err(_) => self.usable(),
        }
    }

    fn freshness(&self, subject: Subject) -> &Freshness {
        match subject {
            Subject::Header => &self.header_asked,
            Subject::Index => &self.index_asked,
        }
    }

    /// The question that is under way, else a new one, and when it was begun.
    fn join_question(&self, subject: Subject) -> (Instant, Answer) {
        let mut asked = self.freshness(subject).asked();
        if let Some((since, answer)) = &asked.current {
            return (*since, answer.clone());
        }
        let (begun, volume) = (Instant::now(), self.arc());
        // As a task: a switch to another head that it starts must run to its end.
        let task = self.runtime.spawn(async move {
            let about = volume.freshness(subject);
            let _under_way = UnderWay { about, begun };
            match subject {
                Subject::Header => volume.check().await,
                Subject::Index => volume.revalidate_index().await,
            }
        });
        let volume = self.arc();
        let answer = task
            .map(move |ended| ended.unwrap_or_else(|_| Err(volume.silent(Duration::ZERO))))
            .boxed()
            .shared();
        asked.current = Some((begun, answer.clone()));
        (begun, answer)
    }

    /// Notices what was done to the VDI just now: its end, a snapshot, another size.
    ///
    /// # Errors
    /// `Stale` when it was deleted or rolled back, `VolumeIo` when the cluster
    /// does not answer.
    pub async fn refresh_now(&self) -> Result<(), FsError> {
        self.usable()?;
        self.check().await
    }

    /// Notices everything that was done to the VDI before this call, as opening a
    /// file must.
    ///
    /// # Errors
    /// `Stale` when the VDI was deleted or rolled back, `VolumeIo` when the
    /// cluster does not answer.
    pub async fn reread(&self) -> Result<(), FsError> {
        self.usable()?;
        self.ahead.settle().await;
        let begun = Instant::now();
        self.check().await?;
        self.header_asked.note(begun);
        self.revalidate_index().await?;
        self.index_asked.note(begun);
        Ok(())
    }

    /// Reads the whole index.
    async fn revalidate_index(&self) -> Result<(), FsError> {
        for _ in 0..INDEX_READS {
            let question = self.head_mut().map.revalidate();
            let (new, tree) = match Head::load(&self.client, question.head()).await {
                Ok(Some(loaded)) => loaded,
                Ok(None) => {
                    self.check().await?;
                    continue;
                }
                // What a writer changes meanwhile need not fit together.
                Err(ClientError::Malformed { .. }) if self.is_changed_since(&question) => continue,
                Err(error) => return Err(self.failed(error)),
            };
            if new.info.is_snapshot() && self.selector.which == WhichVersion::Working {
                self.check().await?;
                continue;
            }
            let mut head = self.head_mut();
            if tree.is_some() {
                // A hypervolume's tree is one thing: as a whole or not at all.
                let as_before = !head.map.is_changed_since(&question) && self.guards.is_idle();
                if !as_before || !self.index_writer.replace_tree(tree) {
                    continue;
                }
            }
            let is_locked = |index| self.guards.is_locked(index);
            match head.map.observe_all(&question, new.map.owners(), is_locked) {
                Ok(false) => return self.usable(),
                Ok(true) => {
                    drop(head);
                    self.changed_elsewhere();
                    return self.usable();
                }
                Err(_moved) => {}
            }
        }
        // Writers are at work here, so the index in memory is the newest.
        self.usable()
    }

    /// Reads the slots of a range, before a change of it relies on them.
    pub(super) async fn revalidate_range(
        &self,
        range: RangeInclusive<ObjectIndex>,
    ) -> Result<(), FsError> {
        if self.is_index_ours() {
            return Ok(());
        }
        let (question, hypervolume) = {
            let mut head = self.head_mut();
            (head.map.revalidate(), head.info.hypervolume)
        };
        if hypervolume {
            return self.revalidate_index().await;
        }
        let (mut first, end) = (range.start().0, range.end().0.saturating_add(1));
        while first < end {
            let count = (end - first).min(MAX_RANGE_READ);
            let read = self
                .client
                .read_slots(question.head(), ObjectIndex(first), count)
                .await;
            let owners = read.map_err(|error| self.failed(error))?;
            self.observe(&question, (first..).map(ObjectIndex).zip(owners));
            first += count;
        }
        Ok(())
    }

    fn is_changed_since(&self, question: &Revalidation) -> bool {
        self.head().map.is_changed_since(question) || !self.guards.is_idle()
    }

    /// Notes what the cluster has answered of some slots.
    pub(super) fn observe(
        &self,
        question: &Revalidation,
        slots: impl Iterator<Item = (ObjectIndex, Option<Vid>)>,
    ) {
        let is_locked = |index| self.guards.is_locked(index);
        let observed = self.head_mut().map.observe(question, slots, is_locked);
        // Of a head that was left, nothing is worth noting.
        if observed == Ok(true) {
            self.changed_elsewhere();
        }
    }

    /// Others have written to the VDI: its time of modification moves, or an
    /// incremental backup would skip it.
    pub(super) fn changed_elsewhere(&self) {
        *self.modified.lock().expect("no one panics with the time") = SystemTime::now();
    }

    /// Looks at the VDI's header: deleted, turned into a snapshot, resized?
    pub(super) async fn check(&self) -> Result<(), FsError> {
        let (vid, create_time, size) = {
            let info = &self.head().info;
            (info.vid, info.create_time, info.size)
        };
        let now = match self.client.info(vid).await {
            Ok(Some(now)) if now.create_time == create_time => now,
            // It may have become a snapshot, and have been deleted as such.
            Ok(None) if self.selector.which == WhichVersion::Working => {
                return self.reload(vid).await;
            }
            Ok(_) => return Err(self.gone()),
            // Not for good: the node that has it may come back.
            Err(error) if is_absent(&error) => {
                return Err(FsError::Stale(self.selector.to_string()));
            }
            Err(error) => return Err(self.failed(error)),
        };
        if now.is_snapshot() && self.selector.which == WhichVersion::Working {
            return self.reload(vid).await;
        }
        if now.size != size && now.size <= now.max_size() {
            self.resized(&now).await?;
        }
        Ok(())
    }

    /// Takes over another size, and the slots that came with it.
    async fn resized(&self, now: &VdiInfo) -> Result<(), FsError> {
        let known = self.head().info.object_count();
        let mut added = Vec::new();
        self.client
            .for_each_slot(now, |index, owner| {
                if u64::from(index.0) >= known {
                    added.push((index, owner));
                }
            })
            .await
            .map_err(|error| self.failed(error))?;
        let mut head = self.head_mut();
        if head.info.vid == now.vid && head.info.size != now.size {
            tracing::info!("{} now has {} bytes", self.selector, now.size);
            head.info.size = now.size;
            head.map.extend(added);
            drop(head);
            self.changed_elsewhere();
        }
        Ok(())
    }

    /// Grows the VDI to `size` bytes; a smaller size is accepted and ignored,
    /// as on a block device.
    ///
    /// # Errors
    /// `ReadOnly`; `Cluster` when the cluster refuses or the size is too large.
    pub async fn set_size(&self, size: u64) -> Result<(), FsError> {
        if !self.writable {
            return Err(FsError::ReadOnly(self.selector.to_string()));
        }
        self.usable()?;
        if size <= self.size() {
            return Ok(());
        }
        self.client.resize(&self.selector.name, size).await?;
        self.check().await
    }

    /// The head and the owner of an object, no older than this call.
    ///
    /// # Errors
    /// `VolumeIo` when the cluster does not answer, `Stale`.
    pub(super) async fn current_slot(
        &self,
        index: ObjectIndex,
    ) -> Result<(Vid, Option<Vid>), FsError> {
        self.usable()?;
        let (vid, owner, slot) = {
            let head = self.head();
            (head.info.vid, head.map.owner(index), head.map.slot(index))
        };
        if self.is_believed(slot) {
            return Ok((vid, owner));
        }
        let answer = self.arc().queried_slot(index).await?;
        Ok((answer.head, answer.owner))
    }

    /// Whether a read may use a slot as it is cached.
    pub(super) fn is_believed(&self, slot: Slot) -> bool {
        match slot {
            Slot::Owned => true,
            Slot::InDoubt { .. } => false,
            Slot::Hole | Slot::Reclaiming | Slot::Inherited(_) => self.is_index_ours(),
        }
    }

    /// Asks for a slot again, after the cached one led to a missing object.
    ///
    /// The caller does not hold the slot's guard.
    ///
    /// # Errors
    /// `error` when the slot is what it was: the object is lost.
    pub(super) async fn refresh_slot(
        &self,
        index: ObjectIndex,
        seen: (Vid, Option<Vid>),
        error: ClientError,
    ) -> Result<(), FsError> {
        self.check().await?;
        let question = self.head_mut().map.revalidate();
        let info = self.info();
        let slot = self
            .client
            .slot(&info, index)
            .await
            .map_err(|error| self.failed(error))?;
        if (info.vid, slot) == seen {
            // It may be about to go: who frees it has the guard until no slot names it
            // any more, those in new snapshots included. Or it has come back.
            let _alone = self.guard(index).await?;
            let now = self.slot(index)?;
            return match now.1 {
                Some(owner) if now == seen && !self.exists(owner, index).await? => {
                    Err(self.failed(error))
                }
                _ => Ok(()),
            };
        }
        // Where that does not count, someone who makes objects knows better; the
        // caller looks again.
        let _counted = self.head_mut().map.observe_missing(&question, index, slot);
        Ok(())
    }
}
