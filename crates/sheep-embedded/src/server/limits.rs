//! What clients can make the server keep in memory: requests in flight, and
//! KiB of payload, per connection and for all of them.

use std::sync::Arc;

use sheep_proto::limits::MAX_PAYLOAD_LEN;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::error::{ConnectionError, with_stall_timeout};
use crate::config::{
    MAX_KIB, MAX_KIB_PER_CONNECTION, MAX_REQUESTS_PER_CONNECTION, MAX_RUNNING_REQUESTS,
};

/// What all connections of a server share.
#[derive(Clone)]
pub(crate) struct ServerLimits {
    /// KiB of payload.
    payload_kib: Arc<Semaphore>,
    /// Requests that occupy a thread.
    pub(crate) running: Arc<Semaphore>,
}

impl ServerLimits {
    pub(crate) fn new() -> Self {
        Self {
            payload_kib: Arc::new(Semaphore::new(MAX_KIB)),
            running: Arc::new(Semaphore::new(MAX_RUNNING_REQUESTS)),
        }
    }
}

/// Permits of one request; given back when dropped.
pub(crate) struct Permits {
    _request: OwnedSemaphorePermit,
    kib: Vec<OwnedSemaphorePermit>,
}

/// The limits of one connection and those it shares.
pub(crate) struct ConnectionLimits {
    requests: Arc<Semaphore>,
    kib: Arc<Semaphore>,
    all_kib: Arc<Semaphore>,
}

impl ConnectionLimits {
    pub(crate) fn new(limits: &ServerLimits) -> Self {
        Self {
            requests: Arc::new(Semaphore::new(MAX_REQUESTS_PER_CONNECTION)),
            kib: Arc::new(Semaphore::new(MAX_KIB_PER_CONNECTION)),
            all_kib: Arc::clone(&limits.payload_kib),
        }
    }

    /// The permit for one more request, without payload.
    pub(crate) async fn request(&self) -> Result<Permits, ConnectionError> {
        let request = Arc::clone(&self.requests).acquire_owned().await;
        Ok(Permits {
            _request: request.map_err(|_closed| ConnectionError::Aborted)?,
            kib: Vec::new(),
        })
    }

    /// Adds permits for `bytes` more of payload, at most what a frame may have.
    ///
    /// A request without payload permits waits as long as the others take. A
    /// request that already has some waits for a limited time: frames that
    /// each have a part of the limit could otherwise wait for each other.
    pub(crate) async fn acquire(
        &self,
        permits: &mut Permits,
        bytes: usize,
    ) -> Result<(), ConnectionError> {
        let kib = bytes.min(MAX_PAYLOAD_LEN).div_ceil(1024);
        let kib = u32::try_from(kib).expect("a payload is at most MAX_PAYLOAD_LEN bytes");
        let own = Arc::clone(&self.kib).acquire_many_owned(kib).await;
        let shared = Arc::clone(&self.all_kib).acquire_many_owned(kib);
        let shared = if permits.kib.is_empty() {
            shared.await
        } else {
            with_stall_timeout(shared).await?
        };
        permits.kib.extend([
            own.map_err(|_closed| ConnectionError::Aborted)?,
            shared.map_err(|_closed| ConnectionError::Aborted)?,
        ]);
        Ok(())
    }
}
