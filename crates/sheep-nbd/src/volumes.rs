//! The volumes of a cluster as exports.
//!
//! A volume is attached, and locked in clusters with locking, when its first client
//! connects, and detached after the last one has disconnected. Its clients share it, so
//! a flush on one connection covers the completed writes of all.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex as StdMutex, Weak};
use std::time::Duration;

use bytes::Bytes;
use sheep_client::proto::Vid;
use sheep_client::{Client, ClientError, SnapshotTag, VdiInfo, VdiSelector, VdiVersion};
use sheepfs_vfs::volume::{ExtentMap, Lineage, load_extent_map};
use sheepfs_vfs::{Chain, LockMode, LockPolicy, Volume, VolumeError, VolumeOptions, resolve};
use tokio::sync::{Mutex, oneshot};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tokio_util::task::task_tracker::TaskTrackerToken;

use crate::export::{ContextQuery, Description, Export, ExportError, Exports};
use crate::protocol::reply::StatusExtent;

const DEPTH: [&[u8]; 2] = [b"sheepdog:depth", b"qemu:allocation-depth"];
const CHANGED_SINCE: [&[u8]; 2] = [
    b"sheepdog:changed-since:",
    b"qemu:dirty-bitmap:changed-since-",
];
/// The status of an extent that may have changed.
const CHANGED: u32 = 1;
/// Pause before the next attempt to detach a volume that could not be closed.
const DETACH_RETRY_PAUSE: Duration = Duration::from_secs(1);
/// Time in which a volume can be closed at shutdown, before only its lock is released.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);

/// Which volumes are exported.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Selection {
    /// Every VDI and every snapshot, including those created later.
    All,
    /// These: `NAME` or `NAME@TAG`.
    Named(Vec<Bytes>),
}

/// How volumes are attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AttachOptions {
    /// Refuse every write.
    pub read_only: bool,
    /// Whether to lock them.
    pub lock: LockMode,
}

/// The volumes of a cluster. Clones share them.
#[derive(Clone, Debug)]
pub struct Volumes {
    client: Client,
    selection: Arc<Selection>,
    read_only: bool,
    lock_policy: Arc<LockPolicy>,
    registry: Arc<StdMutex<HashMap<Bytes, Arc<ExportSlot>>>>,
    /// Tasks that attach and detach.
    tasks: TaskTracker,
    /// Exports in use.
    in_use: TaskTracker,
    ending: CancellationToken,
}

/// The volume attached under a name. The mutex is held while it attaches or detaches,
/// so that a volume is attached again only after its lock was released.
type ExportSlot = Mutex<Option<Arc<Attached>>>;

/// An attached volume. Its state changes under the mutex of the slot.
#[derive(Debug)]
struct Attached {
    volume: Arc<Volume>,
    users: AtomicUsize,
    is_closed: AtomicBool,
    /// The maps of snapshots that clients compare with.
    bases: Mutex<HashMap<Base, Weak<ExtentMap>>>,
}

/// VID and times of a snapshot; a VID alone may be used again.
type Base = (Vid, u64, u64);

/// A volume in use by a client.
#[derive(Debug)]
pub struct VolumeExport {
    client: Client,
    slot: Arc<ExportSlot>,
    attached: Arc<Attached>,
    tasks: TaskTracker,
    ending: CancellationToken,
    _in_use: TaskTrackerToken,
}

/// A metadata context of a volume.
#[derive(Debug)]
pub enum VolumeContext {
    /// Depth of the version that owns the object of an extent: 1 is the volume, 2 the
    /// snapshot it was made from; 0 is a hole.
    Depth(Mutex<Option<Arc<Lineage>>>),
    /// Which extents may differ from a snapshot.
    ChangedSince(Arc<ExtentMap>),
}

impl Volumes {
    /// Volumes that are attached on first use.
    pub fn new(client: Client, selection: Selection, options: AttachOptions) -> Self {
        let (tasks, in_use) = (TaskTracker::new(), TaskTracker::new());
        tasks.close();
        in_use.close();
        Self {
            client,
            selection: Arc::new(selection),
            read_only: options.read_only,
            lock_policy: Arc::new(LockPolicy::new(options.lock)),
            registry: Arc::default(),
            tasks,
            in_use,
            ending: CancellationToken::new(),
        }
    }

    /// Waits until all unused volumes are detached. One that cannot be closed is not:
    /// it keeps its lock, and closing it is tried again and again.
    pub async fn detached(&self) {
        self.tasks.wait().await;
    }

    /// Ends the service: waits until all exports were dropped and all volumes are
    /// detached. Of a volume that cannot be closed only the lock is released.
    pub async fn end(&self) {
        self.ending.cancel();
        loop {
            self.in_use.wait().await;
            self.tasks.wait().await;
            // The last task may have opened one.
            if self.in_use.is_empty() {
                return;
            }
        }
    }

    async fn resolve(&self, name: &[u8]) -> Result<VdiSelector, ExportError> {
        let is_exported = match &*self.selection {
            Selection::All => true,
            Selection::Named(names) => names.iter().any(|known| known == name),
        };
        if !is_exported {
            return Err(unknown(name));
        }
        let found = resolve::resolve(&self.client, name).await;
        found.map_err(|error| self.export_error(name, error))
    }

    fn export_error(&self, name: &[u8], error: ClientError) -> ExportError {
        if error.is_missing_version() {
            return unknown(name);
        }
        failed(name, &VolumeError::from(error))
    }

    fn slot(&self, name: &[u8]) -> Arc<ExportSlot> {
        let registry = self.registry.lock();
        let mut registry = registry.expect("no code panics with the registry");
        // Drop the entries of names that no client uses.
        registry.retain(|_, slot| Arc::strong_count(slot) > 1);
        Arc::clone(registry.entry(Bytes::copy_from_slice(name)).or_default())
    }

    async fn attach(&self, name: &[u8]) -> Result<Arc<Attached>, ExportError> {
        let selector = self.resolve(name).await?;
        let opened = async {
            let lock = self.lock_policy.lock_on_attach(&self.client).await?;
            let options = VolumeOptions::default()
                .with_read_only(self.read_only)
                .with_lock(lock);
            Volume::open(self.client.clone(), selector, options).await
        };
        let volume = opened.await.map_err(|error| failed(name, &error))?;
        tracing::info!("attached {}", volume.selector());
        Ok(Arc::new(Attached {
            volume,
            users: AtomicUsize::new(0),
            is_closed: AtomicBool::new(false),
            bases: Mutex::default(),
        }))
    }

    async fn all(&self) -> Result<Vec<VdiInfo>, ExportError> {
        let vdis = self.client.cluster().list_vdis().await;
        vdis.map_err(|error| {
            ExportError::Failed(format!("the VDIs cannot be listed: {}", Chain(&error)))
        })
    }
}

/// The snapshot of the same VDI that a context called `name` compares with; `None`
/// for other contexts, and when there is no such snapshot.
async fn find_base(
    client: &Client,
    selector: &VdiSelector,
    name: &[u8],
) -> Result<Option<VdiSelector>, ClientError> {
    let tag = CHANGED_SINCE
        .iter()
        .find_map(|prefix| name.strip_prefix(*prefix))
        .filter(|tag| !tag.is_empty())
        .and_then(|tag| SnapshotTag::new(tag).ok());
    let Some(tag) = tag else {
        return Ok(None);
    };
    match resolve::find_snapshot(client, (selector.name.clone(), tag)).await {
        Ok(base) => Ok(Some(base)),
        Err(error) if error.is_missing_version() => Ok(None),
        Err(error) => Err(error),
    }
}

fn unknown(name: &[u8]) -> ExportError {
    ExportError::Unknown(format!("there is no export '{}'", name.escape_ascii()))
}

fn failed(name: &[u8], error: &VolumeError) -> ExportError {
    let name = name.escape_ascii();
    match error {
        VolumeError::Cluster(source) if source.is_locked() => ExportError::InUse(format!(
            "'{name}' is locked: another client of the cluster has it attached"
        )),
        _ => ExportError::Failed(format!("'{name}' cannot be attached: {}", Chain(error))),
    }
}

fn is_writable(selector: &VdiSelector, read_only: bool) -> bool {
    selector.version == VdiVersion::Working && !read_only
}

/// The export name of a VDI.
fn name_of(vdi: &VdiInfo) -> Bytes {
    let mut name = vdi.name.as_bytes().to_vec();
    if vdi.is_snapshot() {
        name.push(b'@');
        match vdi.tag.is_empty() {
            true => name.extend(vdi.snap_id.to_string().as_bytes()),
            false => name.extend(vdi.tag.as_bytes()),
        }
    }
    name.into()
}

fn text_of(is_snapshot: bool) -> String {
    match is_snapshot {
        true => "Sheepdog snapshot".to_owned(),
        false => "Sheepdog volume".to_owned(),
    }
}

impl Exports for Volumes {
    type Export = VolumeExport;

    async fn list(&self) -> Result<Vec<(Bytes, String)>, ExportError> {
        match &*self.selection {
            Selection::All => Ok(self
                .all()
                .await?
                .iter()
                .map(|vdi| (name_of(vdi), text_of(vdi.is_snapshot())))
                .collect()),
            Selection::Named(names) => {
                let named = names.iter().map(|name| (name.clone(), String::new()));
                Ok(named.collect())
            }
        }
    }

    async fn describe(&self, name: &[u8]) -> Result<Description, ExportError> {
        let selector = self.resolve(name).await?;
        let info = self.client.vdi(&selector).stat().await;
        let info = info.map_err(|error| self.export_error(name, error))?;
        Ok(Description {
            size: info.size,
            is_writable: is_writable(&selector, self.read_only),
            text: text_of(info.is_snapshot()),
        })
    }

    async fn contexts(
        &self,
        name: &[u8],
        queries: &[ContextQuery<'_>],
    ) -> Result<Vec<Bytes>, ExportError> {
        let is_wanted = |context: &[u8]| queries.iter().any(|query| query.matches(context));
        let mut found: Vec<Bytes> = DEPTH
            .into_iter()
            .filter(|context| is_wanted(context))
            .map(Bytes::from_static)
            .collect();
        let selector = self.resolve(name).await?;
        for query in queries {
            let ContextQuery::Exact(context) = query else {
                continue;
            };
            let base = find_base(&self.client, &selector, context).await;
            let base = base.map_err(|error| self.export_error(name, error))?;
            if base.is_some() {
                found.push(Bytes::copy_from_slice(context));
            }
        }
        let is_exact = |query: &ContextQuery<'_>| matches!(query, ContextQuery::Exact(_));
        if queries.iter().all(is_exact) {
            return Ok(found);
        }
        for vdi in self.all().await? {
            if vdi.name != selector.name || !vdi.is_snapshot() || vdi.tag.is_empty() {
                continue;
            }
            let named = CHANGED_SINCE.map(|prefix| [prefix, vdi.tag.as_bytes()].concat());
            found.extend(
                named
                    .into_iter()
                    .filter(|name| is_wanted(name))
                    .map(Bytes::from),
            );
        }
        Ok(found)
    }

    async fn open(&self, name: &[u8]) -> Result<Arc<VolumeExport>, ExportError> {
        let (volumes, name) = (self.clone(), name.to_vec());
        let (sender, opened) = oneshot::channel();
        // As a task: a caller that is dropped while the volume is locked would leave
        // the lock behind.
        self.tasks.spawn(async move {
            // Dropped here if the caller is gone, so that `detached` waits for it.
            drop(sender.send(volumes.open_shared(&name).await));
        });
        opened
            .await
            .unwrap_or_else(|_| Err(ExportError::Failed("internal error".to_owned())))
    }
}

impl Volumes {
    async fn open_shared(&self, name: &[u8]) -> Result<Arc<VolumeExport>, ExportError> {
        let slot = self.slot(name);
        let mut current = slot.lock().await;
        // Another client may have resized or replaced the VDI since the last use.
        let usable = match &*current {
            None => false,
            Some(attached) => match attached.volume.revalidate_header().await {
                Ok(()) | Err(VolumeError::HeadReadOnly(_)) => true,
                // Final. An inode that is missing for a moment is an error: two attached
                // volumes of one VDI could overwrite each other's new objects.
                Err(VolumeError::Stale(_)) if attached.volume.is_stale() => false,
                Err(error) => return Err(failed(name, &error)),
            },
        };
        if !usable {
            // Clients of the former VDI keep it, and get errors.
            *current = Some(self.attach(name).await?);
        }
        let attached = current.as_ref().map(Arc::clone).expect("attached by now");
        attached.users.fetch_add(1, Ordering::Relaxed);
        drop(current);
        Ok(Arc::new(VolumeExport {
            client: self.client.clone(),
            slot,
            attached,
            tasks: self.tasks.clone(),
            ending: self.ending.clone(),
            _in_use: self.in_use.token(),
        }))
    }
}

impl Attached {
    /// Closes the volume.
    ///
    /// # Errors
    /// Why it is still open, and locked.
    async fn close(&self, ending: &CancellationToken) -> Result<(), String> {
        let overdue = async {
            ending.cancelled().await;
            sleep(CLOSE_TIMEOUT).await;
        };
        tokio::select! {
            closed = self.volume.close() => closed.map_err(|error| Chain(&error).to_string()),
            () = overdue => Err("it takes too long".to_owned()),
        }
    }

    /// The map of a snapshot, which all clients that compare with it share.
    async fn base(
        &self,
        client: &Client,
        selector: &VdiSelector,
    ) -> Result<Arc<ExtentMap>, VolumeError> {
        let info = client.vdi(selector).stat().await?;
        let key = (info.vid, info.create_time, info.snap_ctime);
        let mut bases = self.bases.lock().await;
        if let Some(map) = bases.get(&key).and_then(Weak::upgrade) {
            return Ok(map);
        }
        let map = Arc::new(load_extent_map(client, selector).await?);
        bases.retain(|_, map| map.strong_count() > 0);
        bases.insert(key, Arc::downgrade(&map));
        Ok(map)
    }

    /// Ends the use of the volume by one client, and detaches it after the last one.
    ///
    /// A volume that cannot be closed keeps its lock: a request that is still executed
    /// could overwrite data of the next holder. It is closed later, unless a client comes
    /// first; at shutdown the lock is released nevertheless.
    async fn leave(self: Arc<Self>, slot: Arc<ExportSlot>, ending: CancellationToken) {
        let name = self.volume.selector();
        let mut current = slot.lock().await;
        self.users.fetch_sub(1, Ordering::Relaxed);
        // The task of another client may have closed it during a pause.
        while self.users.load(Ordering::Relaxed) == 0 && !self.is_closed.load(Ordering::Relaxed) {
            match self.close(&ending).await {
                Ok(()) => tracing::info!("detached {name}"),
                Err(why) if ending.is_cancelled() => {
                    tracing::error!("cannot close {name}: {why}");
                    if let Err(error) = self.volume.release_lock().await {
                        tracing::error!("lock of {name} not released: {}", Chain(&error));
                    }
                }
                Err(why) => {
                    tracing::warn!("cannot close {name}, which stays locked until then: {why}");
                    drop(current);
                    tokio::select! {
                        () = sleep(DETACH_RETRY_PAUSE) => {}
                        () = ending.cancelled() => {}
                    }
                    current = slot.lock().await;
                    continue;
                }
            }
            self.is_closed.store(true, Ordering::Relaxed);
            current.take_if(|now| Arc::ptr_eq(now, &self));
        }
    }
}

impl Drop for VolumeExport {
    fn drop(&mut self) {
        let (slot, ending) = (Arc::clone(&self.slot), self.ending.clone());
        self.tasks
            .spawn(Arc::clone(&self.attached).leave(slot, ending));
    }
}

impl Export for VolumeExport {
    type Device = Volume;
    type Context = VolumeContext;

    fn device(&self) -> &Arc<Volume> {
        &self.attached.volume
    }

    async fn open_context(&self, name: &[u8]) -> Result<Option<VolumeContext>, ExportError> {
        if DEPTH.contains(&name) {
            return Ok(Some(VolumeContext::Depth(Mutex::default())));
        }
        let selector = self.device().selector();
        let opened = async {
            match find_base(&self.client, selector, name).await? {
                Some(base) => self.attached.base(&self.client, &base).await.map(Some),
                None => Ok(None),
            }
        };
        let map = opened.await.map_err(|error: VolumeError| {
            let name = name.escape_ascii();
            let why = Chain(&error);
            ExportError::Failed(format!(
                "the metadata context '{name}' cannot be read: {why}"
            ))
        })?;
        Ok(map.map(VolumeContext::ChangedSince))
    }

    async fn revalidate(&self, range: Range<u64>) -> Result<(), VolumeError> {
        self.device().revalidate_extents(range).await
    }

    async fn extents(
        &self,
        context: &VolumeContext,
        range: Range<u64>,
        max: usize,
    ) -> Result<Vec<StatusExtent>, VolumeError> {
        let volume = self.device();
        match context {
            VolumeContext::Depth(lineage) => {
                let owned = volume.owned_extents(range.clone(), max).into_iter();
                // Loaded after the extents, so that it has all their owners.
                let lineage = self.lineage(lineage).await?;
                let depth = |owner| lineage.depth(owner);
                let statuses = owned.map(|extent| (extent.end, extent.owner.map_or(0, depth)));
                Ok(status_extents(range, statuses))
            }
            VolumeContext::ChangedSince(base) => {
                let changed = volume.changed_extents(base, range.clone(), max).into_iter();
                let statuses = changed.map(|extent| match extent.changed {
                    true => (extent.end, CHANGED),
                    false => (extent.end, 0),
                });
                Ok(status_extents(range, statuses))
            }
        }
    }
}

impl VolumeExport {
    /// The ancestors of the head, which change with every snapshot.
    async fn lineage(
        &self,
        known: &Mutex<Option<Arc<Lineage>>>,
    ) -> Result<Arc<Lineage>, VolumeError> {
        let head = self.device().info().vid;
        let mut known = known.lock().await;
        if let Some(lineage) = known.as_ref().filter(|lineage| lineage.head() == head) {
            return Ok(Arc::clone(lineage));
        }
        let lineage = Arc::new(Lineage::load(&self.client, head).await?);
        *known = Some(Arc::clone(&lineage));
        Ok(lineage)
    }
}

/// Ends and statuses as lengths and statuses.
fn status_extents(
    range: Range<u64>,
    statuses: impl Iterator<Item = (u64, u32)>,
) -> Vec<StatusExtent> {
    let mut at = range.start;
    statuses
        .map(|(end, status)| {
            let len = end - at;
            at = end;
            StatusExtent { len, status }
        })
        .collect()
}
