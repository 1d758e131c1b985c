//! A server: one node that listens on one address.
//!
//! ```text
//! Server -> listener -> connection -> reader, responder -> limits, error
//! ```

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::{fmt, io};

use sheep_proto::{Generation, RequestHeader};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use self::limits::ServerLimits;
use self::node_context::NodeContext;
use crate::config::{Config, DRAIN_TIMEOUT, StoreKind};
use crate::faults::{Fault, Faults};
use crate::recovery::LoadError;
use crate::sheep::Sheep;
use crate::store::{DirectoryStore, MemoryStore, OpenError, Store, StoreError};

mod connection;
mod error;
mod limits;
mod listener;
mod node_context;
mod reader;
mod responder;

/// Why a server could not start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
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
    /// The releases to be like have no object cache.
    #[error("sheep {0} has no object cache")]
    NoObjectCache(Generation),
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
    node: NodeContext,
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Server")
            .field("local_address", &self.node.local_address)
            .finish_non_exhaustive()
    }
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
        let release = config.release();
        let sheep = tokio::task::spawn_blocking(move || -> Result<Sheep, StartError> {
            Ok(Sheep::load(
                open(&config)?,
                open_cache(&config)?,
                release,
                format_if_new,
            )?)
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
    pub async fn add_node(&self, address: SocketAddr) -> Result<Self, StartError> {
        Self::serve(listen(address).await?, Arc::clone(&self.node.sheep))
    }

    fn serve(listener: TcpListener, sheep: Arc<Sheep>) -> Result<Self, StartError> {
        let local_address = listener
            .local_addr()
            .map_err(|error| StartError::Listen((Ipv4Addr::UNSPECIFIED, 0).into(), error))?;
        let connections = TaskTracker::new();
        let node = NodeContext {
            stop: sheep.join(local_address),
            sheep,
            local_address,
            faults: Faults::default(),
            limits: ServerLimits::new(),
            abort: CancellationToken::new(),
            death: Arc::default(),
        };
        let accepting = tokio::spawn(listener::accept(
            listener,
            node.clone(),
            connections.clone(),
        ));
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

    /// Adds a fault rule for requests from now on; see [`crate::faults`].
    ///
    /// The first rule that matches decides, and every rule sees every request.
    pub fn inject(&self, rule: impl Fn(&RequestHeader) -> Option<Fault> + Send + Sync + 'static) {
        self.node.faults.add(rule);
    }

    /// Removes all fault rules and resumes requests delayed by [`Fault::Hold`].
    pub fn clear_faults(&self) {
        self.node.faults.clear();
    }

    /// Waits until a client has asked for a shutdown, or a request has ended the node.
    pub async fn shutdown_requested(&self) {
        self.node.stop.cancelled().await;
    }

    /// Why a request has ended the node, as it ends a sheep of its generation. Such a
    /// node is gone: its connections are closed, and nothing listens on its address.
    pub fn death(&self) -> Option<String> {
        self.node.death.get().cloned()
    }

    /// Stops: takes no more requests, answers those in flight (for at most
    /// ten seconds), makes everything durable and closes the store.
    ///
    /// # Errors
    /// The store's, when the last sync failed.
    pub async fn shutdown(mut self) -> Result<(), StoreError> {
        self.stop_listener().await;
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
        match tokio::task::spawn_blocking(move || sheep.sync_all()).await {
            Ok(synced) => synced,
            Err(error) => Err(StoreError::Disk(io::Error::other(error))),
        }
    }

    /// Ends as `kill -9` would: connections are closed with requests in flight,
    /// which may still run or never. The address is free on return.
    pub async fn kill(mut self) {
        self.node.abort.cancel();
        self.stop_listener().await;
        self.connections.wait().await;
    }

    async fn stop_listener(&mut self) {
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
        self.node.sheep.leave(self.node.local_address);
    }
}

async fn listen(address: SocketAddr) -> Result<TcpListener, StartError> {
    TcpListener::bind(address)
        .await
        .map_err(|error| StartError::Listen(address, error))
}

/// The store of the object cache, beside the objects.
fn open_cache(config: &Config) -> Result<Option<Arc<dyn Store>>, StartError> {
    if !config.object_cache {
        return Ok(None);
    }
    if !config.generation.has_object_cache() {
        return Err(StartError::NoObjectCache(config.generation));
    }
    Ok(Some(match &config.store {
        StoreKind::Memory => Arc::new(MemoryStore::new(config.memory_limit)),
        StoreKind::Directory(path) => Arc::new(DirectoryStore::open(&path.join("cache"), false)?),
    }))
}

fn open(config: &Config) -> Result<Arc<dyn Store>, OpenError> {
    Ok(match &config.store {
        StoreKind::Memory => Arc::new(MemoryStore::new(config.memory_limit)),
        StoreKind::Directory(path) => Arc::new(DirectoryStore::open(path, config.sync)?),
    })
}
