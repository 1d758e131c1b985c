//! The cluster as a whole: its state and settings, its VDIs, formatting it.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use sheep_proto::cluster::{ClusterInfoHeader, EpochRecordHeader};
use sheep_proto::generation::{Locking, Unsupported};
use sheep_proto::header::{ClusterDefaultResponse, ClusterRequest, RequestBody, VdiRequest};
use sheep_proto::inode::STORE_POLICY_HYPERVOLUME;
use sheep_proto::limits::{CLUSTER_INFO_LEN, DEFAULT_BLOCK_SIZE_SHIFT, MAX_PAYLOAD_LEN};
use sheep_proto::node::NodeRecord;
use sheep_proto::{
    ClusterFlags, Generation, Malformed, Opcode, Redundancy, ResponseBody, ResultCode, VdiName, Vid,
};
use tokio::time::Instant;

use crate::backoff;
use crate::error::{Chain, ClientError};
use crate::inode::Inode;
use crate::query::{QUERY_TIMEOUT, query, vid_bitmap};
use crate::request::{Request, Response, RetryPolicy};
use crate::sender::Sender;
use crate::vdi::{lookup_request, new_vdi};
use crate::vdi_info::{NewVdi, VdiInfo, VdiSelector, check_redundancy, check_shift, packed_now};

/// Inodes read at the same time while listing.
const LIST_PARALLEL: usize = 32;
/// Nodes asked at the same time whether they know a VDI.
const NODES_PARALLEL: usize = 32;
/// Longest wait for a node to learn of a VDI. It usually takes less than a second.
const KNOWN_TIMEOUT: Duration = Duration::from_secs(30);

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
    /// The generation of its sheep: 0.8 also for one of 0.9 while there is no epoch.
    pub generation: Generation,
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

/// Redundancy and object size of new VDIs by default.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClusterDefault {
    /// Redundancy; 0 copies before the cluster is formatted, and `None` where the
    /// sheep do not say.
    pub redundancy: Option<Redundancy>,
    /// Object size as a power of two; 0 before the cluster is formatted.
    pub object_shift: u8,
}

/// Whether the VDIs of a cluster are locked while they are in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LockSupport {
    /// They are.
    Yes,
    /// The sheep do not say: 0.9.0 and 0.9.1 lock always, without the flag.
    Unknown,
    /// They are not.
    No,
}

/// How to format a cluster.
///
/// ```
/// use sheep_client::cluster::FormatOptions;
/// use sheep_client::proto::Redundancy;
///
/// let options = FormatOptions::default().with_redundancy(Redundancy::Replicated(2));
/// assert_eq!(options.object_shift, 22);
/// ```
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
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
            object_shift: DEFAULT_BLOCK_SIZE_SHIFT,
            flags: ClusterFlags::AUTO_VNODES,
        }
    }
}

impl FormatOptions {
    /// The options with another redundancy.
    #[must_use]
    pub fn with_redundancy(mut self, redundancy: Redundancy) -> Self {
        self.redundancy = redundancy;
        self
    }

    /// The options with objects of `1 << shift` bytes.
    #[must_use]
    pub fn with_object_shift(mut self, shift: u8) -> Self {
        self.object_shift = shift;
        self
    }

    /// The options with more flags.
    #[must_use]
    pub fn with_flags(mut self, flags: ClusterFlags) -> Self {
        self.flags |= flags;
        self
    }
}

/// The cluster as a whole; see [`Client::cluster`](crate::Client::cluster).
///
/// ```
/// use sheep_client::{Client, ClientConfig, ResultCode};
/// # use sheep_embedded::{Config, Server, StoreKind};
/// # tokio::runtime::Runtime::new()?.block_on(async {
/// # let server = Server::start(Config::new(StoreKind::Memory)).await?;
/// # let address = server.local_address();
/// # let client = Client::connect(ClientConfig::new(address.into())).await?;
/// assert_eq!(client.cluster().status().await?, ResultCode::Success);
/// assert_eq!(client.cluster().nodes().await?.len(), 1);
/// assert!(client.cluster().list_vdis().await?.is_empty());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// # })?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Copy, Debug)]
pub struct Cluster<'a> {
    sender: &'a Sender,
}

impl<'a> Cluster<'a> {
    pub(crate) fn new(sender: &'a Sender) -> Self {
        Self { sender }
    }

    /// The live nodes, by address and port; empty while the sheep has not joined.
    ///
    /// # Errors
    /// Those of [every request](ClientError#every-request).
    pub async fn nodes(self) -> Result<Vec<NodeRecord>, ClientError> {
        let generation = self.generation().await?;
        let response = self
            .sender
            .send(query(Opcode::GetNodeList, generation.node_list_len()))
            .await?;
        generation
            .parse_nodes(&response.payload)
            .map_err(|source| response.bad_payload(source))
    }

    /// The generation of the sheep, for a query.
    async fn generation(self) -> Result<Generation, ClientError> {
        self.sender.transport.generation(QUERY_TIMEOUT).await
    }

    /// Waits until every node knows that the working VDI `name` is `vid`, or until it is
    /// another one.
    ///
    /// Nodes learn of a new VDI at different times. Until then a node assumes the default
    /// redundancy of the cluster: it stores a strip of an erasure-coded object as if it
    /// were a copy, and the object cannot be read afterwards. Call this before the first
    /// write to an erasure-coded VDI, and to its new head after a snapshot. A node that
    /// cannot be reached is not waited for.
    ///
    /// # Errors
    /// `UnknownToNode` after 30 seconds, otherwise those of [every
    /// request](ClientError#every-request).
    ///
    /// Source: placement 4, rule 2, and 5.3.
    pub async fn wait_until_known(self, name: &VdiName, vid: Vid) -> Result<(), ClientError> {
        let head = &VdiSelector::working(name.clone());
        let deadline = Instant::now() + KNOWN_TIMEOUT;
        stream::iter(self.nodes().await?)
            .map(|node| self.wait_until_known_to(node.address(), head, vid, deadline))
            .buffer_unordered(NODES_PARALLEL)
            .try_collect()
            .await
    }

    async fn wait_until_known_to(
        self,
        node: SocketAddr,
        head: &VdiSelector,
        vid: Vid,
        deadline: Instant,
    ) -> Result<(), ClientError> {
        let mut attempts = 0;
        loop {
            // A node answers this after it has processed all earlier changes of VDIs.
            let found = self.sender.send_to_node(node, lookup_request(head)).await;
            match found.and_then(|response| response.vid()) {
                Ok(found) if found == vid => return Ok(()),
                Ok(_) => {}
                Err(error) if error.is_missing_vdi() || error.is_not_ready() => {}
                Err(error @ (ClientError::Connect { .. } | ClientError::Lost { .. })) => {
                    tracing::warn!(
                        "not waiting for a node to learn of VDI {vid}: {}",
                        Chain(&error)
                    );
                    return Ok(());
                }
                Err(error) => return Err(error),
            }
            // The node is late, or knows a newer VDI of this name.
            let current = self.sender.send(lookup_request(head)).await?.vid()?;
            if current != vid {
                return Ok(());
            }
            if Instant::now() >= deadline {
                return Err(ClientError::UnknownToNode { vid, node });
            }
            tokio::time::sleep(backoff::pause(attempts)).await;
            attempts += 1;
        }
    }

    /// Membership and settings; works on an unformatted cluster as well.
    ///
    /// # Errors
    /// `Unsupported` before 0.9, otherwise those of [every
    /// request](ClientError#every-request).
    pub async fn info(self) -> Result<ClusterInfo, ClientError> {
        let generation = self.generation().await?;
        let response = self
            .sender
            .send(query(Opcode::ClusterInfo, CLUSTER_INFO_LEN))
            .await?;
        let (header, nodes) = generation
            .parse_cluster_info(&response.payload)
            .map_err(|source| response.bad_payload(source))?;
        Ok(ClusterInfo { header, nodes })
    }

    /// Whether VDIs are locked while they are in use.
    ///
    /// # Errors
    /// Those of [every request](ClientError#every-request).
    pub async fn lock_support(self) -> Result<LockSupport, ClientError> {
        let locking = self.generation().await?.locking();
        if locking == Locking::Never {
            return Ok(LockSupport::No);
        }
        let flags = self.info().await?.header.flags();
        Ok(match locking {
            _ if flags.contains(ClusterFlags::USE_LOCK) => LockSupport::Yes,
            Locking::Maybe => LockSupport::Unknown,
            Locking::AsFormatted | Locking::Never => LockSupport::No,
        })
    }

    /// Status: `Success` while the cluster runs, `WaitForFormat`, `WaitForJoin`, ...
    ///
    /// # Errors
    /// Those of [every request](ClientError#every-request); a status other than
    /// running is not an error.
    ///
    /// Source: `STAT_CLUSTER`, protocol 1.10.
    pub async fn status(self) -> Result<ResultCode, ClientError> {
        let generation = self.generation().await?;
        let response = self.read_status(generation).await?;
        Ok(response.header.result())
    }

    /// Status and all epochs, as many as fit in 64 MiB.
    ///
    /// # Errors
    /// Those of [every request](ClientError#every-request); a status other than
    /// running is not an error.
    ///
    /// Source: `STAT_CLUSTER`, protocol 8.3.
    pub async fn history(self) -> Result<ClusterStatus, ClientError> {
        // The first request is for the number of epochs.
        let newest = self.read_status(self.generation().await?).await?;
        let epochs = usize::try_from(newest.header.epoch.get()).unwrap_or(usize::MAX);
        // It may have shown that the cluster was formatted, which tells 0.8 from 0.9.
        let generation = self.generation().await?;
        let most = generation.max_nodes();
        let mut nodes_nr = 16;
        loop {
            let response = self
                .read_epochs(generation, epochs.max(1), nodes_nr)
                .await?;
            if response.header.result() == ResultCode::BufferSmall && nodes_nr < most {
                nodes_nr = (nodes_nr * 4).min(most);
                continue;
            }
            return cluster_status(generation, &response, nodes_nr);
        }
    }

    /// Asks for the status, with as little of the history as there can be.
    async fn read_status(self, generation: Generation) -> Result<Response, ClientError> {
        let epochs = usize::from(generation.sizes_epoch_records());
        self.read_epochs(generation, epochs, 0).await
    }

    /// Asks for the status and the newest `epochs`, as many as fit in 64 MiB.
    async fn read_epochs(
        self,
        generation: Generation,
        epochs: usize,
        nodes_nr: usize,
    ) -> Result<Response, ClientError> {
        let record_len = generation.epoch_record_len(nodes_nr);
        let records = epochs.min(MAX_PAYLOAD_LEN / record_len);
        let slots = if generation.sizes_epoch_records() {
            nodes_nr
        } else {
            0
        };
        let body = ClusterRequest {
            nodes_nr: u32::try_from(slots)
                .expect("a cluster has at most 6,144 nodes")
                .into(),
            ..ClusterRequest::default()
        };
        let len = u32::try_from(records * record_len).expect("the records are limited to 64 MiB");
        // A refusal is a status here, not a reason to retry.
        let request = Request::new(Opcode::StatCluster, RequestBody::Cluster(body))
            .with_max_response_len(len)
            .with_retry_policy(RetryPolicy::OnDisconnect)
            .with_timeout(QUERY_TIMEOUT);
        self.sender.send_for_status(request).await
    }

    /// What new VDIs get by default.
    ///
    /// # Errors
    /// Those of [every request](ClientError#every-request).
    pub async fn defaults(self) -> Result<ClusterDefault, ClientError> {
        let generation = self.generation().await?;
        if !generation.has_opcode(Opcode::GetClusterDefault) {
            return self.old_defaults(generation).await;
        }
        let response = self
            .sender
            .send(query(Opcode::GetClusterDefault, 0))
            .await?;
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
            redundancy: Some(Redundancy::from_wire(copies, copy_policy)),
            object_shift: block_size_shift,
        })
    }

    /// The same where no request is for it: all objects have 4 MiB there.
    async fn old_defaults(self, generation: Generation) -> Result<ClusterDefault, ClientError> {
        let response = self
            .read_epochs(generation, 1, generation.max_nodes())
            .await?;
        let status = cluster_status(generation, &response, generation.max_nodes())?;
        let newest = status.epochs.first();
        let redundancy = match newest {
            Some(newest) if generation.reports_redundancy() => Some(newest.header.redundancy()),
            Some(_) => None,
            None => Some(Redundancy::Replicated(0)),
        };
        Ok(ClusterDefault {
            redundancy,
            object_shift: newest.map_or(0, |_| DEFAULT_BLOCK_SIZE_SHIFT),
        })
    }

    /// Formats the cluster. **This deletes everything on it.** Flags that its sheep do
    /// not know are left out.
    ///
    /// # Errors
    /// `Redundancy` or `ObjectSize` for one that no cluster can have, `Impossible` for
    /// one that this cannot, otherwise those of [every
    /// request](ClientError#every-request).
    ///
    /// Source: `MAKE_FS`, protocol 5.5.
    pub async fn format(self, options: &FormatOptions) -> Result<(), ClientError> {
        check_redundancy(options.redundancy)?;
        check_shift(options.object_shift)?;
        let generation = self.generation().await?;
        generation.check_redundancy(options.redundancy)?;
        let block_size_shift = wire_shift(generation, options.object_shift)?;
        generation.check_cluster_flags(options.flags)?;
        let body = ClusterRequest {
            ctime: packed_now().into(),
            copies: options.redundancy.nr_copies(),
            copy_policy: options.redundancy.copy_policy(),
            cluster_flags: (options.flags & generation.cluster_flags()).bits().into(),
            block_size_shift,
            ..ClusterRequest::default()
        };
        let request = Request::new(Opcode::MakeFs, RequestBody::Cluster(body))
            .with_payload(Bytes::from_static(b"plain\0"));
        self.sender.send(request).await.map(drop)
    }

    /// Makes an empty VDI.
    ///
    /// Not retried after a disconnect: look the name up then.
    ///
    /// # Errors
    /// `Refused(VdiExist)` when the name is in use, `TooLarge`, `ObjectSize`,
    /// `HypervolumeObjectSize` and `Redundancy` for what no cluster can hold,
    /// `Impossible` for what this one cannot, `VidReuse`, otherwise those of [every
    /// request](ClientError#every-request).
    ///
    /// Source: `NEW_VDI`, protocol 5.2 and 6.2.
    pub async fn create_vdi(self, new: &NewVdi) -> Result<Vid, ClientError> {
        let generation = self.sender.generation().await?;
        if let Some(redundancy) = new.redundancy {
            check_redundancy(redundancy)?;
            generation.check_redundancy(redundancy)?;
        }
        if new.hypervolume && !generation.writes_hypervolumes() {
            return Err(match generation.has_hypervolumes() {
                true => Unsupported::HypervolumeChange(generation).into(),
                false => Unsupported::Hypervolume(generation).into(),
            });
        }
        let default = match generation.has_object_sizes() {
            true => self.defaults().await?.object_shift,
            false => DEFAULT_BLOCK_SIZE_SHIFT,
        };
        let default = match default {
            // Not formatted; the sheep says so itself.
            0 => DEFAULT_BLOCK_SIZE_SHIFT,
            shift => shift,
        };
        let shift = wire_shift(generation, new.checked_shift(default)?)?;
        let body = VdiRequest {
            vdi_size: new.size.into(),
            copies: new.redundancy.map_or(0, Redundancy::nr_copies),
            copy_policy: new.redundancy.map_or(0, Redundancy::copy_policy),
            store_policy: if new.hypervolume {
                STORE_POLICY_HYPERVOLUME
            } else {
                0
            },
            block_size_shift: shift,
            ..VdiRequest::default()
        };
        new_vdi(self.sender, &new.name, body, None).await
    }

    /// The VIDs of all VDIs that were not deleted, in ascending order. Before 1.0
    /// deleted ones are among them: their inode has no name.
    ///
    /// # Errors
    /// Those of [every request](ClientError#every-request).
    ///
    /// Source: `READ_VDIS` and `READ_DEL_VDIS`, protocol 5.2.
    pub async fn list_vids(self) -> Result<Vec<Vid>, ClientError> {
        if !self.generation().await?.has_opcode(Opcode::ReadDelVdis) {
            return Ok(vid_bitmap(self.sender, Opcode::ReadVdis)
                .await?
                .iter()
                .collect());
        }
        let (used, deleted) = tokio::try_join!(
            vid_bitmap(self.sender, Opcode::ReadVdis),
            vid_bitmap(self.sender, Opcode::ReadDelVdis)
        )?;
        Ok(used.iter().filter(|&vid| !deleted.contains(vid)).collect())
    }

    /// The facts of all VDIs in ascending order of VID.
    ///
    /// A VDI that was deleted in between is skipped; one whose inode is missing or
    /// malformed is, too, with a warning in the log.
    ///
    /// # Errors
    /// Those of [every request](ClientError#every-request).
    pub async fn list_vdis(self) -> Result<Vec<VdiInfo>, ClientError> {
        stream::iter(self.list_vids().await?)
            .map(|vid| async move {
                match Inode::new(self.sender, vid).stat().await {
                    Ok(info) => Ok(info),
                    Err(error) if error.is_missing_object() || error.is_malformed() => {
                        tracing::warn!("skipped VDI {vid}: {}", Chain(&error));
                        Ok(None)
                    }
                    Err(error) => Err(error),
                }
            })
            .buffered(LIST_PARALLEL)
            .try_filter_map(|info| async move { Ok(info) })
            .try_collect()
            .await
    }

    /// The names with a working VDI.
    ///
    /// # Errors
    /// Those of [every request](ClientError#every-request).
    pub async fn list_names(self) -> Result<Vec<VdiName>, ClientError> {
        let vdis = self.list_vdis().await?;
        Ok(vdis
            .into_iter()
            .filter(|vdi| !vdi.is_snapshot())
            .map(|vdi| vdi.name)
            .collect())
    }
}

/// The object size to send: sheep that know only one read the field as another.
fn wire_shift(generation: Generation, shift: u8) -> Result<u8, ClientError> {
    match generation.has_object_sizes() {
        true => Ok(shift),
        false if shift == DEFAULT_BLOCK_SIZE_SHIFT => Ok(0),
        false => Err(Unsupported::ObjectSize(generation).into()),
    }
}

fn cluster_status(
    generation: Generation,
    response: &Response,
    nodes_nr: usize,
) -> Result<ClusterStatus, ClientError> {
    let nodes_nr = u32::try_from(nodes_nr).expect("a cluster has at most 6,144 nodes");
    let status = response.header.result();
    let records = match generation.parse_epoch_log(&response.payload, nodes_nr) {
        Ok(records) => records,
        // Some refusals have garbage behind them.
        Err(Malformed { .. }) if status != ResultCode::Success => Vec::new(),
        Err(source) => return Err(response.bad_payload(source)),
    };
    let epochs = records
        .into_iter()
        .map(|(header, nodes)| EpochRecord { header, nodes })
        .collect();
    Ok(ClusterStatus {
        generation,
        status,
        epochs,
    })
}
