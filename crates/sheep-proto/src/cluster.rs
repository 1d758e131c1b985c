//! Cluster-wide records: CLUSTER_INFO and the epoch log of STAT_CLUSTER.

use std::mem::size_of;

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::Malformed;
use crate::flags::ClusterFlags;
use crate::limits::{EPOCH_RECORD_HEADER_LEN, NODE_RECORD_LEN};
use crate::name::unpad;
use crate::node::NodeRecord;
use crate::redundancy::Redundancy;

/// Bytes of the name of an object store.
const STORE_LEN: usize = 16;

/// The fixed part of a CLUSTER_INFO answer, 48 bytes; node records follow.
///
/// Source: protocol 8.2; `struct cluster_info` in sheepdog's `include/internal_proto.h`.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(C)]
pub struct ClusterInfoHeader {
    /// The sheep's internal protocol version.
    pub proto_ver: u8,
    /// 1 when automatic recovery is off.
    pub disable_recovery: u8,
    /// Node records in use.
    pub nr_nodes: U16,
    /// Current epoch.
    pub epoch: U32,
    /// Creation time of the cluster, packed; 0 before it is formatted.
    pub ctime: U64,
    /// Raw [`ClusterFlags`].
    pub flags: U16,
    /// Default replicas or strips.
    pub nr_copies: u8,
    /// Raw default copy policy.
    pub copy_policy: u8,
    /// 1 running, 2 waiting, 3 shutting down, 4 killed.
    pub status: u8,
    /// Default object size as a power of two.
    pub block_size_shift: u8,
    /// Padding.
    pub pad: [u8; 3],
    /// NUL-padded name of the object store.
    pub store: [u8; STORE_LEN],
    /// Padding.
    pub pad2: [u8; 7],
}

const _: () = assert!(size_of::<ClusterInfoHeader>() == 48);

impl ClusterInfoHeader {
    /// The cluster flags, unknown bits included.
    pub fn flags(&self) -> ClusterFlags {
        ClusterFlags::from_bits_retain(self.flags.get())
    }

    /// The default redundancy of new VDIs.
    pub fn redundancy(&self) -> Redundancy {
        Redundancy::from_wire(self.nr_copies, self.copy_policy)
    }

    /// Name of the object store, without padding.
    pub fn store(&self) -> &[u8] {
        unpad(&self.store)
    }

    /// Takes the name of the store from where older releases have it.
    pub(crate) fn move_store_from(&mut self, offset: usize) {
        let mut store = [0; STORE_LEN];
        store.copy_from_slice(&self.as_bytes()[offset..offset + STORE_LEN]);
        self.clear_store();
        self.store = store;
    }

    /// Puts the name of the store where older releases have it.
    pub(crate) fn move_store_to(&mut self, offset: usize) {
        let store = self.store;
        self.clear_store();
        self.as_mut_bytes()[offset..offset + STORE_LEN].copy_from_slice(&store);
    }

    fn clear_store(&mut self) {
        self.store = [0; STORE_LEN];
        self.pad = [0; 3];
        self.pad2 = [0; 7];
        // Part of a wider status there.
        self.block_size_shift = 0;
    }

    /// Splits a CLUSTER_INFO payload into the fixed part and the nodes in use.
    ///
    /// # Errors
    /// [`Malformed`] when the payload is shorter than it says.
    pub fn parse(payload: &[u8]) -> Result<(&Self, &[NodeRecord]), Malformed> {
        let (header, rest) = Self::ref_from_prefix(payload)
            .map_err(|_| Malformed::new("cluster info", "it has less than 48 bytes"))?;
        let count = usize::from(header.nr_nodes.get());
        let nodes = rest.get(..count * NODE_RECORD_LEN).ok_or(Malformed::new(
            "cluster info",
            "it names more nodes than it holds",
        ))?;
        Ok((header, NodeRecord::parse_list(nodes)?))
    }
}

/// The fixed part of an epoch record, 48 bytes; node slots follow.
///
/// Only the first record of an answer has ctime, policies, flags and store.
/// Source: protocol 8.3; `struct epoch_log` in sheepdog's `include/internal_proto.h`.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(C)]
pub struct EpochRecordHeader {
    /// Creation time of the cluster, packed.
    pub ctime: U64,
    /// Start of the epoch, seconds since 1970.
    pub time: U64,
    /// The epoch.
    pub epoch: U32,
    /// Node slots in use.
    pub nr_nodes: U32,
    /// 1 when automatic recovery is off.
    pub disable_recovery: u8,
    /// Default replicas or strips.
    pub nr_copies: u8,
    /// Raw default copy policy.
    pub copy_policy: u8,
    /// Padding.
    pub pad: [u8; 3],
    /// Raw [`ClusterFlags`].
    pub flags: U16,
    /// NUL-padded name of the object store.
    pub store: [u8; STORE_LEN],
}

const _: () = assert!(size_of::<EpochRecordHeader>() == EPOCH_RECORD_HEADER_LEN);

impl EpochRecordHeader {
    /// The cluster flags, unknown bits included.
    pub fn flags(&self) -> ClusterFlags {
        ClusterFlags::from_bits_retain(self.flags.get())
    }

    /// The default redundancy of new VDIs.
    pub fn redundancy(&self) -> Redundancy {
        Redundancy::from_wire(self.nr_copies, self.copy_policy)
    }

    /// Name of the object store, without padding.
    pub fn store(&self) -> &[u8] {
        unpad(&self.store)
    }

    /// The header with the name of the store where older releases have it, which know
    /// no flags.
    pub(crate) fn with_store_from(&self, offset: usize) -> Self {
        let mut store = [0; STORE_LEN];
        store.copy_from_slice(&self.as_bytes()[offset..offset + STORE_LEN]);
        Self {
            flags: U16::ZERO,
            store,
            ..*self
        }
    }

    /// The header as older releases have it, the name of the store at `offset`.
    pub(crate) fn with_store_at(&self, offset: usize) -> Self {
        let mut header = Self {
            flags: U16::ZERO,
            store: [0; STORE_LEN],
            ..*self
        };
        header.as_mut_bytes()[offset..offset + STORE_LEN].copy_from_slice(&self.store);
        header
    }
}

/// Splits a STAT_CLUSTER payload into epochs, newest first, and their nodes.
///
/// `nodes_nr` is what the request asked for: the node slots of every record.
///
/// # Errors
/// [`Malformed`] when a record is cut off or names more nodes than it has slots.
pub fn parse_epoch_log(
    payload: &[u8],
    nodes_nr: u32,
) -> Result<Vec<(&EpochRecordHeader, &[NodeRecord])>, Malformed> {
    const CUT: Malformed = Malformed::new("epoch log", "a record is cut off");
    let record_len = usize::try_from(nodes_nr)
        .ok()
        .and_then(|nodes| {
            nodes
                .checked_mul(NODE_RECORD_LEN)?
                .checked_add(EPOCH_RECORD_HEADER_LEN)
        })
        .ok_or(CUT)?;
    let records = payload.chunks_exact(record_len);
    if !records.remainder().is_empty() {
        return Err(CUT);
    }
    records
        .map(|record| {
            let (header, slots) = EpochRecordHeader::ref_from_prefix(record).map_err(|_| CUT)?;
            let nodes = NodeRecord::parse_list(slots)?;
            let used = usize::try_from(header.nr_nodes.get()).map_err(|_| CUT)?;
            let nodes = nodes.get(..used).ok_or(Malformed::new(
                "epoch log",
                "it names more nodes than it holds",
            ))?;
            Ok((header, nodes))
        })
        .collect()
}
