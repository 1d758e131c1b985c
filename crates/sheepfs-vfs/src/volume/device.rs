//! An attached VDI as a block device.
//!
//! Requests of one object are sent from the calling thread and completed where the
//! response is read; everything longer runs as a task, which finishes even when its
//! caller is dropped.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use sheep_client::unstable::IndexTree;
use sheep_client::{Client, ClientError, VdiSelector, VdiVersion};
use sheep_proto::generation::Locking;
use sheep_proto::limits::MAX_PAYLOAD_LEN;
use sheep_proto::{ObjectIndex, Redundancy, Vid};
use tokio::runtime::Handle;
use tokio::time::Instant;
use tokio_util::task::task_tracker::TaskTrackerToken;

use super::allocate::Allocator;
use super::block_device::{BlockDevice, BlockStatus};
use super::data_io::{DataIo, Flushed};
use super::deallocate::Deallocator;
use super::error::VolumeError;
use super::extent::{Extent, extents};
use super::flush_tracker::FlushTracker;
use super::follow::Follower;
use super::head::{Head, SlotView};
use super::head_state::{HeadState, prepare_writes};
use super::index_commit::IndexCommitter;
use super::io::{ExtentIo, PARALLEL_EXTENTS};
use super::object_io::{ObjectIo, zeros};
use super::object_map::Slot;
use super::reclaim::Reclaims;
use super::recovery::Recovery;
use super::revalidate::Revalidator;
use super::slot_query::SlotQueries;

/// Lookup retries for a VDI that changes between lookup and load.
const OPEN_RETRIES: u32 = 8;
/// Longest wait of a close for abandoned requests that could create an object.
const QUIESCE_TIMEOUT: Duration = Duration::from_secs(5);
/// Poll interval of that wait.
const QUIESCE_PAUSE: Duration = Duration::from_millis(20);

/// How to attach a VDI. By default it is writable, and locked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct VolumeOptions {
    /// Refuse every write.
    pub read_only: bool,
    /// Take the VDI's lock, which only means something in a cluster formatted
    /// with locking; sheep before 0.9 have no locks.
    pub lock: bool,
}

impl Default for VolumeOptions {
    fn default() -> Self {
        Self {
            read_only: false,
            lock: true,
        }
    }
}

impl VolumeOptions {
    /// Sets [`Self::read_only`].
    #[must_use]
    pub fn with_read_only(self, read_only: bool) -> Self {
        Self { read_only, ..self }
    }

    /// Sets [`Self::lock`].
    #[must_use]
    pub fn with_lock(self, lock: bool) -> Self {
        Self { lock, ..self }
    }
}

/// A VDI as a block device, without any cache.
#[derive(Debug)]
pub struct Device {
    head: Arc<Head>,
    revalidator: Arc<Revalidator>,
    follower: Arc<Follower>,
    data: Arc<DataIo>,
    io: Arc<ExtentIo>,
    allocator: Arc<Allocator>,
    deallocator: Arc<Deallocator>,
    reclaims: Arc<Reclaims>,
    writable: bool,
    /// Object size as a power of two; every head of a volume has the same.
    object_shift: u8,
    writes: FlushTracker,
    /// A write was begun since the last flush.
    dirty: AtomicBool,
    /// Serialises the snapshot checks of flushes: a second flush waits for the first.
    flushing: tokio::sync::Mutex<()>,
    runtime: Handle,
}

impl Device {
    /// Attaches a VDI: the head to read and write, a snapshot to read.
    ///
    /// # Errors
    /// `Cluster` with the refusal when there is no such VDI or another client holds its
    /// lock, `TooLarge`.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub async fn open(
        client: Client,
        selector: VdiSelector,
        options: VolumeOptions,
    ) -> Result<Arc<Self>, VolumeError> {
        let working = selector.version == VdiVersion::Working;
        let asked_to_write = working && !options.read_only;
        let has_locks = client.generation().await?.locking() != Locking::Never;
        let leased = options.lock && has_locks && asked_to_write;
        let (state, tree) =
            Self::lookup_and_load(&client, &selector, asked_to_write, leased).await?;
        // Before a cluster has an epoch, and so a VDI, it may be uncertain.
        let generation = client.generation().await?;
        let is_changeable = !state.info.hypervolume || generation.writes_hypervolumes();
        if asked_to_write && !is_changeable {
            tracing::warn!(
                "{selector} is attached read-only: it is a hypervolume of sheep {generation}"
            );
        }
        let writable = asked_to_write && is_changeable;
        let object_shift = state.info.object_shift;

        // Build the layers from the bottom: index commit, head, follow and revalidate.
        let runtime = Handle::current();
        let committer = IndexCommitter::new(client.clone(), tree);
        let (name, vid) = (selector.name.clone(), state.info.vid);
        let data = DataIo::new(client.clone(), generation, name, vid);
        let recovery = Recovery::new(
            ObjectIo::new(client.clone()),
            Arc::clone(&data),
            Arc::clone(&committer),
        );
        let head = Head::new(client, selector, generation, leased, state);
        let follower = Follower::new(
            Arc::clone(&head),
            Arc::clone(&data),
            recovery,
            runtime.clone(),
        );
        let revalidator = Revalidator::new(
            Arc::clone(&head),
            Arc::clone(&follower),
            Arc::clone(&committer),
            runtime.clone(),
        );
        let queries = SlotQueries::new(Arc::clone(&head), runtime.clone());
        let reclaims = Arc::new(Reclaims::new(Arc::clone(&head)));
        // One extent: first writes, I/O, discards.
        let allocator = Arc::new(Allocator::new(
            Arc::clone(&head),
            Arc::clone(&committer),
            Arc::clone(&follower),
            Arc::clone(&revalidator),
            Arc::clone(&reclaims),
        ));
        let io = ExtentIo::new(
            Arc::clone(&head),
            Arc::clone(&data),
            Arc::clone(&revalidator),
            Arc::clone(&follower),
            queries,
            Arc::clone(&allocator),
        );
        let deallocator = Deallocator::new(
            Arc::clone(&head),
            Arc::clone(&io),
            committer,
            Arc::clone(&follower),
            Arc::clone(&revalidator),
        );
        Ok(Arc::new(Self {
            head,
            revalidator,
            follower,
            data,
            io,
            allocator,
            deallocator,
            reclaims,
            writable,
            object_shift,
            writes: FlushTracker::default(),
            dirty: AtomicBool::new(false),
            flushing: tokio::sync::Mutex::default(),
            runtime,
        }))
    }

    async fn lookup_and_load(
        client: &Client,
        selector: &VdiSelector,
        writable: bool,
        leased: bool,
    ) -> Result<(HeadState, Option<IndexTree>), VolumeError> {
        for _ in 0..OPEN_RETRIES {
            let mut vid = client.vdi(selector).lookup().await?;
            if writable {
                // Before the lock: nobody has to release that when this is refused.
                let cache = client.object_cache(vid);
                cache.drop_clean(&selector.name).await?;
            }
            if leased {
                let checked = vid;
                vid = client.vdi(selector).lock().await?;
                if vid != checked {
                    client.inode(vid).unlock().await?;
                    continue;
                }
            }
            let loaded = Self::load(client, vid, writable).await;
            let working = selector.version == VdiVersion::Working;
            match loaded {
                Ok(Some((state, _))) if state.info.size > state.info.max_size() => {
                    if leased {
                        client.inode(vid).unlock().await?;
                    }
                    return Err(VolumeError::TooLarge {
                        volume: selector.to_string(),
                        size: state.info.size,
                    });
                }
                Ok(Some(loaded)) if loaded.0.info.is_snapshot() != working => return Ok(loaded),
                // Deleted or snapshotted since the lookup: look it up again.
                Ok(_) if !leased => {}
                Ok(_) => client.inode(vid).unlock().await?,
                Err(error) => {
                    if leased {
                        client.inode(vid).unlock().await?;
                    }
                    return Err(error.into());
                }
            }
        }
        Err(VolumeError::Stale(selector.to_string()))
    }

    async fn load(
        client: &Client,
        vid: Vid,
        writable: bool,
    ) -> Result<Option<(HeadState, Option<IndexTree>)>, ClientError> {
        let loaded = HeadState::load(client, vid).await?;
        if let Some((state, _)) = &loaded
            && writable
            && !state.info.is_snapshot()
        {
            prepare_writes(client, &state.info).await?;
        }
        Ok(loaded)
    }

    /// The head of the volume.
    pub(super) fn head(&self) -> &Head {
        &self.head
    }

    /// Revalidates the header and the index.
    pub(super) fn revalidator(&self) -> &Arc<Revalidator> {
        &self.revalidator
    }

    /// Drains writes, checks for a concurrent snapshot, and releases the lock.
    ///
    /// # Errors
    /// As [`BlockDevice::flush`]; the volume stays usable and locked then.
    pub async fn close(&self) -> Result<(), VolumeError> {
        // Without a lock and without writes since the last flush, close sends nothing
        // that must succeed. So it does not wait for an unreachable cluster.
        let is_clean = !self.head.leased && !self.dirty.load(Ordering::Acquire);
        if is_clean && self.head.client.peer().is_none() {
            return Ok(());
        }
        self.dirty.store(self.writable, Ordering::Release);
        match self.flush_writes().await {
            // The VDI was deleted: there is nothing left to flush.
            Ok(()) | Err(VolumeError::Stale(_)) => {}
            Err(error) => return Err(error),
        }
        self.reclaims.drain().await;
        self.quiesce().await?;
        match self.stop_object_cache().await {
            Ok(()) | Err(VolumeError::Stale(_)) => {}
            Err(error) => return Err(error),
        }
        self.take_loss()?;
        self.release_lock().await
    }

    /// Reads and writes the head's objects through the object cache of the gateway from
    /// now on. Does nothing without such a cache, when the volume is read-only, and for
    /// erasure-coded objects, which such a cache may spoil.
    ///
    /// # Errors
    /// `Cluster` when the cache holds changes of another client, or the cluster does not
    /// answer; the cache is not used then.
    pub(super) async fn use_object_cache(&self) -> Result<(), VolumeError> {
        let is_replicated = matches!(self.head.info().redundancy, Redundancy::Replicated(_));
        if !self.writable || !is_replicated || !self.head.generation.has_object_cache() {
            return Ok(());
        }
        Ok(self.data.start().await?)
    }

    /// Flushes and drops what the object cache of the gateway has of the volume, and goes
    /// past all such caches from now on. Writes that were lost with a gateway are for the
    /// next [`BlockDevice::flush`] to report.
    ///
    /// # Errors
    /// `Io`, `Stale`; the cache stays in use then.
    pub(super) async fn stop_object_cache(&self) -> Result<(), VolumeError> {
        loop {
            let stopped = self.data.stop().await;
            match stopped.map_err(|error| self.head.io_error(error))? {
                Flushed::Done => return Ok(()),
                Flushed::Frozen(vid) => self.follower.follow(vid).await?,
            }
        }
    }

    /// Whether the volume uses an object cache.
    pub(super) fn uses_object_cache(&self) -> bool {
        self.data.uses_cache()
    }

    /// Flushes what the object cache of the gateway has of the volume. Writes that were
    /// lost with a gateway are for the next [`BlockDevice::flush`] to report.
    ///
    /// # Errors
    /// `Io`, `Stale`.
    pub(super) async fn flush_object_cache(&self) -> Result<(), VolumeError> {
        if !self.data.uses_cache() {
            return Ok(());
        }
        self.writes.flush_barrier().await;
        loop {
            let flushed = self.data.flush().await;
            match flushed.map_err(|error| self.head.io_error(error))? {
                Flushed::Done => return Ok(()),
                Flushed::Frozen(vid) => self.follower.follow(vid).await?,
            }
        }
    }

    /// What the next flush reports of writes that were lost with a gateway.
    ///
    /// # Errors
    /// `CacheLost`.
    pub(super) fn check_loss(&self) -> Result<(), VolumeError> {
        self.data
            .loss()
            .map_or(Ok(()), |source| Err(self.loss_error(source)))
    }

    fn take_loss(&self) -> Result<(), VolumeError> {
        self.data
            .take_loss()
            .map_or(Ok(()), |source| Err(self.loss_error(source)))
    }

    fn loss_error(&self, source: Arc<ClientError>) -> VolumeError {
        VolumeError::CacheLost {
            volume: self.head.selector.to_string(),
            source,
        }
    }

    /// Releases the VDI's lock, if there is one.
    ///
    /// # Errors
    /// `Cluster` when the cluster does not answer.
    pub async fn release_lock(&self) -> Result<(), VolumeError> {
        self.follower.release_lock().await
    }

    /// Waits until no request is in flight that could create or clear an object: it
    /// could overwrite data of the next client.
    async fn quiesce(&self) -> Result<(), VolumeError> {
        let deadline = Instant::now() + QUIESCE_TIMEOUT;
        while !(self.head.locks.is_idle() && self.follower.is_idle()) {
            if Instant::now() > deadline {
                return Err(self.head.timeout_error(QUIESCE_TIMEOUT));
            }
            tokio::time::sleep(QUIESCE_PAUSE).await;
        }
        Ok(())
    }

    /// Grows the VDI to `size` bytes; a smaller size is accepted and ignored, as on
    /// a block device.
    ///
    /// # Errors
    /// `ReadOnly`; `Cluster` when the cluster refuses or the size is too large.
    pub async fn set_size(&self, size: u64) -> Result<(), VolumeError> {
        self.ensure_writable()?;
        if size <= self.size() {
            return Ok(());
        }
        let client = &self.head.client;
        client.vdi(&self.head.selector).resize(size).await?;
        self.revalidator.revalidate_header().await
    }

    /// Objects of the volume.
    pub(super) fn object_count(&self) -> u64 {
        self.size().div_ceil(self.object_size())
    }

    /// Whether the object map has an object here.
    pub(super) fn is_allocated(&self, index: ObjectIndex) -> bool {
        self.head.state().map.owner(index).is_some()
    }

    /// Whether a range of one object is written in place.
    pub(super) fn is_in_place(&self, offset: u64, len: u32) -> bool {
        let head = self.head.state();
        let mut parts = extents(offset, u64::from(len), self.object_shift);
        match (parts.next(), parts.next()) {
            (Some(only), None) => head.map.owner(only.index) == Some(head.info.vid),
            _ => false,
        }
    }

    /// Allocates the object of a hole, filled with zeros, while `is_wanted`.
    ///
    /// # Errors
    /// `Io`, `Stale`.
    pub(super) async fn allocate_hole(
        &self,
        index: ObjectIndex,
        is_wanted: impl Fn() -> bool + Send,
    ) -> Result<(), VolumeError> {
        self.allocator.allocate_hole(index, is_wanted).await
    }

    /// Allocates every missing object, filled with zeros.
    ///
    /// # Errors
    /// `ReadOnly`, `Io`, `Stale`.
    pub(super) async fn allocate_all(&self) -> Result<(), VolumeError> {
        self.ensure_writable()?;
        let _token = self.writes.begin();
        self.dirty.store(true, Ordering::Release);
        let count = u32::try_from(self.object_count()).unwrap_or(u32::MAX);
        stream::iter(0..count)
            .map(|index| self.allocator.allocate_hole(ObjectIndex(index), || true))
            .buffer_unordered(PARALLEL_EXTENTS)
            .try_collect()
            .await
    }

    fn ensure_writable(&self) -> Result<(), VolumeError> {
        match self.writable {
            true => self.head.ensure_live(),
            false => Err(self.head.read_only_error()),
        }
    }

    /// First byte at or past `offset` that an object holds.
    ///
    /// # Errors
    /// `NoMoreData` when only holes follow.
    pub(super) fn seek_data(&self, offset: u64) -> Result<u64, VolumeError> {
        let head = self.head.state();
        let none = || VolumeError::NoMoreData(offset);
        if offset >= head.info.size {
            return Err(none());
        }
        let shift = self.object_shift;
        let start = u32::try_from(offset >> shift).map_err(|_| none())?;
        let (index, _) = head
            .map
            .allocated_from(ObjectIndex(start)..)
            .next()
            .ok_or_else(none)?;
        match u64::from(index.0) << shift {
            at if at >= head.info.size => Err(none()),
            at => Ok(at.max(offset)),
        }
    }

    /// First byte at or past `offset` that no object holds, or the end.
    ///
    /// # Errors
    /// `NoMoreData` at or past the end.
    pub(super) fn seek_hole(&self, offset: u64) -> Result<u64, VolumeError> {
        let head = self.head.state();
        if offset >= head.info.size {
            return Err(VolumeError::NoMoreData(offset));
        }
        let shift = self.object_shift;
        let first = u32::try_from(offset >> shift).map_err(|_| VolumeError::NoMoreData(offset))?;
        let mut index = u64::from(first);
        for (allocated, _) in head.map.allocated_from(ObjectIndex(first)..) {
            if u64::from(allocated.0) != index {
                break;
            }
            index += 1;
        }
        let at = (index << shift).max(offset);
        Ok(at.min(head.info.size))
    }

    async fn read_range(&self, offset: u64, len: u32) -> Result<Bytes, VolumeError> {
        self.head.ensure_live()?;
        self.revalidator.revalidate_for_read().await?;
        let len = clamp(offset, len, self.size());
        let mut parts = stream::iter(extents(offset, u64::from(len), self.object_shift))
            .map(|extent| self.io.read(extent))
            .buffered(PARALLEL_EXTENTS);
        let first = parts.try_next().await?.unwrap_or_default();
        if first.len() == len as usize {
            return Ok(first);
        }
        let mut whole = BytesMut::with_capacity(len as usize);
        whole.extend_from_slice(&first);
        while let Some(part) = parts.try_next().await? {
            whole.extend_from_slice(&part);
        }
        Ok(whole.freeze())
    }

    fn spawn_read(
        self: &Arc<Self>,
        offset: u64,
        len: u32,
        completion: impl FnOnce(Result<Bytes, VolumeError>) + Send + 'static,
    ) {
        let device = Arc::clone(self);
        self.runtime
            .spawn(async move { completion(device.read_range(offset, len).await) });
    }

    /// Reads an extent of an object that exists, at byte `offset` of the volume.
    fn submit_read_object(
        self: &Arc<Self>,
        view: SlotView,
        extent: Extent,
        offset: u64,
        completion: impl FnOnce(Result<Bytes, VolumeError>) + Send + 'static,
    ) {
        let Some(owner) = view.owner else {
            return completion(Ok(zeros(extent.len)));
        };
        let device = Arc::clone(self);
        self.data
            .submit_read(owner, extent, move |read| match read {
                Ok(bytes) => completion(Ok(bytes)),
                // The task revalidates the slot and retries.
                Err(error) if error.is_missing_object_or_vdi() => {
                    device.spawn_read(offset, extent.len, completion)
                }
                Err(error) => completion(Err(device.head.io_error(error))),
            });
    }

    /// Writes as a task, which may create objects. Drops `token` before `completion`.
    fn spawn_write(
        self: &Arc<Self>,
        offset: u64,
        data: Bytes,
        token: TaskTrackerToken,
        completion: impl FnOnce(Result<u32, VolumeError>) + Send + 'static,
    ) {
        let device = Arc::clone(self);
        self.runtime.spawn(async move {
            let len =
                u32::try_from(data.len()).expect("plan_write truncates to MAX_PAYLOAD_LEN, 64 MiB");
            let written = device.io.write_range(offset, data).await;
            drop(token);
            completion(written.map(|()| len));
        });
    }

    /// Clamps a write to the volume, and returns its extent and slot if it touches only
    /// one object.
    fn plan_write(
        &self,
        offset: u64,
        data: &mut Bytes,
    ) -> Result<Option<(SlotView, Extent)>, VolumeError> {
        self.ensure_writable()?;
        let head = self.head.state();
        let size = head.info.size;
        if offset >= size && !data.is_empty() {
            return Err(VolumeError::EndOfDevice(offset));
        }
        let room = usize::try_from(size.saturating_sub(offset)).unwrap_or(usize::MAX);
        data.truncate(room.min(MAX_PAYLOAD_LEN));
        let mut parts = extents(offset, data.len() as u64, self.object_shift);
        Ok(match (parts.next(), parts.next()) {
            (Some(only), None) => {
                let view = SlotView {
                    head: head.info.vid,
                    owner: head.map.owner(only.index),
                };
                Some((view, only))
            }
            _ => None,
        })
    }

    async fn flush_writes(&self) -> Result<(), VolumeError> {
        self.head.ensure_live()?;
        let _one_at_a_time = self.flushing.lock().await;
        // Cleared before the barrier, or the mark of a write that begins between the two
        // would be lost, although its commit may be after the check below.
        let marked = DirtyMark::take(&self.dirty);
        self.writes.flush_barrier().await;
        let Some(marked) = marked else {
            return self.take_loss();
        };
        // A snapshot may have overwritten a commit; revalidation follows and reconciles it.
        let asked = Instant::now();
        self.revalidator.revalidate_header().await?;
        self.head.update(|map| map.retire_commits(asked));
        // After that: what is in the cache of a VDI that has become a snapshot would be
        // thrown away.
        self.flush_object_cache().await?;
        marked.clear();
        self.take_loss()
    }
}

/// The mark that a device has writes which no flush has checked. It is set again when
/// this is dropped, because the flush failed or was cancelled.
struct DirtyMark<'a>(Option<&'a AtomicBool>);

impl<'a> DirtyMark<'a> {
    /// Clears the mark for now; `None` if it was clear.
    fn take(mark: &'a AtomicBool) -> Option<Self> {
        let is_set = mark.swap(false, Ordering::AcqRel);
        // Not `then_some`, which would make one, and drop it, in either case.
        is_set.then(|| Self(Some(mark)))
    }

    /// Leaves the mark clear: the flush is complete.
    fn clear(mut self) {
        self.0 = None;
    }
}

impl Drop for DirtyMark<'_> {
    fn drop(&mut self) {
        if let Some(mark) = self.0 {
            mark.store(true, Ordering::Release);
        }
    }
}

impl BlockDevice for Device {
    fn size(&self) -> u64 {
        self.head.state().info.size
    }

    fn is_writable(&self) -> bool {
        self.writable
    }

    fn object_size(&self) -> u64 {
        1 << self.object_shift
    }

    /// Returns every write that any client had acknowledged before this call; up to a
    /// second late after a snapshot by another client.
    ///
    /// The calling thread sends the request for a range within one object.
    fn submit_read(
        self: &Arc<Self>,
        offset: u64,
        len: u32,
        completion: impl FnOnce(Result<Bytes, VolumeError>) + Send + 'static,
    ) {
        if let Err(error) = self.head.ensure_live() {
            return completion(Err(error));
        }
        // Clamp the range. Several extents are read by a task.
        let (vid, extent, slot) = {
            let head = self.head.state();
            let len = clamp(offset, len, head.info.size);
            let mut parts = extents(offset, u64::from(len), self.object_shift);
            match (parts.next(), parts.next()) {
                (None, _) => {
                    drop(head);
                    return completion(Ok(Bytes::new()));
                }
                (Some(only), None) => (head.info.vid, only, head.map.slot(only.index)),
                (Some(_), Some(_)) => {
                    drop(head);
                    return self.spawn_read(offset, len, completion);
                }
            }
        };
        // With an expired header the task revalidates first.
        if !self.revalidator.is_header_fresh() {
            return self.spawn_read(offset, len, completion);
        }
        // The owner of the object, if the cached slot is valid; a query otherwise.
        let owner = match slot {
            Slot::Owned => Some(vid),
            Slot::Inherited(owner) if self.head.is_cache_valid(slot) => Some(owner),
            Slot::Hole | Slot::Reclaiming if self.head.is_cache_valid(slot) => None,
            Slot::Hole | Slot::Reclaiming => {
                let device = Arc::clone(self);
                return self
                    .io
                    .queries
                    .query_slot(extent.index, move |answer| match answer {
                        Ok(view) if view.head == device.head.vid() => {
                            device.submit_read_object(view, extent, offset, completion);
                        }
                        Ok(_former_head) => device.spawn_read(offset, extent.len, completion),
                        Err(error) => completion(Err(error)),
                    });
            }
            Slot::Inherited(_) | Slot::InDoubt { .. } => {
                return self.spawn_read(offset, extent.len, completion);
            }
        };
        self.submit_read_object(SlotView { head: vid, owner }, extent, offset, completion);
    }

    /// A range within one object that exists is sent by the calling thread. At most
    /// 64 MiB are written at once.
    fn submit_write(
        self: &Arc<Self>,
        offset: u64,
        mut data: Bytes,
        completion: impl FnOnce(Result<u32, VolumeError>) + Send + 'static,
    ) {
        // Clamp the write and find its object.
        let plan = match self.plan_write(offset, &mut data) {
            Ok(plan) => plan,
            Err(error) => return completion(Err(error)),
        };
        let len =
            u32::try_from(data.len()).expect("plan_write truncates to MAX_PAYLOAD_LEN, 64 MiB");
        let token = self.writes.begin();
        self.dirty.store(true, Ordering::Release);
        // First writes and writes to several objects run as a task.
        let Some((view, extent)) = plan.filter(|(view, _)| view.is_owned()) else {
            return self.spawn_write(offset, data, token, completion);
        };
        let (device, retry_data) = (Arc::clone(self), data.clone());
        self.data
            .submit_write(view.head, extent, data, move |written| {
                let failed = match written {
                    Ok(()) if device.head.vid() == view.head => {
                        device.head.touch_mtime();
                        drop(token);
                        return completion(Ok(len));
                    }
                    // The head has moved: it may have copied the object before this
                    // write. Write again.
                    Ok(()) => None,
                    Err(error) if error.is_read_only() || error.is_missing_object_or_vdi() => None,
                    Err(error) => Some(error),
                };
                match failed {
                    None => device.spawn_write(offset, retry_data, token, completion),
                    // The outcome is unknown: a retry could overwrite a newer write.
                    Some(error) => {
                        drop(token);
                        completion(Err(device.head.io_error(error)));
                    }
                }
            });
    }

    async fn discard(self: &Arc<Self>, offset: u64, len: u64) -> Result<(), VolumeError> {
        self.ensure_writable()?;
        let token = self.writes.begin();
        self.dirty.store(true, Ordering::Release);
        let deallocator = Arc::clone(&self.deallocator);
        // As a task: it runs to its end even if the caller is dropped.
        let task = self.runtime.spawn(async move {
            let discarded = deallocator.discard(offset, len).await;
            drop(token);
            discarded
        });
        task.await
            .unwrap_or_else(|ended| Err(self.head.task_error(&ended)))
    }

    /// A sheep acknowledges durable writes (protocol 7.7), so this waits for those in
    /// flight and checks that no snapshot has overtaken one of them. What is in the object
    /// cache of a gateway is written back.
    async fn flush(self: &Arc<Self>) -> Result<(), VolumeError> {
        self.flush_writes().await
    }

    async fn block_status(self: &Arc<Self>, offset: u64) -> Result<BlockStatus, VolumeError> {
        self.revalidator.refresh().await?;
        let hole = self.seek_hole(offset)?;
        if hole > offset {
            return Ok(BlockStatus {
                allocated: true,
                end: hole,
            });
        }
        let end = self.seek_data(offset).unwrap_or_else(|_| self.size());
        Ok(BlockStatus {
            allocated: false,
            end,
        })
    }
}

/// Bytes of `[offset, offset + len)` that lie in a volume of `size` bytes.
fn clamp(offset: u64, len: u32, size: u64) -> u32 {
    u32::try_from(size.saturating_sub(offset))
        .unwrap_or(u32::MAX)
        .min(len)
}
