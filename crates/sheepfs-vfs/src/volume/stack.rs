//! The stack that a frontend attaches: write-back over preallocation over the device.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use sheep_client::{Client, VdiInfo, VdiSelector};

use super::block_device::{BlockDevice, BlockStatus};
use super::device::{Device, VolumeOptions};
use super::error::VolumeError;
use super::preallocate::Preallocate;
use super::write_back::{Opener, WriteBack};

/// Between two looks whether a sheep is still reachable.
const OFFLINE_POLL_INTERVAL: Duration = Duration::from_millis(100);

/// Someone who writes to a volume through its write-back cache.
pub type VolumeWriter = Opener<Preallocate>;

/// An attached VDI.
///
/// Writes go through to the cluster unless they are made by a [`VolumeWriter`]. As a
/// [`BlockDevice`] its `flush` also returns errors of write-back that it has not
/// returned before.
///
/// A volume that is dropped without [`Volume::close`] keeps the VDI's lock.
#[derive(Debug)]
pub struct Volume {
    cache: Arc<WriteBack<Preallocate>>,
}

impl Volume {
    /// Attaches a VDI: the head to read and write, a snapshot to read.
    ///
    /// # Errors
    /// `Cluster` with the refusal when there is no such VDI or someone else has
    /// its lock, `TooLarge`.
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

    /// Which VDI this is, as it was asked for.
    pub fn selector(&self) -> &VdiSelector {
        &self.device().head().selector
    }

    /// The facts of the VDI as last seen.
    pub fn info(&self) -> VdiInfo {
        self.device().head().info()
    }

    /// Bytes of the objects that exist, inherited ones included, as last seen.
    pub fn allocated(&self) -> u64 {
        let head = self.device().head().state();
        head.map.allocated().saturating_mul(head.info.object_size())
    }

    /// When it was attached, last written through this volume, or seen to have
    /// been changed by others, whichever is latest: what others did before cannot
    /// be known, and a backup must not skip it. A snapshot's is when it was taken.
    pub fn modified(&self) -> SystemTime {
        self.device().head().modified()
    }

    /// Begins to write through the write-back cache; errors until now are not
    /// reported.
    pub fn writer(&self) -> VolumeWriter {
        self.cache.open()
    }

    /// Notices what others did to the VDI up to a second ago.
    ///
    /// # Errors
    /// `Stale` when the VDI was deleted or rolled back. That the cluster does
    /// not answer is not an error here: what is known stays in use.
    pub async fn refresh(&self) -> Result<(), VolumeError> {
        self.device().revalidator().refresh().await
    }

    /// How long what is known of the VDI is not older than a second.
    pub fn fresh_for(&self) -> Duration {
        self.device().revalidator().fresh_for()
    }

    /// Notices what was done to the VDI's header before this call: its end, a
    /// snapshot, another size.
    ///
    /// # Errors
    /// `Stale` when it was deleted or rolled back, `Io` when the cluster does not
    /// answer.
    pub async fn revalidate_header(&self) -> Result<(), VolumeError> {
        self.device().head().ensure_live()?;
        self.device().revalidator().revalidate_header().await
    }

    /// Notices everything that was done to the VDI before this call, as opening a
    /// file must.
    ///
    /// # Errors
    /// As [`Self::revalidate_header`].
    pub async fn revalidate(&self) -> Result<(), VolumeError> {
        self.cache.device().drain().await;
        self.device().revalidator().revalidate().await
    }

    /// Grows the VDI to `size` bytes; a smaller size is accepted and ignored, as on
    /// a block device.
    ///
    /// # Errors
    /// `ReadOnly`; `Cluster` when the cluster refuses or the size is too large.
    pub async fn set_size(&self, size: u64) -> Result<(), VolumeError> {
        self.device().set_size(size).await
    }

    /// Makes every object that does not exist, as zeros.
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

    /// Waits until everything that was buffered before is on the cluster, or has
    /// failed; the writers are told.
    pub async fn flush_dirty(&self) {
        self.cache.flush_dirty().await;
    }

    /// Waits for what close(2) waits for, buffered writes and preallocation, but
    /// not while no sheep is reachable: every exec(2) closes files, that of a sheep
    /// as well.
    pub async fn flush_unless_offline(&self) {
        let offline = async {
            while self.device().head().client.peer().is_some() {
                tokio::time::sleep(OFFLINE_POLL_INTERVAL).await;
            }
        };
        let flush = async {
            self.cache.flush_dirty().await;
            self.cache.device().drain().await;
        };
        tokio::select! {
            biased;
            () = flush => {}
            () = offline => {}
        }
    }

    /// Finishes what is in flight, looks for a snapshot once more, and gives the
    /// lock back.
    ///
    /// # Errors
    /// As [`BlockDevice::flush`]; the volume stays usable and locked then.
    pub async fn close(&self) -> Result<(), VolumeError> {
        match self.cache.flush().await {
            // Nothing can be lost that is gone already.
            Ok(()) | Err(VolumeError::Stale(_)) => {}
            Err(error) => return Err(error),
        }
        self.device().close().await
    }

    /// Gives the lock back, if there is one.
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
