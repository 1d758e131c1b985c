//! How a client is set up.

use std::time::Duration;

use crate::address::GatewayAddress;

/// Connections to the gateway, unless configured otherwise. A sheep reads the
/// frames of one connection one at a time, so more connections carry more.
pub const DEFAULT_CONNECTIONS: usize = 8;
/// Timeout of requests, unless configured otherwise.
pub const DEFAULT_RETRY_FOR: Duration = Duration::from_secs(60);

/// Settings of a [`Client`](crate::Client).
///
/// ```
/// use sheep_client::ClientConfig;
///
/// let mut config = ClientConfig::new("10.0.0.1:7000".parse()?);
/// config.addresses.push("10.0.0.2:7000".parse()?);
/// assert!(config.connections > 0);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct ClientConfig {
    /// Sheep to connect to, in this order. Failover also tries the nodes of the
    /// last node list. Must not be empty.
    pub addresses: Vec<GatewayAddress>,
    /// Connections to keep open to the gateway, at least 1.
    pub connections: usize,
    /// Timeout of a request: how long it waits for a sheep and for a response, and
    /// for how long it is retried.
    pub retry_for: Duration,
}

impl ClientConfig {
    /// The defaults, with one sheep.
    pub fn new(address: GatewayAddress) -> Self {
        Self::with_addresses(vec![address])
    }

    /// The defaults, with the addresses of several sheep of one cluster.
    pub fn with_addresses(addresses: Vec<GatewayAddress>) -> Self {
        Self {
            addresses,
            connections: DEFAULT_CONNECTIONS,
            retry_for: DEFAULT_RETRY_FOR,
        }
    }
}
