//! Index traffic: which slots are written, when, and how often.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::future::join_all;
use sheep_client::unstable::{BoxFuture, Request};
use sheep_client::{Client, VdiSelector};
use sheep_proto::btree::ROOT_WRITE_OFFSET;
use sheep_proto::limits::INODE_HEADER_LEN;
use sheep_proto::{Generation, ObjectIndex, ObjectKind, Oid, Opcode, RequestBody, Vid};
use tokio::sync::Notify;

use crate::model::{ModelTest, kinds};
use crate::support::{
    Cluster, MIB, delay_until, is_index_update, open, open_version, pattern, read_all, tag,
};
use sheepfs_vfs::BlockDevice as _;

const OBJECTS: u64 = 24;

/// Slots written, by VID and number, and requests they took.
#[derive(Default)]
struct Seen {
    slots: HashMap<(u32, u32), Vec<u32>>,
    requests: usize,
}

impl Seen {
    fn note(&mut self, request: &Request) {
        let oid = request.operation().oid;
        let RequestBody::Object(body) = request.header(Generation::V1_0).body() else {
            return;
        };
        let (offset, start) = (body.offset.get(), u32::try_from(INODE_HEADER_LEN).unwrap());
        let Some(oid) = oid.filter(|oid| oid.kind() == Some(ObjectKind::Inode)) else {
            return;
        };
        if request.opcode() != Opcode::WriteObj || offset < start {
            return;
        }
        self.requests += 1;
        let vid = oid.vid().unwrap().get();
        for (number, slot) in (0u32..).zip(request.payload().chunks_exact(4)) {
            let slot = u32::from_le_bytes(slot.try_into().unwrap());
            let index = (offset - start) / 4 + number;
            self.slots.entry((vid, index)).or_default().push(slot);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn index_commit_writes_changed_slots_once_in_runs() {
    let cluster = Cluster::start().await;
    let len = cluster.object_len();
    // A clone inherits all its objects, so each first write of an object commits a slot.
    let base = cluster.create("wire-base", OBJECTS * len).await;
    let volume = open(&cluster.client, &base).await;
    for half in 0..2 {
        let data = pattern(1, cluster.objects_len(OBJECTS / 2));
        volume
            .write_at(half * OBJECTS / 2 * len, data)
            .await
            .unwrap();
    }
    let name = cluster.snapshot_and_clone(&base, "s").await;
    let selector = VdiSelector::working(name.clone());
    let vid = cluster.client.vdi(&selector).lookup().await.unwrap().get();

    let seen = Arc::new(Mutex::new(Seen::default()));
    let log = Arc::clone(&seen);
    let client = cluster
        .client_through(|inner| {
            delay_until(inner, move |request| {
                log.lock().unwrap().note(request);
                // Slow enough for later commits to queue up and be written together.
                is_index_update(request).then(|| {
                    Box::pin(tokio::time::sleep(Duration::from_millis(200)))
                        as BoxFuture<'static, ()>
                })
            })
        })
        .await;
    let volume = open(&client, &name).await;
    // Concurrent writes of three parts of each object, but for every fourth object.
    let objects: Vec<u64> = (0..OBJECTS).filter(|object| object % 4 != 0).collect();
    let writes = objects.iter().flat_map(|&object| {
        (0..3u64).map({
            let volume = &volume;
            move |part| volume.write_at(object * len + part * 1000, pattern(2, 500))
        })
    });
    for written in join_all(writes).await {
        written.unwrap();
    }
    volume.discard(len, 2 * len).await.unwrap();
    volume.discard(4 * len, len).await.unwrap();

    // Each slot is set once, and cleared once if it was discarded, unless the sheep does
    // that.
    let by_sheep = cluster.generation.deletes_objects();
    let seen = seen.lock().unwrap();
    for (&(of, index), values) in &seen.slots {
        assert_eq!(of, vid, "an index of another VDI was written");
        let expected = match index {
            1 | 2 if !by_sheep => vec![vid, 0],
            4 => vec![0],
            _ => vec![vid],
        };
        assert_eq!(values, &expected, "slot {index}");
    }
    assert_eq!(seen.slots.len(), objects.len() + usize::from(!by_sheep));
    assert!(seen.requests < objects.len(), "{} requests", seen.requests);
}

/// Violations found in index updates.
type Violations = Arc<Mutex<Vec<String>>>;

/// A client that checks each index update before it is sent: each slot in it changes, to
/// the VDI itself or to none, and the object exists.
async fn checked_client(cluster: &Cluster) -> (Client, Violations) {
    let violations = Violations::default();
    let (found, outside) = (Arc::clone(&violations), cluster.client.clone());
    let client = cluster
        .client_through(|inner| {
            delay_until(inner, move |request| {
                if !is_index_update(request) {
                    return None;
                }
                let (request, found, outside) =
                    (request.clone(), Arc::clone(&found), outside.clone());
                let ready: BoxFuture<'static, ()> = Box::pin(async move {
                    let wrong = check_update(&outside, &request).await;
                    found.lock().unwrap().extend(wrong);
                });
                Some(ready)
            })
        })
        .await;
    (client, violations)
}

async fn check_update(outside: &Client, request: &Request) -> Vec<String> {
    let vid = request
        .operation()
        .oid
        .and_then(Oid::vid)
        .expect("an inode's");
    let RequestBody::Object(body) = request.header(Generation::V1_0).body() else {
        panic!("an index update has a place in an object");
    };
    let first = (body.offset.get() - u32::try_from(INODE_HEADER_LEN).unwrap()) / 4;
    let new: Vec<_> = request
        .payload()
        .chunks_exact(4)
        .map(|slot| Vid::new(u32::from_le_bytes(slot.try_into().unwrap())))
        .collect();
    let count = u32::try_from(new.len()).unwrap();
    let old = outside
        .inode(vid)
        .read_slots(ObjectIndex(first), count)
        .await;
    let mut violations = Vec::new();
    for ((index, old), new) in (first..).zip(old.unwrap()).zip(new) {
        let slot = format!("slot {index} of {vid}, {old:?} -> {new:?}");
        if old == new {
            violations.push(format!("{slot}: no change"));
        }
        if let Some(owner) = new {
            let oid = Oid::data(vid, ObjectIndex(index));
            if owner != vid {
                violations.push(format!("{slot}: the owner is another VDI"));
            } else if outside.objects().read(oid, 0, 1).await.is_err() {
                violations.push(format!("{slot}: the object does not exist"));
            }
        }
    }
    violations
}

#[tokio::test(flavor = "multi_thread")]
async fn index_commit_never_repeats_slot_or_precedes_object() {
    let cluster = Cluster::start().await;
    for (what, kind) in kinds(&cluster) {
        let seed = fastrand::u64(..);
        println!("{what}, seed {seed}");
        let (client, violations) = checked_client(&cluster).await;
        let subject = ModelTest::create(&cluster, client, seed, kind, false);
        subject.await.work().await;
        assert_eq!(*violations.lock().unwrap(), [""; 0], "{what}, seed {seed}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn index_commit_repeats_no_slot_under_snapshots() {
    let cluster = Cluster::start().await;
    let name = cluster.create("wire-many", OBJECTS * MIB).await;
    let (client, violations) = checked_client(&cluster).await;
    let volume = open(&client, &name).await;
    let writers = join_all((0..OBJECTS).map(async |object| {
        for round in 0..8u8 {
            for part in 0..3 {
                let offset = object * MIB + part * 100_000;
                volume.write_at(offset, pattern(round, 500)).await.unwrap();
            }
            if (object + u64::from(round)) % 4 == 0 {
                volume.discard(object * MIB, MIB).await.unwrap();
            }
        }
    }));
    let snapshots = async {
        for number in 0..6 {
            cluster.snapshot(&name, format!("t{number}")).await;
        }
    };
    tokio::join!(writers, snapshots);
    assert_eq!(*violations.lock().unwrap(), [""; 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn read_sends_no_changes() {
    let cluster = Cluster::start().await;
    // A head, its snapshot, a clone and a hypervolume, with 100 bytes of data in all but the
    // last.
    let name = cluster.create("wire-read", 8 * MIB + 5).await;
    let writer = open(&cluster.client, &name).await;
    writer.write_at(MIB, pattern(1, 100)).await.unwrap();
    let clone = cluster.snapshot_and_clone(&name, "s").await;
    let snapshot = VdiSelector::tag(name.clone(), tag("s"));
    let mut selectors = vec![
        VdiSelector::working(name),
        snapshot,
        VdiSelector::working(clone),
    ];
    if cluster.generation.writes_hypervolumes() {
        let hyper = cluster.create_kind("wire-read-hyper", |new| {
            (new.size, new.hypervolume) = (20 * MIB, true);
        });
        selectors.push(VdiSelector::working(hyper.await));
    }

    // Records every request that could change the cluster.
    let changes = Arc::new(Mutex::new(Vec::new()));
    let log = Arc::clone(&changes);
    let client = cluster
        .client_through(|inner| {
            delay_until(inner, move |request| {
                let reads = [
                    Opcode::ReadObj,
                    Opcode::GetVdiInfo,
                    Opcode::LockVdi,
                    Opcode::GetCacheInfo,
                ];
                if !reads.contains(&request.opcode()) {
                    log.lock().unwrap().push(request.operation());
                }
                None
            })
        })
        .await;
    // Every operation that only reads.
    for selector in selectors {
        let volume = open_version(&client, selector).await;
        let bytes = read_all(&volume).await;
        let written = bytes.iter().filter(|&&byte| byte == 1).count();
        assert_eq!(written, if volume.info().hypervolume { 0 } else { 100 });
        volume.seek_data(0).ok();
        volume.revalidate_header().await.unwrap();
        volume.revalidate().await.unwrap();
        volume.flush().await.unwrap();
    }
    assert!(changes.lock().unwrap().is_empty(), "{changes:?}");
}

/// A write of slots, or of the root of an index tree.
fn is_slot_or_root_write(request: &Request) -> bool {
    let header = request.header(Generation::V1_0);
    let RequestBody::Object(body) = header.body() else {
        return false;
    };
    let kind = request.operation().oid.and_then(Oid::kind);
    request.opcode() == Opcode::WriteObj
        && kind == Some(ObjectKind::Inode)
        && body.offset.get() >= ROOT_WRITE_OFFSET
}

/// Writes to the first object and crashes after the create, before the commit.
async fn crash_before_commit(cluster: &Cluster, name: &sheep_proto::VdiName) {
    let arrived = Arc::new(Notify::new());
    let tell = Arc::clone(&arrived);
    let client = cluster
        .client_through(|inner| {
            delay_until(inner, move |request| {
                is_slot_or_root_write(request).then(|| {
                    tell.notify_one();
                    Box::pin(std::future::pending()) as BoxFuture<'static, ()>
                })
            })
        })
        .await;
    let volume = open(&client, name).await;
    let write = volume.write_at(100, pattern(9, 5000));
    tokio::select! {
        written = write => panic!("{written:?} without an index"),
        () = arrived.notified() => {}
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn crash_before_index_commit_exposes_nothing() {
    let cluster = Cluster::start().await;
    let fresh = cluster.create("torn", 2 * MIB).await;
    let parent = cluster.create("torn-parent", 2 * MIB).await;
    let volume = open(&cluster.client, &parent).await;
    volume.write_at(0, pattern(1, 1 << 20)).await.unwrap();
    let clone = cluster.snapshot_and_clone(&parent, "s").await;
    let mut each = vec![(fresh, 0), (clone, 1)];
    if cluster.generation.writes_hypervolumes() {
        let hyper = cluster.create_kind("torn-hyper", |new| {
            (new.size, new.hypervolume) = (8 * MIB, true);
        });
        each.push((hyper.await, 0));
    }
    join_all(each.iter().map(async |(name, before)| {
        crash_before_commit(&cluster, name).await;
        let volume = open(&cluster.client, name).await;
        let found = volume.read_at(0, 1 << 20).await.unwrap();
        assert!(found == pattern(*before, 1 << 20), "{name}");
        // Nor does the next write expose bytes of the orphan.
        volume.write_at(8192, pattern(2, 100)).await.unwrap();
        let again = open(&cluster.client, name).await;
        let found = again.read_at(0, 1 << 20).await.unwrap();
        assert!(found[..8192] == pattern(*before, 8192), "{name}");
        assert!(found[8192..8292] == pattern(2, 100), "{name}");
        assert!(
            found[8292..] == pattern(*before, (1 << 20) - 8292),
            "{name}"
        );
    }))
    .await;
}
