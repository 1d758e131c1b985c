//! Objects pending reclaim: deallocated, but not yet deleted by the server.
//!
//! Clearing a slot drops a reference. The server deletes the object asynchronously,
//! after it has acknowledged, when the last reference is gone. If the object were
//! created again before that, the server would delete the new one. So a create waits
//! for the reclaim of its predecessor. An object that is never deleted is an orphan of
//! a crash; a create overwrites it. Only servers since 1.0 delete after the answer.

use std::sync::Arc;
use std::time::Duration;

use futures_util::{StreamExt as _, stream};
use sheep_proto::generation::Reclaim;
use sheep_proto::{ObjectIndex, Vid};
use tokio::time::Instant;

use super::error::VolumeError;
use super::head::Head;
use super::object_io::ObjectIo;

/// Shortest and longest poll interval while an object is being deleted.
const RECLAIM_PAUSES: (Duration, Duration) = (Duration::from_millis(2), Duration::from_millis(200));
/// Time after which an object that this client has not discarded is an orphan.
const ORPHAN_GRACE: Duration = Duration::from_secs(3);
/// Longest wait for an object that this client has discarded. After the same time an
/// object that another client had discarded is deleted.
const RECLAIM_TIMEOUT: Duration = Duration::from_secs(60);
/// Objects waited for in parallel.
const PARALLEL_OBJECTS: usize = 16;
#[derive(Debug)]
pub(super) struct Reclaims {
    head: Arc<Head>,
    io: ObjectIo,
}

impl Reclaims {
    pub(super) fn new(head: Arc<Head>) -> Self {
        let io = ObjectIo::new(head.client.clone());
        Self { head, io }
    }

    /// Waits until an object without a slot is deleted, or known to be an orphan, so that
    /// it can be created. The caller holds its lock and has revalidated its slot.
    ///
    /// # Errors
    /// `Io` when the cluster does not answer.
    pub(super) async fn await_reclaim(
        &self,
        vid: Vid,
        index: ObjectIndex,
    ) -> Result<(), VolumeError> {
        let cleared = self.head.state().map.reclaiming_since(vid, index);
        let deadline = match cleared {
            Some(since) => since + RECLAIM_TIMEOUT,
            None => Instant::now() + ORPHAN_GRACE,
        };
        let mut pause = RECLAIM_PAUSES.0;
        while self.is_pending(vid, index).await? && Instant::now() < deadline {
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(RECLAIM_PAUSES.1);
        }
        self.head.update(|map| map.reclaimed(vid, index));
        Ok(())
    }

    /// True while an object without a slot exists that may still be deleted.
    ///
    /// Shortly after the attach any object may have been discarded by an earlier client.
    ///
    /// # Errors
    /// `Io` when the cluster does not answer.
    pub(super) async fn is_pending(
        &self,
        vid: Vid,
        index: ObjectIndex,
    ) -> Result<bool, VolumeError> {
        let suspected = {
            let head = self.head.state();
            let attached_lately = self.head.opened.elapsed() <= RECLAIM_TIMEOUT;
            self.head.generation.reclaim() == Reclaim::AfterAnswer
                && (head.map.reclaiming_since(vid, index).is_some()
                    || attached_lately && !head.info.hypervolume)
        };
        if suspected {
            let exists = self.io.exists(vid, index).await;
            if exists.map_err(|error| self.head.io_error(error))? {
                return Ok(true);
            }
        }
        self.head.update(|map| map.reclaimed(vid, index));
        Ok(false)
    }

    /// Waits for a limited time for the reclaim of all objects that this client has
    /// discarded, so that the next client need not.
    pub(super) async fn drain(&self) {
        let (vid, reclaiming) = {
            let head = self.head.state();
            (head.info.vid, head.map.reclaiming())
        };
        let drained = stream::iter(reclaiming)
            .map(|index| self.await_reclaim(vid, index))
            .buffer_unordered(PARALLEL_OBJECTS)
            .collect::<Vec<_>>();
        if tokio::time::timeout(ORPHAN_GRACE, drained).await.is_err() {
            tracing::warn!(
                "{} has discarded objects that the cluster has not deleted yet",
                self.head.selector
            );
        }
    }
}
