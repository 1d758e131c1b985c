//! The writes of a plan.

use bytes::Bytes;
use sheep_proto::Oid;

use crate::error::ClientError;
use crate::object::Objects;
use crate::request::{InFlightToken, Request};

/// A write to an object, one step of a change of an
/// [`IndexTree`](super::IndexTree).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TreeWrite {
    /// The inode, or a B-tree object.
    pub oid: Oid,
    /// Byte offset in it.
    pub offset: u32,
    /// The bytes.
    pub data: Bytes,
    /// Whether the object is made by this write.
    pub create: bool,
}

/// Makes the writes of a plan, each after the response to the one before.
///
/// # Errors
/// As [`Objects::write`] and [`Objects::create`]; nothing is written after the
/// write that failed.
pub async fn apply_writes(
    objects: Objects<'_>,
    writes: Vec<TreeWrite>,
    tokens: &[InFlightToken],
) -> Result<(), ClientError> {
    for write in writes {
        let request = if write.create {
            Request::create_object(write.oid, write.offset, write.data, None)
        } else {
            Request::write_object(write.oid, write.offset, write.data)
        };
        objects.sender.send(request.with_tokens(tokens)).await?;
    }
    Ok(())
}
