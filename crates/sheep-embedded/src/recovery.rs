//! What a start reads from the store, and what it completes after a crash.
//!
//! Every state a crash can leave:
//!
//! | interrupted | left behind | the start |
//! |---|---|---|
//! | creating an object or inode | a file in `new` | removes it (the store) |
//! | overwriting data or an index entry | old, new or mixed bytes nobody was told about | nothing: that is what a disk does |
//! | create, before its index entry | an object no index names | keeps it: the client may still send the entry |
//! | index entry, before the old object went | an object no index names | keeps it until its VDI is deleted |
//! | snapshot, after the new inode | two working VDIs of one name | marks the older one a snapshot |
//! | deletion, after the name went | entries in a nameless inode | frees them |
//! | format | no cluster record | waits for a format, or formats |

use std::sync::Arc;

use sheep_proto::{InodeHeader, Oid};
use zerocopy::IntoBytes;

use crate::catalogue::Vdi;
use crate::cluster::now;
use crate::sheep::{LoadError, Sheep};
use crate::store::StoreError;

impl Sheep {
    /// Fills the tables from the inodes of the store. Runs before anything else does.
    pub(crate) fn load_vdis(&self) -> Result<(), LoadError> {
        for vid in self.store.vids()? {
            let mut header = InodeHeader::zeroed();
            match self.store.read(Oid::inode(vid), 0, header.as_mut_bytes()) {
                // Only attributes, or a directory made for an inode that never came.
                Err(StoreError::NotFound) => continue,
                other => other?,
            }
            let vdi = Vdi::from_header(vid, &header).ok_or(LoadError::DamagedInode(vid))?;
            if header.name().is_some() && !vdi.hypervolume {
                self.references.load(self.store.as_ref(), vid)?;
            }
            self.vdis.insert(Arc::new(vdi));
        }
        self.complete_snapshots()?;
        for vdi in self.vdis.all() {
            if vdi.shared().name.is_none() {
                self.resume_deletion(&vdi)?;
            }
        }
        Ok(())
    }

    fn complete_snapshots(&self) -> Result<(), LoadError> {
        for name in self.vdis.names() {
            let mut working = self.vdis.named(&name);
            working.retain(|vdi| vdi.is_working());
            working.sort_by_key(|vdi| vdi.snap_id);
            working.pop();
            for vdi in working {
                tracing::info!("completing the snapshot of VDI {} of {name}", vdi.vid);
                let mut state = vdi.alone();
                self.mark_snapshot(&vdi, now())
                    .map_err(|_code| LoadError::DamagedInode(vdi.vid))?;
                state.is_snapshot = true;
            }
        }
        Ok(())
    }
}
