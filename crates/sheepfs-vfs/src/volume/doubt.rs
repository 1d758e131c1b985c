//! Slots that have to be asked for again before they are believed.
//!
//! A slot that is about to be set is asked for anew in any case, together with
//! the VDI's header: someone else may have written here since the index was
//! read, and a create would wipe that. A slot whose update failed is in doubt
//! until then, since it may have been set all the same; who reads meanwhile
//! asks the cluster as well, or would see a failed write come and go.

use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::Duration;

use sheep_client::ClientError;
use sheep_proto::{ObjectIndex, ResultCode, Vid};
use tokio::time::Instant;

use super::Volume;
use super::object_map::Slot;
use crate::error::FsError;
use crate::slot_guard::{SharedGuard, SlotGuards};

/// Longest wait for a guard whose holder still waits for a sheep itself.
///
/// Longer than one that works honestly takes: a wait for a discarded object to
/// go, and three calls.
const GUARD_TIMEOUT: Duration = Duration::from_secs(240);
/// Longest wait of a detach for requests that nobody waits for any more.
const IDLE_TIMEOUT: Duration = Duration::from_secs(5);
/// Pause between two looks for them.
const IDLE_PAUSE: Duration = Duration::from_millis(20);

impl Volume {
    /// The right to make an object.
    ///
    /// # Errors
    /// `VolumeIo` when an earlier request for it is at a sheep that is silent.
    pub(super) async fn guard(&self, index: ObjectIndex) -> Result<SharedGuard, FsError> {
        self.guard_of(&self.guards, index).await
    }

    pub(super) async fn guard_of(
        &self,
        guards: &Arc<SlotGuards>,
        index: ObjectIndex,
    ) -> Result<SharedGuard, FsError> {
        match tokio::time::timeout(GUARD_TIMEOUT, guards.acquire(index)).await {
            Ok(Ok(guard)) => Ok(guard),
            Ok(Err(waited)) => Err(self.silent(waited)),
            Err(_) => Err(self.silent(GUARD_TIMEOUT)),
        }
    }

    /// The error for a sheep that keeps a request without an answer.
    pub(super) fn silent(&self, waited: Duration) -> FsError {
        self.failed(ClientError::Unreachable {
            gateway: self.client.address(),
            waited,
        })
    }

    /// Waits until no request is under way that could make or clear an object.
    ///
    /// # Errors
    /// `VolumeIo` when a sheep keeps one without an answer.
    pub(super) async fn wait_until_idle(&self) -> Result<(), FsError> {
        let deadline = Instant::now() + IDLE_TIMEOUT;
        while !(self.guards.is_idle() && self.moving.is_idle()) {
            if Instant::now() > deadline {
                return Err(self.silent(IDLE_TIMEOUT));
            }
            tokio::time::sleep(IDLE_PAUSE).await;
        }
        Ok(())
    }

    /// The attached VID and the owner of an object, as the cluster says. The
    /// caller holds the slot's guard.
    pub(super) async fn certain_slot(
        &self,
        index: ObjectIndex,
    ) -> Result<(Vid, Option<Vid>), FsError> {
        loop {
            let (info, slot) = {
                let head = self.head();
                (head.info.clone(), head.map.slot(index))
            };
            if info.hypervolume && !matches!(slot, Slot::InDoubt { .. }) {
                // Its index is one tree, which this volume keeps in step.
                return self.slot(index);
            }
            let (header, owner) =
                tokio::join!(self.client.info(info.vid), self.client.slot(&info, index));
            let owner = owner.map_err(|error| self.failed(error))?;
            match header.map_err(|error| self.failed(error))? {
                Some(now) if now.create_time != info.create_time => return Err(self.gone()),
                Some(now) if !now.is_snapshot() => {}
                // A snapshot, or one that has been deleted since.
                _ => {
                    self.reload(info.vid).await?;
                    continue;
                }
            }
            if self.head_mut().map.resolve(info.vid, index, owner).is_ok() {
                return Ok((info.vid, owner));
            }
        }
    }

    /// Asks for the slots in doubt between two objects, both included.
    pub(super) async fn settle_doubts(
        &self,
        range: RangeInclusive<ObjectIndex>,
    ) -> Result<(), FsError> {
        let in_doubt = self.head().map.in_doubt(range);
        for index in in_doubt {
            let _guard = self.guard(index).await?;
            self.certain_slot(index).await?;
        }
        Ok(())
    }
}

/// True when the answer means that there is no such VDI now.
pub(super) fn is_absent(error: &ClientError) -> bool {
    matches!(error.code(), Some(ResultCode::NoObj | ResultCode::NoVdi))
}
