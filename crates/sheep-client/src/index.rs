//! The index of a VDI: which VID owns each data object.

use std::collections::BTreeMap;

use bytes::{BufMut as _, Bytes, BytesMut};
use sheep_proto::btree::{self, LeafEntry, Node, NodeHeader};
use sheep_proto::inode::{SLOT_LEN, slot_offset};
use sheep_proto::limits::{BTREE_NODE_LEN, FLAT_INDEX_SLOTS, INODE_HEADER_LEN, INODE_INDEX_LEN};
use sheep_proto::{Malformed, ObjectIndex, ObjectKind, Oid, Vid};

use crate::call::Call;
use crate::client::Client;
use crate::error::ClientError;
use crate::lookup::inode_error;
use crate::vdi::VdiInfo;

/// Bytes of an index read in one request.
const PIECE_LEN: u32 = 1 << 20;
/// Bytes of a leaf up to its first object number.
const LEAF_HEAD_LEN: u32 = 12;

impl Client {
    /// Calls `visit` with every slot of a VDI's index that names an owner, in
    /// ascending order of object number, up to the end of the volume.
    ///
    /// Reads only the part of the index that the volume's size needs, a
    /// mebibyte at a time.
    ///
    /// # Errors
    /// `Malformed` for an index no cluster writes, otherwise as [`Client::read_object`].
    ///
    /// Source: protocol 4.1 and 4.6.
    pub async fn for_each_slot(
        &self,
        vdi: &VdiInfo,
        mut visit: impl FnMut(ObjectIndex, Vid),
    ) -> Result<(), ClientError> {
        if vdi.hypervolume {
            return self.for_each_tree_slot(vdi, &mut visit).await;
        }
        let count = vdi.object_count().min(u64::from(FLAT_INDEX_SLOTS));
        let count = u32::try_from(count).expect("at most 2^20");
        self.for_each_flat_slot(vdi.vid, count, visit).await
    }

    /// The same for the first `count` slots of a flat index.
    pub(crate) async fn for_each_flat_slot(
        &self,
        vid: Vid,
        count: u32,
        mut visit: impl FnMut(ObjectIndex, Vid),
    ) -> Result<(), ClientError> {
        let mut first = 0;
        while first < count {
            let slots = (count - first).min(PIECE_LEN / SLOT_LEN);
            let found = self.read_slots(vid, ObjectIndex(first), slots).await?;
            for (index, owner) in (first..).zip(found) {
                if let Some(owner) = owner {
                    visit(ObjectIndex(index), owner);
                }
            }
            first += slots;
        }
        Ok(())
    }

    /// Reads `count` slots of a flat index from object `first` on.
    ///
    /// # Errors
    /// `Unsuitable` past the end of an index, `Malformed` for an owner that is
    /// no VID, otherwise as [`Client::read_object`].
    pub async fn read_slots(
        &self,
        vid: Vid,
        first: ObjectIndex,
        count: u32,
    ) -> Result<Vec<Option<Vid>>, ClientError> {
        let offset = slots_offset(first, count)?;
        let bytes = self
            .read_object(Oid::inode(vid), offset, count * SLOT_LEN)
            .await?;
        bytes
            .chunks_exact(SLOT_LEN as usize)
            .map(|slot| {
                let raw = u32::from_le_bytes(slot.try_into().expect("four bytes"));
                match Vid::new(raw) {
                    None if raw != 0 => Err(bad_index(vid, "an owner that is no VID")),
                    owner => Ok(owner),
                }
            })
            .collect()
    }

    /// Writes the slots of a run of objects from `first` on.
    ///
    /// Write only slots that change: a server takes one that keeps an
    /// ancestor's VID for a new reference and loses count (protocol 4.5). And
    /// write a slot only after its object was created (protocol 7.4).
    ///
    /// # Errors
    /// `Unsuitable` past the end of an index, otherwise as [`Client::write_object`].
    pub async fn write_slots(
        &self,
        vid: Vid,
        first: ObjectIndex,
        owners: &[Option<Vid>],
    ) -> Result<(), ClientError> {
        let count = u32::try_from(owners.len()).unwrap_or(u32::MAX);
        let offset = slots_offset(first, count)?;
        let mut bytes = BytesMut::with_capacity(owners.len() * SLOT_LEN as usize);
        for owner in owners {
            bytes.put_u32_le(owner.map_or(0, Vid::get));
        }
        self.call(Call::write_object(Oid::inode(vid), offset, bytes.freeze()))
            .await
            .map(drop)
    }

    async fn for_each_tree_slot(
        &self,
        vdi: &VdiInfo,
        visit: &mut impl FnMut(ObjectIndex, Vid),
    ) -> Result<(), ClientError> {
        let base = u32::try_from(INODE_HEADER_LEN).expect("4,664");
        let root = self
            .read_node(vdi.vid, Oid::inode(vdi.vid), base, INODE_INDEX_LEN)
            .await?;
        let leaves = match parse_node(vdi.vid, &root)? {
            Node::Leaf(slots) => return visit_leaf(vdi, slots, visit),
            // By object number of the first slot, since a root written by C
            // programs may give a leaf a wrong maximum (protocol 4.6).
            Node::Root(entries) => entries
                .iter()
                .map(|entry| Oid::from_raw(entry.oid.get()))
                .collect::<Vec<_>>(),
        };
        // Only where they begin, since all leaves together may be large.
        let mut sorted = BTreeMap::new();
        for oid in leaves {
            if oid.kind() != Some(ObjectKind::BtreeNode) {
                return Err(bad_index(vdi.vid, "a leaf that is no B-tree node"));
            }
            let head = self.read_object(oid, 0, LEAF_HEAD_LEN).await?;
            let used = btree::used_len(&head).map_err(|source| inode_error(vdi.vid, source))?;
            let first = u32::from_le_bytes(head[8..12].try_into().expect("four bytes"));
            if used > size_of::<NodeHeader>() {
                sorted.insert(first, oid);
            }
        }
        for oid in sorted.into_values() {
            let leaf = self.read_node(vdi.vid, oid, 0, BTREE_NODE_LEN).await?;
            let Node::Leaf(slots) = parse_node(vdi.vid, &leaf)? else {
                return Err(bad_index(vdi.vid, "a tree of more than two levels"));
            };
            visit_leaf(vdi, slots, visit)?;
        }
        Ok(())
    }

    /// Reads the used part of a B-tree node.
    async fn read_node(
        &self,
        vid: Vid,
        oid: Oid,
        base: u32,
        room: usize,
    ) -> Result<Bytes, ClientError> {
        let header_len = size_of::<NodeHeader>();
        let head = self
            .read_object(oid, base, u32::try_from(header_len).expect("8"))
            .await?;
        let used = btree::used_len(&head).map_err(|source| inode_error(vid, source))?;
        let used = used.min(room);
        let mut node = BytesMut::with_capacity(used);
        while node.len() < used {
            let at = u32::try_from(node.len()).expect("at most 4 MiB");
            let len = u32::try_from(used - node.len())
                .expect("at most 4 MiB")
                .min(PIECE_LEN);
            node.extend_from_slice(&self.read_object(oid, base + at, len).await?);
        }
        Ok(node.freeze())
    }

    /// The slot of one object, asked anew; for when a cached one led nowhere.
    ///
    /// # Errors
    /// As [`Client::for_each_slot`].
    pub async fn slot(
        &self,
        vdi: &VdiInfo,
        index: ObjectIndex,
    ) -> Result<Option<Vid>, ClientError> {
        if !vdi.hypervolume {
            return Ok(self.read_slots(vdi.vid, index, 1).await?[0]);
        }
        let mut found = None;
        self.for_each_slot(vdi, |at, owner| {
            if at == index {
                found = Some(owner);
            }
        })
        .await?;
        Ok(found)
    }
}

/// Offset of a run of slots in the inode object.
fn slots_offset(first: ObjectIndex, count: u32) -> Result<u32, ClientError> {
    const OUTSIDE: ClientError = ClientError::Unsuitable("a flat index has 1,048,576 slots");
    let last = first
        .0
        .checked_add(count.saturating_sub(1))
        .ok_or(OUTSIDE)?;
    slot_offset(ObjectIndex(last)).ok_or(OUTSIDE)?;
    slot_offset(first).ok_or(OUTSIDE)
}

fn parse_node(vid: Vid, bytes: &[u8]) -> Result<Node<'_>, ClientError> {
    Node::parse(bytes).map_err(|source| inode_error(vid, source))
}

fn visit_leaf(
    vdi: &VdiInfo,
    slots: &[LeafEntry],
    visit: &mut impl FnMut(ObjectIndex, Vid),
) -> Result<(), ClientError> {
    for slot in slots {
        match (Vid::new(slot.vid.get()), slot.vid.get()) {
            (Some(owner), _) => visit(ObjectIndex(slot.index.get()), owner),
            (None, 0) => {}
            (None, _) => return Err(bad_index(vdi.vid, "an owner that is no VID")),
        }
    }
    Ok(())
}

fn bad_index(vid: Vid, why: &'static str) -> ClientError {
    inode_error(vid, Malformed { what: "index", why })
}
