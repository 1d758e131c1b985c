//! Inodes in the store: the header, the index, and what is behind it.

use std::sync::Arc;

use sheep_proto::inode::{SNAP_CTIME_OFFSET, max_volume_size};
use sheep_proto::limits::{INODE_GREF_OFFSET, INODE_HEADER_LEN, NAME_FIELD_LEN};
use sheep_proto::{Generation, InodeHeader, Oid, ResultCode, Vid};
use zerocopy::{FromBytes, IntoBytes};

use crate::catalogue::{Vdi, VdiState};
use crate::references::References;
use crate::store::{NewObject, Store, StoreError};

/// See the module.
pub(crate) struct Inodes {
    store: Arc<dyn Store>,
    references: Arc<References>,
    generation: Generation,
}

impl Inodes {
    pub(crate) fn new(
        store: Arc<dyn Store>,
        references: Arc<References>,
        generation: Generation,
    ) -> Self {
        Self {
            store,
            references,
            generation,
        }
    }

    /// Makes the inode of a new VDI. It starts with the index of `base`, or else
    /// with `root`. The caller has locked the state of `base` for writing.
    pub(crate) fn create(
        &self,
        vid: Vid,
        header: &InodeHeader,
        root: &[u8],
        base: Option<Vid>,
    ) -> Result<(), StoreError> {
        let inode = NewObject {
            len: self.generation.inode_len() as u64,
            source: base.map(Oid::inode),
            writes: &[(0, header.as_bytes()), (INODE_HEADER_LEN as u64, root)],
        };
        self.store.create(Oid::inode(vid), inode)?;
        if let Some(base) = base
            && self.counts_references()
        {
            self.references.copy(base, vid);
        }
        Ok(())
    }

    /// WRITE_OBJ on an inode; the caller has checked that the range lies in it.
    ///
    /// Unlike in C a client's header write cannot undo what the server wrote
    /// there since the client read it: only the tag, the sizes, the machine's
    /// clock and the B-tree counter are taken from the client.
    pub(crate) fn write(&self, vdi: &Vdi, offset: u64, data: &[u8]) -> Result<(), ResultCode> {
        let header_len = INODE_HEADER_LEN as u64;
        if offset < header_len {
            let mut state = vdi.write();
            require_name(&state)?;
            let in_header = usize::try_from(header_len - offset)
                .expect("the offset is within the header of 4,664 bytes");
            let (header, rest) = data.split_at(data.len().min(in_header));
            self.write_header(vdi, &mut state, offset, header)?;
            self.write_after_header(vdi, header_len, rest)
        } else {
            let state = vdi.read();
            require_name(&state)?;
            self.write_after_header(vdi, offset, data)
        }
    }

    fn write_header(
        &self,
        vdi: &Vdi,
        state: &mut VdiState,
        offset: u64,
        data: &[u8],
    ) -> Result<(), ResultCode> {
        let inode = Oid::inode(vdi.vid);
        let old = self.read_header(vdi)?;
        let mut bytes = old.as_bytes().to_vec();
        let start =
            usize::try_from(offset).expect("the offset is within the header of 4,664 bytes");
        let range = start..start + data.len();
        bytes[range.clone()].copy_from_slice(data);
        let mut new =
            InodeHeader::read_from_bytes(&bytes).expect("the buffer has the length of a header");
        new.name = old.name;
        new.create_time = old.create_time;
        new.snap_ctime = old.snap_ctime;
        new.copy_policy = old.copy_policy;
        new.store_policy = old.store_policy;
        new.nr_copies = old.nr_copies;
        new.block_size_shift = old.block_size_shift;
        new.snap_id = old.snap_id;
        new.vdi_id = old.vdi_id;
        new.parent_vdi_id = old.parent_vdi_id;
        if new.vdi_size.get() > max_volume_size(vdi.hypervolume, vdi.shift) {
            return Err(ResultCode::InvalidParms);
        }
        self.store.write(inode, offset, &new.as_bytes()[range])?;
        self.store.sync(inode)?;
        state.tag = new.tag();
        Ok(())
    }

    /// Overwrites parts of an inode with what a cache has, whatever was done to it since.
    pub(crate) fn overwrite(&self, vdi: &Vdi, parts: &[(u64, Vec<u8>)]) -> Result<(), ResultCode> {
        let mut state = vdi.write();
        let header_len = INODE_HEADER_LEN as u64;
        for (offset, data) in parts {
            let in_header = usize::try_from(header_len.saturating_sub(*offset))
                .expect("a header has 4,664 bytes");
            let (header, rest) = data.split_at(data.len().min(in_header));
            if !header.is_empty() {
                self.store.write(Oid::inode(vdi.vid), *offset, header)?;
                self.store.sync(Oid::inode(vdi.vid))?;
            }
            self.write_after_header(vdi, offset + header.len() as u64, rest)?;
        }
        state.tag = self.read_header(vdi)?.tag();
        Ok(())
    }

    /// The caller has locked the VDI's state.
    fn write_after_header(&self, vdi: &Vdi, offset: u64, data: &[u8]) -> Result<(), ResultCode> {
        if data.is_empty() {
            return Ok(());
        }
        let index_end = INODE_GREF_OFFSET as u64;
        let in_index = if vdi.hypervolume {
            0
        } else {
            usize::try_from(index_end.saturating_sub(offset))
                .expect("the index ends within the inode")
        };
        let (index, rest) = data.split_at(data.len().min(in_index));
        if !index.is_empty() {
            self.write_index(vdi, offset, index)?;
        }
        if !rest.is_empty() {
            let inode = Oid::inode(vdi.vid);
            self.store.write(inode, offset + index.len() as u64, rest)?;
            self.store.sync(inode)?;
        }
        Ok(())
    }

    /// Changes index entries durably, then frees the objects that lost their last reference.
    /// The caller has locked the VDI's state.
    pub(crate) fn write_index(
        &self,
        vdi: &Vdi,
        offset: u64,
        data: &[u8],
    ) -> Result<(), ResultCode> {
        let store = self.store.as_ref();
        if !self.counts_references() {
            let inode = Oid::inode(vdi.vid);
            store.write(inode, offset, data)?;
            return Ok(store.sync(inode)?);
        }
        let pending = self.references.write_index(store, vdi.vid, offset, data)?;
        match store.sync(Oid::inode(vdi.vid)) {
            Ok(()) => self.references.free_unreferenced(store, pending),
            Err(error) => {
                self.references.cancel(pending);
                return Err(error.into());
            }
        }
        Ok(())
    }

    fn counts_references(&self) -> bool {
        !self.generation.deletes_objects()
    }

    /// Writes the mark of a snapshot. The caller has locked the VDI's state for writing.
    pub(crate) fn mark_snapshot(&self, vdi: &Vdi, time: u64) -> Result<(), StoreError> {
        let inode = Oid::inode(vdi.vid);
        let offset = SNAP_CTIME_OFFSET.into();
        self.store.write(inode, offset, &time.to_le_bytes())?;
        self.store.sync(inode)
    }

    /// Erases name and size in the header; the rest of it stays (protocol 4.4).
    /// The caller has locked the VDI's state for writing.
    pub(crate) fn erase_header(&self, vdi: &Vdi) -> Result<(), ResultCode> {
        let inode = Oid::inode(vdi.vid);
        let mut header = self.read_header(vdi)?;
        header.name = [0; NAME_FIELD_LEN];
        header.vdi_size = 0.into();
        self.store.write(inode, 0, header.as_bytes())?;
        Ok(self.store.sync(inode)?)
    }

    pub(crate) fn read_header(&self, vdi: &Vdi) -> Result<InodeHeader, ResultCode> {
        let mut header = InodeHeader::zeroed();
        self.store
            .read(Oid::inode(vdi.vid), 0, header.as_mut_bytes())?;
        Ok(header)
    }
}

/// Nothing is written to the inode of a deleted VDI.
fn require_name(state: &VdiState) -> Result<(), ResultCode> {
    if state.name.is_some() {
        Ok(())
    } else {
        Err(ResultCode::NoVdi)
    }
}
