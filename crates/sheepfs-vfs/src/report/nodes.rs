//! The member nodes of the cluster, for the reports.

use sheep_client::error::OperationId;
use sheep_client::{Client, ClientError};
use sheep_proto::node::NodeRecord;
use sheep_proto::{Opcode, ResultCode};

/// Lists the member nodes.
///
/// # Errors
/// `Refused(WaitForJoin)` from a sheep that has not joined a cluster yet and
/// knows no node, where dog fails as well (protocol 9.2); otherwise as
/// [`Cluster::nodes`](sheep_client::Cluster::nodes).
pub(super) async fn member_nodes(client: &Client) -> Result<Vec<NodeRecord>, ClientError> {
    let nodes = client.cluster().nodes().await?;
    if nodes.is_empty() {
        return Err(ClientError::Refused {
            operation: OperationId {
                opcode: Opcode::GetNodeList,
                oid: None,
            },
            code: ResultCode::WaitForJoin,
        });
    }
    Ok(nodes)
}

/// `HOST:PORT` as dog prints it: IPv6 addresses without brackets.
pub(super) fn host_and_port(node: &NodeRecord) -> String {
    let address = node.address();
    format!("{}:{}", address.ip(), address.port())
}
