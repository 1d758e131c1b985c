//! How much the requests in flight may hold.
//!
//! Every request is charged for the bytes that it reads or writes until its reply
//! was written to the socket. A client that does not read its replies, or that
//! announces payloads and does not send them, holds at most its connection's share,
//! until its connection is closed for standing still. What all connections hold
//! together is bounded as well; small requests are then still served from a reserve
//! that each connection has for itself.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Requests in flight on one connection.
pub(super) const MAX_REQUESTS: u32 = 128;
/// Bytes that the requests of one connection hold.
const CONNECTION_BYTES: u32 = 64 << 20;
/// Bytes that the requests of all connections hold, without the reserves.
const SHARED_BYTES: u32 = 512 << 20;
/// Bytes that a connection has for itself.
const RESERVE_BYTES: u32 = 1 << 20;
/// Bytes of a permit. Every request takes at least one.
const PERMIT_BYTES: u32 = 4096;

fn permits(bytes: u32) -> u32 {
    bytes.div_ceil(PERMIT_BYTES).max(1)
}

fn semaphore(bytes: u32) -> Arc<Semaphore> {
    Arc::new(Semaphore::new(permits(bytes) as usize))
}

/// What all connections share.
#[derive(Clone, Debug)]
pub(super) struct SharedBudget(Arc<Semaphore>);

impl Default for SharedBudget {
    fn default() -> Self {
        Self(semaphore(SHARED_BYTES))
    }
}

/// What one connection may hold.
#[derive(Debug)]
pub(super) struct Budget {
    requests: Arc<Semaphore>,
    bytes: Arc<Semaphore>,
    reserve: Arc<Semaphore>,
    shared: SharedBudget,
}

/// A request's share, which is given back by dropping it.
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
        .expect("it is never closed")
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
    async fn requests_of_a_connection_are_bounded_in_number() {
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
    async fn small_requests_are_served_while_others_hold_all_shared_bytes() {
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
