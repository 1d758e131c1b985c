//! Volumes that use the object cache of a gateway, as sheep before 1.0 may have one, and
//! volumes that do not where there is one.
//!
//! The cluster has two gateways, of which the first has the cache. Only that one knows what
//! was written through it, until a flush.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use nix::errno::Errno;
use sheep_client::testing::{Fault, FaultTransport};
use sheep_client::unstable::{BoxFuture, Pool, Request};
use sheep_client::{Client, ClientConfig, ClientError, Generation, NewVdi, VdiName, VdiSelector};
use sheep_embedded::{Config, Server, StoreKind};
use sheep_proto::cache_info::CacheInfo;
use sheep_proto::header::RequestBody;
use sheep_proto::limits::CACHE_INFO_LEN;
use sheep_proto::{ObjectIndex, ObjectKind, Oid, Opcode, RequestFlags, RequestHeader, Vid};
use sheepfs_vfs::{
    BlockDevice as _, Ino, OpenMode, Tree, TreeConfig, Volume, VolumeError, VolumeOptions,
};
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::support::{MIB, open_version, pattern, read_all, tag, unique_name, write_file};

const OLD: [Generation; 3] = [Generation::V0_7, Generation::V0_8, Generation::V0_9];
const OBJECT: u64 = 4 * MIB;

/// Two gateways of a cluster, the first with an object cache.
struct Gateways {
    first: Server,
    second: Server,
}

/// Headers of requests.
type Sent = Arc<Mutex<Vec<RequestHeader>>>;

impl Gateways {
    async fn start(generation: Generation) -> Self {
        let mut config = Config::new(StoreKind::Memory);
        config.generation = generation;
        config.object_cache = generation.has_object_cache();
        let first = Server::start(config).await.unwrap();
        let second = first.add_node(localhost()).await.unwrap();
        Self { first, second }
    }

    /// A client of the first that fails over to the second.
    async fn client(&self) -> Client {
        Client::connect(self.config()).await.unwrap()
    }

    fn config(&self) -> ClientConfig {
        let addresses = [&self.first, &self.second].map(|node| node.local_address().into());
        let mut config = ClientConfig::with_addresses(addresses.to_vec());
        config.retry_for = Duration::from_secs(20);
        config
    }

    /// What the first gateway is sent from now on.
    fn record(&self) -> Sent {
        let sent = Sent::default();
        let record = Arc::clone(&sent);
        self.first.inject(move |header| {
            record.lock().unwrap().push(*header);
            None
        });
        sent
    }
}

fn localhost() -> SocketAddr {
    "127.0.0.1:0".parse().unwrap()
}

/// A client of one gateway alone.
async fn client_of(node: &Server) -> Client {
    Client::connect(ClientConfig::new(node.local_address().into()))
        .await
        .unwrap()
}

async fn create(client: &Client, objects: u64) -> VdiName {
    let name = unique_name("cached");
    let new = NewVdi::new(name.clone(), objects * OBJECT);
    client.cluster().create_vdi(&new).await.unwrap();
    name
}

/// A volume that uses the cache, with objects full of `1` on the replicas.
async fn cached_volume(client: &Client, objects: u64) -> (VdiName, Arc<Volume>) {
    let name = create(client, objects).await;
    let volume = open(client, &name).await;
    let len = usize::try_from(objects * OBJECT).unwrap();
    volume.write_at(0, pattern(1, len)).await.unwrap();
    volume.use_object_cache().await.unwrap();
    assert!(volume.uses_object_cache());
    (name, volume)
}

async fn open(client: &Client, name: &VdiName) -> Arc<Volume> {
    let selector = VdiSelector::working(name.clone());
    let options = VolumeOptions::default().with_lock(false);
    let volume = Volume::open(client.clone(), selector, options).await;
    volume.unwrap()
}

/// A byte as the replicas have it.
async fn stored(client: &Client, name: &VdiName, offset: u64) -> u8 {
    let selector = VdiSelector::working(name.clone());
    let options = VolumeOptions::default().with_read_only(true);
    let volume = Volume::open(client.clone(), selector, options.with_lock(false));
    volume.await.unwrap().read_at(offset, 1).await.unwrap()[0]
}

/// Dirty objects and objects of each VDI that the gateway of `client` has in its cache.
async fn cached(client: &Client) -> Vec<(u32, u32, u32)> {
    let len = u32::try_from(CACHE_INFO_LEN).unwrap();
    let request = Request::new(Opcode::GetCacheInfo, RequestBody::NONE);
    let response = client.send(request.with_max_response_len(len)).await;
    let payload = response.unwrap().payload;
    let info = CacheInfo::parse(&payload).unwrap();
    let vdis = info.vdis[..info.count.get() as usize].iter();
    vdis.map(|vdi| (vdi.vid.get(), vdi.dirty.get(), vdi.total.get()))
        .collect()
}

async fn snapshot(client: &Client, name: &VdiName, text: &str) {
    let working = VdiSelector::working(name.clone());
    client.vdi(&working).snapshot(&tag(text)).await.unwrap();
}

fn assert_lost(flushed: Result<(), VolumeError>) {
    let error = flushed.unwrap_err();
    assert!(matches!(error, VolumeError::CacheLost { .. }), "{error:?}");
    assert_eq!(error.errno(), Errno::EIO);
}

#[tokio::test(flavor = "multi_thread")]
async fn cache_takes_writes_and_flush_writes_them_back() {
    for generation in OLD {
        let gateways = Gateways::start(generation).await;
        let (client, other) = (gateways.client().await, client_of(&gateways.second).await);
        let (name, volume) = cached_volume(&client, 2).await;
        volume.write_at(5, pattern(2, 3)).await.unwrap();
        assert_eq!(volume.read_at(4, 5).await.unwrap(), &[1, 2, 2, 2, 1][..]);
        assert_eq!(stored(&other, &name, 5).await, 1);
        volume.flush().await.unwrap();
        assert_eq!(stored(&other, &name, 5).await, 2);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn fsync_survives_kill_of_gateway() {
    for generation in OLD {
        let gateways = Gateways::start(generation).await;
        let (client, other) = (gateways.client().await, client_of(&gateways.second).await);
        let (name, volume) = cached_volume(&client, 3).await;
        // In place in two objects, and an object as a whole.
        let across = OBJECT - 2;
        volume.write_at(across, pattern(2, 4)).await.unwrap();
        volume
            .write_at(2 * OBJECT, pattern(3, 4 << 20))
            .await
            .unwrap();
        volume.flush().await.unwrap();
        gateways.first.kill().await;
        for (offset, byte) in [
            (across - 1, 1),
            (across, 2),
            (across + 3, 2),
            (2 * OBJECT, 3),
        ] {
            assert_eq!(stored(&other, &name, offset).await, byte, "{generation}");
        }
        assert_eq!(volume.read_at(across, 4).await.unwrap(), pattern(2, 4));
        volume.write_at(0, pattern(4, 4)).await.unwrap();
        volume.flush().await.unwrap();
        assert_eq!(stored(&other, &name, 0).await, 4);
        volume.close().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn unflushed_writes_lost_with_gateway_fail_one_flush() {
    for generation in OLD {
        for read_first in [false, true] {
            let gateways = Gateways::start(generation).await;
            let (client, other) = (gateways.client().await, client_of(&gateways.second).await);
            let (name, volume) = cached_volume(&client, 2).await;
            volume.write_at(0, pattern(2, 4)).await.unwrap();
            volume.flush().await.unwrap();
            volume.write_at(0, pattern(3, 4)).await.unwrap();
            gateways.first.kill().await;
            if read_first {
                assert_eq!(volume.read_at(0, 4).await.unwrap(), pattern(2, 4));
            }
            assert_lost(volume.flush().await);
            volume.flush().await.unwrap();
            assert_eq!(volume.read_at(0, 4).await.unwrap(), pattern(2, 4));
            // It goes on through the other one.
            volume.write_at(0, pattern(4, 4)).await.unwrap();
            volume.flush().await.unwrap();
            assert_eq!(stored(&other, &name, 0).await, 4);
            volume.close().await.unwrap();
        }
    }
}

/// A write that is in flight when the gateway is lost was not acknowledged: it is written
/// again, and there is nothing to report.
#[tokio::test(flavor = "multi_thread")]
async fn write_in_flight_is_repeated_after_loss_of_gateway() {
    for generation in OLD {
        let gateways = Gateways::start(generation).await;
        let (client, other) = (gateways.client().await, client_of(&gateways.second).await);
        let (name, volume) = cached_volume(&client, 1).await;
        let arrived = Arc::new(Notify::new());
        let tell = Arc::clone(&arrived);
        gateways.first.inject(move |header| {
            let is_write = header.opcode == Opcode::WriteObj as u8;
            is_write.then(|| {
                tell.notify_one();
                sheep_embedded::Fault::DropRequest
            })
        });
        let writing = volume.write_at(0, pattern(2, 4));
        let first = gateways.first;
        let (written, ()) = tokio::join!(writing, async {
            arrived.notified().await;
            first.kill().await;
        });
        written.unwrap();
        volume.flush().await.unwrap();
        assert_eq!(stored(&other, &name, 0).await, 2);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn snapshot_by_another_client_loses_no_unflushed_write() {
    for generation in OLD {
        for flush_first in [false, true] {
            let gateways = Gateways::start(generation).await;
            let (client, other) = (gateways.client().await, client_of(&gateways.second).await);
            let (name, volume) = cached_volume(&client, 4).await;
            volume.write_at(0, pattern(2, 4)).await.unwrap();
            volume.flush().await.unwrap();
            volume.write_at(OBJECT, pattern(3, 4)).await.unwrap();
            volume
                .write_at(2 * OBJECT + 8, pattern(3, 4))
                .await
                .unwrap();
            let old = volume.info().vid;
            snapshot(&other, &name, "by-other").await;
            if !flush_first {
                volume.write_at(4, pattern(4, 4)).await.unwrap();
            }
            volume.flush().await.unwrap();
            assert_ne!(volume.info().vid, old);

            let mut expected = vec![1; usize::try_from(4 * OBJECT).unwrap()];
            let object = usize::try_from(OBJECT).unwrap();
            expected[..4].fill(2);
            let in_snapshot = expected.clone();
            expected[object..object + 4].fill(3);
            expected[2 * object + 8..2 * object + 12].fill(3);
            if !flush_first {
                expected[4..8].fill(4);
            }
            assert!(read_all(&volume).await == expected, "{generation}");
            let there = open(&other, &name).await;
            assert!(read_all(&there).await == expected, "{generation}");
            let snapshot = VdiSelector::tag(name.clone(), tag("by-other"));
            let snapshot = open_version(&other, snapshot).await;
            assert!(read_all(&snapshot).await == in_snapshot, "{generation}");
            // Nothing of the snapshot stays in the cache.
            let left = cached(&client_of(&gateways.first).await).await;
            assert!(left.iter().all(|&(vid, ..)| vid != old.get()), "{left:?}");
            volume.close().await.unwrap();
        }
    }
}

/// The flush throws away what it should write back, and says that all is well.
#[tokio::test(flavor = "multi_thread")]
async fn snapshot_right_before_flush_loses_no_write() {
    for generation in OLD {
        let gateways = Gateways::start(generation).await;
        let other = client_of(&gateways.second).await;
        let (held, release) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
        let (tell, wait) = (Arc::clone(&held), Arc::clone(&release));
        let pool = Arc::new(Pool::connect(gateways.config()).await.unwrap());
        let client = Client::with_transport(Arc::new(FaultTransport::new(pool, move |request| {
            (request.opcode() == Opcode::FlushVdi).then(|| {
                tell.notify_one();
                let wait = Arc::clone(&wait);
                let ready: BoxFuture<'static, ()> = Box::pin(async move { wait.notified().await });
                Fault::DelayUntil(ready)
            })
        })));
        let (name, volume) = cached_volume(&client, 1).await;
        volume.write_at(0, pattern(2, 4)).await.unwrap();
        let (flushed, ()) = tokio::join!(volume.flush(), async {
            held.notified().await;
            snapshot(&other, &name, "before-flush").await;
            release.notify_one();
        });
        flushed.unwrap();
        assert_eq!(stored(&other, &name, 0).await, 2, "{generation}");
        assert_eq!(volume.read_at(0, 4).await.unwrap(), pattern(2, 4));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn detach_leaves_no_object_in_cache() {
    for generation in OLD {
        let gateways = Gateways::start(generation).await;
        let (client, other) = (gateways.client().await, client_of(&gateways.second).await);
        let (name, volume) = cached_volume(&client, 2).await;
        volume.write_at(0, pattern(2, 4)).await.unwrap();
        let vid = volume.info().vid.get();
        assert_eq!(cached(&client).await, [(vid, 1, 1)]);
        volume.close().await.unwrap();
        assert_eq!(cached(&client).await, []);
        assert_eq!(stored(&other, &name, 0).await, 2);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn exclusive_volume_is_unlocked_after_its_cache_is_dropped() {
    let gateways = Gateways::start(Generation::V0_9).await;
    let client = gateways.client().await;
    let name = create(&client, 1).await;
    for _again in 0..2 {
        let volume = open_version(&client, VdiSelector::working(name.clone())).await;
        volume.write_at(0, pattern(1, 8)).await.unwrap();
        volume.use_object_cache().await.unwrap();
        volume.write_at(0, pattern(2, 4)).await.unwrap();
        volume.close().await.unwrap();
        assert_eq!(cached(&client).await, []);
    }
}

/// What a volume does, in the order of the test below.
async fn use_volume(client: &Client, name: &VdiName, with_cache: bool) -> Vid {
    let volume = open(client, name).await;
    if with_cache {
        volume.use_object_cache().await.unwrap();
    }
    // A new object, in place, and an inherited one.
    volume.write_at(0, pattern(1, 100)).await.unwrap();
    volume.write_at(8, pattern(2, 100)).await.unwrap();
    volume.write_at(2 * OBJECT, pattern(2, 100)).await.unwrap();
    volume.read_at(8, 50).await.unwrap();
    volume.read_at(3 * OBJECT, 50).await.unwrap();
    volume.flush().await.unwrap();
    volume.discard(0, OBJECT).await.unwrap();
    volume.write_at(0, pattern(3, 100)).await.unwrap();
    assert_eq!(
        volume.read_at(0, 200).await.unwrap()[..101],
        [&[3; 100][..], &[0]].concat()
    );
    let vid = volume.info().vid;
    volume.close().await.unwrap();
    vid
}

/// The table of what may go through the cache.
#[tokio::test(flavor = "multi_thread")]
async fn only_data_in_place_goes_through_cache() {
    for generation in OLD {
        for with_cache in [false, true] {
            let gateways = Gateways::start(generation).await;
            let client = gateways.client().await;
            let name = create(&client, 4).await;
            let volume = open(&client, &name).await;
            volume
                .write_at(2 * OBJECT, pattern(1, 8 << 20))
                .await
                .unwrap();
            volume.close().await.unwrap();
            snapshot(&client, &name, "base").await;

            let sent = gateways.record();
            let vid = use_volume(&client, &name, with_cache).await;
            let sent = sent.lock().unwrap();
            let (mut in_place, mut discards, mut flushes, mut releases) = (0, 0, 0, 0);
            for header in sent.iter() {
                let (flags, opcode) = (header.flags(), Opcode::try_from(header.opcode).unwrap());
                let context = format!("{generation}, {with_cache}: {opcode} with {flags:?}");
                assert!(!flags.contains(RequestFlags::DIRECT), "{context}");
                let oid = match header.body() {
                    RequestBody::Object(body) => Some(Oid::from_raw(body.oid.get())),
                    _ => None,
                };
                let is_own = oid.is_some_and(|oid| {
                    oid.kind() == Some(ObjectKind::Data) && oid.vid() == Some(vid)
                });
                match opcode {
                    Opcode::ReadObj | Opcode::WriteObj => {
                        let is_data = is_own && header.data_length.get() > 1;
                        in_place += u32::from(is_data);
                        let expected = match is_data && with_cache {
                            true => RequestFlags::CACHE,
                            false => RequestFlags::COW,
                        };
                        assert_eq!(flags & !RequestFlags::WRITE, expected, "{context}");
                    }
                    Opcode::CreateAndWriteObj => {
                        assert_eq!(flags, RequestFlags::WRITE | RequestFlags::COW, "{context}");
                        // In 0.7 the source is read through caches that may be old.
                        let copies = matches!(header.body(), RequestBody::Object(body)
                            if body.cow_oid != body.oid);
                        assert!(!copies || generation != Generation::V0_7, "{context}");
                    }
                    _ => {
                        assert!(
                            !flags.intersects(RequestFlags::CACHE | RequestFlags::COW),
                            "{context}"
                        );
                        discards += u32::from(opcode == Opcode::DiscardObj);
                        flushes += u32::from(opcode == Opcode::FlushVdi);
                        if let (Opcode::ReleaseVdi, RequestBody::Vdi(body)) =
                            (opcode, header.body())
                        {
                            releases += 1;
                            assert_eq!(body.lock_type.get(), 1);
                        }
                    }
                }
            }
            assert!(in_place >= 3, "{in_place}");
            let discarded = with_cache || generation != Generation::V0_9;
            assert_eq!(discards, u32::from(discarded), "{generation}");
            assert_eq!(
                (flushes, releases),
                if with_cache { (1, 1) } else { (0, 0) }
            );
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn cache_changes_no_request_to_1_0() {
    let mut seen = Vec::new();
    for with_cache in [false, true] {
        let gateways = Gateways::start(Generation::V1_0).await;
        let client = gateways.client().await;
        let name = VdiName::new("v").unwrap();
        let new = NewVdi::new(name.clone(), 4 * OBJECT);
        client.cluster().create_vdi(&new).await.unwrap();
        let sent = gateways.record();
        use_volume(&client, &name, with_cache).await;
        // How often it looks for changes depends on the time.
        let kinds: BTreeSet<_> = sent
            .lock()
            .unwrap()
            .iter()
            .map(|header| (header.opcode, header.flags().bits()))
            .collect();
        let cache = RequestFlags::CACHE.bits();
        assert!(kinds.iter().all(|(_, flags)| flags & cache == 0));
        seen.push(kinds);
    }
    assert_eq!(seen[0], seen[1]);
}

/// What is in the cache of a gateway that comes back is old, and counts as changes there.
#[tokio::test(flavor = "multi_thread")]
async fn gateway_that_comes_back_writes_no_old_data() {
    for generation in OLD {
        for ends in [0, 1] {
            let gateways = Gateways::start(generation).await;
            let (client, other) = (gateways.client().await, client_of(&gateways.second).await);
            let (name, volume) = cached_volume(&client, 2).await;
            volume.write_at(0, pattern(2, 4)).await.unwrap();
            volume.flush().await.unwrap();
            volume.write_at(OBJECT, pattern(2, 4)).await.unwrap();
            let address = gateways.first.local_address();
            gateways.first.kill().await;
            assert_lost(volume.flush().await);
            volume.write_at(0, pattern(3, 4)).await.unwrap();
            volume.flush().await.unwrap();

            let back = gateways.second.add_node(address).await.unwrap();
            let here = client_of(&back).await;
            let vid = volume.info().vid.get();
            assert_eq!(cached(&here).await, [(vid, 2, 2)]);
            match ends {
                // Detached, and attached there.
                0 => volume.close().await.unwrap(),
                // Used through it again.
                _ => {
                    client.switch_gateway(address.into()).await.unwrap();
                    volume.use_object_cache().await.unwrap();
                    assert!(volume.uses_object_cache());
                    assert_eq!(volume.read_at(0, 4).await.unwrap(), pattern(3, 4));
                    volume.close().await.unwrap();
                }
            }
            assert_eq!(cached(&here).await, []);
            let volume = open(&here, &name).await;
            volume.use_object_cache().await.unwrap();
            assert_eq!(volume.read_at(0, 4).await.unwrap(), pattern(3, 4));
            volume.close().await.unwrap();
            assert_eq!(stored(&other, &name, 0).await, 3);
            assert_eq!(stored(&other, &name, OBJECT).await, 1);
        }
    }
}

/// Changes that another client has left in the cache of the first gateway.
async fn leave_changes(gateways: &Gateways, name: &VdiName) -> Vid {
    let client = client_of(&gateways.first).await;
    let vid = client
        .vdi(&VdiSelector::working(name.clone()))
        .lookup()
        .await
        .unwrap();
    let oid = Oid::data(vid, ObjectIndex(0));
    let objects = client.objects().through_cache(client.session());
    objects.write(oid, 0, pattern(9, 4)).await.unwrap();
    vid
}

#[tokio::test(flavor = "multi_thread")]
async fn volume_with_others_changes_in_cache_is_not_attached_nor_locked() {
    for generation in OLD {
        let gateways = Gateways::start(generation).await;
        let client = gateways.client().await;
        let name = create(&client, 1).await;
        let volume = open(&client, &name).await;
        volume.write_at(0, pattern(1, 8)).await.unwrap();
        volume.close().await.unwrap();
        let vid = leave_changes(&gateways, &name).await;
        let sent = gateways.record();
        let selector = VdiSelector::working(name.clone());
        let refused = Volume::open(client.clone(), selector.clone(), VolumeOptions::default());
        let error = refused.await.unwrap_err();
        assert_eq!(error.errno(), Errno::EBUSY);
        let opcodes = |sent: &Sent| -> Vec<_> {
            let sent = sent.lock().unwrap();
            sent.iter().map(|header| header.opcode).collect()
        };
        for opcode in [Opcode::LockVdi, Opcode::ReleaseVdi, Opcode::FlushVdi] {
            assert!(!opcodes(&sent).contains(&(opcode as u8)), "{opcode}");
        }
        // Neither does our snapshot write them back.
        let refused = client.vdi(&selector).snapshot(&tag("t")).await.unwrap_err();
        assert!(matches!(refused, ClientError::DirtyCache { dirty: 1, .. }));
        assert!(!opcodes(&sent).contains(&(Opcode::NewVdi as u8)));
        assert_eq!(cached(&client).await, [(vid.get(), 1, 1)]);
        // It can be read.
        assert_eq!(stored(&client, &name, 0).await, 1);

        // Once they are written back, the copies are dropped.
        let session = client.session();
        client.object_cache(vid).flush(session).await.unwrap();
        assert_eq!(cached(&client).await, [(vid.get(), 0, 1)]);
        let volume = open(&client, &name).await;
        assert_eq!(cached(&client).await, []);
        assert_eq!(volume.read_at(0, 4).await.unwrap(), pattern(9, 4));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn deletion_drops_objects_in_caches() {
    for generation in OLD {
        let gateways = Gateways::start(generation).await;
        let (client, other) = (gateways.client().await, client_of(&gateways.second).await);
        let name = create(&client, 1).await;
        let volume = open(&client, &name).await;
        volume.write_at(0, pattern(1, 8)).await.unwrap();
        volume.close().await.unwrap();
        leave_changes(&gateways, &name).await;
        let selector = VdiSelector::working(name.clone());
        other.vdi(&selector).delete().await.unwrap();
        assert_eq!(cached(&client).await, []);
    }
}

/// Writes `text` to a file below `config/`.
async fn set(tree: &Tree, name: &[u8], text: &[u8]) {
    let config = tree.lookup(Ino::ROOT, b"config").await.unwrap().ino;
    let file = tree.lookup(config, name).await.unwrap().ino;
    let opened = tree.files().open(file, MODE, Instant::now()).await.unwrap();
    write_file(tree, opened.handle, 0, text).await.unwrap();
    tree.files().release(opened.handle);
}

const MODE: OpenMode = OpenMode {
    read: true,
    write: true,
};

#[tokio::test(flavor = "multi_thread")]
async fn setting_applies_to_files_opened_after_it() {
    for generation in OLD {
        let gateways = Gateways::start(generation).await;
        let (client, other) = (gateways.client().await, client_of(&gateways.second).await);
        let name = create(&client, 1).await;
        let tree = Tree::new(client.clone(), TreeConfig::default());
        tree.attachments().attach(name.as_bytes()).await.unwrap();
        let volumes = tree.lookup(Ino::ROOT, b"volume").await.unwrap().ino;
        let file = tree.lookup(volumes, name.as_bytes()).await.unwrap().ino;
        let open = || tree.files().open(file, MODE, Instant::now());
        let write = async |handle, byte| {
            write_file(&tree, handle, 0, &[byte; 4]).await.unwrap();
        };
        let before = open().await.unwrap().handle;
        write(before, 1).await;
        set(&tree, b"object_cache", b"1\n").await;
        write(before, 2).await;
        assert_eq!(stored(&other, &name, 0).await, 2);
        assert_eq!(cached(&client).await, []);

        let with = open().await.unwrap().handle;
        write(with, 3).await;
        assert_eq!(stored(&other, &name, 0).await, 2);
        tree.files().sync(with).await.unwrap();
        assert_eq!(stored(&other, &name, 0).await, 3);
        // close(2), our snapshot, and another gateway find all of it on the replicas.
        write(with, 4).await;
        tree.files().flush(with).await.unwrap();
        assert_eq!(stored(&other, &name, 0).await, 4);
        write(with, 5).await;
        let address = gateways.second.local_address().to_string();
        set(&tree, b"sheep_info", address.as_bytes()).await;
        assert_eq!(stored(&other, &name, 0).await, 5);
        tree.files().sync(with).await.unwrap();
        let address = gateways.first.local_address().to_string();
        set(&tree, b"sheep_info", address.as_bytes()).await;
        let again = open().await.unwrap().handle;
        write(again, 6).await;
        assert_eq!(stored(&other, &name, 0).await, 5);

        set(&tree, b"object_cache", b"0\n").await;
        assert_eq!(stored(&other, &name, 0).await, 6);
        assert_eq!(cached(&client).await, []);
        write(again, 7).await;
        assert_eq!(stored(&other, &name, 0).await, 7);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn own_snapshot_has_unflushed_writes() {
    for generation in OLD {
        let gateways = Gateways::start(generation).await;
        let (client, other) = (gateways.client().await, client_of(&gateways.second).await);
        let (name, volume) = cached_volume(&client, 1).await;
        volume.close().await.unwrap();
        let tree = Tree::new(
            client.clone(),
            TreeConfig::default().with_object_cache(true),
        );
        tree.attachments().attach(name.as_bytes()).await.unwrap();
        let volumes = tree.lookup(Ino::ROOT, b"volume").await.unwrap().ino;
        let file = tree.lookup(volumes, name.as_bytes()).await.unwrap().ino;
        let handle = tree
            .files()
            .open(file, MODE, Instant::now())
            .await
            .unwrap()
            .handle;
        write_file(&tree, handle, 0, &[2; 4]).await.unwrap();
        let vdi = tree.lookup(Ino::ROOT, b"vdi").await.unwrap().ino;
        let command = tree.lookup(vdi, b"snapshot").await.unwrap().ino;
        let command = tree
            .files()
            .open(command, MODE, Instant::now())
            .await
            .unwrap();
        let line = format!("{name} two\n");
        write_file(&tree, command.handle, 0, line.as_bytes())
            .await
            .unwrap();
        write_file(&tree, handle, 0, &[3; 4]).await.unwrap();
        tree.files().sync(handle).await.unwrap();
        let snapshot = open_version(&other, VdiSelector::tag(name.clone(), tag("two"))).await;
        assert_eq!(snapshot.read_at(0, 4).await.unwrap(), pattern(2, 4));
        assert_eq!(stored(&other, &name, 0).await, 3);
        tree.files().release(handle);
        tree.attachments().close().await;
        assert_eq!(cached(&client).await, []);
    }
}

/// Writers, flushes, snapshots by another client and the end of the gateway, in no
/// particular order.
#[tokio::test(flavor = "multi_thread")]
async fn flushed_writes_survive_everything() {
    const OBJECTS: usize = 6;
    for generation in OLD {
        let seed = fastrand::u64(..);
        let mut rng = fastrand::Rng::with_seed(seed);
        let gateways = Gateways::start(generation).await;
        let (client, other) = (gateways.client().await, client_of(&gateways.second).await);
        let (name, volume) = cached_volume(&client, OBJECTS as u64).await;
        // What each object may have if the gateway ends; the last is what was written.
        let mut possible = vec![vec![1]; OBJECTS];
        let last = |bytes: &Vec<u8>| *bytes.last().unwrap();
        let mut first = Some(gateways.first);
        let end = rng.u8(20..60);
        for step in 2..80 {
            let object = rng.usize(..OBJECTS);
            let offset = object as u64 * OBJECT;
            match rng.u8(..10) {
                0 => snapshot(&other, &name, &format!("s{step}")).await,
                1 | 2 => match volume.flush().await {
                    Ok(()) => possible
                        .iter_mut()
                        .for_each(|bytes| *bytes = vec![last(bytes)]),
                    Err(error) => panic!("seed {seed}: {error}"),
                },
                3 => {
                    volume.discard(offset, OBJECT).await.unwrap();
                    possible[object] = vec![0];
                }
                _ => {
                    let written = volume.write_at(offset + 7, pattern(step, 9)).await;
                    written.unwrap();
                    possible[object].push(step);
                }
            }
            if step == end {
                first.take().unwrap().kill().await;
                let is_clean = possible.iter().all(|bytes| bytes.len() == 1);
                let flushed = volume.flush().await;
                assert!(!is_clean || flushed.is_ok(), "seed {seed}: {flushed:?}");
                for (bytes, object) in possible.iter_mut().zip(0..) {
                    let found = stored(&other, &name, object * OBJECT + 7).await;
                    let as_written = match &flushed {
                        Ok(()) => found == last(bytes),
                        Err(_) => bytes.contains(&found),
                    };
                    assert!(
                        as_written,
                        "seed {seed}, object {object}: {found} of {bytes:?}"
                    );
                    *bytes = vec![found];
                }
            }
        }
        volume.flush().await.unwrap();
        for (bytes, object) in possible.iter().zip(0..) {
            let found = stored(&other, &name, object * OBJECT + 7).await;
            assert_eq!(found, last(bytes), "seed {seed}, object {object}");
        }
        volume.close().await.unwrap();
    }
}
