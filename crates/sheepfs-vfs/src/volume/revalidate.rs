//! Revalidates the cached header and index after changes by other clients: snapshot,
//! resize, deletion, writes into holes.
//!
//! | revalidated | TTL | by |
//! |---|---|---|
//! | header: snapshot, size, deleted | a second | reads, stat(2), open(2), lseek(2) |
//! | whole index | a second; now at open(2) | stat(2), lseek(2); open(2) |
//! | one slot that is not the head's own | not older than the read | reads (`slot_query.rs`) |
//!
//! The index is not revalidated while this client holds the VDI's lock, or for a
//! snapshot: no other client may change it.

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
use crate::poison;

/// TTL of the cached header and index.
const HEADER_TTL: Duration = Duration::from_secs(1);
/// Age from which reads start a revalidation in the background, so that a continuous
/// reader never waits for one.
const REFRESH_AHEAD_AGE: Duration = Duration::from_millis(500);
/// Longest wait for a revalidation; after that the cached state is used.
const REVALIDATE_TIMEOUT: Duration = Duration::from_secs(2);
/// Reads of a hypervolume's index while it changes.
const MAX_INDEX_READS: u32 = 8;
/// Slots read in one request: 128 KiB.
const MAX_RANGE_READ: u32 = 32 << 10;

/// Time of the last revalidation, and the one in flight.
#[derive(Debug)]
struct Freshness(Mutex<Asked>);

/// The result, shared by all waiters.
type Answer = Shared<BoxFuture<'static, Result<(), VolumeError>>>;

#[derive(Debug)]
struct Asked {
    /// Start of the last revalidation that has ended.
    last: Instant,
    current: Option<(Instant, Answer)>,
}

impl Default for Freshness {
    /// Fresh now.
    fn default() -> Self {
        Self(Mutex::new(Asked {
            last: Instant::now(),
            current: None,
        }))
    }
}

impl Freshness {
    fn asked(&self) -> MutexGuard<'_, Asked> {
        poison::lock(&self.0)
    }

    fn age(&self) -> Duration {
        self.asked().last.elapsed()
    }

    fn note(&self, begun: Instant) {
        let mut asked = self.asked();
        asked.last = asked.last.max(begun);
    }
}

/// A revalidation in flight, until this is dropped.
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

/// The part of the cached state to revalidate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Scope {
    Header,
    Index,
}

/// Revalidates the cached state of a VDI.
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

    /// Revalidates the header and the index if their TTL has expired.
    ///
    /// # Errors
    /// `Stale` when the VDI was deleted or rolled back. A timeout is
    /// no error here: the cached state stays in use.
    pub(super) async fn refresh(self: &Arc<Self>) -> Result<(), VolumeError> {
        self.revalidate_if_expired(Scope::Header).await?;
        if self.head.is_index_exclusive() {
            return Ok(());
        }
        self.revalidate_if_expired(Scope::Index).await
    }

    /// Remaining TTL of the cached header and index.
    pub(super) fn fresh_for(&self) -> Duration {
        let header = self.header_freshness.age();
        let age = match self.head.is_index_exclusive() {
            true => header,
            false => header.max(self.index_freshness.age()),
        };
        HEADER_TTL.saturating_sub(age)
    }

    /// Revalidates the header if its TTL had expired before this call.
    ///
    /// Unlike [`Self::refresh`] it waits without a timeout: a former head could be older
    /// than a write that another client had acknowledged.
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

    /// Whether a read may use the cached header. Starts a revalidation in the background
    /// if the TTL expires soon.
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

    /// The revalidation in flight, else a new one, with its start.
    fn join_revalidation(self: &Arc<Self>, scope: Scope) -> (Instant, Answer) {
        let mut asked = self.freshness(scope).asked();
        if let Some((since, answer)) = &asked.current {
            return (*since, answer.clone());
        }
        let (begun, revalidator) = (Instant::now(), Arc::clone(self));
        // As a task: if it follows the head, that must run to its end.
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

    /// Revalidates header and index now, for close-to-open consistency.
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
            let revalidation = self.head.begin_revalidation();
            let (new, tree) = match HeadState::load(&self.head.client, revalidation.head()).await {
                Ok(Some(loaded)) => loaded,
                Ok(None) => {
                    self.revalidate_header().await?;
                    continue;
                }
                // A concurrent writer can leave the parts inconsistent.
                Err(ClientError::Malformed { .. }) if self.is_changed_since(&revalidation) => {
                    continue;
                }
                Err(error) => return Err(self.head.io_error(error)),
            };
            if new.info.is_snapshot() && self.head.is_head_selected() {
                self.revalidate_header().await?;
                continue;
            }
            let observed = self.head.update(|map| {
                // The tree of a hypervolume is replaced as a whole or not at all.
                if tree.is_some() {
                    let as_before =
                        !map.is_changed_since(&revalidation) && self.head.locks.is_idle();
                    if !as_before || !self.committer.replace_tree(tree) {
                        return None;
                    }
                }
                let is_locked = |index| self.head.locks.is_locked(index);
                map.observe_all(&revalidation, new.map.owners(), is_locked)
                    .ok()
            });
            if let Some(news) = observed {
                self.head.note_remote_write(Ok(news));
                return self.head.ensure_live();
            }
        }
        // Writers of this client change it all the time, so the cached index is newest.
        self.head.ensure_live()
    }

    /// Revalidates the header and the slots of a range now, those in doubt included.
    ///
    /// # Errors
    /// As [`Self::revalidate`].
    pub(super) async fn revalidate_extents(
        &self,
        range: RangeInclusive<ObjectIndex>,
    ) -> Result<(), VolumeError> {
        self.head.ensure_live()?;
        match self.revalidate_header().await {
            // A head that cannot be written can be read.
            Ok(()) | Err(VolumeError::HeadReadOnly(_)) => {}
            Err(error) => return Err(error),
        }
        self.revalidate_range(range.clone()).await?;
        self.resolve_in_doubt(range).await
    }

    /// Revalidates the slots of a range.
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
        let revalidation = self.head.begin_revalidation();
        let (mut first, end) = (range.start().0, range.end().0.saturating_add(1));
        while first < end {
            let count = (end - first).min(MAX_RANGE_READ);
            let read = self
                .head
                .client
                .inode(revalidation.head())
                .read_slots(ObjectIndex(first), count)
                .await;
            let owners = read.map_err(|error| self.head.io_error(error))?;
            self.head
                .observe(&revalidation, (first..).map(ObjectIndex).zip(owners));
            first += count;
        }
        Ok(())
    }

    fn is_changed_since(&self, revalidation: &Revalidation) -> bool {
        self.head.state().map.is_changed_since(revalidation) || !self.head.locks.is_idle()
    }

    /// Revalidates the header now: deletion, snapshot, size.
    ///
    /// # Errors
    /// `Stale` when it was deleted or rolled back, `Io` when the cluster does not
    /// answer.
    pub(super) async fn revalidate_header(&self) -> Result<(), VolumeError> {
        loop {
            let (vid, create_time, size) = {
                let info = &self.head.state().info;
                (info.vid, info.create_time, info.size)
            };
            let now = match self.head.client.inode(vid).stat().await {
                Ok(Some(now)) if now.create_time == create_time => Some(now),
                // It may have become a snapshot that was then deleted.
                Ok(None) if self.head.is_head_selected() => None,
                Ok(_) => return Err(self.head.mark_stale()),
                // Not final: the node that stores the inode may come back.
                Err(error) if error.is_missing_object_or_vdi() => {
                    return Err(self.head.stale_error());
                }
                Err(error) => return Err(self.head.io_error(error)),
            };
            let current = now.filter(|now| !now.is_snapshot() || !self.head.is_head_selected());
            let Some(now) = current else {
                // The follower may have read the new head's header before this call.
                self.follower.follow(vid).await?;
                continue;
            };
            if now.size != size && now.size <= now.max_size() {
                self.apply_resize(&now).await?;
            }
            return Ok(());
        }
    }

    /// Applies another size, and the slots that came with it.
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

    /// Reads the header and one slot from the cluster and updates the object map. The
    /// caller holds the object's lock.
    ///
    /// Another client may have created the object since the index was read, and a create
    /// would overwrite its data.
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
                // The committer keeps the index tree current.
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

    /// Revalidates a slot after its object was missing. The caller does not hold the
    /// object's lock.
    ///
    /// # Errors
    /// `error` if the slot is unchanged: then the object is lost.
    pub(super) async fn revalidate_missing_object(
        &self,
        index: ObjectIndex,
        seen: SlotView,
        error: ClientError,
    ) -> Result<(), VolumeError> {
        // The head may have moved; otherwise read the slot.
        self.revalidate_header().await?;
        let revalidation = self.head.begin_revalidation();
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
            // A discard may be in progress: it holds the lock until no slot references the
            // object, in new snapshots either. Or the object exists again.
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
        // If the response is not applied, a local change is newer; the caller retries
        // with that.
        let _counted = self
            .head
            .update(|map| map.observe_missing(&revalidation, index, slot));
        Ok(())
    }
}
