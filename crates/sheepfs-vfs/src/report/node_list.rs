//! `node/list`: the nodes of the cluster, as `dog node list` prints them.

use serde::Serialize;
use sheep_client::{Client, ClientError};
use sheep_proto::node::NodeRecord;

use super::json;
use super::nodes::{host_and_port, member_nodes};

const HEADER: &str = "  Id   Host:Port         V-Nodes       Zone\n";

/// The nodes as dog prints them.
///
/// # Errors
/// `Refused(WaitForJoin)` from a sheep that has not joined yet, otherwise as
/// [`Cluster::nodes`](sheep_client::Cluster::nodes).
pub async fn text(client: &Client) -> Result<Vec<u8>, ClientError> {
    Ok(format_text(&member_nodes(client).await?))
}

/// The nodes as JSON.
///
/// # Errors
/// As [`text`].
pub async fn json(client: &Client) -> Result<Vec<u8>, ClientError> {
    Ok(format_json(&member_nodes(client).await?))
}

/// Writes `nodes`, which are in the order of a node list.
///
/// Source: protocol 9.3.
pub fn format_text(nodes: &[NodeRecord]) -> Vec<u8> {
    let mut text = HEADER.to_owned();
    for (id, node) in nodes.iter().enumerate() {
        text += &format!(
            "{id:4}   {:<20}\t{:2}{:11}\n",
            host_and_port(node),
            node.nr_vnodes.get(),
            node.zone.get(),
        );
    }
    text.into_bytes()
}

/// Writes `nodes`, which are in the order of a node list, as JSON.
pub fn format_json(nodes: &[NodeRecord]) -> Vec<u8> {
    let nodes = (0..).zip(nodes).map(|(id, node)| Row {
        id,
        node: NodeFacts::of(node),
    });
    json::document(&List {
        nodes: nodes.collect(),
    })
}

#[derive(Serialize)]
struct List {
    nodes: Vec<Row>,
}

#[derive(Serialize)]
struct Row {
    id: u32,
    #[serde(flatten)]
    node: NodeFacts,
}

/// A node in a document.
#[derive(Serialize)]
pub(super) struct NodeFacts {
    host: String,
    port: u16,
    vnodes: u16,
    zone: u32,
    /// Bytes of the store; 0 in some records of old epochs.
    space: u64,
}

impl NodeFacts {
    pub(super) fn of(node: &NodeRecord) -> Self {
        let address = node.address();
        Self {
            host: address.ip().to_string(),
            port: address.port(),
            vnodes: node.nr_vnodes.get(),
            zone: node.zone.get(),
            space: node.space.get(),
        }
    }
}
