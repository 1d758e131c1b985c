//! A write-back cache: writes that are acknowledged before they are on the device.
//!
//! ```text
//! write 4 KiB, write 4 KiB, ...  -> coalesced into the dirty extent, acknowledged
//! extent full, or the next write is elsewhere, or DIRTY_EXPIRE has passed
//!                                -> write-back of the extent, in flight
//! flush, or a read of these bytes
//!                                -> waits until it has ended
//! ```
//!
//! Reads and writes that overlap dirty or in-flight data wait for the write-back to
//! finish. Dirty bytes are bounded, for one volume and for the process; a writer
//! that is faster than the device waits for it.
//!
//! # Errors
//!
//! A write-back that fails belongs to a write that was acknowledged, so the error
//! has `errseq_t` semantics. Errors are counted, and every [`Opener`] has a cursor. Its
//! next `sync` returns a new error and advances the cursor. Its `check` returns the
//! error without advancing: close(2) may be one of several of a file description.
//! Writes cannot be buffered without an opener. The device's own `flush` returns the
//! errors that no opener has been given.
//!
//! ```text
//! buffered ── write-back fails ─► error mode: drain, write through
//!     ▲                               │
//!     └────────── a write succeeds ◄──┘
//! ```

use std::ops::Range;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use bytes::Bytes;
use sheep_client::error::Chain;
use tokio::runtime::Handle;
use tokio::sync::Notify;
use tokio::time::Instant;

use super::block_device::{BlockDevice, BlockStatus};
use super::dirty_buffer::{Buffered, DirtyBuffer, PendingWriteback};
use super::error::VolumeError;
use crate::poison;

/// Dirty bytes of a device before writers wait.
const DIRTY_LIMIT: usize = 16 << 20;
/// Dirty bytes of all devices of this process before writers wait.
const GLOBAL_DIRTY_LIMIT: usize = 256 << 20;
/// Writes in flight before writers wait; more would only queue in the client.
const MAX_IN_FLIGHT: usize = 256;
/// Age at which the flusher writes the dirty extent.
const DIRTY_EXPIRE: Duration = Duration::from_millis(200);

/// Dirty bytes of all devices: memory is the process's.
static GLOBAL_DIRTY_BYTES: AtomicUsize = AtomicUsize::new(0);

/// A write-back cache over a device.
///
/// ```
/// use sheepfs_vfs::BlockDevice as _;
/// use sheepfs_vfs::volume::{MemoryDevice, WriteBack};
/// # tokio::runtime::Runtime::new()?.block_on(async {
///
/// let device = MemoryDevice::new(vec![0; 1 << 20]);
/// let cache = WriteBack::new(device.clone(), "memory".to_owned());
/// let opener = cache.open();
/// // The completion runs when the bytes are buffered.
/// opener.submit_write(0, b"first", |taken| assert_eq!(taken.ok(), Some(5)));
/// opener.sync().await?;
/// assert_eq!(device.read_at(0, 5).await?, "first");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// # })?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct WriteBack<D> {
    device: Arc<D>,
    /// For log lines.
    name: String,
    runtime: Handle,
    /// Bytes that are dirty or in flight. Charged before the write is acknowledged, so
    /// that a read after the acknowledgement sees the overlap.
    dirty_bytes: AtomicUsize,
    state: Mutex<State>,
    /// Notified when a write-back ends.
    completed: Notify,
    /// Cursor of the errors that any opener has been given.
    reported: AtomicU64,
}

#[derive(Debug, Default)]
struct State {
    buffer: DirtyBuffer,
    errors: Errors,
    flusher_running: bool,
}

/// The error sequence.
#[derive(Debug, Default)]
struct Errors {
    count: u64,
    last: Option<VolumeError>,
    /// No write has succeeded since the last one.
    error_mode: bool,
}

impl Errors {
    /// The last error if there is one that `seen` does not include.
    fn since(&self, seen: u64) -> Result<(), VolumeError> {
        match &self.last {
            Some(error) if self.count > seen => Err(error.clone()),
            _ => Ok(()),
        }
    }
}

/// A writer with its error cursor: an open file, a connection.
#[derive(Debug)]
pub struct Opener<D> {
    cache: Arc<WriteBack<D>>,
    seen: AtomicU64,
}

impl<D: BlockDevice> Opener<D> {
    /// Copies `data` to write it at byte `offset` soon, and runs `completion` with the
    /// number of bytes taken, as [`BlockDevice::submit_write`] does with those
    /// written.
    ///
    /// Does not block; `completion` waits while as much is dirty as may be. The data is on
    /// the device when [`Self::sync`] has returned; dropping the cache before loses it.
    pub fn submit_write(
        &self,
        offset: u64,
        data: &[u8],
        completion: impl FnOnce(Result<u32, VolumeError>) + Send + 'static,
    ) {
        self.cache.submit_buffered(offset, data, completion);
    }

    /// Returns once everything written before is durable.
    ///
    /// # Errors
    /// Those of write-back since the last call, each once, and as
    /// [`BlockDevice::flush`].
    pub async fn sync(&self) -> Result<(), VolumeError> {
        self.cache.flush_dirty().await;
        let flushed = self.cache.device.flush().await;
        self.cache.check_and_advance(&self.seen)?;
        flushed
    }

    /// The errors of write-back that [`Self::sync`] has not returned yet, as far as
    /// write-backs have ended.
    ///
    /// # Errors
    /// The last of them.
    pub fn check(&self) -> Result<(), VolumeError> {
        let state = self.cache.state();
        let checked = state.errors.since(self.seen.load(Ordering::Acquire));
        if checked.is_err() {
            self.cache
                .reported
                .fetch_max(state.errors.count, Ordering::AcqRel);
        }
        checked
    }
}

impl<D> WriteBack<D> {
    fn state(&self) -> MutexGuard<'_, State> {
        poison::lock(&self.state)
    }

    fn charge(&self, len: usize) {
        GLOBAL_DIRTY_BYTES.fetch_add(len, Ordering::Relaxed);
        self.dirty_bytes.fetch_add(len, Ordering::Release);
    }

    fn uncharge(&self, len: usize) {
        self.dirty_bytes.fetch_sub(len, Ordering::Release);
        GLOBAL_DIRTY_BYTES.fetch_sub(len, Ordering::Relaxed);
    }

    fn is_clean(&self) -> bool {
        self.dirty_bytes.load(Ordering::Acquire) == 0
    }

    /// Whether one in `parts` of the limits is exceeded.
    fn over_watermark(&self, state: &State, parts: usize) -> bool {
        state.buffer.writes_in_flight() >= MAX_IN_FLIGHT / parts
            || self.dirty_bytes.load(Ordering::Acquire) >= DIRTY_LIMIT / parts
            || GLOBAL_DIRTY_BYTES.load(Ordering::Relaxed) >= GLOBAL_DIRTY_LIMIT
    }

    /// Whether any byte of the range is dirty or in flight.
    fn overlaps(&self, offset: u64, len: u64) -> bool {
        !self.is_clean()
            && self
                .state()
                .buffer
                .overlaps(&(offset..offset.saturating_add(len)))
    }

    fn check_and_advance(&self, seen: &AtomicU64) -> Result<(), VolumeError> {
        let state = self.state();
        let before = seen.swap(state.errors.count, Ordering::AcqRel);
        let checked = state.errors.since(before);
        if checked.is_err() {
            self.reported
                .fetch_max(state.errors.count, Ordering::AcqRel);
        }
        checked
    }
}

impl<D> Drop for WriteBack<D> {
    fn drop(&mut self) {
        self.uncharge(self.dirty_bytes.load(Ordering::Acquire));
    }
}

impl<D: BlockDevice> WriteBack<D> {
    /// A cache over `device`; `name` is for the log.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn new(device: Arc<D>, name: String) -> Arc<Self> {
        Arc::new(Self {
            device,
            name,
            runtime: Handle::current(),
            dirty_bytes: AtomicUsize::new(0),
            state: Mutex::default(),
            completed: Notify::new(),
            reported: AtomicU64::new(0),
        })
    }

    /// The device below.
    pub fn device(&self) -> &Arc<D> {
        &self.device
    }

    /// Begins to write through the cache; errors until now are not reported.
    pub fn open(self: &Arc<Self>) -> Opener<D> {
        let seen = AtomicU64::new(self.state().errors.count);
        let cache = Arc::clone(self);
        Opener { cache, seen }
    }

    fn submit_buffered(
        self: &Arc<Self>,
        offset: u64,
        data: &[u8],
        completion: impl FnOnce(Result<u32, VolumeError>) + Send + 'static,
    ) {
        let room = self.device.size().saturating_sub(offset);
        let room = usize::try_from(room).unwrap_or(usize::MAX);
        let inside = data.len().min(room);
        let len = match u32::try_from(inside) {
            Ok(len) if len > 0 && self.device.is_writable() => len,
            // Nothing to buffer: the device reports the error, or has nothing to do.
            _ => {
                let data = Bytes::copy_from_slice(data);
                return self.device.submit_write(offset, data, completion);
            }
        };
        // Clamped to the device.
        let data = &data[..inside];
        let owned = |data| Bytes::copy_from_slice(data);
        let writes = {
            let mut state = self.state();
            let full = self.over_watermark(&state, 1);
            // In error mode writes are synchronous. The same if the global limit is
            // exhausted by other volumes: there is nothing of ours to wait for.
            if state.errors.error_mode || full && self.is_clean() {
                drop(state);
                return self.write_through_after_drain(offset, owned(data), completion);
            }
            // Over the watermark the writer is throttled.
            if full {
                drop(state);
                return self.write_when_below_watermark(offset, owned(data), completion);
            }
            // Coalesce, or start a new extent and get the old one to write.
            let object_size = self.device.object_size();
            match state.buffer.buffer(offset, data, object_size) {
                Buffered::Taken { grown, writes } => {
                    self.charge(grown);
                    let dirty = state.buffer.dirty_since().is_some();
                    if dirty && !std::mem::replace(&mut state.flusher_running, true) {
                        self.spawn_flusher();
                    }
                    writes
                }
                // Retry once the write-back of the overlapping range has ended.
                Buffered::Overlaps(write) => {
                    drop(state);
                    self.start_writeback(write);
                    return self.write_when_below_watermark(offset, owned(data), completion);
                }
            }
        };
        // Acknowledge first; the write-back runs in the background.
        completion(Ok(len));
        self.start_writeback(writes);
    }

    /// Throttles a writer: waits for write-back, then buffers the write.
    fn write_when_below_watermark(
        self: &Arc<Self>,
        offset: u64,
        data: Bytes,
        completion: impl FnOnce(Result<u32, VolumeError>) + Send + 'static,
    ) {
        let cache = Arc::clone(self);
        self.runtime.spawn(async move {
            let range = offset..offset + data.len() as u64;
            while cache.must_wait(&range).await {}
            let completion: Box<dyn FnOnce(Result<u32, VolumeError>) + Send> = Box::new(completion);
            cache.submit_buffered(offset, &data, completion);
        });
    }

    /// Waits for one write-back to end if the cache is over the low watermark, or the
    /// range overlaps one in flight; false if neither is so.
    async fn must_wait(self: &Arc<Self>, range: &Range<u64>) -> bool {
        let completed = self.completed.notified();
        let nothing_in_flight = {
            let state = self.state();
            // Below half, so that not every single write has to wait.
            let full = self.over_watermark(&state, 2) && !self.is_clean();
            if !full && !state.buffer.overlaps_in_flight(range) {
                return false;
            }
            state.buffer.writes_in_flight() == 0
        };
        if nothing_in_flight {
            // Only the dirty extent counts; start its write-back.
            self.write_dirty();
        }
        completed.await;
        true
    }

    /// Drains the cache, then writes synchronously.
    fn write_through_after_drain(
        self: &Arc<Self>,
        offset: u64,
        data: Bytes,
        completion: impl FnOnce(Result<u32, VolumeError>) + Send + 'static,
    ) {
        let cache = Arc::clone(self);
        self.runtime.spawn(async move {
            cache.flush_dirty().await;
            let written = cache.device.write_at(offset, data).await;
            if written.is_ok() {
                cache.state().errors.error_mode = false;
            }
            completion(written);
        });
    }

    /// The flusher: writes the dirty extent when it expires; ends when there is none.
    fn spawn_flusher(self: &Arc<Self>) {
        let cache = Arc::downgrade(self);
        self.runtime.spawn(async move {
            let mut expires = Instant::now() + DIRTY_EXPIRE;
            loop {
                tokio::time::sleep_until(expires).await;
                // Dropping a device without a flush discards dirty data.
                let Some(cache) = cache.upgrade() else {
                    return;
                };
                let write = {
                    let mut state = cache.state();
                    let Some(since) = state.buffer.dirty_since() else {
                        state.flusher_running = false;
                        return;
                    };
                    expires = since + DIRTY_EXPIRE;
                    let expired = expires <= Instant::now();
                    expired.then(|| state.buffer.take_dirty()).flatten()
                };
                cache.start_writeback(write);
            }
        });
    }

    fn write_dirty(self: &Arc<Self>) {
        let write = self.state().buffer.take_dirty();
        self.start_writeback(write);
    }

    fn start_writeback(self: &Arc<Self>, writes: impl IntoIterator<Item = PendingWriteback>) {
        for PendingWriteback {
            number,
            offset,
            data,
        } in writes
        {
            let cache = Arc::clone(self);
            let len = data.len();
            self.device.submit_write(offset, data, move |written| {
                let failed = match written {
                    Ok(written) if written as usize == len => None,
                    Ok(written) => Some(VolumeError::EndOfDevice(offset + u64::from(written))),
                    Err(error) => Some(error),
                };
                {
                    let mut state = cache.state();
                    state.buffer.complete(number);
                    cache.uncharge(len);
                    if let Some(error) = failed {
                        cache.record_error(&mut state.errors, offset, len, error);
                    }
                }
                cache.completed.notify_waiters();
            });
        }
    }

    /// Counts an error and enters error mode; logs only the first of several in a row.
    fn record_error(&self, errors: &mut Errors, offset: u64, len: usize, error: VolumeError) {
        if !std::mem::replace(&mut errors.error_mode, true) {
            tracing::error!(
                offset,
                len,
                "write-back to {} failed, its data is lost: {}; not logged again until a write succeeds",
                self.name,
                Chain(&error)
            );
        }
        errors.count += 1;
        errors.last = Some(error);
    }

    /// Drains the cache: returns once every write buffered before has been written or has
    /// failed. Openers get the errors from `sync` and `check`.
    pub async fn flush_dirty(self: &Arc<Self>) {
        if self.is_clean() {
            return;
        }
        self.write_dirty();
        let before = self.state().buffer.next_number();
        loop {
            let completed = self.completed.notified();
            if !self.state().buffer.has_earlier_than(before) {
                return;
            }
            completed.await;
        }
    }
}

impl<D: BlockDevice> BlockDevice for WriteBack<D> {
    fn size(&self) -> u64 {
        self.device.size()
    }

    fn is_writable(&self) -> bool {
        self.device.is_writable()
    }

    fn object_size(&self) -> u64 {
        self.device.object_size()
    }

    fn submit_read(
        self: &Arc<Self>,
        offset: u64,
        len: u32,
        completion: impl FnOnce(Result<Bytes, VolumeError>) + Send + 'static,
    ) {
        if !self.overlaps(offset, len.into()) {
            return self.device.submit_read(offset, len, completion);
        }
        let cache = Arc::clone(self);
        self.runtime.spawn(async move {
            cache.flush_dirty().await;
            cache.device.submit_read(offset, len, completion);
        });
    }

    /// Writes through. An overlapping write-back is drained first, or its older bytes
    /// would overwrite these.
    fn submit_write(
        self: &Arc<Self>,
        offset: u64,
        data: Bytes,
        completion: impl FnOnce(Result<u32, VolumeError>) + Send + 'static,
    ) {
        if !self.overlaps(offset, data.len() as u64) {
            return self.device.submit_write(offset, data, completion);
        }
        let cache = Arc::clone(self);
        self.runtime.spawn(async move {
            cache.flush_dirty().await;
            cache.device.submit_write(offset, data, completion);
        });
    }

    async fn discard(self: &Arc<Self>, offset: u64, len: u64) -> Result<(), VolumeError> {
        self.flush_dirty().await;
        self.device.discard(offset, len).await
    }

    /// Also returns write-back errors that no opener has been given.
    async fn flush(self: &Arc<Self>) -> Result<(), VolumeError> {
        self.flush_dirty().await;
        let flushed = self.device.flush().await;
        self.check_and_advance(&self.reported)?;
        flushed
    }

    async fn block_status(self: &Arc<Self>, offset: u64) -> Result<BlockStatus, VolumeError> {
        self.flush_dirty().await;
        self.device.block_status(offset).await
    }
}
