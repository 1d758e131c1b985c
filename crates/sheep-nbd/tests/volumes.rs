//! Volumes of a sheep in memory as exports: what their contexts say, and when they
//! are attached.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::collections::BTreeMap;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use sheep_client::cluster::FormatOptions;
use sheep_client::proto::{ClusterFlags, Opcode, ResultCode};
use sheep_client::testing::{Fault, FaultTransport};
use sheep_client::unstable::{Pool, Request};
use sheep_client::{Client, ClientConfig, NewVdi, SnapshotTag, VdiName, VdiSelector};
use sheep_embedded::{Config, Server, StoreKind};
use sheep_nbd::export::{ContextQuery, Export as _, ExportError, Exports as _};
use sheep_nbd::volumes::{AttachOptions, Selection, VolumeContext, VolumeExport, Volumes};
use sheepfs_vfs::{BlockDevice as _, LockMode};
use tokio::time::timeout;

const MIB: u64 = 1 << 20;
/// Longest wait for anything.
const LIMIT: Duration = Duration::from_secs(60);

struct Cluster {
    client: Client,
    server: Server,
}

impl Cluster {
    async fn start() -> Self {
        let server = Server::start(Config::new(StoreKind::Memory)).await.unwrap();
        let config = ClientConfig::new(server.local_address().into());
        Self {
            client: Client::connect(config).await.unwrap(),
            server,
        }
    }

    async fn start_with_locking() -> Self {
        let cluster = Self::start().await;
        let format = FormatOptions::default().with_flags(ClusterFlags::USE_LOCK);
        cluster.client.cluster().format(&format).await.unwrap();
        cluster
    }

    /// Volumes of which a kind of request is refused while the switch is on.
    async fn refusing(
        &self,
        code: ResultCode,
        kind: impl Fn(&Request) -> bool + Send + Sync + 'static,
    ) -> (Volumes, Arc<AtomicBool>) {
        let config = ClientConfig::new(self.server.local_address().into());
        let pool = Pool::connect(config).await.unwrap();
        let switch = Arc::new(AtomicBool::new(false));
        let is_on = Arc::clone(&switch);
        let transport = FaultTransport::new(Arc::new(pool), move |request| {
            let is_refused = kind(request) && is_on.load(Ordering::Acquire);
            is_refused.then_some(Fault::Refuse(code))
        });
        let client = Client::with_transport(Arc::new(transport));
        let options = AttachOptions {
            read_only: false,
            lock: LockMode::Auto,
        };
        (Volumes::new(client, Selection::All, options), switch)
    }

    async fn create(&self, name: &str, size: u64, object_shift: u8) {
        let new = NewVdi::new(VdiName::new(name).unwrap(), size).with_object_shift(object_shift);
        self.client.cluster().create_vdi(&new).await.unwrap();
    }

    async fn snapshot(&self, name: &str, tag: &str) {
        let tag = SnapshotTag::new(tag).unwrap();
        self.client
            .vdi(&working(name))
            .snapshot(&tag)
            .await
            .unwrap();
    }

    async fn clone_of(&self, name: &str, tag: &str, to: &str) {
        let snapshot = selector(name, tag);
        let to = VdiName::new(to).unwrap();
        self.client.vdi(&snapshot).clone_to(&to).await.unwrap();
    }

    fn volumes(&self) -> Volumes {
        self.volumes_with(LockMode::Off)
    }

    fn volumes_with(&self, lock: LockMode) -> Volumes {
        let options = AttachOptions {
            read_only: false,
            lock,
        };
        Volumes::new(self.client.clone(), Selection::All, options)
    }
}

fn working(name: &str) -> VdiSelector {
    VdiSelector::working(VdiName::new(name).unwrap())
}

fn selector(name: &str, tag: &str) -> VdiSelector {
    VdiSelector::tag(VdiName::new(name).unwrap(), SnapshotTag::new(tag).unwrap())
}

async fn write(export: &VolumeExport, offset: u64, len: usize, byte: u8) {
    let data = Bytes::from(vec![byte; len]);
    export.device().write_at(offset, data).await.unwrap();
}

/// Length and status of the extents of a whole volume, in MiB.
async fn extents(export: &VolumeExport, context: &str) -> Vec<(u64, u32)> {
    let context = export.open_context(context.as_bytes()).await.unwrap();
    let range = 0..export.device().size();
    export.revalidate(range.clone()).await.unwrap();
    let found = export
        .extents(&context.unwrap(), range, 1000)
        .await
        .unwrap();
    found
        .iter()
        .map(|extent| (extent.len / MIB, extent.status))
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn depth_counts_versions_up_to_owner() {
    let cluster = Cluster::start().await;
    cluster.create("base", 6 * MIB, 20).await;
    let volumes = cluster.volumes();
    let base = volumes.open(b"base").await.unwrap();
    write(&base, 0, 3 << 20, 1).await;
    cluster.snapshot("base", "first").await;
    write(&base, MIB, 1 << 20, 2).await;
    cluster.snapshot("base", "second").await;
    write(&base, 5 * MIB, 10, 3).await;
    assert_eq!(
        extents(&base, "sheepdog:depth").await,
        [(1, 3), (1, 2), (1, 3), (2, 0), (1, 1)]
    );

    cluster.clone_of("base", "second", "clone").await;
    let clone = volumes.open(b"clone").await.unwrap();
    write(&clone, 2 * MIB, 1, 4).await;
    assert_eq!(
        extents(&clone, "qemu:allocation-depth").await,
        [(1, 3), (1, 2), (1, 1), (3, 0)]
    );
    let snapshot = volumes.open(b"base@second").await.unwrap();
    assert_eq!(
        extents(&snapshot, "sheepdog:depth").await,
        [(1, 2), (1, 1), (1, 2), (3, 0)]
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn changed_since_reports_writes_discards_and_growth() {
    let cluster = Cluster::start().await;
    cluster.create("disk", 6 * MIB, 20).await;
    let volumes = cluster.volumes();
    let disk = volumes.open(b"disk").await.unwrap();
    write(&disk, 0, 4 << 20, 1).await;
    cluster.snapshot("disk", "monday").await;
    let since = "sheepdog:changed-since:monday";
    assert_eq!(extents(&disk, since).await, [(6, 0)]);
    write(&disk, 2 * MIB, 1, 2).await;
    disk.device().discard(0, MIB).await.unwrap();
    let changed = [(1, 1), (1, 0), (1, 1), (3, 0)];
    assert_eq!(extents(&disk, since).await, changed);
    let same = "qemu:dirty-bitmap:changed-since-monday";
    assert_eq!(extents(&disk, same).await, changed);

    // Another client writes, and makes it larger.
    let other = cluster.volumes();
    let also = other.open(b"disk").await.unwrap();
    write(&also, 4 * MIB, 1, 3).await;
    also.device().set_size(8 * MIB).await.unwrap();
    disk.device().revalidate_header().await.unwrap();
    assert_eq!(
        extents(&disk, since).await,
        [(1, 1), (1, 0), (1, 1), (1, 0), (1, 1), (1, 0), (2, 1)]
    );
    cluster.snapshot("disk", "tuesday").await;
    let tuesday = volumes.open(b"disk@tuesday").await.unwrap();
    assert_eq!(extents(&tuesday, since).await.len(), 7);
    assert_eq!(
        extents(&disk, "sheepdog:changed-since:tuesday").await,
        [(8, 0)]
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn changed_since_counts_objects_of_origin_as_unchanged() {
    let cluster = Cluster::start().await;
    cluster.create("base", 4 * MIB, 20).await;
    let volumes = cluster.volumes();
    let base = volumes.open(b"base").await.unwrap();
    write(&base, 0, 2 << 20, 1).await;
    cluster.snapshot("base", "origin").await;
    cluster.clone_of("base", "origin", "clone").await;
    let clone = volumes.open(b"clone").await.unwrap();
    write(&clone, 0, 1, 2).await;
    cluster.snapshot("clone", "monday").await;
    let since = "sheepdog:changed-since:monday";
    assert_eq!(extents(&clone, since).await, [(4, 0)]);
    // Written with the same byte, which no index tells.
    write(&clone, 0, 1, 2).await;
    write(&clone, 3 * MIB, 1, 3).await;
    assert_eq!(extents(&clone, since).await, [(1, 1), (2, 0), (1, 1)]);
    // The tag is of the other volume.
    let foreign = clone.open_context(b"sheepdog:changed-since:origin").await;
    assert!(foreign.unwrap().is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn depth_of_hypervolume_sees_writes_of_other_clients() {
    let cluster = Cluster::start().await;
    let name = VdiName::new("hyper").unwrap();
    let new = NewVdi::new(name, 16 * MIB).with_hypervolume();
    cluster.client.cluster().create_vdi(&new).await.unwrap();
    let (ours, theirs) = (cluster.volumes(), cluster.volumes());
    let export = ours.open(b"hyper").await.unwrap();
    let other = theirs.open(b"hyper").await.unwrap();
    write(&other, 4 * MIB, 1, 1).await;
    let depth = extents(&export, "sheepdog:depth").await;
    assert_eq!(depth, [(4, 0), (4, 1), (8, 0)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn changed_since_shares_map_between_clients() {
    let cluster = Cluster::start().await;
    cluster.create("disk", MIB, 20).await;
    cluster.snapshot("disk", "monday").await;
    let volumes = cluster.volumes();
    let (first, second) = (
        volumes.open(b"disk").await.unwrap(),
        volumes.open(b"disk").await.unwrap(),
    );
    let mut maps = Vec::new();
    for (export, name) in [
        (&first, "sheepdog:changed-since:monday"),
        (&second, "qemu:dirty-bitmap:changed-since-monday"),
    ] {
        let context = export.open_context(name.as_bytes()).await.unwrap();
        match context.unwrap() {
            VolumeContext::ChangedSince(map) => maps.push(map),
            other @ VolumeContext::Depth(_) => panic!("{other:?}"),
        }
    }
    assert!(Arc::ptr_eq(&maps[0], &maps[1]));
}

#[tokio::test(flavor = "multi_thread")]
async fn changed_since_misses_no_change_at_random() {
    let seed = fastrand::u64(..);
    println!("seed {seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    let cluster = Cluster::start().await;
    let size = 24 * MIB;
    cluster.create("disk", size, 20).await;
    let volumes = cluster.volumes();
    let disk = volumes.open(b"disk").await.unwrap();
    let mut contents = BTreeMap::new();
    for round in 0..60 {
        let offset = random.u64(0..size);
        let len = random.u64(1..2 * MIB).min(size - offset);
        match random.u8(0..10) {
            0 => {
                let tag = format!("t{round}");
                cluster.snapshot("disk", &tag).await;
                contents.insert(tag, read_all(&disk).await);
            }
            1..=3 => disk.device().discard(offset, len).await.unwrap(),
            _ => {
                let len = usize::try_from(len).unwrap();
                write(&disk, offset, len, random.u8(0..3)).await;
            }
        }
        if round % 10 != 9 {
            continue;
        }
        let now = read_all(&disk).await;
        for (tag, then) in &contents {
            let changed = extents(&disk, &format!("sheepdog:changed-since:{tag}")).await;
            let mut at = 0;
            for (len, status) in changed {
                let end = at + usize::try_from(len * MIB).unwrap();
                assert!(
                    status == 1 || now[at..end] == then[at..end],
                    "{tag} at {at}"
                );
                at = end;
            }
            assert_eq!(at as u64, size);
        }
    }
}

async fn read_all(export: &VolumeExport) -> Bytes {
    let size = u32::try_from(export.device().size()).unwrap();
    export.device().read_at(0, size).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn contexts_match_name_or_prefix() {
    let cluster = Cluster::start().await;
    cluster.create("disk", MIB, 20).await;
    cluster.snapshot("disk", "a").await;
    cluster.snapshot("disk", "b").await;
    cluster.create("other", MIB, 20).await;
    let volumes = cluster.volumes();
    let find = async |name: &str, query: ContextQuery<'_>| {
        let found = volumes.contexts(name.as_bytes(), &[query]).await.unwrap();
        let text = |name: Bytes| String::from_utf8(name.to_vec()).unwrap();
        found.into_iter().map(text).collect::<Vec<_>>()
    };
    assert_eq!(find("disk", ContextQuery::All).await.len(), 6);
    assert_eq!(find("disk@a", ContextQuery::All).await.len(), 6);
    assert_eq!(find("other", ContextQuery::All).await.len(), 2);
    let bitmaps = find("disk", ContextQuery::Prefix(b"qemu:dirty-bitmap:")).await;
    assert_eq!(
        bitmaps,
        [
            "qemu:dirty-bitmap:changed-since-a",
            "qemu:dirty-bitmap:changed-since-b"
        ]
    );
    for (query, count) in [
        ("sheepdog:changed-since:a", 1),
        ("sheepdog:changed-since:2", 1),
        ("sheepdog:changed-since:c", 0),
        ("sheepdog:changed-since:", 0),
        ("qemu:dirty-bitmap:a", 0),
        ("sheepdog:depth", 1),
    ] {
        let found = find("disk", ContextQuery::Exact(query.as_bytes())).await;
        assert_eq!(found.len(), count, "{query}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn volume_lock_is_held_while_clients_connected() {
    let cluster = Cluster::start_with_locking().await;
    cluster.create("disk", MIB, 20).await;
    let (ours, theirs) = (
        cluster.volumes_with(LockMode::Auto),
        cluster.volumes_with(LockMode::Auto),
    );
    let first = ours.open(b"disk").await.unwrap();
    let second = ours.open(b"disk").await.unwrap();
    assert!(Arc::ptr_eq(first.device(), second.device()));
    let refused = theirs.open(b"disk").await.unwrap_err();
    assert!(matches!(refused, ExportError::InUse(_)), "{refused}");
    assert_eq!(
        refused.to_string(),
        "'disk' is locked: another client of the cluster has it attached"
    );
    // Looking at it takes no lock.
    assert_eq!(theirs.describe(b"disk").await.unwrap().size, MIB);
    drop(first);
    ours.detached().await;
    assert!(theirs.open(b"disk").await.is_err());
    drop(second);
    ours.detached().await;
    drop(theirs.open(b"disk").await.unwrap());
    theirs.detached().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn volume_lock_is_released_after_cancelled_open() {
    let cluster = Cluster::start_with_locking().await;
    cluster.create("disk", MIB, 20).await;
    let (ours, theirs) = (
        cluster.volumes_with(LockMode::Auto),
        cluster.volumes_with(LockMode::Auto),
    );
    // Somewhere among these it is cancelled between the lock and its answer.
    for microseconds in (0..4000).step_by(100) {
        let limit = Duration::from_micros(microseconds);
        drop(timeout(limit, ours.open(b"disk")).await);
        ours.detached().await;
        drop(theirs.open(b"disk").await.unwrap());
        theirs.detached().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn volume_replaced_is_attached_again() {
    let cluster = Cluster::start().await;
    cluster.create("disk", MIB, 20).await;
    let volumes = cluster.volumes();
    let old = volumes.open(b"disk").await.unwrap();
    cluster.client.vdi(&working("disk")).delete().await.unwrap();
    assert!(volumes.open(b"disk").await.is_err(), "there is none");
    cluster.create("disk", 2 * MIB, 20).await;
    let new = volumes.open(b"disk").await.unwrap();
    assert_eq!(new.device().size(), 2 * MIB);
    assert!(
        old.device().read_at(0, 1).await.is_err(),
        "never the new one's bytes"
    );
    drop(old);
    volumes.detached().await;
    write(&new, 0, 1, 1).await;
}

/// Waits until another client can attach the volume.
async fn wait_until_unlocked(volumes: &Volumes, name: &[u8]) {
    timeout(LIMIT, async {
        while let Err(error) = volumes.open(name).await {
            assert!(matches!(error, ExportError::InUse(_)), "{error}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        volumes.detached().await;
    })
    .await
    .unwrap();
}

/// What a flush and a revalidation send.
fn is_read(request: &Request) -> bool {
    request.opcode() == Opcode::ReadObj
}

fn is_release(request: &Request) -> bool {
    request.opcode() == Opcode::ReleaseVdi
}

#[tokio::test(flavor = "multi_thread")]
async fn volume_that_cannot_be_closed_stays_locked_and_usable() {
    let cluster = Cluster::start_with_locking().await;
    cluster.create("disk", MIB, 20).await;
    let (ours, fails) = cluster.refusing(ResultCode::Eio, is_release).await;
    let theirs = cluster.volumes_with(LockMode::Auto);
    let export = ours.open(b"disk").await.unwrap();
    write(&export, 0, 1, 1).await;
    let device = Arc::downgrade(export.device());
    fails.store(true, Ordering::Release);
    drop(export);
    let closed = timeout(Duration::from_millis(500), ours.detached()).await;
    assert!(closed.is_err(), "it is not detached");
    let refused = theirs.open(b"disk").await.unwrap_err();
    assert!(matches!(refused, ExportError::InUse(_)), "{refused}");

    // Its own lock does not keep its next client out.
    let again = ours.open(b"disk").await.unwrap();
    assert!(Arc::ptr_eq(again.device(), &device.upgrade().unwrap()));
    write(&again, 0, 1, 2).await;
    fails.store(false, Ordering::Release);
    drop(again);
    wait_until_unlocked(&theirs, b"disk").await;
    timeout(LIMIT, ours.detached()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn volume_that_cannot_be_closed_is_unlocked_at_shutdown() {
    let cluster = Cluster::start_with_locking().await;
    cluster.create("disk", MIB, 20).await;
    let (ours, fails) = cluster.refusing(ResultCode::Eio, is_read).await;
    let export = ours.open(b"disk").await.unwrap();
    write(&export, 0, 1, 1).await;
    fails.store(true, Ordering::Release);
    drop(export);
    timeout(LIMIT, ours.end()).await.unwrap();
    let theirs = cluster.volumes_with(LockMode::Auto);
    drop(theirs.open(b"disk").await.unwrap());
}

#[tokio::test(flavor = "multi_thread")]
async fn shutdown_waits_for_exports_in_use() {
    let cluster = Cluster::start_with_locking().await;
    cluster.create("disk", MIB, 20).await;
    let ours = cluster.volumes_with(LockMode::Auto);
    let export = ours.open(b"disk").await.unwrap();
    let mut ended = pin!(ours.end());
    let early = timeout(Duration::from_millis(300), &mut ended).await;
    assert!(early.is_err(), "its lock is not released");
    drop(export);
    timeout(LIMIT, ended).await.unwrap();
    let theirs = cluster.volumes_with(LockMode::Auto);
    drop(theirs.open(b"disk").await.unwrap());
}

#[tokio::test(flavor = "multi_thread")]
async fn block_status_reads_index_of_its_range_only() {
    let cluster = Cluster::start().await;
    cluster.create("disk", 1 << 40, 20).await;
    let bytes = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&bytes);
    let counted = move |request: &Request| {
        count.fetch_add(request.max_response_len() as usize, Ordering::AcqRel);
        false
    };
    let (volumes, _) = cluster.refusing(ResultCode::Eio, counted).await;
    let disk = volumes.open(b"disk").await.unwrap();
    // Another client writes to what was a hole.
    let others = cluster.volumes();
    let theirs = others.open(b"disk").await.unwrap();
    write(&theirs, 700 << 30, 1, 1).await;
    let range = (700 << 30) - MIB..(700 << 30) + 2 * MIB;
    let context = disk.open_context(b"sheepdog:depth").await.unwrap().unwrap();
    bytes.store(0, Ordering::Release);
    disk.revalidate(range.clone()).await.unwrap();
    // The index has 4 MiB.
    let read = bytes.load(Ordering::Acquire);
    assert!(read < 16 << 10, "{read} bytes were read");
    let extents = disk.extents(&context, range, 10).await.unwrap();
    let statuses: Vec<_> = extents.iter().map(|extent| extent.status).collect();
    assert_eq!(statuses, [0, 1, 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn volume_is_not_attached_twice_while_inode_is_missing() {
    let cluster = Cluster::start().await;
    cluster.create("disk", MIB, 20).await;
    let armed = Arc::new(AtomicBool::new(false));
    let is_missing = Arc::clone(&armed);
    let once = move |request: &Request| is_read(request) && armed.swap(false, Ordering::AcqRel);
    let (volumes, refuses) = cluster.refusing(ResultCode::NoObj, once).await;
    refuses.store(true, Ordering::Release);
    let first = volumes.open(b"disk").await.unwrap();
    is_missing.store(true, Ordering::Release);
    volumes.open(b"disk").await.unwrap_err();
    let second = volumes.open(b"disk").await.unwrap();
    assert!(Arc::ptr_eq(first.device(), second.device()));
}

#[tokio::test(flavor = "multi_thread")]
async fn volume_replaced_releases_no_lock_by_former_vid() {
    let cluster = Cluster::start_with_locking().await;
    cluster.create("disk", MIB, 20).await;
    let releases = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&releases);
    let counted = move |request: &Request| {
        count.fetch_add(usize::from(is_release(request)), Ordering::AcqRel);
        false
    };
    let (ours, _) = cluster.refusing(ResultCode::Eio, counted).await;
    let old = ours.open(b"disk").await.unwrap();
    cluster.client.vdi(&working("disk")).delete().await.unwrap();
    old.device().revalidate_header().await.unwrap_err();
    drop(old);
    ours.detached().await;
    // In a cluster that uses VIDs again, it may be the lock of another VDI by now.
    assert_eq!(releases.load(Ordering::Acquire), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn volume_not_selected_is_not_exported() {
    let cluster = Cluster::start().await;
    cluster.create("disk", MIB, 20).await;
    cluster.create("secret", MIB, 20).await;
    cluster.snapshot("disk", "a").await;
    let options = AttachOptions {
        read_only: true,
        lock: LockMode::Off,
    };
    let names = vec![Bytes::from_static(b"disk")];
    let volumes = Volumes::new(cluster.client.clone(), Selection::Named(names), options);
    for hidden in [&b"secret"[..], b"disk@a", b"nope"] {
        assert!(volumes.describe(hidden).await.is_err());
        assert!(volumes.open(hidden).await.is_err());
    }
    assert!(!volumes.describe(b"disk").await.unwrap().is_writable);
    assert!(!volumes.open(b"disk").await.unwrap().device().is_writable());
    assert_eq!(volumes.list().await.unwrap().len(), 1);

    let all: Vec<_> = cluster.volumes().list().await.unwrap();
    let mut names: Vec<_> = all.iter().map(|(name, _)| &name[..]).collect();
    names.sort_unstable();
    assert_eq!(names, [&b"disk"[..], b"disk@a", b"secret"]);
}
