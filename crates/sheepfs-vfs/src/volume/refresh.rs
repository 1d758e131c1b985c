//! Noticing what others did to the VDI: a snapshot, another size, its end.

use std::sync::atomic::Ordering;
use std::time::Duration;

use sheep_client::{ClientError, VdiInfo, WhichVersion};
use sheep_proto::{ObjectIndex, Vid};
use tokio::time::Instant;

use super::Volume;
use super::doubt::is_absent;
use crate::error::FsError;

/// Age up to which the facts of a VDI are believed without asking.
const FRESH_FOR: Duration = Duration::from_secs(1);
/// Longest wait for those facts while the cluster is slow; the known ones serve.
const CHECK_TIMEOUT: Duration = Duration::from_secs(2);

impl Volume {
    /// Notices what others did to the VDI, unless that was asked a moment ago.
    ///
    /// # Errors
    /// `Stale` when the VDI was deleted or rolled back. That the cluster does
    /// not answer is not an error here: what is known stays in use.
    pub async fn refresh(&self) -> Result<(), FsError> {
        {
            let mut checked = self.checked.lock().expect("no one panics with the time");
            if checked.elapsed() < FRESH_FOR {
                return self.usable();
            }
            *checked = Instant::now();
        }
        if self.checking.swap(true, Ordering::AcqRel) {
            return self.usable();
        }
        let volume = self.arc();
        // As a task: a move to another VDI that it starts must run to its end.
        let check = self.runtime.spawn(async move {
            let checked = volume.check().await;
            volume.checking.store(false, Ordering::Release);
            checked
        });
        match tokio::time::timeout(CHECK_TIMEOUT, check).await {
            Ok(Ok(Err(error @ FsError::Stale(_)))) => Err(error),
            Ok(Ok(Err(error))) => {
                tracing::debug!("cannot look after {}: {error}", self.selector);
                self.usable()
            }
            Ok(Ok(Ok(())) | Err(_)) | Err(_) => self.usable(),
        }
    }

    /// Notices what was done to the VDI just now.
    ///
    /// # Errors
    /// `Stale` when it was deleted or rolled back, `VolumeIo` when the cluster
    /// does not answer.
    pub async fn refresh_now(&self) -> Result<(), FsError> {
        self.usable()?;
        self.check().await
    }

    /// Looks at the VDI's header: deleted, turned into a snapshot, resized?
    pub(super) async fn check(&self) -> Result<(), FsError> {
        let (vid, create_time, size) = {
            let info = &self.head().info;
            (info.vid, info.create_time, info.size)
        };
        let now = match self.client.info(vid).await {
            Ok(Some(now)) if now.create_time == create_time => now,
            // It may have become a snapshot, and have been deleted as such.
            Ok(None) if self.selector.which == WhichVersion::Working => {
                return self.reload(vid).await;
            }
            Ok(_) => return Err(self.gone()),
            // Not for good: the node that has it may come back.
            Err(error) if is_absent(&error) => {
                return Err(FsError::Stale(self.selector.to_string()));
            }
            Err(error) => return Err(self.failed(error)),
        };
        if now.is_snapshot() && self.selector.which == WhichVersion::Working {
            return self.reload(vid).await;
        }
        if now.size != size && now.size <= now.max_size() {
            self.resized(&now).await?;
        }
        Ok(())
    }

    /// Takes over another size, and the slots that came with it.
    async fn resized(&self, now: &VdiInfo) -> Result<(), FsError> {
        let known = self.head().info.object_count();
        let mut added = Vec::new();
        self.client
            .for_each_slot(now, |index, owner| {
                if u64::from(index.0) >= known {
                    added.push((index, owner));
                }
            })
            .await
            .map_err(|error| self.failed(error))?;
        let mut head = self.head.write().expect("no one panics with the head");
        if head.info.vid == now.vid && head.info.size != now.size {
            tracing::info!("{} now has {} bytes", self.selector, now.size);
            head.info.size = now.size;
            for (index, owner) in added {
                // What was written here meanwhile is newer.
                if head.map.get(index).is_none() {
                    head.map.set(index, Some(owner));
                }
            }
        }
        Ok(())
    }

    /// Grows the VDI to `size` bytes; a smaller size is accepted and ignored,
    /// as on a block device.
    ///
    /// # Errors
    /// `ReadOnly`; `Cluster` when the cluster refuses or the size is too large.
    pub async fn set_size(&self, size: u64) -> Result<(), FsError> {
        if !self.writable {
            return Err(FsError::ReadOnly(self.selector.to_string()));
        }
        self.usable()?;
        if size <= self.size() {
            return Ok(());
        }
        self.client.resize(&self.selector.name, size).await?;
        self.check().await
    }

    /// Asks for a slot again, after the cached one led to a missing object.
    ///
    /// The caller does not hold the slot's guard.
    ///
    /// # Errors
    /// `error` when the slot is what it was: the object is lost.
    pub(super) async fn refresh_slot(
        &self,
        index: ObjectIndex,
        seen: (Vid, Option<Vid>),
        error: ClientError,
    ) -> Result<(), FsError> {
        self.check().await?;
        let changes = self.head().map.changes();
        let info = self.info();
        let slot = self
            .client
            .slot(&info, index)
            .await
            .map_err(|error| self.failed(error))?;
        if (info.vid, slot) == seen {
            // It may be about to go: who frees it has the guard until no slot names it
            // any more, those in new snapshots included. Or it has come back.
            let _alone = self.guard(index).await?;
            let now = self.slot(index)?;
            return match now.1 {
                Some(owner) if now == seen && !self.exists(owner, index).await? => {
                    Err(self.failed(error))
                }
                _ => Ok(()),
            };
        }
        let mut head = self.head.write().expect("no one panics with the head");
        // Otherwise someone who makes objects knows better; the caller looks again.
        if head.info.vid == info.vid && head.map.changes() == changes {
            head.map.set(index, slot);
        }
        Ok(())
    }
}
