//! Where objects are kept: one interface, a directory or memory behind it.

use std::io;
use std::ops::Range;

use sheep_proto::{Oid, ResultCode, Vid};

use crate::payload::Payload;

mod directory;
mod memory;

pub(crate) use directory::DirectoryStore;
pub use directory::OpenError;
pub(crate) use memory::MemoryStore;

/// Why a store did not do what was asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
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
    /// Source of a copy: the new object starts with its content.
    pub(crate) source: Option<Oid>,
    /// Bytes that go on top, with their offsets.
    pub(crate) writes: &'a [(u64, &'a [u8])],
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

    /// As [`Store::read`], into as little memory of its own as the store can do with.
    fn read_payload(&self, oid: Oid, offset: u64, len: usize) -> Result<Payload, StoreError> {
        let mut buffer = vec![0; len];
        self.read(oid, offset, &mut buffer)?;
        Ok(buffer.into())
    }

    /// True for a store that never waits for a disk.
    fn is_memory(&self) -> bool {
        false
    }

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

    /// The record of the last [`Store::format`], if any.
    fn cluster_record(&self) -> Result<Option<Vec<u8>>, StoreError>;

    /// Replaces the record alone. Durable on return, old or new after a crash.
    fn save_record(&self, record: &[u8]) -> Result<(), StoreError>;

    /// Removes every object and keeps `record`. A crash in between leaves no record.
    fn format(&self, record: &[u8]) -> Result<(), StoreError>;

    /// Size and free bytes.
    fn space(&self) -> Result<Space, StoreError>;

    /// What MD_INFO names as the disk's path.
    fn path(&self) -> &[u8];

    /// Makes everything durable, also in a store that does not do so with every write.
    fn sync_all(&self) -> Result<(), StoreError>;
}

#[cfg(test)]
mod tests {
    use sheep_proto::ObjectIndex;

    use super::*;

    const LEN: u64 = 4 << 20;

    fn oid(number: u32) -> Oid {
        Oid::data(Vid::new(7).unwrap(), ObjectIndex(number))
    }

    fn create(store: &dyn Store, number: u32, writes: &[(u64, &[u8])]) -> Result<(), StoreError> {
        let object = NewObject {
            len: LEN,
            source: None,
            writes,
        };
        store.create(oid(number), object)
    }

    fn read(store: &dyn Store, number: u32, offset: u64, len: usize) -> Vec<u8> {
        let mut buffer = vec![0xee; len];
        store.read(oid(number), offset, &mut buffer).unwrap();
        buffer
    }

    fn on_both_stores(test: impl Fn(&dyn Store)) {
        test(&MemoryStore::new(64 << 20));
        let directory = tempfile::tempdir().unwrap();
        test(&DirectoryStore::open(directory.path(), false).unwrap());
    }

    #[test]
    fn object_reads_zeros_where_never_written() {
        on_both_stores(|store| {
            create(store, 0, &[(10, b"ten"), (5000, b"far")]).unwrap();
            assert_eq!(read(store, 0, 9, 5), b"\0ten\0");
            assert_eq!(read(store, 0, LEN - 2, 4), [0; 4]);
            store.write(oid(0), 4094, b"across").unwrap();
            assert_eq!(read(store, 0, 4093, 8), b"\0across\0");
            let extents = store.extents(oid(0), 1..LEN).unwrap();
            assert!(extents.len() == 1 && extents[0].end < LEN, "{extents:?}");
            store.clear_from(oid(0), 4096).unwrap();
            assert_eq!(read(store, 0, 4094, 8), b"ac\0\0\0\0\0\0");
        });
    }

    #[test]
    fn object_create_copies_source_and_replaces_old() {
        on_both_stores(|store| {
            create(store, 0, &[(0, b"source"), (1 << 20, b"end")]).unwrap();
            create(store, 1, &[(2 << 20, b"old")]).unwrap();
            let object = NewObject {
                len: LEN,
                source: Some(oid(0)),
                writes: &[(2, b"XX")],
            };
            store.create(oid(1), object).unwrap();
            assert_eq!(read(store, 1, 0, 7), b"soXXce\0");
            assert_eq!(read(store, 1, 1 << 20, 3), b"end");
            assert_eq!(read(store, 1, 2 << 20, 3), [0; 3]);
            assert_eq!(read(store, 0, 0, 6), b"source");
            let mut objects = store.objects_of(Vid::new(7).unwrap()).unwrap();
            objects.sort_unstable();
            assert_eq!(objects, [oid(0), oid(1)]);
            assert_eq!(store.vids().unwrap(), [Vid::new(7).unwrap()]);
        });
    }

    #[test]
    fn object_copies_and_read_payloads_are_isolated() {
        on_both_stores(|store| {
            create(store, 0, &[(0, &[1; 100_000])]).unwrap();
            let copy = NewObject {
                len: LEN,
                source: Some(oid(0)),
                writes: &[],
            };
            store.create(oid(1), copy).unwrap();
            let was_read = store.read_payload(oid(0), 0, 200_000).unwrap();
            store.write(oid(0), 0, &[2; 70_001]).unwrap();
            store.write(oid(1), 50_000, &[3]).unwrap();
            store.clear_from(oid(0), 80_000).unwrap();
            assert_eq!(read(store, 0, 69_999, 4), [2, 2, 1, 1]);
            assert_eq!(read(store, 1, 49_999, 3), [1, 3, 1]);
            assert_eq!(read(store, 1, 79_999, 2), [1; 2]);
            store.remove(oid(0)).unwrap();
            let bytes: Vec<u8> = was_read.slices().flatten().copied().collect();
            assert_eq!(bytes.len(), was_read.len());
            assert!(bytes[..100_000].iter().all(|&byte| byte == 1));
            assert!(bytes[100_000..].iter().all(|&byte| byte == 0));
        });
    }

    #[test]
    fn object_absent_is_not_found() {
        on_both_stores(|store| {
            let mut byte = [0];
            let results = [
                store.read(oid(0), 0, &mut byte),
                store.write(oid(0), 0, b"x"),
                store.remove(oid(0)),
                store.create(
                    oid(1),
                    NewObject {
                        len: LEN,
                        source: Some(oid(0)),
                        writes: &[],
                    },
                ),
            ];
            for result in results {
                assert!(matches!(result, Err(StoreError::NotFound)), "{result:?}");
            }
            assert!(!store.exists(oid(1)).unwrap());
            store.sync(oid(0)).unwrap();
        });
    }

    #[test]
    fn format_removes_everything_but_its_record() {
        on_both_stores(|store| {
            assert_eq!(store.cluster_record().unwrap(), None);
            create(store, 0, &[]).unwrap();
            store.format(b"record").unwrap();
            assert!(!store.exists(oid(0)).unwrap());
            assert_eq!(store.cluster_record().unwrap().unwrap(), b"record");
            create(store, 0, &[]).unwrap();
            store.save_record(b"other").unwrap();
            assert!(store.exists(oid(0)).unwrap());
            assert_eq!(store.cluster_record().unwrap().unwrap(), b"other");
        });
    }

    #[test]
    fn memory_limit_counts_and_releases_pages() {
        let store = MemoryStore::new(1 << 20);
        let full = store.space().unwrap().free;
        let data = vec![1; 896 << 10];
        create(&store, 0, &[(0, &data)]).unwrap();
        assert!(matches!(
            create(&store, 1, &[(0, &data)]),
            Err(StoreError::NoSpace)
        ));
        assert_eq!(full - store.space().unwrap().free, 896 << 10);
        store.clear_from(oid(0), 4096).unwrap();
        create(&store, 1, &[(0, &data)]).unwrap();
        store.remove(oid(0)).unwrap();
        store.remove(oid(1)).unwrap();
        assert_eq!(store.space().unwrap().free, full);
    }

    #[test]
    fn recovery_removes_unfinished_objects() {
        let directory = tempfile::tempdir().unwrap();
        drop(DirectoryStore::open(directory.path(), true).unwrap());
        std::fs::write(directory.path().join("new/5"), b"half").unwrap();
        let store = DirectoryStore::open(directory.path(), true).unwrap();
        assert_eq!(
            std::fs::read_dir(directory.path().join("new"))
                .unwrap()
                .count(),
            0
        );
        create(&store, 0, &[]).unwrap();
    }
}
