//! Questions about the cluster and its nodes, and formatting it.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use sheep_proto::cluster::{ClusterInfoHeader, EpochRecordHeader, parse_epoch_log};
use sheep_proto::header::{ClusterDefaultResponse, ClusterRequest, RequestBody};
use sheep_proto::limits::{
    CLUSTER_INFO_LEN, EPOCH_RECORD_HEADER_LEN, MAX_NODES, MAX_PAYLOAD_LEN, MD_INFO_LEN,
    NODE_LIST_LEN, NODE_RECORD_LEN, RECOVERY_STATE_LEN, STAT_LEN,
};
use sheep_proto::node::NodeRecord;
use sheep_proto::statistics::{MdInfo, RecoveryState, RequestCounters};
use sheep_proto::{ClusterFlags, Malformed, Opcode, Redundancy, ResponseBody, ResultCode};
use zerocopy::{FromZeros, IntoBytes};

use crate::call::{Call, Resend, Response};
use crate::client::Client;
use crate::error::ClientError;
use crate::vdi::{check_redundancy, check_shift, packed_now};

/// How long a question about the cluster waits while no sheep answers: whoever
/// looks at a cluster that is down wants to hear so soon.
pub(crate) const QUERY_PATIENCE: Duration = Duration::from_secs(5);

/// Membership and settings of a cluster.
#[derive(Clone, Debug)]
pub struct ClusterInfo {
    /// Everything but the nodes.
    pub header: ClusterInfoHeader,
    /// The nodes, by address and port.
    pub nodes: Vec<NodeRecord>,
}

/// Status of a cluster and its membership over time.
#[derive(Clone, Debug)]
pub struct ClusterStatus {
    /// `Success` while it runs, `WaitForFormat`, `WaitForJoin`, ...
    pub status: ResultCode,
    /// Its epochs, newest first; empty before it was formatted.
    pub epochs: Vec<EpochRecord>,
}

/// One epoch of a cluster.
#[derive(Clone, Debug)]
pub struct EpochRecord {
    /// Everything but the nodes.
    pub header: EpochRecordHeader,
    /// The members.
    pub nodes: Vec<NodeRecord>,
}

/// Store of one sheep.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StoreSpace {
    /// Bytes in all.
    pub total: u64,
    /// Bytes free.
    pub free: u64,
}

/// What new VDIs get when nothing else is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClusterDefault {
    /// Redundancy; 0 copies before the cluster is formatted.
    pub redundancy: Redundancy,
    /// Object size as a power of two; 0 before the cluster is formatted.
    pub object_shift: u8,
}

/// How to format a cluster.
#[derive(Clone, Copy, Debug)]
pub struct FormatOptions {
    /// Default redundancy of new VDIs.
    pub redundancy: Redundancy,
    /// Default object size of new VDIs as a power of two.
    pub object_shift: u8,
    /// Settings of the cluster.
    pub flags: ClusterFlags,
}

impl Default for FormatOptions {
    /// What `dog cluster format` asks for: three copies, 4 MiB, automatic vnodes.
    fn default() -> Self {
        Self {
            redundancy: Redundancy::Replicated(3),
            object_shift: sheep_proto::limits::DEFAULT_BLOCK_SIZE_SHIFT,
            flags: ClusterFlags::AUTO_VNODES,
        }
    }
}

impl Client {
    /// The live nodes, by address and port; empty while the sheep has not joined.
    ///
    /// # Errors
    /// As [`Client::call`].
    pub async fn nodes(&self) -> Result<Vec<NodeRecord>, ClientError> {
        let response = self.call(query(Opcode::GetNodeList, NODE_LIST_LEN)).await?;
        let nodes = NodeRecord::parse_list(&response.payload)
            .map_err(|source| response.bad_payload(source))?;
        Ok(nodes.to_vec())
    }

    /// Membership and settings; works on an unformatted cluster as well.
    ///
    /// # Errors
    /// As [`Client::call`].
    pub async fn cluster_info(&self) -> Result<ClusterInfo, ClientError> {
        let response = self
            .call(query(Opcode::ClusterInfo, CLUSTER_INFO_LEN))
            .await?;
        let (header, nodes) = ClusterInfoHeader::parse(&response.payload)
            .map_err(|source| response.bad_payload(source))?;
        Ok(ClusterInfo {
            header: *header,
            nodes: nodes.to_vec(),
        })
    }

    /// Status: `Success` while the cluster runs, `WaitForFormat`, `WaitForJoin`, ...
    ///
    /// # Errors
    /// As [`Client::call`]; a status other than running is not an error.
    ///
    /// Source: `STAT_CLUSTER`, protocol 1.10.
    pub async fn status(&self) -> Result<ResultCode, ClientError> {
        Ok(self.ask_epochs(1, 0).await?.header.result())
    }

    /// Status and all epochs, as many as fit in 64 MiB.
    ///
    /// # Errors
    /// As [`Client::call`]; a status other than running is not an error.
    ///
    /// Source: `STAT_CLUSTER`, protocol 8.3.
    pub async fn cluster_status(&self) -> Result<ClusterStatus, ClientError> {
        // The first question is for the number of epochs.
        let newest = self.ask_epochs(1, 0).await?;
        let epochs = usize::try_from(newest.header.epoch.get()).unwrap_or(usize::MAX);
        let mut nodes_nr = 16;
        loop {
            let response = self.ask_epochs(epochs.max(1), nodes_nr).await?;
            if response.header.result() == ResultCode::BufferSmall && nodes_nr < MAX_NODES {
                nodes_nr = (nodes_nr * 4).min(MAX_NODES);
                continue;
            }
            return cluster_status(&response, nodes_nr);
        }
    }

    async fn ask_epochs(&self, epochs: usize, nodes_nr: usize) -> Result<Response, ClientError> {
        let record_len = EPOCH_RECORD_HEADER_LEN + nodes_nr * NODE_RECORD_LEN;
        let records = epochs.min(MAX_PAYLOAD_LEN / record_len);
        let body = ClusterRequest {
            nodes_nr: u32::try_from(nodes_nr).expect("at most 6144").into(),
            ..ClusterRequest::default()
        };
        let want = u32::try_from(records * record_len).expect("at most 64 MiB");
        // Refusals are statuses here, not to be waited for.
        let call = Call::new(Opcode::StatCluster, RequestBody::Cluster(body))
            .wanting(want)
            .with_resend(Resend::WhenLost)
            .with_patience(QUERY_PATIENCE);
        self.ask(call).await
    }

    /// What new VDIs get by default.
    ///
    /// # Errors
    /// As [`Client::call`].
    pub async fn cluster_default(&self) -> Result<ClusterDefault, ClientError> {
        let response = self.call(query(Opcode::GetClusterDefault, 0)).await?;
        let ResponseBody::ClusterDefault(ClusterDefaultResponse {
            copies,
            copy_policy,
            block_size_shift,
            ..
        }) = response.header.body()
        else {
            return Err(response.malformed("cluster default", "another operation's opcode"));
        };
        Ok(ClusterDefault {
            redundancy: Redundancy::from_wire(copies, copy_policy),
            object_shift: block_size_shift,
        })
    }

    /// Store size and free space of one node, asked at its own address.
    ///
    /// # Errors
    /// `Connect` or `Lost` when the node does not answer, otherwise as [`Client::call`].
    pub async fn store_space(&self, node: SocketAddr) -> Result<StoreSpace, ClientError> {
        let response = self.ask_node(node, query(Opcode::StatSheep, 0)).await?;
        match response.header.body() {
            ResponseBody::Node(body) => Ok(StoreSpace {
                total: body.store_size.get(),
                free: body.store_free.get(),
            }),
            _ => Err(response.malformed("node response", "another operation's opcode")),
        }
    }

    /// Disks of one node.
    ///
    /// # Errors
    /// As [`Client::store_space`].
    pub async fn disks(&self, node: SocketAddr) -> Result<Box<MdInfo>, ClientError> {
        let response = self
            .ask_node(node, query(Opcode::MdInfo, MD_INFO_LEN))
            .await?;
        let answered =
            MdInfo::parse(&response.payload).map_err(|source| response.bad_payload(source))?;
        // In place: 257 KiB are too much to pass over a task's stack.
        let mut disks = MdInfo::new_box_zeroed()
            .map_err(|_| response.malformed("disk information", "out of memory"))?;
        disks.as_mut_bytes().copy_from_slice(answered.as_bytes());
        Ok(disks)
    }

    /// Request counters of one node.
    ///
    /// # Errors
    /// As [`Client::store_space`].
    pub async fn request_counters(&self, node: SocketAddr) -> Result<RequestCounters, ClientError> {
        let response = self.ask_node(node, query(Opcode::Stat, STAT_LEN)).await?;
        RequestCounters::parse(&response.payload).map_err(|source| response.bad_payload(source))
    }

    /// Progress of recovery on one node.
    ///
    /// # Errors
    /// As [`Client::store_space`].
    pub async fn recovery_state(&self, node: SocketAddr) -> Result<RecoveryState, ClientError> {
        let response = self
            .ask_node(node, query(Opcode::StatRecovery, RECOVERY_STATE_LEN))
            .await?;
        RecoveryState::parse(&response.payload).map_err(|source| response.bad_payload(source))
    }

    /// Formats the cluster. **Everything on it is gone.**
    ///
    /// # Errors
    /// `Redundancy` or `ObjectSize` for one that no cluster can have,
    /// otherwise as [`Client::call`].
    ///
    /// Source: `MAKE_FS`, protocol 5.5.
    pub async fn format(&self, options: &FormatOptions) -> Result<(), ClientError> {
        check_redundancy(options.redundancy)?;
        check_shift(options.object_shift)?;
        let body = ClusterRequest {
            ctime: packed_now().into(),
            copies: options.redundancy.nr_copies(),
            copy_policy: options.redundancy.copy_policy(),
            cluster_flags: options.flags.bits().into(),
            block_size_shift: options.object_shift,
            ..ClusterRequest::default()
        };
        let call = Call::new(Opcode::MakeFs, RequestBody::Cluster(body))
            .with_payload(Bytes::from_static(b"plain\0"));
        self.call(call).await.map(drop)
    }
}

/// A plain question that may be asked again.
fn query(opcode: Opcode, want: usize) -> Call {
    Call::new(opcode, RequestBody::NONE)
        .wanting(u32::try_from(want).expect("a constant below 4 GiB"))
        .with_resend(Resend::WhenLostOrRefused)
        .with_patience(QUERY_PATIENCE)
}

fn cluster_status(response: &Response, nodes_nr: usize) -> Result<ClusterStatus, ClientError> {
    let nodes_nr = u32::try_from(nodes_nr).expect("at most 6144");
    let status = response.header.result();
    let records = match parse_epoch_log(&response.payload, nodes_nr) {
        Ok(records) => records,
        // Some refusals have garbage behind them.
        Err(Malformed { .. }) if status != ResultCode::Success => Vec::new(),
        Err(source) => return Err(response.bad_payload(source)),
    };
    let epochs = records
        .into_iter()
        .map(|(header, nodes)| EpochRecord {
            header: *header,
            nodes: nodes.to_vec(),
        })
        .collect();
    Ok(ClusterStatus { status, epochs })
}
