//! GET_VDI_ATTR: find, set or delete an attribute.
//!
//! An attribute is an object in an open-addressed hash table: its id is found by
//! linear probing from the hash of its name, tag, snapshot id and key. A deleted
//! attribute leaves a tombstone with an empty name, so that later ones in the
//! probe sequence are still found. Unlike C, setting probes too.
//! Its time is that of the VDI's creation, whatever the client sends.

use std::mem::offset_of;
use std::sync::Arc;

use sheep_proto::attribute::Attribute;
use sheep_proto::hash::{attribute_id, first_vid};
use sheep_proto::limits::ATTRIBUTE_LEN;
use sheep_proto::{Oid, RequestFlags, ResponseBody, ResultCode, SnapshotTag, VdiResponse, Vid};
use zerocopy::{FromZeros, IntoBytes};

use crate::catalogue::Catalogue;
use crate::inode::Inodes;
use crate::request::{HandlerResult, Reply, Request, name_in};
use crate::store::{NewObject, Store, StoreError};

/// Ids tried one after another before the table counts as full.
const MAX_PROBES: u32 = 1024;

/// Where probing ended: at the attribute, or where it would be stored.
struct ProbeResult {
    id: u32,
    exists: bool,
}

/// See the module.
pub(crate) struct AttributeService {
    pub(crate) store: Arc<dyn Store>,
    pub(crate) vdis: Arc<Catalogue>,
    pub(crate) inodes: Arc<Inodes>,
}

impl AttributeService {
    /// GET_VDI_ATTR.
    pub(crate) fn access(&self, request: &Request<'_>) -> HandlerResult {
        let wanted = Attribute::parse(request.data()?).map_err(|_| ResultCode::InvalidParms)?;
        let name = name_in(&wanted.name)?;
        let tag = SnapshotTag::from_field(&wanted.tag);
        let flags = request.flags();
        let operation = self.vdis.begin_operation();
        let vdi = operation.lookup(&name, &tag, request.vdi().snapid.get())?;
        // Probe for the attribute, then create, delete or just report it.
        let vid = first_vid(name.as_bytes());
        let probed = self.probe(vid, wanted)?;
        let oid = Oid::attribute(vid, probed.id);
        if flags.contains(RequestFlags::CREAT) {
            if probed.exists && flags.contains(RequestFlags::EXCL) {
                return Err(ResultCode::VdiExist);
            }
            let created = self.inodes.read_header(&vdi)?.create_time;
            let object = NewObject {
                len: ATTRIBUTE_LEN as u64,
                source: None,
                writes: &[
                    (0, wanted.as_bytes()),
                    (offset_of!(Attribute, ctime) as u64, created.as_bytes()),
                ],
            };
            self.store.create(oid, object)?;
        } else if !probed.exists {
            return Err(ResultCode::NoObj);
        } else if flags.contains(RequestFlags::DEL) {
            self.store.write(oid, 0, &[0])?;
            self.store.sync(oid)?;
        }
        Ok(Reply::body(ResponseBody::Vdi(VdiResponse {
            vdi_id: vid.get().into(),
            attr_id: probed.id.into(),
            copies: vdi.redundancy.nr_copies(),
            ..VdiResponse::default()
        })))
    }

    fn probe(&self, vid: Vid, wanted: &Attribute) -> Result<ProbeResult, ResultCode> {
        let first = attribute_id(&wanted.name, &wanted.tag, wanted.snap_id.get(), &wanted.key);
        let mut found = Attribute::new_box_zeroed().map_err(|_no_memory| ResultCode::NoMem)?;
        let mut free = None;
        for step in 0..MAX_PROBES {
            let id = first.wrapping_add(step);
            match self
                .store
                .read(Oid::attribute(vid, id), 0, found.as_mut_bytes())
            {
                Ok(()) if found.name[0] == 0 => free = free.or(Some(id)),
                Ok(()) => {
                    let is_wanted = (&found.name, &found.tag, found.snap_id, &found.key)
                        == (&wanted.name, &wanted.tag, wanted.snap_id, &wanted.key);
                    if is_wanted {
                        return Ok(ProbeResult { id, exists: true });
                    }
                }
                Err(StoreError::NotFound) => {
                    return Ok(ProbeResult {
                        id: free.unwrap_or(id),
                        exists: false,
                    });
                }
                Err(error) => return Err(error.into()),
            }
        }
        let id = free.ok_or(ResultCode::FullVdi)?;
        Ok(ProbeResult { id, exists: false })
    }
}
