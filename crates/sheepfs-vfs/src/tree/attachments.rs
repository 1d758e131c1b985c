//! Attaches and detaches volumes; detaches them while their VDI is replaced.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use sheep_client::{Client, VdiSelector, VdiVersion};
use tokio::time::Instant;

use super::handles::Handles;
use super::kernel_cache::KernelCache;
use super::volume_table::VolumeTable;
use crate::attributes::Invalidation;
use crate::error::{Chain, FsError};
use crate::lock_policy::LockPolicy;
use crate::resolve::resolve;
use crate::volume::{Volume, VolumeOptions};

/// Longest wait for the release of a handle: the kernel sends it after close(2) has
/// returned.
const RELEASE_WAIT: Duration = Duration::from_secs(1);
/// Poll interval of that wait.
const RELEASE_PAUSE: Duration = Duration::from_millis(20);
/// Longest wait at exit for a running attach or detach.
const CLOSE_WAIT: Duration = Duration::from_secs(1);
/// Volumes attached in parallel.
const ATTACH_PARALLEL: usize = 16;

/// Changes which volumes are in a tree.
pub struct Attachments {
    client: Client,
    /// Volumes are attached read-only.
    read_only: bool,
    volumes: Arc<VolumeTable>,
    handles: Arc<Handles>,
    kernel: Arc<KernelCache>,
    lock_policy: Arc<LockPolicy>,
    /// Serialises attach and detach: each checks the table, queries the cluster, then
    /// changes the table.
    attach_lock: tokio::sync::Mutex<()>,
}

impl Attachments {
    pub(super) fn new(
        client: Client,
        read_only: bool,
        volumes: Arc<VolumeTable>,
        handles: Arc<Handles>,
        kernel: Arc<KernelCache>,
        lock_policy: Arc<LockPolicy>,
    ) -> Self {
        Self {
            client,
            read_only,
            volumes,
            handles,
            kernel,
            lock_policy,
            attach_lock: tokio::sync::Mutex::default(),
        }
    }

    /// Attaches `NAME` or `NAME@TAG` under `volume/`; does nothing if it is attached.
    ///
    /// The file gets the number that this name had before. No other name gets that
    /// number while the tree lives, so a bind mount or a file handle of it finds the
    /// volume again. If the name now means another VDI, no data of the former one is
    /// visible:
    ///
    /// - The detach dropped the kernel's attributes.
    /// - The kernel drops its pages when the file is opened. No program can read them
    ///   before: a volume that is open or mapped is not detached.
    /// - A handle refers to the volume it was opened on, not to the number.
    ///
    /// # Errors
    /// `Cluster` when there is no such VDI or its lock is taken, `Invalid` for
    /// a name that cannot stand in a directory.
    pub async fn attach(&self, target: &[u8]) -> Result<(), FsError> {
        check_file_name(target)?;
        let _attach_lock = self.attach_lock.lock().await;
        if self.volumes.contains(target) {
            return Ok(());
        }
        let selector = resolve(&self.client, target).await?;
        self.attach_selected(target.to_vec(), selector).await
    }

    /// Attaches every working VDI with a name that is a valid file name.
    ///
    /// # Errors
    /// `Cluster` when the VDIs cannot be listed. A VDI that cannot be attached
    /// is skipped with a warning in the log.
    pub async fn attach_all(&self) -> Result<(), FsError> {
        let _attach_lock = self.attach_lock.lock().await;
        let mut names = self.client.cluster().list_names().await?;
        names.retain(|name| !self.volumes.contains(name.as_bytes()));
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
        let options = VolumeOptions::default()
            .with_read_only(self.read_only)
            .with_lock(self.lock_policy.lock_on_attach(&self.client).await?);
        let volume = Volume::open(self.client.clone(), selector, options).await?;
        tracing::info!(
            "attached {} as volume/{}",
            volume.selector(),
            target.escape_ascii()
        );
        self.volumes.insert(target, volume);
        Ok(())
    }

    /// Detaches a volume that is not open.
    ///
    /// # Errors
    /// `NotFound` when it is not attached, `Busy` while it is open, `VolumeIo`
    /// when its last writes fail: then it stays attached.
    pub async fn detach(&self, target: &[u8]) -> Result<(), FsError> {
        let _attach_lock = self.attach_lock.lock().await;
        self.detach_named(target).await?;
        self.kernel.invalidate_volume_name(target);
        Ok(())
    }

    async fn detach_named(&self, target: &[u8]) -> Result<(), FsError> {
        let (ino, volume) = self.volumes.named(target).ok_or(FsError::NotFound)?;
        let deadline = Instant::now() + RELEASE_WAIT;
        let is_open = || self.handles.is_open(ino);
        while !self.volumes.remove_unless(target, ino, is_open) {
            if Instant::now() > deadline {
                return Err(FsError::Busy(volume.selector().to_string()));
            }
            tokio::time::sleep(RELEASE_PAUSE).await;
        }
        if let Err(error) = volume.close().await {
            self.volumes.insert(target.to_vec(), volume);
            return Err(error.into());
        }
        tracing::info!("detached volume/{}", target.escape_ascii());
        self.kernel.drop_attributes(ino).await;
        Ok(())
    }

    /// Flushes and detaches all volumes and releases their locks.
    pub async fn close(&self) {
        // After the timeout a slow attach or `prealloc` no longer delays the exit.
        let _attach_lock = tokio::time::timeout(CLOSE_WAIT, self.attach_lock.lock()).await;
        let volumes = self.volumes.drain();
        join_all(volumes.iter().map(|volume| async move {
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

    /// Runs `change`, which replaces or deletes a VDI, with its volumes detached. An open
    /// volume refuses the change. Afterwards the volumes are attached again if the VDI
    /// still exists.
    pub(crate) async fn with_volumes_detached(
        &self,
        selector: &VdiSelector,
        change: impl Future<Output = Result<(), FsError>>,
    ) -> Result<(), FsError> {
        let _attach_lock = self.attach_lock.lock().await;
        let names = self.volumes.names_of_vdi(selector);
        for name in &names {
            self.detach_named(name).await?;
        }
        let changed = self.with_vdi_lock(selector, change).await;
        for name in names {
            let shown = name.escape_ascii().to_string();
            let again = match self.client.vdi(selector).lookup().await {
                Ok(_) => self.attach_selected(name.clone(), selector.clone()).await,
                Err(error) if error.is_missing_version() => {
                    self.kernel.invalidate_volume_name(&name);
                    continue;
                }
                Err(error) => Err(error.into()),
            };
            if let Err(error) = again {
                self.kernel.invalidate_volume_name(&name);
                tracing::warn!("volume/{shown} is no longer attached: {}", Chain(&error));
            }
        }
        changed
    }

    /// Runs `change` with the VDI's lock, which excludes other clients.
    async fn with_vdi_lock(
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

    /// Excludes attach and detach until the guard is dropped.
    pub(crate) async fn lock(&self) -> tokio::sync::MutexGuard<'_, ()> {
        self.attach_lock.lock().await
    }

    /// Fails if a volume of the VDI is attached.
    pub(crate) fn check_not_attached(&self, selector: &VdiSelector) -> Result<(), FsError> {
        match self.volumes.of(selector).first() {
            Some((_, volume)) => Err(FsError::Busy(volume.selector().to_string())),
            None => Ok(()),
        }
    }

    /// Revalidates the volumes of a VDI after a change of it.
    pub(crate) async fn revalidate(&self, selector: &VdiSelector) -> Result<(), FsError> {
        for (ino, volume) in self.volumes.of(selector) {
            volume.revalidate_header().await?;
            self.kernel.invalidate(Invalidation::Inode(ino));
        }
        Ok(())
    }

    /// Makes the replicas have what was written to a VDI's volumes. The handles report the
    /// errors of write-back.
    pub(crate) async fn flush_caches(&self, selector: &VdiSelector) -> Result<(), FsError> {
        for (_, volume) in self.volumes.of(selector) {
            volume.flush_caches().await?;
        }
        Ok(())
    }

    /// Runs `snapshot` when the replicas have what was written to the VDI's volumes. A
    /// sheep that is writing its object cache back when the snapshot freezes the VDI ends
    /// itself, so the volumes do not use that meanwhile.
    pub(crate) async fn with_caches_flushed(
        &self,
        selector: &VdiSelector,
        snapshot: impl Future<Output = Result<(), FsError>>,
    ) -> Result<(), FsError> {
        self.flush_caches(selector).await?;
        let mut using = Vec::new();
        let mut outcome = Ok(());
        for (_, volume) in self.volumes.of(selector) {
            if outcome.is_ok() && volume.uses_object_cache() {
                outcome = volume.stop_object_cache().await;
                using.push(volume);
            }
        }
        let taken = match outcome {
            Ok(()) => snapshot.await,
            Err(error) => Err(error.into()),
        };
        for volume in using {
            if let Err(error) = volume.use_object_cache().await {
                tracing::warn!(
                    "{}: the object cache of the sheep is no longer used: {}",
                    volume.selector(),
                    Chain(&error)
                );
            }
        }
        taken
    }

    /// Drains the caches of all volumes. [`Self::close`] reports the errors.
    pub async fn flush_all_dirty(&self) {
        let volumes = self.volumes.all();
        let flushed = join_all(volumes.iter().map(|volume| volume.flush_caches())).await;
        for error in flushed.into_iter().filter_map(Result::err) {
            tracing::debug!("not flushed: {}", Chain(&error));
        }
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
