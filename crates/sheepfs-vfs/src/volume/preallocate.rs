//! Preallocates the next object of a sequential writer.
//!
//! ```text
//! writes:       0 | 0 | 0 | 0 | 1 | 1 | 1 | 1 | 2 ...
//! preallocated:                [make 2, commit its slot]
//! ```
//!
//! Making an object and committing its slot takes a server longer than a write
//! does, so it is done while the writer is still busy with the object before. What
//! it holds until then is zeros, as the hole did. An object that is not needed after
//! all stays, as with file systems that preallocate past the end of a file: removing it
//! could remove data that another client has just written there.
//!
//! Preallocation is speculative and must never hurt: the write that triggers it is
//! sent first, so it gets the last free space; and flush and close wait for it, since
//! the next client of the VDI may be on another host, and a late create would overwrite
//! its data.

use std::sync::Arc;

use bytes::Bytes;
use sheep_client::error::Chain;
use sheep_proto::ObjectIndex;
use tokio::runtime::Handle;

use super::block_device::{BlockDevice, BlockStatus};
use super::device::Device;
use super::error::VolumeError;
use super::flush_tracker::FlushTracker;
use super::sequential::WriteStreams;

/// A filter over a volume that preallocates objects for sequential writers.
#[derive(Debug)]
pub struct Preallocate {
    device: Arc<Device>,
    streams: WriteStreams,
    in_flight: FlushTracker,
    runtime: Handle,
}

impl Preallocate {
    /// Preallocates on `device`.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn new(device: Arc<Device>) -> Arc<Self> {
        Arc::new(Self {
            device,
            streams: WriteStreams::default(),
            in_flight: FlushTracker::default(),
            runtime: Handle::current(),
        })
    }

    /// The device below.
    pub fn device(&self) -> &Arc<Device> {
        &self.device
    }

    /// The object that the writer of this range wants next, when that is a hole.
    fn next_allocation(&self, offset: u64, len: usize) -> Option<ObjectIndex> {
        let (size, end) = (
            self.device.object_size(),
            offset.saturating_add(len as u64).min(self.device.size()),
        );
        // Objects that this write begins: their first byte is in the range.
        let begun = offset.div_ceil(size)..end.div_ceil(size);
        if begun.is_empty() || !self.streams.observe_write(&begun) {
            return None;
        }
        // A write that ends at an object border gets a whole-object create next.
        let is_next = end % size != 0 && begun.end < self.device.object_count();
        let next = ObjectIndex(u32::try_from(begun.end).ok()?);
        (is_next && !self.device.is_allocated(next)).then_some(next)
    }

    /// Waits for the preallocations in flight.
    pub async fn drain(&self) {
        self.in_flight.flush_barrier().await;
    }
}

impl BlockDevice for Preallocate {
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
        self.device.submit_read(offset, len, completion);
    }

    fn submit_write(
        self: &Arc<Self>,
        offset: u64,
        data: Bytes,
        completion: impl FnOnce(Result<u32, VolumeError>) + Send + 'static,
    ) {
        let len = data.len();
        let next = match self.device.is_writable() {
            true => self.next_allocation(offset, len),
            false => None,
        };
        let Some(next) = next else {
            return self.device.submit_write(offset, data, completion);
        };
        let token = self.in_flight.begin();
        let (prealloc, runtime) = (Arc::clone(self), self.runtime.clone());
        let make = async move {
            let is_wanted = || prealloc.streams.is_next(next);
            // The write to this object will report the error.
            if let Err(error) = prealloc.device.allocate_hole(next, is_wanted).await {
                tracing::debug!("cannot preallocate an object: {}", Chain(&error));
            }
            drop(token);
        };
        let in_place = u32::try_from(len).is_ok_and(|len| self.device.is_in_place(offset, len));
        if in_place {
            // The write allocates no space, so it may be sent second.
            runtime.spawn(make);
            return self.device.submit_write(offset, data, completion);
        }
        self.device.submit_write(offset, data, move |written| {
            if written.is_ok() {
                runtime.spawn(make);
            }
            completion(written);
        });
    }

    async fn discard(self: &Arc<Self>, offset: u64, len: u64) -> Result<(), VolumeError> {
        self.device.discard(offset, len).await
    }

    async fn flush(self: &Arc<Self>) -> Result<(), VolumeError> {
        self.drain().await;
        self.device.flush().await
    }

    async fn block_status(self: &Arc<Self>, offset: u64) -> Result<BlockStatus, VolumeError> {
        self.device.block_status(offset).await
    }
}
