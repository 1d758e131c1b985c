//! The server: accepts connections and serves exports.
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

use rustls::ServerConfig;

use sheepfs_vfs::Chain;
use tokio::io::AsyncWriteExt as _;
use tokio::sync::Semaphore;
use tokio::time::Instant;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub use self::error::ConnectionError;
pub use self::socket::{Listener, Socket};

use self::budget::{Budget, SharedBudget};
use self::error::unless_late;
use self::handshake::{Handshake, Negotiated, Outcome, Tls};
use self::reply_queue::ReplyQueue;
use self::reply_queue::Sink;
use self::session::Session;
use self::socket::Reader;
use crate::export::Exports;

/// Maximum number of connections.
pub const MAX_CONNECTIONS: usize = 1024;
/// Time until a client must have chosen an export, TLS included.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(120);
/// Pause after an error of accept(2), for example EMFILE.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Serves exports to clients.
///
/// A protocol error closes only its own connection. Memory is bounded, per connection
/// and in total.
#[derive(Debug)]
pub struct Server<X> {
    exports: X,
    /// Required for all clients, if set.
    tls: Option<Arc<ServerConfig>>,
    budget: SharedBudget,
    connections: Arc<Semaphore>,
    tasks: TaskTracker,
    shutdown: CancellationToken,
}

impl<X: Exports> Server<X> {
    /// A server without clients, and without TLS.
    pub fn new(exports: X) -> Arc<Self> {
        Self::with_tls(exports, None)
    }

    /// A server that requires TLS; see [`crate::tls::load`].
    pub fn with_tls(exports: X, tls: Option<Arc<ServerConfig>>) -> Arc<Self> {
        Arc::new(Self {
            exports,
            tls,
            budget: SharedBudget::default(),
            connections: Arc::new(Semaphore::new(MAX_CONNECTIONS)),
            tasks: TaskTracker::new(),
            shutdown: CancellationToken::new(),
        })
    }

    /// Its exports.
    pub fn exports(&self) -> &X {
        &self.exports
    }

    /// Accepts connections from `listener` until [`Self::shut_down`].
    pub async fn serve(self: &Arc<Self>, listener: Listener) {
        loop {
            let accepted = tokio::select! {
                () = self.shutdown.cancelled() => return,
                accepted = listener.accept() => accepted,
            };
            match accepted {
                Ok((socket, peer)) => self.handle_connection(socket, peer),
                Err(error) => {
                    tracing::warn!("cannot accept a connection on {listener}: {error}");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    fn handle_connection(self: &Arc<Self>, socket: Socket, peer: String) {
        let Ok(permit) = Arc::clone(&self.connections).try_acquire_owned() else {
            tracing::warn!("{peer}: refused, there are {MAX_CONNECTIONS} connections already");
            return;
        };
        let server = Arc::clone(self);
        self.tasks.spawn(async move {
            match server.serve_client(socket, &peer).await {
                Ok(()) => tracing::debug!("{peer}: disconnected"),
                Err(error) => tracing::warn!("{peer}: dropped: {}", Chain(&error)),
            }
            drop(permit);
        });
    }

    /// Serves one connection until it ends.
    ///
    /// # Errors
    /// Why it ended before the client disconnected.
    async fn serve_client(&self, mut socket: Socket, peer: &str) -> Result<(), ConnectionError> {
        let tls = match &self.tls {
            Some(_) => Tls::Required,
            None => Tls::Unavailable,
        };
        let deadline = Instant::now() + HANDSHAKE_TIMEOUT;
        let greeted = self.unless_ended(async {
            Handshake::begin(&mut socket, &self.exports, &self.shutdown, deadline, tls)
                .await?
                .run()
                .await
        });
        let Some(outcome) = greeted.await? else {
            return Ok(());
        };
        match (outcome, &self.tls) {
            (Outcome::Transmit(negotiated), _) => {
                let (reader, writer) = socket.into_split();
                self.transmit(negotiated, reader, Sink::Direct(writer), peer)
                    .await
            }
            (Outcome::StartTls(flags), Some(config)) => {
                let acceptor = TlsAcceptor::from(Arc::clone(config));
                let resumed = self.unless_ended(async {
                    let accepted = unless_late(deadline, acceptor.accept(socket)).await;
                    let mut stream = accepted.map_err(|error| match error {
                        ConnectionError::Io(source) => ConnectionError::Tls(source),
                        other => other,
                    })?;
                    let mut handshake = Handshake::resume(
                        &mut stream,
                        &self.exports,
                        &self.shutdown,
                        deadline,
                        Tls::Active,
                        flags,
                    );
                    let outcome = handshake.run().await?;
                    if matches!(outcome, Outcome::Ended) {
                        // The client may have closed it first.
                        drop(unless_late(deadline, stream.shutdown()).await);
                    }
                    Ok((outcome, stream))
                });
                let Some((Outcome::Transmit(negotiated), stream)) = resumed.await? else {
                    return Ok(());
                };
                let (reader, writer) = tokio::io::split(stream);
                let sink = Sink::Stream(tokio::sync::Mutex::new(Box::new(writer)));
                self.transmit(negotiated, Box::new(reader), sink, peer)
                    .await
            }
            (Outcome::StartTls(_) | Outcome::Ended, _) => Ok(()),
        }
    }

    /// Waits for a handshake; `None` when the client leaves, which it may do at any time,
    /// or the server shuts down. A client that has not chosen an export has no requests
    /// to drain.
    async fn unless_ended<T>(
        &self,
        handshake: impl Future<Output = Result<T, ConnectionError>>,
    ) -> Result<Option<T>, ConnectionError> {
        tokio::select! {
            outcome = handshake => match outcome {
                Err(error) if error.is_disconnect() => Ok(None),
                outcome => outcome.map(Some),
            },
            () = self.shutdown.cancelled() => Ok(None),
        }
    }

    async fn transmit(
        &self,
        negotiated: Negotiated<X::Export>,
        reader: Reader,
        sink: Sink,
        peer: &str,
    ) -> Result<(), ConnectionError> {
        let name = negotiated.name.escape_ascii().to_string();
        tracing::info!("{peer}: connected to {name}");
        let session = Arc::new(Session {
            export: negotiated.export,
            style: negotiated.style,
            contexts: negotiated.contexts,
            replies: ReplyQueue::new(sink),
            shutdown: self.shutdown.clone(),
        });
        let budget = Budget::new(self.budget.clone());
        let served = transmission::serve(reader, &session, &budget, &self.shutdown).await;
        tracing::info!("{peer}: disconnected from {name}");
        served
    }

    /// Accepts no more connections and requests; requests in flight complete.
    pub fn shut_down(&self) {
        self.shutdown.cancel();
        self.tasks.close();
    }

    /// Waits for the end of all connections, after [`Self::shut_down`].
    pub async fn drained(&self) {
        self.tasks.wait().await;
    }
}
