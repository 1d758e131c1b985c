//! The listener: starts, accepts, stops.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::config::{
    Config, DRAIN_TIMEOUT, MAX_CONNECTIONS, MAX_KIB, MAX_RUNNING_REQUESTS, StoreKind,
};
use crate::connection::{self, Closed, Limits};
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

/// A running server.
///
/// Dropping it stops it without waiting; [`Server::shutdown`] waits.
#[derive(Debug)]
pub struct Server {
    local_address: SocketAddr,
    stop: CancellationToken,
    accepting: JoinHandle<()>,
    connections: TaskTracker,
    abort: CancellationToken,
    sheep: SheepHandle,
}

/// The state, with nothing to print.
struct SheepHandle(Arc<Sheep>);

impl std::fmt::Debug for SheepHandle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Sheep")
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
        let listen = |error| StartError::Listen(config.listen, error);
        let listener = TcpListener::bind(config.listen).await.map_err(listen)?;
        let local_address = listener.local_addr().map_err(listen)?;
        let format_if_new = config.format_if_new;
        let sheep = tokio::task::spawn_blocking(move || -> Result<Sheep, StartError> {
            Ok(Sheep::load(open(&config)?, format_if_new)?)
        })
        .await
        .map_err(|_ended| StartError::Runtime)??;
        let sheep = Arc::new(sheep);
        let connections = TaskTracker::new();
        let limits = Limits {
            payload_kib: Arc::new(Semaphore::new(MAX_KIB)),
            running: Arc::new(Semaphore::new(MAX_RUNNING_REQUESTS)),
            abort: CancellationToken::new(),
        };
        let abort = limits.abort.clone();
        let accept = accept(listener, Arc::clone(&sheep), limits, connections.clone());
        let accepting = tokio::spawn(accept);
        Ok(Self {
            local_address,
            stop: sheep.stop.clone(),
            accepting,
            connections,
            abort,
            sheep: SheepHandle(sheep),
        })
    }

    /// Where the server listens.
    pub fn local_address(&self) -> SocketAddr {
        self.local_address
    }

    /// Waits until a client has asked for a shutdown.
    pub async fn shutdown_requested(&self) {
        self.stop.cancelled().await;
    }

    /// Stops: takes no more requests, answers those in flight (for at most
    /// ten seconds), makes everything durable and lets go of the store.
    ///
    /// # Errors
    /// The store's, when the last sync failed.
    pub async fn shutdown(mut self) -> Result<(), StoreError> {
        self.stop.cancel();
        if let Err(error) = (&mut self.accepting).await {
            tracing::error!("the listener failed: {error}");
        }
        self.connections.close();
        let drained = tokio::time::timeout(DRAIN_TIMEOUT, self.connections.wait()).await;
        if drained.is_err() {
            tracing::warn!(
                "{} connections did not finish in time",
                self.connections.len()
            );
            self.abort.cancel();
            self.connections.wait().await;
        }
        let sheep = Arc::clone(&self.sheep.0);
        drop(self);
        match tokio::task::spawn_blocking(move || sheep.store.sync_all()).await {
            Ok(synced) => synced,
            Err(error) => Err(StoreError::Disk(io::Error::other(error))),
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

fn open(config: &Config) -> Result<Box<dyn Store>, OpenError> {
    Ok(match &config.store {
        StoreKind::Memory => Box::new(MemoryStore::new(config.memory_limit)),
        StoreKind::Directory(path) => Box::new(DirectoryStore::open(path, config.sync)?),
    })
}

/// Accepts until told to stop. At the limit of connections it leaves new ones in the queue.
async fn accept(
    listener: TcpListener,
    sheep: Arc<Sheep>,
    limits: Limits,
    connections: TaskTracker,
) {
    let slots = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let stop = sheep.stop.clone();
    loop {
        let next = async {
            let slot = Arc::clone(&slots).acquire_owned().await;
            (slot, listener.accept().await)
        };
        let (slot, accepted) = tokio::select! {
            () = stop.cancelled() => return,
            next = next => next,
        };
        match accepted {
            Ok((stream, peer)) => {
                let (sheep, limits) = (Arc::clone(&sheep), limits.clone());
                connections.spawn(async move {
                    let _slot = slot;
                    serve(stream, peer, sheep, limits).await;
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

async fn serve(stream: TcpStream, peer: SocketAddr, sheep: Arc<Sheep>, limits: Limits) {
    tracing::debug!(%peer, "connected");
    match connection::serve(stream, sheep, limits).await {
        Ok(()) => tracing::debug!(%peer, "disconnected"),
        // Clients such as dog often close with an answer still unread.
        Err(error @ (Closed::Io(_) | Closed::Broken)) => {
            tracing::debug!(%peer, "connection lost: {error}");
        }
        Err(error) => tracing::warn!(%peer, "connection closed: {error}"),
    }
}
