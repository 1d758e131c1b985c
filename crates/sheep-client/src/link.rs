//! Which sheep a pool is connected to, and how it stays connected.
//!
//! All connections lead to one sheep, the gateway, since a write sent twice by
//! two roads could land on top of a newer one. A keeper task opens connections
//! that are missing. When the last one is gone it tries the same sheep, then
//! the addresses that were given, then the nodes of the last node list, until
//! one answers that belongs to the same cluster: a node list may name
//! addresses that mean another host here.
//!
//! A gateway that lets itself be connected to but is silent is not left for
//! another sheep: what was sent to it may still be queued there.

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use sheep_proto::limits::CLUSTER_INFO_LEN;
use sheep_proto::{Opcode, RequestBody};
use tokio::time::Instant;

use crate::address::GatewayAddress;
use crate::backoff;
use crate::call::{Call, Response};
use crate::connection::{ASK_PATIENCE, Connection, Observer, Shared};
use crate::error::{ClientError, Hangup};
use crate::in_flight::Pending;
use crate::pool::Core;
use crate::topology::{Generation, Membership, Rejected, Topology};

/// Longest wait for a TCP connection, the look-up of its name included.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a refused connection is remembered: longer than any call is kept.
const REFUSAL_KEPT: Duration = Duration::from_secs(300);

/// The sheep that are known, and the connections to one of them.
pub(crate) struct Link {
    topology: Topology,
    open: Vec<Arc<Connection>>,
    /// Since when `open` is empty.
    down_since: Option<Instant>,
    /// When `open` last ceased to be empty.
    up_since: Instant,
    /// The sheep that turned a connection down lately, and when each last did.
    refused: HashMap<SocketAddr, Instant>,
}

impl Link {
    /// No connection yet.
    ///
    /// # Panics
    /// Without any address.
    pub(crate) fn new(given: Vec<GatewayAddress>) -> Self {
        Self {
            topology: Topology::new(given),
            open: Vec::new(),
            down_since: Some(Instant::now()),
            up_since: Instant::now(),
            refused: HashMap::new(),
        }
    }

    pub(crate) fn topology(&self) -> &Topology {
        &self.topology
    }

    pub(crate) fn down_since(&self) -> Option<Instant> {
        self.down_since
    }

    pub(crate) fn up_since(&self) -> Instant {
        self.up_since
    }

    /// When a sheep last turned a connection down.
    pub(crate) fn refused_at(&self, sheep: SocketAddr) -> Option<Instant> {
        self.refused.get(&sheep).copied()
    }

    /// Takes a connection into use.
    fn enter(&mut self, connection: Connection) {
        if self.down_since.take().is_some() {
            self.up_since = Instant::now();
        }
        self.open.push(Arc::new(connection));
    }

    pub(crate) fn is_up(&self) -> bool {
        self.open.iter().any(|connection| connection.is_accepting())
    }

    pub(crate) fn least_loaded(&self) -> Option<Arc<Connection>> {
        self.open
            .iter()
            .filter(|connection| connection.is_accepting())
            .min_by_key(|connection| connection.bytes_in_flight())
            .map(Arc::clone)
    }

    pub(crate) fn close(&mut self) {
        self.open.clear();
    }
}

impl Core {
    /// Opens what is missing, until it is cancelled.
    pub(crate) async fn keep_connected(self: Arc<Self>) {
        let mut link = self.link.subscribe();
        let (mut attempts, mut failures) = (0, 0);
        loop {
            let incomplete = |link: &Link| link.open.len() < self.connections;
            if !incomplete(&link.borrow()) {
                (attempts, failures) = (0, 0);
            }
            let (generation, peer) = {
                let link = link
                    .wait_for(incomplete)
                    .await
                    .expect("self has the sender");
                let peer = link.open.first().map(|open| open.peer());
                (link.topology.generation(), peer)
            };
            let opened = match peer {
                None => self.find_sheep(generation).await,
                // By number: a name may stand for several sheep.
                Some(peer) => self
                    .dial(&peer.into(), self.itself())
                    .await
                    .and_then(|connection| self.adopt(connection, generation, None)),
            };
            attempts += 1;
            if let Err(error) = &opened {
                tracing::debug!("{error}");
            }
            // Connections that close as soon as they are open, as those of a
            // forwarder without a sheep behind it, are failures, too.
            if opened.is_err() || attempts > self.connections {
                tokio::time::sleep(backoff::pause(failures)).await;
                failures += 1;
            }
        }
    }

    /// Makes the first known sheep that answers the gateway.
    pub(crate) async fn find_sheep(&self, generation: Generation) -> Result<(), ClientError> {
        let (last, candidates) = {
            let link = self.link.borrow();
            let last = link.topology.gateway_node().map(GatewayAddress::from);
            (last, link.topology.candidates())
        };
        let mut result = Ok(());
        for address in &candidates {
            self.link.send_if_modified(|link| {
                link.topology.try_gateway(generation, address);
                false
            });
            result = match self.establish(address).await {
                Ok((connection, cluster)) => self.adopt(connection, generation, Some(cluster)),
                Err(error) => Err(error),
            };
            let silent = matches!(result, Err(ClientError::Unreachable { .. }));
            if result.is_ok() || silent && last.as_ref() == Some(address) {
                break;
            }
        }
        result
    }

    /// Connects to a sheep and hears that it is one.
    async fn establish(
        &self,
        address: &GatewayAddress,
    ) -> Result<(Connection, Membership), ClientError> {
        let connection = self.dial(address, self.itself()).await?;
        match connection.ask(membership_call()).await {
            Ok(response) => Ok((connection, membership(&response)?)),
            Err(error @ ClientError::Lost { .. }) => Err(ClientError::Connect {
                gateway: address.clone(),
                source: io::Error::other(error),
            }),
            Err(error) => Err(error),
        }
    }

    pub(crate) async fn dial(
        &self,
        address: &GatewayAddress,
        observer: Arc<dyn Observer>,
    ) -> Result<Connection, ClientError> {
        let open = async {
            let mut last = io::ErrorKind::NotFound.into();
            for peer in tokio::net::lookup_host((address.host(), address.port())).await? {
                match self.network.connect(peer).await {
                    Ok(stream) => return Ok(Connection::start(peer, stream, observer)),
                    Err(error) => {
                        if error.kind() == io::ErrorKind::ConnectionRefused {
                            self.note_refusal(peer);
                        }
                        last = error;
                    }
                }
            }
            Err(last)
        };
        tokio::time::timeout(CONNECT_TIMEOUT, open)
            .await
            .unwrap_or_else(|_elapsed| Err(io::ErrorKind::TimedOut.into()))
            .map_err(|source| ClientError::Connect {
                gateway: address.clone(),
                source,
            })
    }

    fn note_refusal(&self, peer: SocketAddr) {
        self.link.send_if_modified(|link| {
            link.refused.retain(|_, at| at.elapsed() < REFUSAL_KEPT);
            link.refused.insert(peer, Instant::now());
            false
        });
    }

    /// Puts a connection into use; `cluster` is what the first one brings along.
    fn adopt(
        &self,
        connection: Connection,
        generation: Generation,
        cluster: Option<Membership>,
    ) -> Result<(), ClientError> {
        let peer = connection.peer();
        let refuse = |why: &'static str| ClientError::Connect {
            gateway: peer.into(),
            source: io::Error::other(why),
        };
        let first = cluster.is_some();
        let mut result = Ok(());
        self.link.send_if_modified(|link| {
            // A connection that closed before it got here was not found by
            // `closed`, and would stay for ever.
            let outdated = "the connection is not wanted any more";
            if !connection.is_accepting() || self.closing.is_cancelled() {
                result = Err(refuse(outdated));
                return false;
            }
            if let Err(rejected) = link.topology.connected(generation, peer, cluster) {
                result = Err(refuse(match rejected {
                    Rejected::Outdated => outdated,
                    Rejected::OtherCluster => "this sheep belongs to another cluster",
                }));
                return false;
            }
            link.enter(connection);
            true
        });
        self.up.notify_waiters();
        if first && result.is_ok() {
            tracing::info!(%peer, "connected");
        }
        result
    }

    /// Makes `address` the gateway, once a sheep has answered there.
    pub(crate) async fn move_to(&self, address: GatewayAddress) -> Result<(), ClientError> {
        let (connection, cluster) = self.establish(&address).await?;
        let peer = connection.peer();
        tracing::info!(gateway = %address, %peer, "connected");
        let mut old = Vec::new();
        self.link.send_modify(|link| {
            link.topology.switch_gateway(address, peer, cluster);
            old = std::mem::take(&mut link.open);
            if connection.is_accepting() {
                link.enter(connection);
            } else {
                // It closed just now; the keeper opens another.
                link.down_since.get_or_insert_with(Instant::now);
            }
        });
        self.up.notify_waiters();
        for connection in old {
            self.let_finish(connection);
        }
        Ok(())
    }

    /// Keeps a connection that is out of use for the calls it still has.
    fn let_finish(&self, connection: Arc<Connection>) {
        let drain = async move { connection.drained().await };
        self.runtime
            .spawn(self.closing.clone().run_until_cancelled_owned(drain));
    }

    /// Takes a connection with too many calls without an answer out of use; the
    /// keeper opens another.
    pub(crate) fn replace(&self, connection: &Arc<Shared>) {
        let mut worn_out = None;
        self.link.send_if_modified(|link| {
            let at = link.open.iter().position(|known| known.is(connection));
            worn_out = at.map(|at| link.open.remove(at));
            if worn_out.is_some() && link.open.is_empty() {
                link.down_since = Some(Instant::now());
            }
            worn_out.is_some()
        });
        if let Some(worn_out) = worn_out {
            let peer = worn_out.peer();
            tracing::warn!(%peer, "replacing a connection on which many calls got no answer");
            self.let_finish(worn_out);
        }
    }

    /// Asks for the nodes of the cluster, to have somewhere to go when the
    /// gateway dies.
    pub(crate) fn learn_nodes(&self) {
        let (generation, connection) = {
            let link = self.link.borrow();
            (link.topology.generation(), link.least_loaded())
        };
        let Some(connection) = connection else { return };
        // One question at a time, or a sheep with an ever new epoch would breed them.
        if self.learning.swap(true, Ordering::Relaxed) {
            return;
        }
        let core = self.itself();
        let learned = move |outcome: Result<Response, ClientError>| {
            core.learning.store(false, Ordering::Relaxed);
            match outcome.and_then(|response| membership(&response)) {
                Ok(cluster) => core.learn(generation, cluster),
                Err(error) => tracing::debug!("cannot ask for the nodes: {error}"),
            }
        };
        let call = Pending::new(membership_call(), ASK_PATIENCE, Box::new(learned));
        if let Err(unsent) = connection.send(call) {
            // It closed this moment; the next one brings the nodes along.
            self.learning.store(false, Ordering::Relaxed);
            drop(unsent);
        }
    }

    fn learn(&self, generation: Generation, cluster: Membership) {
        let mut formatted = false;
        self.link.send_if_modified(|link| {
            formatted = link.topology.observe(generation, cluster);
            false
        });
        if formatted {
            tracing::warn!("the cluster was formatted, everything that was in it is gone");
        }
    }

    /// Takes a closed connection out of use.
    pub(crate) fn forget(&self, connection: &Arc<Shared>, why: &Hangup) {
        let mut was_last = false;
        let known = self.link.send_if_modified(|link| {
            let before = link.open.len();
            link.open.retain(|known| !known.is(connection));
            if link.open.len() == before {
                return false;
            }
            if link.open.is_empty() {
                was_last = true;
                link.down_since = Some(Instant::now());
            }
            true
        });
        let peer = connection.peer();
        if let (true, Hangup::BadFrame(_) | Hangup::UnknownId { .. }) = (known, why) {
            tracing::warn!(%peer, "dropped a connection: {why}");
        }
        if was_last {
            tracing::warn!(%peer, "lost the sheep: {why}");
        }
    }
}

/// The question that any sheep answers at any time. Its answer tells clusters
/// apart and has the nodes; a refusal is the answer of a sheep before 0.9.
fn membership_call() -> Call {
    let want = u32::try_from(CLUSTER_INFO_LEN).expect("less than 4 GiB");
    Call::new(Opcode::ClusterInfo, RequestBody::NONE).wanting(want)
}

fn membership(response: &Response) -> Result<Membership, ClientError> {
    if response.clone().accepted().is_err() {
        return Ok(Membership::default());
    }
    Membership::parse(&response.payload).map_err(|source| response.bad_payload(source))
}
