//! Deferred reclaim of the space of deleted VDIs.
//!
//! A VDI is deleted from the moment its inode has no name: that one durable
//! write decides. What follows only reclaims space (the objects without another
//! reference, then the index) and is repeated at the next start when a crash
//! interrupts it, as long as anything is left in the index or of the objects.
//! Unlike in C this also frees what the client left in the index.

use std::sync::Arc;

use sheep_proto::limits::{INODE_HEADER_LEN, INODE_LEN};
use sheep_proto::{ObjectKind, Oid};

use crate::catalogue::Vdi;
use crate::references::References;
use crate::store::{Store, StoreError};

/// See the module.
pub(crate) struct Reclaimer {
    store: Arc<dyn Store>,
    references: Arc<References>,
}

impl Reclaimer {
    pub(crate) fn new(store: Arc<dyn Store>, references: Arc<References>) -> Self {
        Self { store, references }
    }

    /// Removes the objects that only the deleted VDI referenced. The caller has locked its state, or is the only one running.
    pub(crate) fn reclaim(&self, vdi: &Vdi) -> Result<(), StoreError> {
        let store = self.store.as_ref();
        let mut own = store.objects_of(vdi.vid)?;
        own.retain(|oid| match oid.kind() {
            Some(ObjectKind::Data) => true,
            // Attributes belong to a name that has this VID as its hash.
            Some(ObjectKind::Inode | ObjectKind::Attribute) | None => false,
            Some(ObjectKind::VmState | ObjectKind::BtreeNode | ObjectKind::Ledger) => {
                if let Err(error) = store.remove(*oid) {
                    tracing::warn!("object {oid} cannot be removed: {error}");
                }
                false
            }
        });
        let pending = self.references.remove_referrer(store, vdi, own)?;
        self.references.free_unreferenced(store, pending);
        store.clear_from(Oid::inode(vdi.vid), INODE_HEADER_LEN as u64)
    }

    /// Completes what a crash interrupted: the deletion, or the free of an object
    /// that other VDIs referenced for longer.
    pub(crate) fn resume(&self, vdi: &Vdi) -> Result<(), StoreError> {
        if self.has_objects(vdi)? || self.has_entries(vdi)? {
            self.reclaim(vdi)?;
        }
        Ok(())
    }

    fn has_objects(&self, vdi: &Vdi) -> Result<bool, StoreError> {
        let objects = self.store.objects_of(vdi.vid)?;
        Ok(objects.into_iter().any(|oid| {
            !matches!(
                oid.kind(),
                Some(ObjectKind::Inode | ObjectKind::Attribute) | None
            )
        }))
    }

    pub(crate) fn has_entries(&self, vdi: &Vdi) -> Result<bool, StoreError> {
        let after_header = INODE_HEADER_LEN as u64..INODE_LEN as u64;
        let inode = Oid::inode(vdi.vid);
        for extent in self.store.extents(inode, after_header)? {
            let len = usize::try_from(extent.end - extent.start).unwrap_or(INODE_LEN);
            let mut bytes = vec![0; len];
            self.store.read(inode, extent.start, &mut bytes)?;
            if bytes.iter().any(|&byte| byte != 0) {
                return Ok(true);
            }
        }
        Ok(false)
    }
}
