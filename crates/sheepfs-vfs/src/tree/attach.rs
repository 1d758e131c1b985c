//! Which volumes are in the tree: attaching, detaching, and what happens to
//! them when their VDI is replaced.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use sheep_client::{VdiSelector, VdiVersion};
use tokio::time::Instant;

use super::Tree;
use crate::attributes::Invalidation;
use crate::error::{Chain, FsError};
use crate::ino::Ino;
use crate::node::Directory;
use crate::resolve::resolve;
use crate::volume::{Volume, VolumeOptions};

/// How long a volume may still look open: a kernel tells of the last close(2)
/// only after that has returned.
const RELEASE_WAIT: Duration = Duration::from_secs(1);
/// Pause between two looks.
const RELEASE_PAUSE: Duration = Duration::from_millis(20);
/// Longest wait at the end for a change of what is attached.
const CLOSE_WAIT: Duration = Duration::from_secs(1);
/// Volumes attached at once when all are.
const ATTACH_PARALLEL: usize = 16;

impl Tree {
    /// Attaches `NAME` or `NAME@TAG` under `volume/`. What is attached stays so.
    ///
    /// The file gets the number that this name had before, and that no other name
    /// gets for as long as the tree lives: whatever holds on to the number, such
    /// as a bind mount or a file handle, finds the volume again. When another VDI
    /// is behind the name by then, nothing of the former one is seen any more:
    ///
    /// - The kernel dropped its attributes when the volume was detached.
    /// - It drops its pages when the file is opened. Nobody reads them before: a
    ///   volume that is open or mapped is not detached.
    /// - A handle leads to the volume it was opened on, not to the number.
    ///
    /// # Errors
    /// `Cluster` when there is no such VDI or its lock is taken, `Invalid` for
    /// a name that cannot stand in a directory.
    pub async fn attach(&self, target: &[u8]) -> Result<(), FsError> {
        check_file_name(target)?;
        let _one_at_a_time = self.changing.lock().await;
        if self.attached().by_name.contains_key(target) {
            return Ok(());
        }
        let selector = resolve(&self.client, target).await?;
        self.attach_selected(target.to_vec(), selector).await
    }

    /// Attaches every working VDI whose name can stand in a directory.
    ///
    /// # Errors
    /// `Cluster` when the VDIs cannot be listed. A VDI that cannot be attached
    /// is left out with a warning in the log.
    pub async fn attach_all(&self) -> Result<(), FsError> {
        let _one_at_a_time = self.changing.lock().await;
        let mut names = self.client.cluster().list_names().await?;
        names.retain(|name| !self.attached().by_name.contains_key(name.as_bytes()));
        for some in names.chunks(ATTACH_PARALLEL) {
            join_all(some.iter().map(|name| async move {
                let target = name.as_bytes().to_vec();
                let outcome = match check_file_name(&target) {
                    Ok(()) => {
                        self.attach_selected(target, VdiSelector::working(name.clone()))
                            .await
                    }
                    Err(error) => Err(error),
                };
                if let Err(error) = outcome {
                    tracing::warn!("skipped {name}: {}", Chain(&error));
                }
            }))
            .await;
        }
        Ok(())
    }

    async fn attach_selected(&self, target: Vec<u8>, selector: VdiSelector) -> Result<(), FsError> {
        let options = VolumeOptions {
            read_only: self.config.read_only,
            lock: self.lock_policy.lock_on_attach(&self.client).await?,
        };
        let volume = Volume::open(self.client.clone(), selector, options).await?;
        tracing::info!(
            "attached {} as volume/{}",
            volume.selector(),
            target.escape_ascii()
        );
        let mut attached = self
            .attached
            .write()
            .expect("no one panics with the volumes");
        let ino = attached.number(&target);
        attached.by_name.insert(target, ino);
        attached.by_ino.insert(ino, volume);
        Ok(())
    }

    /// Detaches a volume that nobody has open.
    ///
    /// # Errors
    /// `NoEntry` when it is not attached, `Busy` while it is open, `VolumeIo`
    /// when the last writes cannot be brought home: then it stays attached.
    pub async fn detach(&self, target: &[u8]) -> Result<(), FsError> {
        let _one_at_a_time = self.changing.lock().await;
        self.detach_named(target).await?;
        self.forget_name(target);
        Ok(())
    }

    /// Has the kernel forget a name that is not there any more. A name that is
    /// attached anew stays: a bind mount of a forgotten one is shown as deleted.
    fn forget_name(&self, target: &[u8]) {
        self.forget(Invalidation::Entry {
            parent: Directory::Volume.ino(),
            name: target.to_vec(),
        });
    }

    async fn detach_named(&self, target: &[u8]) -> Result<(), FsError> {
        let (ino, volume) = self.volume_named(target).ok_or(FsError::NoEntry)?;
        let deadline = Instant::now() + RELEASE_WAIT;
        while !self.remove_closed(target, ino) {
            if Instant::now() > deadline {
                return Err(FsError::Busy(volume.selector().to_string()));
            }
            tokio::time::sleep(RELEASE_PAUSE).await;
        }
        if let Err(error) = volume.close().await {
            let mut attached = self
                .attached
                .write()
                .expect("no one panics with the volumes");
            attached.by_name.insert(target.to_vec(), ino);
            attached.by_ino.insert(ino, volume);
            return Err(error.into());
        }
        tracing::info!("detached volume/{}", target.escape_ascii());
        self.forget_attributes(ino).await;
        Ok(())
    }

    /// Takes a volume out of the tree, unless somebody has it open.
    fn remove_closed(&self, target: &[u8], ino: Ino) -> bool {
        let mut attached = self
            .attached
            .write()
            .expect("no one panics with the volumes");
        // Opening takes the read lock, so nobody opens it between look and removal.
        if self.handles.is_open(ino) {
            return false;
        }
        attached.by_name.remove(target);
        attached.by_ino.remove(&ino);
        true
    }

    /// Finishes what is on its way and gives all locks back.
    pub async fn close(&self) {
        // Not held up by an attach or a preallocation that takes its time.
        let _one_at_a_time = tokio::time::timeout(CLOSE_WAIT, self.changing.lock()).await;
        let volumes = {
            let mut attached = self
                .attached
                .write()
                .expect("no one panics with the volumes");
            attached.by_name.clear();
            std::mem::take(&mut attached.by_ino)
        };
        join_all(volumes.values().map(|volume| async move {
            if let Err(error) = volume.close().await {
                tracing::error!("cannot close {}: {}", volume.selector(), Chain(&error));
                if let Err(error) = volume.release_lock().await {
                    tracing::error!(
                        "lock of {} not released: {}",
                        volume.selector(),
                        Chain(&error)
                    );
                }
            }
        }))
        .await;
    }

    /// Runs `change`, which replaces or removes a VDI, and sees to it that no
    /// attached volume goes on as if nothing had happened: one that is open
    /// refuses the change, others are attached anew, or no more.
    pub(crate) async fn replace(
        &self,
        selector: &VdiSelector,
        change: impl Future<Output = Result<(), FsError>>,
    ) -> Result<(), FsError> {
        let _one_at_a_time = self.changing.lock().await;
        let names: Vec<Vec<u8>> = {
            let attached = self.attached();
            let same = |ino: &Ino| attached.by_ino[ino].selector() == selector;
            attached
                .by_name
                .iter()
                .filter(|(_, ino)| same(ino))
                .map(|(name, _)| name.clone())
                .collect()
        };
        for name in &names {
            self.detach_named(name).await?;
        }
        let changed = self.locked(selector, change).await;
        for name in names {
            let shown = name.escape_ascii().to_string();
            let again = match self.client.vdi(selector).lookup().await {
                Ok(_) => self.attach_selected(name.clone(), selector.clone()).await,
                Err(error) if error.is_missing_version() => {
                    self.forget_name(&name);
                    continue;
                }
                Err(error) => Err(error.into()),
            };
            if let Err(error) = again {
                self.forget_name(&name);
                tracing::warn!("volume/{shown} is no longer attached: {}", Chain(&error));
            }
        }
        changed
    }

    /// Runs `change` while nobody else has the VDI's lock.
    async fn locked(
        &self,
        selector: &VdiSelector,
        change: impl Future<Output = Result<(), FsError>>,
    ) -> Result<(), FsError> {
        let locking = self.lock_policy.is_locking(&self.client).await?;
        if !locking || selector.version != VdiVersion::Working {
            return change.await;
        }
        let vid = match self.client.vdi(selector).lock().await {
            Ok(vid) => vid,
            // A rollback that was interrupted has no working VDI to lock.
            Err(error) if error.is_missing_vdi() => return change.await,
            Err(error) => return Err(error.into()),
        };
        let changed = change.await;
        if let Err(error) = self.client.inode(vid).unlock().await {
            tracing::warn!("lock of {selector} not released: {}", Chain(&error));
        }
        changed
    }

    /// One change of what is attached at a time, until the guard is dropped.
    pub(crate) async fn lock_attached(&self) -> tokio::sync::MutexGuard<'_, ()> {
        self.changing.lock().await
    }

    /// Refuses what an attached volume would not survive.
    pub(crate) fn check_not_attached(&self, selector: &VdiSelector) -> Result<(), FsError> {
        let attached = self.attached();
        match attached
            .by_ino
            .values()
            .find(|volume| volume.selector() == selector)
        {
            Some(volume) => Err(FsError::Busy(volume.selector().to_string())),
            None => Ok(()),
        }
    }

    /// Notices what was done to an attached VDI just now.
    pub(crate) async fn refresh(&self, selector: &VdiSelector) -> Result<(), FsError> {
        for (ino, volume) in self.volumes_of(selector) {
            volume.revalidate_header().await?;
            self.forget(Invalidation::Inode(ino));
        }
        Ok(())
    }

    /// Waits until what was written to an attached VDI is on the cluster, or lost;
    /// those who wrote it are told.
    pub(crate) async fn settle(&self, selector: &VdiSelector) {
        for (_, volume) in self.volumes_of(selector) {
            volume.flush_dirty().await;
        }
    }

    /// Waits until nothing that was written waits for being sent.
    pub async fn settle_all(&self) {
        let volumes: Vec<_> = self.attached().by_ino.values().map(Arc::clone).collect();
        join_all(volumes.iter().map(|volume| volume.flush_dirty())).await;
    }

    fn volumes_of(&self, selector: &VdiSelector) -> Vec<(Ino, Arc<Volume>)> {
        let attached = self.attached();
        let same = attached
            .by_ino
            .iter()
            .filter(|(_, volume)| volume.selector() == selector);
        same.map(|(&ino, volume)| (ino, Arc::clone(volume)))
            .collect()
    }
}

/// A name that can stand in a directory.
fn check_file_name(name: &[u8]) -> Result<(), FsError> {
    if name.contains(&b'/') || name == b"." || name == b".." {
        return Err(FsError::Invalid(format!(
            "'{}' cannot be the name of a file",
            name.escape_ascii()
        )));
    }
    Ok(())
}
