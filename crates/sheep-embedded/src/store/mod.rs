//! Where objects are kept: one interface, a directory or memory behind it.

use std::io;
use std::ops::Range;

use sheep_proto::{Oid, ResultCode, Vid};

mod directory;
mod memory;

pub(crate) use directory::DirectoryStore;
pub use directory::OpenError;
pub(crate) use memory::MemoryStore;

/// Why a store did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// There is no such object.
    #[error("no such object")]
    NotFound,
    /// The disk, the quota or the memory limit is used up.
    #[error("no space left in the store")]
    NoSpace,
    /// The disk failed.
    #[error("the disk failed")]
    Disk(#[source] io::Error),
}

impl From<io::Error> for StoreError {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::NotFound => Self::NotFound,
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::NoSpace,
            _ => Self::Disk(error),
        }
    }
}

impl From<StoreError> for ResultCode {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::NotFound => Self::NoObj,
            StoreError::NoSpace => Self::NoSpace,
            StoreError::Disk(source) => {
                tracing::error!("the disk failed: {source}");
                Self::Eio
            }
        }
    }
}

/// What a new object holds; every byte not mentioned is zero.
#[derive(Clone, Copy)]
pub(crate) struct NewObject<'a> {
    /// Bytes of the object.
    pub(crate) len: u64,
    /// Object whose content it starts with.
    pub(crate) source: Option<Oid>,
    /// Bytes that go on top, with their offsets.
    pub(crate) pieces: &'a [(u64, &'a [u8])],
}

/// Size of a store in bytes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Space {
    pub(crate) size: u64,
    pub(crate) free: u64,
}

/// Sparse objects by id, and one small record about the cluster.
///
/// Every method may be called from many threads at once. A read that runs
/// beside a write of the same bytes sees old or new ones.
pub(crate) trait Store: Send + Sync {
    /// Fills `buffer` from `offset` on; what lies past the object's end is zero.
    fn read(&self, oid: Oid, offset: u64, buffer: &mut [u8]) -> Result<(), StoreError>;

    /// Overwrites a range of an existing object. Durable only after [`Store::sync`].
    fn write(&self, oid: Oid, offset: u64, data: &[u8]) -> Result<(), StoreError>;

    /// Makes every finished write of the object durable; an object that has gone needs nothing.
    fn sync(&self, oid: Oid) -> Result<(), StoreError>;

    /// Makes an object, replacing any that is there: others see the old one or
    /// the whole new one, after a crash too. Durable on return.
    fn create(&self, oid: Oid, object: NewObject<'_>) -> Result<(), StoreError>;

    /// Removes an object; not necessarily durable on return.
    fn remove(&self, oid: Oid) -> Result<(), StoreError>;

    /// True when the object is there.
    fn exists(&self, oid: Oid) -> Result<bool, StoreError>;

    /// Sets every byte from `offset` to the end to zero and gives the space back. Durable on return.
    fn clear_from(&self, oid: Oid, offset: u64) -> Result<(), StoreError>;

    /// The parts of `range` that may hold something else than zeros, in ascending order.
    fn extents(&self, oid: Oid, range: Range<u64>) -> Result<Vec<Range<u64>>, StoreError>;

    /// Every VID that any object belongs to, in ascending order.
    fn vids(&self) -> Result<Vec<Vid>, StoreError>;

    /// Every object of a VID, in no order.
    fn objects_of(&self, vid: Vid) -> Result<Vec<Oid>, StoreError>;

    /// The record that [`Store::format`] or nobody left.
    fn cluster_record(&self) -> Result<Option<Vec<u8>>, StoreError>;

    /// Removes every object and keeps `record`. A crash in between leaves no record.
    fn format(&self, record: &[u8]) -> Result<(), StoreError>;

    /// Size and free bytes.
    fn space(&self) -> Result<Space, StoreError>;

    /// What MD_INFO names as the disk's path.
    fn path(&self) -> &[u8];

    /// Makes everything durable, also in a store that does not do so with every write.
    fn sync_all(&self) -> Result<(), StoreError>;
}
