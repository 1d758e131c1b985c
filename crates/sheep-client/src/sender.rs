//! Sends requests over a gateway and awaits their outcome.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use sheep_proto::Generation;
use tokio::sync::oneshot;

use crate::error::{Chain, ClientError};
use crate::request::{Request, Response};
use crate::retry::VERIFIED_ATTEMPTS;
use crate::transport::{Completion, Transport};

/// What all handles of a client send with. Clones share the gateway.
#[derive(Clone, Debug)]
pub(crate) struct Sender {
    pub(crate) transport: Arc<dyn Transport>,
}

impl Sender {
    /// Sends a request and runs `completion` with the outcome where the response
    /// is read.
    ///
    /// Does not block. A refusal is an `Ok` with its result code here.
    pub(crate) fn submit(&self, request: Request, completion: Completion) {
        self.transport.submit(request, completion);
    }

    /// Sends a request and returns the response, unless it is a refusal.
    ///
    /// # Errors
    /// `Refused` with the result code; `Lost`, `Unreachable` or `Closed` without a
    /// response.
    pub(crate) async fn send(&self, request: Request) -> Result<Response, ClientError> {
        self.send_for_status(request).await?.into_result()
    }

    /// Sends a request that must not be replayed blindly. After a disconnect
    /// `took_effect` looks whether it was executed, and again behind a fence,
    /// since the copy that was lost may be executed late. Only when it was not is
    /// the request sent again.
    ///
    /// # Errors
    /// `Lost` when that happens again and again, otherwise as [`Sender::send`] and
    /// `took_effect`.
    pub(crate) async fn send_verified<F>(
        &self,
        request: Request,
        took_effect: impl Fn() -> F,
    ) -> Result<(), ClientError>
    where
        F: Future<Output = Result<bool, ClientError>>,
    {
        let mut attempts = 0;
        loop {
            let lost = match self.send(request.clone()).await {
                Err(error @ ClientError::Lost { .. }) => error,
                other => return other.map(drop),
            };
            tracing::debug!("checking whether the request took effect: {}", Chain(&lost));
            if took_effect().await? {
                return Ok(());
            }
            self.fence().await;
            if took_effect().await? {
                return Ok(());
            }
            attempts += 1;
            if attempts == VERIFIED_ATTEMPTS {
                return Err(lost);
            }
        }
    }

    /// Sends a request and returns the response whatever its result code.
    pub(crate) async fn send_for_status(&self, request: Request) -> Result<Response, ClientError> {
        self.wait(|caller| {
            let completion: Completion = Box::new(|outcome| wake(caller, outcome));
            self.transport.submit(request, completion);
        })
        .await
    }

    /// Sends a request to one node and returns the response, unless it is a
    /// refusal.
    pub(crate) async fn send_to_node(
        &self,
        node: SocketAddr,
        request: Request,
    ) -> Result<Response, ClientError> {
        self.wait(|caller| {
            let completion: Completion = Box::new(|outcome| wake(caller, outcome));
            self.transport.submit_to(node, request, completion);
        })
        .await?
        .into_result()
    }

    /// The generation of the sheep in use.
    pub(crate) async fn generation(&self) -> Result<Generation, ClientError> {
        self.transport.generation(Duration::MAX).await
    }

    /// Waits until a request that ended with [`ClientError::Lost`] can no longer
    /// be executed.
    pub(crate) async fn fence(&self) {
        tokio::time::sleep(self.transport.fence_interval()).await;
    }

    /// Waits for what `submit` passes to the completion it is given.
    pub(crate) async fn wait<T: Send + 'static>(
        &self,
        submit: impl FnOnce(oneshot::Sender<Result<T, ClientError>>),
    ) -> Result<T, ClientError> {
        let (caller, outcome) = oneshot::channel();
        submit(caller);
        outcome.await.unwrap_or(Err(ClientError::Panicked {
            task: "complete a request",
        }))
    }
}

/// Passes the outcome of a request to its caller, unless that was dropped; the
/// request is executed in either case.
pub(crate) fn wake<T>(caller: oneshot::Sender<T>, outcome: T) {
    drop(caller.send(outcome));
}
