//! The index of a hypervolume: a tree of at most two levels.
//!
//! The root lives in the inode's index area; once that is full the leaves move
//! into B-tree objects of their own. Entries are sorted by object number, and
//! what stands behind the last entry of a node is garbage.
//! Source: protocol 4.6.

use std::mem::size_of;

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::Malformed;
use crate::id::{ObjectIndex, Oid, Vid};
use crate::limits::{BTREE_NODE_LEN, INODE_HEADER_LEN};

/// First two bytes of every node.
pub const MAGIC: u16 = 0x6274;
/// Most entries of a leaf.
pub const LEAF_MAX_ENTRIES: u32 = 524_287;
/// Most entries of a root that points to leaves.
pub const ROOT_MAX_ENTRIES: u32 = 262_143;

/// Offset of the root in the inode object.
pub const ROOT_OFFSET: u32 = {
    assert!(INODE_HEADER_LEN == 4664);
    4664
};
/// Zeros to write in front of a root, see [`ROOT_WRITE_OFFSET`].
pub const ROOT_WRITE_LEAD: [u8; 8] = [0; 8];
/// Offset at which a write of the root begins: in the unused part of the
/// header, which is zero.
///
/// A server takes a write that lies entirely within the index area for an
/// update of a flat index, and drops the references that the numbers in it
/// would be: where the root changes, data objects of the volume disappear.
pub const ROOT_WRITE_OFFSET: u32 = ROOT_OFFSET - 8;

/// Header of a node.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(C)]
pub struct NodeHeader {
    /// [`MAGIC`].
    pub magic: U16,
    /// 1 for a leaf, 2 for a root that points to leaves.
    pub depth: U16,
    /// Entries in use.
    pub entries: U32,
}

impl NodeHeader {
    /// Header of a leaf with `entries` entries.
    pub fn leaf(entries: u32) -> Self {
        Self::with_depth(1, entries)
    }

    /// Header of a root that points to `entries` leaves.
    pub fn root(entries: u32) -> Self {
        Self::with_depth(2, entries)
    }

    fn with_depth(depth: u16, entries: u32) -> Self {
        Self {
            magic: MAGIC.into(),
            depth: depth.into(),
            entries: entries.into(),
        }
    }
}

const _: () = assert!(size_of::<NodeHeader>() == 8);
const _: () = assert!(
    size_of::<NodeHeader>() + LEAF_MAX_ENTRIES as usize * size_of::<LeafEntry>() <= BTREE_NODE_LEN
);

/// Entry of a leaf: a slot.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(C)]
pub struct LeafEntry {
    /// Object number.
    pub index: U32,
    /// VID that owns the object, 0 for a hole.
    pub vid: U32,
}

impl LeafEntry {
    /// The slot of object `index`; `None` for a hole.
    pub fn new(index: ObjectIndex, owner: Option<Vid>) -> Self {
        Self {
            index: index.0.into(),
            vid: owner.map_or(0, Vid::get).into(),
        }
    }
}

/// Entry of a root that points to leaves.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(C)]
pub struct RootEntry {
    /// Largest object number in the leaf.
    pub max_index: U32,
    /// Garbage.
    pub pad: [u8; 4],
    /// The leaf's B-tree object.
    pub oid: U64,
}

impl RootEntry {
    /// The leaf in object `oid`; its last slot is that of object `max`.
    pub fn new(max: ObjectIndex, oid: Oid) -> Self {
        Self {
            max_index: max.0.into(),
            pad: [0; 4],
            oid: oid.raw().into(),
        }
    }
}

/// A node as read from an index area or B-tree object.
#[derive(Clone, Copy, Debug)]
pub enum Node<'a> {
    /// Slots.
    Leaf(&'a [LeafEntry]),
    /// Pointers to leaves.
    Root(&'a [RootEntry]),
}

impl<'a> Node<'a> {
    /// Reads a node.
    ///
    /// # Errors
    /// [`Malformed`] on a wrong magic or depth, or entries that are not there.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, Malformed> {
        let (header, rest) = NodeHeader::ref_from_prefix(bytes)
            .map_err(|_| Malformed::new("B-tree node", "it has less than 8 bytes"))?;
        if header.magic.get() != MAGIC {
            return Err(Malformed::new("B-tree node", "wrong magic number"));
        }
        match header.depth.get() {
            1 => Ok(Self::Leaf(entries(
                rest,
                header.entries.get(),
                LEAF_MAX_ENTRIES,
            )?)),
            2 => Ok(Self::Root(entries(
                rest,
                header.entries.get(),
                ROOT_MAX_ENTRIES,
            )?)),
            _ => Err(Malformed::new("B-tree node", "a depth other than 1 and 2")),
        }
    }
}

fn entries<T: FromBytes + Immutable + KnownLayout + Unaligned>(
    bytes: &[u8],
    count: u32,
    most: u32,
) -> Result<&[T], Malformed> {
    if count > most {
        return Err(Malformed::new(
            "B-tree node",
            "more entries than a node can have",
        ));
    }
    <[T]>::ref_from_prefix_with_elems(bytes, count as usize)
        .map(|(entries, _garbage)| entries)
        .map_err(|_| Malformed::new("B-tree node", "entries are cut off"))
}

/// Bytes of a node in use, its header included, from the front of the node.
///
/// # Errors
/// [`Malformed`] on a wrong magic or depth, or more entries than a node can have.
pub fn used_len(bytes: &[u8]) -> Result<usize, Malformed> {
    let (header, _rest) = NodeHeader::ref_from_prefix(bytes)
        .map_err(|_| Malformed::new("B-tree node", "it has less than 8 bytes"))?;
    let (entry_len, most) = match (header.magic.get(), header.depth.get()) {
        (MAGIC, 1) => (size_of::<LeafEntry>(), LEAF_MAX_ENTRIES),
        (MAGIC, 2) => (size_of::<RootEntry>(), ROOT_MAX_ENTRIES),
        (MAGIC, _) => return Err(Malformed::new("B-tree node", "a depth other than 1 and 2")),
        _ => return Err(Malformed::new("B-tree node", "wrong magic number")),
    };
    match header.entries.get() {
        entries if entries > most => Err(Malformed::new(
            "B-tree node",
            "more entries than a node can have",
        )),
        entries => Ok(size_of::<NodeHeader>() + entries as usize * entry_len),
    }
}

/// The VID that owns object `index` according to a leaf; `None` for a hole.
pub fn leaf_lookup(leaf: &[LeafEntry], index: ObjectIndex) -> Option<Vid> {
    let at = leaf
        .binary_search_by_key(&index.0, |entry| entry.index.get())
        .ok()?;
    Vid::new(leaf[at].vid.get())
}

/// The leaf that holds object `index`, if any, according to a root.
///
/// Believes the root's keys. The C client stores a wrong one when it splits a
/// leaf, which hides the lower half of that leaf (protocol 4.6); a caller that must
/// find every slot reads all leaves instead.
pub fn root_lookup(root: &[RootEntry], index: ObjectIndex) -> Option<Oid> {
    let at = root.partition_point(|entry| entry.max_index.get() < index.0);
    root.get(at).map(|entry| Oid::from_raw(entry.oid.get()))
}

/// Builds the bytes of a leaf from slots sorted by object number, without garbage behind them.
///
/// # Panics
/// With more slots than a leaf has room for, [`LEAF_MAX_ENTRIES`], because a slot
/// that is left out is a data object that is lost; and, in builds with debug
/// assertions, with slots that are not in ascending order.
pub fn encode_leaf(slots: impl ExactSizeIterator<Item = (ObjectIndex, Vid)>) -> Vec<u8> {
    let mut entries = Vec::with_capacity(slots.len());
    entries.extend(slots.map(|(index, vid)| LeafEntry::new(index, Some(vid))));
    assert!(
        entries.len() <= LEAF_MAX_ENTRIES as usize,
        "a leaf has no room for {} slots",
        entries.len()
    );
    debug_assert!(
        entries.is_sorted_by_key(|entry| entry.index.get()),
        "the slots of a leaf are in ascending order"
    );
    let header =
        NodeHeader::leaf(u32::try_from(entries.len()).expect("a leaf has at most 524,287 entries"));
    [header.as_bytes(), entries.as_bytes()].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn leaf_finds_its_slots() {
        let vid = Vid::new(0x5e_9293).unwrap();
        let slots = [0, 3, 7, 1_048_577].map(|index| (ObjectIndex(index), vid));
        let mut bytes = encode_leaf(slots.into_iter());
        assert_eq!(
            bytes[..16],
            [
                0x74, 0x62, 1, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0x93, 0x92, 0x5e, 0
            ]
        );
        bytes.extend_from_slice(b"garbage behind");
        let Node::Leaf(leaf) = Node::parse(&bytes).unwrap() else {
            panic!("a leaf was written");
        };
        assert_eq!(leaf_lookup(leaf, ObjectIndex(1_048_577)), Some(vid));
        assert_eq!(leaf_lookup(leaf, ObjectIndex(4)), None);
    }

    #[test]
    fn leaf_when_full_fills_its_object() {
        let vid = Vid::new(1).unwrap();
        let slots = |count: u32| {
            let slots: Vec<_> = (0..count).map(|index| (ObjectIndex(index), vid)).collect();
            slots.into_iter()
        };
        let bytes = encode_leaf(slots(LEAF_MAX_ENTRIES));
        assert_eq!(bytes.len(), BTREE_NODE_LEN);
        assert_eq!(used_len(&bytes).unwrap(), BTREE_NODE_LEN);
        let overfull = std::panic::catch_unwind(|| encode_leaf(slots(LEAF_MAX_ENTRIES + 1)));
        assert!(overfull.is_err());
    }

    #[test]
    fn damaged_nodes_are_refused() {
        assert!(Node::parse(&[0x74, 0x62, 1, 0]).is_err());
        assert!(Node::parse(&[0x74, 0x63, 1, 0, 0, 0, 0, 0]).is_err());
        assert!(Node::parse(&[0x74, 0x62, 3, 0, 0, 0, 0, 0]).is_err());
        assert!(Node::parse(&[0x74, 0x62, 1, 0, 1, 0, 0, 0]).is_err());
        assert!(Node::parse(&[0x74, 0x62, 2, 0, 0xff, 0xff, 0xff, 0xff]).is_err());
    }
}
