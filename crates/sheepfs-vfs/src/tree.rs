//! The tree of a mount: lookup, attributes, directories.
//!
//! Each type uses those to its right and owns its state:
//!
//! ```text
//! Tree ─┬► OpenFiles ─┬► CommandRunner ──► Attachments ─┬► Handles
//!       │             │                                 ├► KernelCache
//!       │             ├► Settings ──────────────────────┴► VolumeTable
//!       │             └► ReportFiles ──► Outage            ▲
//!       └► Namespace ──────────────────────────────────────┘
//! ```

mod attachments;
mod handles;
mod kernel_cache;
mod namespace;
mod open_files;
mod open_volume;
mod outage;
mod report_files;
mod settings;
mod volume_table;

pub use attachments::Attachments;
pub use open_files::OpenFiles;

use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime};

use futures_util::future::join_all;
use sheep_client::{Client, ClientError};
use tokio::runtime::Handle;

use crate::attributes::{Attributes, Capacity, Entry, FileKind};
use crate::command::CommandRunner;
use crate::error::FsError;
use crate::ino::{HandleId, Ino};
use crate::lock_policy::{LockMode, LockPolicy};
use crate::node::{Directory, FsNode};
use crate::report::ReportText;
use crate::volume::BlockDevice as _;
use crate::xattrs::xattrs;

use self::handles::{Handles, OpenFile};
use self::kernel_cache::{Invalidator, KernelCache};
use self::namespace::Namespace;
use self::outage::Outage;
use self::report_files::ReportFiles;
use self::settings::Settings;
use self::volume_table::VolumeTable;

/// Entry and attribute TTL of static entries.
const STATIC_TTL: Duration = Duration::from_secs(3600);

/// Settings of a tree. By default volumes are writable, without page cache, and
/// locked where the cluster is formatted with locking.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct TreeConfig {
    /// Whether volumes are opened with the kernel's page cache.
    pub page_cache: bool,
    /// Whether a write to a volume with page cache is on the cluster when it is
    /// acknowledged, as without.
    pub write_through: bool,
    /// Whether files are opened with the object cache that sheep before 1.0 may have,
    /// see [`Volume::use_object_cache`](crate::Volume::use_object_cache).
    pub object_cache: bool,
    /// Refuse every change to the cluster.
    pub read_only: bool,
    /// VDI locks.
    pub lock: LockMode,
}

impl TreeConfig {
    /// Sets [`Self::page_cache`].
    #[must_use]
    pub fn with_page_cache(self, page_cache: bool) -> Self {
        Self { page_cache, ..self }
    }

    /// Sets [`Self::write_through`].
    #[must_use]
    pub fn with_write_through(self, write_through: bool) -> Self {
        Self {
            write_through,
            ..self
        }
    }

    /// Sets [`Self::object_cache`].
    #[must_use]
    pub fn with_object_cache(self, object_cache: bool) -> Self {
        Self {
            object_cache,
            ..self
        }
    }

    /// Sets [`Self::read_only`].
    #[must_use]
    pub fn with_read_only(self, read_only: bool) -> Self {
        Self { read_only, ..self }
    }

    /// Sets [`Self::lock`].
    #[must_use]
    pub fn with_lock(self, lock: LockMode) -> Self {
        Self { lock, ..self }
    }
}

/// Extended attribute of the root directory: the options of the mount, which
/// a remount is compared with.
pub const MOUNT_OPTIONS: &str = "user.sheepfs.options";

/// The tree of one mount.
///
/// ```
/// use sheepfs_vfs::{Ino, Tree, TreeConfig};
/// # use sheepfs_vfs::client::{Client, ClientConfig, NewVdi, VdiName};
/// # use sheep_embedded::{Config, Server, StoreKind};
/// # tokio::runtime::Runtime::new()?.block_on(async {
/// # let server = Server::start(Config::new(StoreKind::Memory)).await?;
/// # let client = Client::connect(ClientConfig::new(server.local_address().into())).await?;
/// # client.cluster().create_vdi(&NewVdi::new(VdiName::new("vm1")?, 8 << 20)).await?;
///
/// let tree = Tree::new(client, TreeConfig::default());
/// tree.attachments().attach(b"vm1").await?;
/// let directory = tree.lookup(Ino::ROOT, b"volume").await?;
/// let entries = tree.readdir(directory.node)?;
/// assert_eq!(entries[0].name, b"vm1");
/// tree.attachments().close().await;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// # })?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Tree {
    client: Client,
    namespace: Arc<Namespace>,
    attachments: Arc<Attachments>,
    files: OpenFiles,
    handles: Arc<Handles>,
    reports: Arc<ReportFiles>,
    settings: Arc<Settings>,
    kernel: Arc<KernelCache>,
    outage: Arc<Outage>,
    mount_options: OnceLock<String>,
    started: SystemTime,
}

impl Tree {
    /// The tree of a cluster, with nothing attached.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn new(client: Client, config: TreeConfig) -> Arc<Self> {
        // State without references to other parts.
        let outage = Arc::new(Outage::default());
        let lock_policy = Arc::new(LockPolicy::new(config.lock));
        let handles: Arc<Handles> = Arc::default();
        let kernel: Arc<KernelCache> = Arc::default();
        let volumes: Arc<VolumeTable> = Arc::default();
        // Names, reports and settings on top of it.
        let namespace = Arc::new(Namespace::new(Arc::clone(&volumes)));
        let reports = Arc::new(ReportFiles::new(&client, &outage));
        let settings = Arc::new(Settings::new(
            client.clone(),
            Arc::clone(&outage),
            Arc::clone(&lock_policy),
            Arc::clone(&volumes),
            config.page_cache,
            config.object_cache,
        ));
        // What changes it: attach and detach, commands.
        let attachments = Arc::new(Attachments::new(
            client.clone(),
            config.read_only,
            Arc::clone(&volumes),
            Arc::clone(&handles),
            Arc::clone(&kernel),
            Arc::clone(&lock_policy),
        ));
        let commands = CommandRunner::new(
            client.clone(),
            config.read_only,
            Arc::clone(&attachments),
            lock_policy,
        );
        Arc::new(Self {
            files: OpenFiles {
                namespace: Arc::clone(&namespace),
                volumes,
                handles: Arc::clone(&handles),
                reports: Arc::clone(&reports),
                settings: Arc::clone(&settings),
                commands: Arc::new(commands),
                kernel: Arc::clone(&kernel),
                write_through: config.write_through,
                runtime: Handle::current(),
            },
            client,
            namespace,
            attachments,
            handles,
            reports,
            settings,
            kernel,
            outage,
            mount_options: OnceLock::new(),
            started: SystemTime::now(),
        })
    }

    /// Sets the function that invalidates kernel caches. Only the first call counts.
    pub fn set_invalidator(&self, invalidator: Invalidator) {
        self.kernel.set_invalidator(invalidator);
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

    /// The attached volumes, to attach and detach.
    pub fn attachments(&self) -> &Attachments {
        &self.attachments
    }

    /// The open files.
    pub fn files(&self) -> &OpenFiles {
        &self.files
    }

    /// The attributes of `name` in directory `parent`. With `.` and `..`, `parent`
    /// may also be a file: the kernel resolves a file handle like that after it has
    /// evicted the inode.
    ///
    /// # Errors
    /// `NotFound`, `NotDirectory`, and as [`Tree::attributes`].
    pub async fn lookup(&self, parent: Ino, name: &[u8]) -> Result<Attributes, FsError> {
        match name {
            b"." => return self.attributes(parent).await,
            b".." => return self.attributes(self.namespace.parent(parent)?.ino()).await,
            _ => {}
        }
        let (ino, node) = self.namespace.child(parent, name)?;
        if let FsNode::Report(..) = node {
            let (file, text) = self.reports.lookup(ino).await?;
            return Ok(report_attributes(file, &text));
        }
        self.attributes(ino).await
    }

    /// The attributes of a file.
    ///
    /// # Errors
    /// `NotFound`; `Cluster` when a report cannot be made; `Stale` for a volume
    /// of a deleted VDI.
    pub async fn attributes(&self, ino: Ino) -> Result<Attributes, FsError> {
        let fixed = |kind, size, permissions, modified, ttl| Attributes {
            ino,
            node: ino,
            kind,
            size,
            blocks: 0,
            permissions,
            modified,
            ttl,
        };
        Ok(match self.namespace.node(ino)? {
            FsNode::Directory(_) => fixed(FileKind::Directory, 0, 0o755, self.started, STATIC_TTL),
            FsNode::Command(_) => fixed(FileKind::Text, 0, 0o644, self.started, STATIC_TTL),
            FsNode::Setting(setting) => {
                let size = self.settings.text(setting).len() as u64;
                fixed(FileKind::Text, size, 0o644, self.started, Duration::ZERO)
            }
            FsNode::Report(..) => {
                let is_open = self.handles.is_open(ino);
                let text = self.reports.stat(ino, is_open).await?;
                report_attributes(ino, &text)
            }
            FsNode::Volume(volume) => {
                let refresh = async { Ok(volume.refresh().await?) };
                self.outage.look(refresh).await?;
                Attributes {
                    ino,
                    node: ino,
                    kind: FileKind::Volume,
                    size: volume.size(),
                    blocks: volume.allocated() / 512,
                    permissions: if volume.is_writable() { 0o644 } else { 0o444 },
                    modified: volume.modified(),
                    ttl: volume.fresh_for(),
                }
            }
        })
    }

    /// The entries of a directory, without `.` and `..`, as of now.
    ///
    /// # Errors
    /// `NotFound`, `NotDirectory`.
    pub fn readdir(&self, ino: Ino) -> Result<Vec<Entry>, FsError> {
        self.namespace.readdir(ino)
    }

    /// Sets the size of a file, through `handle` if that is how it was done. Only
    /// growing a volume changes the size; making it smaller, or truncating a
    /// command file, succeeds, which `cp`, `dd` and the shell's `>` rely on. A
    /// handle that truncates a volume remembers it, see [`OpenFiles::write`].
    ///
    /// # Errors
    /// `PermissionDenied` for a report, `IsDirectory`, and as [`Volume::set_size`](crate::Volume::set_size) and
    /// [`Volume`](crate::Volume)'s discard.
    pub async fn set_size(
        &self,
        ino: Ino,
        size: u64,
        handle: Option<HandleId>,
    ) -> Result<Attributes, FsError> {
        match self.namespace.node(ino)? {
            FsNode::Directory(_) => return Err(FsError::IsDirectory),
            FsNode::Report(..) => return Err(FsError::PermissionDenied),
            FsNode::Command(_) | FsNode::Setting(_) => {}
            FsNode::Volume(volume) => match handle.and_then(|handle| self.handles.get(handle)) {
                Some(OpenFile::Volume(open)) => open.truncate(size).await?,
                _ => volume.set_size(size).await?,
            },
        }
        self.attributes(ino).await
    }

    /// The extended attributes of a file: names and values.
    ///
    /// # Errors
    /// `NotFound`.
    pub fn list_xattrs(&self, ino: Ino) -> Result<Vec<(String, Vec<u8>)>, FsError> {
        match self.namespace.node(ino)? {
            FsNode::Volume(volume) => Ok(xattrs(&volume.info())),
            FsNode::Directory(Directory::Root) => Ok(self
                .mount_options
                .get()
                .map(|options| (MOUNT_OPTIONS.to_owned(), options.clone().into_bytes()))
                .into_iter()
                .collect()),
            FsNode::Directory(_) | FsNode::Report(..) | FsNode::Command(_) | FsNode::Setting(_) => {
                Ok(Vec::new())
            }
        }
    }

    /// Space of the whole cluster: the stores of all nodes that answer.
    ///
    /// # Errors
    /// `Cluster` when the nodes cannot be listed, or none of them answers.
    pub async fn statfs(&self) -> Result<Capacity, FsError> {
        let nodes = self.outage.nodes(&self.client).await;
        let nodes = nodes.map_err(FsError::Cluster)?;
        let stores = join_all(
            nodes
                .iter()
                .map(|node| self.client.node(node.address()).store_space()),
        )
        .await;
        let mut statfs = Capacity { total: 0, free: 0 };
        let mut failed: Option<ClientError> = None;
        let mut answered = false;
        for store in stores {
            match store {
                Ok(store) => {
                    answered = true;
                    statfs.total = statfs.total.saturating_add(store.total);
                    statfs.free = statfs.free.saturating_add(store.free);
                }
                Err(error) => failed = Some(error),
            }
        }
        match failed {
            Some(error) if !answered => Err(error.into()),
            _ => Ok(statfs),
        }
    }
}

/// The attributes of a report file.
///
/// The TTL is zero: the kernel knows the file by a number of its own, and must ask for
/// the attributes, which show the report's number.
fn report_attributes(file: Ino, text: &ReportText) -> Attributes {
    Attributes {
        ino: file.report(),
        node: file,
        kind: FileKind::Text,
        size: text.bytes.len() as u64,
        blocks: 0,
        permissions: 0o444,
        modified: text.made,
        ttl: Duration::ZERO,
    }
}
