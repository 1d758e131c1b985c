//! What a request asks for, and which shape its header's tail has.

/// Shape of the 32 operation bytes of a request, by opcode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RequestShape {
    /// [`ObjectRequest`](crate::ObjectRequest).
    Object,
    /// [`VdiRequest`](crate::VdiRequest).
    Vdi,
    /// [`ClusterRequest`](crate::ClusterRequest).
    Cluster,
    /// [`VdiStateRequest`](crate::VdiStateRequest).
    VdiState,
    /// [`ReferenceRequest`](crate::ReferenceRequest).
    Reference,
    /// [`ForwardRequest`](crate::ForwardRequest).
    Forward,
    /// [`CoherenceRequest`](crate::CoherenceRequest).
    Coherence,
    /// [`CheckpointRequest`](crate::CheckpointRequest).
    Checkpoint,
    /// Nothing, or nothing that is known.
    Plain,
}

/// Shape of the operation bytes of a successful response, by opcode.
///
/// Every response starts with the result code, whatever its shape.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ResponseShape {
    /// [`ObjectResponse`](crate::ObjectResponse).
    Object,
    /// [`VdiResponse`](crate::VdiResponse).
    Vdi,
    /// [`NodeResponse`](crate::NodeResponse).
    Node,
    /// [`HashResponse`](crate::HashResponse).
    Hash,
    /// [`ClusterDefaultResponse`](crate::ClusterDefaultResponse).
    ClusterDefault,
    /// Only the result code.
    Plain,
}

/// A byte that is no known opcode.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unknown opcode {0:#04x}")]
pub struct UnknownOpcode(pub u8);

/// Declares every opcode once: value, wire name, shapes and meaning.
macro_rules! opcodes {
    ($($variant:ident = $value:literal, $name:literal, $request:ident, $response:ident, $doc:literal;)+) => {
        /// What a request asks of a sheep; the values are fixed by the protocol.
        ///
        /// Source: protocol sections 5.1 to 5.6.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[repr(u8)]
        pub enum Opcode {
            $(#[doc = $doc] $variant = $value,)+
        }

        impl Opcode {
            /// Every opcode, in ascending order of value.
            pub const ALL: &[Self] = &[$(Self::$variant),+];

            /// The name the protocol's documents and traces use.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)+ }
            }

            /// Shape of the request's operation bytes.
            pub const fn request_shape(self) -> RequestShape {
                match self { $(Self::$variant => RequestShape::$request,)+ }
            }

            /// Shape of a successful response's operation bytes.
            pub const fn response_shape(self) -> ResponseShape {
                match self { $(Self::$variant => ResponseShape::$response,)+ }
            }
        }

        impl TryFrom<u8> for Opcode {
            type Error = UnknownOpcode;

            fn try_from(raw: u8) -> Result<Self, UnknownOpcode> {
                match raw {
                    $($value => Ok(Self::$variant),)+
                    _ => Err(UnknownOpcode(raw)),
                }
            }
        }
    };
}

opcodes! {
    CreateAndWriteObj = 0x01, "CREATE_AND_WRITE_OBJ", Object, Object, "Write a range of a new object, replacing any object already there.";
    ReadObj = 0x02, "READ_OBJ", Object, Object, "Read a range of an object.";
    WriteObj = 0x03, "WRITE_OBJ", Object, Object, "Overwrite a range of an existing object.";
    RemoveObj = 0x04, "REMOVE_OBJ", Object, Object, "Remove an object without touching any index.";
    DiscardObj = 0x05, "DISCARD_OBJ", Object, Object, "Clear a data object's index entry and give its space back.";
    NewVdi = 0x11, "NEW_VDI", Vdi, Vdi, "Create, snapshot or clone a VDI.";
    LockVdi = 0x12, "LOCK_VDI", Vdi, Vdi, "Look a VDI up and lock it.";
    ReleaseVdi = 0x13, "RELEASE_VDI", Vdi, Vdi, "Give a lock back.";
    GetVdiInfo = 0x14, "GET_VDI_INFO", Vdi, Vdi, "Look a VDI up by name, tag or snapshot id.";
    ReadVdis = 0x15, "READ_VDIS", Plain, Plain, "Bitmap of the VIDs in use.";
    FlushVdi = 0x16, "FLUSH_VDI", Object, Object, "Flush the object cache of servers before 1.0.";
    DelVdi = 0x17, "DEL_VDI", Vdi, Vdi, "Delete a VDI; from 0.9 on its index must be empty.";
    GetClusterDefault = 0x18, "GET_CLUSTER_DEFAULT", Plain, ClusterDefault, "Redundancy and object size of new VDIs.";
    GetNodeList = 0x82, "GET_NODE_LIST", Plain, Node, "The live nodes of the cluster.";
    MakeFs = 0x84, "MAKE_FS", Cluster, Plain, "Format the cluster.";
    Shutdown = 0x85, "SHUTDOWN", Plain, Plain, "Stop all sheep of the cluster.";
    StatSheep = 0x86, "STAT_SHEEP", Plain, Node, "Store size and free space of the asked node.";
    StatCluster = 0x87, "STAT_CLUSTER", Cluster, Plain, "Cluster status and the log of epochs.";
    GetVdiAttr = 0x89, "GET_VDI_ATTR", Vdi, Vdi, "Find, set or delete an attribute of a VDI.";
    ForceRecover = 0x8a, "FORCE_RECOVER", Plain, Plain, "Start a cluster that waits for lost members.";
    GetStoreList = 0x90, "GET_STORE_LIST", Plain, Plain, "Names of the object stores the sheep was built with.";
    Snapshot = 0x91, "SNAPSHOT", Plain, Plain, "Obsolete.";
    Restore = 0x92, "RESTORE", Plain, Plain, "Obsolete.";
    GetSnapFile = 0x93, "GET_SNAP_FILE", Plain, Plain, "Obsolete.";
    Cleanup = 0x94, "CLEANUP", Plain, Plain, "Remove leftovers of recovery.";
    TraceStatus = 0x95, "TRACE_STATUS", Plain, Plain, "Tracer state.";
    TraceReadBuf = 0x96, "TRACE_READ_BUF", Plain, Plain, "Read the tracer's buffer.";
    StatRecovery = 0x97, "STAT_RECOVERY", Plain, Plain, "Progress of recovery on the asked node.";
    FlushDelCache = 0x98, "FLUSH_DEL_CACHE", Object, Object, "Write back and drop what an object cache has of a VDI; without effect since 1.0.";
    NotifyVdiDel = 0x99, "NOTIFY_VDI_DEL", Vdi, Plain, "Between sheep.";
    KillNode = 0x9a, "KILL_NODE", Plain, Plain, "Stop the asked sheep.";
    TraceEnable = 0x9b, "TRACE_ENABLE", Plain, Plain, "Start a tracer.";
    TraceDisable = 0x9c, "TRACE_DISABLE", Plain, Plain, "Stop a tracer.";
    GetObjList = 0xa1, "GET_OBJ_LIST", Plain, Plain, "Between sheep.";
    GetEpoch = 0xa2, "GET_EPOCH", Object, Plain, "Between sheep.";
    CreateAndWritePeer = 0xa3, "CREATE_AND_WRITE_PEER", Object, Object, "Between sheep.";
    ReadPeer = 0xa4, "READ_PEER", Object, Object, "Between sheep.";
    WritePeer = 0xa5, "WRITE_PEER", Object, Object, "Between sheep.";
    RemovePeer = 0xa6, "REMOVE_PEER", Object, Object, "Between sheep.";
    SetCacheSize = 0xa7, "SET_CACHE_SIZE", Plain, Plain, "Obsolete.";
    EnableRecover = 0xa8, "ENABLE_RECOVER", Plain, Plain, "Turn automatic recovery on.";
    DisableRecover = 0xa9, "DISABLE_RECOVER", Plain, Plain, "Turn automatic recovery off.";
    GetVdiCopies = 0xab, "GET_VDI_COPIES", Plain, Plain, "State of every VDI the sheep knows, locks included.";
    CompleteRecovery = 0xac, "COMPLETE_RECOVERY", Plain, Plain, "Between sheep.";
    FlushNodes = 0xad, "FLUSH_NODES", Plain, Plain, "Obsolete.";
    FlushPeer = 0xae, "FLUSH_PEER", Plain, Plain, "Obsolete.";
    NotifyVdiAdd = 0xaf, "NOTIFY_VDI_ADD", VdiState, Plain, "Between sheep.";
    DeleteCache = 0xb0, "DELETE_CACHE", Object, Object, "Drop a VDI from the object caches of servers before 1.0.";
    MdInfo = 0xb1, "MD_INFO", Plain, Plain, "Disks of the asked node.";
    MdPlug = 0xb2, "MD_PLUG", Plain, Plain, "Add a disk to the asked node.";
    MdUnplug = 0xb3, "MD_UNPLUG", Plain, Plain, "Take a disk from the asked node.";
    GetHash = 0xb4, "GET_HASH", Object, Hash, "SHA-1 of the asked node's copy of an object.";
    Reweight = 0xb5, "REWEIGHT", Plain, Plain, "Recompute the weight of the nodes.";
    GetCacheInfo = 0xb6, "GET_CACHE_INFO", Plain, Plain, "What the object cache of a sheep before 1.0 holds.";
    CachePurge = 0xb7, "CACHE_PURGE", Plain, Plain, "Empty the object cache of a sheep before 1.0.";
    Stat = 0xb8, "STAT", Plain, Plain, "Request counters of the asked node.";
    GetLogLevel = 0xb9, "GET_LOGLEVEL", Plain, Plain, "The asked node's log level.";
    SetLogLevel = 0xba, "SET_LOGLEVEL", Plain, Plain, "Set the asked node's log level.";
    NfsCreate = 0xbb, "NFS_CREATE", Plain, Plain, "Obsolete.";
    NfsDelete = 0xbc, "NFS_DELETE", Plain, Plain, "Obsolete.";
    Exist = 0xbd, "EXIST", Object, Object, "Whether the asked node holds a copy of an object.";
    ClusterInfo = 0xbe, "CLUSTER_INFO", Plain, Plain, "Membership and settings of the cluster.";
    AlterClusterCopy = 0xbf, "ALTER_CLUSTER_COPY", Cluster, Plain, "Change the default number of copies.";
    AlterVdiCopy = 0xc0, "ALTER_VDI_COPY", VdiState, Plain, "Change a VDI's number of copies.";
    DecrefObj = 0xc1, "DECREF_OBJ", Reference, Plain, "Between sheep.";
    DecrefPeer = 0xc2, "DECREF_PEER", Reference, Plain, "Between sheep.";
    PreventInodeUpdate = 0xc3, "PREVENT_INODE_UPDATE", Plain, Plain, "Obsolete.";
    AllowInodeUpdate = 0xc4, "ALLOW_INODE_UPDATE", Plain, Plain, "Obsolete.";
    RepairReplica = 0xc5, "REPAIR_REPLICA", Forward, Plain, "Between sheep.";
    OidsExist = 0xc6, "OIDS_EXIST", Plain, Plain, "Which of the sent object ids are missing.";
    VdiStateCheckpoint = 0xc7, "VDI_STATE_CHECKPOINT_CTL", Checkpoint, Plain, "Between sheep.";
    InodeCoherence = 0xc8, "INODE_COHERENCE", Coherence, Plain, "Between sheep.";
    ReadDelVdis = 0xc9, "READ_DEL_VDIS", Plain, Plain, "Bitmap of the VIDs whose VDI was deleted.";
    GetRecovery = 0xca, "GET_RECOVERY", Plain, Plain, "Recovery throttling settings.";
    SetRecovery = 0xcb, "SET_RECOVERY", Plain, Plain, "Change the recovery throttling.";
    SetVnodes = 0xcc, "SET_VNODES", Plain, Plain, "Change the asked node's vnodes.";
    GetVnodes = 0xcd, "GET_VNODES", Plain, Plain, "The asked node's vnodes.";
}

impl Opcode {
    /// True below 0x80: any client may use it.
    pub const fn is_public(self) -> bool {
        (self as u8) < 0x80
    }

    /// True when a sheep answers it before the cluster is formatted or complete.
    ///
    /// Source: protocol 1.10.
    pub const fn is_forced(self) -> bool {
        matches!(
            self,
            Self::MakeFs
                | Self::Shutdown
                | Self::ForceRecover
                | Self::Cleanup
                | Self::NotifyVdiDel
                | Self::NotifyVdiAdd
                | Self::CompleteRecovery
                | Self::GetStoreList
                | Self::ReadVdis
                | Self::ReadDelVdis
                | Self::GetVdiCopies
                | Self::GetNodeList
                | Self::StatCluster
                | Self::TraceStatus
                | Self::TraceReadBuf
                | Self::TraceEnable
                | Self::TraceDisable
                | Self::KillNode
                | Self::GetLogLevel
                | Self::SetLogLevel
                | Self::Exist
                | Self::OidsExist
                | Self::ClusterInfo
                | Self::GetClusterDefault
                | Self::GetRecovery
                | Self::SetRecovery
        )
    }
}

impl std::fmt::Display for Opcode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn opcode_error_names_unknown_byte() {
        for raw in 0..=u8::MAX {
            match Opcode::try_from(raw) {
                Ok(opcode) => assert_eq!(opcode as u8, raw),
                Err(UnknownOpcode(named)) => assert_eq!(named, raw),
            }
        }
    }
}
