//! The inode object: header, flat index, reference counts.
//!
//! ```text
//!       0  InodeHeader                         4 664 bytes
//!    4664  data_vdi_id[1048576], or B-tree root  4 MiB
//! 4198968  gref[1048576]                         8 MiB
//! ```
//!
//! Inodes that releases before 0.9 have made hold the numbers of their children
//! where the B-tree counter and the unused bytes are, have no reference counts
//! behind the index, and may have no object size, which means 4 MiB. What a flat
//! volume needs is where it is today. A hypervolume of 0.8 has its counter
//! after the index and must not be changed.
//!
//! Source: protocol 4.1 and 10; `struct sd_inode` in sheepdog's `include/sheepdog_proto.h`.

use std::mem::{offset_of, size_of};

use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::id::{ObjectIndex, Vid};
use crate::limits::{
    DEFAULT_BLOCK_SIZE_SHIFT, FLAT_INDEX_SLOTS, HYPERVOLUME_MAX_SIZE, INODE_HEADER_LEN,
    MAX_BLOCK_SIZE_SHIFT, MIN_BLOCK_SIZE_SHIFT, NAME_FIELD_LEN,
};
use crate::name::{SnapshotTag, VdiName};
use crate::redundancy::Redundancy;

/// Value of `store_policy` for a hypervolume.
pub const STORE_POLICY_HYPERVOLUME: u8 = 1;

/// The first 4,664 bytes of an inode.
#[derive(Clone, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct InodeHeader {
    /// NUL-padded name; empty when the VDI was deleted.
    pub name: [u8; NAME_FIELD_LEN],
    /// NUL-padded snapshot tag; empty on a working VDI.
    pub tag: [u8; NAME_FIELD_LEN],
    /// Seconds in the high half, nanoseconds in the low.
    pub create_time: U64,
    /// 0 on a working VDI, else the time it became a snapshot, in the same form.
    pub snap_ctime: U64,
    /// Clock of a saved virtual machine (QEMU).
    pub vm_clock_nsec: U64,
    /// Bytes of the volume.
    pub vdi_size: U64,
    /// Bytes of a saved virtual machine's memory (QEMU).
    pub vm_state_size: U64,
    /// Raw copy policy, see [`InodeHeader::redundancy`].
    pub copy_policy: u8,
    /// 0 for a flat index, 1 for a hypervolume.
    pub store_policy: u8,
    /// Replicas or strips.
    pub nr_copies: u8,
    /// Object size as a power of two.
    pub block_size_shift: u8,
    /// 1, 2, 3 ... along one name; the working VDI has one too.
    pub snap_id: U32,
    /// The VDI's own VID.
    pub vdi_id: U32,
    /// VID of the VDI this one was made from, 0 for none.
    pub parent_vdi_id: U32,
    /// Number of the next B-tree node object.
    pub btree_counter: U32,
    /// Zero.
    pub unused: [u8; 4092],
}

const _: () = assert!(size_of::<InodeHeader>() == INODE_HEADER_LEN);

/// Offset of the snapshot tag in the inode object.
pub const TAG_OFFSET: u32 = field(offset_of!(InodeHeader, tag));
/// Offset of `snap_ctime`, the snapshot test, in the inode object.
pub const SNAP_CTIME_OFFSET: u32 = field(offset_of!(InodeHeader, snap_ctime));
/// Offset of `vdi_size` in the inode object.
pub const VDI_SIZE_OFFSET: u32 = field(offset_of!(InodeHeader, vdi_size));
/// Offset of `btree_counter` in the inode object.
pub const BTREE_COUNTER_OFFSET: u32 = field(offset_of!(InodeHeader, btree_counter));

#[expect(
    clippy::cast_possible_truncation,
    reason = "offsets in a header of 4,664 bytes"
)]
const fn field(offset: usize) -> u32 {
    offset as u32
}

/// Offset of the flags that the fork of 2026 has in the inode object.
const FORK_FLAGS_OFFSET: usize = 592;

/// Bytes of one slot of a flat index.
pub const SLOT_LEN: u32 = 4;

/// Byte offset of a slot of a flat index in the inode object.
///
/// `None` past the last slot: a server accepts a write there and damages its
/// reference counts.
pub const fn slot_offset(index: ObjectIndex) -> Option<u32> {
    if index.0 < FLAT_INDEX_SLOTS {
        Some(field(INODE_HEADER_LEN) + SLOT_LEN * index.0)
    } else {
        None
    }
}

impl InodeHeader {
    /// A header with every byte 0.
    pub fn zeroed() -> Self {
        <Self as zerocopy::FromZeros>::new_zeroed()
    }

    /// The name, or `None` for a deleted VDI.
    pub fn name(&self) -> Option<VdiName> {
        VdiName::from_field(&self.name)
    }

    /// The snapshot tag.
    pub fn tag(&self) -> SnapshotTag {
        SnapshotTag::from_field(&self.tag)
    }

    /// The VDI's own VID; `None` when the bytes are damaged.
    pub fn vid(&self) -> Option<Vid> {
        Vid::new(self.vdi_id.get())
    }

    /// The word in which the fork of 2026 says what is no volume. Releases before 0.9
    /// have the VID of a child there, see
    /// [`Generation::is_access_list`](crate::Generation::is_access_list).
    pub(crate) fn fork_flags(&self) -> u32 {
        let bytes = &self.as_bytes()[FORK_FLAGS_OFFSET..];
        u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])
    }

    /// The VID of the VDI this one was made from.
    pub fn parent(&self) -> Option<Vid> {
        Vid::new(self.parent_vdi_id.get())
    }

    /// True once the VDI has become a snapshot.
    pub fn is_snapshot(&self) -> bool {
        self.snap_ctime.get() != 0
    }

    /// True when the index is a B-tree.
    pub fn is_hypervolume(&self) -> bool {
        self.store_policy == STORE_POLICY_HYPERVOLUME
    }

    /// Replicas, or strips.
    pub fn redundancy(&self) -> Redundancy {
        Redundancy::from_wire(self.nr_copies, self.copy_policy)
    }

    /// Object size as a power of two; `None` outside what a cluster can hold.
    ///
    /// Inodes of 0.8 and older have 0 here and mean 4 MiB (protocol 4.2).
    pub fn object_shift(&self) -> Option<u8> {
        match self.block_size_shift {
            0 => Some(DEFAULT_BLOCK_SIZE_SHIFT),
            shift @ MIN_BLOCK_SIZE_SHIFT..=MAX_BLOCK_SIZE_SHIFT => Some(shift),
            _ => None,
        }
    }
}

/// Number of data objects of a volume of `size` bytes, objects of `1 << shift` bytes.
///
/// Any `shift` has an answer, also one that no cluster accepts.
pub const fn object_count(size: u64, shift: u8) -> u64 {
    size.div_ceil(shifted(1, shift))
}

/// Largest volume in bytes that an index can name with objects of `1 << shift` bytes.
///
/// Any `shift` has an answer, also one that no cluster accepts.
pub const fn max_volume_size(hypervolume: bool, shift: u8) -> u64 {
    if hypervolume {
        HYPERVOLUME_MAX_SIZE
    } else {
        shifted(FLAT_INDEX_SLOTS as u64, shift)
    }
}

/// `value << shift`, or the largest number when that does not fit.
const fn shifted(value: u64, shift: u8) -> u64 {
    if shift as u32 <= value.leading_zeros() {
        value << shift
    } else {
        u64::MAX
    }
}

/// Packs a time into the form of `create_time` and of a cluster's ctime.
pub const fn pack_time(seconds: u32, nanoseconds: u32) -> u64 {
    (seconds as u64) << 32 | nanoseconds as u64
}

/// Seconds since 1970 of a packed time.
pub const fn packed_seconds(time: u64) -> u64 {
    time >> 32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_end_where_the_reference_counts_begin() {
        assert_eq!(slot_offset(ObjectIndex(0)), Some(4664));
        assert_eq!(
            slot_offset(ObjectIndex(FLAT_INDEX_SLOTS - 1)),
            Some(4_198_964)
        );
        assert_eq!(slot_offset(ObjectIndex(FLAT_INDEX_SLOTS)), None);
    }

    #[test]
    fn volume_limits_follow_the_object_size() {
        assert_eq!(max_volume_size(false, 20), 1 << 40);
        assert_eq!(max_volume_size(false, 31), 1 << 51);
        assert_eq!(max_volume_size(true, 22), 1 << 54);
        assert_eq!(object_count(0, 22), 0);
        assert_eq!(object_count(1, 22), 1);
        assert_eq!(object_count((4 << 20) + 1, 22), 2);
    }

    #[test]
    fn object_shift_out_of_range_does_not_overflow() {
        assert_eq!(max_volume_size(false, 43), 1 << 63);
        assert_eq!(max_volume_size(false, 44), u64::MAX);
        assert_eq!(max_volume_size(false, 255), u64::MAX);
        assert_eq!(object_count(u64::MAX, 63), 2);
        assert_eq!(object_count(u64::MAX, 64), 1);
        assert_eq!(object_count(0, 255), 0);
    }
}
