//! The gateway over real connections.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use sheep_proto::Generation;

use crate::address::GatewayAddress;
use crate::config::ClientConfig;
use crate::connector::{Connector, Tcp};
use crate::dispatcher::{Dispatcher, GatewayOnly};
use crate::error::ClientError;
use crate::request::Request;
use crate::retry::FENCE_INTERVAL;
use crate::session::Session;
use crate::supervisor::Supervisor;
use crate::transport::{BoxFuture, Completion, Transport};

/// A pool of connections to a cluster, kept open through failures.
///
/// Dropping it closes the connections. Requests without a response then end with
/// [`ClientError::Lost`] or [`ClientError::Closed`].
pub struct Pool {
    dispatcher: Arc<Dispatcher>,
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pool")
            .field("address", &self.address())
            .finish_non_exhaustive()
    }
}

impl Pool {
    /// Connects to the first sheep that answers, and keeps connected from then on.
    ///
    /// # Errors
    /// `Connect` or `Unreachable` with the last address tried when none answers.
    ///
    /// # Panics
    /// Outside a tokio runtime, or when the configuration names no sheep.
    pub async fn connect(config: ClientConfig) -> Result<Self, ClientError> {
        Self::connect_with(config, Arc::new(Tcp)).await
    }

    /// The same over another network than the machine's.
    ///
    /// # Errors
    /// As [`Pool::connect`].
    ///
    /// # Panics
    /// As [`Pool::connect`].
    pub async fn connect_with(
        config: ClientConfig,
        connector: Arc<dyn Connector>,
    ) -> Result<Self, ClientError> {
        let supervisor = Supervisor::start(config.addresses, config.connections, connector).await?;
        let dispatcher = Dispatcher::new(supervisor, Box::new(GatewayOnly), config.retry_for);
        Ok(Self {
            dispatcher: Arc::new(dispatcher),
        })
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.dispatcher.supervisor().close();
    }
}

impl Transport for Pool {
    fn submit(&self, request: Request, completion: Completion) {
        self.dispatcher.submit(request, completion);
    }

    fn submit_to(&self, node: SocketAddr, request: Request, completion: Completion) {
        self.dispatcher.submit_to(node, request, completion);
    }

    fn address(&self) -> GatewayAddress {
        self.dispatcher.supervisor().address()
    }

    fn peer(&self) -> Option<SocketAddr> {
        let connection = self.dispatcher.supervisor().connection_to(None);
        connection.map(|connection| connection.peer())
    }

    fn generation(&self, timeout: Duration) -> BoxFuture<'_, Result<Generation, ClientError>> {
        Box::pin(self.dispatcher.generation(timeout))
    }

    fn session(&self) -> Session {
        self.dispatcher.supervisor().session()
    }

    fn switch_gateway(&self, address: GatewayAddress) -> BoxFuture<'_, Result<(), ClientError>> {
        Box::pin(self.dispatcher.supervisor().switch_gateway(address))
    }

    fn fence_interval(&self) -> Duration {
        FENCE_INTERVAL
    }
}
