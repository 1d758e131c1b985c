//! How a client is set up.

use std::time::Duration;

use crate::address::GatewayAddress;

/// Connections to the gateway unless told otherwise; a sheep reads the frames
/// of one connection one at a time, so more of them carry more.
pub const DEFAULT_CONNECTIONS: usize = 8;
/// Time without any sheep or answer after which calls fail, unless told otherwise.
pub const DEFAULT_RETRY_FOR: Duration = Duration::from_secs(60);

/// Settings of a [`Client`](crate::Client).
#[derive(Clone, Debug)]
pub struct ClientConfig {
    /// Sheep to use, the first that answers. When none does any more, the nodes
    /// of the last node list are tried as well. Must not be empty.
    pub addresses: Vec<GatewayAddress>,
    /// Connections to keep open to the gateway, at least 1.
    pub connections: usize,
    /// How long a call waits while no sheep is reachable, for an answer, and for
    /// a refusal that passes.
    pub retry_for: Duration,
}

impl ClientConfig {
    /// The defaults, with one sheep.
    pub fn new(address: GatewayAddress) -> Self {
        Self {
            addresses: vec![address],
            connections: DEFAULT_CONNECTIONS,
            retry_for: DEFAULT_RETRY_FOR,
        }
    }
}
