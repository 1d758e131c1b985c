//! A server of exports: takes connections, and serves each of them until it ends.
//!
//! ```text
//! Server ─► handshake ─► transmission ─► session ─► BlockDevice
//!           which export    reads requests  runs them  ─► reply_queue ─► socket
//! ```

mod budget;
mod error;
mod error_code;
mod handshake;
mod reply_queue;
mod session;
mod socket;
mod transmission;

use std::sync::Arc;
use std::time::Duration;

use sheepfs_vfs::Chain;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub use self::error::ConnectionError;
pub use self::socket::{Listener, Socket};

use self::budget::{Budget, SharedBudget};
use self::handshake::{Handshake, Outcome};
use self::reply_queue::ReplyQueue;
use self::session::Session;
use crate::export::Exports;

/// Connections at the same time.
pub const MAX_CONNECTIONS: usize = 1024;
/// Pause after an error of accept(2), which may have been a lack of descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Serves exports to clients.
///
/// A client that breaks the protocol loses its connection, others are not disturbed.
/// What clients can make the server hold is bounded, for each connection and in all.
#[derive(Debug)]
pub struct Server<X> {
    exports: X,
    budget: SharedBudget,
    connections: Arc<Semaphore>,
    tasks: TaskTracker,
    shutdown: CancellationToken,
}

impl<X: Exports> Server<X> {
    /// A server without clients.
    pub fn new(exports: X) -> Arc<Self> {
        Arc::new(Self {
            exports,
            budget: SharedBudget::default(),
            connections: Arc::new(Semaphore::new(MAX_CONNECTIONS)),
            tasks: TaskTracker::new(),
            shutdown: CancellationToken::new(),
        })
    }

    /// What it serves.
    pub fn exports(&self) -> &X {
        &self.exports
    }

    /// Takes clients from `listener` until [`Self::shut_down`].
    pub async fn serve(self: &Arc<Self>, listener: Listener) {
        loop {
            let accepted = tokio::select! {
                () = self.shutdown.cancelled() => return,
                accepted = listener.accept() => accepted,
            };
            match accepted {
                Ok((socket, peer)) => self.welcome(socket, peer),
                Err(error) => {
                    tracing::warn!("cannot accept a connection on {listener}: {error}");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    fn welcome(self: &Arc<Self>, socket: Socket, peer: String) {
        let Ok(place) = Arc::clone(&self.connections).try_acquire_owned() else {
            tracing::warn!("{peer}: refused, there are {MAX_CONNECTIONS} connections already");
            return;
        };
        let server = Arc::clone(self);
        self.tasks.spawn(async move {
            match server.serve_client(socket, &peer).await {
                Ok(()) => tracing::debug!("{peer}: disconnected"),
                Err(error) => tracing::warn!("{peer}: dropped: {}", Chain(&error)),
            }
            drop(place);
        });
    }

    /// Serves one client until it goes.
    ///
    /// # Errors
    /// Why its connection ended otherwise.
    async fn serve_client(&self, mut socket: Socket, peer: &str) -> Result<(), ConnectionError> {
        let negotiation = async {
            let mut handshake =
                Handshake::begin(&mut socket, &self.exports, &self.shutdown).await?;
            handshake.run().await
        };
        let outcome = tokio::select! {
            outcome = negotiation => outcome?,
            // Nothing is lost with a client that has not chosen yet.
            () = self.shutdown.cancelled() => return Ok(()),
        };
        let Outcome::Transmit(agreed) = outcome else {
            return Ok(());
        };
        let name = agreed.name.escape_ascii().to_string();
        tracing::info!("{peer}: connected to {name}");
        let (reader, writer) = socket.into_split();
        let session = Arc::new(Session {
            export: agreed.export,
            style: agreed.style,
            contexts: agreed.contexts,
            replies: ReplyQueue::new(writer),
        });
        let budget = Budget::new(self.budget.clone());
        let served = transmission::serve(reader, &session, &budget, &self.shutdown).await;
        tracing::info!("{peer}: disconnected from {name}");
        served
    }

    /// Takes no more clients and no more requests; those that were taken are answered.
    pub fn shut_down(&self) {
        self.shutdown.cancel();
        self.tasks.close();
    }

    /// Returns when the last client has gone, after [`Self::shut_down`].
    pub async fn drained(&self) {
        self.tasks.wait().await;
    }
}
