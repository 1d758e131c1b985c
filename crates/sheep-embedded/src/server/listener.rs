//! The accept loop: a task per connection, up to a limit.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_util::task::TaskTracker;

use super::connection;
use super::error::ConnectionError;
use super::node_context::NodeContext;
use crate::config::MAX_CONNECTIONS;

/// Pause after a connection could not be accepted.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Accepts until the node stops. At [`MAX_CONNECTIONS`] it leaves new ones in
/// the listener's queue.
pub(crate) async fn accept(listener: TcpListener, node: NodeContext, connections: TaskTracker) {
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
                // Out of descriptors, most likely: other connections must close first.
                tracing::warn!("cannot accept a connection: {error}");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// Serves one connection and logs why it ended.
async fn serve(stream: TcpStream, peer: SocketAddr, node: NodeContext) {
    tracing::debug!(%peer, "connected");
    match connection::serve(stream, node).await {
        Ok(()) => tracing::debug!(%peer, "disconnected"),
        // Clients such as dog often close with a response still unread.
        Err(
            error @ (ConnectionError::Io(_) | ConnectionError::Aborted | ConnectionError::Fault),
        ) => {
            tracing::debug!(%peer, "connection lost: {error}");
        }
        Err(error) => tracing::warn!(%peer, "connection closed: {error}"),
    }
}
