//! The 48-byte headers and the shapes of their 32-byte tails.
//!
//! Source: protocol 1.2 and 1.4; `struct sd_req` and `struct sd_rsp` in
//! sheepdog's `include/sheepdog_proto.h` and `include/internal_proto.h`.

mod body;
mod tail;

use std::mem::size_of;

use zerocopy::little_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

pub use self::body::{RequestBody, ResponseBody};
pub use self::tail::{
    BODY_LEN, CheckpointRequest, ClusterDefaultResponse, ClusterRequest, CoherenceRequest,
    ForwardRequest, HashResponse, NodeResponse, ObjectRequest, ObjectResponse, ReferenceRequest,
    VdiRequest, VdiResponse, VdiStateRequest,
};
use crate::flags::RequestFlags;
use crate::limits::{HEADER_LEN, NEWEST_PROTO_VER, PUBLIC_PROTO_VER};
use crate::opcode::{Opcode, RequestShape, ResponseShape};
use crate::result_code::ResultCode;

/// Header of a request.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(C)]
pub struct RequestHeader {
    /// Protocol version; it depends on the opcode and the generation of the sheep.
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
    /// A header for `opcode` with its version in 1.0, epoch 0 and id 0.
    pub fn new(opcode: Opcode, flags: RequestFlags, data_length: u32, body: RequestBody) -> Self {
        Self {
            proto_ver: if opcode.is_public() {
                PUBLIC_PROTO_VER
            } else {
                NEWEST_PROTO_VER
            },
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
