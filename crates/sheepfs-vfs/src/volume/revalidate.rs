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
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::{BoxFuture, Shared};
use sheep_client::error::Chain;
use sheep_client::{ClientError, VdiInfo};
use sheep_proto::ObjectIndex;
use tokio::runtime::Handle;
use tokio::time::Instant;

use super::error::VolumeError;
use super::follow::Follower;
use super::head::{Head, SlotView};
use super::head_state::HeadState;
use super::index_commit::IndexCommitter;
use super::object_io::ObjectIo;
use super::object_map::{Revalidation, Slot};

/// Age up to which what is known of the VDI is believed without asking.
const HEADER_TTL: Duration = Duration::from_secs(1);
/// Age from which reads have it asked for without waiting, so that readers who go
/// on and on never wait.
const REFRESH_AHEAD_AGE: Duration = Duration::from_millis(500);
/// Longest wait for an answer while the cluster is slow; what is known serves.
const REVALIDATE_TIMEOUT: Duration = Duration::from_secs(2);
/// How often a hypervolume's index is read again when it changes while it is read.
const MAX_INDEX_READS: u32 = 8;
/// Slots read in one request before a change of them: 128 KiB.
const MAX_RANGE_READ: u32 = 32 << 10;

/// When something was asked for last, and the question that is under way.
#[derive(Debug)]
struct Freshness(Mutex<Asked>);

/// Everyone who waits for it gets it.
type Answer = Shared<BoxFuture<'static, Result<(), VolumeError>>>;

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
struct InFlight<'a> {
    about: &'a Freshness,
    begun: Instant,
}

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        self.about.note(self.begun);
        self.about.asked().current = None;
    }
}

/// What a question is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Scope {
    Header,
    Index,
}

/// Asks the cluster what has become of the VDI.
#[derive(Debug)]
pub(super) struct Revalidator {
    head: Arc<Head>,
    follower: Arc<Follower>,
    committer: Arc<IndexCommitter>,
    io: ObjectIo,
    runtime: Handle,
    header_freshness: Freshness,
    index_freshness: Freshness,
}

impl Revalidator {
    pub(super) fn new(
        head: Arc<Head>,
        follower: Arc<Follower>,
        committer: Arc<IndexCommitter>,
        runtime: Handle,
    ) -> Arc<Self> {
        Arc::new(Self {
            io: ObjectIo::new(head.client.clone()),
            head,
            follower,
            committer,
            runtime,
            header_freshness: Freshness::default(),
            index_freshness: Freshness::default(),
        })
    }

    /// Notices what others did to the VDI up to a second ago.
    ///
    /// # Errors
    /// `Stale` when the VDI was deleted or rolled back. That the cluster does
    /// not answer is not an error here: what is known stays in use.
    pub(super) async fn refresh(self: &Arc<Self>) -> Result<(), VolumeError> {
        self.revalidate_if_expired(Scope::Header).await?;
        if self.head.is_index_exclusive() {
            return Ok(());
        }
        self.revalidate_if_expired(Scope::Index).await
    }

    /// How long what is known of the VDI is not older than a second.
    pub(super) fn fresh_for(&self) -> Duration {
        let header = self.header_freshness.age();
        let age = match self.head.is_index_exclusive() {
            true => header,
            false => header.max(self.index_freshness.age()),
        };
        HEADER_TTL.saturating_sub(age)
    }

    /// Notices a head that moved, the VDI's end and another size, as they were up
    /// to a second before this call.
    ///
    /// Unlike [`Self::refresh`] it waits for the answer, however long that
    /// takes: bytes of a former head could be older than what another client was
    /// acknowledged.
    ///
    /// # Errors
    /// `Stale` when the VDI was deleted or rolled back, `Io` when the
    /// cluster does not answer.
    pub(super) async fn revalidate_for_read(self: &Arc<Self>) -> Result<(), VolumeError> {
        if self.is_header_fresh() {
            return Ok(());
        }
        let began = Instant::now();
        loop {
            let (since, answer) = self.join_revalidation(Scope::Header);
            match answer.await {
                // A head that cannot be written can be read.
                Ok(()) | Err(VolumeError::HeadReadOnly(_)) => {}
                Err(error) => return Err(error),
            }
            if since + HEADER_TTL >= began {
                return Ok(());
            }
        }
    }

    /// Whether a read need not wait for a look at the header. Has it looked at
    /// when that will be due soon.
    pub(super) fn is_header_fresh(self: &Arc<Self>) -> bool {
        if !self.head.is_head_selected() {
            return true;
        }
        match self.header_freshness.age() {
            age if age < REFRESH_AHEAD_AGE => true,
            age if age < HEADER_TTL => {
                drop(self.join_revalidation(Scope::Header));
                true
            }
            _ => false,
        }
    }

    async fn revalidate_if_expired(self: &Arc<Self>, scope: Scope) -> Result<(), VolumeError> {
        if self.freshness(scope).age() < HEADER_TTL {
            return self.head.ensure_live();
        }
        let (since, answer) = self.join_revalidation(scope);
        match tokio::time::timeout_at(since + REVALIDATE_TIMEOUT, answer).await {
            Ok(Err(error @ VolumeError::Stale(_))) => Err(error),
            Ok(Err(error)) => {
                tracing::debug!(
                    "cannot revalidate {}: {}",
                    self.head.selector,
                    Chain(&error)
                );
                self.head.ensure_live()
            }
            Ok(Ok(())) | Err(_) => self.head.ensure_live(),
        }
    }

    fn freshness(&self, scope: Scope) -> &Freshness {
        match scope {
            Scope::Header => &self.header_freshness,
            Scope::Index => &self.index_freshness,
        }
    }

    /// The question that is under way, else a new one, and when it was begun.
    fn join_revalidation(self: &Arc<Self>, scope: Scope) -> (Instant, Answer) {
        let mut asked = self.freshness(scope).asked();
        if let Some((since, answer)) = &asked.current {
            return (*since, answer.clone());
        }
        let (begun, revalidator) = (Instant::now(), Arc::clone(self));
        // As a task: a switch to another head that it starts must run to its end.
        let task = self.runtime.spawn(async move {
            let about = revalidator.freshness(scope);
            let _in_flight = InFlight { about, begun };
            match scope {
                Scope::Header => revalidator.revalidate_header().await,
                Scope::Index => revalidator.revalidate_index().await,
            }
        });
        let head = Arc::clone(&self.head);
        let answer = task
            .map(move |ended| ended.unwrap_or_else(|ended| Err(head.task_error(&ended))))
            .boxed()
            .shared();
        asked.current = Some((begun, answer.clone()));
        (begun, answer)
    }

    /// Notices everything that was done to the VDI before this call, as opening a
    /// file must.
    ///
    /// # Errors
    /// `Stale` when the VDI was deleted or rolled back, `Io` when the cluster does
    /// not answer.
    pub(super) async fn revalidate(&self) -> Result<(), VolumeError> {
        self.head.ensure_live()?;
        let begun = Instant::now();
        self.revalidate_header().await?;
        self.header_freshness.note(begun);
        self.revalidate_index().await?;
        self.index_freshness.note(begun);
        Ok(())
    }

    /// Reads the whole index.
    async fn revalidate_index(&self) -> Result<(), VolumeError> {
        for _ in 0..MAX_INDEX_READS {
            let question = self.head.begin_revalidation();
            let (new, tree) = match HeadState::load(&self.head.client, question.head()).await {
                Ok(Some(loaded)) => loaded,
                Ok(None) => {
                    self.revalidate_header().await?;
                    continue;
                }
                // What a writer changes meanwhile need not fit together.
                Err(ClientError::Malformed { .. }) if self.is_changed_since(&question) => continue,
                Err(error) => return Err(self.head.io_error(error)),
            };
            if new.info.is_snapshot() && self.head.is_head_selected() {
                self.revalidate_header().await?;
                continue;
            }
            let observed = self.head.update(|map| {
                // A hypervolume's tree is one thing: as a whole or not at all.
                if tree.is_some() {
                    let as_before = !map.is_changed_since(&question) && self.head.locks.is_idle();
                    if !as_before || !self.committer.replace_tree(tree) {
                        return None;
                    }
                }
                let is_locked = |index| self.head.locks.is_locked(index);
                map.observe_all(&question, new.map.owners(), is_locked).ok()
            });
            if let Some(news) = observed {
                self.head.note_remote_write(Ok(news));
                return self.head.ensure_live();
            }
        }
        // Writers are at work here, so the index in memory is the newest.
        self.head.ensure_live()
    }

    /// Reads the slots of a range, before a change of it relies on them.
    pub(super) async fn revalidate_range(
        &self,
        range: RangeInclusive<ObjectIndex>,
    ) -> Result<(), VolumeError> {
        if self.head.is_index_exclusive() {
            return Ok(());
        }
        if self.head.state().info.hypervolume {
            return self.revalidate_index().await;
        }
        let question = self.head.begin_revalidation();
        let (mut first, end) = (range.start().0, range.end().0.saturating_add(1));
        while first < end {
            let count = (end - first).min(MAX_RANGE_READ);
            let read = self
                .head
                .client
                .inode(question.head())
                .read_slots(ObjectIndex(first), count)
                .await;
            let owners = read.map_err(|error| self.head.io_error(error))?;
            self.head
                .observe(&question, (first..).map(ObjectIndex).zip(owners));
            first += count;
        }
        Ok(())
    }

    fn is_changed_since(&self, question: &Revalidation) -> bool {
        self.head.state().map.is_changed_since(question) || !self.head.locks.is_idle()
    }

    /// Looks at the VDI's header: deleted, turned into a snapshot, resized?
    ///
    /// # Errors
    /// `Stale` when it was deleted or rolled back, `Io` when the cluster does not
    /// answer.
    pub(super) async fn revalidate_header(&self) -> Result<(), VolumeError> {
        let (vid, create_time, size) = {
            let info = &self.head.state().info;
            (info.vid, info.create_time, info.size)
        };
        let now = match self.head.client.inode(vid).stat().await {
            Ok(Some(now)) if now.create_time == create_time => now,
            // It may have become a snapshot, and have been deleted as such.
            Ok(None) if self.head.is_head_selected() => {
                return self.follower.follow(vid).await;
            }
            Ok(_) => return Err(self.head.mark_stale()),
            // Not for good: the node that has it may come back.
            Err(error) if error.is_missing_object_or_vdi() => {
                return Err(self.head.stale_error());
            }
            Err(error) => return Err(self.head.io_error(error)),
        };
        if now.is_snapshot() && self.head.is_head_selected() {
            return self.follower.follow(vid).await;
        }
        if now.size != size && now.size <= now.max_size() {
            self.apply_resize(&now).await?;
        }
        Ok(())
    }

    /// Takes over another size, and the slots that came with it.
    async fn apply_resize(&self, now: &VdiInfo) -> Result<(), VolumeError> {
        let known = self.head.state().info.object_count();
        let mut added = Vec::new();
        self.head
            .client
            .index(now)
            .for_each_slot(|index, owner| {
                if u64::from(index.0) >= known {
                    added.push((index, owner));
                }
            })
            .await
            .map_err(|error| self.head.io_error(error))?;
        if self.head.resize(now, added) {
            tracing::info!("{} now has {} bytes", self.head.selector, now.size);
            self.head.touch_mtime();
        }
        Ok(())
    }

    /// The head and the owner of an object as the cluster has them, which are noted
    /// in the object map. The caller holds the object's lock.
    ///
    /// Another client may have written here since the index was read, and a create
    /// would wipe that.
    ///
    /// # Errors
    /// `Stale`, `Io` when the cluster does not answer.
    pub(super) async fn revalidate_slot(
        &self,
        index: ObjectIndex,
    ) -> Result<SlotView, VolumeError> {
        loop {
            let (info, slot) = {
                let head = self.head.state();
                (head.info.clone(), head.map.slot(index))
            };
            if info.hypervolume && !matches!(slot, Slot::InDoubt { .. }) {
                // Its index is one tree, which the committer keeps in step.
                return self.head.slot_view(index);
            }
            let client = &self.head.client;
            let (header, owner) = tokio::join!(
                client.inode(info.vid).stat(),
                client.index(&info).slot(index)
            );
            let owner = owner.map_err(|error| self.head.io_error(error))?;
            match header.map_err(|error| self.head.io_error(error))? {
                Some(now) if now.create_time != info.create_time => {
                    return Err(self.head.mark_stale());
                }
                Some(now) if !now.is_snapshot() => {}
                // A snapshot, or one that has been deleted since.
                _ => {
                    self.follower.follow(info.vid).await?;
                    continue;
                }
            }
            let resolved = self.head.update(|map| map.resolve(info.vid, index, owner));
            if resolved.is_ok() {
                return Ok(SlotView {
                    head: info.vid,
                    owner,
                });
            }
        }
    }

    /// Resolves the slots in doubt between two objects, both included.
    ///
    /// # Errors
    /// As [`Self::revalidate_slot`].
    pub(super) async fn resolve_in_doubt(
        &self,
        range: RangeInclusive<ObjectIndex>,
    ) -> Result<(), VolumeError> {
        let in_doubt = self.head.state().map.in_doubt(range);
        for index in in_doubt {
            let _lock = self.head.lock_object(index).await?;
            self.revalidate_slot(index).await?;
        }
        Ok(())
    }

    /// Asks for a slot again, after the cached one led to a missing object. The
    /// caller does not hold the object's lock.
    ///
    /// # Errors
    /// `error` when the slot is what it was: the object is missing.
    pub(super) async fn revalidate_missing_object(
        &self,
        index: ObjectIndex,
        seen: SlotView,
        error: ClientError,
    ) -> Result<(), VolumeError> {
        self.revalidate_header().await?;
        let question = self.head.begin_revalidation();
        let info = self.head.info();
        let slot = self
            .head
            .client
            .index(&info)
            .slot(index)
            .await
            .map_err(|error| self.head.io_error(error))?;
        let now = SlotView {
            head: info.vid,
            owner: slot,
        };
        if now == seen {
            // It may be about to be discarded: that holds the lock until no slot names
            // the object any more, those in new snapshots included. Or it is back.
            let _lock = self.head.lock_object(index).await?;
            let now = self.head.slot_view(index)?;
            let Some(owner) = now.owner.filter(|_| now == seen) else {
                return Ok(());
            };
            let exists = self.io.exists(owner, index).await;
            return match exists.map_err(|error| self.head.io_error(error))? {
                true => Ok(()),
                false => Err(self.head.io_error(error)),
            };
        }
        // Where the answer does not count, a writer here knows better; the caller
        // looks again.
        let _counted = self
            .head
            .update(|map| map.observe_missing(&question, index, slot));
        Ok(())
    }
}
