//! Object I/O: READ_OBJ, WRITE_OBJ, CREATE_AND_WRITE_OBJ, REMOVE_OBJ,
//! DISCARD_OBJ, and questions about objects.
//!
//! Stricter than C in what would only do harm: a range must lie in its object,
//! objects of a snapshot can be neither discarded nor removed, inodes neither
//! created nor removed, and data goes only into VDIs that exist.

use std::sync::Arc;

use sha1::{Digest, Sha1};
use sheep_proto::inode::{SLOT_LEN, slot_offset};
use sheep_proto::limits::{
    ATTRIBUTE_LEN, BTREE_NODE_LEN, FLAT_INDEX_SLOTS, HYPERVOLUME_MAX_SIZE, INODE_GREF_OFFSET,
    INODE_HEADER_LEN, PUBLIC_PROTO_VER,
};
use sheep_proto::{
    HashResponse, ObjectIndex, ObjectKind, ObjectResponse, Oid, Opcode, RequestFlags, ResponseBody,
    ResultCode,
};
use zerocopy::IntoBytes;

use crate::catalogue::{Catalogue, Vdi};
use crate::cluster::Cluster;
use crate::hypervolume::discard_in_tree;
use crate::inode::Inodes;
use crate::lock::Locks;
use crate::membership::Membership;
use crate::payload::Payload;
use crate::release::Release;
use crate::request::{HandlerResult, Reply, Request};
use crate::store::{NewObject, Store, StoreError};

/// Bytes of an object that are digested at once: an object can have 2 GiB.
const DIGEST_BUFFER_LEN: usize = 1 << 20;
/// Blocks of zeros that a READ_OBJ of old releases leaves out.
const TRIM_LEN: usize = 4096;

/// The object a request is about.
pub(super) struct Target {
    pub(super) oid: Oid,
    pub(super) kind: ObjectKind,
    pub(super) len: u64,
    /// `None` for attributes, which belong to a name and not to a VDI.
    pub(super) vdi: Option<Arc<Vdi>>,
}

impl Target {
    /// The VDI of anything but an attribute.
    pub(super) fn vdi(&self) -> Result<&Vdi, ResultCode> {
        self.vdi.as_deref().ok_or(ResultCode::InvalidParms)
    }

    /// A range of the object, `len` bytes from `offset` on.
    pub(super) fn check_range(&self, offset: u32, len: usize) -> Result<u64, ResultCode> {
        let offset = u64::from(offset);
        match offset.checked_add(len as u64) {
            Some(end) if end <= self.len => Ok(offset),
            _ => Err(ResultCode::InvalidParms),
        }
    }

    /// Data is not written to a snapshot, nor in a cluster that cannot store it as often
    /// as asked.
    pub(super) fn check_writable(&self, cluster: &Cluster) -> Result<(), ResultCode> {
        match &self.vdi {
            Some(vdi) if self.kind == ObjectKind::Data => {
                require_writable(cluster, vdi, vdi.read().is_snapshot)
            }
            _ => Ok(()),
        }
    }

    /// An index that the VDI's kind of index can name.
    fn check_number(&self, vdi: &Vdi) -> Result<(), ResultCode> {
        let count = if vdi.hypervolume {
            HYPERVOLUME_MAX_SIZE >> vdi.shift
        } else {
            FLAT_INDEX_SLOTS.into()
        };
        if u64::from(self.oid.number()) < count {
            Ok(())
        } else {
            Err(ResultCode::InvalidParms)
        }
    }
}

/// See the module.
pub(crate) struct ObjectService {
    pub(crate) store: Arc<dyn Store>,
    pub(crate) vdis: Arc<Catalogue>,
    pub(crate) inodes: Arc<Inodes>,
    pub(crate) locks: Arc<Locks>,
    pub(crate) members: Arc<Membership>,
    pub(crate) release: Release,
}

impl ObjectService {
    /// Finds out about an object id.
    ///
    /// # Errors
    /// `InvalidParms` for an id that no object can have, `NoObj` for one of an unknown VDI.
    pub(super) fn target(&self, raw: u64) -> Result<Target, ResultCode> {
        let oid = Oid::from_raw(raw);
        let kind = oid.kind().ok_or(ResultCode::InvalidParms)?;
        let vid = oid.vid().ok_or(ResultCode::InvalidParms)?;
        if kind == ObjectKind::Attribute {
            return Ok(Target {
                oid,
                kind,
                len: ATTRIBUTE_LEN as u64,
                vdi: None,
            });
        }
        if kind == ObjectKind::Inode && oid.number() != 0 {
            return Err(ResultCode::InvalidParms);
        }
        let vdi = self.vdis.get(vid).ok_or(ResultCode::NoObj)?;
        if self.release.generation.max_object_len(oid).is_none() {
            return Err(ResultCode::InvalidParms);
        }
        let len = match kind {
            ObjectKind::Inode => self.release.generation.inode_len() as u64,
            ObjectKind::BtreeNode | ObjectKind::Ledger => BTREE_NODE_LEN as u64,
            ObjectKind::Data | ObjectKind::VmState | ObjectKind::Attribute => 1 << vdi.shift,
        };
        Ok(Target {
            oid,
            kind,
            len,
            vdi: Some(vdi),
        })
    }

    /// As [`Self::target`], for I/O of a client that may share a lock (protocol 6.9).
    pub(super) fn io_target(&self, request: &Request<'_>) -> Result<Target, ResultCode> {
        /// Header and index: all that an inode had until 0.7, and what tgt reads.
        const REFRESH_LEN: usize = INODE_GREF_OFFSET;
        let wanted = request.object();
        let target = self.target(wanted.oid.get())?;
        if request.flags().contains(RequestFlags::TGT)
            && let Some(vdi) = &target.vdi
        {
            let is_refresh = target.kind == ObjectKind::Inode
                && wanted.offset.get() == 0
                && request.max_response_len() == Ok(REFRESH_LEN);
            self.locks.check(vdi.vid, request.origin.node, is_refresh)?;
        }
        Ok(target)
    }

    /// READ_OBJ: exactly the bytes asked for.
    pub(crate) fn read(&self, request: &Request<'_>) -> HandlerResult {
        let wanted = request.object();
        let target = self.io_target(request)?;
        let len = request.max_response_len()?;
        let generation = self.release.generation;
        let range = target.check_range(wanted.offset.get(), len);
        if range.is_err() && generation.leaves_after_reading_past_end() {
            tracing::warn!("a read past the end of {}: leaving the cluster", target.oid);
            self.members.leave(request.origin.node);
            return Err(ResultCode::Halt);
        }
        let mut reply = Reply::payload(self.store.read_payload(target.oid, range?, len)?);
        let mut body = ObjectResponse::default();
        if generation.answers_copies() {
            let vdi = target.oid.vid().and_then(|vid| self.vdis.get(vid));
            body.copies = vdi.map_or(0, |vdi| vdi.redundancy.nr_copies());
        }
        if generation.trims_zeros() && request.header.proto_ver == PUBLIC_PROTO_VER {
            let (front, trimmed) = trim_zeros(&reply.payload);
            body.offset = front.into();
            reply.payload = trimmed.into();
        }
        reply.body = ResponseBody::Object(body);
        Ok(reply)
    }

    /// READ_PEER, with which the `dog` of releases without EXIST looks for an object.
    pub(crate) fn read_as_peer(&self, request: &Request<'_>) -> HandlerResult {
        if self.release.serves(Opcode::Exist) {
            return Err(ResultCode::InvalidParms);
        }
        self.read(request)
    }

    /// WRITE_OBJ: the object must exist.
    pub(crate) fn write(&self, request: &Request<'_>, cluster: &Cluster) -> HandlerResult {
        let wanted = request.object();
        let data = request.data()?;
        let target = self.io_target(request)?;
        let offset = target.check_range(wanted.offset.get(), data.len())?;
        match (target.kind, &target.vdi) {
            (ObjectKind::Inode, Some(vdi)) => {
                let is_index =
                    (INODE_HEADER_LEN as u64..INODE_GREF_OFFSET as u64).contains(&offset);
                if is_index {
                    self.locks.invalidate_others(vdi.vid, request.origin.node);
                }
                self.inodes.write(vdi, offset, data)?;
            }
            (ObjectKind::Data, Some(vdi)) => {
                let state = vdi.read();
                require_writable(cluster, vdi, state.is_snapshot)?;
                self.overwrite(target.oid, offset, data)?;
            }
            (_, vdi) => {
                let _writing = vdi.as_ref().map(|vdi| vdi.read());
                self.overwrite(target.oid, offset, data)?;
            }
        }
        Ok(Reply::ok())
    }

    fn overwrite(&self, oid: Oid, offset: u64, data: &[u8]) -> Result<(), ResultCode> {
        self.store.write(oid, offset, data)?;
        Ok(self.store.sync(oid)?)
    }

    /// CREATE_AND_WRITE_OBJ: replaces the whole object.
    pub(crate) fn create(&self, request: &Request<'_>, cluster: &Cluster) -> HandlerResult {
        let wanted = request.object();
        let data = request.data()?;
        let target = match self.io_target(request) {
            Err(ResultCode::NoObj) => return Err(ResultCode::NoVdi),
            target => target?,
        };
        // A write of the whole object needs no source.
        let offset = target.check_range(wanted.offset.get(), data.len())?;
        let is_whole = data.len() as u64 == target.len;
        let source = if request.flags().contains(RequestFlags::COW) && !is_whole {
            Some(self.copy_source(&target, wanted.cow_oid.get())?)
        } else {
            None
        };
        let object = NewObject {
            len: target.len,
            source,
            writes: &[(offset, data)],
        };
        // The read guard keeps out a snapshot until the object is durable.
        match target.kind {
            ObjectKind::Inode | ObjectKind::Ledger => return Err(ResultCode::InvalidParms),
            ObjectKind::Attribute => self.store.create(target.oid, object)?,
            ObjectKind::Data | ObjectKind::VmState | ObjectKind::BtreeNode => {
                let vdi = target.vdi()?;
                let state = vdi.read();
                if target.kind == ObjectKind::Data {
                    target.check_number(vdi)?;
                    require_writable(cluster, vdi, state.is_snapshot)?;
                }
                if state.name.is_none() {
                    return Err(ResultCode::NoVdi);
                }
                self.store.create(target.oid, object)?;
            }
        }
        Ok(Reply::ok())
    }

    /// The object that a copy on write starts from: data, of the same size.
    fn copy_source(&self, target: &Target, raw: u64) -> Result<Oid, ResultCode> {
        let source = self.target(raw)?;
        let both_data = source.kind == ObjectKind::Data && target.kind == ObjectKind::Data;
        if both_data && source.len == target.len {
            Ok(source.oid)
        } else {
            Err(ResultCode::InvalidParms)
        }
    }

    /// REMOVE_OBJ: touches no index.
    pub(crate) fn remove(&self, request: &Request<'_>) -> HandlerResult {
        let target = self.target(request.object().oid.get())?;
        if target.kind == ObjectKind::Inode {
            return Err(ResultCode::InvalidParms);
        }
        let state = target.vdi.as_ref().map(|vdi| vdi.read());
        if target.kind == ObjectKind::Data && state.as_ref().is_some_and(|state| state.is_snapshot)
        {
            return Err(ResultCode::ReadOnly);
        }
        self.store.remove(target.oid)?;
        Ok(Reply::ok())
    }

    /// DISCARD_OBJ: clears the index entry, which drops its reference.
    pub(crate) fn discard(&self, request: &Request<'_>) -> HandlerResult {
        let target = self.target(request.object().oid.get())?;
        if target.kind != ObjectKind::Data {
            return Err(ResultCode::InvalidParms);
        }
        let vdi = target.vdi()?;
        target.check_number(vdi)?;
        let index = ObjectIndex(target.oid.number());
        if self.release.generation.deletes_objects() && !vdi.hypervolume {
            return self.discard_uncounted(&target, vdi, index);
        }
        if vdi.hypervolume {
            discard_in_tree(self.store.as_ref(), vdi, index)?;
            return Ok(Reply::ok());
        }
        let state = vdi.read();
        if state.is_snapshot {
            return Err(ResultCode::ReadOnly);
        }
        if state.name.is_none() {
            return Err(ResultCode::NoObj);
        }
        let offset = slot_offset(index).ok_or(ResultCode::InvalidParms)?;
        self.inodes
            .write_index(vdi, offset.into(), &[0; SLOT_LEN as usize])?;
        Ok(Reply::ok())
    }

    /// DISCARD_OBJ without reference counts: the object of that id goes, also that of a
    /// snapshot.
    fn discard_uncounted(&self, target: &Target, vdi: &Vdi, index: ObjectIndex) -> HandlerResult {
        let _state = vdi.read();
        let offset = slot_offset(index).ok_or(ResultCode::InvalidParms)?;
        let mut slot = [0; SLOT_LEN as usize];
        self.store
            .read(Oid::inode(vdi.vid), offset.into(), &mut slot)?;
        if slot == [0; SLOT_LEN as usize] && self.release.generation.discards_only_named_objects() {
            return Ok(Reply::ok());
        }
        self.inodes
            .write_index(vdi, offset.into(), &[0; SLOT_LEN as usize])?;
        match self.store.remove(target.oid) {
            Ok(()) | Err(StoreError::NotFound) => Ok(Reply::ok()),
            Err(error) => Err(error.into()),
        }
    }

    /// EXIST: whether the object is in this node's store.
    pub(crate) fn exists(&self, request: &Request<'_>) -> HandlerResult {
        if self
            .store
            .exists(Oid::from_raw(request.object().oid.get()))?
        {
            Ok(Reply::ok())
        } else {
            Err(ResultCode::NoObj)
        }
    }

    /// OIDS_EXIST: the ids of those objects that do not exist. The only request
    /// with a payload both ways.
    pub(crate) fn missing_oids(&self, request: &Request<'_>) -> HandlerResult {
        let (oids, []) = request.data()?.as_chunks::<8>() else {
            return Err(ResultCode::InvalidParms);
        };
        let mut missing = Vec::new();
        for oid in oids {
            if !self.store.exists(Oid::from_raw(u64::from_le_bytes(*oid)))? {
                missing.extend_from_slice(oid.as_bytes());
            }
        }
        Ok(Reply::payload(missing))
    }

    /// GET_HASH, which dog compares between nodes: the SHA-1 of a whole object.
    pub(crate) fn digest(&self, request: &Request<'_>) -> HandlerResult {
        let wanted = request.object();
        let target = self.target(wanted.oid.get())?;
        if self.release.generation.dies_of_absent_digest()
            && wanted.tgt_epoch.get() == 0
            && !self.store.exists(target.oid)?
        {
            return Ok(Reply::death("a GET_HASH of an object that is not there"));
        }
        let len = usize::try_from(target.len).map_err(|_too_long| ResultCode::NoMem)?;
        let mut digest = Sha1::new();
        let mut buffer = vec![0; len.min(DIGEST_BUFFER_LEN)];
        for offset in (0..len).step_by(DIGEST_BUFFER_LEN) {
            let buffer = &mut buffer[..DIGEST_BUFFER_LEN.min(len - offset)];
            self.store.read(target.oid, offset as u64, buffer)?;
            digest.update(buffer);
        }
        Ok(Reply::body(ResponseBody::Hash(HashResponse {
            digest: digest.finalize().into(),
            ..HashResponse::default()
        })))
    }
}

/// Cuts blocks of zeros off both ends; returns how many bytes went in front.
///
/// As in the original the last block may be a part of one, and what is shorter than a
/// block stays.
fn trim_zeros(payload: &Payload) -> (u64, Vec<u8>) {
    let bytes: Vec<u8> = payload.slices().flatten().copied().collect();
    let is_zero = |block: &[u8]| block.iter().all(|&byte| byte == 0);
    let mut rest = bytes.as_slice();
    while let Some((block, behind)) = rest.split_at_checked(TRIM_LEN)
        && is_zero(block)
    {
        rest = behind;
    }
    let front = bytes.len() - rest.len();
    while rest.len() >= TRIM_LEN {
        let start = (rest.len() - 1) / TRIM_LEN * TRIM_LEN;
        if !is_zero(&rest[start..]) {
            break;
        }
        rest = &rest[..start];
    }
    (front as u64, rest.to_vec())
}

/// Data is not written to a snapshot, nor in a cluster that cannot store it as often as asked.
fn require_writable(cluster: &Cluster, vdi: &Vdi, is_snapshot: bool) -> Result<(), ResultCode> {
    if is_snapshot {
        Err(ResultCode::ReadOnly)
    } else if cluster.requires_halt(vdi.redundancy.nr_copies()) {
        Err(ResultCode::Halt)
    } else {
        Ok(())
    }
}
