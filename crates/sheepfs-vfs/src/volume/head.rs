//! The head of a volume: the VDI that it reads and writes now.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use sheep_client::{Client, ClientError, VdiInfo, VdiSelector, VdiVersion};
use sheep_proto::generation::Locking;
use sheep_proto::inode::packed_seconds;
use sheep_proto::{Generation, ObjectIndex, Vid};
use tokio::task::JoinError;
use tokio::time::Instant;

use super::error::VolumeError;
use super::head_state::HeadState;
use super::object_lock::{ObjectLocks, SharedObjectLock};
use super::object_map::{HeadMoved, ObjectMap, Revalidation, Slot};
use crate::poison;

/// The head, with the state that all layers share.
#[derive(Debug)]
pub(super) struct Head {
    pub(super) client: Client,
    pub(super) selector: VdiSelector,
    /// The generation of the cluster's sheep.
    pub(super) generation: Generation,
    /// Whether this client holds the VDI's cluster lock and must release it.
    pub(super) leased: bool,
    /// One creator per object.
    pub(super) locks: Arc<ObjectLocks>,
    pub(super) opened: Instant,
    state: RwLock<HeadState>,
    /// The VDI was deleted or rolled back; all I/O fails. Final.
    stale: AtomicBool,
    /// Nanoseconds since 1970.
    modified: AtomicU64,
}

/// A slot as seen at one point in time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct SlotView {
    pub(super) head: Vid,
    /// The owner of the object in its index.
    pub(super) owner: Option<Vid>,
}

impl SlotView {
    /// Whether the object is the head's own and is written in place.
    pub(super) fn is_owned(self) -> bool {
        self.owner == Some(self.head)
    }
}

impl Head {
    pub(super) fn new(
        client: Client,
        selector: VdiSelector,
        generation: Generation,
        leased: bool,
        state: HeadState,
    ) -> Arc<Self> {
        let modified = match state.info.snap_ctime {
            0 => SystemTime::now(),
            snapped => UNIX_EPOCH + Duration::from_secs(packed_seconds(snapped)),
        };
        Arc::new(Self {
            client,
            selector,
            generation,
            leased,
            locks: Arc::default(),
            opened: Instant::now(),
            state: RwLock::new(state),
            stale: AtomicBool::new(false),
            modified: AtomicU64::new(nanoseconds(modified)),
        })
    }

    pub(super) fn state(&self) -> RwLockReadGuard<'_, HeadState> {
        poison::read(&self.state)
    }

    fn state_mut(&self) -> RwLockWriteGuard<'_, HeadState> {
        poison::write(&self.state)
    }

    /// The lock of head and index itself, for the switch to another head.
    pub(super) fn state_lock(&self) -> &RwLock<HeadState> {
        &self.state
    }

    /// Runs a transition of the object map.
    pub(super) fn update<T>(&self, transition: impl FnOnce(&mut ObjectMap) -> T) -> T {
        transition(&mut self.state_mut().map)
    }

    /// Applies another size, and the slots that came with it; false if its VDI is not the
    /// head any more, or the size is the same.
    pub(super) fn resize(&self, now: &VdiInfo, added: Vec<(ObjectIndex, Vid)>) -> bool {
        let mut head = self.state_mut();
        if head.info.vid != now.vid || head.info.size == now.size {
            return false;
        }
        head.info.size = now.size;
        head.map.extend(added);
        true
    }

    pub(super) fn info(&self) -> VdiInfo {
        self.state().info.clone()
    }

    pub(super) fn vid(&self) -> Vid {
        self.state().info.vid
    }

    pub(super) fn is_head_selected(&self) -> bool {
        self.selector.version == VdiVersion::Working
    }

    /// Whether no other client may change the index, so that the cached one is valid. A
    /// lock guarantees that only where every LOCK_VDI that succeeds has locked the VDI.
    pub(super) fn is_index_exclusive(&self) -> bool {
        let excludes_others = self.generation.locking() == Locking::AsFormatted;
        self.leased && excludes_others || !self.is_head_selected()
    }

    /// Whether a read may use the cached slot.
    pub(super) fn is_cache_valid(&self, slot: Slot) -> bool {
        match slot {
            Slot::Owned => true,
            Slot::InDoubt { .. } => false,
            Slot::Hole | Slot::Reclaiming | Slot::Inherited(_) => self.is_index_exclusive(),
        }
    }

    /// The head and the owner of an object, as cached.
    pub(super) fn slot_view(&self, index: ObjectIndex) -> Result<SlotView, VolumeError> {
        self.ensure_live()?;
        let head = self.state();
        Ok(SlotView {
            head: head.info.vid,
            owner: head.map.owner(index),
        })
    }

    /// Begins a query of slots of the head.
    pub(super) fn begin_revalidation(&self) -> Revalidation {
        self.update(|map| map.revalidate(self.locks.locked()))
    }

    /// Applies a response about some slots.
    pub(super) fn observe(
        &self,
        revalidation: &Revalidation,
        slots: impl Iterator<Item = (ObjectIndex, Option<Vid>)>,
    ) {
        let is_locked = |index| self.locks.is_locked(index);
        let observed = self.update(|map| map.observe(revalidation, slots, is_locked));
        self.note_remote_write(observed);
    }

    /// Touches the mtime if the response shows a write of another client. Responses
    /// about a former head are ignored.
    pub(super) fn note_remote_write(&self, observed: Result<bool, HeadMoved>) {
        if observed == Ok(true) {
            self.touch_mtime();
        }
    }

    /// Locks an object.
    ///
    /// # Errors
    /// `Io` when an earlier request for it has timed out and pins the lock.
    pub(super) async fn lock_object(
        &self,
        index: ObjectIndex,
    ) -> Result<SharedObjectLock, VolumeError> {
        let locked = self.locks.lock(index).await;
        locked.map_err(|waited| self.timeout_error(waited))
    }

    pub(super) fn modified(&self) -> SystemTime {
        UNIX_EPOCH + Duration::from_nanos(self.modified.load(Ordering::Relaxed))
    }

    pub(super) fn touch_mtime(&self) {
        self.modified
            .fetch_max(nanoseconds(SystemTime::now()), Ordering::Relaxed);
    }

    /// # Errors
    /// `Stale` once the VDI is gone.
    pub(super) fn ensure_live(&self) -> Result<(), VolumeError> {
        match self.stale.load(Ordering::Acquire) {
            true => Err(self.stale_error()),
            false => Ok(()),
        }
    }

    /// Marks the volume stale: all further I/O fails.
    pub(super) fn mark_stale(&self) -> VolumeError {
        self.stale.store(true, Ordering::Release);
        self.stale_error()
    }

    pub(super) fn stale_error(&self) -> VolumeError {
        VolumeError::Stale(self.selector.to_string())
    }

    pub(super) fn read_only_error(&self) -> VolumeError {
        VolumeError::ReadOnly(self.selector.to_string())
    }

    pub(super) fn io_error(&self, error: impl Into<Arc<ClientError>>) -> VolumeError {
        VolumeError::Io {
            volume: self.selector.to_string(),
            source: error.into(),
        }
    }

    /// The error for a request without a response.
    pub(super) fn timeout_error(&self, waited: Duration) -> VolumeError {
        self.io_error(ClientError::Unreachable {
            gateway: self.client.address(),
            waited,
        })
    }

    /// The error for a task of this process that has ended without a result.
    pub(super) fn task_error(&self, _ended: &JoinError) -> VolumeError {
        VolumeError::TaskPanicked(self.selector.to_string())
    }
}

fn nanoseconds(time: SystemTime) -> u64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}
