//! Following the head after another client's snapshot.
//!
//! The old head stays readable for ever, refuses data writes, and silently accepts
//! index writes. An index update that was in flight while the server made the
//! snapshot may be missing in the new head, or in both, although it was
//! acknowledged (protocol 7.4); `recovery.rs` redoes it before the first request uses
//! the new head.
//!
//! ```text
//! follow ─► one at a time ─► look up the new head ─► lock it ─► verify its lineage,
//!     ▲                                                         read its index
//!     └── it became a snapshot, too ◄── reconcile ◄──────────────────┘
//!                                           └─► switched; release the old lock
//! ```
//!
//! With back-to-back snapshots the writable window is short. So the way from finding
//! the new head to the first write is kept short, and following is retried for up
//! to [`RETRY_DEADLINE`].

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use sheep_client::error::Chain;
use sheep_client::{ClientError, VdiInfo};
use sheep_proto::Vid;
use tokio::runtime::Handle;
use tokio::time::Instant;

use super::data_io::DataIo;
use super::error::VolumeError;
use super::head::Head;
use super::head_state::{prepare_writes, read_index};
use super::recovery::{Recovery, RecoveryError};

/// Lookups of a head that refuses writes without being a snapshot, before it is
/// reported as such (protocol 6.4).
const HEAD_LOOKUP_RETRIES: u32 = 6;
/// The first pause between them; each is twice the one before.
const HEAD_LOOKUP_PAUSE: Duration = Duration::from_millis(25);
/// How long a head that was found frozen is not looked up again.
const FROZEN_CACHE_TTL: Duration = Duration::from_secs(1);
/// How long an operation is retried when snapshots follow each other too fast for it.
pub(super) const RETRY_DEADLINE: Duration = Duration::from_secs(60);
/// Longest chain of snapshots between the old and the new head.
pub(super) const MAX_LINEAGE_LEN: u32 = 1024;

/// Switches a volume to the new head.
#[derive(Debug)]
pub(super) struct Follower {
    head: Arc<Head>,
    data: Arc<DataIo>,
    recovery: Recovery,
    runtime: Handle,
    /// Serialises switches. The time at which the last one found the head frozen.
    following: tokio::sync::Mutex<Option<Instant>>,
    /// A VID with a lock request of unknown outcome.
    lock_in_doubt: tokio::sync::Mutex<Option<Vid>>,
}

impl Follower {
    pub(super) fn new(
        head: Arc<Head>,
        data: Arc<DataIo>,
        recovery: Recovery,
        runtime: Handle,
    ) -> Arc<Self> {
        Arc::new(Self {
            head,
            data,
            recovery,
            runtime,
            following: tokio::sync::Mutex::default(),
            lock_in_doubt: tokio::sync::Mutex::default(),
        })
    }

    /// Switches from `old`, which has become a snapshot, to the head of its name. Returns
    /// immediately if that has been done.
    ///
    /// # Errors
    /// `Stale` when there is no head or it does not descend from `old`; `Io` when
    /// the cluster does not answer; `HeadReadOnly` when the head itself refuses writes.
    pub(super) async fn follow(self: &Arc<Self>, old: Vid) -> Result<(), VolumeError> {
        let follower = Arc::clone(self);
        // As a task: dropping the caller must not leave half a switch, with a lock taken
        // or a copy in flight.
        let followed = self
            .runtime
            .spawn(async move { follower.follow_serialized(old).await });
        followed
            .await
            .unwrap_or_else(|ended| Err(self.head.task_error(&ended)))
    }

    async fn follow_serialized(&self, old: Vid) -> Result<(), VolumeError> {
        let mut last_failure = self.following.lock().await;
        if last_failure.is_some_and(|failed: Instant| failed.elapsed() < FROZEN_CACHE_TTL) {
            return Err(self.frozen_error());
        }
        let followed = self.follow_until_deadline(old).await;
        // Waiters reuse this failure for `FROZEN_CACHE_TTL`.
        let frozen = matches!(followed, Err(VolumeError::HeadReadOnly(_)));
        *last_failure = frozen.then(Instant::now);
        followed
    }

    fn frozen_error(&self) -> VolumeError {
        VolumeError::HeadReadOnly(self.head.selector.to_string())
    }

    async fn follow_until_deadline(&self, old: Vid) -> Result<(), VolumeError> {
        let deadline = Instant::now() + RETRY_DEADLINE;
        let mut descendants = HashSet::from([old]);
        while Instant::now() < deadline {
            if self.head.vid() != old {
                return self.head.ensure_live();
            }
            let Some(info) = self.lookup_new_head(old).await? else {
                continue;
            };
            let to = info.vid;
            if self.head.leased && !self.lock_new_head(to).await? {
                continue;
            }
            let switched = self.switch_head(old, info, &mut descendants).await;
            if matches!(switched, Ok(true)) {
                self.data.release_former().await;
            }
            if self.head.leased {
                // Exactly one of the two stays locked: the head in use.
                let unused = if matches!(switched, Ok(true)) {
                    old
                } else {
                    to
                };
                if let Err(error) = self.head.client.inode(unused).unlock().await {
                    tracing::warn!("lock of VDI {unused} not released: {}", Chain(&error));
                }
            }
            if switched? {
                tracing::info!("{} was snapshotted: VDI {old} -> {to}", self.head.selector);
                self.head.touch_mtime();
                return Ok(());
            }
        }
        Err(self.frozen_error())
    }

    /// The head after `old`; `None` when that became a snapshot, too.
    async fn lookup_new_head(&self, old: Vid) -> Result<Option<VdiInfo>, VolumeError> {
        for tries in 0..HEAD_LOOKUP_RETRIES {
            let vid = match self.head.client.vdi(&self.head.selector).lookup().await {
                Ok(vid) => vid,
                Err(error) if error.is_missing_vdi() => {
                    return Err(self.head.mark_stale());
                }
                Err(error) => return Err(self.head.io_error(error)),
            };
            if vid != old {
                let info = self.head.client.inode(vid).stat().await;
                return match info.map_err(|error| self.head.io_error(error))? {
                    // A hypervolume has no snapshots, so this is another VDI by that name.
                    Some(info) if info.hypervolume => Err(self.head.mark_stale()),
                    found => Ok(found.filter(|info| !info.is_snapshot())),
                };
            }
            // Another sheep may know of the snapshot a moment later.
            tokio::time::sleep(HEAD_LOOKUP_PAUSE * 2u32.pow(tries)).await;
        }
        Err(self.frozen_error())
    }

    /// Makes the VDI of `info` the head; false if it has become a snapshot itself.
    async fn switch_head(
        &self,
        old: Vid,
        info: VdiInfo,
        descendants: &mut HashSet<Vid>,
    ) -> Result<bool, VolumeError> {
        prepare_writes(&self.head.client, &info)
            .await
            .map_err(|error| self.head.io_error(error))?;
        let (descends, owners) = tokio::join!(
            self.verify_lineage(&info, descendants),
            read_index(&self.head.client, &info)
        );
        descends?;
        let owners = owners.map_err(|error| self.head.io_error(error))?;
        let state = self.head.state_lock();
        let reconciled = self.recovery.reconcile(state, old, info, owners).await;
        reconciled.map_err(|error| match error {
            RecoveryError::Cluster(error) => self.head.io_error(error),
            RecoveryError::Locked(waited) => self.head.timeout_error(waited),
        })
    }

    /// Locks the new head, which the snapshot left unlocked; false if the head is not
    /// `to` any more.
    async fn lock_new_head(&self, to: Vid) -> Result<bool, VolumeError> {
        let mut asked = self.lock_in_doubt.lock().await;
        let mut locked = self.head.client.vdi(&self.head.selector).lock().await;
        let refused =
            |locked: &Result<Vid, ClientError>| matches!(locked, Err(error) if error.is_locked());
        if refused(&locked) && *asked == Some(to) {
            // We hold this lock already; the response to the earlier request was lost.
            self.head
                .client
                .inode(to)
                .unlock()
                .await
                .map_err(|error| self.head.io_error(error))?;
            locked = self.head.client.vdi(&self.head.selector).lock().await;
        }
        *asked = match &locked {
            Ok(_) => None,
            Err(_) if refused(&locked) => None,
            Err(_) => Some(to),
        };
        let vid = locked.map_err(|error| self.head.io_error(error))?;
        if vid != to {
            self.head
                .client
                .inode(vid)
                .unlock()
                .await
                .map_err(|error| self.head.io_error(error))?;
        }
        Ok(vid == to)
    }

    /// Checks that `new` came from the old head by snapshots, not by a rollback, and
    /// adds it to the known descendants.
    async fn verify_lineage(
        &self,
        new: &VdiInfo,
        descendants: &mut HashSet<Vid>,
    ) -> Result<(), VolumeError> {
        if new.object_shift != self.head.state().info.object_shift {
            return Err(self.head.mark_stale());
        }
        let mut line = vec![new.vid];
        let mut parent = new.parent;
        for _ in 0..MAX_LINEAGE_LEN {
            match parent {
                Some(vid) if descendants.contains(&vid) => {
                    descendants.extend(line);
                    return Ok(());
                }
                Some(vid) => {
                    line.push(vid);
                    let header = self.head.client.inode(vid).header().await;
                    parent = header.map_err(|error| self.head.io_error(error))?.parent();
                }
                None => break,
            }
        }
        Err(self.head.mark_stale())
    }

    /// True if no object is being migrated, and no abandoned request may still create one.
    pub(super) fn is_idle(&self) -> bool {
        self.recovery.is_idle()
    }

    /// Releases the VDI's lock, if there is one.
    ///
    /// # Errors
    /// `Cluster` when the cluster does not answer.
    pub(super) async fn release_lock(&self) -> Result<(), VolumeError> {
        if !self.head.leased {
            return Ok(());
        }
        if let Some(asked) = self.lock_in_doubt.lock().await.take() {
            self.head.client.inode(asked).unlock().await?;
        }
        // The VID may be that of a later VDI by now, locked by another client.
        if self.head.ensure_live().is_err() {
            return Ok(());
        }
        Ok(self.head.client.inode(self.head.vid()).unlock().await?)
    }
}
