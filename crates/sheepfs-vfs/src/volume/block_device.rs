//! The block device interface.

use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::oneshot;

use super::error::VolumeError;

/// Bytes that can be read and written at any offset.
///
/// Operations in flight may be executed in any order. A completed operation is visible
/// to every operation that begins later, and is durable once a `flush` that began after
/// its completion has succeeded.
pub trait BlockDevice: Send + Sync + Sized + 'static {
    /// Bytes of the device.
    fn size(&self) -> u64;

    /// Whether it can be written.
    fn is_writable(&self) -> bool;

    /// Bytes of an object, a power of two: an operation within one object is cheapest.
    fn object_size(&self) -> u64;

    /// Reads up to `len` bytes at byte `offset`, fewer at the end of the device,
    /// none past it, and runs `completion` with them, on any thread. Does not block.
    fn submit_read(
        self: &Arc<Self>,
        offset: u64,
        len: u32,
        completion: impl FnOnce(Result<Bytes, VolumeError>) + Send + 'static,
    );

    /// Writes `data` at byte `offset` and runs `completion` with the number of bytes
    /// written, on any thread: fewer than given at the end of the device. Does not
    /// block.
    ///
    /// # Errors
    /// `completion` gets `ReadOnly`, `EndOfDevice` for a write that starts there, or
    /// the error of the write.
    fn submit_write(
        self: &Arc<Self>,
        offset: u64,
        data: Bytes,
        completion: impl FnOnce(Result<u32, VolumeError>) + Send + 'static,
    );

    /// Makes `[offset, offset + len)` read as zeros, as far as the device goes,
    /// and gives space back where it can.
    ///
    /// # Errors
    /// `ReadOnly`, and the error of the discard.
    fn discard(
        self: &Arc<Self>,
        offset: u64,
        len: u64,
    ) -> impl Future<Output = Result<(), VolumeError>> + Send;

    /// Returns once every operation completed before is durable.
    ///
    /// # Errors
    /// When it is not, or cannot be known.
    fn flush(self: &Arc<Self>) -> impl Future<Output = Result<(), VolumeError>> + Send;

    /// The first extent from byte `offset` on, which is inside the device:
    /// whether it is allocated, and the byte where that ends. It may go on past
    /// that byte.
    ///
    /// # Errors
    /// `NoMoreData` at or past the end, and when the device cannot tell.
    fn block_status(
        self: &Arc<Self>,
        offset: u64,
    ) -> impl Future<Output = Result<BlockStatus, VolumeError>> + Send;

    /// [`Self::submit_read`] as a future.
    ///
    /// # Errors
    /// As that.
    fn read_at(
        self: &Arc<Self>,
        offset: u64,
        len: u32,
    ) -> impl Future<Output = Result<Bytes, VolumeError>> + Send {
        let (completion, read) = oneshot::channel();
        // The caller may have been dropped.
        self.submit_read(offset, len, |result| drop(completion.send(result)));
        async { read.await.expect("submit_read runs its completion") }
    }

    /// [`Self::submit_write`] as a future. When it is dropped, the write still
    /// runs to its end.
    ///
    /// # Errors
    /// As that.
    fn write_at(
        self: &Arc<Self>,
        offset: u64,
        data: Bytes,
    ) -> impl Future<Output = Result<u32, VolumeError>> + Send {
        let (completion, written) = oneshot::channel();
        // The caller may have been dropped.
        self.submit_write(offset, data, |result| drop(completion.send(result)));
        async { written.await.expect("submit_write runs its completion") }
    }
}

/// An extent of a device, from [`BlockDevice::block_status`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockStatus {
    /// Whether it takes space; if not, it reads as zeros.
    pub allocated: bool,
    /// The first byte past it.
    pub end: u64,
}
