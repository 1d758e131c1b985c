//! What clients can make the server hold: requests in flight, and KiB of
//! payload, per connection and in all.

use std::sync::Arc;

use sheep_proto::limits::MAX_PAYLOAD_LEN;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::config::{
    MAX_KIB, MAX_KIB_PER_CONNECTION, MAX_REQUESTS_PER_CONNECTION, MAX_RUNNING_REQUESTS,
};
use crate::connection::{Closed, in_time};

/// What all connections of a server share.
#[derive(Clone)]
pub(crate) struct Limits {
    /// KiB of payload.
    payload_kib: Arc<Semaphore>,
    /// Requests that occupy a thread.
    pub(crate) running: Arc<Semaphore>,
}

impl Limits {
    pub(crate) fn new() -> Self {
        Self {
            payload_kib: Arc::new(Semaphore::new(MAX_KIB)),
            running: Arc::new(Semaphore::new(MAX_RUNNING_REQUESTS)),
        }
    }
}

/// Shares of the limits; given back when dropped.
pub(crate) struct Held {
    _request: OwnedSemaphorePermit,
    kib: Vec<OwnedSemaphorePermit>,
}

/// The limits of one connection and those it shares.
pub(crate) struct Budget {
    requests: Arc<Semaphore>,
    kib: Arc<Semaphore>,
    all_kib: Arc<Semaphore>,
}

impl Budget {
    pub(crate) fn new(limits: &Limits) -> Self {
        Self {
            requests: Arc::new(Semaphore::new(MAX_REQUESTS_PER_CONNECTION)),
            kib: Arc::new(Semaphore::new(MAX_KIB_PER_CONNECTION)),
            all_kib: Arc::clone(&limits.payload_kib),
        }
    }

    /// A share for one request more, without payload.
    pub(crate) async fn request(&self) -> Result<Held, Closed> {
        let request = Arc::clone(&self.requests).acquire_owned().await;
        Ok(Held {
            _request: request.map_err(|_| Closed::Broken)?,
            kib: Vec::new(),
        })
    }

    /// Takes a share for `bytes` more of payload, at most what a frame may have.
    ///
    /// Whoever holds nothing of it may wait as long as the others work. Within
    /// a frame the wait is limited: frames that each hold a part could
    /// otherwise wait for each other for ever.
    pub(crate) async fn take(&self, held: &mut Held, bytes: usize) -> Result<(), Closed> {
        let kib = bytes.min(MAX_PAYLOAD_LEN).div_ceil(1024);
        let kib = u32::try_from(kib).expect("at most a frame");
        let own = Arc::clone(&self.kib).acquire_many_owned(kib).await;
        let shared = Arc::clone(&self.all_kib).acquire_many_owned(kib);
        let shared = if held.kib.is_empty() {
            shared.await
        } else {
            in_time(shared).await?
        };
        held.kib.extend([
            own.map_err(|_| Closed::Broken)?,
            shared.map_err(|_| Closed::Broken)?,
        ]);
        Ok(())
    }
}
