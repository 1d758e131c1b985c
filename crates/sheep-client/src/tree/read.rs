//! Reading the tree of a hypervolume.

use bytes::{Bytes, BytesMut};
use sheep_proto::btree::{self, LeafEntry, Node, NodeHeader, ROOT_OFFSET, RootEntry};
use sheep_proto::inode::object_count;
use sheep_proto::limits::{BTREE_NODE_LEN, DEFAULT_BLOCK_SIZE_SHIFT, INODE_INDEX_LEN};
use sheep_proto::{Malformed, ObjectKind, Oid, Vid};

use super::nodes::{Capacity, Nodes};
use super::repair::RawLeaf;
use crate::error::ClientError;
use crate::inode::{INDEX_READ_LEN, Inode, inode_error};
use crate::object::Objects;
use crate::sender::Sender;

/// How often a tree is read while its writer changes it. A writer that allocates
/// without a pause spoils every second attempt.
const READ_ATTEMPTS: u32 = 64;
/// Bytes read of a node at first: a node that fits into them is read in one
/// request, and a writer cannot change it between its header and its entries.
const FIRST_READ_LEN: usize = 16 << 10;

/// The tree of a hypervolume as the cluster has it.
pub(super) async fn load(sender: &Sender, vid: Vid) -> Result<Nodes, ClientError> {
    for _ in 1..READ_ATTEMPTS {
        match try_load(sender, vid).await {
            Ok(Some(tree)) => return Ok(tree),
            // Parts from before and after a change do not fit together.
            Ok(None) | Err(ClientError::Malformed { .. }) => {}
            Err(error) if error.is_missing_object() => {}
            Err(error) => return Err(error),
        }
    }
    try_load(sender, vid)
        .await?
        .ok_or_else(|| bad_tree(vid, "it changes faster than it can be read"))
}

/// The tree, unless it changed during the read.
async fn try_load(sender: &Sender, vid: Vid) -> Result<Option<Nodes>, ClientError> {
    let header = Inode::new(sender, vid).header().await?;
    let counter = header.btree_counter.get();
    let inode = Oid::inode(vid);
    let root = read_node(sender, vid, inode, ROOT_OFFSET, INODE_INDEX_LEN).await?;
    let (tree, checked) = match parse_node(vid, &root)? {
        Node::Leaf(slots) => {
            check_slots(vid, slots)?;
            let tree = Nodes::from_slots(vid, counter, slots.to_vec(), Capacity::PROTOCOL);
            (tree, size_of::<NodeHeader>())
        }
        Node::Root(entries) => {
            let objects = object_count(header.vdi_size.get(), DEFAULT_BLOCK_SIZE_SHIFT);
            let found = read_leaves(sender, vid, entries, objects).await?;
            let tree = Nodes::from_leaves(vid, counter, found, Capacity::PROTOCOL);
            (tree, root.len())
        }
    };
    let len = u32::try_from(checked).expect("a node has at most 4 MiB");
    let again = Objects::new(sender).read(inode, ROOT_OFFSET, len).await?;
    Ok((again == root[..checked]).then_some(tree))
}

async fn read_leaves(
    sender: &Sender,
    vid: Vid,
    entries: &[RootEntry],
    objects: u64,
) -> Result<Vec<RawLeaf>, ClientError> {
    // A leaf that is being split has its lower half twice.
    let limit = objects.saturating_mul(2);
    let mut total = 0;
    let mut found = Vec::with_capacity(entries.len());
    for entry in entries {
        let oid = Oid::from_raw(entry.oid.get());
        if oid.kind() != Some(ObjectKind::BtreeNode) {
            return Err(bad_tree(vid, "a leaf that is no B-tree node"));
        }
        let node = read_node(sender, vid, oid, 0, BTREE_NODE_LEN).await?;
        let Node::Leaf(slots) = parse_node(vid, &node)? else {
            return Err(bad_tree(vid, "a tree of more than two levels"));
        };
        check_slots(vid, slots)?;
        total += slots.len() as u64;
        if total > limit {
            return Err(bad_tree(vid, "more slots than the volume has objects"));
        }
        found.push(RawLeaf {
            max: entry.max_index.get(),
            oid,
            slots: slots.to_vec(),
        });
    }
    Ok(found)
}

/// Reads the used part of a B-tree node.
async fn read_node(
    sender: &Sender,
    vid: Vid,
    oid: Oid,
    base: u32,
    room: usize,
) -> Result<Bytes, ClientError> {
    let read_part = |offset: usize, len: usize| {
        let offset = u32::try_from(offset).expect("a node has at most 4 MiB");
        let len = u32::try_from(len).expect("a node has at most 4 MiB");
        Objects::new(sender).read(oid, base + offset, len.min(INDEX_READ_LEN))
    };
    let front = read_part(0, room.min(FIRST_READ_LEN)).await?;
    let used = btree::used_len(&front).map_err(|source| inode_error(vid, source))?;
    let used = used.min(room);
    if used <= front.len() {
        return Ok(front.slice(..used));
    }
    let mut node = BytesMut::with_capacity(used);
    node.extend_from_slice(&front);
    while node.len() < used {
        node.extend_from_slice(&read_part(node.len(), used - node.len()).await?);
    }
    Ok(node.freeze())
}

fn parse_node(vid: Vid, bytes: &[u8]) -> Result<Node<'_>, ClientError> {
    Node::parse(bytes).map_err(|source| inode_error(vid, source))
}

fn check_slots(vid: Vid, slots: &[LeafEntry]) -> Result<(), ClientError> {
    let owners_are_vids =
        |slot: &LeafEntry| slot.vid.get() == 0 || Vid::new(slot.vid.get()).is_some();
    if !slots.iter().all(owners_are_vids) {
        return Err(bad_tree(vid, "an owner that is no VID"));
    }
    if !slots.is_sorted_by(|before, after| before.index < after.index) {
        return Err(bad_tree(vid, "slots that are out of order"));
    }
    Ok(())
}

fn bad_tree(vid: Vid, why: &'static str) -> ClientError {
    inode_error(vid, Malformed { what: "index", why })
}
