//! Names to files, and what can be done with them.

mod attach;
mod open_files;
mod outage;
mod report_files;

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, OnceLock, RwLock};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use futures_util::future::{BoxFuture, join_all};
use sheep_client::{Client, ClientError};
use tokio::runtime::Handle;

use crate::attributes::{Attributes, Capacity, Entry, FileKind, Invalidation};
use crate::error::FsError;
use crate::handle::{Handles, OpenFile};
use crate::ino::{HandleId, Ino};
use crate::lock_policy::{LockMode, LockPolicy};
use crate::node::{Directory, FIXED, Fixed, Node, Setting};
use crate::report::ReportText;
use crate::volume::{BlockDevice as _, Volume};
use crate::xattrs::xattrs;

use self::outage::Outage;
use self::report_files::ReportFiles;

/// How long the kernel may believe that a fixed entry is there.
const FIXED_FOR: Duration = Duration::from_secs(3600);
/// How long it may believe the size of a volume.
const CHANGING_FOR: Duration = Duration::from_secs(1);

/// Settings of a tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TreeConfig {
    /// Whether volumes are opened with the kernel's page cache.
    pub page_cache: bool,
    /// Whether a write to a volume with page cache is on the cluster when it is
    /// acknowledged, as without.
    pub write_through: bool,
    /// Shown in `config/object_cache`; sheep since 1.0 have no object cache.
    pub object_cache: bool,
    /// Refuse every change to the cluster.
    pub read_only: bool,
    /// VDI locks.
    pub lock: LockMode,
}

/// Switches that files under `config/` change while the tree is in use.
#[derive(Debug)]
pub(crate) struct Settings {
    pub(crate) page_cache: bool,
    pub(crate) object_cache: bool,
}

/// Extended attribute of the root directory: the options of the mount, which
/// a remount is compared with.
pub const MOUNT_OPTIONS: &str = "user.sheepfs.options";

/// Has the kernel forget something; the future ends when it has.
type Invalidator = Box<dyn Fn(Invalidation) -> BoxFuture<'static, ()> + Send + Sync>;

/// The tree of one mount.
pub struct Tree {
    client: Client,
    config: TreeConfig,
    settings: Mutex<Settings>,
    outage: Arc<Outage>,
    reports: ReportFiles,
    attached: RwLock<Attached>,
    /// One attach or detach at a time: each looks, asks, then changes.
    changing: tokio::sync::Mutex<()>,
    lock_policy: LockPolicy,
    handles: Handles,
    invalidator: OnceLock<Invalidator>,
    mount_options: OnceLock<String>,
    runtime: Handle,
    started: SystemTime,
}

/// The volumes, by name in the tree and by number.
#[derive(Default)]
struct Attached {
    by_name: BTreeMap<Vec<u8>, Ino>,
    by_ino: BTreeMap<Ino, Arc<Volume>>,
    /// The number of every name that was attached since the mount. Names are
    /// never dropped: the kernel, a bind mount or a file handle may hold a
    /// number for as long as the mount lives. An entry takes about 100 bytes, and
    /// only attaching an existing VDI makes one, so a thousand new snapshots a day
    /// come to 36 MB in a year.
    numbers: HashMap<Vec<u8>, Ino>,
}

impl Attached {
    /// The number of `name`; a name without one gets one that none ever had.
    fn number(&mut self, name: &[u8]) -> Ino {
        let next = Ino(Ino::FIRST_VOLUME.0 + self.numbers.len() as u64);
        *self.numbers.entry(name.to_vec()).or_insert(next)
    }
}

impl Tree {
    /// The tree of a cluster, with nothing attached.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn new(client: Client, config: TreeConfig) -> Arc<Self> {
        let outage = Arc::new(Outage::default());
        Arc::new(Self {
            reports: ReportFiles::new(&client, &outage),
            outage,
            client,
            config,
            settings: Mutex::new(Settings {
                page_cache: config.page_cache,
                object_cache: config.object_cache,
            }),
            attached: RwLock::default(),
            changing: tokio::sync::Mutex::default(),
            lock_policy: LockPolicy::new(config.lock),
            handles: Handles::default(),
            invalidator: OnceLock::new(),
            mount_options: OnceLock::new(),
            runtime: Handle::current(),
            started: SystemTime::now(),
        })
    }

    /// Says who tells a kernel what it must forget. Only the first call counts.
    pub fn set_invalidator(&self, invalidator: Invalidator) {
        let _already_set = self.invalidator.set(invalidator);
    }

    /// Shows `options` as the attribute [`MOUNT_OPTIONS`] of the root directory.
    /// Only the first call counts.
    pub fn set_mount_options(&self, options: String) {
        let _already_set = self.mount_options.set(options);
    }

    /// The cluster.
    pub fn client(&self) -> &Client {
        &self.client
    }

    pub(crate) fn config(&self) -> &TreeConfig {
        &self.config
    }

    pub(crate) fn lock_policy(&self) -> &LockPolicy {
        &self.lock_policy
    }

    pub(crate) fn settings(&self) -> std::sync::MutexGuard<'_, Settings> {
        self.settings
            .lock()
            .expect("no one panics with the settings")
    }

    fn attached(&self) -> std::sync::RwLockReadGuard<'_, Attached> {
        self.attached
            .read()
            .expect("no one panics with the volumes")
    }

    /// Nothing that is known of the old sheep is true of the new one.
    pub(crate) async fn forget_sheep(&self) {
        self.outage.forget();
        self.lock_policy.forget().await;
    }

    /// Returns when the kernel knows which text a file has become, and how long
    /// it is; false when it is slow to take notice.
    async fn tell_text(&self, ino: Ino, text: &ReportText) -> bool {
        let Some(invalidator) = self.invalidator.get() else {
            return true;
        };
        let text = text.bytes.clone();
        let told = invalidator(Invalidation::Text { ino, text });
        tokio::time::timeout(CHANGING_FOR, told).await.is_ok()
    }

    fn volume_named(&self, name: &[u8]) -> Option<(Ino, Arc<Volume>)> {
        let attached = self.attached();
        let ino = *attached.by_name.get(name)?;
        Some((ino, Arc::clone(&attached.by_ino[&ino])))
    }

    /// Has the kernel forget something, soon.
    fn forget(&self, what: Invalidation) {
        if let Some(invalidator) = self.invalidator.get() {
            // It happens whether or not anybody waits for it.
            drop(invalidator(what));
        }
    }

    /// Returns when the kernel does not believe the attributes any more that it
    /// was told of a file before.
    async fn forget_attributes(&self, ino: Ino) {
        if let Some(invalidator) = self.invalidator.get() {
            let told = invalidator(Invalidation::Inode(ino));
            // After that long they have expired as well.
            let _expired = tokio::time::timeout(CHANGING_FOR, told).await;
        }
    }

    fn node(&self, ino: Ino) -> Result<Node, FsError> {
        if ino == Ino::ROOT {
            return Ok(Node::Directory(Directory::Root));
        }
        if let Some(volume) = self.attached().by_ino.get(&ino) {
            return Ok(Node::Volume(Arc::clone(volume)));
        }
        let fixed = FIXED.iter().find(|entry| entry.ino == ino.report());
        Ok(fixed.ok_or(FsError::NoEntry)?.node.clone())
    }

    /// The directory that `ino` is in; the root is in itself.
    fn parent(&self, ino: Ino) -> Result<Directory, FsError> {
        if let Node::Volume(_) = self.node(ino)? {
            return Ok(Directory::Volume);
        }
        let fixed = FIXED.iter().find(|entry| entry.ino == ino.report());
        Ok(fixed.map_or(Directory::Root, |entry| entry.parent))
    }

    fn directory(&self, ino: Ino) -> Result<Directory, FsError> {
        match self.node(ino)? {
            Node::Directory(directory) => Ok(directory),
            _ => Err(FsError::NotDirectory),
        }
    }

    /// The attributes of `name` in directory `parent`. With `.` and `..`, `parent`
    /// may also be a file: that is how a kernel resolves a file handle whose inode
    /// it has evicted.
    ///
    /// # Errors
    /// `NoEntry`, `NotDirectory`, and as [`Tree::attributes`].
    pub async fn lookup(&self, parent: Ino, name: &[u8]) -> Result<Attributes, FsError> {
        match name {
            b"." => return self.attributes(parent).await,
            b".." => return self.attributes(self.parent(parent)?.ino()).await,
            _ => {}
        }
        let directory = self.directory(parent)?;
        if directory == Directory::Volume {
            let volume = self.volume_named(name).ok_or(FsError::NoEntry)?;
            return self.attributes(volume.0).await;
        }
        let entry = FIXED
            .iter()
            .find(|entry| entry.parent == directory && entry.name.as_bytes() == name)
            .ok_or(FsError::NoEntry)?;
        if let Node::Report(..) = entry.node {
            let (file, text) = self.reports.look_up(entry.ino).await?;
            return Ok(report_attributes(file, &text));
        }
        self.attributes(entry.ino).await
    }

    /// The attributes of a file.
    ///
    /// # Errors
    /// `NoEntry`; `Cluster` when a report cannot be made; `Stale` for a volume
    /// whose VDI is gone.
    pub async fn attributes(&self, ino: Ino) -> Result<Attributes, FsError> {
        let fixed = |kind, size, permissions, modified, cacheable| Attributes {
            ino,
            node: ino,
            kind,
            size,
            blocks: 0,
            permissions,
            modified,
            cacheable,
        };
        Ok(match self.node(ino)? {
            Node::Directory(_) => fixed(FileKind::Directory, 0, 0o755, self.started, FIXED_FOR),
            Node::Command(_) => fixed(FileKind::Regular, 0, 0o644, self.started, FIXED_FOR),
            Node::Setting(setting) => {
                let size = self.setting_text(setting).len() as u64;
                fixed(FileKind::Regular, size, 0o644, self.started, Duration::ZERO)
            }
            Node::Report(..) => {
                let is_open = self.handles.is_open(ino);
                let text = self.reports.stat(ino, is_open).await?;
                report_attributes(ino, &text)
            }
            Node::Volume(volume) => {
                let refresh = async { Ok(volume.refresh().await?) };
                self.outage.look(refresh).await?;
                Attributes {
                    ino,
                    node: ino,
                    kind: FileKind::Regular,
                    size: volume.size(),
                    blocks: volume.allocated() / 512,
                    permissions: if volume.is_writable() { 0o644 } else { 0o444 },
                    modified: volume.modified(),
                    cacheable: volume.fresh_for(),
                }
            }
        })
    }

    /// The entries of a directory, without `.` and `..`, as of now.
    ///
    /// # Errors
    /// `NoEntry`, `NotDirectory`.
    pub fn entries(&self, ino: Ino) -> Result<Vec<Entry>, FsError> {
        let directory = self.directory(ino)?;
        if directory == Directory::Volume {
            let attached = self.attached();
            let entry = |(name, &ino): (&Vec<u8>, &Ino)| Entry {
                ino,
                kind: FileKind::Regular,
                name: name.clone(),
            };
            return Ok(attached.by_name.iter().map(entry).collect());
        }
        let inside = FIXED.iter().filter(|entry| entry.parent == directory);
        let entry = |fixed: &Fixed| Entry {
            ino: fixed.ino,
            kind: match fixed.node {
                Node::Directory(_) => FileKind::Directory,
                _ => FileKind::Regular,
            },
            name: fixed.name.into(),
        };
        Ok(inside.map(entry).collect())
    }

    /// Sets the size of a file, through `handle` if that is how it was done. Only
    /// growing a volume changes the size; making it smaller, or truncating a
    /// command file, succeeds, which `cp`, `dd` and the shell's `>` rely on. A
    /// handle that truncates a volume remembers it, see [`Tree::write`].
    ///
    /// # Errors
    /// `Access` for a report, `IsDirectory`, and as [`Volume::set_size`] and
    /// [`Volume`]'s discard.
    pub async fn set_size(
        &self,
        ino: Ino,
        size: u64,
        handle: Option<HandleId>,
    ) -> Result<Attributes, FsError> {
        match self.node(ino)? {
            Node::Directory(_) => return Err(FsError::IsDirectory),
            Node::Report(..) => return Err(FsError::Access),
            Node::Command(_) | Node::Setting(_) => {}
            Node::Volume(volume) => match handle.and_then(|handle| self.handles.get(handle)) {
                Some(OpenFile::Volume(open)) => self.truncate(&open, size).await?,
                _ => volume.set_size(size).await?,
            },
        }
        self.attributes(ino).await
    }

    fn setting_text(&self, setting: Setting) -> Bytes {
        let switch = |on| Bytes::from_static(if on { b"1\n" } else { b"0\n" });
        match setting {
            Setting::PageCache => switch(self.settings().page_cache),
            Setting::ObjectCache => switch(self.settings().object_cache),
            Setting::SheepInfo => Bytes::from(format!("{}\n", self.client.address())),
        }
    }

    /// The extended attributes of a file: names and values.
    ///
    /// # Errors
    /// `NoEntry`.
    pub fn extended_attributes(&self, ino: Ino) -> Result<Vec<(String, Vec<u8>)>, FsError> {
        match self.node(ino)? {
            Node::Volume(volume) => Ok(xattrs(&volume.info())),
            Node::Directory(Directory::Root) => Ok(self
                .mount_options
                .get()
                .map(|options| (MOUNT_OPTIONS.to_owned(), options.clone().into_bytes()))
                .into_iter()
                .collect()),
            Node::Directory(_) | Node::Report(..) | Node::Command(_) | Node::Setting(_) => {
                Ok(Vec::new())
            }
        }
    }

    /// Space of the whole cluster: the stores of all nodes that answer.
    ///
    /// # Errors
    /// `Cluster` when the nodes cannot be listed, or none of them answers.
    pub async fn capacity(&self) -> Result<Capacity, FsError> {
        let nodes = self.outage.nodes(&self.client).await;
        let nodes = nodes.map_err(FsError::Cluster)?;
        let stores = join_all(
            nodes
                .iter()
                .map(|node| self.client.node(node.address()).store_space()),
        )
        .await;
        let mut capacity = Capacity { total: 0, free: 0 };
        let mut failed: Option<ClientError> = None;
        let mut answered = false;
        for store in stores {
            match store {
                Ok(store) => {
                    answered = true;
                    capacity.total = capacity.total.saturating_add(store.total);
                    capacity.free = capacity.free.saturating_add(store.free);
                }
                Err(error) => failed = Some(error),
            }
        }
        match failed {
            Some(error) if !answered => Err(error.into()),
            _ => Ok(capacity),
        }
    }
}

/// What stat(2) says of the file of a report's text.
///
/// Its own number is for the kernel alone, which is not to believe anything for
/// any time: a look-up has shown it that number, the question after it shows the
/// report's.
fn report_attributes(file: Ino, text: &ReportText) -> Attributes {
    Attributes {
        ino: file.report(),
        node: file,
        kind: FileKind::Regular,
        size: text.bytes.len() as u64,
        blocks: 0,
        permissions: 0o444,
        modified: text.made,
        cacheable: Duration::ZERO,
    }
}
