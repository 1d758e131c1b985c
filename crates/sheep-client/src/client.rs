//! The client: typed operations over a gateway.

use std::net::SocketAddr;
use std::sync::Arc;

use tokio::sync::oneshot;

use crate::address::GatewayAddress;
use crate::call::{Call, Response};
use crate::config::ClientConfig;
use crate::error::ClientError;
use crate::gateway::{Completion, Gateway};
use crate::pool::Pool;

/// A cluster to talk to. Clones share its connections.
#[derive(Clone, Debug)]
pub struct Client {
    gateway: Arc<dyn Gateway>,
}

impl Client {
    /// Connects to the first sheep that answers.
    ///
    /// # Errors
    /// `Connect` or `Unreachable` with the last address tried when none answers.
    ///
    /// # Panics
    /// Outside a tokio runtime, or when the configuration names no sheep.
    pub async fn connect(config: ClientConfig) -> Result<Self, ClientError> {
        Ok(Self::over(Arc::new(Pool::connect(config).await?)))
    }

    /// A client over another gateway than TCP connections.
    pub fn over(gateway: Arc<dyn Gateway>) -> Self {
        Self { gateway }
    }

    /// The sheep's address as it was given.
    pub fn address(&self) -> GatewayAddress {
        self.gateway.address()
    }

    /// The sheep in use now, which may be another after a failure; `None` while
    /// none is connected.
    pub fn peer(&self) -> Option<SocketAddr> {
        self.gateway.peer()
    }

    /// Checks that a sheep answers at `address`, then uses it for every call
    /// from now on, for all clones of this client. Calls in flight finish where
    /// they are.
    ///
    /// # Errors
    /// `Connect` or `Unreachable` when it does not answer; the old address stays
    /// in use.
    pub async fn move_to(&self, address: GatewayAddress) -> Result<(), ClientError> {
        self.gateway.move_to(address).await
    }

    /// Sends `call` and runs `done` with the outcome where the answer is read.
    ///
    /// Does not block. A refusal is an `Ok` with its result code here.
    pub fn submit(&self, call: Call, done: Completion) {
        self.gateway.submit(call, done);
    }

    /// Sends `call` and returns the answer, unless it is a refusal.
    ///
    /// # Errors
    /// `Refused` with the result code; `Lost` or `Unreachable` without an answer.
    pub async fn call(&self, call: Call) -> Result<Response, ClientError> {
        self.ask(call).await?.accepted()
    }

    /// Sends `call` and returns the answer whatever its result code.
    pub(crate) async fn ask(&self, call: Call) -> Result<Response, ClientError> {
        self.wait(|caller| {
            self.gateway
                .submit(call, Box::new(|outcome| wake(caller, outcome)))
        })
        .await
    }

    /// Sends `call` to one node and returns the answer, unless it is a refusal.
    pub(crate) async fn ask_node(
        &self,
        node: SocketAddr,
        call: Call,
    ) -> Result<Response, ClientError> {
        self.wait(|caller| {
            self.gateway
                .submit_to(node, call, Box::new(|outcome| wake(caller, outcome)))
        })
        .await?
        .accepted()
    }

    /// Waits until a call that ended with [`ClientError::Lost`] does not run any more.
    pub async fn settle(&self) {
        tokio::time::sleep(self.gateway.settle_time()).await;
    }

    /// Waits for what `submit` passes to the completion it is given.
    pub(crate) async fn wait<T: Send + 'static>(
        &self,
        submit: impl FnOnce(oneshot::Sender<Result<T, ClientError>>),
    ) -> Result<T, ClientError> {
        let (caller, answer) = oneshot::channel();
        submit(caller);
        answer.await.unwrap_or(Err(ClientError::Panicked {
            task: "complete a request",
        }))
    }
}

/// Passes the outcome of a request to its caller. One that was dropped does not
/// hear of it; the request still runs.
pub(crate) fn wake<T>(caller: oneshot::Sender<T>, outcome: T) {
    drop(caller.send(outcome));
}
