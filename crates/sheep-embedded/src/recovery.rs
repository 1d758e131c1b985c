//! What a start reads from the store, and what it completes after a crash.
//!
//! Every state a crash can leave:
//!
//! | interrupted | left behind | the start |
//! |---|---|---|
//! | creating an object or inode | a file in `new` | removes it (the store) |
//! | overwriting data or an index entry | old, new or mixed bytes, not acknowledged | nothing: that is what a disk does |
//! | create, before its index entry | an object no index names | keeps it: the client may still send the entry |
//! | index entry, before the old object went | an object no index names | keeps it while its VDI lives, then removes it |
//! | snapshot, after the new inode | two working VDIs of one name | marks the older one a snapshot |
//! | deletion, after the name went | entries in a nameless inode | frees them |
//! | format | no cluster record | waits for a format, or formats |

use std::sync::Arc;

use sheep_proto::{Generation, InodeHeader, Oid, Vid};
use zerocopy::IntoBytes;

use crate::catalogue::{Catalogue, Vdi, VdiOperation};
use crate::clock::now;
use crate::cluster::Cluster;
use crate::family::Families;
use crate::inode::Inodes;
use crate::reclaim::Reclaimer;
use crate::references::References;
use crate::release::Release;
use crate::store::{Store, StoreError};

/// Why a store's content cannot be served.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LoadError {
    /// The store failed.
    #[error("cannot read the store")]
    Store(#[from] StoreError),
    /// The cluster's settings are damaged.
    #[error("the store's cluster record is damaged")]
    DamagedRecord,
    /// An inode is damaged.
    #[error("the inode of VDI {0} is damaged")]
    DamagedInode(Vid),
    /// Another generation has formatted the store.
    #[error("the store is one of sheep {0}: start with --generation {0}, or on an empty directory")]
    OtherGeneration(Generation),
}

/// A store, and what its content says.
pub(crate) struct Loaded {
    pub(crate) store: Arc<dyn Store>,
    /// `None` until the store is formatted.
    pub(crate) cluster: Option<Cluster>,
    pub(crate) vdis: Arc<Catalogue>,
    pub(crate) references: Arc<References>,
    pub(crate) inodes: Arc<Inodes>,
    pub(crate) reclaimer: Arc<Reclaimer>,
    pub(crate) families: Arc<Families>,
}

impl Loaded {
    /// Formats a store if it is new and that is wanted, else reads what is in
    /// it and completes what a crash interrupted.
    pub(crate) fn load(
        store: Arc<dyn Store>,
        release: Release,
        format_if_new: bool,
    ) -> Result<Self, LoadError> {
        let generation = release.generation;
        let cluster = match store.cluster_record()? {
            Some(record) => Some(parse_record(&record, generation)?),
            None if format_if_new => {
                let cluster = Cluster::default_config(generation);
                store.format(cluster.as_bytes())?;
                Some(cluster)
            }
            None => None,
        };
        let references = Arc::new(References::default());
        let loaded = Self {
            cluster,
            vdis: Arc::default(),
            inodes: Arc::new(Inodes::new(
                Arc::clone(&store),
                Arc::clone(&references),
                generation,
            )),
            families: Arc::new(Families::new(
                Arc::clone(&store),
                release.frees_child_slots(),
            )),
            reclaimer: Arc::new(Reclaimer::new(Arc::clone(&store), Arc::clone(&references))),
            references,
            store,
        };
        if loaded.cluster.is_some() {
            loaded.load_vdis(generation)?;
        }
        Ok(loaded)
    }

    /// Fills the tables from the inodes of the store. Runs before anything else does.
    fn load_vdis(&self, generation: Generation) -> Result<(), LoadError> {
        let counts_references = !generation.deletes_objects();
        let operation = self.vdis.begin_operation();
        for vid in self.store.vids()? {
            let mut header = InodeHeader::zeroed();
            match self.store.read(Oid::inode(vid), 0, header.as_mut_bytes()) {
                // Only attributes, or a directory made for an inode that never came.
                Err(StoreError::NotFound) => continue,
                other => other?,
            }
            let vdi = Vdi::from_header(vid, &header).ok_or(LoadError::DamagedInode(vid))?;
            if counts_references && header.name().is_some() && !vdi.hypervolume {
                self.references.load(self.store.as_ref(), vid)?;
            }
            operation.insert(Arc::new(vdi));
        }
        self.complete_snapshots(&operation)?;
        for vdi in self.vdis.all() {
            if counts_references && vdi.read().name.is_none() {
                self.reclaimer.resume(&vdi)?;
            }
        }
        Ok(())
    }

    fn complete_snapshots(&self, operation: &VdiOperation<'_>) -> Result<(), LoadError> {
        for name in operation.names() {
            let mut heads = operation.versions_of(&name);
            heads.retain(|vdi| vdi.is_head());
            heads.sort_by_key(|vdi| vdi.snap_id);
            heads.pop();
            for vdi in heads {
                tracing::info!("completing the snapshot of VDI {} of {name}", vdi.vid);
                let mut state = vdi.write();
                self.inodes.mark_snapshot(&vdi, now())?;
                state.is_snapshot = true;
            }
        }
        Ok(())
    }
}

/// The settings that a store kept, if they are of this generation.
fn parse_record(record: &[u8], generation: Generation) -> Result<Cluster, LoadError> {
    let cluster = Cluster::parse(record).ok_or(LoadError::DamagedRecord)?;
    match cluster.generation() {
        Some(found) if found == generation => Ok(cluster),
        Some(found) => Err(LoadError::OtherGeneration(found)),
        None => Err(LoadError::DamagedRecord),
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use sheep_proto::inode::slot_offset;
    use sheep_proto::limits::{INODE_LEN, NAME_FIELD_LEN};
    use sheep_proto::{ObjectIndex, SnapshotTag, VdiName};

    use super::*;
    use crate::store::{DirectoryStore, NewObject};

    fn open(directory: &Path) -> Arc<dyn Store> {
        Arc::new(DirectoryStore::open(directory, false).unwrap())
    }

    fn load(directory: &Path) -> Result<Loaded, LoadError> {
        let release = Release {
            generation: Generation::NEWEST,
            is_worst: true,
        };
        Loaded::load(open(directory), release, true)
    }

    fn vid(raw: u32) -> Vid {
        Vid::new(raw).unwrap()
    }

    /// Puts an inode and its first data object into a formatted store.
    fn create_vdi(store: &dyn Store, raw: u32, snap_id: u32, owner: u32) {
        let mut header = InodeHeader::zeroed();
        header.name = VdiName::new("demo").unwrap().to_field();
        header.vdi_id = raw.into();
        header.snap_id = snap_id.into();
        header.block_size_shift = 22;
        let slot = slot_offset(ObjectIndex(0)).unwrap().into();
        let inode = NewObject {
            len: INODE_LEN as u64,
            source: None,
            writes: &[(0, header.as_bytes()), (slot, &owner.to_le_bytes())],
        };
        store.create(Oid::inode(vid(raw)), inode).unwrap();
        let data = NewObject {
            len: 4 << 20,
            source: None,
            writes: &[],
        };
        store
            .create(Oid::data(vid(raw), ObjectIndex(0)), data)
            .unwrap();
    }

    #[test]
    fn recovery_completes_interrupted_snapshot() {
        let directory = tempfile::tempdir().unwrap();
        let loaded = load(directory.path()).unwrap();
        create_vdi(loaded.store.as_ref(), 5, 1, 5);
        create_vdi(loaded.store.as_ref(), 6, 2, 5);
        drop(loaded);
        for _start in 0..2 {
            let loaded = load(directory.path()).unwrap();
            let name = VdiName::new("demo").unwrap();
            let operation = loaded.vdis.begin_operation();
            assert_eq!(operation.head(&name).unwrap().vid, vid(6));
            let found = operation.lookup(&name, &SnapshotTag::default(), 1).unwrap();
            assert_eq!(found.vid, vid(5));
            assert!(loaded.inodes.read_header(&found).unwrap().is_snapshot());
        }
    }

    #[test]
    fn recovery_completes_interrupted_deletion() {
        let directory = tempfile::tempdir().unwrap();
        let loaded = load(directory.path()).unwrap();
        create_vdi(loaded.store.as_ref(), 5, 1, 5);
        create_vdi(loaded.store.as_ref(), 6, 2, 5);
        let nameless = [0; NAME_FIELD_LEN];
        loaded
            .store
            .write(Oid::inode(vid(6)), 0, &nameless)
            .unwrap();
        drop(loaded);
        let loaded = load(directory.path()).unwrap();
        let exists = |raw| {
            let oid = Oid::data(vid(raw), ObjectIndex(0));
            loaded.store.exists(oid).unwrap()
        };
        assert!(exists(5), "another index names it");
        assert!(!exists(6));
        let mut slot = [1; 4];
        loaded
            .store
            .read(Oid::inode(vid(6)), 4664, &mut slot)
            .unwrap();
        assert_eq!(slot, [0; 4]);
    }

    #[test]
    fn recovery_reports_a_damaged_inode() {
        let directory = tempfile::tempdir().unwrap();
        let loaded = load(directory.path()).unwrap();
        create_vdi(loaded.store.as_ref(), 5, 1, 5);
        loaded
            .store
            .write(Oid::inode(vid(5)), 560, &[9; 4])
            .unwrap();
        drop(loaded);
        let error = load(directory.path()).map(drop);
        assert!(matches!(error, Err(LoadError::DamagedInode(vid)) if vid.get() == 5));
    }
}
