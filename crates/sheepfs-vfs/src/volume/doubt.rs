//! Slots that have to be asked for again before they are believed.
//!
//! A slot that is about to be set is asked for anew in any case, together with
//! the VDI's header: someone else may have written here since the index was
//! read, and a create would wipe that. A slot whose update failed is in doubt
//! until then, since it may have been set all the same; who reads meanwhile
//! asks the cluster as well, or would see a failed write come and go.

use std::collections::BTreeSet;
use std::ops::RangeInclusive;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use sheep_client::{ClientError, WhichVersion};
use sheep_proto::{ObjectIndex, ResultCode, Vid};
use tokio::time::Instant;

use super::{Head, Volume};
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
/// How often the index is read again when it changes while it is read.
const REREAD_TRIES: u32 = 8;

/// The slots in doubt.
#[derive(Debug, Default)]
pub(super) struct Doubts {
    slots: Mutex<BTreeSet<ObjectIndex>>,
    /// Whether there are any, for those who ask with every read.
    any: AtomicBool,
}

impl Doubts {
    fn change<T>(&self, change: impl FnOnce(&mut BTreeSet<ObjectIndex>) -> T) -> T {
        let mut slots = self.slots.lock().expect("no one panics with the slots");
        let changed = change(&mut slots);
        self.any.store(!slots.is_empty(), Ordering::Release);
        changed
    }

    fn contains(&self, index: ObjectIndex) -> bool {
        self.any.load(Ordering::Acquire) && self.change(|slots| slots.contains(&index))
    }

    fn within(&self, range: RangeInclusive<ObjectIndex>) -> Vec<ObjectIndex> {
        self.change(|slots| slots.range(range).copied().collect())
    }
}

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
            let info = self.info();
            if info.hypervolume && !self.is_doubted(index) {
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
            let mut head = self.head.write().expect("no one panics with the head");
            if head.info.vid == info.vid {
                if head.map.get(index) != owner {
                    head.map.set(index, owner);
                    self.published().forget(index);
                }
                self.doubts.change(|slots| slots.remove(&index));
                if owner.is_some() {
                    // The clearing of it has failed.
                    self.reclaimed().remove(&(info.vid, index));
                }
                return Ok((info.vid, owner));
            }
        }
    }

    /// Remembers that a slot may not be what memory says.
    pub(super) fn doubt(&self, index: ObjectIndex) {
        self.doubts.change(|slots| slots.insert(index));
    }

    pub(super) fn is_doubted(&self, index: ObjectIndex) -> bool {
        self.doubts.contains(index)
    }

    /// Asks for the slots in doubt between two objects, both included.
    pub(super) async fn settle_doubts(
        &self,
        range: RangeInclusive<ObjectIndex>,
    ) -> Result<(), FsError> {
        for index in self.doubts.within(range) {
            let _guard = self.guard(index).await?;
            self.certain_slot(index).await?;
        }
        Ok(())
    }

    /// Reads the index again: the volume was not open, and someone else may
    /// have written to the VDI.
    ///
    /// # Errors
    /// `Stale` when the VDI was deleted or rolled back, `VolumeIo` when the
    /// cluster does not answer.
    pub async fn reread(&self) -> Result<(), FsError> {
        self.usable()?;
        self.ahead.settle().await;
        for _ in 0..REREAD_TRIES {
            self.check().await?;
            let (vid, changes, idle) = {
                let head = self.head();
                (head.info.vid, head.map.changes(), self.guards.is_idle())
            };
            // A write that was made meanwhile knows better, and one under way is
            // seen apart by the cluster and the map.
            let is_as_before = |head: &Head| {
                let unchanged = head.info.vid == vid && head.map.changes() == changes;
                unchanged && idle && self.guards.is_idle()
            };
            let loaded = Head::load(&self.client, vid).await;
            let (new, tree) = match loaded {
                Ok(Some(loaded)) => loaded,
                Ok(None) => continue,
                // What a writer changes meanwhile need not fit together.
                Err(ClientError::Malformed { .. }) if !is_as_before(&self.head()) => continue,
                Err(error) => return Err(self.failed(error)),
            };
            if new.info.is_snapshot() && self.selector.which == WhichVersion::Working {
                continue;
            }
            let mut head = self.head.write().expect("no one panics with the head");
            if is_as_before(&head) && self.index_writer.replace_tree(tree) {
                head.map.replace(new.map);
                return Ok(());
            }
        }
        // Writers are at work here, so the index in memory is the newest.
        self.usable()
    }
}

/// True when the answer means that there is no such VDI now.
pub(super) fn is_absent(error: &ClientError) -> bool {
    matches!(error.code(), Some(ResultCode::NoObj | ResultCode::NoVdi))
}
