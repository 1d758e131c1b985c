//! An open volume: write, truncate, flush.

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;

use super::kernel_cache::KernelCache;
use crate::attributes::Invalidation;
use crate::error::FsError;
use crate::file_end::FileEnd;
use crate::ino::Ino;
use crate::volume::{BlockDevice as _, Volume, VolumeError, VolumeWriter};

/// Bytes of the largest page that Linux has on any machine.
const LARGEST_PAGE: u64 = 1 << 16;

/// A volume, with the state of one handle.
pub(crate) struct OpenVolume {
    pub(crate) ino: Ino,
    pub(crate) volume: Arc<Volume>,
    pub(crate) io_mode: IoMode,
    pub(crate) kernel: Arc<KernelCache>,
    pub(crate) end: FileEnd,
}

impl OpenVolume {
    /// Writes to the volume, through its write-back cache if the handle is buffered
    /// and the write not `direct`.
    pub(crate) fn write(
        &self,
        offset: u64,
        data: &[u8],
        direct: bool,
        completion: impl FnOnce(Result<u32, FsError>) + Send + 'static,
    ) {
        let completion =
            |written: Result<_, VolumeError>| completion(written.map_err(FsError::from));
        match &self.io_mode {
            IoMode::Buffered(writer) if !direct => writer.submit_write(offset, data, completion),
            IoMode::Buffered(_) | IoMode::Direct => {
                let data = Bytes::copy_from_slice(data);
                self.volume.submit_write(offset, data, completion);
            }
        }
    }

    /// Writes a range that is past the truncated end: discards the gap first.
    pub(crate) async fn write_past_end(
        self: Arc<Self>,
        range: Range<u64>,
        data: Bytes,
        direct: bool,
        completion: impl FnOnce(Result<u32, FsError>) + Send + 'static,
    ) {
        let offset = range.start;
        // A write past the end of the volume fails, so nothing is discarded for it.
        if offset >= self.volume.size() {
            return self.write(offset, &data, direct, completion);
        }
        // The kernel may keep the first page of a write locked until the reply, so that
        // page is invalidated after the write.
        let locked = offset - offset % LARGEST_PAGE;
        let extended = self.end.extend(range, async |gap: Range<u64>| {
            self.discard(&gap).await?;
            self.kernel.drop_pages(self.ino, gap.start..locked).await;
            Ok(())
        });
        if let Err(error) = extended.await {
            return completion(Err(error));
        }
        let (kernel, ino) = (Arc::clone(&self.kernel), self.ino);
        let written = move |written| {
            if locked < offset {
                let range = locked..offset;
                kernel.invalidate(Invalidation::Pages { ino, range });
            }
            completion(written);
        };
        self.write(offset, &data, direct, written);
    }

    /// Truncates the volume through this handle.
    ///
    /// # Errors
    /// As [`Volume::set_size`] and [`Volume`]'s discard.
    pub(crate) async fn truncate(&self, to: u64) -> Result<(), FsError> {
        let size = self.volume.size();
        self.volume.set_size(to).await?;
        let truncated = self.end.truncate(to, size, async |range: Range<u64>| {
            self.discard(&range).await?;
            // Not waited for: the kernel writes no page back before the reply to
            // ftruncate(2), and drops no dirty page.
            let ino = self.ino;
            self.kernel.invalidate(Invalidation::Pages { ino, range });
            Ok(())
        });
        truncated.await
    }

    /// Makes the volume at least `len` bytes long. The part by which a truncated file
    /// is extended reads as zeros.
    ///
    /// # Errors
    /// As [`Volume::set_size`] and [`Volume`]'s discard.
    pub(crate) async fn extend(&self, len: u64) -> Result<(), FsError> {
        self.volume.refresh().await?;
        self.volume.set_size(len).await?;
        let extended = self.end.extend(len..len, async |gap: Range<u64>| {
            self.discard(&gap).await?;
            self.kernel.drop_pages(self.ino, gap).await;
            Ok(())
        });
        extended.await
    }

    async fn discard(&self, range: &Range<u64>) -> Result<(), FsError> {
        let len = range.end - range.start;
        Ok(self.volume.discard(range.start, len).await?)
    }
}

/// How a handle writes.
pub(crate) enum IoMode {
    /// What is acknowledged is on the cluster.
    Direct,
    /// Through the kernel's page cache and the volume's write-back cache: what is
    /// acknowledged is on the cluster after the next flush or sync. The writer
    /// knows which errors of write-back this handle has reported.
    Buffered(VolumeWriter),
}

impl IoMode {
    /// Waits until what was written is on the cluster and nothing is in flight, or
    /// no sheep is reachable.
    ///
    /// # Errors
    /// Those of write-back, until a sync has reported them.
    pub(crate) async fn flush(&self, volume: &Volume) -> Result<(), FsError> {
        volume.flush_unless_offline().await;
        match self {
            Self::Direct => {}
            Self::Buffered(writer) => writer.check()?,
        }
        Ok(volume.check_loss()?)
    }

    /// Waits until what was written is as durable as the cluster makes it.
    ///
    /// # Errors
    /// Those of write-back, each once, and as [`Volume`]'s flush.
    pub(crate) async fn sync(&self, volume: &Arc<Volume>) -> Result<(), FsError> {
        match self {
            Self::Direct => Ok(volume.flush().await?),
            Self::Buffered(writer) => Ok(writer.sync().await?),
        }
    }
}
