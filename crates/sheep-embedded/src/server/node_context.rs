//! What the connections of a node share.

use std::net::SocketAddr;
use std::sync::Arc;

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
}
