//! A gateway that fails as it is told.

use std::fmt;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::BytesMut;
use sheep_proto::{ResponseBody, ResponseHeader, ResultCode};
use tokio::runtime::Handle;

use crate::address::GatewayAddress;
use crate::call::{Call, Response};
use crate::error::{CallName, ClientError, Hangup};
use crate::gateway::{BoxFuture, Completion, Gateway};

/// What happens to a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Fault {
    /// It is sent after a pause.
    Delay(Duration),
    /// It runs at once, and its answer comes after a pause.
    DelayAnswer(Duration),
    /// It ends with [`ClientError::Lost`] and does not run.
    LoseBefore,
    /// It runs, then ends with [`ClientError::Lost`].
    LoseAfter,
    /// It does not run, and is answered with this code.
    Refuse(ResultCode),
}

/// Decides what happens to each call; `None` lets it pass.
type Plan = Box<dyn FnMut(&Call) -> Option<Fault> + Send>;

/// Stands in front of another gateway and does to each call what a plan says.
///
/// Nothing is sent again behind it: what it does to a call is what the caller
/// sees. A plan that throws dice should print its seed.
///
/// ```no_run
/// # async fn example(config: sheep_client::ClientConfig) -> Result<(), sheep_client::ClientError> {
/// use std::sync::Arc;
///
/// use sheep_client::Client;
/// use sheep_client::proto::Opcode;
/// use sheep_client::testing::{Fault, Faulty};
/// use sheep_client::unstable::Pool;
///
/// let pool = Arc::new(Pool::connect(config).await?);
/// let mut writes = 0;
/// // Every third write runs, but its answer is lost.
/// let faulty = Faulty::new(pool, move |call| {
///     writes += u32::from(call.opcode() == Opcode::WriteObj);
///     (call.opcode() == Opcode::WriteObj && writes % 3 == 0).then_some(Fault::LoseAfter)
/// });
/// let client = Client::with_gateway(Arc::new(faulty));
/// # Ok(())
/// # }
/// ```
pub struct Faulty {
    inner: Arc<dyn Gateway>,
    plan: Mutex<Plan>,
    runtime: Handle,
}

impl fmt::Debug for Faulty {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Faulty")
            .field("inner", &self.inner)
            .finish_non_exhaustive()
    }
}

impl Faulty {
    /// A gateway over `inner` that asks `plan` about each call.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn new(
        inner: Arc<dyn Gateway>,
        plan: impl FnMut(&Call) -> Option<Fault> + Send + 'static,
    ) -> Self {
        Self {
            inner,
            plan: Mutex::new(Box::new(plan)),
            runtime: Handle::current(),
        }
    }

    /// Sends `call` with `send`, or does what the plan says.
    fn disturb(
        &self,
        call: Call,
        done: Completion,
        send: impl FnOnce(&dyn Gateway, Call, Completion) + Send + 'static,
    ) {
        let fault = {
            let mut plan = self.plan.lock().expect("a plan does not panic");
            plan(&call)
        };
        let name = call.name();
        let runtime = self.runtime.clone();
        match fault {
            None => send(&*self.inner, call, done),
            Some(Fault::Delay(pause)) => {
                let inner = Arc::clone(&self.inner);
                self.runtime.spawn(async move {
                    tokio::time::sleep(pause).await;
                    send(&*inner, call, done);
                });
            }
            Some(Fault::DelayAnswer(pause)) => {
                let later: Completion = Box::new(move |outcome| {
                    runtime.spawn(async move {
                        tokio::time::sleep(pause).await;
                        done(outcome);
                    });
                });
                send(&*self.inner, call, later);
            }
            Some(Fault::LoseBefore) => {
                drop(call);
                done(Err(lost(name)));
            }
            Some(Fault::LoseAfter) => {
                let lose: Completion = Box::new(move |_outcome| done(Err(lost(name))));
                send(&*self.inner, call, lose);
            }
            Some(Fault::Refuse(code)) => {
                let body = ResponseBody::result(code);
                let header = ResponseHeader::answer(&call.header(0), 0, 0, body);
                drop(call);
                done(Ok(Response {
                    call: name,
                    header,
                    payload: BytesMut::new(),
                }));
            }
        }
    }
}

fn lost(call: CallName) -> ClientError {
    ClientError::Lost {
        call,
        gateway: SocketAddr::from(([0, 0, 0, 0], 0)),
        why: Arc::new(Hangup::Closed),
    }
}

impl Gateway for Faulty {
    fn submit(&self, call: Call, done: Completion) {
        self.disturb(call, done, |inner, call, done| inner.submit(call, done));
    }

    fn submit_to(&self, node: SocketAddr, call: Call, done: Completion) {
        self.disturb(call, done, move |inner, call, done| {
            inner.submit_to(node, call, done);
        });
    }

    fn address(&self) -> GatewayAddress {
        self.inner.address()
    }

    fn peer(&self) -> Option<SocketAddr> {
        self.inner.peer()
    }

    fn move_to(&self, address: GatewayAddress) -> BoxFuture<'_, Result<(), ClientError>> {
        self.inner.move_to(address)
    }
}
