//! Every size and maximum of the protocol, each with its source.

/// Port a sheep listens on unless told otherwise.
pub const DEFAULT_PORT: u16 = 7000;

/// Version byte of public requests, opcodes below 0x80 (protocol 1.6).
pub const PUBLIC_PROTO_VER: u8 = 0x02;
/// Version byte of sheep-internal requests of the newest generation (protocol 1.6).
pub(crate) const NEWEST_PROTO_VER: u8 = 0x0a;

/// Bytes of a request or response header (protocol 1.2).
pub const HEADER_LEN: usize = 48;

/// Bytes of a VDI name or snapshot tag on the wire, NUL padded (protocol 4.1).
pub const NAME_FIELD_LEN: usize = 256;
/// Longest VDI name or tag in bytes: a full field cannot be found again (protocol 12, 17).
pub const NAME_MAX_LEN: usize = NAME_FIELD_LEN - 1;

/// VIDs are 24 bits wide (protocol 3.1).
pub const VID_COUNT: usize = 1 << 24;
/// Bytes of a READ_VDIS or READ_DEL_VDIS answer, and of the buffer it needs (protocol 5.2).
pub const VID_BITMAP_LEN: usize = VID_COUNT / 8;

/// Smallest object size as a power of two (protocol 4.2).
pub const MIN_BLOCK_SIZE_SHIFT: u8 = 20;
/// Largest object size as a power of two (protocol 4.2).
pub const MAX_BLOCK_SIZE_SHIFT: u8 = 31;
/// Object size when nobody chose one: 4 MiB (protocol 4.2).
pub const DEFAULT_BLOCK_SIZE_SHIFT: u8 = 22;

/// Entries of a flat index (protocol 4.2).
pub const FLAT_INDEX_SLOTS: u32 = 1 << 20;
/// Largest hypervolume in bytes: 16 PiB (protocol 4.2).
pub const HYPERVOLUME_MAX_SIZE: u64 = 1 << 54;

/// Bytes of the inode before the index (protocol 4.1).
pub const INODE_HEADER_LEN: usize = 4664;
/// Bytes of the flat index, or of the area that holds a B-tree root (protocol 4.1).
pub const INODE_INDEX_LEN: usize = 4 * FLAT_INDEX_SLOTS as usize;
/// Offset of the reference counts behind the index (protocol 4.1).
pub const INODE_GREF_OFFSET: usize = INODE_HEADER_LEN + INODE_INDEX_LEN;
/// Bytes of the whole inode object (protocol 4.1).
pub const INODE_LEN: usize = INODE_GREF_OFFSET + 8 * FLAT_INDEX_SLOTS as usize;

/// Bytes of a B-tree node object and of a ledger object (protocol 3.1).
pub const BTREE_NODE_LEN: usize = 4 << 20;

/// Bytes of a node record (protocol 8.1).
pub const NODE_RECORD_LEN: usize = 80;
/// Most nodes a cluster can have (protocol 8.2).
pub const MAX_NODES: usize = 6144;
/// Disks in a node record of daemons that place objects by disk (placement 1).
pub const DISKS_PER_NODE: usize = 32;
/// Bytes of such a node record (placement 1).
pub const DISK_NODE_RECORD_LEN: usize = NODE_RECORD_LEN + DISKS_PER_NODE * 16;
/// Most nodes that hold one object (placement 1).
pub const MAX_HOLDERS: usize = MAX_COPIES as usize;
/// Most points of a ring that is computed: 128, the usual number, for each of
/// [`MAX_NODES`]. A bound against node lists that no cluster has.
pub const MAX_RING_POINTS: usize = 128 * MAX_NODES;
/// Buffer a GET_NODE_LIST needs in the worst case.
pub const NODE_LIST_LEN: usize = MAX_NODES * NODE_RECORD_LEN;
/// Bytes of a CLUSTER_INFO answer (protocol 8.2).
pub const CLUSTER_INFO_LEN: usize = 48 + NODE_LIST_LEN;
/// Bytes of an epoch record before its nodes (protocol 8.3).
pub const EPOCH_RECORD_HEADER_LEN: usize = 48;
/// Bytes of a GET_STORE_LIST answer's buffer (protocol 5.4).
pub const STORE_LIST_LEN: usize = 512;
/// Bytes of a record of GET_VDI_COPIES (protocol 8.6).
pub const VDI_STATE_LEN: usize = 1428;
/// Most participants of a shared lock (protocol 8.6).
pub const MAX_LOCK_PARTICIPANTS: usize = 31;
/// Most replicas, or data and parity strips together (protocol 4.3).
pub const MAX_COPIES: u8 = 31;

/// Bytes of a STAT_RECOVERY answer (protocol 8.4).
pub const RECOVERY_STATE_LEN: usize = 24;
/// Bytes of a MD_INFO answer; the buffer must match exactly (protocol 8.5).
pub const MD_INFO_LEN: usize = 263_688;
/// Disk records in a MD_INFO answer (protocol 8.5).
pub const MD_MAX_DISKS: usize = 64;
/// Bytes of a GET_CACHE_INFO answer of 0.7 to 0.9; the buffer must match exactly.
pub const CACHE_INFO_LEN: usize = 12_312;
/// Bytes of a STAT answer (protocol 8.5).
pub const STAT_LEN: usize = 120;

/// Bytes of an attribute object (protocol 5.3).
pub const ATTRIBUTE_LEN: usize = 66_320;
/// Longest attribute value in bytes (protocol 5.3).
pub const ATTRIBUTE_VALUE_MAX_LEN: usize = 65_536;

/// Largest payload this project sends or accepts in one frame.
///
/// The C server has no limit and takes the length at its word; the largest
/// payload anyone needs is an inode with its reference counts (12 MiB).
pub const MAX_PAYLOAD_LEN: usize = 64 << 20;
