//! The Sheepdog wire protocol: what the bytes mean.
//!
//! ```text
//!  48-byte header            payload
//! +----------------+----------------------------------+
//! | RequestHeader  |  VdiName, index entries, data ...  |  client -> sheep
//! | ResponseHeader |  InodeHeader, NodeRecord, data ... |  sheep -> client
//! +----------------+----------------------------------+
//! ```
//!
//! All integers are little endian. Wire structures are `zerocopy` types over
//! unaligned little-endian fields, so they can be read from and written to any
//! byte slice; [`decoder`] splits a stream into frames. Constants and layouts
//! are those of the 1.0 series unless [`generation`] says otherwise; each names the
//! section of the protocol description, or the C structure, it was taken from.
//!
//! This crate knows no sockets, clocks, files or memory limits of its own, and
//! nothing in it panics on bytes that came from a network.

pub mod attribute;
pub mod btree;
pub mod cache_info;
pub mod cluster;
pub mod decoder;
pub mod flags;
pub mod generation;
pub mod hash;
pub mod header;
pub mod id;
pub mod inode;
pub mod limits;
pub mod name;
pub mod node;
pub mod opcode;
pub mod placement;
pub mod redundancy;
pub mod result_code;
pub mod statistics;
pub mod vdi_state;
pub mod vid_bitmap;

pub use flags::{ClusterFlags, RequestFlags};
pub use generation::{Generation, Unsupported};
pub use header::{
    CheckpointRequest, ClusterDefaultResponse, ClusterRequest, CoherenceRequest, ForwardRequest,
    HashResponse, NodeResponse, ObjectRequest, ObjectResponse, ReferenceRequest, RequestBody,
    RequestHeader, ResponseBody, ResponseHeader, VdiRequest, VdiResponse, VdiStateRequest,
};
pub use id::{Epoch, ObjectIndex, ObjectKind, Oid, Vid};
pub use inode::InodeHeader;
pub use name::{SnapshotTag, VdiName};
pub use opcode::{Opcode, RequestShape, ResponseShape, UnknownOpcode};
pub use redundancy::Redundancy;
pub use result_code::{ResultCode, Retry};

/// A payload that is not what its opcode promises.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("malformed {what}: {why}")]
pub struct Malformed {
    /// The structure that was expected.
    pub what: &'static str,
    /// What is wrong with the bytes.
    pub why: &'static str,
}

impl Malformed {
    pub(crate) const fn new(what: &'static str, why: &'static str) -> Self {
        Self { what, why }
    }
}
