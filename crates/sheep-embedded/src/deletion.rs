//! DEL_VDI.
//!
//! A VDI is deleted from the moment its inode has no name: that one durable
//! write decides. What follows only gives space back (the objects nobody else
//! names, then the index) and is repeated at the next start when a crash
//! interrupts it, as long as anything is left in the index or of the objects.

use std::sync::Arc;

use sheep_proto::limits::{INODE_HEADER_LEN, INODE_LEN, NAME_FIELD_LEN};
use sheep_proto::{ObjectKind, Oid, ResponseBody, ResultCode, VdiResponse};
use zerocopy::IntoBytes;

use crate::call::{Answer, Call, Outcome};
use crate::catalogue::Vdi;
use crate::poison::lock;
use crate::sheep::Sheep;
use crate::store::StoreError;

impl Sheep {
    /// DEL_VDI. Unlike C it also frees what the client left in the index.
    pub(crate) fn delete_vdi(&self, call: &Call<'_>) -> Outcome {
        let (name, tag) = call.name_and_tag()?;
        let _serialised = lock(&self.vdi_operations);
        let vdi = self.vdis.find(&name, &tag, call.vdi().snapid.get())?;
        {
            let mut state = vdi.write();
            self.erase_header(&vdi)?;
            state.name = None;
            self.vdis.remove_name(&name, vdi.vid);
            self.locks.forget(vdi.vid);
            // The VDI is deleted by now, whatever happens to its space.
            if let Err(error) = self.free_space_of(&vdi) {
                tracing::warn!("space of deleted VDI {} stays in use: {error}", vdi.vid);
            }
        }
        tracing::info!("deleted VDI {} of {name}", vdi.vid);
        Ok(Answer::body(ResponseBody::Vdi(VdiResponse {
            vdi_id: vdi.vid.get().into(),
            ..VdiResponse::default()
        })))
    }

    /// Takes name and size from the inode's header; the rest of it stays (protocol 4.4).
    fn erase_header(&self, vdi: &Vdi) -> Result<(), ResultCode> {
        let inode = Oid::inode(vdi.vid);
        let mut header = self.read_header(vdi)?;
        header.name = [0; NAME_FIELD_LEN];
        header.vdi_size = 0.into();
        self.store.write(inode, 0, header.as_bytes())?;
        Ok(self.store.sync(inode)?)
    }

    /// Removes what only the deleted VDI had. The caller has locked its state, or is the only one running.
    pub(crate) fn free_space_of(&self, vdi: &Vdi) -> Result<(), StoreError> {
        let store = self.store.as_ref();
        let mut own = store.objects_of(vdi.vid)?;
        own.retain(|oid| match oid.kind() {
            Some(ObjectKind::Data) => true,
            // Attributes belong to a name that has this VID as its hash.
            Some(ObjectKind::Inode | ObjectKind::Attribute) | None => false,
            Some(ObjectKind::VmState | ObjectKind::BtreeNode | ObjectKind::Ledger) => {
                if let Err(error) = store.remove(*oid) {
                    tracing::warn!("object {oid} stays: {error}");
                }
                false
            }
        });
        let released = self.references.forget(store, vdi, own)?;
        self.references.finish(store, released);
        store.clear_from(Oid::inode(vdi.vid), INODE_HEADER_LEN as u64)
    }

    /// Completes what a crash interrupted: the deletion, or the removal of an
    /// object that others had named for longer.
    pub(crate) fn resume_deletion(&self, vdi: &Arc<Vdi>) -> Result<(), StoreError> {
        if self.has_objects(vdi)? || self.has_entries(vdi)? {
            self.free_space_of(vdi)?;
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

    fn has_entries(&self, vdi: &Vdi) -> Result<bool, StoreError> {
        let behind_header = INODE_HEADER_LEN as u64..INODE_LEN as u64;
        let inode = Oid::inode(vdi.vid);
        for extent in self.store.extents(inode, behind_header)? {
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
