//! Asks a sheep which cluster it is of, and for its nodes.

use sheep_proto::limits::CLUSTER_INFO_LEN;
use sheep_proto::{Generation, Opcode, RequestBody, ResultCode};

use crate::connection::Connection;
use crate::error::ClientError;
use crate::request::{Request, Response};
use crate::topology::Membership;

/// What the sheep reports about its cluster, and its epoch. These queries are answered
/// in every state of a cluster; a refusal leaves what is asked unknown.
///
/// # Errors
/// As [`Connection::request`], and `Malformed`.
pub(crate) async fn ask(connection: &Connection) -> Result<(Membership, u32), ClientError> {
    let generation = connection.detected().generation();
    if generation.has_opcode(Opcode::ClusterInfo) {
        let response = query(connection, Opcode::ClusterInfo, CLUSTER_INFO_LEN).await?;
        let epoch = response.header.epoch.get();
        if response.header.result() != ResultCode::Success {
            return Ok((Membership::default(), epoch));
        }
        let (header, nodes) = generation
            .parse_cluster_info(&response.payload)
            .map_err(|source| response.bad_payload(source))?;
        return Ok((Membership::new(header.ctime.get(), &nodes), epoch));
    }
    let ctime = created_at(connection, generation).await?;
    let response = query(connection, Opcode::GetNodeList, generation.node_list_len()).await?;
    let epoch = response.header.epoch.get();
    if response.header.result() != ResultCode::Success {
        return Ok((Membership::new(ctime, &[]), epoch));
    }
    let nodes = generation
        .parse_nodes(&response.payload)
        .map_err(|source| response.bad_payload(source))?;
    Ok((Membership::new(ctime, &nodes), epoch))
}

/// When the cluster was formatted, from its newest epoch; 0 when it was not.
async fn created_at(connection: &Connection, generation: Generation) -> Result<u64, ClientError> {
    let len = generation.epoch_record_len(0);
    let response = query(connection, Opcode::StatCluster, len).await?;
    let log = generation.parse_epoch_log(&response.payload, 0);
    Ok(match log {
        Ok(log) => log.first().map_or(0, |(newest, _)| newest.ctime.get()),
        // Some refusals have garbage behind them.
        Err(_) if response.header.result() != ResultCode::Success => 0,
        Err(source) => return Err(response.bad_payload(source)),
    })
}

async fn query(
    connection: &Connection,
    opcode: Opcode,
    len: usize,
) -> Result<Response, ClientError> {
    let len = u32::try_from(len).expect("the length is a constant below 1 MiB");
    let request = Request::new(opcode, RequestBody::NONE).with_max_response_len(len);
    connection.request(request).await
}
