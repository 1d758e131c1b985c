//! Volumes on sheep of other generations: what discarding, locking and hypervolumes
//! come to there. The sheep is one of 1.0 that is said to be older.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::BytesMut;
use nix::errno::Errno;
use sheep_client::unstable::{BoxFuture, Completion, Request, Response, Transport};
use sheep_client::{Client, ClientError, GatewayAddress, Generation, VdiSelector};
use sheep_proto::limits::CACHE_INFO_LEN;
use sheep_proto::{ClusterFlags, ObjectKind, Opcode, ResponseBody, ResponseHeader, ResultCode};
use sheepfs_vfs::{BlockDevice as _, LockMode, Tree, TreeConfig};
use tokio::sync::Notify;

use crate::support::{
    Cluster, delay_until, formatted, is_index_update, open, open_version, pattern, read_all, tag,
};

const MIB: u64 = 1 << 20;

/// A request that was sent, without the locks that it pins.
#[derive(Debug)]
struct Sent {
    opcode: Opcode,
    of_data: bool,
    is_index_update: bool,
}

/// A sheep that is said to be of another generation, and what it was sent.
#[derive(Debug)]
struct Said {
    inner: Arc<dyn Transport>,
    generation: Generation,
    sent: Arc<Mutex<Vec<Sent>>>,
}

impl Transport for Said {
    fn submit(&self, request: Request, done: Completion) {
        let oid = request.operation().oid;
        self.sent.lock().unwrap().push(Sent {
            opcode: request.opcode(),
            of_data: oid.and_then(|oid| oid.kind()) == Some(ObjectKind::Data),
            is_index_update: is_index_update(&request),
        });
        // Sheep of 1.0 do not have this.
        if request.opcode() == Opcode::GetCacheInfo {
            return done(Ok(no_cache(&request)));
        }
        self.inner.submit(request, done);
    }

    fn submit_to(&self, node: SocketAddr, request: Request, done: Completion) {
        self.inner.submit_to(node, request, done);
    }

    fn address(&self) -> GatewayAddress {
        self.inner.address()
    }

    fn generation(&self, _timeout: Duration) -> BoxFuture<'_, Result<Generation, ClientError>> {
        Box::pin(std::future::ready(Ok(self.generation)))
    }

    fn switch_gateway(&self, address: GatewayAddress) -> BoxFuture<'_, Result<(), ClientError>> {
        self.inner.switch_gateway(address)
    }
}

/// What a sheep without an object cache says about it.
fn no_cache(request: &Request) -> Response {
    let success = ResponseBody::result(ResultCode::Success);
    let len = request.max_response_len();
    let header = request.header(Generation::V0_9);
    Response {
        operation: request.operation(),
        header: ResponseHeader::answer(&header, 1, len, success),
        payload: BytesMut::zeroed(CACHE_INFO_LEN),
    }
}

async fn client_of(cluster: &Cluster, generation: Generation) -> (Client, Arc<Mutex<Vec<Sent>>>) {
    let sent = Arc::new(Mutex::new(Vec::new()));
    let client = cluster
        .client_through(|inner| Said {
            inner,
            generation,
            sent: Arc::clone(&sent),
        })
        .await;
    (client, sent)
}

fn discards(sent: &Mutex<Vec<Sent>>) -> usize {
    let sent = sent.lock().unwrap();
    let discards = sent.iter().filter(|sent| sent.opcode == Opcode::DiscardObj);
    discards.count()
}

#[tokio::test(flavor = "multi_thread")]
async fn discard_before_0_9_removes_objects_itself() {
    for generation in Generation::ALL {
        let cluster = Cluster::newest().await;
        let name = cluster.create("uncounted", 4 * MIB).await;
        let (client, sent) = client_of(&cluster, generation).await;
        let volume = open(&client, &name).await;
        volume.write_at(0, pattern(9, 4 << 20)).await.unwrap();
        sent.lock().unwrap().clear();
        volume.discard(MIB, 2 * MIB).await.unwrap();
        let clears = sent.lock().unwrap().iter().any(|sent| sent.is_index_update);
        match generation {
            Generation::V0_7 | Generation::V0_8 => {
                assert_eq!((discards(&sent), clears), (2, false))
            }
            _ => assert_eq!((discards(&sent), clears), (0, true)),
        }
        assert_eq!(volume.allocated(), 2 * MIB);
        let mut expected = vec![9; 4 << 20];
        expected[1 << 20..3 << 20].fill(0);
        assert!(read_all(&volume).await == expected);
        assert!(read_all(&open(&cluster.client, &name).await).await == expected);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn discard_before_0_9_keeps_snapshot_data() {
    let cluster = Cluster::newest().await;
    let name = cluster.create("uncounted-snap", 2 * MIB).await;
    let (client, _sent) = client_of(&cluster, Generation::V0_7).await;
    let volume = open(&client, &name).await;
    volume.write_at(0, pattern(9, 2 << 20)).await.unwrap();
    let working = VdiSelector::working(name.clone());
    let snapshot = cluster.client.vdi(&working).snapshot(&tag("full")).await;
    snapshot.unwrap();
    volume.discard(0, MIB).await.unwrap();
    let mut head = vec![9; 2 << 20];
    head[..1 << 20].fill(0);
    assert!(read_all(&open(&cluster.client, &name).await).await == head);
    let full = open_version(&cluster.client, VdiSelector::tag(name, tag("full"))).await;
    assert!(read_all(&full).await == pattern(9, 2 << 20));
}

/// DISCARD_OBJ reaches the VDI after it has become a snapshot.
#[tokio::test(flavor = "multi_thread")]
async fn discard_before_0_9_that_races_with_a_snapshot_leaves_no_dangling_slot() {
    let cluster = Cluster::newest().await;
    let name = cluster.create("uncounted-race", 2 * MIB).await;
    let (held, release) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let (tell, wait) = (Arc::clone(&held), Arc::clone(&release));
    let armed = AtomicBool::new(true);
    let client = cluster
        .client_through(|inner| Said {
            inner: Arc::new(delay_until(inner, move |request| {
                let first =
                    request.opcode() == Opcode::DiscardObj && armed.swap(false, Ordering::AcqRel);
                first.then(|| {
                    tell.notify_one();
                    let wait = Arc::clone(&wait);
                    Box::pin(async move { wait.notified().await }) as BoxFuture<'static, ()>
                })
            })),
            generation: Generation::V0_8,
            sent: Arc::default(),
        })
        .await;
    let volume = open(&client, &name).await;
    volume.write_at(0, pattern(9, 2 << 20)).await.unwrap();
    let discard = volume.discard(0, MIB);
    let snapshot = async {
        held.notified().await;
        let working = VdiSelector::working(name.clone());
        let snapshot = cluster.client.vdi(&working).snapshot(&tag("t")).await;
        snapshot.unwrap();
        release.notify_one();
    };
    let (discarded, ()) = tokio::join!(discard, snapshot);
    discarded.unwrap();
    let mut expected = vec![9; 2 << 20];
    expected[..1 << 20].fill(0);
    for volume in [&volume, &open(&cluster.client, &name).await] {
        assert!(read_all(volume).await == expected);
        assert_eq!(volume.allocated(), MIB);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn write_after_discard_waits_for_the_object_only_since_1_0() {
    for generation in Generation::ALL {
        let cluster = Cluster::newest().await;
        let name = cluster.create("late", MIB).await;
        let (client, sent) = client_of(&cluster, generation).await;
        let volume = open(&client, &name).await;
        volume.write_at(0, pattern(9, 10)).await.unwrap();
        volume.discard(0, MIB).await.unwrap();
        sent.lock().unwrap().clear();
        volume.write_at(0, pattern(8, 10)).await.unwrap();
        let sent = sent.lock().unwrap();
        let looks = sent
            .iter()
            .any(|sent| sent.opcode == Opcode::ReadObj && sent.of_data);
        assert_eq!(looks, generation == Generation::V1_0, "{generation}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn hypervolume_of_0_8_is_read_only() {
    let cluster = Cluster::newest().await;
    let name = cluster
        .create_kind("hyper", |new| (new.size, new.hypervolume) = (8 * MIB, true))
        .await;
    let volume = open(&cluster.client, &name).await;
    volume.write_at(0, pattern(9, 10)).await.unwrap();
    for generation in [Generation::V0_8, Generation::V0_9] {
        let (client, _sent) = client_of(&cluster, generation).await;
        let volume = open(&client, &name).await;
        assert_eq!(volume.read_at(0, 10).await.unwrap(), pattern(9, 10));
        let written = volume.write_at(0, pattern(9, 10)).await;
        match generation {
            Generation::V0_8 => assert_eq!(written.unwrap_err().errno(), Errno::EROFS),
            _ => assert_eq!(written.unwrap(), 10),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn lock_is_taken_where_sheep_have_locks_or_may_have() {
    for (generation, flags, mode, expected) in [
        (
            Generation::V0_7,
            ClusterFlags::empty(),
            LockMode::Auto,
            Ok(0),
        ),
        (
            Generation::V0_8,
            ClusterFlags::empty(),
            LockMode::Auto,
            Ok(0),
        ),
        (
            Generation::V0_8,
            ClusterFlags::empty(),
            LockMode::Require,
            Err(()),
        ),
        // 0.9.0 and 0.9.1 lock without saying so.
        (
            Generation::V0_9,
            ClusterFlags::empty(),
            LockMode::Auto,
            Ok(1),
        ),
        (
            Generation::V0_9,
            ClusterFlags::empty(),
            LockMode::Require,
            Err(()),
        ),
        (
            Generation::V0_9,
            ClusterFlags::USE_LOCK,
            LockMode::Require,
            Ok(1),
        ),
        (
            Generation::V1_0,
            ClusterFlags::empty(),
            LockMode::Auto,
            Ok(0),
        ),
        (
            Generation::V1_0,
            ClusterFlags::USE_LOCK,
            LockMode::Auto,
            Ok(1),
        ),
    ] {
        let cluster = formatted(flags).await;
        let name = cluster.create("lock", MIB).await;
        let (client, sent) = client_of(&cluster, generation).await;
        let tree = Tree::new(client, TreeConfig::default().with_lock(mode));
        let attached = tree.attachments().attach(name.as_bytes()).await;
        let sent = sent.lock().unwrap();
        let locks = sent
            .iter()
            .filter(|sent| sent.opcode == Opcode::LockVdi)
            .count();
        let found = attached.map(|_| locks).map_err(|_| ());
        assert_eq!(found, expected, "{generation}, {flags:?}, {mode:?}");
    }
}
