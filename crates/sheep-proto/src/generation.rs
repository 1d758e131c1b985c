//! What differs between the releases of sheep: version byte, opcodes, record
//! layouts, limits and features.
//!
//! The patch level inside a generation cannot be told on the wire, so everything here
//! is what holds for the worst release of a generation. An opcode that only later
//! releases of a generation serve counts as absent, for instance.
//!
//! Records of old generations are read into the types of the newest one.

use std::fmt;
use std::str::FromStr;

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::Malformed;
use crate::cluster::{ClusterInfoHeader, EpochRecordHeader, parse_epoch_log};
use crate::header::{ClusterRequest, RequestBody, RequestHeader, VdiRequest};
use crate::id::ObjectKind;
use crate::inode::{BTREE_COUNTER_OFFSET, InodeHeader, STORE_POLICY_HYPERVOLUME};
use crate::limits::{
    ATTRIBUTE_LEN, BTREE_NODE_LEN, CLUSTER_INFO_LEN, DEFAULT_BLOCK_SIZE_SHIFT,
    EPOCH_RECORD_HEADER_LEN, INODE_GREF_OFFSET, INODE_LEN, MAX_BLOCK_SIZE_SHIFT, MAX_COPIES,
    MAX_NODES, MAX_PAYLOAD_LEN, NEWEST_PROTO_VER, NODE_RECORD_LEN, PUBLIC_PROTO_VER, VDI_STATE_LEN,
};
use crate::node::NodeRecord;
use crate::opcode::Opcode;
use crate::result_code::ResultCode;
use crate::vdi_state::VdiState;
use crate::{ClusterFlags, Oid, Redundancy, ResponseHeader};

/// A series of releases that are alike on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Generation {
    /// 0.7.0 to 0.7.8.
    V0_7,
    /// 0.8.0 to 0.8.3.
    V0_8,
    /// 0.9.0 to 0.9.5.
    V0_9,
    /// 1.0 and everything later.
    V1_0,
}

/// When the VDIs of a cluster are locked while they are in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Locking {
    /// Never: LOCK_VDI only looks the VDI up.
    Never,
    /// When the cluster was formatted with locking, and in 0.9.0 and 0.9.1 always.
    Maybe,
    /// When the cluster was formatted with locking.
    AsFormatted,
}

/// What becomes of an object whose index entry is cleared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reclaim {
    /// Nothing, ever: the server counts no references. DISCARD_OBJ removes it.
    Never,
    /// It is gone before the answer, unless others refer to it.
    BeforeAnswer,
    /// It goes some time after the answer, unless others refer to it.
    AfterAnswer,
}

/// Text that names no generation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the generations of sheep are 0.7, 0.8, 0.9 and 1.0")]
pub struct UnknownGeneration;

/// Why a request must not be sent to a sheep.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unsupported {
    /// The operation does not exist there; some sheep die of it.
    #[error("sheep {0} does not have this operation")]
    Opcode(Generation),
    /// The request reaches past the end of the object; some sheep take that for a
    /// broken disk.
    #[error(
        "it would reach past the end of the object, which has {len} bytes in sheep {generation}"
    )]
    PastEnd {
        /// The generation of the sheep.
        generation: Generation,
        /// Bytes of the object at most.
        len: u64,
    },
    /// The sheep has no objects of this kind.
    #[error("sheep {0} has no such objects")]
    Object(Generation),
    /// A flag of the cluster.
    #[error("sheep {0} does not know all of these cluster flags")]
    ClusterFlags(Generation),
    /// A number of copies that the sheep cannot store.
    #[error("sheep {generation} stores at most {limit} copies")]
    Copies {
        /// The generation of the sheep.
        generation: Generation,
        /// Most copies.
        limit: u8,
    },
    /// Erasure code.
    #[error("sheep {0} has no erasure code")]
    ErasureCode(Generation),
    /// A hypervolume.
    #[error("sheep {0} has no hypervolumes")]
    Hypervolume(Generation),
    /// A change of a hypervolume.
    #[error("the hypervolumes of sheep {0} can only be read")]
    HypervolumeChange(Generation),
    /// An object size.
    #[error("sheep {0} has only objects of 4 MiB")]
    ObjectSize(Generation),
    /// A lock.
    #[error("sheep {0} has no locks")]
    Lock(Generation),
}

impl Generation {
    /// Every generation, the oldest first.
    pub const ALL: [Self; 4] = [Self::V0_7, Self::V0_8, Self::V0_9, Self::V1_0];

    /// The version byte of sheep-internal requests.
    pub const fn internal_proto_ver(self) -> u8 {
        match self {
            Self::V0_7 => 0x08,
            Self::V0_8 | Self::V0_9 => 0x09,
            Self::V1_0 => NEWEST_PROTO_VER,
        }
    }

    /// The version byte of a request with this opcode.
    pub const fn proto_ver(self, opcode: Opcode) -> u8 {
        if opcode.is_public() {
            PUBLIC_PROTO_VER
        } else {
            self.internal_proto_ver()
        }
    }

    /// True when every release of the generation serves this opcode.
    ///
    /// Source: the operation tables in sheepdog's `sheep/ops.c` of each release.
    pub const fn has_opcode(self, opcode: Opcode) -> bool {
        use Opcode as Op;
        match opcode {
            // In no table of any of these releases.
            Op::Snapshot
            | Op::Restore
            | Op::GetSnapFile
            | Op::SetCacheSize
            | Op::FlushNodes
            | Op::FlushPeer => false,
            Op::GetClusterDefault
            | Op::VdiStateCheckpoint
            | Op::ReadDelVdis
            | Op::GetRecovery
            | Op::SetRecovery
            | Op::SetVnodes
            | Op::GetVnodes => matches!(self, Self::V1_0),
            Op::GetCacheInfo => self.has_object_cache(),
            Op::CachePurge => matches!(self, Self::V0_8 | Self::V0_9),
            Op::PreventInodeUpdate | Op::AllowInodeUpdate => matches!(self, Self::V0_9),
            Op::Stat | Op::GetLogLevel | Op::SetLogLevel => !matches!(self, Self::V0_7),
            Op::NfsCreate
            | Op::NfsDelete
            | Op::Exist
            | Op::ClusterInfo
            | Op::AlterClusterCopy
            | Op::AlterVdiCopy
            | Op::DecrefObj
            | Op::DecrefPeer
            | Op::RepairReplica
            | Op::OidsExist
            | Op::InodeCoherence => matches!(self, Self::V0_9 | Self::V1_0),
            Op::CreateAndWriteObj
            | Op::ReadObj
            | Op::WriteObj
            | Op::RemoveObj
            | Op::DiscardObj
            | Op::NewVdi
            | Op::LockVdi
            | Op::ReleaseVdi
            | Op::GetVdiInfo
            | Op::ReadVdis
            | Op::FlushVdi
            | Op::DelVdi
            | Op::GetNodeList
            | Op::MakeFs
            | Op::Shutdown
            | Op::StatSheep
            | Op::StatCluster
            | Op::GetVdiAttr
            | Op::ForceRecover
            | Op::GetStoreList
            | Op::Cleanup
            | Op::TraceStatus
            | Op::TraceReadBuf
            | Op::StatRecovery
            | Op::FlushDelCache
            | Op::NotifyVdiDel
            | Op::KillNode
            | Op::TraceEnable
            | Op::TraceDisable
            | Op::GetObjList
            | Op::GetEpoch
            | Op::CreateAndWritePeer
            | Op::ReadPeer
            | Op::WritePeer
            | Op::RemovePeer
            | Op::EnableRecover
            | Op::DisableRecover
            | Op::GetVdiCopies
            | Op::CompleteRecovery
            | Op::NotifyVdiAdd
            | Op::DeleteCache
            | Op::MdInfo
            | Op::MdPlug
            | Op::MdUnplug
            | Op::GetHash
            | Op::Reweight => true,
        }
    }

    /// Most replicas, or strips, of a VDI.
    pub const fn max_copies(self) -> u8 {
        match self {
            Self::V0_7 => 8,
            Self::V0_8 | Self::V0_9 | Self::V1_0 => MAX_COPIES,
        }
    }

    /// True when VDIs can be erasure coded.
    pub const fn has_erasure_code(self) -> bool {
        !matches!(self, Self::V0_7)
    }

    /// True when VDIs can have a B-tree as index.
    pub const fn has_hypervolumes(self) -> bool {
        !matches!(self, Self::V0_7)
    }

    /// True when the B-tree of a hypervolume may be changed.
    ///
    /// In 0.8 its counter is elsewhere, and `dog` leaves garbage there.
    pub const fn writes_hypervolumes(self) -> bool {
        matches!(self, Self::V0_9 | Self::V1_0)
    }

    /// True when a VDI can have other objects than those of 4 MiB.
    pub const fn has_object_sizes(self) -> bool {
        matches!(self, Self::V1_0)
    }

    /// True when a sheep may have been started with an object cache.
    pub const fn has_object_cache(self) -> bool {
        !matches!(self, Self::V1_0)
    }

    /// True when each replica of a new object that is a copy reads its source through the
    /// object cache of its own node, which may be old.
    pub const fn copies_through_caches(self) -> bool {
        matches!(self, Self::V0_7)
    }

    /// The settings of a cluster that the generation knows; 0.7 has none on the wire.
    pub const fn cluster_flags(self) -> ClusterFlags {
        match self {
            Self::V0_7 => ClusterFlags::empty(),
            Self::V0_8 => ClusterFlags::STRICT,
            Self::V0_9 => ClusterFlags::STRICT
                .union(ClusterFlags::DISK_MODE)
                .union(ClusterFlags::USE_LOCK),
            Self::V1_0 => ClusterFlags::all(),
        }
    }

    /// When VDIs are locked.
    pub const fn locking(self) -> Locking {
        match self {
            Self::V0_7 | Self::V0_8 => Locking::Never,
            Self::V0_9 => Locking::Maybe,
            Self::V1_0 => Locking::AsFormatted,
        }
    }

    /// What becomes of objects that no index entry names any more.
    pub const fn reclaim(self) -> Reclaim {
        match self {
            Self::V0_7 | Self::V0_8 => Reclaim::Never,
            Self::V0_9 => Reclaim::BeforeAnswer,
            Self::V1_0 => Reclaim::AfterAnswer,
        }
    }

    /// True when DEL_VDI removes the objects itself, before it answers. Elsewhere
    /// it deletes only what has an empty index.
    pub const fn deletes_objects(self) -> bool {
        matches!(self.reclaim(), Reclaim::Never)
    }

    /// True when a new VDI may get the VID of a deleted one whose clones are alive.
    pub const fn reuses_vids(self) -> bool {
        matches!(self, Self::V0_7 | Self::V0_8)
    }

    /// True when CLUSTER_INFO, or an epoch record, has the default redundancy.
    pub const fn reports_redundancy(self) -> bool {
        !matches!(self, Self::V0_7)
    }

    /// True when an inode lists at most 1,024 children, in slots that are not freed.
    pub const fn has_child_slots(self) -> bool {
        matches!(self, Self::V0_7 | Self::V0_8)
    }

    /// True when `dog` prints the vnodes of each node in the history of a cluster, and an
    /// empty line behind the status of one that has no history.
    pub const fn dog_shows_vnodes(self) -> bool {
        matches!(self, Self::V1_0)
    }

    /// True when `dog` prints the object size of each VDI.
    pub const fn dog_shows_object_size(self) -> bool {
        self.has_object_sizes()
    }

    /// Characters of the number of copies that `dog` prints for each VDI.
    pub const fn dog_copies_width(self) -> usize {
        match self {
            Self::V0_7 => 5,
            Self::V0_8 | Self::V0_9 | Self::V1_0 => 6,
        }
    }

    /// True when `dog` leaves a gap in the numbers of the nodes for one that does not
    /// answer.
    pub const fn dog_numbers_silent_nodes(self) -> bool {
        matches!(self, Self::V0_7)
    }

    /// True when one more snapshot or clone can be made from a VDI.
    ///
    /// A sheep finds out too late: a snapshot that fails has made the VDI read-only.
    pub fn has_room_for_child(self, base: &InodeHeader) -> bool {
        let (_, slots) = base.as_bytes().split_at(CHILD_SLOTS_OFFSET);
        !self.has_child_slots() || slots.chunks_exact(4).any(|slot| slot == [0; 4])
    }

    /// True for an inode that is an access list of the fork of 2026, and so no volume:
    /// it must be neither listed nor attached.
    ///
    /// The fork has the version byte of 1.0. Older releases have the VID of a child where
    /// it keeps the mark.
    pub fn is_access_list(self, header: &InodeHeader) -> bool {
        const ACCESS_LIST: u32 = 1;
        self == Self::V1_0 && header.fork_flags() & ACCESS_LIST != 0
    }

    /// Bytes of the whole inode object.
    pub const fn inode_len(self) -> usize {
        match self {
            Self::V0_7 => INODE_GREF_OFFSET,
            Self::V0_8 => INODE_GREF_OFFSET + 8,
            Self::V0_9 | Self::V1_0 => INODE_LEN,
        }
    }

    /// Most bytes of an object; `None` for an id that no object of this generation
    /// has.
    pub const fn max_object_len(self, oid: Oid) -> Option<u64> {
        let shift = if self.has_object_sizes() {
            MAX_BLOCK_SIZE_SHIFT
        } else {
            DEFAULT_BLOCK_SIZE_SHIFT
        };
        match oid.kind() {
            None => None,
            Some(ObjectKind::Inode) => Some(self.inode_len() as u64),
            Some(ObjectKind::Attribute) => Some(ATTRIBUTE_LEN as u64),
            Some(ObjectKind::Data | ObjectKind::VmState) => Some(1 << shift),
            Some(ObjectKind::BtreeNode) if self.has_hypervolumes() => Some(BTREE_NODE_LEN as u64),
            Some(ObjectKind::Ledger) if !self.deletes_objects() => Some(BTREE_NODE_LEN as u64),
            Some(ObjectKind::BtreeNode | ObjectKind::Ledger) => None,
        }
    }

    /// Bytes of a node record.
    pub const fn node_record_len(self) -> usize {
        match self {
            Self::V0_7 => OldNodeRecord::LEN,
            Self::V0_8 | Self::V0_9 | Self::V1_0 => NODE_RECORD_LEN,
        }
    }

    /// Most nodes a cluster can have.
    pub const fn max_nodes(self) -> usize {
        match self {
            Self::V0_7 => 1024,
            Self::V0_8 | Self::V0_9 | Self::V1_0 => MAX_NODES,
        }
    }

    /// Buffer that GET_NODE_LIST needs; a smaller one kills the sheep.
    pub const fn node_list_len(self) -> usize {
        self.max_nodes() * self.node_record_len()
    }

    /// Bytes of an epoch record when `nodes_nr` node slots are asked for; older
    /// generations always have all of them.
    pub const fn epoch_record_len(self, nodes_nr: usize) -> usize {
        match self {
            Self::V0_7 => OldEpochRecordHeader::LEN + self.node_list_len(),
            Self::V0_8 => CLUSTER_INFO_LEN,
            Self::V0_9 | Self::V1_0 => EPOCH_RECORD_HEADER_LEN + nodes_nr * NODE_RECORD_LEN,
        }
    }

    /// True when STAT_CLUSTER returns as many node slots in a record as are asked for.
    pub const fn sizes_epoch_records(self) -> bool {
        matches!(self, Self::V0_9 | Self::V1_0)
    }

    /// Bytes of a record of GET_VDI_COPIES.
    pub const fn vdi_state_len(self) -> usize {
        match self {
            Self::V0_7 | Self::V0_8 => 8,
            Self::V0_9 => 1420,
            Self::V1_0 => VDI_STATE_LEN,
        }
    }

    /// Checks that a redundancy is one that sheep of this generation can store.
    ///
    /// # Errors
    /// Why it is not.
    pub const fn check_redundancy(self, redundancy: Redundancy) -> Result<(), Unsupported> {
        if redundancy.copy_policy() != 0 && !self.has_erasure_code() {
            return Err(Unsupported::ErasureCode(self));
        }
        if redundancy.nr_copies() > self.max_copies() {
            return Err(Unsupported::Copies {
                generation: self,
                limit: self.max_copies(),
            });
        }
        Ok(())
    }

    /// Checks that a cluster of this generation can be formatted with these flags.
    /// Automatic vnodes, the default, mean fixed ones where they do not exist.
    ///
    /// # Errors
    /// Why it cannot.
    pub fn check_cluster_flags(self, flags: ClusterFlags) -> Result<(), Unsupported> {
        let possible = self.cluster_flags().union(ClusterFlags::AUTO_VNODES);
        match possible.contains(flags) {
            true => Ok(()),
            false => Err(Unsupported::ClusterFlags(self)),
        }
    }

    /// Checks that a request may be sent to a sheep of this generation: that it has
    /// the operation, that no range reaches past the end of an object, and that no
    /// field has a value which the generation reads as something else.
    ///
    /// `len` is the number of bytes that a request for an object reads or writes.
    ///
    /// # Errors
    /// Why it must not be sent.
    pub fn check(self, opcode: Opcode, body: &RequestBody, len: u32) -> Result<(), Unsupported> {
        if !self.has_opcode(opcode) {
            return Err(Unsupported::Opcode(self));
        }
        match body {
            RequestBody::Object(body) => {
                let oid = Oid::from_raw(body.oid.get());
                let end = u64::from(body.offset.get()) + u64::from(len);
                // One without a kind exists nowhere, which every sheep reports.
                let kind = oid.kind().is_some();
                match self.max_object_len(oid) {
                    Some(len) if end > len => Err(Unsupported::PastEnd {
                        generation: self,
                        len,
                    }),
                    None if kind => Err(Unsupported::Object(self)),
                    _ => Ok(()),
                }
            }
            RequestBody::Vdi(body) if opcode == Opcode::NewVdi => self.check_new_vdi(body),
            RequestBody::Cluster(ClusterRequest {
                copies,
                copy_policy,
                block_size_shift,
                ..
            }) if opcode == Opcode::MakeFs => {
                self.check_object_size(*block_size_shift)?;
                self.check_redundancy(Redundancy::from_wire(*copies, *copy_policy))
            }
            _ => Ok(()),
        }
    }

    fn check_new_vdi(self, body: &VdiRequest) -> Result<(), Unsupported> {
        if body.store_policy == STORE_POLICY_HYPERVOLUME && !self.has_hypervolumes() {
            return Err(Unsupported::Hypervolume(self));
        }
        self.check_object_size(body.block_size_shift)?;
        self.check_redundancy(Redundancy::from_wire(body.copies, body.copy_policy))
    }

    /// The byte has to be 0 where the server does not know it: 0.7 takes it for a
    /// part of the number of copies.
    const fn check_object_size(self, shift: u8) -> Result<(), Unsupported> {
        if shift != 0 && !self.has_object_sizes() {
            return Err(Unsupported::ObjectSize(self));
        }
        Ok(())
    }

    /// The records of a GET_NODE_LIST payload.
    ///
    /// # Errors
    /// [`Malformed`] when a record is cut off.
    pub fn parse_nodes(self, payload: &[u8]) -> Result<Vec<NodeRecord>, Malformed> {
        match self {
            Self::V0_7 => <[OldNodeRecord]>::ref_from_bytes(payload)
                .map(|records| records.iter().map(NodeRecord::from).collect())
                .map_err(|_| Malformed::new("node list", "a record is cut off")),
            Self::V0_8 | Self::V0_9 | Self::V1_0 => {
                NodeRecord::parse_list(payload).map(<[NodeRecord]>::to_vec)
            }
        }
    }

    /// Appends the record of a node to a payload.
    pub fn push_node(self, node: &NodeRecord, payload: &mut Vec<u8>) {
        let record = node.as_bytes();
        match self {
            Self::V0_7 => payload.extend_from_slice(&record[LINKS_LEN..]),
            Self::V0_8 | Self::V0_9 | Self::V1_0 => payload.extend_from_slice(record),
        }
    }

    /// Splits a CLUSTER_INFO payload into the fixed part and the nodes in use.
    ///
    /// # Errors
    /// [`Malformed`] when the payload is shorter than it says.
    pub fn parse_cluster_info(
        self,
        payload: &[u8],
    ) -> Result<(ClusterInfoHeader, Vec<NodeRecord>), Malformed> {
        let (header, nodes) = ClusterInfoHeader::parse(payload)?;
        let mut header = *header;
        if self != Self::V1_0 {
            header.move_store_from(OLD_STORE_OFFSET);
        }
        Ok((header, nodes.to_vec()))
    }

    /// The fixed part of a CLUSTER_INFO payload.
    pub fn cluster_info_bytes(self, mut header: ClusterInfoHeader) -> ClusterInfoHeader {
        header.proto_ver = self.internal_proto_ver();
        if self != Self::V1_0 {
            header.move_store_to(OLD_STORE_OFFSET);
        }
        header
    }

    /// Splits a STAT_CLUSTER payload into epochs, newest first, and their nodes.
    ///
    /// `nodes_nr` is what the request asked for.
    ///
    /// # Errors
    /// [`Malformed`] when a record is cut off or names more nodes than it has slots.
    pub fn parse_epoch_log(
        self,
        payload: &[u8],
        nodes_nr: u32,
    ) -> Result<Vec<(EpochRecordHeader, Vec<NodeRecord>)>, Malformed> {
        let records = match self {
            Self::V0_7 => return parse_old_epoch_log(payload),
            Self::V0_8 => parse_epoch_log(payload, MAX_NODES_U32)?,
            Self::V0_9 | Self::V1_0 => parse_epoch_log(payload, nodes_nr)?,
        };
        let header = |header: &EpochRecordHeader| match self {
            Self::V0_8 => header.with_store_from(OLD_STORE_OFFSET),
            Self::V0_7 | Self::V0_9 | Self::V1_0 => *header,
        };
        Ok(records
            .into_iter()
            .map(|(found, nodes)| (header(found), nodes.to_vec()))
            .collect())
    }

    /// Appends an epoch record with `slots` node slots to a payload; older
    /// generations always have all of them.
    pub fn push_epoch(
        self,
        header: &EpochRecordHeader,
        nodes: &[NodeRecord],
        slots: usize,
        payload: &mut Vec<u8>,
    ) {
        let end = payload.len() + self.epoch_record_len(slots);
        match self {
            Self::V0_7 => payload.extend_from_slice(OldEpochRecordHeader::from(header).as_bytes()),
            Self::V0_8 => {
                payload.extend_from_slice(header.with_store_at(OLD_STORE_OFFSET).as_bytes());
            }
            Self::V0_9 | Self::V1_0 => payload.extend_from_slice(header.as_bytes()),
        }
        let fit = (end - payload.len()) / self.node_record_len();
        for node in nodes.iter().take(fit) {
            self.push_node(node, payload);
        }
        payload.resize(end, 0);
    }
}

/// What a client meets only when it asks for the wrong thing: for servers that stand in
/// for a generation.
impl Generation {
    /// The newest generation.
    pub const NEWEST: Self = Self::V1_0;

    /// True for an opcode that only later releases of the generation serve.
    pub const fn gains_opcode(self, opcode: Opcode) -> bool {
        match self {
            Self::V0_7 => matches!(opcode, Opcode::GetLogLevel | Opcode::SetLogLevel),
            Self::V0_9 => matches!(opcode, Opcode::GetRecovery | Opcode::SetRecovery),
            Self::V0_8 | Self::V1_0 => false,
        }
    }

    /// True when a release of the generation ends on an opcode that it lacks.
    ///
    /// 0.7.7 reads through a null pointer, and 0.8 past the end of its table.
    pub const fn dies_of_opcode(self, raw: u8) -> bool {
        const LAST_OF_0_8: u8 = Opcode::SetLogLevel as u8;
        match self {
            Self::V0_7 => true,
            Self::V0_8 => raw > LAST_OF_0_8,
            Self::V0_9 | Self::V1_0 => false,
        }
    }

    /// True when a release of the generation ends on an opcode that it lacks before it
    /// has looked at the version of the request.
    pub const fn dies_of_opcode_in_any_version(self, raw: u8) -> bool {
        const FATAL_TO_0_8: u8 = Opcode::ReadDelVdis as u8;
        matches!((self, raw), (Self::V0_8, FATAL_TO_0_8))
    }

    /// True when a release of the generation ends after it has refused a version.
    pub const fn dies_of_version(self) -> bool {
        matches!(self, Self::V0_7)
    }

    /// True when a read past the end of an object makes the sheep leave the cluster.
    pub const fn leaves_after_reading_past_end(self) -> bool {
        matches!(self, Self::V0_7 | Self::V0_8)
    }

    /// True when GET_HASH of an object that is not there ends the sheep.
    pub const fn dies_of_absent_digest(self) -> bool {
        matches!(self, Self::V0_8 | Self::V0_9)
    }

    /// True when GET_VDI_COPIES answers BUFFER_SMALL instead of writing past the buffer.
    pub const fn checks_vdi_state_buffer(self) -> bool {
        matches!(self, Self::V0_9 | Self::V1_0)
    }

    /// True when flushing an index that was changed in the cache locks the sheep out.
    pub const fn flush_deadlocks(self) -> bool {
        matches!(self, Self::V0_9)
    }

    /// True when the last release of the generation still gives the VID of a deleted VDI
    /// to a new one.
    pub const fn keeps_reusing_vids(self) -> bool {
        matches!(self, Self::V0_7)
    }

    /// True when DEL_VDI of a clone gives the slot in its parent back, in the last release.
    pub const fn frees_child_slots(self) -> bool {
        matches!(self, Self::V0_8)
    }

    /// What NEW_VDI answers when the parent has no slot for another child.
    pub const fn full_parent(self) -> ResultCode {
        match self {
            Self::V0_7 => ResultCode::NoBaseVdi,
            Self::V0_8 | Self::V0_9 | Self::V1_0 => ResultCode::FullVdi,
        }
    }

    /// True when READ_OBJ in version 2 cuts blocks of zeros off both ends.
    pub const fn trims_zeros(self) -> bool {
        matches!(self, Self::V0_7)
    }

    /// True when READ_OBJ answers the number of copies, unless it comes from the cache.
    pub const fn answers_copies(self) -> bool {
        matches!(self, Self::V0_7)
    }

    /// True when DEL_VDI answers the VID.
    pub const fn answers_deleted_vid(self) -> bool {
        matches!(self, Self::V1_0)
    }

    /// True when DEL_VDI does nothing to a VDI that has index entries, and says success.
    ///
    /// 1.0 hides such a VDI.
    pub const fn deletes_only_empty_vdis(self) -> bool {
        matches!(self, Self::V0_9)
    }

    /// True when NEW_VDI has a number of copies of 32 bits and neither policies nor an
    /// object size.
    pub const fn has_wide_copies(self) -> bool {
        matches!(self, Self::V0_7)
    }

    /// True when DISCARD_OBJ looks whether the index names an object.
    pub const fn discards_only_named_objects(self) -> bool {
        !matches!(self, Self::V0_7)
    }

    /// True when every record of an epoch log has the time of the format.
    pub const fn repeats_ctime(self) -> bool {
        matches!(self, Self::V0_7)
    }

    /// Points on the placement ring that a node has by default.
    pub const fn default_vnodes(self) -> u16 {
        match self {
            Self::V0_7 => 64,
            Self::V0_8 | Self::V0_9 | Self::V1_0 => 128,
        }
    }

    /// The payload of GET_STORE_LIST.
    pub const fn store_list(self) -> &'static [u8] {
        match self {
            Self::V0_7 | Self::V0_8 => b"plain \0",
            Self::V0_9 | Self::V1_0 => b"tree plain \0",
        }
    }

    /// Appends a record of GET_VDI_COPIES to a payload.
    pub fn push_vdi_state(self, state: &VdiState, payload: &mut Vec<u8>) {
        let bytes = state.as_bytes();
        let lock = std::mem::offset_of!(VdiState, lock_state);
        match self {
            Self::V0_7 | Self::V0_8 => self.push_old_state(state, payload),
            Self::V0_9 => {
                self.push_old_state(state, payload);
                payload.extend_from_slice(&bytes[lock..]);
            }
            Self::V1_0 => payload.extend_from_slice(bytes),
        }
    }

    /// VID, copies, whether it is a snapshot, and the policy where there is one.
    fn push_old_state(self, state: &VdiState, payload: &mut Vec<u8>) {
        let policy = if self.has_erasure_code() {
            state.copy_policy
        } else {
            0
        };
        payload.extend_from_slice(state.vid.as_bytes());
        payload.extend_from_slice(&[state.nr_copies, state.snapshot, policy, 0]);
    }
}

/// Prints as the options and reports name it: `0.9`.
impl fmt::Display for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::V0_7 => "0.7",
            Self::V0_8 => "0.8",
            Self::V0_9 => "0.9",
            Self::V1_0 => "1.0",
        })
    }
}

impl FromStr for Generation {
    type Err = UnknownGeneration;

    fn from_str(text: &str) -> Result<Self, UnknownGeneration> {
        Self::ALL
            .into_iter()
            .find(|generation| generation.to_string() == text)
            .ok_or(UnknownGeneration)
    }
}

/// What one STAT_CLUSTER of [`Detection`] asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Probe {
    /// The version byte.
    pub proto_ver: u8,
    /// Bytes of payload the response may have.
    pub max_response_len: u32,
}

impl Probe {
    /// The header of the request.
    pub fn header(self) -> RequestHeader {
        let body = RequestBody::Cluster(ClusterRequest::default());
        let mut header = RequestHeader::new(
            Opcode::StatCluster,
            crate::RequestFlags::empty(),
            self.max_response_len,
            body,
        );
        header.proto_ver = self.proto_ver;
        header
    }
}

/// Tells the generation of a sheep from its answers to STAT_CLUSTER. No I/O.
///
/// Versions are asked for in ascending order, one at a time: some releases die of a
/// version that is newer than their own, and others of a second request behind a
/// wrong one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Detection {
    /// Ask this next.
    Ask(Probe),
    /// The generation is known.
    Known(Generation),
    /// 0.8 or 0.9: the cluster has no epoch yet, and until it has one they are alike.
    Undecided,
    /// No generation that this crate knows.
    Unknown,
}

impl Detection {
    /// The first question.
    pub const START: Self = Self::Ask(Probe {
        proto_ver: Generation::V0_7.internal_proto_ver(),
        max_response_len: SHORT_PROBE,
    });

    /// What the answer to `probe` means.
    pub fn next(probe: Probe, answer: &ResponseHeader) -> Self {
        let is_mismatch = answer.result() == ResultCode::VerMismatch;
        let ask = |generation: Generation, max_response_len| {
            Self::Ask(Probe {
                proto_ver: generation.internal_proto_ver(),
                max_response_len,
            })
        };
        if probe.proto_ver == Generation::V0_7.internal_proto_ver() {
            return if is_mismatch {
                ask(Generation::V0_9, SHORT_PROBE)
            } else {
                Self::Known(Generation::V0_7)
            };
        }
        if probe.proto_ver == Generation::V0_9.internal_proto_ver() {
            return match answer.data_length.get() {
                _ if is_mismatch => ask(Generation::V1_0, SHORT_PROBE),
                LONG_PROBE => Self::Known(Generation::V0_8),
                0 if probe.max_response_len == SHORT_PROBE => ask(Generation::V0_9, LONG_PROBE),
                0 => Self::Undecided,
                _ => Self::Known(Generation::V0_9),
            };
        }
        if is_mismatch {
            Self::Unknown
        } else {
            Self::Known(Generation::V1_0)
        }
    }
}

/// The generation of a sheep, as far as its answers tell it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Detected {
    /// This one.
    Certain(Generation),
    /// 0.8 or 0.9, which cannot be told apart before the cluster is formatted.
    Undecided,
}

impl Detected {
    /// What a sheep that is taken for one of `generation` has told, when its cluster
    /// has, or has not, an epoch.
    pub fn from_assumed(generation: Generation, has_epoch: bool) -> Self {
        if generation == Self::Undecided.generation() && !has_epoch {
            Self::Undecided
        } else {
            Self::Certain(generation)
        }
    }

    /// The generation to assume: all that 0.8 has is the same in 0.9.
    pub const fn generation(self) -> Generation {
        match self {
            Self::Certain(generation) => generation,
            Self::Undecided => Generation::V0_8,
        }
    }

    /// True unless the sheep is certainly of another generation.
    pub fn may_be(self, generation: Generation) -> bool {
        match self {
            Self::Certain(certain) => certain == generation,
            Self::Undecided => matches!(generation, Generation::V0_8 | Generation::V0_9),
        }
    }
}

/// Prints as reports and errors name it: `0.9`.
impl fmt::Display for Detected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Certain(generation) => generation.fmt(f),
            Self::Undecided => f.write_str("0.8 or 0.9"),
        }
    }
}

/// One epoch record of 0.9 without nodes. It holds no record of 0.8.
const SHORT_PROBE: u32 = 48;
/// One epoch record of 0.8, and no whole number of the short ones.
const LONG_PROBE: u32 = 491_568;

const _: () = assert!(LONG_PROBE as usize == Generation::V0_8.epoch_record_len(0));
const _: () = assert!(SHORT_PROBE as usize == Generation::V0_9.epoch_record_len(0));

/// Offset of the store's name in a CLUSTER_INFO of 0.9, and in an epoch record of 0.8.
const OLD_STORE_OFFSET: usize = 28;
/// [`MAX_NODES`] in the width of a request.
const MAX_NODES_U32: u32 = 6144;

const _: () = assert!(MAX_NODES_U32 as usize == MAX_NODES);
const _: () = assert!(LONG_PROBE as usize <= MAX_PAYLOAD_LEN);

/// Offset of the children in an inode header before 0.9, which end where it ends.
const CHILD_SLOTS_OFFSET: usize = BTREE_COUNTER_OFFSET as usize;

/// Bytes of a node record that 0.7 does not have in front.
const LINKS_LEN: usize = 24;

/// A node record of 0.7, 56 bytes.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct OldNodeRecord {
    addr: [u8; 16],
    port: U16,
    io_addr: [u8; 16],
    io_port: U16,
    pad: [u8; 4],
    nr_vnodes: U16,
    pad2: [u8; 2],
    zone: U32,
    space: U64,
}

impl OldNodeRecord {
    const LEN: usize = size_of::<Self>();
}

const _: () = assert!(OldNodeRecord::LEN == 56);

impl From<&OldNodeRecord> for NodeRecord {
    fn from(old: &OldNodeRecord) -> Self {
        Self {
            links: [0; 24],
            addr: old.addr,
            port: old.port,
            io_addr: old.io_addr,
            io_port: old.io_port,
            pad: old.pad,
            nr_vnodes: old.nr_vnodes,
            pad2: old.pad2,
            zone: old.zone,
            space: old.space,
        }
    }
}

/// The fixed part of an epoch record of 0.7, 32 bytes.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct OldEpochRecordHeader {
    ctime: U64,
    time: U64,
    epoch: U32,
    nr_nodes: U32,
    disable_recovery: u8,
    pad: [u8; 7],
}

impl OldEpochRecordHeader {
    const LEN: usize = size_of::<Self>();
}

const _: () = assert!(Generation::V0_7.epoch_record_len(0) == 57_376);

impl From<&OldEpochRecordHeader> for EpochRecordHeader {
    fn from(old: &OldEpochRecordHeader) -> Self {
        Self {
            ctime: old.ctime,
            time: old.time,
            epoch: old.epoch,
            nr_nodes: old.nr_nodes,
            disable_recovery: old.disable_recovery,
            ..zerocopy::FromZeros::new_zeroed()
        }
    }
}

impl From<&EpochRecordHeader> for OldEpochRecordHeader {
    fn from(new: &EpochRecordHeader) -> Self {
        Self {
            ctime: new.ctime,
            time: new.time,
            epoch: new.epoch,
            nr_nodes: new.nr_nodes,
            disable_recovery: new.disable_recovery,
            pad: [0; 7],
        }
    }
}

fn parse_old_epoch_log(
    payload: &[u8],
) -> Result<Vec<(EpochRecordHeader, Vec<NodeRecord>)>, Malformed> {
    const CUT: Malformed = Malformed::new("epoch log", "a record is cut off");
    let generation = Generation::V0_7;
    let records = payload.chunks_exact(generation.epoch_record_len(0));
    if !records.remainder().is_empty() {
        return Err(CUT);
    }
    records
        .map(|record| {
            let (header, slots) = OldEpochRecordHeader::ref_from_prefix(record).map_err(|_| CUT)?;
            let nodes = usize::try_from(header.nr_nodes.get())
                .ok()
                .filter(|&used| used <= generation.max_nodes())
                .and_then(|used| slots.get(..used * OldNodeRecord::LEN))
                .ok_or(Malformed::new(
                    "epoch log",
                    "it names more nodes than it holds",
                ))?;
            Ok((header.into(), generation.parse_nodes(nodes)?))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::{ObjectIndex, Vid};
    use crate::{RequestFlags, ResponseBody};

    /// An answer to STAT_CLUSTER.
    fn answer(code: ResultCode, data_length: u32) -> ResponseHeader {
        let flags = RequestFlags::empty();
        let request = RequestHeader::new(Opcode::StatCluster, flags, 0, RequestBody::NONE);
        ResponseHeader::answer(&request, 0, data_length, ResponseBody::result(code))
    }

    /// Detects a sheep that has version `proto_ver`, and gives `lengths` by the buffer.
    fn detect(proto_ver: u8, code: ResultCode, lengths: [u32; 2]) -> (Detection, Vec<Probe>) {
        let (mut detection, mut probes) = (Detection::START, Vec::new());
        while let Detection::Ask(probe) = detection {
            probes.push(probe);
            let [short, long] = lengths;
            let len = if probe.max_response_len == SHORT_PROBE {
                short
            } else {
                long
            };
            let answer = if probe.proto_ver == proto_ver {
                answer(code, len)
            } else {
                answer(ResultCode::VerMismatch, 0)
            };
            detection = Detection::next(probe, &answer);
        }
        (detection, probes)
    }

    #[test]
    fn detection_gives_the_generation_in_every_state_of_a_cluster() {
        use ResultCode::{Success, WaitForFormat, WaitForJoin};
        let known = Detection::Known;
        for (proto_ver, code, lengths, expected) in [
            (8, WaitForFormat, [0, 0], known(Generation::V0_7)),
            (8, Success, [0, 0], known(Generation::V0_7)),
            (8, WaitForJoin, [0, 0], known(Generation::V0_7)),
            (9, WaitForFormat, [0, 0], Detection::Undecided),
            (9, Success, [0, LONG_PROBE], known(Generation::V0_8)),
            (9, WaitForJoin, [0, LONG_PROBE], known(Generation::V0_8)),
            (9, Success, [48, 48], known(Generation::V0_9)),
            (9, WaitForJoin, [48, 48], known(Generation::V0_9)),
            // It joined between the two.
            (9, Success, [0, 96], known(Generation::V0_9)),
            (10, WaitForFormat, [0, 0], known(Generation::V1_0)),
            (10, Success, [48, 48], known(Generation::V1_0)),
            (7, Success, [48, 48], Detection::Unknown),
            (11, Success, [48, 48], Detection::Unknown),
        ] {
            let (detection, _) = detect(proto_ver, code, lengths);
            assert_eq!(
                detection, expected,
                "version {proto_ver}, {code}, {lengths:?}"
            );
        }
    }

    #[test]
    fn detection_never_asks_for_a_newer_version_first() {
        for proto_ver in 0..16 {
            let (_, probes) = detect(proto_ver, ResultCode::Success, [48, 48]);
            assert!(
                probes.is_sorted_by_key(|probe| probe.proto_ver),
                "{probes:?}"
            );
            let asked_beyond = probes.iter().filter(|probe| probe.proto_ver > proto_ver);
            assert!(proto_ver < 8 || asked_beyond.count() == 0, "{probes:?}");
        }
    }

    #[test]
    fn check_refuses_what_reaches_past_the_end_of_an_object() {
        let vid = Vid::new(7).unwrap();
        let inode = Oid::inode(vid);
        let data = Oid::data(vid, ObjectIndex(1));
        let attribute = Oid::attribute(vid, 1);
        for (generation, oid, len) in [
            (Generation::V0_7, inode, 4_198_968),
            (Generation::V0_8, inode, 4_198_976),
            (Generation::V0_9, inode, 12_587_576),
            (Generation::V1_0, inode, 12_587_576),
            (Generation::V0_7, data, 4 << 20),
            (Generation::V0_9, data, 4 << 20),
            (Generation::V0_8, Oid::btree_node(vid, 1), 4 << 20),
            (Generation::V0_7, attribute, 66_320),
            (Generation::V1_0, attribute, 66_320),
        ] {
            let body = |offset: u32| {
                RequestBody::Object(crate::ObjectRequest {
                    oid: oid.raw().into(),
                    offset: offset.into(),
                    ..crate::ObjectRequest::default()
                })
            };
            let check = |offset, len| generation.check(Opcode::ReadObj, &body(offset), len);
            assert_eq!(check(0, len), Ok(()), "{oid} on {generation}");
            assert_eq!(check(len - 8, 8), Ok(()), "{oid} on {generation}");
            for (offset, len) in [(0, len + 1), (len - 7, 8), (len, 1), (u32::MAX, 1)] {
                assert!(check(offset, len).is_err(), "{oid} on {generation}");
            }
        }
    }

    #[test]
    fn check_refuses_fields_that_a_generation_reads_as_something_else() {
        let new = |copies, copy_policy, store_policy, block_size_shift| {
            RequestBody::Vdi(VdiRequest {
                copies,
                copy_policy,
                store_policy,
                block_size_shift,
                ..VdiRequest::default()
            })
        };
        let check = |generation: Generation, body| generation.check(Opcode::NewVdi, &body, 0);
        for (body, refused_by) in [
            (new(0, 0, 0, 0), &[][..]),
            (new(8, 0, 0, 0), &[]),
            (new(9, 0, 0, 0), &[Generation::V0_7]),
            (new(3, 0x11, 0, 0), &[Generation::V0_7]),
            (new(2, 0, 1, 0), &[Generation::V0_7]),
            (new(2, 0, 0, 22), &Generation::ALL[..3]),
        ] {
            for generation in Generation::ALL {
                assert_eq!(
                    check(generation, body).is_err(),
                    refused_by.contains(&generation),
                    "{body:?} on {generation}"
                );
            }
        }
    }

    #[test]
    fn cluster_info_of_0_9_has_the_store_at_28() {
        let mut payload = [0; 48];
        (payload[0], payload[20]) = (9, 1);
        payload[28..33].copy_from_slice(b"plain");
        let (header, nodes) = Generation::V0_9.parse_cluster_info(&payload).unwrap();
        assert_eq!(
            (header.store(), header.status, nodes.len()),
            (&b"plain"[..], 1, 0)
        );
        assert_eq!(
            Generation::V0_9.cluster_info_bytes(header).as_bytes(),
            payload
        );
        let newest = Generation::V1_0.cluster_info_bytes(header);
        assert_eq!(&newest.as_bytes()[25..30], b"plain");
    }

    #[test]
    fn room_for_children_ends_before_0_9_with_the_last_slot() {
        for generation in Generation::ALL {
            let mut header = InodeHeader::zeroed();
            header.as_mut_bytes()[568..].fill(7);
            let is_limited = matches!(generation, Generation::V0_7 | Generation::V0_8);
            assert_eq!(generation.has_room_for_child(&header), !is_limited);
            header.as_mut_bytes()[4660..].fill(0);
            assert!(generation.has_room_for_child(&header));
        }
    }

    #[test]
    fn access_lists_are_told_from_children() {
        let mut bytes = [0; size_of::<InodeHeader>()];
        // A child with an odd VID, or the mark of an access list.
        bytes[592] = 1;
        let marked = InodeHeader::read_from_bytes(&bytes).unwrap();
        bytes[592] = 2;
        let other = InodeHeader::read_from_bytes(&bytes).unwrap();
        for generation in Generation::ALL {
            let is_list = generation.is_access_list(&marked);
            assert_eq!(is_list, generation == Generation::V1_0, "{generation}");
            assert!(!generation.is_access_list(&other), "{generation}");
            assert!(!generation.is_access_list(&InodeHeader::zeroed()));
        }
    }

    #[test]
    fn names_of_generations_parse() {
        for generation in Generation::ALL {
            assert_eq!(generation.to_string().parse(), Ok(generation));
        }
        assert_eq!("0.6".parse::<Generation>(), Err(UnknownGeneration));
    }

    #[test]
    fn vdi_states_have_the_length_of_their_generation() {
        let mut state = <VdiState as zerocopy::FromZeros>::new_zeroed();
        state.vid = 0x20609.into();
        (state.nr_copies, state.snapshot, state.copy_policy) = (2, 1, 0x21);
        state.lock_state = 1.into();
        for generation in Generation::ALL {
            let mut payload = Vec::new();
            generation.push_vdi_state(&state, &mut payload);
            assert_eq!(payload.len(), generation.vdi_state_len(), "{generation}");
            assert_eq!(payload[..6], [9, 6, 2, 0, 2, 1], "{generation}");
        }
        let mut payload = Vec::new();
        Generation::V0_9.push_vdi_state(&state, &mut payload);
        assert_eq!(payload[6..12], [0x21, 0, 1, 0, 0, 0]);
    }

    #[test]
    fn opcodes_gained_later_are_not_counted_on() {
        for generation in Generation::ALL {
            for opcode in (0..=u8::MAX).filter_map(|raw| Opcode::try_from(raw).ok()) {
                assert!(
                    !generation.gains_opcode(opcode) || !generation.has_opcode(opcode),
                    "{opcode} on {generation}"
                );
            }
        }
    }
}
