//! The operation-dependent 32-byte tail of a header, one struct per shape.

use std::mem::size_of;

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned, transmute};

use crate::flags::ClusterFlags;

/// Bytes of the operation-dependent tail of a header.
pub const BODY_LEN: usize = 32;

/// Declares a 32-byte header tail and checks its size.
macro_rules! body {
    ($(#[$meta:meta])* $name:ident { $($(#[$field_meta:meta])* $field:ident: $type:ty,)+ }) => {
        $(#[$meta])*
        #[derive(
            Clone, Copy, Debug, Default, PartialEq, Eq,
            FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
        )]
        #[repr(C)]
        pub struct $name {
            $($(#[$field_meta])* pub $field: $type,)+
        }

        const _: () = assert!(size_of::<$name>() == BODY_LEN);

        impl From<[u8; BODY_LEN]> for $name {
            fn from(bytes: [u8; BODY_LEN]) -> Self {
                transmute!(bytes)
            }
        }

        impl From<$name> for [u8; BODY_LEN] {
            fn from(body: $name) -> Self {
                transmute!(body)
            }
        }
    };
}

body! {
    /// Parameters of object I/O.
    ObjectRequest {
        /// The object.
        oid: U64,
        /// Source object when COW is set.
        cow_oid: U64,
        /// Overrides the VDI's redundancy: send 0 (protocol 7.3).
        copies: u8,
        /// Send 0.
        copy_policy: u8,
        /// Between sheep.
        ec_index: u8,
        /// Unused.
        reserved: u8,
        /// Epoch an inter-node request is about.
        tgt_epoch: U32,
        /// Byte offset in the object.
        offset: U32,
        /// Padding.
        pad: U32,
    }
}

body! {
    /// Parameters of VDI operations.
    VdiRequest {
        /// Bytes of the volume.
        vdi_size: U64,
        /// Base of a snapshot or clone; the VDI to release.
        base_vdi_id: U32,
        /// Replicas or strips; 0 for the cluster's default.
        copies: u8,
        /// Raw copy policy, see [`Redundancy`](crate::Redundancy).
        copy_policy: u8,
        /// 1 for a hypervolume.
        store_policy: u8,
        /// Object size as a power of two; 0 for the cluster's default.
        block_size_shift: u8,
        /// Snapshot id to look for, or 1 to make a snapshot.
        snapid: U32,
        /// Kind of lock: 0 normal, 1 shared.
        lock_type: U32,
        /// Unused.
        pad: U64,
    }
}

body! {
    /// Parameters of MAKE_FS, STAT_CLUSTER and ALTER_CLUSTER_COPY.
    ClusterRequest {
        /// Unused.
        oid: U64,
        /// Creation time of the cluster: seconds in the high half, nanoseconds in the low.
        ctime: U64,
        /// Default replicas or strips; 0 for 3.
        copies: u8,
        /// Raw default copy policy.
        copy_policy: u8,
        /// Raw [`ClusterFlags`].
        cluster_flags: U16,
        /// Unused.
        tag: U32,
        /// Node slots in each epoch record asked for.
        nodes_nr: U32,
        /// Default object size as a power of two; 0 for 22.
        block_size_shift: u8,
        /// Unused.
        reserved: [u8; 3],
    }
}

impl ClusterRequest {
    /// The cluster flags, unknown bits included.
    pub fn flags(&self) -> ClusterFlags {
        ClusterFlags::from_bits_retain(self.cluster_flags.get())
    }
}

body! {
    /// Parameters of NOTIFY_VDI_ADD and ALTER_VDI_COPY.
    VdiStateRequest {
        /// VDI before the change.
        old_vid: U32,
        /// VDI after the change.
        new_vid: U32,
        /// Replicas or strips.
        copies: u8,
        /// Whether the VID becomes used.
        set_bitmap: u8,
        /// Raw copy policy.
        copy_policy: u8,
        /// Object size as a power of two.
        block_size_shift: u8,
        /// Unused.
        pad: [u8; 20],
    }
}

body! {
    /// Parameters of DECREF_OBJ and DECREF_PEER.
    ReferenceRequest {
        /// The data object.
        oid: U64,
        /// Generation of the reference.
        generation: U32,
        /// References that go.
        count: U32,
        /// Unused.
        pad: [u8; 16],
    }
}

body! {
    /// Parameters of REPAIR_REPLICA.
    ForwardRequest {
        /// The object.
        oid: U64,
        /// IPv6 address, or IPv4 in the last four bytes.
        addr: [u8; 16],
        /// TCP port.
        port: U16,
        /// Unused.
        pad: [u8; 6],
    }
}

body! {
    /// Parameters of INODE_COHERENCE.
    CoherenceRequest {
        /// The VDI.
        vid: U32,
        /// Whether the sender's copy becomes valid.
        validate: U32,
        /// Unused.
        pad: [u8; 24],
    }
}

body! {
    /// Parameters of VDI_STATE_CHECKPOINT_CTL.
    CheckpointRequest {
        /// Whether to fetch (1) or to drop (0) the checkpoint.
        get: U32,
        /// Epoch of the checkpoint.
        epoch: U32,
        /// The VDI.
        vid: U32,
        /// Unused.
        pad: [u8; 20],
    }
}

body! {
    /// Results of object I/O.
    ObjectResponse {
        /// Raw result code.
        result: U32,
        /// 0 in the 1.0 series.
        copies: u8,
        /// Unused.
        reserved: [u8; 3],
        /// Bytes of zeros that servers 0.5.3 to 0.7 cut off in front (protocol 7.2).
        offset: U64,
        /// Unused.
        pad: [u8; 16],
    }
}

impl ObjectResponse {
    /// Offset of the trimmed-bytes field from the start of this body.
    pub const OFFSET_FIELD: usize = std::mem::offset_of!(Self, offset);
}

body! {
    /// Results of VDI operations.
    VdiResponse {
        /// Raw result code.
        result: U32,
        /// Unused.
        reserved: U32,
        /// The VDI that was found or made.
        vdi_id: U32,
        /// Attribute id (GET_VDI_ATTR).
        attr_id: U32,
        /// Replicas or strips.
        copies: u8,
        /// Object size as a power of two.
        block_size_shift: u8,
        /// Unused.
        pad: [u8; 14],
    }
}

body! {
    /// Results of GET_NODE_LIST and STAT_SHEEP.
    NodeResponse {
        /// Raw result code.
        result: U32,
        /// Node records in the payload.
        nr_nodes: U32,
        /// Unused.
        pad: U64,
        /// Bytes of the asked node's store.
        store_size: U64,
        /// Free bytes of the asked node's store.
        store_free: U64,
    }
}

body! {
    /// Result of GET_HASH.
    HashResponse {
        /// Raw result code.
        result: U32,
        /// Unused.
        pad: U32,
        /// SHA-1 of the object.
        digest: [u8; 20],
        /// Unused.
        tail: U32,
    }
}

body! {
    /// Result of GET_CLUSTER_DEFAULT; all 0 before the cluster is formatted.
    ClusterDefaultResponse {
        /// Raw result code.
        result: U32,
        /// Replicas or strips.
        copies: u8,
        /// Raw copy policy.
        copy_policy: u8,
        /// Object size as a power of two.
        block_size_shift: u8,
        /// Unused.
        pad: [u8; 25],
    }
}
