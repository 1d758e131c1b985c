//! Memory limits of requests in flight.
//!
//! A request is charged for the bytes that it reads or writes until its reply was
//! written to the socket. A client that does not read its replies, or does not send the
//! payloads it announced, uses at most the share of its connection, until that is closed
//! after a minute, or after five if it reads or sends slowly. The total of all
//! connections is bounded as well; at that limit small requests are served from the
//! reserve of their connection.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Requests in flight on one connection.
pub(super) const MAX_REQUESTS: u32 = 128;
/// Byte limit of one connection.
const CONNECTION_BYTES: u32 = 64 << 20;
/// Byte limit of all connections, without the reserves.
const SHARED_BYTES: u32 = 512 << 20;
/// Bytes reserved for each connection.
const RESERVE_BYTES: u32 = 1 << 20;
/// Bytes of a permit. A request takes at least one.
const PERMIT_BYTES: u32 = 4096;

fn permits(bytes: u32) -> u32 {
    bytes.div_ceil(PERMIT_BYTES).max(1)
}

fn semaphore(bytes: u32) -> Arc<Semaphore> {
    Arc::new(Semaphore::new(permits(bytes) as usize))
}

/// The limit shared by all connections.
#[derive(Clone, Debug)]
pub(super) struct SharedBudget(Arc<Semaphore>);

impl Default for SharedBudget {
    fn default() -> Self {
        Self(semaphore(SHARED_BYTES))
    }
}

/// The limits of one connection.
#[derive(Debug)]
pub(super) struct Budget {
    requests: Arc<Semaphore>,
    bytes: Arc<Semaphore>,
    reserve: Arc<Semaphore>,
    shared: SharedBudget,
}

/// The charge of a request, refunded on drop.
#[derive(Debug)]
pub(super) struct Charge {
    _request: OwnedSemaphorePermit,
    _bytes: OwnedSemaphorePermit,
    _source: OwnedSemaphorePermit,
}

impl Budget {
    pub(super) fn new(shared: SharedBudget) -> Self {
        Self {
            requests: Arc::new(Semaphore::new(MAX_REQUESTS as usize)),
            bytes: semaphore(CONNECTION_BYTES),
            reserve: semaphore(RESERVE_BYTES),
            shared,
        }
    }

    /// Waits until there is room for a request of `bytes` bytes.
    pub(super) async fn charge(&self, bytes: u32) -> Charge {
        let count = permits(bytes.min(CONNECTION_BYTES));
        let request = acquire(&self.requests, 1).await;
        let own = acquire(&self.bytes, count).await;
        let source = match bytes <= RESERVE_BYTES {
            true => tokio::select! {
                biased;
                permit = acquire(&self.reserve, count) => permit,
                permit = acquire(&self.shared.0, count) => permit,
            },
            false => acquire(&self.shared.0, count).await,
        };
        Charge {
            _request: request,
            _bytes: own,
            _source: source,
        }
    }

    /// Waits until no request is in flight.
    pub(super) async fn drained(&self) {
        drop(acquire(&self.requests, MAX_REQUESTS).await);
    }
}

async fn acquire(semaphore: &Arc<Semaphore>, count: u32) -> OwnedSemaphorePermit {
    Arc::clone(semaphore)
        .acquire_many_owned(count)
        .await
        .expect("the semaphores are never closed")
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::timeout;

    use super::*;

    async fn is_full(charge: impl Future<Output = Charge>) -> bool {
        timeout(Duration::from_secs(1), charge).await.is_err()
    }

    #[tokio::test(start_paused = true)]
    async fn requests_per_connection_are_limited() {
        let budget = Budget::new(SharedBudget::default());
        let mut charges = Vec::new();
        for _ in 0..MAX_REQUESTS {
            charges.push(budget.charge(0).await);
        }
        assert!(is_full(budget.charge(0)).await);
        charges.pop();
        charges.push(budget.charge(0).await);
        charges.clear();
        budget.drained().await;
    }

    #[tokio::test(start_paused = true)]
    async fn small_requests_use_reserve_at_global_limit() {
        let shared = SharedBudget::default();
        let hostile: Vec<_> = (0..SHARED_BYTES / CONNECTION_BYTES)
            .map(|_| Budget::new(shared.clone()))
            .collect();
        let mut held = Vec::new();
        for budget in &hostile {
            held.push(budget.charge(CONNECTION_BYTES).await);
            assert!(is_full(budget.charge(0)).await);
        }
        let honest = Budget::new(shared);
        drop(honest.charge(RESERVE_BYTES).await);
        assert!(is_full(honest.charge(RESERVE_BYTES + 1)).await);
        held.pop();
        drop(honest.charge(CONNECTION_BYTES).await);
    }
}
