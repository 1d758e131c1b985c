//! A device in memory that tests can hold up and look into.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use sheepfs_vfs::volume::{BlockStatus, MemoryDevice};
use sheepfs_vfs::{BlockDevice, VolumeError};
use tokio::sync::Notify;

/// Bytes of an object.
pub(crate) const OBJECT_SIZE: u64 = 1 << 20;

pub(crate) struct TestDevice {
    memory: Arc<MemoryDevice>,
    /// Reads and writes at these offsets wait until they are released.
    held: Mutex<BTreeMap<u64, Arc<Notify>>>,
    /// The next write at one of these offsets fails.
    failing: Mutex<Vec<u64>>,
    writes: AtomicUsize,
    /// The size, if not that of the memory.
    claimed_size: Mutex<Option<u64>>,
    /// What survives [`Self::crash`].
    durable: Mutex<Bytes>,
    flushes: AtomicUsize,
    discards: Mutex<Vec<(u64, u64)>>,
    /// Objects that take no space.
    holes: Vec<u64>,
}

impl TestDevice {
    /// `len` bytes, each the low byte of the number of its 512-byte sector plus one,
    /// so that none is zero by chance.
    pub(crate) fn new(len: usize) -> Arc<Self> {
        Self::with_holes(len, &[])
    }

    /// The same, with objects that are holes.
    pub(crate) fn with_holes(len: usize, holes: &[u64]) -> Arc<Self> {
        let mut bytes = vec![0; len];
        for (at, sector) in (0..).step_by(512).zip(bytes.chunks_mut(512)) {
            if !holes.contains(&(at / OBJECT_SIZE)) {
                sector.fill(byte_at(at));
            }
        }
        Arc::new(Self {
            durable: Mutex::new(Bytes::from(bytes.clone())),
            memory: MemoryDevice::new(bytes),
            held: Mutex::default(),
            failing: Mutex::default(),
            writes: AtomicUsize::new(0),
            claimed_size: Mutex::default(),
            flushes: AtomicUsize::new(0),
            discards: Mutex::default(),
            holes: holes.to_vec(),
        })
    }

    /// Holds up the next read or write at `offset` until the answer is notified.
    pub(crate) fn hold(&self, offset: u64) -> Arc<Notify> {
        let notify = Arc::new(Notify::new());
        self.held
            .lock()
            .unwrap()
            .insert(offset, Arc::clone(&notify));
        notify
    }

    /// Fails the next write at `offset`.
    pub(crate) fn fail_write(&self, offset: u64) {
        self.failing.lock().unwrap().push(offset);
    }

    /// Writes begun so far.
    pub(crate) fn writes(&self) -> usize {
        self.writes.load(Ordering::SeqCst)
    }

    /// Loses what was written since the last flush.
    pub(crate) async fn crash(&self) {
        let durable = self.durable.lock().unwrap().clone();
        self.memory.write_at(0, durable).await.unwrap();
    }

    /// Says that the device has `size` bytes, as before it shrank.
    pub(crate) fn claim_size(&self, size: u64) {
        *self.claimed_size.lock().unwrap() = Some(size);
    }

    pub(crate) fn flushes(&self) -> usize {
        self.flushes.load(Ordering::SeqCst)
    }

    pub(crate) fn discards(&self) -> Vec<(u64, u64)> {
        self.discards.lock().unwrap().clone()
    }
}

/// What a fresh device has at an offset.
pub(crate) fn byte_at(offset: u64) -> u8 {
    u8::try_from(offset / 512 % 251 + 1).unwrap()
}

impl BlockDevice for TestDevice {
    fn size(&self) -> u64 {
        let claimed = *self.claimed_size.lock().unwrap();
        claimed.unwrap_or_else(|| self.memory.size())
    }

    fn is_writable(&self) -> bool {
        true
    }

    fn object_size(&self) -> u64 {
        OBJECT_SIZE
    }

    fn submit_read(
        self: &Arc<Self>,
        offset: u64,
        len: u32,
        done: impl FnOnce(Result<Bytes, VolumeError>) + Send + 'static,
    ) {
        let held = self.held.lock().unwrap().remove(&offset);
        let memory = Arc::clone(&self.memory);
        match held {
            None => memory.submit_read(offset, len, done),
            Some(notify) => {
                tokio::spawn(async move {
                    notify.notified().await;
                    memory.submit_read(offset, len, done);
                });
            }
        }
    }

    fn submit_write(
        self: &Arc<Self>,
        offset: u64,
        data: Bytes,
        done: impl FnOnce(Result<u32, VolumeError>) + Send + 'static,
    ) {
        self.writes.fetch_add(1, Ordering::SeqCst);
        let fails = {
            let mut failing = self.failing.lock().unwrap();
            let at = failing.iter().position(|&at| at == offset);
            at.map(|at| failing.swap_remove(at)).is_some()
        };
        if fails {
            return done(Err(VolumeError::TaskPanicked("test".to_owned())));
        }
        let held = self.held.lock().unwrap().remove(&offset);
        let memory = Arc::clone(&self.memory);
        match held {
            None => memory.submit_write(offset, data, done),
            Some(notify) => {
                tokio::spawn(async move {
                    notify.notified().await;
                    memory.submit_write(offset, data, done);
                });
            }
        }
    }

    async fn discard(self: &Arc<Self>, offset: u64, len: u64) -> Result<(), VolumeError> {
        self.discards.lock().unwrap().push((offset, len));
        self.memory.discard(offset, len).await
    }

    async fn flush(self: &Arc<Self>) -> Result<(), VolumeError> {
        self.flushes.fetch_add(1, Ordering::SeqCst);
        let len = u32::try_from(self.memory.size()).unwrap();
        let bytes = self.memory.read_at(0, len).await?;
        *self.durable.lock().unwrap() = bytes;
        Ok(())
    }

    async fn block_status(self: &Arc<Self>, offset: u64) -> Result<BlockStatus, VolumeError> {
        if offset >= self.size() {
            return Err(VolumeError::NoMoreData(offset));
        }
        let object = offset / OBJECT_SIZE;
        Ok(BlockStatus {
            allocated: !self.holes.contains(&object),
            end: ((object + 1) * OBJECT_SIZE).min(self.size()),
        })
    }
}
