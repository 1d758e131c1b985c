//! Keeps a cluster connected: the connections of each node, and which of the
//! nodes is the gateway.
//!
//! A task opens the connections that the gateway lacks. When the last one is
//! gone it fails over: it tries the addresses of [`Topology::candidates`] until a
//! sheep of the same cluster answers.
//!
//! A gateway that accepts connections but does not answer is not left for
//! another sheep: what was sent to it may still be queued there.

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use sheep_proto::Generation;
use sheep_proto::generation::Detected;
use tokio::runtime::Handle;
use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::address::GatewayAddress;
use crate::backoff;
use crate::connection::{Connection, ConnectionObserver, Shared};
use crate::connector::Connector;
use crate::error::{Chain, ClientError, DisconnectReason};
use crate::membership;
use crate::poison;
use crate::session::Session;
use crate::topology::{Membership, Rejected, Revision, Topology};

/// Longest wait for a TCP connection, the lookup of its name included.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a refused connection is remembered: longer than any request is kept.
const REFUSAL_KEPT: Duration = Duration::from_secs(300);

/// The connections to a cluster; see the module.
pub(crate) struct Supervisor {
    runtime: Handle,
    connector: Arc<dyn Connector>,
    /// Connections to keep open to the gateway.
    connections: usize,
    state: Mutex<State>,
    /// Wakes the requests that wait for a connection, in the order in which they
    /// came; a `watch` would wake them in any order.
    connected: Notify,
    /// Wakes the supervising task when the gateway lacks a connection.
    incomplete: Notify,
    /// The epoch in the last response.
    epoch: AtomicU32,
    /// Whether a refresh of the membership is in flight.
    refreshing: AtomicBool,
    /// Cancelled when the pool is dropped; ends every task.
    closing: CancellationToken,
}

struct State {
    topology: Topology,
    /// By the address that the node is connected to.
    nodes: HashMap<SocketAddr, Node>,
    /// Since when the gateway has no connection.
    unreachable_since: Option<Instant>,
    /// When the gateway last got its first connection.
    reachable_since: Instant,
    session: Session,
    /// Why sheep were last found unusable.
    rejected: HashMap<SocketAddr, Rejected>,
}

/// A session is over.
pub(crate) struct SessionEnded;

/// What is known of one node.
#[derive(Default)]
struct Node {
    connections: Vec<Arc<Connection>>,
    /// When it last refused a connection.
    refused_at: Option<Instant>,
}

impl Node {
    fn accepting(&self) -> impl Iterator<Item = &Arc<Connection>> {
        self.connections
            .iter()
            .filter(|connection| connection.is_accepting())
    }

    fn least_loaded(&self) -> Option<Arc<Connection>> {
        self.accepting()
            .min_by_key(|connection| connection.bytes_in_flight())
            .cloned()
    }
}

impl State {
    fn gateway(&self) -> Option<&Node> {
        self.nodes.get(&self.topology.gateway_node()?)
    }

    /// Connections of the gateway, closed or not.
    fn gateway_connections(&self) -> usize {
        self.gateway().map_or(0, |node| node.connections.len())
    }

    /// Takes a connection into use.
    fn install(&mut self, connection: Connection) {
        self.rejected.remove(&connection.peer());
        let node = self.nodes.entry(connection.peer()).or_default();
        node.connections.push(Arc::new(connection));
        if self.gateway_connections() > 0 && self.unreachable_since.take().is_some() {
            self.reachable_since = Instant::now();
        }
    }

    /// Lets all connections know the generation of the cluster, once it is certain.
    fn decide(&self) {
        if let Some(Detected::Certain(generation)) = self.topology.detected() {
            let connections = self.nodes.values().flat_map(|node| &node.connections);
            connections.for_each(|connection| connection.decide(generation));
        }
    }

    /// Takes a connection out of use; `None` when it was already.
    fn remove(&mut self, connection: &Arc<Shared>) -> Option<Arc<Connection>> {
        let connections = &mut self.nodes.get_mut(&connection.peer())?.connections;
        let at = connections.iter().position(|known| known.is(connection))?;
        let removed = connections.remove(at);
        if self.gateway_connections() == 0 {
            self.unreachable_since.get_or_insert_with(Instant::now);
        }
        Some(removed)
    }

    /// Takes every connection out of use.
    fn remove_all(&mut self) -> Vec<Arc<Connection>> {
        self.session = self.session.next();
        let nodes = self.nodes.values_mut();
        nodes
            .flat_map(|node| std::mem::take(&mut node.connections))
            .collect()
    }

    fn record_refusal(&mut self, node: SocketAddr) {
        let remembered = |at: Instant| at.elapsed() < REFUSAL_KEPT;
        self.nodes.retain(|_, node| {
            !node.connections.is_empty() || node.refused_at.is_some_and(remembered)
        });
        self.nodes.entry(node).or_default().refused_at = Some(Instant::now());
    }
}

impl Supervisor {
    /// Connects to the first sheep that answers, and keeps connected from then on.
    ///
    /// # Errors
    /// `Connect` or `Unreachable` with the last address tried when none answers.
    ///
    /// # Panics
    /// Outside a tokio runtime, or without an address.
    pub(crate) async fn start(
        addresses: Vec<GatewayAddress>,
        connections: usize,
        connector: Arc<dyn Connector>,
    ) -> Result<Arc<Self>, ClientError> {
        let supervisor = Arc::new(Self {
            runtime: Handle::current(),
            connector,
            connections: connections.max(1),
            state: Mutex::new(State {
                topology: Topology::new(addresses),
                nodes: HashMap::new(),
                unreachable_since: Some(Instant::now()),
                reachable_since: Instant::now(),
                session: Session::default(),
                rejected: HashMap::new(),
            }),
            connected: Notify::new(),
            incomplete: Notify::new(),
            epoch: AtomicU32::new(0),
            refreshing: AtomicBool::new(false),
            closing: CancellationToken::new(),
        });
        supervisor.fail_over(Revision::default()).await?;
        supervisor.spawn(Arc::clone(&supervisor).supervise());
        Ok(supervisor)
    }

    /// Closes every connection and ends every task.
    pub(crate) fn close(&self) {
        self.closing.cancel();
        // Dropping a connection runs no completion, but takes locks.
        let nodes = std::mem::take(&mut self.state().nodes);
        drop(nodes);
    }

    /// True once [`Supervisor::close`] was called.
    pub(crate) fn is_closed(&self) -> bool {
        self.closing.is_cancelled()
    }

    /// Runs `future` unless, or until, the supervisor is closed.
    pub(crate) async fn until_closed<T>(&self, future: impl Future<Output = T>) -> Option<T> {
        self.closing.run_until_cancelled(future).await
    }

    /// Runs a task that ends when the supervisor is closed.
    fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let closing = self.closing.clone();
        self.runtime.spawn(closing.run_until_cancelled_owned(task));
    }

    fn state(&self) -> MutexGuard<'_, State> {
        poison::lock(&self.state)
    }

    /// The first address of the configuration, or the one switched to.
    pub(crate) fn address(&self) -> GatewayAddress {
        self.state().topology.seed().clone()
    }

    /// The least loaded connection to `node`, or to the gateway when `node` has
    /// none or is not given; `None` while the gateway has none either.
    pub(crate) fn connection_to(&self, node: Option<SocketAddr>) -> Option<Arc<Connection>> {
        let state = self.state();
        let preferred = node.and_then(|node| state.nodes.get(&node)?.least_loaded());
        preferred.or_else(|| state.gateway()?.least_loaded())
    }

    /// The session with the gateway.
    pub(crate) fn session(&self) -> Session {
        self.state().session
    }

    /// The least loaded connection to the gateway, in `session`.
    ///
    /// # Errors
    /// When the session has ended.
    pub(crate) fn connection_in(
        &self,
        session: Session,
    ) -> Result<Option<Arc<Connection>>, SessionEnded> {
        let state = self.state();
        if state.session != session {
            return Err(SessionEnded);
        }
        Ok(state.gateway().and_then(Node::least_loaded))
    }

    /// Waits until the gateway has a connection, at most until it had none for
    /// `timeout`.
    ///
    /// # Errors
    /// `Unreachable`.
    pub(crate) async fn wait_connected(&self, timeout: Duration) -> Result<(), ClientError> {
        let since = self.state().unreachable_since;
        let since = since.unwrap_or_else(Instant::now);
        let connected = async {
            loop {
                let connected = self.connected.notified();
                if self.connection_to(None).is_some() {
                    return;
                }
                connected.await;
            }
        };
        let left = timeout.saturating_sub(since.elapsed());
        tokio::time::timeout(left, connected)
            .await
            .map_err(|_elapsed| self.unreachable(since.elapsed()))
    }

    /// When `node` last refused a connection, and since when the gateway has one.
    pub(crate) fn reachability(&self, node: SocketAddr) -> (Option<Instant>, Instant) {
        let state = self.state();
        let refused_at = state.nodes.get(&node).and_then(|node| node.refused_at);
        (refused_at, state.reachable_since)
    }

    /// The generation of the sheep in use, which may be one of two until the cluster
    /// is formatted.
    ///
    /// # Errors
    /// `Unreachable` when none is connected within `timeout`.
    pub(crate) async fn generation(&self, timeout: Duration) -> Result<Generation, ClientError> {
        self.wait_connected(timeout).await?;
        let detected = self.state().topology.detected();
        detected
            .map(Detected::generation)
            .ok_or_else(|| self.unreachable(timeout))
    }

    pub(crate) fn unreachable(&self, waited: Duration) -> ClientError {
        ClientError::Unreachable {
            gateway: self.state().topology.gateway().clone(),
            waited,
        }
    }

    /// Opens the connections that the gateway lacks.
    async fn supervise(self: Arc<Self>) {
        let (mut attempts, mut failures) = (0, 0);
        loop {
            if self.lacking().is_none() {
                (attempts, failures) = (0, 0);
            }
            let (revision, peer) = loop {
                match self.lacking() {
                    Some(lacking) => break lacking,
                    None => self.incomplete.notified().await,
                }
            };
            let opened = match peer {
                None => self.fail_over(revision).await,
                // By number: a name may stand for several sheep.
                Some(peer) => {
                    let observer = Arc::clone(&self) as Arc<dyn ConnectionObserver>;
                    self.connect(&peer.into(), Some(observer))
                        .await
                        .and_then(|connection| self.install(connection, revision, None))
                }
            };
            attempts += 1;
            if let Err(error) = &opened {
                tracing::debug!("{}", Chain(error));
            }
            // Connections that close immediately, as those of a port forwarder
            // without a sheep behind it, count as failures.
            if opened.is_err() || attempts > self.connections {
                tokio::time::sleep(backoff::pause(failures)).await;
                failures += 1;
            }
        }
    }

    /// The gateway to open one more connection to, if it lacks any; no gateway
    /// when it has none and any will do.
    fn lacking(&self) -> Option<(Revision, Option<SocketAddr>)> {
        let state = self.state();
        let peer = match state.gateway_connections() {
            enough if enough >= self.connections => return None,
            0 => None,
            _ => state.topology.gateway_node(),
        };
        Some((state.topology.revision(), peer))
    }

    /// Makes the first candidate that answers the gateway.
    async fn fail_over(self: &Arc<Self>, revision: Revision) -> Result<(), ClientError> {
        let (last, candidates) = {
            let state = self.state();
            let last = state.topology.gateway_node().map(GatewayAddress::from);
            (last, state.topology.candidates())
        };
        let mut result = Ok(());
        for address in &candidates {
            self.state().topology.try_gateway(revision, address);
            result = match self.handshake(address).await {
                Ok((connection, membership)) => {
                    self.install(connection, revision, Some(membership))
                }
                Err(error) => Err(error),
            };
            let silent = matches!(result, Err(ClientError::Unreachable { .. }));
            if result.is_ok() || silent && last.as_ref() == Some(address) {
                break;
            }
        }
        result
    }

    /// Connects to a sheep and reads its membership.
    async fn handshake(
        self: &Arc<Self>,
        address: &GatewayAddress,
    ) -> Result<(Connection, Membership), ClientError> {
        loop {
            let observer = Arc::clone(self) as Arc<dyn ConnectionObserver>;
            let connection = self.connect(address, Some(observer)).await?;
            let (membership, epoch) = membership::ask(&connection)
                .await
                .map_err(|error| lost_while_connecting(address, error))?;
            // The cluster was formatted between the two questions: the first has an
            // answer now.
            let is_decidable = epoch != 0 && connection.detected() == Detected::Undecided;
            if !is_decidable || self.state().topology.detected().is_some() {
                self.epoch.store(epoch, Ordering::Relaxed);
                return Ok((connection, membership));
            }
        }
    }

    /// Connects to a node and learns its generation; it may be one that is not the
    /// gateway.
    pub(crate) async fn connect(
        &self,
        address: &GatewayAddress,
        observer: Option<Arc<dyn ConnectionObserver>>,
    ) -> Result<Connection, ClientError> {
        let connect = async {
            let mut last = io::ErrorKind::NotFound.into();
            for peer in tokio::net::lookup_host((address.host(), address.port())).await? {
                match self.connector.connect(peer).await {
                    Ok(stream) => return Ok(Connection::start(peer, stream, observer)),
                    Err(error) => {
                        if error.kind() == io::ErrorKind::ConnectionRefused {
                            self.state().record_refusal(peer);
                        }
                        last = error;
                    }
                }
            }
            Err(last)
        };
        let connection = tokio::time::timeout(CONNECT_TIMEOUT, connect)
            .await
            .unwrap_or_else(|_elapsed| Err(io::ErrorKind::TimedOut.into()))
            .map_err(|source| ClientError::Connect {
                gateway: address.clone(),
                source,
            })?;
        match connection.detect().await {
            Ok(true) => Ok(connection),
            Ok(false) => Err(self.reject(connection.peer(), Rejected::UnknownGeneration)),
            Err(error) => Err(lost_while_connecting(address, error)),
        }
    }

    /// Connects to a node of the cluster for a request that only it can answer.
    ///
    /// # Errors
    /// As [`Supervisor::connect`], and `Connect` for a sheep of another generation.
    pub(crate) async fn connect_to_member(
        &self,
        node: SocketAddr,
    ) -> Result<Connection, ClientError> {
        let connection = self.connect(&node.into(), None).await?;
        let checked = self
            .state()
            .topology
            .check_generation(connection.detected());
        match checked {
            Ok(()) => Ok(connection),
            Err(rejected) => Err(self.reject(node, rejected)),
        }
    }

    /// Takes a connection to the gateway into use; `membership` comes with the
    /// first one to a sheep.
    fn install(
        &self,
        connection: Connection,
        revision: Revision,
        membership: Option<Membership>,
    ) -> Result<(), ClientError> {
        let (peer, detected) = (connection.peer(), connection.detected());
        let is_first = membership.is_some();
        {
            let mut state = self.state();
            // One that closed before it got here was not found by `closed`, and
            // would stay for ever.
            // So would one that was asked for its generation before the cluster had an
            // epoch, and leave it open.
            let is_decidable = self.epoch.load(Ordering::Relaxed) != 0
                && detected == Detected::Undecided
                && !matches!(state.topology.detected(), Some(Detected::Certain(_)));
            let is_outdated =
                is_decidable || !connection.is_accepting() || self.closing.is_cancelled();
            let installed = if is_outdated {
                Err(Rejected::Outdated)
            } else {
                state
                    .topology
                    .connected(revision, peer, detected, membership)
            };
            if let Err(rejected) = installed {
                drop(state);
                return Err(self.reject(peer, rejected));
            }
            state.install(connection);
            state.decide();
        }
        self.connected.notify_waiters();
        if is_first {
            tracing::info!(%peer, sheep = %detected, "connected");
        }
        Ok(())
    }

    /// The error for a sheep that cannot be the gateway, which is logged once.
    fn reject(&self, peer: SocketAddr, rejected: Rejected) -> ClientError {
        let is_new = rejected != Rejected::Outdated
            && self.state().rejected.insert(peer, rejected) != Some(rejected);
        if is_new {
            tracing::warn!(%peer, "not used: {rejected}");
        }
        ClientError::Connect {
            gateway: peer.into(),
            source: io::Error::other(rejected),
        }
    }

    /// Takes a connection to a node that is not the gateway into use.
    #[cfg(test)]
    pub(crate) async fn connect_node(
        self: &Arc<Self>,
        node: SocketAddr,
    ) -> Result<(), ClientError> {
        let observer = Arc::clone(self) as Arc<dyn ConnectionObserver>;
        let connection = self.connect(&node.into(), Some(observer)).await?;
        self.state().install(connection);
        Ok(())
    }

    /// Makes `address` the gateway, once a sheep has answered there.
    ///
    /// # Errors
    /// `Connect` or `Unreachable`; nothing has changed then.
    pub(crate) async fn switch_gateway(
        self: &Arc<Self>,
        address: GatewayAddress,
    ) -> Result<(), ClientError> {
        let (connection, membership) = self.handshake(&address).await?;
        let (peer, detected) = (connection.peer(), connection.detected());
        let old = {
            let mut state = self.state();
            let given = address.clone();
            let switched = state
                .topology
                .switch_gateway(given, peer, detected, membership);
            if let Err(rejected) = switched {
                drop(state);
                return Err(self.reject(peer, rejected));
            }
            let old = state.remove_all();
            if connection.is_accepting() {
                state.install(connection);
                state.decide();
            } else {
                // It closed just now; the supervising task opens another.
                state.unreachable_since.get_or_insert_with(Instant::now);
            }
            old
        };
        tracing::info!(gateway = %address, %peer, sheep = %detected, "connected");
        self.incomplete.notify_one();
        self.connected.notify_waiters();
        for connection in old {
            self.drain(connection);
        }
        Ok(())
    }

    /// Keeps a connection that is out of use for the requests it still has.
    fn drain(&self, connection: Arc<Connection>) {
        self.spawn(async move { connection.drained().await });
    }

    /// Notes the epoch in a response. A new one is a change of membership, about
    /// which the gateway is asked, so that failover knows the current nodes.
    pub(crate) fn observe_epoch(self: &Arc<Self>, epoch: u32) {
        if self.epoch.load(Ordering::Relaxed) != epoch {
            self.epoch.store(epoch, Ordering::Relaxed);
            if !self.detect_again() {
                self.refresh_membership();
            }
        }
    }

    /// Connects anew to a cluster that had no epoch when its generation was asked for:
    /// now that it has one, the answer is certain. False when it was certain already.
    fn detect_again(&self) -> bool {
        let old = {
            let mut state = self.state();
            if state.topology.detected() != Some(Detected::Undecided) {
                return false;
            }
            state.unreachable_since.get_or_insert_with(Instant::now);
            state.remove_all()
        };
        self.incomplete.notify_one();
        for connection in old {
            self.drain(connection);
        }
        true
    }

    fn refresh_membership(self: &Arc<Self>) {
        let (revision, connection) = {
            let state = self.state();
            let connection = state.gateway().and_then(Node::least_loaded);
            (state.topology.revision(), connection)
        };
        let Some(connection) = connection else { return };
        // One at a time, or a sheep with an ever new epoch would multiply them.
        if self.refreshing.swap(true, Ordering::Relaxed) {
            return;
        }
        let supervisor = Arc::clone(self);
        self.spawn(async move {
            let membership = membership::ask(&connection).await;
            supervisor.refreshing.store(false, Ordering::Relaxed);
            match membership {
                Ok((membership, _)) => supervisor.observe_membership(revision, membership),
                Err(error) => tracing::debug!("cannot ask for the nodes: {}", Chain(&error)),
            }
        });
    }

    fn observe_membership(&self, revision: Revision, membership: Membership) {
        if self.state().topology.observe(revision, membership) {
            tracing::warn!("the cluster was formatted, everything that was in it is gone");
        }
    }
}

impl ConnectionObserver for Supervisor {
    fn unresponsive(&self, connection: &Arc<Shared>) {
        let removed = self.state().remove(connection);
        if let Some(unresponsive) = removed {
            let peer = unresponsive.peer();
            tracing::warn!(%peer, "replacing a connection on which many requests timed out");
            self.incomplete.notify_one();
            self.drain(unresponsive);
        }
    }

    fn closed(&self, connection: &Arc<Shared>, reason: &DisconnectReason) {
        let (removed, is_unreachable) = {
            let mut state = self.state();
            let removed = state.remove(connection);
            if removed.is_some() {
                // Also if others are still open: the sheep may have ended, and those
                // will be found closed later than one that has replaced it is.
                state.session = state.session.next();
            }
            let is_gateway = state.topology.gateway_node() == Some(connection.peer());
            (removed, is_gateway && state.gateway_connections() == 0)
        };
        if removed.is_none() {
            return;
        }
        self.incomplete.notify_one();
        let peer = connection.peer();
        if reason.is_protocol_violation() {
            tracing::warn!(%peer, "dropped a connection: {reason}");
        }
        if is_unreachable {
            tracing::warn!(%peer, "lost the sheep: {reason}");
        }
    }
}

/// A sheep that hangs up before it has answered is one that cannot be connected to.
fn lost_while_connecting(gateway: &GatewayAddress, error: ClientError) -> ClientError {
    match error {
        ClientError::Lost { .. } => ClientError::Connect {
            gateway: gateway.clone(),
            source: io::Error::other(error),
        },
        other => other,
    }
}
