//! Queries to one node, about what only that node knows.

use std::net::SocketAddr;

use sheep_proto::limits::{MD_INFO_LEN, RECOVERY_STATE_LEN, STAT_LEN};
use sheep_proto::statistics::{MdInfo, RecoveryState, RequestCounters};
use sheep_proto::{Opcode, ResponseBody};
use zerocopy::{FromZeros, IntoBytes};

use crate::error::ClientError;
use crate::query::query;
use crate::sender::Sender;

/// Store of one sheep.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StoreSpace {
    /// Bytes in all.
    pub total: u64,
    /// Bytes free.
    pub free: u64,
}

/// One node of the cluster, asked at its own address; see
/// [`Client::node`](crate::Client::node).
///
/// ```
/// use sheep_client::{Client, ClientConfig};
/// # use sheep_embedded::{Config, Server, StoreKind};
/// # tokio::runtime::Runtime::new()?.block_on(async {
/// # let server = Server::start(Config::new(StoreKind::Memory)).await?;
/// # let address = server.local_address();
/// # let client = Client::connect(ClientConfig::new(address.into())).await?;
/// let space = client.node(address).store_space().await?;
/// assert!(space.free <= space.total);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// # })?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Copy, Debug)]
pub struct Node<'a> {
    sender: &'a Sender,
    address: SocketAddr,
}

impl<'a> Node<'a> {
    pub(crate) fn new(sender: &'a Sender, address: SocketAddr) -> Self {
        Self { sender, address }
    }

    /// Size and free space of its store.
    ///
    /// # Errors
    /// `Connect` or `Lost` when the node does not answer, otherwise those of
    /// [every request](ClientError#every-request).
    pub async fn store_space(self) -> Result<StoreSpace, ClientError> {
        let response = self
            .sender
            .send_to_node(self.address, query(Opcode::StatSheep, 0))
            .await?;
        match response.header.body() {
            ResponseBody::Node(body) => Ok(StoreSpace {
                total: body.store_size.get(),
                free: body.store_free.get(),
            }),
            _ => Err(response.malformed("node response", "another operation's opcode")),
        }
    }

    /// Its disks.
    ///
    /// # Errors
    /// As [`Node::store_space`].
    pub async fn disks(self) -> Result<Box<MdInfo>, ClientError> {
        let response = self
            .sender
            .send_to_node(self.address, query(Opcode::MdInfo, MD_INFO_LEN))
            .await?;
        let answered =
            MdInfo::parse(&response.payload).map_err(|source| response.bad_payload(source))?;
        // In place: 257 KiB are too much to pass over a task's stack.
        let mut disks = MdInfo::new_box_zeroed()
            .map_err(|_| response.malformed("disk information", "out of memory"))?;
        disks.as_mut_bytes().copy_from_slice(answered.as_bytes());
        Ok(disks)
    }

    /// Its request counters.
    ///
    /// # Errors
    /// As [`Node::store_space`].
    pub async fn request_counters(self) -> Result<RequestCounters, ClientError> {
        let response = self
            .sender
            .send_to_node(self.address, query(Opcode::Stat, STAT_LEN))
            .await?;
        RequestCounters::parse(&response.payload).map_err(|source| response.bad_payload(source))
    }

    /// Progress of its recovery.
    ///
    /// # Errors
    /// As [`Node::store_space`].
    pub async fn recovery_state(self) -> Result<RecoveryState, ClientError> {
        let response = self
            .sender
            .send_to_node(
                self.address,
                query(Opcode::StatRecovery, RECOVERY_STATE_LEN),
            )
            .await?;
        RecoveryState::parse(&response.payload).map_err(|source| response.bad_payload(source))
    }
}
