//! `node/info`: the space of each node, as `dog node info` prints it.

use futures_util::{StreamExt as _, stream};
use serde::Serialize;
use sheep_client::node::StoreSpace;
use sheep_client::{Client, ClientError};
use sheep_proto::node::NodeRecord;

use super::human_size::human_size;
use super::json;
use super::node_list::NodeFacts;
use super::nodes::member_nodes;
use super::vdi_list::{PARALLEL, facts, for_each_vdi};
use crate::error::Chain;

const HEADER: &str = "Id\tSize\tUsed\tAvail\tUse%\n";

/// The responses of the nodes.
#[derive(Debug)]
pub struct NodeInfo {
    /// The nodes that answered, in the order of the node list, and the number that dog
    /// gives to each.
    pub answered: Vec<(u32, NodeRecord, StoreSpace)>,
    /// The nodes that did not, and why.
    pub silent: Vec<(NodeRecord, ClientError)>,
    /// Bytes of all working VDIs together; `None` while the cluster waits.
    pub virtual_size: Option<u64>,
}

/// The space of each node as dog prints it.
///
/// A node that does not answer is skipped; while the cluster waits for its
/// format or its nodes, the text is only the header.
///
/// # Errors
/// When no node answers, why the last did not; `Refused(WaitForJoin)` from a
/// sheep that has not joined yet; otherwise as [`Cluster::nodes`](sheep_client::Cluster::nodes) and
/// [`Cluster::list_vids`](sheep_client::Cluster::list_vids).
pub async fn text(client: &Client) -> Result<Vec<u8>, ClientError> {
    Ok(format_text(&query(client).await?))
}

/// The space of each node as JSON, with those that do not answer.
///
/// # Errors
/// As [`text`].
pub async fn json(client: &Client) -> Result<Vec<u8>, ClientError> {
    Ok(format_json(&query(client).await?))
}

/// Queries the nodes.
///
/// # Errors
/// As [`text`].
pub async fn query(client: &Client) -> Result<NodeInfo, ClientError> {
    let counts_silent = client.generation().await?.dog_numbers_silent_nodes();
    let nodes = member_nodes(client).await?;
    let answers: Vec<_> = stream::iter(nodes)
        .map(|node| async move { (node, client.node(node.address()).store_space().await) })
        .buffered(PARALLEL)
        .collect()
        .await;
    let (mut answered, mut silent, mut id) = (Vec::new(), Vec::new(), 0);
    for (node, answer) in answers {
        id += u32::from(answer.is_ok() || counts_silent);
        match answer {
            Ok(space) => answered.push((id - 1, node, space)),
            Err(error) => silent.push((node, error)),
        }
    }
    for (node, error) in &silent {
        tracing::warn!(node = %node.address(), "skipped a node in node/info: {}", Chain(error));
    }
    if answered.is_empty() {
        return match silent.iter().position(|(_, error)| !error.is_not_ready()) {
            Some(failed) => Err(silent.swap_remove(failed).1),
            None => Ok(NodeInfo {
                answered,
                silent,
                virtual_size: None,
            }),
        };
    }
    Ok(NodeInfo {
        answered,
        silent,
        virtual_size: Some(virtual_size(client).await?),
    })
}

async fn virtual_size(client: &Client) -> Result<u64, ClientError> {
    let vdis = for_each_vdi(client, |vid| facts(client, vid)).await?;
    Ok(vdis
        .iter()
        .filter(|vdi| !vdi.is_snapshot())
        .fold(0, |sum, vdi| sum.saturating_add(vdi.size)))
}

/// Writes a row per responsive node; only the header if there is none.
///
/// Source: protocol 9.4.
pub fn format_text(info: &NodeInfo) -> Vec<u8> {
    let mut text = HEADER.to_owned();
    for (id, _, space) in &info.answered {
        text += &row(&format!("{id:2}"), *space);
    }
    if let Some(virtual_size) = info.virtual_size {
        text += &row("Total", total(info));
        text += &format!("\nTotal virtual image size\t{}\n", human_size(virtual_size));
    }
    text.into_bytes()
}

fn row(label: &str, space: StoreSpace) -> String {
    format!(
        "{label}\t{}\t{}\t{}\t{:3}%\n",
        human_size(space.total),
        human_size(used(space)),
        human_size(space.free),
        used_percent(space),
    )
}

fn used(space: StoreSpace) -> u64 {
    space.total.saturating_sub(space.free)
}

/// Used space in percent, without decimals, calculated in doubles as dog does:
/// 29 of 100 bytes are 28%.
#[expect(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a share between 0 and 1"
)]
fn used_percent(space: StoreSpace) -> u8 {
    if space.total == 0 {
        return 0;
    }
    (used(space) as f64 / space.total as f64 * 100.0) as u8
}

fn total(info: &NodeInfo) -> StoreSpace {
    let sum = |part: fn(&StoreSpace) -> u64| {
        info.answered
            .iter()
            .fold(0, |sum: u64, (_, _, space)| sum.saturating_add(part(space)))
    };
    StoreSpace {
        total: sum(|space| space.total),
        free: sum(|space| space.free),
    }
}

/// Writes the responses as JSON, with the unresponsive nodes.
pub fn format_json(info: &NodeInfo) -> Vec<u8> {
    json::document(&Document {
        nodes: info
            .answered
            .iter()
            .map(|(id, node, space)| Row {
                id: *id,
                node: NodeFacts::of(node),
                usage: Usage::of(*space),
            })
            .collect(),
        silent_nodes: info
            .silent
            .iter()
            .map(|(node, error)| Silent {
                node: NodeFacts::of(node),
                error: Chain(error).to_string(),
            })
            .collect(),
        total: Usage::of(total(info)),
        virtual_size: info.virtual_size,
    })
}

#[derive(Serialize)]
struct Document {
    nodes: Vec<Row>,
    silent_nodes: Vec<Silent>,
    total: Usage,
    virtual_size: Option<u64>,
}

#[derive(Serialize)]
struct Row {
    id: u32,
    #[serde(flatten)]
    node: NodeFacts,
    #[serde(flatten)]
    usage: Usage,
}

#[derive(Serialize)]
struct Silent {
    #[serde(flatten)]
    node: NodeFacts,
    error: String,
}

#[derive(Serialize)]
struct Usage {
    size: u64,
    used: u64,
    available: u64,
    used_percent: u8,
}

impl Usage {
    fn of(space: StoreSpace) -> Self {
        Self {
            size: space.total,
            used: used(space),
            available: space.free,
            used_percent: used_percent(space),
        }
    }
}
