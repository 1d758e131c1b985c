//! A cluster to test volumes on: a private sheep in memory, or the real one
//! that `SHEEPFS_TEST_SHEEP` names. `SHEEPFS_TEST_GENERATION` makes the private one like
//! older releases.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use sheep_client::cluster::FormatOptions;
use sheep_client::testing::{Fault, FaultTransport};
use sheep_client::unstable::{BoxFuture, Pool, Request, Transport};
use sheep_client::{Client, ClientConfig, GatewayAddress, NewVdi, VdiSelector};
use sheep_embedded::{Config, Server, StoreKind};
use sheep_proto::limits::{DEFAULT_BLOCK_SIZE_SHIFT, INODE_HEADER_LEN};
use sheep_proto::{
    ClusterFlags, Generation, ObjectKind, Oid, Opcode, Redundancy, RequestBody, SnapshotTag,
    VdiName,
};
use sheepfs_vfs::{
    BlockDevice as _, FsError, HandleId, Ino, OpenMode, Tree, TreeConfig, Volume, VolumeError,
    VolumeOptions,
};
use tempfile::TempDir;
use tokio::sync::{Notify, oneshot};

pub(crate) const MIB: u64 = 1 << 20;

/// A cluster, and a client of it.
pub(crate) struct Cluster {
    pub(crate) client: Client,
    pub(crate) generation: Generation,
    address: GatewayAddress,
    _server: Option<Server>,
    _directory: Option<TempDir>,
}

impl Cluster {
    pub(crate) async fn start() -> Self {
        match std::env::var("SHEEPFS_TEST_SHEEP") {
            Ok(address) => {
                let address = address.parse().expect("SHEEPFS_TEST_SHEEP is HOST:PORT");
                Self::at(address, None, None).await
            }
            Err(_) => Self::private(private_config(StoreKind::Memory), None).await,
        }
    }

    /// A private sheep in memory of the newest generation.
    pub(crate) async fn newest() -> Self {
        Self::private(Config::new(StoreKind::Memory), None).await
    }

    /// The clusters to test on: the real one, else a sheep in memory and one with a
    /// directory.
    pub(crate) async fn each() -> Vec<Self> {
        let mut clusters = vec![Self::start().await];
        if clusters[0]._server.is_some() {
            let directory = TempDir::with_prefix("sheepfs-test-volume-").expect("a directory");
            let mut config = private_config(StoreKind::Directory(directory.path().join("data")));
            config.sync = false;
            clusters.push(Self::private(config, Some(directory)).await);
        }
        clusters
    }

    /// The same, and private sheep in memory of all older generations.
    pub(crate) async fn each_generation() -> Vec<Self> {
        let mut clusters = Self::each().await;
        if clusters[0]._server.is_some() && clusters[0].generation == Generation::NEWEST {
            for generation in Generation::ALL {
                if generation != Generation::NEWEST {
                    let mut config = Config::new(StoreKind::Memory);
                    config.generation = generation;
                    clusters.push(Self::private(config, None).await);
                }
            }
        }
        clusters
    }

    /// Bytes of the objects of the VDIs that [`Self::create`] makes.
    pub(crate) fn object_len(&self) -> u64 {
        if self.generation.has_object_sizes() {
            MIB
        } else {
            1 << DEFAULT_BLOCK_SIZE_SHIFT
        }
    }

    /// Bytes of as many of these objects.
    pub(crate) fn objects_len(&self, objects: u64) -> usize {
        usize::try_from(objects * self.object_len()).expect("a few objects")
    }

    async fn private(config: Config, directory: Option<TempDir>) -> Self {
        let server = Server::start(config).await.expect("a private sheep");
        Self::at(server.local_address().into(), Some(server), directory).await
    }

    async fn at(
        address: GatewayAddress,
        server: Option<Server>,
        directory: Option<TempDir>,
    ) -> Self {
        let client = Client::connect(config(&address))
            .await
            .expect("the sheep answers");
        let generation = client.generation().await;
        Self {
            client,
            generation: generation.expect("the sheep answers"),
            address,
            _server: server,
            _directory: directory,
        }
    }

    /// A client with connections of its own, as on another host.
    pub(crate) async fn another_client(&self) -> Client {
        Client::connect(config(&self.address))
            .await
            .expect("the sheep answers")
    }

    /// Another client, that calls through what `wrap` makes of its pool.
    pub(crate) async fn client_through<G: Transport + 'static>(
        &self,
        wrap: impl FnOnce(Arc<dyn Transport>) -> G,
    ) -> Client {
        let pool = Pool::connect(config(&self.address))
            .await
            .expect("the sheep answers");
        Client::with_transport(Arc::new(wrap(Arc::new(pool))))
    }

    /// A client that delays the first request of a kind. The first signal reports that it
    /// was sent, the second one releases it.
    pub(crate) async fn client_held_at(
        &self,
        kind: impl Fn(&Request) -> bool + Send + Sync + 'static,
    ) -> (Client, Arc<Notify>, Arc<Notify>) {
        let (held, release) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
        let (tell, wait) = (Arc::clone(&held), Arc::clone(&release));
        let armed = AtomicBool::new(true);
        let client = self
            .client_through(|inner| {
                delay_until(inner, move |request| {
                    if !kind(request) || !armed.swap(false, Ordering::AcqRel) {
                        return None;
                    }
                    tell.notify_one();
                    let wait = Arc::clone(&wait);
                    let ready: BoxFuture<'static, ()> =
                        Box::pin(async move { wait.notified().await });
                    Some(ready)
                })
            })
            .await;
        (client, held, release)
    }

    /// Creates a VDI of some kind with a unique name, with objects of another size where
    /// there is only one.
    pub(crate) async fn create_kind(&self, stem: &str, kind: impl FnOnce(&mut NewVdi)) -> VdiName {
        let name = unique_name(stem);
        let mut new = NewVdi::new(name.clone(), 0);
        kind(&mut new);
        if !self.generation.has_object_sizes() {
            new.object_shift = None;
        }
        self.client
            .cluster()
            .create_vdi(&new)
            .await
            .expect("the name is new");
        name
    }

    /// Creates a VDI with the smallest objects there are and a unique name.
    pub(crate) async fn create(&self, stem: &str, size: u64) -> VdiName {
        let kind = |new: &mut NewVdi| (new.size, new.object_shift) = (size, Some(20));
        self.create_kind(stem, kind).await
    }

    /// Takes a snapshot of the head of a VDI.
    pub(crate) async fn snapshot(&self, name: &VdiName, tag_text: impl AsRef<[u8]>) {
        self.client
            .vdi(&VdiSelector::working(name.clone()))
            .snapshot(&tag(tag_text))
            .await
            .expect("the tag is new");
    }

    /// Takes a snapshot of a VDI and clones it under a unique name.
    pub(crate) async fn snapshot_and_clone(&self, name: &VdiName, tag_text: &str) -> VdiName {
        self.snapshot(name, tag_text).await;
        let clone = unique_name("clone");
        self.client
            .vdi(&VdiSelector::tag(name.clone(), tag(tag_text)))
            .clone_to(&clone)
            .await
            .expect("the name is new");
        clone
    }
}

/// Settings of a private sheep of the generation to test.
fn private_config(store: StoreKind) -> Config {
    let mut config = Config::new(store);
    if let Ok(generation) = std::env::var("SHEEPFS_TEST_GENERATION") {
        config.generation = generation
            .parse()
            .expect("SHEEPFS_TEST_GENERATION is a generation");
        // Which locks without being told to.
        config.worst_release = false;
    }
    config
}

fn config(address: &GatewayAddress) -> ClientConfig {
    let mut config = ClientConfig::new(address.clone());
    config.retry_for = Duration::from_secs(20);
    config
}

pub(crate) fn unique_name(stem: &str) -> VdiName {
    static COUNTER: AtomicU64 = AtomicU64::new(0);
    let number = COUNTER.fetch_add(1, Ordering::Relaxed);
    let text = format!(
        "{stem}-{}-{number}-{:x}",
        std::process::id(),
        fastrand::u32(..)
    );
    VdiName::new(text).expect("a short name")
}

pub(crate) fn tag(text: impl AsRef<[u8]>) -> SnapshotTag {
    SnapshotTag::new(text).expect("a short tag")
}

pub(crate) async fn open(client: &Client, name: &VdiName) -> Arc<Volume> {
    open_version(client, VdiSelector::working(name.clone())).await
}

pub(crate) async fn open_version(client: &Client, selector: VdiSelector) -> Arc<Volume> {
    let options = VolumeOptions::default();
    Volume::open(client.clone(), selector, options)
        .await
        .expect("the VDI is there")
}

pub(crate) async fn open_snapshot(
    client: &Client,
    name: &VdiName,
    tag_text: impl AsRef<[u8]>,
) -> Arc<Volume> {
    open_version(client, VdiSelector::tag(name.clone(), tag(tag_text))).await
}

/// Opens a version read-only, and without its lock.
pub(crate) async fn open_reader(client: &Client, selector: VdiSelector) -> Arc<Volume> {
    let options = VolumeOptions::default()
        .with_read_only(true)
        .with_lock(false);
    Volume::open(client.clone(), selector, options)
        .await
        .expect("the VDI is there")
}

/// Writes through a handle, and waits for the completion.
pub(crate) async fn write_file(
    tree: &Tree,
    handle: HandleId,
    offset: u64,
    data: &[u8],
) -> Result<u32, FsError> {
    let (done, written) = oneshot::channel();
    let done = Box::new(move |result| drop(done.send(result)));
    tree.files().write(handle, offset, data, false, done);
    written.await.expect("every write completes")
}

/// A tree with a volume attached, the volume's file, and how to open it.
pub(crate) async fn attached(
    client: Client,
    name: &VdiName,
    page_cache: bool,
) -> (Arc<Tree>, Ino, OpenMode) {
    let config = TreeConfig::default().with_page_cache(page_cache);
    attached_as(config, client, name).await
}

/// The same with settings of any kind.
pub(crate) async fn attached_as(
    config: TreeConfig,
    client: Client,
    name: &VdiName,
) -> (Arc<Tree>, Ino, OpenMode) {
    let tree = Tree::new(client, config);
    tree.attachments()
        .attach(name.as_bytes())
        .await
        .expect("it can be attached");
    let volumes = tree.lookup(Ino::ROOT, b"volume").await;
    let volumes = volumes.expect("every tree has it").ino;
    let file = tree.lookup(volumes, name.as_bytes()).await;
    let mode = OpenMode {
        read: true,
        write: true,
    };
    (tree, file.expect("it was attached").ino, mode)
}

/// All bytes of the volume.
pub(crate) async fn read_all(volume: &Arc<Volume>) -> Vec<u8> {
    let size = u32::try_from(volume.size()).expect("a small volume");
    volume
        .read_at(0, size)
        .await
        .expect("the volume can be read")
        .to_vec()
}

/// An operation after which the writes of a volume are durable.
pub(crate) type End = fn(&Arc<Volume>) -> BoxFuture<'_, Result<(), VolumeError>>;

pub(crate) const FLUSH_AND_CLOSE: [End; 2] = [
    |volume| Box::pin(volume.flush()),
    |volume| Box::pin(volume.close()),
];

/// A byte of a VDI as another client reads it.
pub(crate) async fn byte_at(cluster: &Cluster, name: &VdiName, offset: u64) -> u8 {
    let volume = open_reader(&cluster.client, VdiSelector::working(name.clone())).await;
    let found = volume.read_at(offset, 1).await;
    found.expect("the volume can be read")[0]
}

/// Time for which a lost request may still be executed here.
pub(crate) const FENCE_INTERVAL: Duration = Duration::from_millis(300);

/// A transport that delays a request until the future is ready that `until` returns.
pub(crate) fn delay_until(
    inner: Arc<dyn Transport>,
    mut until: impl FnMut(&Request) -> Option<BoxFuture<'static, ()>> + Send + 'static,
) -> FaultTransport {
    FaultTransport::new(inner, move |request| until(request).map(Fault::DelayUntil))
        .with_fence_interval(FENCE_INTERVAL)
}

/// A private sheep in memory, formatted with `flags`.
pub(crate) async fn formatted(flags: ClusterFlags) -> Cluster {
    let mut config = Config::new(StoreKind::Memory);
    config.format_if_new = false;
    let cluster = Cluster::private(config, None).await;
    let options = FormatOptions::default()
        .with_redundancy(Redundancy::Replicated(1))
        .with_flags(flags);
    let formatted = cluster.client.cluster().format(&options).await;
    formatted.expect("it can be formatted");
    cluster
}

/// `len` bytes that identify their writer.
pub(crate) fn pattern(writer: u8, len: usize) -> Bytes {
    Bytes::from(vec![writer; len])
}

/// The data object that a request is about, if any.
pub(crate) fn data_object(request: &Request) -> Option<Oid> {
    let oid = request.operation().oid;
    oid.filter(|oid| oid.kind() == Some(ObjectKind::Data))
}

/// A write of index entries.
pub(crate) fn is_index_update(request: &Request) -> bool {
    let header = request.header(Generation::V1_0);
    let RequestBody::Object(body) = header.body() else {
        return false;
    };
    let kind = request.operation().oid.and_then(|oid| oid.kind());
    request.opcode() == Opcode::WriteObj
        && kind == Some(ObjectKind::Inode)
        && body.offset.get() as usize >= INODE_HEADER_LEN
}
