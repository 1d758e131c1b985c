//! A block device in memory, for tests and for trying a frontend out.

use std::sync::{Arc, Mutex, MutexGuard};

use bytes::Bytes;

use super::block_device::{BlockDevice, BlockStatus};
use super::error::VolumeError;
use crate::poison;

/// Bytes in memory.
///
/// ```
/// use sheepfs_vfs::BlockDevice as _;
/// use sheepfs_vfs::volume::MemoryDevice;
/// # tokio::runtime::Runtime::new()?.block_on(async {
///
/// let device = MemoryDevice::new(vec![0; 1 << 20]);
/// device.write_at(4096, "first".into()).await?;
/// assert_eq!(device.read_at(4097, 3).await?, "irs");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// # })?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct MemoryDevice {
    bytes: Mutex<Vec<u8>>,
    writable: bool,
}

impl MemoryDevice {
    /// A device that holds `bytes`.
    pub fn new(bytes: Vec<u8>) -> Arc<Self> {
        Arc::new(Self {
            bytes: Mutex::new(bytes),
            writable: true,
        })
    }

    /// One that cannot be written.
    pub fn read_only(bytes: Vec<u8>) -> Arc<Self> {
        Arc::new(Self {
            bytes: Mutex::new(bytes),
            writable: false,
        })
    }

    fn bytes(&self) -> MutexGuard<'_, Vec<u8>> {
        poison::lock(&self.bytes)
    }

    fn write(&self, offset: u64, data: &[u8]) -> Result<u32, VolumeError> {
        if !self.writable {
            return Err(VolumeError::ReadOnly("memory".to_owned()));
        }
        let mut bytes = self.bytes();
        let at = usize::try_from(offset).unwrap_or(usize::MAX);
        let Some(room) = bytes.get_mut(at..).filter(|room| !room.is_empty()) else {
            return Err(VolumeError::EndOfDevice(offset));
        };
        let len = room.len().min(data.len());
        room[..len].copy_from_slice(&data[..len]);
        Ok(u32::try_from(len).unwrap_or(u32::MAX))
    }
}

impl BlockDevice for MemoryDevice {
    fn size(&self) -> u64 {
        self.bytes().len() as u64
    }

    fn is_writable(&self) -> bool {
        self.writable
    }

    fn object_size(&self) -> u64 {
        1 << 22
    }

    fn submit_read(
        self: &Arc<Self>,
        offset: u64,
        len: u32,
        completion: impl FnOnce(Result<Bytes, VolumeError>) + Send + 'static,
    ) {
        let read = {
            let bytes = self.bytes();
            let start = usize::try_from(offset)
                .unwrap_or(usize::MAX)
                .min(bytes.len());
            let end = start.saturating_add(len as usize).min(bytes.len());
            Bytes::copy_from_slice(&bytes[start..end])
        };
        completion(Ok(read));
    }

    fn submit_write(
        self: &Arc<Self>,
        offset: u64,
        data: Bytes,
        completion: impl FnOnce(Result<u32, VolumeError>) + Send + 'static,
    ) {
        completion(self.write(offset, &data));
    }

    async fn discard(self: &Arc<Self>, offset: u64, len: u64) -> Result<(), VolumeError> {
        if !self.writable {
            return Err(VolumeError::ReadOnly("memory".to_owned()));
        }
        let mut bytes = self.bytes();
        let size = bytes.len() as u64;
        let inside =
            |byte: u64| usize::try_from(byte.min(size)).expect("clamped to the length of a Vec");
        bytes[inside(offset)..inside(offset.saturating_add(len))].fill(0);
        Ok(())
    }

    async fn flush(self: &Arc<Self>) -> Result<(), VolumeError> {
        Ok(())
    }

    async fn block_status(self: &Arc<Self>, offset: u64) -> Result<BlockStatus, VolumeError> {
        match self.size() {
            end if offset < end => Ok(BlockStatus {
                allocated: true,
                end,
            }),
            _ => Err(VolumeError::NoMoreData(offset)),
        }
    }
}
