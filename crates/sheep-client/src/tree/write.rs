//! The writes of a plan.

use bytes::Bytes;
use sheep_proto::Oid;

use crate::call::{Call, KeepAlive};
use crate::error::ClientError;
use crate::object::Objects;

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

/// Makes the writes of a plan, each after the one before was answered.
///
/// # Errors
/// As [`Objects::write`] and [`Objects::create`]; nothing is written after the
/// write that failed.
pub async fn apply_writes(
    objects: Objects<'_>,
    writes: Vec<TreeWrite>,
    tokens: &[KeepAlive],
) -> Result<(), ClientError> {
    for write in writes {
        let call = if write.create {
            Call::create_object(write.oid, write.offset, write.data, None)
        } else {
            Call::write_object(write.oid, write.offset, write.data)
        };
        objects.sender.send(call.holding_all(tokens)).await?;
    }
    Ok(())
}
