//! Deletion as the releases without reference counts do it.
//!
//! VDIs made from each other by snapshot and clone are a family. Its objects go when the
//! last member is deleted. A member deleted before loses only its name, and so keeps
//! its objects, which others may need. A clone that was never snapshotted is an exception:
//! its own objects go at once.
//!
//! An object goes when an index entry of its own VDI names it. One whose entry was
//! cleared before stays for ever.

use std::collections::BTreeSet;
use std::sync::Arc;

use sheep_proto::limits::NAME_FIELD_LEN;
use sheep_proto::{InodeHeader, Oid, ResultCode, Vid};
use zerocopy::{FromBytes, IntoBytes};

use crate::references::for_each_entry;
use crate::store::{Store, StoreError};

/// Where the children of a VDI are in its inode.
const CHILDREN_OFFSET: usize = sheep_proto::inode::BTREE_COUNTER_OFFSET as usize;
const CHILD_LEN: usize = size_of::<u32>();

/// See the module.
pub(crate) struct Families {
    store: Arc<dyn Store>,
    /// Whether a deleted clone makes room for another one.
    frees_child_slots: bool,
}

impl Families {
    pub(crate) fn new(store: Arc<dyn Store>, frees_child_slots: bool) -> Self {
        Self {
            store,
            frees_child_slots,
        }
    }

    /// Notes a new child in the inode of its parent; false when there is no slot left.
    pub(crate) fn add_child(&self, parent: Vid, child: Vid) -> Result<bool, ResultCode> {
        let header = self.header(parent)?;
        let free = children(&header).position(|other| other == 0);
        match free {
            Some(slot) => self.write_child(parent, slot, child.get()).map(|()| true),
            None => Ok(false),
        }
    }

    /// Removes the name of a VDI, and the objects that nobody needs any more.
    pub(crate) fn delete(&self, vid: Vid) -> Result<(), ResultCode> {
        let header = self.header(vid)?;
        let is_fresh_clone =
            header.snap_id.get() == 1 && header.parent().is_some() && !header.is_snapshot();
        let family = self.family_of(&header)?;
        let mut is_last = true;
        for &other in &family {
            is_last &= other == vid || self.header(other)?.name().is_none();
        }
        if is_last {
            for other in family {
                self.remove(other)?;
            }
        } else if is_fresh_clone {
            if self.frees_child_slots {
                self.remove_child(&header, vid)?;
            }
            self.remove(vid)?;
        } else {
            let name = [0; NAME_FIELD_LEN];
            self.store.write(Oid::inode(vid), 0, &name)?;
            self.store.sync(Oid::inode(vid))?;
        }
        Ok(())
    }

    /// Everything that was made from the oldest ancestor of a VDI.
    fn family_of(&self, header: &InodeHeader) -> Result<BTreeSet<Vid>, ResultCode> {
        let mut root = header.vid().ok_or(ResultCode::Eio)?;
        let (mut ancestor, mut seen) = (header.parent(), BTreeSet::from([root]));
        // The ids are what clients wrote: they may lead in a circle.
        while let Some(vid) = ancestor.filter(|&vid| seen.insert(vid)) {
            root = vid;
            ancestor = self.header(vid)?.parent();
        }
        let (mut family, mut left) = (BTreeSet::new(), vec![root]);
        while let Some(vid) = left.pop() {
            if family.insert(vid) {
                let header = self.header(vid)?;
                left.extend(children(&header).filter_map(Vid::new));
            }
        }
        Ok(family)
    }

    /// Removes the objects that a VDI's own index names, and its name and size.
    fn remove(&self, vid: Vid) -> Result<(), ResultCode> {
        let mut header = self.header(vid)?;
        let is_deleted = header.name().is_none();
        if is_deleted && header.vdi_size.get() == 0 {
            return Ok(());
        }
        let mut own = Vec::new();
        for_each_entry(self.store.as_ref(), vid, |index, owner| {
            if owner == vid {
                own.push(Oid::data(vid, index));
            }
        })?;
        for oid in own {
            match self.store.remove(oid) {
                Ok(()) | Err(StoreError::NotFound) => {}
                Err(error) => tracing::warn!("object {oid} stays: {error}"),
            }
        }
        if !is_deleted {
            header.name = [0; NAME_FIELD_LEN];
            header.vdi_size = 0.into();
            self.store.write(Oid::inode(vid), 0, header.as_bytes())?;
            self.store.sync(Oid::inode(vid))?;
        }
        Ok(())
    }

    fn remove_child(&self, header: &InodeHeader, child: Vid) -> Result<(), ResultCode> {
        let Some(parent) = header.parent() else {
            return Ok(());
        };
        let of_parent = self.header(parent)?;
        match children(&of_parent).position(|other| other == child.get()) {
            Some(slot) => self.write_child(parent, slot, 0),
            None => Ok(()),
        }
    }

    fn write_child(&self, parent: Vid, slot: usize, child: u32) -> Result<(), ResultCode> {
        let offset = (CHILDREN_OFFSET + slot * CHILD_LEN) as u64;
        let inode = Oid::inode(parent);
        self.store.write(inode, offset, &child.to_le_bytes())?;
        Ok(self.store.sync(inode)?)
    }

    fn header(&self, vid: Vid) -> Result<InodeHeader, ResultCode> {
        let mut bytes = [0; size_of::<InodeHeader>()];
        self.store.read(Oid::inode(vid), 0, &mut bytes)?;
        InodeHeader::read_from_bytes(&bytes).map_err(|_size| ResultCode::Eio)
    }
}

fn children(header: &InodeHeader) -> impl Iterator<Item = u32> {
    let (slots, _rest) = header.as_bytes()[CHILDREN_OFFSET..].as_chunks();
    slots.iter().map(|&slot| u32::from_le_bytes(slot))
}
