//! Nodes as they travel, each under an address that the client can use.

use std::net::SocketAddr;

use sheep_proto::Generation;
use sheep_proto::node::NodeRecord;
use sheep_proto::vdi_state::NodeId;

use crate::request::Request;
use crate::store::Space;

/// How many nodes there are, as it travels.
pub(crate) fn node_count(nodes: &[SocketAddr]) -> u32 {
    u32::try_from(nodes.len()).expect("each node is a listener of this process")
}

/// The records of some nodes, which all have this space.
pub(crate) fn node_records(
    request: &Request<'_>,
    nodes: &[SocketAddr],
    space: Space,
    generation: Generation,
) -> Vec<NodeRecord> {
    let vnodes = generation.default_vnodes();
    let record = |&node| record(request.reachable(node), vnodes, space);
    nodes.iter().map(record).collect()
}

/// The address of a node in the state of a lock.
pub(crate) fn node_id(request: &Request<'_>, node: SocketAddr) -> NodeId {
    let record = NodeRecord::new(request.reachable(node), 0, 0, 0);
    NodeId {
        addr: record.addr,
        port: record.port,
        io_addr: record.io_addr,
        io_port: record.io_port,
        pad: [0; 4],
    }
}

fn record(address: SocketAddr, vnodes: u16, space: Space) -> NodeRecord {
    let mut record = NodeRecord::new(address, vnodes, 0, space.size);
    // As a sheep that was given no zone: the end of its address.
    let [.., a, b, c, d] = record.addr;
    record.zone = u32::from_le_bytes([a, b, c, d]).into();
    record
}
