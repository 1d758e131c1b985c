//! Finding, making and deleting VDIs.

use std::sync::Arc;

use sheep_proto::inode::{STORE_POLICY_HYPERVOLUME, max_volume_size};
use sheep_proto::limits::{DEFAULT_BLOCK_SIZE_SHIFT, NAME_FIELD_LEN, VID_BITMAP_LEN};
use sheep_proto::{
    Generation, InodeHeader, Redundancy, ResponseBody, ResultCode, VdiName, VdiRequest,
    VdiResponse, Vid,
};

use crate::catalogue::{Catalogue, Vdi, VdiOperation};
use crate::clock::now;
use crate::cluster::{Cluster, checked_shift};
use crate::family::Families;
use crate::hypervolume::empty_root;
use crate::inode::Inodes;
use crate::lock::Locks;
use crate::reclaim::Reclaimer;
use crate::release::Release;
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
        generation: Generation,
    ) -> Result<Self, ResultCode> {
        let hypervolume = match request.store_policy {
            0 => false,
            // There the byte is part of the number of copies.
            _ if generation.has_wide_copies() => false,
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
            redundancy: if generation.has_wide_copies() {
                wide_redundancy(cluster, request)?
            } else {
                cluster.redundancy_of(request)?
            },
            hypervolume,
            shift: checked_shift(generation, request.block_size_shift, default_shift)?,
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

/// The number of copies of a generation that has 32 bits for it, of which an inode keeps
/// the lowest eight.
fn wide_redundancy(cluster: &Cluster, request: &VdiRequest) -> Result<Redundancy, ResultCode> {
    let wide = [
        request.copies,
        request.copy_policy,
        request.store_policy,
        request.block_size_shift,
    ];
    match (wide, request.copies) {
        ([0, 0, 0, 0], _) => cluster.redundancy_of(request),
        // It keeps an inode without copies.
        (_, 0) => Ok(Redundancy::from_wire(0, 0)),
        (_, copies) => {
            let narrow = VdiRequest {
                copies,
                copy_policy: 0,
                ..*request
            };
            cluster.redundancy_of(&narrow)
        }
    }
}

/// See the module.
pub(crate) struct VdiService {
    pub(crate) vdis: Arc<Catalogue>,
    pub(crate) inodes: Arc<Inodes>,
    pub(crate) reclaimer: Arc<Reclaimer>,
    pub(crate) families: Arc<Families>,
    pub(crate) locks: Arc<Locks>,
    pub(crate) release: Release,
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
        let generation = self.release.generation;
        let new = NewVdi::check(name, &wanted, cluster, base.as_deref(), generation)?;
        if cluster.requires_halt(new.redundancy.nr_copies()) {
            return Err(ResultCode::VdiWrite);
        }
        let vdi = self.create_vdi(&operation, &new, base.as_deref(), replaced.as_deref())?;
        tracing::info!("made VDI {} of {}", vdi.vid, new.name);
        if generation.has_wide_copies() && wanted.copies == 0 && wanted.block_size_shift != 0 {
            return Ok(wide_copies_reply(&vdi, &wanted));
        }
        Ok(vdi_reply(&vdi, generation))
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
        let reused = if replaced.is_none() && self.release.reuses_vids() {
            operation.reusable_vid(&new.name)
        } else {
            None
        };
        let vid = reused
            .or_else(|| operation.free_vid(&new.name))
            .ok_or(ResultCode::FullVdi)?;
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
        if let Some(base) = base
            && self.release.generation.has_child_slots()
            && !self.families.add_child(base, vid)?
        {
            return Err(self.release.generation.full_parent());
        }
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
        if self.release.is_mortal() && dies_of_lookup(request, &operation, &name) {
            return Ok(Reply::death(DEATH_BY_LOOKUP));
        }
        let vdi = operation.lookup(&name, &tag, request.vdi().snapid.get())?;
        Ok(vdi_reply(&vdi, self.release.generation))
    }

    /// DEL_VDI.
    pub(crate) fn delete(&self, request: &Request<'_>) -> HandlerResult {
        let (name, tag) = request.name_and_tag()?;
        let operation = self.vdis.begin_operation();
        if self.release.is_mortal() && dies_of_lookup(request, &operation, &name) {
            return Ok(Reply::death(DEATH_BY_LOOKUP));
        }
        let vdi = operation.lookup(&name, &tag, request.vdi().snapid.get())?;
        let generation = self.release.generation;
        if generation.deletes_objects() {
            let mut state = vdi.write();
            self.families.delete(vdi.vid)?;
            state.name = None;
            operation.remove_name(&name, vdi.vid);
        } else if generation.deletes_only_empty_vdis() && self.reclaimer.has_entries(&vdi)? {
            tracing::info!("VDI {} of {name} has objects and stays", vdi.vid);
            return Ok(Reply::ok());
        } else {
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
        if !generation.answers_deleted_vid() {
            return Ok(Reply::ok());
        }
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

const DEATH_BY_LOOKUP: &str = "a look-up of a snapshot by its id, without a tag in the payload";

/// True for a look-up of a name alone, with the id of a snapshot, when there is one with a
/// tag: the sheep compares that with what is behind the payload.
pub(super) fn dies_of_lookup(
    request: &Request<'_>,
    operation: &VdiOperation<'_>,
    name: &VdiName,
) -> bool {
    let has_tag = |vdi: &Arc<Vdi>| {
        let state = vdi.read();
        state.is_snapshot && !state.tag.is_empty()
    };
    request.payload.len() == NAME_FIELD_LEN
        && request.vdi().snapid.get() != 0
        && operation.versions_of(name).iter().any(has_tag)
}

/// The reply that names a VDI, its redundancy and, where there is more than one, object size.
pub(super) fn vdi_reply(vdi: &Vdi, generation: Generation) -> Reply {
    Reply::body(ResponseBody::Vdi(VdiResponse {
        vdi_id: vdi.vid.get().into(),
        copies: vdi.redundancy.nr_copies(),
        block_size_shift: if generation.has_object_sizes() {
            vdi.shift
        } else {
            0
        },
        ..VdiResponse::default()
    }))
}

/// The reply of a server that has taken an object size for a part of the number of copies.
fn wide_copies_reply(vdi: &Vdi, request: &VdiRequest) -> Reply {
    let mut body = VdiResponse {
        vdi_id: vdi.vid.get().into(),
        copies: request.copies,
        block_size_shift: request.copy_policy,
        ..VdiResponse::default()
    };
    body.pad[..2].copy_from_slice(&[request.store_policy, request.block_size_shift]);
    Reply::body(ResponseBody::Vdi(body))
}
