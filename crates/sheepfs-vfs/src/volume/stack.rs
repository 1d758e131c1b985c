//! The stack that a frontend attaches: write-back over preallocation over the device.

use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use sheep_client::error::Chain;
use sheep_client::{Client, VdiInfo, VdiSelector};
use sheep_proto::ObjectIndex;

use super::block_device::{BlockDevice, BlockStatus};
use super::device::{Device, VolumeOptions};
use super::error::VolumeError;
use super::extent_map::{ChangedExtent, ExtentMap, ExtentView, OwnedExtent};
use super::preallocate::Preallocate;
use super::write_back::{Opener, WriteBack};

/// Poll interval while waiting for an outage.
const OFFLINE_POLL_INTERVAL: Duration = Duration::from_millis(100);

/// A writer to a volume's write-back cache, with its error cursor.
pub type VolumeWriter = Opener<Preallocate>;

/// An attached VDI.
///
/// Writes go through to the cluster unless they are made by a [`VolumeWriter`]. As a
/// [`BlockDevice`] its `flush` also returns errors of write-back that it has not
/// returned before.
///
/// A volume that is dropped without [`Volume::close`] keeps the VDI's lock.
///
/// ```
/// use sheepfs_vfs::{BlockDevice as _, Volume, VolumeOptions, resolve};
/// # use sheepfs_vfs::client::{Client, ClientConfig, NewVdi, VdiName};
/// # use sheep_embedded::{Config, Server, StoreKind};
/// # tokio::runtime::Runtime::new()?.block_on(async {
/// # let server = Server::start(Config::new(StoreKind::Memory)).await?;
/// # let client = Client::connect(ClientConfig::new(server.local_address().into())).await?;
/// # client.cluster().create_vdi(&NewVdi::new(VdiName::new("vm1")?, 8 << 20)).await?;
///
/// let selector = resolve::resolve(&client, b"vm1").await?;
/// let volume = Volume::open(client, selector, VolumeOptions::default()).await?;
/// volume.write_at(4 << 20, "second object".into()).await?;
/// let hole = volume.block_status(0).await?;
/// assert!(!hole.allocated && hole.end == 4 << 20);
/// volume.discard(4 << 20, 4 << 20).await?;
/// assert_eq!(volume.allocated(), 0);
/// volume.close().await?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// # })?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct Volume {
    cache: Arc<WriteBack<Preallocate>>,
}

impl Volume {
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
        let name = selector.to_string();
        let device = Device::open(client, selector, options).await?;
        let cache = WriteBack::new(Preallocate::new(device), name);
        Ok(Arc::new(Self { cache }))
    }

    fn device(&self) -> &Device {
        self.cache.device().device()
    }

    /// The selector that the volume was opened with.
    pub fn selector(&self) -> &VdiSelector {
        &self.device().head().selector
    }

    /// The header of the VDI as last seen.
    pub fn info(&self) -> VdiInfo {
        self.device().head().info()
    }

    /// Bytes of the objects that exist, inherited ones included, as last seen.
    pub fn allocated(&self) -> u64 {
        let head = self.device().head().state();
        head.map.allocated().saturating_mul(head.info.object_size())
    }

    /// The mtime: the latest of attach, last write through this volume, and last change
    /// seen of another client. Changes before the attach have unknown times, and a backup
    /// must not skip them. The mtime of a snapshot is its creation.
    pub fn modified(&self) -> SystemTime {
        self.device().head().modified()
    }

    /// Begins to write through the write-back cache; errors until now are not
    /// reported.
    pub fn writer(&self) -> VolumeWriter {
        self.cache.open()
    }

    /// Whether the VDI was deleted or rolled back, as last seen. Final: all I/O fails.
    pub fn is_stale(&self) -> bool {
        self.device().head().ensure_live().is_err()
    }

    /// Revalidates the header and the index if they are older than a second.
    ///
    /// # Errors
    /// `Stale` when the VDI was deleted or rolled back. A timeout is
    /// no error here: the cached state stays in use.
    pub async fn refresh(&self) -> Result<(), VolumeError> {
        self.device().revalidator().refresh().await
    }

    /// Remaining TTL of the cached header and index.
    pub fn fresh_for(&self) -> Duration {
        self.device().revalidator().fresh_for()
    }

    /// Revalidates the header now: deletion, snapshot, size.
    ///
    /// # Errors
    /// `Stale` when it was deleted or rolled back, `Io` when the cluster does not
    /// answer.
    pub async fn revalidate_header(&self) -> Result<(), VolumeError> {
        self.device().head().ensure_live()?;
        self.device().revalidator().revalidate_header().await
    }

    /// Revalidates header and index now, for close-to-open consistency.
    ///
    /// # Errors
    /// As [`Self::revalidate_header`].
    pub async fn revalidate(&self) -> Result<(), VolumeError> {
        self.cache.device().drain().await;
        self.device().revalidator().revalidate().await
    }

    /// Revalidates the header and the part of the index that a range of bytes needs, now
    /// and after writing back dirty data.
    ///
    /// # Errors
    /// As [`Self::revalidate`].
    pub async fn revalidate_extents(&self, range: Range<u64>) -> Result<(), VolumeError> {
        self.cache.flush_dirty().await;
        let shift = self.device().head().state().info.object_shift;
        let index = |byte: u64| ObjectIndex(u32::try_from(byte >> shift).unwrap_or(u32::MAX));
        let objects = index(range.start)..=index(range.end.saturating_sub(1).max(range.start));
        self.device()
            .revalidator()
            .revalidate_extents(objects)
            .await
    }

    /// At most `max` extents of a range, by owner, as last seen and as far as the
    /// volume goes, in ascending order without gaps.
    pub fn owned_extents(&self, range: Range<u64>, max: usize) -> Vec<OwnedExtent> {
        self.with_extents(|now| now.owned(range).take(max).collect())
    }

    /// At most `max` extents of a range that may or may not differ from `since`, as
    /// last seen and as far as the volume goes, in ascending order without gaps.
    /// Bytes past the end of `since` differ.
    pub fn changed_extents(
        &self,
        since: &ExtentMap,
        range: Range<u64>,
        max: usize,
    ) -> Vec<ChangedExtent> {
        let since = since.view();
        self.with_extents(|now| now.changed_since(since, range).take(max).collect())
    }

    fn with_extents<T>(&self, read: impl FnOnce(ExtentView<'_>) -> T) -> T {
        let head = self.device().head().state();
        read(ExtentView {
            size: head.info.size,
            object_shift: head.info.object_shift,
            owners: head.map.owners(),
        })
    }

    /// Grows the VDI to `size` bytes; a smaller size is accepted and ignored, as on
    /// a block device.
    ///
    /// # Errors
    /// `ReadOnly`; `Cluster` when the cluster refuses or the size is too large.
    pub async fn set_size(&self, size: u64) -> Result<(), VolumeError> {
        self.device().set_size(size).await
    }

    /// Allocates every missing object, filled with zeros.
    ///
    /// # Errors
    /// `ReadOnly`, `Io` when the cluster refuses, `Stale`.
    pub async fn allocate_all(&self) -> Result<(), VolumeError> {
        self.device().allocate_all().await
    }

    /// First byte at or past `offset` that an object holds, as last seen. Buffered
    /// writes count once they were flushed.
    ///
    /// # Errors
    /// `NoMoreData` when only holes follow.
    pub fn seek_data(&self, offset: u64) -> Result<u64, VolumeError> {
        self.device().seek_data(offset)
    }

    /// First byte at or past `offset` that no object holds, or the end, as last
    /// seen. Buffered writes count once they were flushed.
    ///
    /// # Errors
    /// `NoMoreData` at or past the end.
    pub fn seek_hole(&self, offset: u64) -> Result<u64, VolumeError> {
        self.device().seek_hole(offset)
    }

    /// Reads and writes through the object cache of the gateway from now on, if it has
    /// one, as sheep before 1.0 may. An acknowledged write is in that cache only; a flush
    /// makes it durable, or returns `CacheLost` once when it was lost with that sheep.
    ///
    /// # Errors
    /// `Cluster` when the cache holds changes of another client, or the cluster does not
    /// answer; the cache is not used then.
    pub async fn use_object_cache(&self) -> Result<(), VolumeError> {
        self.device().use_object_cache().await
    }

    /// Flushes and drops what the object cache of the gateway has of the volume, and goes
    /// past all such caches from now on. Writes that were lost with a sheep are for the
    /// next flush to report.
    ///
    /// # Errors
    /// `Io` when the cluster does not answer, `Stale`; the cache stays in use then.
    pub async fn stop_object_cache(&self) -> Result<(), VolumeError> {
        self.cache.flush_dirty().await;
        self.device().stop_object_cache().await
    }

    /// Whether the volume uses an object cache.
    pub fn uses_object_cache(&self) -> bool {
        self.device().uses_object_cache()
    }

    /// Drains the write-back cache, and the object cache of the gateway if it is used; so
    /// the replicas have every write that was acknowledged. Writes that were lost are
    /// reported by the writers' `sync` and by `flush`, not here.
    ///
    /// # Errors
    /// `Io` when the cluster does not answer, `Stale`.
    pub async fn flush_caches(&self) -> Result<(), VolumeError> {
        self.cache.flush_dirty().await;
        self.device().flush_object_cache().await
    }

    /// The writes that were lost with the object cache of a sheep, which the next flush
    /// reports.
    ///
    /// # Errors
    /// `CacheLost`.
    pub fn check_loss(&self) -> Result<(), VolumeError> {
        self.device().check_loss()
    }

    /// Drains the write-back cache. Errors are reported by the writers' `sync` and by
    /// `flush`, not here.
    pub async fn flush_dirty(&self) {
        self.cache.flush_dirty().await;
    }

    /// Drains the write-back cache, preallocation and the object cache of the gateway, as
    /// close(2) does; returns early if no sheep is reachable. Every exec(2) closes files, that of a restarting sheep, too,
    /// so close(2) must not wait for one.
    pub async fn flush_unless_offline(&self) {
        let offline = async {
            while self.device().head().client.peer().is_some() {
                tokio::time::sleep(OFFLINE_POLL_INTERVAL).await;
            }
        };
        let flush = async {
            self.cache.flush_dirty().await;
            self.cache.device().drain().await;
            if let Err(error) = self.device().flush_object_cache().await {
                tracing::debug!("not flushed at close: {}", Chain(&error));
            }
        };
        tokio::select! {
            biased;
            () = flush => {}
            () = offline => {}
        }
    }

    /// Drains writes, checks for a concurrent snapshot, and releases the lock.
    ///
    /// # Errors
    /// As [`BlockDevice::flush`]; the volume stays usable and locked then.
    pub async fn close(&self) -> Result<(), VolumeError> {
        match self.cache.flush().await {
            // The VDI was deleted: there is nothing left to flush.
            Ok(()) | Err(VolumeError::Stale(_)) => {}
            Err(error) => return Err(error),
        }
        self.device().close().await
    }

    /// Releases the lock, if there is one. That of a VDI that was deleted or rolled back
    /// went with it.
    ///
    /// # Errors
    /// `Cluster` when the cluster does not answer.
    pub async fn release_lock(&self) -> Result<(), VolumeError> {
        self.device().release_lock().await
    }
}

impl BlockDevice for Volume {
    fn size(&self) -> u64 {
        self.cache.size()
    }

    fn is_writable(&self) -> bool {
        self.cache.is_writable()
    }

    fn object_size(&self) -> u64 {
        self.cache.object_size()
    }

    fn submit_read(
        self: &Arc<Self>,
        offset: u64,
        len: u32,
        completion: impl FnOnce(Result<Bytes, VolumeError>) + Send + 'static,
    ) {
        self.cache.submit_read(offset, len, completion);
    }

    fn submit_write(
        self: &Arc<Self>,
        offset: u64,
        data: Bytes,
        completion: impl FnOnce(Result<u32, VolumeError>) + Send + 'static,
    ) {
        self.cache.submit_write(offset, data, completion);
    }

    async fn discard(self: &Arc<Self>, offset: u64, len: u64) -> Result<(), VolumeError> {
        self.cache.discard(offset, len).await
    }

    async fn flush(self: &Arc<Self>) -> Result<(), VolumeError> {
        self.cache.flush().await
    }

    async fn block_status(self: &Arc<Self>, offset: u64) -> Result<BlockStatus, VolumeError> {
        self.cache.block_status(offset).await
    }
}
