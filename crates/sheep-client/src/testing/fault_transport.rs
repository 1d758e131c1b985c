//! A transport that injects faults.

use std::fmt;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::BytesMut;
use sheep_proto::{Generation, ResponseBody, ResponseHeader, ResultCode};
use tokio::runtime::Handle;

use crate::address::GatewayAddress;
use crate::error::{ClientError, DisconnectReason, OperationId};
use crate::poison;
use crate::request::{Request, Response};
use crate::session::Session;
use crate::transport::{BoxFuture, Completion, Transport};

/// What happens to a request.
#[non_exhaustive]
pub enum Fault {
    /// It is sent after a pause.
    Delay(Duration),
    /// It is sent once the future is ready.
    DelayUntil(BoxFuture<'static, ()>),
    /// It is sent immediately, and its response is delivered after a pause.
    DelayResponse(Duration),
    /// It ends with [`ClientError::Lost`] and is not executed.
    LoseBefore,
    /// It is executed, then ends with [`ClientError::Lost`].
    LoseAfter,
    /// It is not executed, and refused with this code.
    Refuse(ResultCode),
    /// It ends with [`ClientError::Unreachable`] immediately, and is executed once the
    /// future is ready.
    TimeOut {
        /// The timeout that the error reports.
        waited: Duration,
        /// When the request is sent.
        until: BoxFuture<'static, ()>,
    },
}

impl fmt::Debug for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Delay(pause) => f.debug_tuple("Delay").field(pause).finish(),
            Self::DelayUntil(_) => f.write_str("DelayUntil"),
            Self::DelayResponse(pause) => f.debug_tuple("DelayResponse").field(pause).finish(),
            Self::LoseBefore => f.write_str("LoseBefore"),
            Self::LoseAfter => f.write_str("LoseAfter"),
            Self::Refuse(code) => f.debug_tuple("Refuse").field(code).finish(),
            Self::TimeOut { waited, .. } => f.debug_tuple("TimeOut").field(waited).finish(),
        }
    }
}

/// Decides what happens to each request; `None` lets it pass.
type FaultPlan = Box<dyn FnMut(&Request) -> Option<Fault> + Send>;

/// A transport in front of another one, with a plan that picks the faults.
///
/// Only the inner transport retries, so the caller sees every injected fault. A
/// random plan should print its seed.
///
/// ```no_run
/// # async fn example(config: sheep_client::ClientConfig) -> Result<(), sheep_client::ClientError> {
/// use std::sync::Arc;
///
/// use sheep_client::Client;
/// use sheep_client::proto::Opcode;
/// use sheep_client::testing::{Fault, FaultTransport};
/// use sheep_client::unstable::Pool;
///
/// let pool = Arc::new(Pool::connect(config).await?);
/// let mut writes = 0;
/// // Every third write is executed, but its response is lost.
/// let faulty = FaultTransport::new(pool, move |request| {
///     writes += u32::from(request.opcode() == Opcode::WriteObj);
///     (request.opcode() == Opcode::WriteObj && writes % 3 == 0).then_some(Fault::LoseAfter)
/// });
/// let client = Client::with_transport(Arc::new(faulty));
/// # Ok(())
/// # }
/// ```
pub struct FaultTransport {
    inner: Arc<dyn Transport>,
    plan: Mutex<FaultPlan>,
    fence_interval: Duration,
    runtime: Handle,
}

impl fmt::Debug for FaultTransport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FaultTransport")
            .field("inner", &self.inner)
            .finish_non_exhaustive()
    }
}

impl FaultTransport {
    /// A transport over `inner` that applies `plan` to each request.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn new(
        inner: Arc<dyn Transport>,
        plan: impl FnMut(&Request) -> Option<Fault> + Send + 'static,
    ) -> Self {
        Self {
            inner,
            plan: Mutex::new(Box::new(plan)),
            fence_interval: Duration::ZERO,
            runtime: Handle::current(),
        }
    }

    /// Reports `interval` as the time for which a lost request may still be executed.
    #[must_use]
    pub fn with_fence_interval(mut self, interval: Duration) -> Self {
        self.fence_interval = interval;
        self
    }

    /// Sends a request with `send`, or injects the fault that the plan picks.
    fn inject(
        &self,
        request: Request,
        completion: Completion,
        send: impl FnOnce(&dyn Transport, Request, Completion) + Send + 'static,
    ) {
        // The plan runs under its lock, the fault without it.
        let fault = {
            let mut plan = poison::lock(&self.plan);
            plan(&request)
        };
        let operation = request.operation();
        let runtime = self.runtime.clone();
        // The caller's completion runs exactly once, whatever becomes of the request.
        match fault {
            None => send(&*self.inner, request, completion),
            Some(Fault::Delay(pause)) => {
                let inner = Arc::clone(&self.inner);
                self.runtime.spawn(async move {
                    tokio::time::sleep(pause).await;
                    send(&*inner, request, completion);
                });
            }
            Some(Fault::DelayUntil(ready)) => {
                let inner = Arc::clone(&self.inner);
                self.runtime.spawn(async move {
                    ready.await;
                    send(&*inner, request, completion);
                });
            }
            Some(Fault::TimeOut { waited, until }) => {
                let inner = Arc::clone(&self.inner);
                completion(Err(ClientError::Unreachable {
                    gateway: inner.address(),
                    waited,
                }));
                self.runtime.spawn(async move {
                    until.await;
                    send(&*inner, request, Box::new(|_late| ()));
                });
            }
            Some(Fault::DelayResponse(pause)) => {
                let later: Completion = Box::new(move |outcome| {
                    runtime.spawn(async move {
                        tokio::time::sleep(pause).await;
                        completion(outcome);
                    });
                });
                send(&*self.inner, request, later);
            }
            Some(Fault::LoseBefore) => {
                drop(request);
                completion(Err(lost(operation)));
            }
            Some(Fault::LoseAfter) => {
                let lose: Completion = Box::new(move |_outcome| completion(Err(lost(operation))));
                send(&*self.inner, request, lose);
            }
            Some(Fault::Refuse(code)) => {
                let body = ResponseBody::result(code);
                let header = ResponseHeader::answer(&request.header(Generation::V1_0), 0, 0, body);
                drop(request);
                completion(Ok(Response {
                    operation,
                    header,
                    payload: BytesMut::new(),
                }));
            }
        }
    }
}

fn lost(operation: OperationId) -> ClientError {
    ClientError::Lost {
        operation,
        gateway: SocketAddr::from(([0, 0, 0, 0], 0)),
        why: Arc::new(DisconnectReason::Closed),
    }
}

impl Transport for FaultTransport {
    fn submit(&self, request: Request, completion: Completion) {
        self.inject(request, completion, |inner, request, completion| {
            inner.submit(request, completion)
        });
    }

    fn submit_to(&self, node: SocketAddr, request: Request, completion: Completion) {
        self.inject(request, completion, move |inner, request, completion| {
            inner.submit_to(node, request, completion);
        });
    }

    fn address(&self) -> GatewayAddress {
        self.inner.address()
    }

    fn peer(&self) -> Option<SocketAddr> {
        self.inner.peer()
    }

    fn generation(&self, timeout: Duration) -> BoxFuture<'_, Result<Generation, ClientError>> {
        self.inner.generation(timeout)
    }

    fn session(&self) -> Session {
        self.inner.session()
    }

    fn switch_gateway(&self, address: GatewayAddress) -> BoxFuture<'_, Result<(), ClientError>> {
        self.inner.switch_gateway(address)
    }

    fn fence_interval(&self) -> Duration {
        self.fence_interval
    }
}
