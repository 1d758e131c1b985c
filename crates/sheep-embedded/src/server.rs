//! The listener: starts, accepts, stops.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;
use std::{fmt, io};

use sheep_proto::RequestHeader;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::budget::Limits;
use crate::config::{Config, DRAIN_TIMEOUT, MAX_CONNECTIONS, StoreKind};
use crate::connection::{self, Closed};
use crate::faults::{Fault, Faults};
use crate::sheep::{LoadError, Sheep};
use crate::store::{DirectoryStore, MemoryStore, OpenError, Store, StoreError};

/// How long to wait after a connection could not be accepted.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Why a server could not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The address cannot be listened on.
    #[error("cannot listen on {0}")]
    Listen(SocketAddr, #[source] io::Error),
    /// The directory cannot be used.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// What is in the store cannot be served.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// The runtime ended.
    #[error("the runtime ended while the store was read")]
    Runtime,
}

/// A running server: one node.
///
/// Dropping it stops it without waiting; [`Server::shutdown`] waits.
pub struct Server {
    accepting: JoinHandle<()>,
    connections: TaskTracker,
    node: Node,
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Server")
            .field("local_address", &self.node.local_address)
            .finish_non_exhaustive()
    }
}

/// What the connections of a node share.
#[derive(Clone)]
pub(crate) struct Node {
    pub(crate) sheep: Arc<Sheep>,
    pub(crate) local_address: SocketAddr,
    pub(crate) faults: Faults,
    pub(crate) limits: Limits,
    /// Cancelled when the node must stop, by its owner or by a client.
    pub(crate) stop: CancellationToken,
    /// Cancelled when it must not even wait for the requests in flight.
    pub(crate) abort: CancellationToken,
}

impl Server {
    /// Opens the store, listens, and serves in the background of the current tokio runtime.
    ///
    /// A server that listens on all addresses names to each client the address
    /// which that client connected to, so a wildcard is never advertised.
    ///
    /// # Errors
    /// [`StartError`] says what is in the way.
    pub async fn start(config: Config) -> Result<Self, StartError> {
        let listener = listen(config.listen).await?;
        let format_if_new = config.format_if_new;
        let sheep = tokio::task::spawn_blocking(move || -> Result<Sheep, StartError> {
            Ok(Sheep::load(open(&config)?, format_if_new)?)
        })
        .await
        .map_err(|_ended| StartError::Runtime)??;
        Self::serve(listener, Arc::new(sheep))
    }

    /// Starts one more node on the store of this one; both serve the same VDIs
    /// and name each other in the node list, and each has faults of its own.
    ///
    /// For tests of clients that must find another gateway. The store lives as
    /// long as one of its nodes; which of them was first does not matter.
    ///
    /// # Errors
    /// [`StartError::Listen`] when the address cannot be listened on.
    pub async fn start_beside(&self, address: SocketAddr) -> Result<Self, StartError> {
        Self::serve(listen(address).await?, Arc::clone(&self.node.sheep))
    }

    fn serve(listener: TcpListener, sheep: Arc<Sheep>) -> Result<Self, StartError> {
        let local_address = listener
            .local_addr()
            .map_err(|error| StartError::Listen((Ipv4Addr::UNSPECIFIED, 0).into(), error))?;
        let connections = TaskTracker::new();
        sheep.members.join(local_address);
        let node = Node {
            stop: sheep.stop.child_token(),
            sheep,
            local_address,
            faults: Faults::default(),
            limits: Limits::new(),
            abort: CancellationToken::new(),
        };
        let accepting = tokio::spawn(accept(listener, node.clone(), connections.clone()));
        Ok(Self {
            accepting,
            connections,
            node,
        })
    }

    /// Where the server listens.
    pub fn local_address(&self) -> SocketAddr {
        self.node.local_address
    }

    /// From now on requests that this plan names fail as it says; see [`crate::faults`].
    ///
    /// Plans that were there before are asked first, and every plan sees every request.
    pub fn inject(&self, plan: impl Fn(&RequestHeader) -> Option<Fault> + Send + Sync + 'static) {
        self.node.faults.add(plan);
    }

    /// Forgets all plans and lets go of what [`Fault::Hold`] holds.
    pub fn heal(&self) {
        self.node.faults.heal();
    }

    /// Waits until a client has asked for a shutdown.
    pub async fn shutdown_requested(&self) {
        self.node.stop.cancelled().await;
    }

    /// Stops: takes no more requests, answers those in flight (for at most
    /// ten seconds), makes everything durable and lets go of the store.
    ///
    /// # Errors
    /// The store's, when the last sync failed.
    pub async fn shutdown(mut self) -> Result<(), StoreError> {
        self.end_listener().await;
        let drained = tokio::time::timeout(DRAIN_TIMEOUT, self.connections.wait()).await;
        if drained.is_err() {
            tracing::warn!(
                "{} connections did not finish in time",
                self.connections.len()
            );
            self.node.abort.cancel();
            self.connections.wait().await;
        }
        let sheep = Arc::clone(&self.node.sheep);
        drop(self);
        match tokio::task::spawn_blocking(move || sheep.store.sync_all()).await {
            Ok(synced) => synced,
            Err(error) => Err(StoreError::Disk(io::Error::other(error))),
        }
    }

    /// Ends as `kill -9` would: connections are closed with requests in flight,
    /// which may still run or never. The address is free on return.
    pub async fn kill(mut self) {
        self.node.abort.cancel();
        self.end_listener().await;
        self.connections.wait().await;
    }

    async fn end_listener(&mut self) {
        self.node.stop.cancel();
        if let Err(error) = (&mut self.accepting).await {
            tracing::error!("the listener failed: {error}");
        }
        self.connections.close();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.node.stop.cancel();
        self.node.sheep.members.leave(self.node.local_address);
        self.node.sheep.locks.leave(self.node.local_address);
    }
}

async fn listen(address: SocketAddr) -> Result<TcpListener, StartError> {
    TcpListener::bind(address)
        .await
        .map_err(|error| StartError::Listen(address, error))
}

fn open(config: &Config) -> Result<Box<dyn Store>, OpenError> {
    Ok(match &config.store {
        StoreKind::Memory => Box::new(MemoryStore::new(config.memory_limit)),
        StoreKind::Directory(path) => Box::new(DirectoryStore::open(path, config.sync)?),
    })
}

/// Accepts until told to stop. At the limit of connections it leaves new ones in the queue.
async fn accept(listener: TcpListener, node: Node, connections: TaskTracker) {
    let slots = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let next = async {
            let slot = Arc::clone(&slots).acquire_owned().await;
            (slot, listener.accept().await)
        };
        let (slot, accepted) = tokio::select! {
            () = node.stop.cancelled() => return,
            next = next => next,
        };
        match accepted {
            Ok((stream, peer)) => {
                let node = node.clone();
                connections.spawn(async move {
                    let _slot = slot;
                    serve(stream, peer, node).await;
                });
            }
            Err(error) => {
                // Out of descriptors, most likely: others must close first.
                tracing::warn!("cannot accept a connection: {error}");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn serve(stream: TcpStream, peer: SocketAddr, node: Node) {
    tracing::debug!(%peer, "connected");
    match connection::serve(stream, node).await {
        Ok(()) => tracing::debug!(%peer, "disconnected"),
        // Clients such as dog often close with an answer still unread.
        Err(error @ (Closed::Io(_) | Closed::Broken | Closed::Fault)) => {
            tracing::debug!(%peer, "connection lost: {error}");
        }
        Err(error) => tracing::warn!(%peer, "connection closed: {error}"),
    }
}
