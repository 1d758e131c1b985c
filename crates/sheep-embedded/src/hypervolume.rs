//! The little a server must know of a hypervolume's index.
//!
//! Clients keep the tree; the server makes the empty root, clears an entry on
//! DISCARD_OBJ, and removes everything with the VDI. Nothing is shared between
//! hypervolumes: snapshots and clones of them are refused, because their leaf
//! objects could not be shared safely.

use std::mem::{offset_of, size_of};

use sheep_proto::btree::{LeafEntry, Node, NodeHeader, encode_leaf, root_lookup};
use sheep_proto::limits::{INODE_HEADER_LEN, INODE_INDEX_LEN};
use sheep_proto::{ObjectIndex, Oid, ResultCode};

use crate::catalogue::Vdi;
use crate::store::{Store, StoreError};

/// The bytes of a tree that names nothing.
pub(crate) fn empty_root() -> Vec<u8> {
    encode_leaf(std::iter::empty())
}

/// Clears the entry of an object and removes the object.
pub(crate) fn discard_in_tree(
    store: &dyn Store,
    vdi: &Vdi,
    index: ObjectIndex,
) -> Result<(), ResultCode> {
    // Alone: a client's own change of the tree must not come in between.
    let state = vdi.write();
    if state.name.is_none() {
        return Err(ResultCode::NoObj);
    }
    let Some((node, offset)) = find_entry(store, vdi, index)? else {
        return Ok(());
    };
    store.write(node, offset, &[0; 4])?;
    store.sync(node)?;
    match store.remove(Oid::data(vdi.vid, index)) {
        Ok(()) | Err(StoreError::NotFound) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// The object that holds an entry's VID, and where.
fn find_entry(
    store: &dyn Store,
    vdi: &Vdi,
    index: ObjectIndex,
) -> Result<Option<(Oid, u64)>, ResultCode> {
    let inode = Oid::inode(vdi.vid);
    let mut bytes = vec![0; INODE_INDEX_LEN];
    store.read(inode, INODE_HEADER_LEN as u64, &mut bytes)?;
    let leaf = match parse(&bytes)? {
        Node::Leaf(leaf) => return Ok(entry_offset(leaf, index, inode, INODE_HEADER_LEN)),
        Node::Root(root) => root_lookup(root, index),
    };
    let Some(leaf) = leaf.filter(|leaf| leaf.vid() == Some(vdi.vid)) else {
        return Ok(None);
    };
    store.read(leaf, 0, &mut bytes)?;
    match parse(&bytes)? {
        Node::Leaf(entries) => Ok(entry_offset(entries, index, leaf, 0)),
        Node::Root(_) => Err(ResultCode::Eio),
    }
}

fn parse(bytes: &[u8]) -> Result<Node<'_>, ResultCode> {
    Node::parse(bytes).map_err(|error| {
        tracing::error!("a client wrote a {error}");
        ResultCode::Eio
    })
}

fn entry_offset(
    leaf: &[LeafEntry],
    index: ObjectIndex,
    node: Oid,
    node_offset: usize,
) -> Option<(Oid, u64)> {
    let at = leaf
        .binary_search_by_key(&index.0, |entry| entry.index.get())
        .ok()?;
    let offset = node_offset
        + size_of::<NodeHeader>()
        + at * size_of::<LeafEntry>()
        + offset_of!(LeafEntry, vid);
    Some((node, offset as u64))
}
