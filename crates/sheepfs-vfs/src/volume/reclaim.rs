//! Objects that the server has still to delete.
//!
//! Clearing a slot drops a reference. The server deletes the object asynchronously,
//! after it has acknowledged, when the last reference is gone. An object that was
//! made again before that would be deleted in the old one's place, so an object is
//! not made until its predecessor is gone. One that stays was left over by a crash:
//! an orphan, which a create replaces.

use std::sync::Arc;
use std::time::Duration;

use futures_util::{StreamExt as _, stream};
use sheep_proto::{ObjectIndex, Vid};
use tokio::time::Instant;

use super::error::VolumeError;
use super::head::Head;
use super::object_io::ObjectIo;

/// First and longest pause between two looks for an object that is being deleted.
const RECLAIM_PAUSES: (Duration, Duration) = (Duration::from_millis(2), Duration::from_millis(200));
/// Time after which an object that was not discarded here is taken for an orphan.
const ORPHAN_GRACE: Duration = Duration::from_secs(3);
/// Longest wait for one that was, and time after which one that another client
/// discarded is gone.
const RECLAIM_TIMEOUT: Duration = Duration::from_secs(60);
/// Objects waited for at once.
const PARALLEL_OBJECTS: usize = 16;

/// Waits for deletions.
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

    /// Waits until an object without a slot is gone, or is known to be an orphan, so
    /// that it can be made. The caller holds its lock and has revalidated its slot.
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
    /// Shortly after the volume was attached any object may be one that an earlier
    /// client discarded.
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
            head.map.reclaiming_since(vid, index).is_some()
                || attached_lately && !head.info.hypervolume
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

    /// Waits a moment for all objects discarded here to be deleted, so that the next
    /// client that attaches the VDI need not.
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
                "{} has discarded objects that the cluster still keeps",
                self.head.selector
            );
        }
    }
}
