//! The tail of a header in whichever shape its operation gives it.

use super::tail::{
    BODY_LEN, CheckpointRequest, ClusterDefaultResponse, ClusterRequest, CoherenceRequest,
    ForwardRequest, HashResponse, NodeResponse, ObjectRequest, ObjectResponse, ReferenceRequest,
    VdiRequest, VdiResponse, VdiStateRequest,
};
use crate::opcode::{RequestShape, ResponseShape};
use crate::result_code::ResultCode;

/// The operation parameters of a request, in their shape.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RequestBody {
    /// Object I/O.
    Object(ObjectRequest),
    /// VDI operations.
    Vdi(VdiRequest),
    /// Cluster-wide operations.
    Cluster(ClusterRequest),
    /// Changes of a VDI's state.
    VdiState(VdiStateRequest),
    /// Reference counting.
    Reference(ReferenceRequest),
    /// Requests that name a node.
    Forward(ForwardRequest),
    /// Inode coherence.
    Coherence(CoherenceRequest),
    /// Checkpoints.
    Checkpoint(CheckpointRequest),
    /// No parameters are known; the bytes as they came.
    Plain([u8; BODY_LEN]),
}

impl RequestBody {
    /// No parameters at all.
    pub const NONE: Self = Self::Plain([0; BODY_LEN]);

    /// Reads `tail` in the given shape.
    pub fn new(shape: RequestShape, tail: [u8; BODY_LEN]) -> Self {
        match shape {
            RequestShape::Object => Self::Object(tail.into()),
            RequestShape::Vdi => Self::Vdi(tail.into()),
            RequestShape::Cluster => Self::Cluster(tail.into()),
            RequestShape::VdiState => Self::VdiState(tail.into()),
            RequestShape::Reference => Self::Reference(tail.into()),
            RequestShape::Forward => Self::Forward(tail.into()),
            RequestShape::Coherence => Self::Coherence(tail.into()),
            RequestShape::Checkpoint => Self::Checkpoint(tail.into()),
            RequestShape::Plain => Self::Plain(tail),
        }
    }
}

impl From<RequestBody> for [u8; BODY_LEN] {
    fn from(body: RequestBody) -> Self {
        match body {
            RequestBody::Object(body) => body.into(),
            RequestBody::Vdi(body) => body.into(),
            RequestBody::Cluster(body) => body.into(),
            RequestBody::VdiState(body) => body.into(),
            RequestBody::Reference(body) => body.into(),
            RequestBody::Forward(body) => body.into(),
            RequestBody::Coherence(body) => body.into(),
            RequestBody::Checkpoint(body) => body.into(),
            RequestBody::Plain(bytes) => bytes,
        }
    }
}

/// The operation results of a response, in their shape.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ResponseBody {
    /// Object I/O.
    Object(ObjectResponse),
    /// VDI operations.
    Vdi(VdiResponse),
    /// Facts about a node.
    Node(NodeResponse),
    /// An object's digest.
    Hash(HashResponse),
    /// The cluster's defaults.
    ClusterDefault(ClusterDefaultResponse),
    /// Only the result code is known; the bytes as they came.
    Plain([u8; BODY_LEN]),
}

impl ResponseBody {
    /// A body that says nothing but `code`.
    pub fn result(code: ResultCode) -> Self {
        let mut bytes = [0; BODY_LEN];
        bytes[..4].copy_from_slice(&u32::from(code).to_le_bytes());
        Self::Plain(bytes)
    }

    /// Reads `tail` in the given shape.
    pub fn new(shape: ResponseShape, tail: [u8; BODY_LEN]) -> Self {
        match shape {
            ResponseShape::Object => Self::Object(tail.into()),
            ResponseShape::Vdi => Self::Vdi(tail.into()),
            ResponseShape::Node => Self::Node(tail.into()),
            ResponseShape::Hash => Self::Hash(tail.into()),
            ResponseShape::ClusterDefault => Self::ClusterDefault(tail.into()),
            ResponseShape::Plain => Self::Plain(tail),
        }
    }
}

impl From<ResponseBody> for [u8; BODY_LEN] {
    fn from(body: ResponseBody) -> Self {
        match body {
            ResponseBody::Object(body) => body.into(),
            ResponseBody::Vdi(body) => body.into(),
            ResponseBody::Node(body) => body.into(),
            ResponseBody::Hash(body) => body.into(),
            ResponseBody::ClusterDefault(body) => body.into(),
            ResponseBody::Plain(bytes) => bytes,
        }
    }
}
