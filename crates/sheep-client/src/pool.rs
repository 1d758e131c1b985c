//! The connections to a cluster, kept open through failures.
//!
//! Calls go to the connection with the fewest bytes in flight, as many at once
//! as a budget allows. A gateway that is merely silent is waited for, because
//! what was sent may still be queued there. TCP keepalive finds out whether its
//! host is dead, and after [`ClientConfig::retry_for`] the caller hears that
//! there is no answer.
//!
//! What is sent again, and when, is decided in `retry.rs`.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::address::GatewayAddress;
use crate::call::{Call, Response};
use crate::config::ClientConfig;
use crate::connection::{Observer, Shared};
use crate::error::{ClientError, Hangup};
use crate::gateway::{BoxFuture, Completion, Gateway};
use crate::in_flight::Pending;
use crate::link::Link;
use crate::network::{Network, Tcp};
use crate::retry::{self, Decision, FENCE_INTERVAL, Fence};
use crate::topology::Generation;

/// The budget is counted in pieces of this many bytes.
const BUDGET_PIECE: usize = 4 << 10;
/// Bytes of the calls in flight in the whole pool, both ways.
const BUDGET_BYTES: usize = 64 << 20;
/// Least share of the budget: bounds the number of calls in flight to 1,024.
const LEAST_SHARE: usize = BUDGET_BYTES / 1024;

/// A pool of connections to a cluster; see the module.
///
/// Dropping it closes the connections. Calls without an answer then end with
/// [`ClientError::Lost`] or [`ClientError::Unreachable`].
#[derive(Debug)]
pub struct Pool {
    core: Arc<Core>,
}

/// What the pool, its connections and its tasks share.
pub(crate) struct Core {
    me: Weak<Core>,
    pub(crate) runtime: Handle,
    pub(crate) network: Arc<dyn Network>,
    pub(crate) connections: usize,
    retry_for: Duration,
    pub(crate) link: watch::Sender<Link>,
    /// Tells calls that wait for a sheep, in the order in which they came, that
    /// there is one. A watch would wake them in any order.
    pub(crate) up: Notify,
    budget: Arc<Semaphore>,
    epoch: AtomicU32,
    /// Whether the nodes of the cluster are being asked for.
    pub(crate) learning: AtomicBool,
    /// Cancelled when the pool goes; every task of the pool ends with it.
    pub(crate) closing: CancellationToken,
}

impl std::fmt::Debug for Core {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Core")
            .field("gateway", self.link.borrow().topology().gateway())
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
        Self::connect_over(config, Arc::new(Tcp)).await
    }

    /// The same over another network than the machine's.
    ///
    /// # Errors
    /// As [`Pool::connect`].
    ///
    /// # Panics
    /// As [`Pool::connect`].
    pub async fn connect_over(
        config: ClientConfig,
        network: Arc<dyn Network>,
    ) -> Result<Self, ClientError> {
        let core = Arc::new_cyclic(|me| Core {
            me: me.clone(),
            runtime: Handle::current(),
            network,
            connections: config.connections.max(1),
            retry_for: config.retry_for,
            link: watch::Sender::new(Link::new(config.addresses)),
            up: Notify::new(),
            budget: Arc::new(Semaphore::new(BUDGET_BYTES / BUDGET_PIECE)),
            epoch: AtomicU32::new(0),
            learning: AtomicBool::new(false),
            closing: CancellationToken::new(),
        });
        let pool = Self { core };
        let core = &pool.core;
        core.find_sheep(Generation::default()).await?;
        let keeper = Arc::clone(core).keep_connected();
        tokio::spawn(core.closing.clone().run_until_cancelled_owned(keeper));
        Ok(pool)
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.core.closing.cancel();
        self.core.link.send_modify(Link::close);
    }
}

impl Gateway for Pool {
    fn submit(&self, call: Call, done: Completion) {
        self.core.submit(call, done);
    }

    fn submit_to(&self, node: SocketAddr, call: Call, done: Completion) {
        let core = Arc::clone(&self.core);
        self.core.runtime.spawn(async move {
            let ask = async {
                let connection = core.dial(&node.into(), Arc::new(OneNode)).await?;
                connection.ask(call).await
            };
            let answer = core.closing.run_until_cancelled(ask).await;
            done(answer.unwrap_or_else(|| Err(core.unreachable(Duration::ZERO))));
        });
    }

    fn address(&self) -> GatewayAddress {
        self.core.link.borrow().topology().seed().clone()
    }

    fn peer(&self) -> Option<SocketAddr> {
        let connection = self.core.link.borrow().least_loaded();
        connection.map(|connection| connection.peer())
    }

    fn move_to(&self, address: GatewayAddress) -> BoxFuture<'_, Result<(), ClientError>> {
        Box::pin(self.core.move_to(address))
    }

    fn settle_time(&self) -> Duration {
        FENCE_INTERVAL
    }
}

/// Completes calls that are not repeated on failure.
struct OneNode;

impl Observer for OneNode {
    fn ended(&self, pending: Pending, outcome: Result<Response, ClientError>) {
        pending.finish(outcome);
    }

    fn worn_out(&self, _connection: &Arc<Shared>) {}

    fn closed(&self, _connection: &Arc<Shared>, _why: &Hangup) {}
}

impl Core {
    /// This, for a task to own.
    pub(crate) fn itself(&self) -> Arc<Self> {
        self.me.upgrade().expect("whoever calls has it in an Arc")
    }

    fn submit(&self, call: Call, done: Completion) {
        let patience = call
            .patience()
            .unwrap_or(self.retry_for)
            .min(self.retry_for);
        let mut pending = Pending::new(call, patience, done);
        let budget = Arc::clone(&self.budget);
        let unsent = match budget.try_acquire_many_owned(share(&pending.call)) {
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

    /// Sends on the least loaded connection, or gives the call back.
    #[expect(clippy::result_large_err, reason = "the error is the call itself")]
    fn send(&self, pending: Pending) -> Result<(), Pending> {
        let connection = self.link.borrow().least_loaded();
        match connection {
            Some(connection) => connection.send(pending),
            None => Err(pending),
        }
    }

    /// Sends when a sheep is reachable and the budget allows, or fails the call
    /// when that takes too long.
    fn send_later(&self, mut pending: Pending, delay: Duration) {
        let core = self.itself();
        self.runtime.spawn(async move {
            let sleep = tokio::time::sleep(delay);
            if !delay.is_zero() && core.closing.run_until_cancelled(sleep).await.is_none() {
                return pending.finish(Err(core.unreachable(Duration::ZERO)));
            }
            loop {
                // Others may use its share while this waits.
                pending.permit = None;
                let ready = core.ready(
                    pending.patience,
                    pending.attempts.fence(),
                    share(&pending.call),
                );
                let ready = core.closing.run_until_cancelled(ready).await;
                pending.permit = match ready {
                    Some(Ok(permit)) => Some(permit),
                    Some(Err(error)) => return pending.finish(Err(error)),
                    None => return pending.finish(Err(core.unreachable(Duration::ZERO))),
                };
                match core.send(pending) {
                    Ok(()) => return,
                    Err(unsent) => pending = unsent,
                }
            }
        });
    }

    /// Waits for a sheep, for the fence, and for a share of the budget.
    async fn ready(
        &self,
        patience: Duration,
        fence: Option<Fence>,
        share: u32,
    ) -> Result<OwnedSemaphorePermit, ClientError> {
        self.wait_for_link(patience).await?;
        if let Some(fence) = fence {
            self.pass_fence(fence).await;
            self.wait_for_link(patience).await?;
        }
        let budget = Arc::clone(&self.budget).acquire_many_owned(share);
        match tokio::time::timeout(patience, budget).await {
            Ok(permit) => Ok(permit.expect("the budget is never closed")),
            Err(_elapsed) => Err(self.unreachable(patience)),
        }
    }

    async fn pass_fence(&self, fence: Fence) {
        let ends_at = {
            let link = self.link.borrow();
            fence.ends_at(link.refused_at(fence.node), link.up_since())
        };
        if let Some(ends_at) = ends_at {
            tokio::time::sleep_until(ends_at).await;
        }
    }

    async fn wait_for_link(&self, patience: Duration) -> Result<(), ClientError> {
        let down_since = self.link.borrow().down_since();
        let down_since = down_since.unwrap_or_else(Instant::now);
        let left = patience.saturating_sub(down_since.elapsed());
        let up = async {
            loop {
                let up = self.up.notified();
                if self.link.borrow().is_up() {
                    return;
                }
                up.await;
            }
        };
        tokio::time::timeout(left, up)
            .await
            .map_err(|_elapsed| self.unreachable(down_since.elapsed()))
    }

    fn unreachable(&self, waited: Duration) -> ClientError {
        ClientError::Unreachable {
            gateway: self.link.borrow().topology().gateway().clone(),
            waited,
        }
    }
}

impl Observer for Core {
    fn ended(&self, mut pending: Pending, outcome: Result<Response, ClientError>) {
        if let Ok(response) = &outcome {
            let epoch = response.header.epoch.get();
            if self.epoch.load(Ordering::Relaxed) != epoch {
                self.epoch.store(epoch, Ordering::Relaxed);
                self.learn_nodes();
            }
        }
        if pending.is_given_up() || self.closing.is_cancelled() {
            return pending.finish(outcome);
        }
        let now = Instant::now();
        let Pending {
            call,
            attempts,
            patience,
            ..
        } = &pending;
        let (delay, fence) = match retry::decide(call, attempts, &outcome, *patience, now) {
            Decision::Complete => return pending.finish(outcome),
            Decision::RetryAfter { delay, fence } => (delay, fence),
        };
        pending.attempts.record(now, fence);
        match &outcome {
            Ok(response) => {
                tracing::debug!(code = %response.header.result(), "{} again", response.call);
            }
            Err(error) => tracing::debug!(%error, "sending again"),
        }
        self.send_later(pending, delay);
    }

    fn worn_out(&self, connection: &Arc<Shared>) {
        self.replace(connection);
    }

    fn closed(&self, connection: &Arc<Shared>, why: &Hangup) {
        self.forget(connection, why);
    }
}

/// Pieces of the budget that a call takes.
fn share(call: &Call) -> u32 {
    let bytes = call.wire_len().clamp(LEAST_SHARE, BUDGET_BYTES);
    u32::try_from(bytes.div_ceil(BUDGET_PIECE)).expect("bounded by the budget")
}
