//! Finding and making VDIs.

use std::sync::Arc;

use sheep_proto::inode::{SNAP_CTIME_OFFSET, STORE_POLICY_HYPERVOLUME, max_volume_size};
use sheep_proto::limits::{DEFAULT_BLOCK_SIZE_SHIFT, INODE_HEADER_LEN, INODE_LEN, VID_BITMAP_LEN};
use sheep_proto::{
    InodeHeader, Oid, Redundancy, ResponseBody, ResultCode, VdiName, VdiRequest, VdiResponse, Vid,
};
use zerocopy::IntoBytes;

use crate::call::{Answer, Call, Outcome};
use crate::catalogue::Vdi;
use crate::cluster::{Cluster, checked_shift, now};
use crate::hypervolume::empty_root;
use crate::poison::lock;
use crate::sheep::Sheep;
use crate::store::{NewObject, StoreError};

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

impl Sheep {
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
    pub(crate) fn new_vdi(&self, call: &Call<'_>) -> Outcome {
        let name = call.name()?;
        let request = call.vdi();
        let cluster = call.formatted()?;
        let _serialised = lock(&self.vdi_operations);
        let head = self.vdis.head(&name);
        let wants_snapshot = request.snapid.get() != 0;
        let replaced = match (head, wants_snapshot) {
            (Some(_), false) => return Err(ResultCode::VdiExist),
            (None, true) => return Err(ResultCode::NoVdi),
            (head, _) => head,
        };
        let base = match request.base_vdi_id.get() {
            0 if !wants_snapshot => None,
            raw => Some(self.base(raw)?),
        };
        if let Some(base) = &base {
            let is_allowed = if wants_snapshot {
                base.read().name.as_ref() == Some(&name)
            } else {
                !base.is_working()
            };
            if !is_allowed {
                return Err(ResultCode::InvalidParms);
            }
        }
        let new = NewVdi::check(name, &request, cluster, base.as_deref())?;
        if cluster.halts(new.redundancy.nr_copies()) {
            return Err(ResultCode::VdiWrite);
        }
        let vdi = self.make_vdi(&new, base.as_deref(), replaced.as_deref())?;
        tracing::info!("made VDI {} of {}", vdi.vid, new.name);
        Ok(vdi_answer(&vdi))
    }

    fn base(&self, raw: u32) -> Result<Arc<Vdi>, ResultCode> {
        Vid::new(raw)
            .and_then(|vid| self.vdis.get(vid))
            .filter(|base| base.read().name.is_some())
            .ok_or(ResultCode::BaseVdiRead)
    }

    /// Makes the inode of a new working VDI; the VDI it replaces becomes a snapshot.
    fn make_vdi(
        &self,
        new: &NewVdi,
        base: Option<&Vdi>,
        replaced: Option<&Vdi>,
    ) -> Result<Arc<Vdi>, ResultCode> {
        let vid = self.vdis.free_vid(&new.name).ok_or(ResultCode::FullVdi)?;
        let relatives = self.vdis.versions_of(&new.name);
        let newest = relatives.iter().map(|vdi| vdi.snap_id).max();
        let snap_id = newest.unwrap_or(0).saturating_add(1);
        let created = now();
        let header = new.header(vid, snap_id, base.map(|base| base.vid), created);
        let vdi = Vdi::from_header(vid, &header).ok_or(ResultCode::SystemError)?;

        let is_same = base.map(|base| base.vid) == replaced.map(|replaced| replaced.vid);
        let mut replaced_state = replaced.map(Vdi::write);
        let _base_state = base.filter(|_| !is_same).map(Vdi::write);
        let root = if new.hypervolume {
            empty_root()
        } else {
            Vec::new()
        };
        let inode = NewObject {
            len: INODE_LEN as u64,
            source: base.map(|base| Oid::inode(base.vid)),
            writes: &[(0, header.as_bytes()), (INODE_HEADER_LEN as u64, &root)],
        };
        self.store.create(Oid::inode(vid), inode)?;
        let vdi = Arc::new(vdi);
        self.vdis.insert(Arc::clone(&vdi));
        if let Some(base) = base {
            self.references.copy(base.vid, vid);
        }
        if let (Some(replaced), Some(state)) = (replaced, &mut replaced_state) {
            // Also when the write below fails: this is what the next start would make of it.
            state.is_snapshot = true;
            self.mark_snapshot(replaced, created).map_err(|error| {
                tracing::error!("cannot mark VDI {} as a snapshot: {error}", replaced.vid);
                ResultCode::BaseVdiWrite
            })?;
        }
        Ok(vdi)
    }

    /// Writes the mark of a snapshot to an inode. The caller has locked the VDI's state for writing.
    pub(crate) fn mark_snapshot(&self, vdi: &Vdi, time: u64) -> Result<(), StoreError> {
        let inode = Oid::inode(vdi.vid);
        let offset = SNAP_CTIME_OFFSET.into();
        self.store.write(inode, offset, &time.to_le_bytes())?;
        self.store.sync(inode)
    }

    /// GET_VDI_INFO.
    pub(crate) fn vdi_info(&self, call: &Call<'_>) -> Outcome {
        let (name, tag) = call.name_and_tag()?;
        let _serialised = lock(&self.vdi_operations);
        let vdi = self.vdis.find(&name, &tag, call.vdi().snapid.get())?;
        Ok(vdi_answer(&vdi))
    }

    /// READ_VDIS: deleted VDIs keep their VIDs.
    pub(crate) fn used_vids(&self, call: &Call<'_>) -> Outcome {
        self.vid_bitmap(call, |_vdi| true)
    }

    /// READ_DEL_VDIS.
    pub(crate) fn deleted_vids(&self, call: &Call<'_>) -> Outcome {
        self.vid_bitmap(call, |vdi| vdi.read().name.is_none())
    }

    fn vid_bitmap(&self, call: &Call<'_>, filter: impl Fn(&Vdi) -> bool) -> Outcome {
        if call.want()? != VID_BITMAP_LEN {
            return Err(ResultCode::InvalidParms);
        }
        Ok(Answer::payload(
            self.vdis.bitmap(filter).as_bytes().to_vec(),
        ))
    }
}

/// The answer that names a VDI, its redundancy and object size.
pub(crate) fn vdi_answer(vdi: &Vdi) -> Answer {
    Answer::body(ResponseBody::Vdi(VdiResponse {
        vdi_id: vdi.vid.get().into(),
        copies: vdi.redundancy.nr_copies(),
        block_size_shift: vdi.shift,
        ..VdiResponse::default()
    }))
}
