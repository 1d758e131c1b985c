//! Sends requests: admission, the choice of a connection, timeouts, retries.
//!
//! A request goes to the least loaded connection of the node that the
//! [`NodePolicy`] prefers, or else of the gateway; a budget admits as many requests
//! at the same time as it has permits for. An unresponsive node is waited for,
//! because requests may still be queued there. TCP keepalive finds out whether its
//! host is dead, and after the timeout the request fails. [`retry`] decides what is
//! sent again, and when.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use sheep_proto::{Generation, Opcode};
use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

use crate::connection::{Connection, Pending, RequestOwner};
use crate::error::{Chain, ClientError};
use crate::request::{Request, Response};
use crate::retry::{self, Decision, Fence};
use crate::supervisor::{SessionEnded, Supervisor};
use crate::transport::Completion;

/// The unit of the budget, in bytes.
const PERMIT_LEN: usize = 4 << 10;
/// Bytes of all requests in flight, both ways.
const BUDGET_BYTES: usize = 64 << 20;
/// Smallest charge for a request, in bytes: bounds the requests in flight to
/// 1,024.
const MIN_CHARGE: usize = BUDGET_BYTES / 1024;

/// Chooses the node that a request is sent to first.
///
/// A choice is only a preference: when the node has no connection the request
/// goes to the gateway, which forwards it. The choice is made anew for every
/// retry.
pub(crate) trait NodePolicy: Send + Sync {
    /// The preferred node; `None` for the gateway.
    fn preferred_node(&self, request: &Request) -> Option<SocketAddr>;
}

/// Sends every request to the gateway.
pub(crate) struct GatewayOnly;

impl NodePolicy for GatewayOnly {
    fn preferred_node(&self, _request: &Request) -> Option<SocketAddr> {
        None
    }
}

/// See the module.
pub(crate) struct Dispatcher {
    supervisor: Arc<Supervisor>,
    policy: Box<dyn NodePolicy>,
    budget: Arc<Semaphore>,
    /// Longest timeout of a request.
    retry_for: Duration,
    runtime: Handle,
}

impl Dispatcher {
    /// # Panics
    /// Outside a tokio runtime.
    pub(crate) fn new(
        supervisor: Arc<Supervisor>,
        policy: Box<dyn NodePolicy>,
        retry_for: Duration,
    ) -> Self {
        Self {
            supervisor,
            policy,
            budget: Arc::new(Semaphore::new(BUDGET_BYTES / PERMIT_LEN)),
            retry_for,
            runtime: Handle::current(),
        }
    }

    pub(crate) fn supervisor(&self) -> &Arc<Supervisor> {
        &self.supervisor
    }

    /// The generation of the gateway, see
    /// [`Transport::generation`](crate::transport::Transport::generation).
    pub(crate) async fn generation(&self, timeout: Duration) -> Result<Generation, ClientError> {
        self.supervisor
            .generation(timeout.min(self.retry_for))
            .await
    }

    /// Sends a request from the calling thread, or leaves it to a task when it
    /// has to wait.
    pub(crate) fn submit(self: &Arc<Self>, request: Request, completion: Completion) {
        let timeout = request.timeout().unwrap_or(self.retry_for);
        let timeout = timeout.min(self.retry_for);
        let mut pending = Pending::new(request, timeout, completion);
        let budget = Arc::clone(&self.budget);
        let unsent = match budget.try_acquire_many_owned(self.permits(&pending.request)) {
            Ok(permit) => {
                pending.permit = Some(permit);
                self.send(pending)
            }
            Err(_exhausted) => Err(pending),
        };
        if let Err(unsent) = unsent {
            self.send_later(unsent, Duration::ZERO);
        }
    }

    /// Sends a request to one node, once, on a connection of its own.
    pub(crate) fn submit_to(
        self: &Arc<Self>,
        node: SocketAddr,
        request: Request,
        completion: Completion,
    ) {
        let dispatcher = Arc::clone(self);
        self.runtime.spawn(async move {
            let supervisor = &dispatcher.supervisor;
            let response = supervisor.until_closed(async {
                let connection = supervisor.connect_to_member(node).await?;
                connection.request(request).await
            });
            let outcome = response.await;
            completion(outcome.unwrap_or_else(|| Err(ClientError::Closed)));
        });
    }

    /// Sends on the best connection, or gives the request back.
    #[expect(clippy::result_large_err, reason = "the error is the request itself")]
    fn send(self: &Arc<Self>, pending: Pending) -> Result<(), Pending> {
        match self.connection_for(&pending.request) {
            // A task asks first.
            Ok(Some(connection)) if connection.must_ask_for_cache(&pending.request) => Err(pending),
            found => self.send_on(found, pending),
        }
    }

    /// Sends on a connection, or gives the request back without one.
    #[expect(clippy::result_large_err, reason = "the error is the request itself")]
    fn send_on(
        self: &Arc<Self>,
        connection: Result<Option<Arc<Connection>>, ClientError>,
        pending: Pending,
    ) -> Result<(), Pending> {
        match connection {
            Ok(Some(connection)) => connection.send(pending.owned_by(Arc::clone(self) as _)),
            Ok(None) => Err(pending),
            Err(ended) => {
                pending.complete(Err(ended));
                Ok(())
            }
        }
    }

    /// The best connection for a request. An error when it is for a session that has
    /// ended.
    fn connection_for(&self, request: &Request) -> Result<Option<Arc<Connection>>, ClientError> {
        match request.session() {
            None => {
                let node = self.policy.preferred_node(request);
                Ok(self.supervisor.connection_to(node))
            }
            Some(session) => {
                let found = self.supervisor.connection_in(session);
                found.map_err(|SessionEnded| ClientError::SessionEnded {
                    operation: request.operation(),
                })
            }
        }
    }

    /// The same; a sheep that could not say whether it has an object cache is asked again.
    async fn asked_connection_for(
        &self,
        request: &Request,
    ) -> Result<Option<Arc<Connection>>, ClientError> {
        let found = self.connection_for(request)?;
        if let Some(connection) = &found
            && connection.must_ask_for_cache(request)
            && let Err(error) = connection.detect_cache().await
        {
            tracing::debug!("cannot ask for the object cache: {}", Chain(&error));
        }
        Ok(found)
    }

    /// Sends a request after `delay`, when its fence has ended, a sheep is
    /// reachable and the budget admits it; fails it when that takes too long.
    fn send_later(self: &Arc<Self>, mut pending: Pending, delay: Duration) {
        let dispatcher = Arc::clone(self);
        self.runtime.spawn(async move {
            let supervisor = &dispatcher.supervisor;
            let sleep = tokio::time::sleep(delay);
            if !delay.is_zero() && supervisor.until_closed(sleep).await.is_none() {
                return pending.complete(Err(ClientError::Closed));
            }
            loop {
                // Others may use its share while this waits.
                pending.permit = None;
                let admitted = supervisor.until_closed(dispatcher.admit(
                    &pending.request,
                    pending.timeout,
                    pending.attempts.fence(),
                ));
                pending.permit = match admitted.await {
                    Some(Ok(permit)) => Some(permit),
                    Some(Err(error)) => return pending.complete(Err(error)),
                    None => return pending.complete(Err(ClientError::Closed)),
                };
                let connection = dispatcher.asked_connection_for(&pending.request).await;
                match dispatcher.send_on(connection, pending) {
                    Ok(()) => return,
                    Err(unsent) => pending = unsent,
                }
            }
        });
    }

    /// Waits for a sheep, for the fence, and for a share of the budget.
    async fn admit(
        &self,
        request: &Request,
        timeout: Duration,
        fence: Option<Fence>,
    ) -> Result<OwnedSemaphorePermit, ClientError> {
        self.supervisor.wait_connected(timeout).await?;
        if let Some(fence) = fence {
            self.wait_for_fence(fence).await;
            self.supervisor.wait_connected(timeout).await?;
        }
        // Now that it is known to which sheep it goes.
        let permits = self.permits(request);
        let budget = Arc::clone(&self.budget).acquire_many_owned(permits);
        match tokio::time::timeout(timeout, budget).await {
            Ok(permit) => Ok(permit.expect("the budget is never closed")),
            Err(_elapsed) => Err(self.supervisor.unreachable(timeout)),
        }
    }

    /// The permits of the budget that a request takes.
    fn permits(&self, request: &Request) -> u32 {
        // Only these may be sent with more bytes than they have.
        let gateway = match request.opcode() {
            Opcode::CreateAndWriteObj => self.supervisor.connection_to(None),
            _ => None,
        };
        let len = gateway.map_or(request.wire_len(), |gateway| gateway.wire_len(request));
        let charge = len.clamp(MIN_CHARGE, BUDGET_BYTES);
        u32::try_from(charge.div_ceil(PERMIT_LEN))
            .expect("a charge is at most the budget, which fits in 32 bits")
    }

    async fn wait_for_fence(&self, fence: Fence) {
        let (refused_at, reachable_since) = self.supervisor.reachability(fence.node);
        tokio::time::sleep_until(fence.ends_at(refused_at, reachable_since)).await;
    }
}

impl RequestOwner for Dispatcher {
    fn on_complete(self: Arc<Self>, mut pending: Pending, outcome: Result<Response, ClientError>) {
        if let Ok(response) = &outcome {
            self.supervisor.observe_epoch(response.header.epoch.get());
        }
        if pending.is_expired() || self.supervisor.is_closed() {
            return pending.complete(outcome);
        }
        let now = Instant::now();
        let decision = retry::decide(
            &pending.request,
            &pending.attempts,
            &outcome,
            pending.timeout,
            now,
        );
        let is_session_over =
            pending.request.session().is_some() && matches!(outcome, Err(ClientError::Lost { .. }));
        let Decision::RetryAfter { delay, fence } = decision else {
            return pending.complete(outcome);
        };
        if is_session_over {
            return pending.complete(outcome);
        }
        pending.attempts.record(now, fence);
        match &outcome {
            Ok(response) => {
                tracing::debug!(code = %response.header.result(), "{} again", response.operation);
            }
            Err(error) => tracing::debug!("sending again: {}", Chain(error)),
        }
        self.send_later(pending, delay);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use sheep_proto::cluster::ClusterInfoHeader;
    use sheep_proto::limits::HEADER_LEN;
    use sheep_proto::{Oid, RequestHeader, ResponseBody, ResponseHeader, ResultCode};
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::{TcpListener, TcpStream};
    use tokio::sync::oneshot;
    use tokio_util::sync::{CancellationToken, DropGuard};
    use zerocopy::{FromBytes as _, FromZeros as _, IntoBytes as _};

    use super::*;
    use crate::connector::Tcp;

    /// A sheep that answers everything, and counts the requests for objects.
    struct Sheep {
        address: SocketAddr,
        requests: Arc<Mutex<u32>>,
        _running: DropGuard,
    }

    impl Sheep {
        async fn start() -> Self {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let address = listener.local_addr().unwrap();
            let requests = Arc::new(Mutex::new(0));
            let running = CancellationToken::new();
            let (counter, token) = (Arc::clone(&requests), running.clone());
            tokio::spawn(running.clone().run_until_cancelled_owned(async move {
                while let Ok((stream, _peer)) = listener.accept().await {
                    let answer = answer(stream, Arc::clone(&counter));
                    tokio::spawn(token.clone().run_until_cancelled_owned(answer));
                }
            }));
            Self {
                address,
                requests,
                _running: running.drop_guard(),
            }
        }

        fn requests(&self) -> u32 {
            *self.requests.lock().unwrap()
        }
    }

    async fn answer(mut stream: TcpStream, requests: Arc<Mutex<u32>>) {
        let mut header = [0; HEADER_LEN];
        while stream.read_exact(&mut header).await.is_ok() {
            let request = RequestHeader::read_from_bytes(&header).unwrap();
            if request.opcode == Opcode::StatCluster as u8 && request.proto_ver != 0x0a {
                let mismatch = ResponseBody::result(ResultCode::VerMismatch);
                let response = ResponseHeader::answer(&request, 1, 0, mismatch);
                stream.write_all(response.as_bytes()).await.unwrap();
                continue;
            }
            let payload = if request.opcode == Opcode::ClusterInfo as u8 {
                ClusterInfoHeader::new_zeroed().as_bytes().to_vec()
            } else {
                if request.opcode == Opcode::ReadObj as u8 {
                    *requests.lock().unwrap() += 1;
                }
                Vec::new()
            };
            let success = ResponseBody::result(ResultCode::Success);
            let len = u32::try_from(payload.len()).unwrap();
            let response = ResponseHeader::answer(&request, 1, len, success);
            let frame = [response.as_bytes(), &payload].concat();
            stream.write_all(&frame).await.unwrap();
        }
    }

    /// Prefers one node for objects.
    struct Prefer(SocketAddr);

    impl NodePolicy for Prefer {
        fn preferred_node(&self, request: &Request) -> Option<SocketAddr> {
            (request.opcode() == Opcode::ReadObj).then_some(self.0)
        }
    }

    async fn read(dispatcher: &Arc<Dispatcher>) {
        let (done, outcome) = oneshot::channel();
        let read = Request::read_object(Oid::from_raw(1), 0, 0);
        let completion: Completion = Box::new(move |outcome| done.send(outcome).unwrap());
        dispatcher.submit(read, completion);
        let outcome = tokio::time::timeout(Duration::from_secs(30), outcome);
        outcome.await.unwrap().unwrap().unwrap();
    }

    #[tokio::test]
    async fn request_goes_to_preferred_node_or_gateway() {
        let (gateway, node) = (Sheep::start().await, Sheep::start().await);
        let addresses = vec![gateway.address.into()];
        let supervisor = Supervisor::start(addresses, 1, Arc::new(Tcp))
            .await
            .unwrap();
        let policy = Box::new(Prefer(node.address));
        let timeout = Duration::from_secs(30);
        let dispatcher = Arc::new(Dispatcher::new(supervisor, policy, timeout));

        read(&dispatcher).await;
        assert_eq!((gateway.requests(), node.requests()), (1, 0));

        let supervisor = dispatcher.supervisor();
        supervisor.connect_node(node.address).await.unwrap();
        read(&dispatcher).await;
        assert_eq!((gateway.requests(), node.requests()), (1, 1));

        let address = node.address;
        drop(node);
        tokio::time::timeout(timeout, async {
            while supervisor
                .connection_to(Some(address))
                .is_some_and(|connection| connection.peer() == address)
            {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        })
        .await
        .unwrap();
        read(&dispatcher).await;
        assert_eq!(gateway.requests(), 2);
        supervisor.close();
    }
}
