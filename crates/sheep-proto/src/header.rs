//! The 48-byte headers and the shapes of their 32-byte tails.
//!
//! Source: protocol 1.2 and 1.4; `struct sd_req` and `struct sd_rsp` in
//! sheepdog's `include/sheepdog_proto.h` and `include/internal_proto.h`.

mod body;

use std::mem::size_of;

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned, transmute};

pub use self::body::{RequestBody, ResponseBody};
use crate::flags::{ClusterFlags, RequestFlags};
use crate::limits::HEADER_LEN;
use crate::opcode::{Opcode, RequestShape, ResponseShape};
use crate::result_code::ResultCode;

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

/// Header of a request.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(C)]
pub struct RequestHeader {
    /// Protocol version, see [`Opcode::proto_ver`].
    pub proto_ver: u8,
    /// Raw opcode; parse with [`Opcode::try_from`].
    pub opcode: u8,
    /// Raw [`RequestFlags`].
    pub flags: U16,
    /// Membership epoch; a gateway overwrites it, clients send 0.
    pub epoch: U32,
    /// Chosen by the client, copied into the response.
    pub id: U32,
    /// Payload bytes that follow (with WRITE), or that the client is ready to receive.
    pub data_length: U32,
    /// Operation parameters; see [`RequestHeader::body`].
    pub tail: [u8; BODY_LEN],
}

const _: () = assert!(size_of::<RequestHeader>() == HEADER_LEN);

impl RequestHeader {
    /// A header for `opcode` with its version, epoch 0 and id 0.
    pub fn new(opcode: Opcode, flags: RequestFlags, data_length: u32, body: RequestBody) -> Self {
        Self {
            proto_ver: opcode.proto_ver(),
            opcode: opcode as u8,
            flags: flags.bits().into(),
            epoch: U32::ZERO,
            id: U32::ZERO,
            data_length: data_length.into(),
            tail: body.into(),
        }
    }

    /// The flags, unknown bits included.
    pub fn flags(&self) -> RequestFlags {
        RequestFlags::from_bits_retain(self.flags.get())
    }

    /// Bytes of payload that follow the header: `data_length` with WRITE, else none.
    pub fn payload_len(&self) -> u32 {
        if self.flags().contains(RequestFlags::WRITE) {
            self.data_length.get()
        } else {
            0
        }
    }

    /// The operation parameters in the shape the opcode gives them.
    pub fn body(&self) -> RequestBody {
        let shape =
            Opcode::try_from(self.opcode).map_or(RequestShape::Plain, Opcode::request_shape);
        RequestBody::new(shape, self.tail)
    }
}

/// Header of a response.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(C)]
pub struct ResponseHeader {
    /// Always 0.
    pub proto_ver: u8,
    /// The request's opcode.
    pub opcode: u8,
    /// Always 0.
    pub flags: U16,
    /// The server's current epoch.
    pub epoch: U32,
    /// The request's id.
    pub id: U32,
    /// Payload bytes that follow, whatever the result is.
    pub data_length: U32,
    /// Result code and operation results; see [`ResponseHeader::body`].
    pub tail: [u8; BODY_LEN],
}

const _: () = assert!(size_of::<ResponseHeader>() == HEADER_LEN);

impl ResponseHeader {
    /// The answer to `request`: its opcode and id, `body` and the length of the payload.
    pub fn answer(
        request: &RequestHeader,
        epoch: u32,
        data_length: u32,
        body: ResponseBody,
    ) -> Self {
        Self {
            proto_ver: 0,
            opcode: request.opcode,
            flags: U16::ZERO,
            epoch: epoch.into(),
            id: request.id,
            data_length: data_length.into(),
            tail: body.into(),
        }
    }

    /// The result code. When it is not `Success` the rest of the body is meaningless.
    pub fn result(&self) -> ResultCode {
        let [a, b, c, d, ..] = self.tail;
        ResultCode::from(u32::from_le_bytes([a, b, c, d]))
    }

    /// The operation results in the shape the opcode gives them.
    pub fn body(&self) -> ResponseBody {
        let shape =
            Opcode::try_from(self.opcode).map_or(ResponseShape::Plain, Opcode::response_shape);
        ResponseBody::new(shape, self.tail)
    }
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
