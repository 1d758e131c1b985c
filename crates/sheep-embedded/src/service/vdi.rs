//! Finding, making and deleting VDIs.

use std::sync::Arc;

use sheep_proto::inode::{STORE_POLICY_HYPERVOLUME, max_volume_size};
use sheep_proto::limits::{DEFAULT_BLOCK_SIZE_SHIFT, VID_BITMAP_LEN};
use sheep_proto::{
    InodeHeader, Redundancy, ResponseBody, ResultCode, VdiName, VdiRequest, VdiResponse, Vid,
};

use crate::catalogue::{Catalogue, Vdi, VdiOperation};
use crate::clock::now;
use crate::cluster::{Cluster, checked_shift};
use crate::hypervolume::empty_root;
use crate::inode::Inodes;
use crate::lock::Locks;
use crate::reclaim::Reclaimer;
use crate::request::{HandlerResult, Reply, Request};

/// What NEW_VDI asks for, checked.
struct NewVdi {
    name: VdiName,
    size: u64,
    redundancy: Redundancy,
    hypervolume: bool,
    shift: u8,
}

impl NewVdi {
    /// Takes the request literally, as C does, within what an index can name.
    /// Only an object size that was left open comes from the base.
    fn check(
        name: VdiName,
        request: &VdiRequest,
        cluster: &Cluster,
        base: Option<&Vdi>,
    ) -> Result<Self, ResultCode> {
        let hypervolume = match request.store_policy {
            0 => false,
            STORE_POLICY_HYPERVOLUME => true,
            _ => return Err(ResultCode::InvalidParms),
        };
        let default_shift = match base {
            Some(base) => base.shift,
            None if hypervolume => DEFAULT_BLOCK_SIZE_SHIFT,
            None => cluster.shift(),
        };
        let new = Self {
            name,
            size: request.vdi_size.get(),
            redundancy: cluster.redundancy_of(request)?,
            hypervolume,
            shift: checked_shift(request.block_size_shift, default_shift)?,
        };
        if new.size > max_volume_size(hypervolume, new.shift) {
            return Err(ResultCode::InvalidParms);
        }
        if let Some(base) = base {
            if base.hypervolume {
                return Err(ResultCode::NoSupport);
            }
            // Shared objects have one size, and one kind of index.
            if base.shift != new.shift || hypervolume {
                return Err(ResultCode::InvalidParms);
            }
        }
        Ok(new)
    }

    fn header(&self, vid: Vid, snap_id: u32, parent: Option<Vid>, created: u64) -> InodeHeader {
        let mut header = InodeHeader::zeroed();
        header.name = self.name.to_field();
        header.create_time = created.into();
        header.vdi_size = self.size.into();
        header.copy_policy = self.redundancy.copy_policy();
        header.store_policy = self.hypervolume.into();
        header.nr_copies = self.redundancy.nr_copies();
        header.block_size_shift = self.shift;
        header.snap_id = snap_id.into();
        header.vdi_id = vid.get().into();
        header.parent_vdi_id = parent.map_or(0, Vid::get).into();
        header
    }
}

/// See the module.
pub(crate) struct VdiService {
    pub(crate) vdis: Arc<Catalogue>,
    pub(crate) inodes: Arc<Inodes>,
    pub(crate) reclaimer: Arc<Reclaimer>,
    pub(crate) locks: Arc<Locks>,
}

impl VdiService {
    /// NEW_VDI: create, clone, snapshot or rebase (protocol 5.2).
    ///
    /// A snapshot makes the new inode first and then marks the old one, both
    /// with the old VDI's state locked for writing: no data write is running then, none
    /// is let through afterwards, and every index entry written before is in
    /// both inodes. A crash between the two steps leaves two working VDIs of
    /// one name, and the next start completes the snapshot.
    ///
    /// Stricter than C: a working VDI is no base of a clone, because its later
    /// writes in place would show through, and a snapshot's base has its name.
    pub(crate) fn create(&self, request: &Request<'_>, cluster: &Cluster) -> HandlerResult {
        let name = request.name()?;
        let wanted = request.vdi();
        let operation = self.vdis.begin_operation();
        // Find the head to replace: a snapshot needs one, anything else must not have one.
        let head = operation.head(&name);
        let wants_snapshot = wanted.snapid.get() != 0;
        let replaced = match (head, wants_snapshot) {
            (Some(_), false) => return Err(ResultCode::VdiExist),
            (None, true) => return Err(ResultCode::NoVdi),
            (head, _) => head,
        };
        // Find the base, and check that this request may have it.
        let base = match wanted.base_vdi_id.get() {
            0 if !wants_snapshot => None,
            raw => Some(self.base(raw)?),
        };
        if let Some(base) = &base {
            let is_allowed = if wants_snapshot {
                base.read().name.as_ref() == Some(&name)
            } else {
                !base.is_head()
            };
            if !is_allowed {
                return Err(ResultCode::InvalidParms);
            }
        }
        let new = NewVdi::check(name, &wanted, cluster, base.as_deref())?;
        if cluster.requires_halt(new.redundancy.nr_copies()) {
            return Err(ResultCode::VdiWrite);
        }
        let vdi = self.create_vdi(&operation, &new, base.as_deref(), replaced.as_deref())?;
        tracing::info!("made VDI {} of {}", vdi.vid, new.name);
        Ok(vdi_reply(&vdi))
    }

    fn base(&self, raw: u32) -> Result<Arc<Vdi>, ResultCode> {
        Vid::new(raw)
            .and_then(|vid| self.vdis.get(vid))
            .filter(|base| base.read().name.is_some())
            .ok_or(ResultCode::BaseVdiRead)
    }

    /// Makes the inode of a new working VDI; the VDI it replaces becomes a snapshot.
    fn create_vdi(
        &self,
        operation: &VdiOperation<'_>,
        new: &NewVdi,
        base: Option<&Vdi>,
        replaced: Option<&Vdi>,
    ) -> Result<Arc<Vdi>, ResultCode> {
        // Allocate the VID and the next snapshot id of the name.
        let vid = operation.free_vid(&new.name).ok_or(ResultCode::FullVdi)?;
        let relatives = operation.versions_of(&new.name);
        let newest = relatives.iter().map(|vdi| vdi.snap_id).max();
        let snap_id = newest.unwrap_or(0).saturating_add(1);
        let created = now();
        let header = new.header(vid, snap_id, base.map(|base| base.vid), created);
        let vdi = Vdi::from_header(vid, &header).ok_or(ResultCode::SystemError)?;

        // Both states stay locked for writing until the snapshot is marked.
        let (mut replaced_state, _base_state) = operation.write_both(replaced, base);
        let root = if new.hypervolume {
            empty_root()
        } else {
            Vec::new()
        };
        let base = base.map(|base| base.vid);
        self.inodes.create(vid, &header, &root, base)?;
        let vdi = Arc::new(vdi);
        operation.insert(Arc::clone(&vdi));
        if let (Some(replaced), Some(state)) = (replaced, &mut replaced_state) {
            // Also when the write below fails: this is what the next start would make of it.
            state.is_snapshot = true;
            self.inodes
                .mark_snapshot(replaced, created)
                .map_err(|error| {
                    tracing::error!("cannot mark VDI {} as a snapshot: {error}", replaced.vid);
                    ResultCode::BaseVdiWrite
                })?;
        }
        Ok(vdi)
    }

    /// GET_VDI_INFO.
    pub(crate) fn info(&self, request: &Request<'_>) -> HandlerResult {
        let (name, tag) = request.name_and_tag()?;
        let operation = self.vdis.begin_operation();
        let vdi = operation.lookup(&name, &tag, request.vdi().snapid.get())?;
        Ok(vdi_reply(&vdi))
    }

    /// DEL_VDI.
    pub(crate) fn delete(&self, request: &Request<'_>) -> HandlerResult {
        let (name, tag) = request.name_and_tag()?;
        let operation = self.vdis.begin_operation();
        let vdi = operation.lookup(&name, &tag, request.vdi().snapid.get())?;
        {
            let mut state = vdi.write();
            self.inodes.erase_header(&vdi)?;
            state.name = None;
            operation.remove_name(&name, vdi.vid);
            self.locks.remove(vdi.vid);
            // The VDI is deleted by now, whatever happens to its space.
            if let Err(error) = self.reclaimer.reclaim(&vdi) {
                tracing::warn!("space of deleted VDI {} stays in use: {error}", vdi.vid);
            }
        }
        tracing::info!("deleted VDI {} of {name}", vdi.vid);
        Ok(Reply::body(ResponseBody::Vdi(VdiResponse {
            vdi_id: vdi.vid.get().into(),
            ..VdiResponse::default()
        })))
    }

    /// READ_VDIS: deleted VDIs keep their VIDs.
    pub(crate) fn used_vids(&self, request: &Request<'_>) -> HandlerResult {
        self.vid_bitmap(request, |_vdi| true)
    }

    /// READ_DEL_VDIS.
    pub(crate) fn deleted_vids(&self, request: &Request<'_>) -> HandlerResult {
        self.vid_bitmap(request, |vdi| vdi.read().name.is_none())
    }

    fn vid_bitmap(&self, request: &Request<'_>, filter: impl Fn(&Vdi) -> bool) -> HandlerResult {
        if request.max_response_len()? != VID_BITMAP_LEN {
            return Err(ResultCode::InvalidParms);
        }
        Ok(Reply::payload(self.vdis.bitmap(filter).as_bytes().to_vec()))
    }
}

/// The reply that names a VDI, its redundancy and object size.
pub(crate) fn vdi_reply(vdi: &Vdi) -> Reply {
    Reply::body(ResponseBody::Vdi(VdiResponse {
        vdi_id: vdi.vid.get().into(),
        copies: vdi.redundancy.nr_copies(),
        block_size_shift: vdi.shift,
        ..VdiResponse::default()
    }))
}
