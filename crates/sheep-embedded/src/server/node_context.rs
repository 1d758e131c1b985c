//! What the connections of a node share.

use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};

use tokio_util::sync::CancellationToken;

use super::limits::ServerLimits;
use crate::faults::Faults;
use crate::sheep::Sheep;

/// See the module.
#[derive(Clone)]
pub(crate) struct NodeContext {
    pub(crate) sheep: Arc<Sheep>,
    pub(crate) local_address: SocketAddr,
    pub(crate) faults: Faults,
    pub(crate) limits: ServerLimits,
    /// Cancelled when the node must stop, by its owner or by a client.
    pub(crate) stop: CancellationToken,
    /// Cancelled when the node must not wait for the requests in flight.
    pub(crate) abort: CancellationToken,
    /// Why a request has ended the node, if one has.
    pub(crate) death: Arc<OnceLock<String>>,
}

impl NodeContext {
    /// Ends the node as a crash would.
    pub(crate) fn die(&self, reason: &str) {
        let obituary = self.sheep.obituary(reason);
        tracing::error!("{} {obituary}", self.local_address);
        // The first one counts; others may have been in flight.
        let _first = self.death.set(obituary);
        self.sheep.leave(self.local_address);
        self.abort.cancel();
        self.stop.cancel();
    }
}
