//! Races of writers, snapshots and late requests.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use crate::support::{
    Cluster, FENCE_INTERVAL, delay_until, is_index_update, open, open_version, pattern, read_all,
    tag, unique_name,
};
use sheep_client::VdiSelector;
use sheep_client::testing::{Fault, FaultTransport};
use sheep_client::unstable::Request;
use sheep_proto::{ObjectKind, Opcode, ResultCode};
use sheepfs_vfs::{BlockDevice as _, VolumeError};
use tokio::sync::Notify;

const MIB: u64 = 1 << 20;
const WRITERS: u8 = 32;

/// Writes from many tasks, each its own byte in its own stripe of each object.
async fn race(volume: &Arc<sheepfs_vfs::Volume>, objects: u64) {
    let stripe = MIB / u64::from(WRITERS);
    let mut writers = tokio::task::JoinSet::new();
    for writer in 0..WRITERS {
        let volume = Arc::clone(volume);
        writers.spawn(async move {
            for object in 0..objects {
                let offset = object * MIB + u64::from(writer) * stripe;
                let data = pattern(writer + 1, usize::try_from(stripe).unwrap());
                volume.write_at(offset, data).await.unwrap();
            }
        });
    }
    while let Some(done) = writers.join_next().await {
        done.unwrap();
    }
}

fn assert_all_there(content: &[u8]) {
    let stripe =
        content.len() / (content.len() / usize::try_from(MIB).unwrap()) / usize::from(WRITERS);
    for (number, piece) in content.chunks(stripe).enumerate() {
        let writer = u8::try_from(number % usize::from(WRITERS)).unwrap() + 1;
        assert!(
            piece.iter().all(|&byte| byte == writer),
            "a write of writer {writer} is lost"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn race_on_fresh_objects_loses_nothing() {
    let cluster = Cluster::start().await;
    let name = cluster.create("race", 4 * MIB).await;
    let volume = open(&cluster.client, &name).await;
    race(&volume, 4).await;
    assert_all_there(&read_all(&volume).await);
    assert_all_there(&read_all(&open(&cluster.client, &name).await).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn race_on_inherited_objects_loses_nothing() {
    let cluster = Cluster::start().await;
    let name = cluster.create("race-base", 4 * MIB).await;
    let volume = open(&cluster.client, &name).await;
    volume.write_at(0, pattern(0xee, 4 << 20)).await.unwrap();
    cluster
        .client
        .vdi(&VdiSelector::working(name.clone()))
        .snapshot(&tag("base"))
        .await
        .unwrap();
    let clone = unique_name("race-clone");
    cluster
        .client
        .vdi(&VdiSelector::tag(name.clone(), tag("base")))
        .clone_to(&clone)
        .await
        .unwrap();
    let volume = open(&cluster.client, &clone).await;
    race(&volume, 4).await;
    assert_all_there(&read_all(&open(&cluster.client, &clone).await).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn snapshot_under_writer_loses_no_acknowledged_write() {
    let cluster = Cluster::start().await;
    let name = cluster.create("snap-race", 16 * MIB).await;
    let volume = open(&cluster.client, &name).await;
    let stop = AtomicBool::new(false);
    let snapshots = async {
        for number in 0..12 {
            cluster
                .client
                .vdi(&VdiSelector::working(name.clone()))
                .snapshot(&tag(format!("t{number}")))
                .await
                .unwrap();
        }
        stop.store(true, Ordering::Relaxed);
    };
    // Each stripe holds the number of its last write, which only grows.
    let write = async |stripe: u64| {
        let mut last = 0u64;
        while !stop.load(Ordering::Relaxed) || last == 0 {
            last += 1;
            let data = last.to_le_bytes().repeat(64);
            volume
                .write_at(stripe * 700_001, data.into())
                .await
                .unwrap();
        }
        last
    };
    let writers = futures_util::future::join_all((0..20).map(write));
    let (last, ()) = tokio::join!(writers, snapshots);
    let reopened = open(&cluster.client, &name).await;
    for (stripe, last) in (0..).zip(last) {
        let found = reopened.read_at(stripe * 700_001, 512).await.unwrap();
        assert_eq!(found, last.to_le_bytes().repeat(64), "stripe {stripe}");
    }
    for number in 0..12 {
        let selector = VdiSelector::tag(name.clone(), tag(format!("t{number}")));
        let snapshot = open_version(&cluster.client, selector).await;
        for stripe in 0..20 {
            let found = snapshot.read_at(stripe * 700_001, 512).await.unwrap();
            assert!(
                found.chunks(8).all(|part| part == &found[..8]),
                "a torn write in t{number}"
            );
        }
    }
}

/// The connection is lost, but the sheep executes the create later.
#[tokio::test(flavor = "multi_thread")]
async fn fence_keeps_late_create_from_overwriting_write() {
    let cluster = Cluster::start().await;
    let name = cluster.create("made-late", MIB).await;
    let (late, first) = (cluster.client.clone(), AtomicBool::new(true));
    let client = cluster
        .client_through(|inner| {
            let faulty = FaultTransport::new(inner, move |request| {
                let creates = request.opcode() == Opcode::CreateAndWriteObj;
                if !creates || !first.swap(false, Ordering::AcqRel) {
                    return None;
                }
                let (late, oid) = (late.clone(), request.operation().oid?);
                tokio::spawn(async move {
                    tokio::time::sleep(FENCE_INTERVAL / 3).await;
                    let again = Request::create_object(oid, 0, pattern(1, 100), None);
                    late.send(again).await.unwrap();
                });
                Some(Fault::LoseBefore)
            });
            delay_until(Arc::new(faulty), |_request| None)
        })
        .await;
    let volume = open(&client, &name).await;
    let lost = volume.write_at(0, pattern(1, 100)).await.unwrap_err();
    let lost = sheepfs_vfs::Chain(&lost).to_string();
    assert!(lost.contains("lost sheep"), "{lost}");
    volume.write_at(500, pattern(2, 100)).await.unwrap();
    tokio::time::sleep(FENCE_INTERVAL).await;
    let other = open(&cluster.client, &name).await;
    assert_eq!(other.read_at(500, 100).await.unwrap(), pattern(2, 100));
}

/// A volume that delays its next index update; see [`Cluster::client_held_at`].
async fn with_late_index_update(
    cluster: &Cluster,
    name: &sheep_proto::VdiName,
) -> (Arc<sheepfs_vfs::Volume>, Arc<Notify>, Arc<Notify>) {
    let (client, held, release) = cluster.client_held_at(is_index_update).await;
    (open(&client, name).await, held, release)
}

#[tokio::test(flavor = "multi_thread")]
async fn snapshot_before_index_commit_is_reconciled() {
    let cluster = Cluster::start().await;
    let name = cluster.create("late", 2 * MIB).await;
    let (volume, held, release) = with_late_index_update(&cluster, &name).await;
    let writer = tokio::spawn({
        let volume = Arc::clone(&volume);
        async move { volume.write_at(100, pattern(7, 5000)).await }
    });
    held.notified().await;
    cluster
        .client
        .vdi(&VdiSelector::working(name.clone()))
        .snapshot(&tag("between"))
        .await
        .unwrap();
    release.notify_one();
    assert_eq!(writer.await.unwrap().unwrap(), 5000);
    let head = open(&cluster.client, &name).await;
    assert_eq!(head.read_at(100, 5000).await.unwrap(), pattern(7, 5000));
}

#[tokio::test(flavor = "multi_thread")]
async fn snapshot_followed_before_index_commit_migrates_object() {
    let cluster = Cluster::start().await;
    let name = cluster.create("later", 2 * MIB).await;
    let before = open(&cluster.client, &name).await;
    before.write_at(MIB, pattern(1, 10)).await.unwrap();
    let (volume, held, release) = with_late_index_update(&cluster, &name).await;
    let writer = tokio::spawn({
        let volume = Arc::clone(&volume);
        async move { volume.write_at(100, pattern(7, 5000)).await }
    });
    held.notified().await;
    cluster
        .client
        .vdi(&VdiSelector::working(name.clone()))
        .snapshot(&tag("between"))
        .await
        .unwrap();
    // Another write is refused and follows the head.
    volume.write_at(MIB, pattern(2, 10)).await.unwrap();
    release.notify_one();
    writer.await.unwrap().unwrap();
    let head = open(&cluster.client, &name).await;
    assert_eq!(head.read_at(100, 5000).await.unwrap(), pattern(7, 5000));
    assert_eq!(head.read_at(MIB, 10).await.unwrap(), pattern(2, 10));
}

#[tokio::test(flavor = "multi_thread")]
async fn snapshot_overwriting_index_commit_is_reconciled() {
    let cluster = Cluster::start().await;
    let name = cluster.create("lost", 2 * MIB).await;
    // The server acknowledges it, then writes the inode back without it.
    let mut armed = true;
    let client = cluster
        .client_through(|inner| {
            FaultTransport::new(inner, move |request| {
                let lost = is_index_update(request) && std::mem::take(&mut armed);
                lost.then_some(Fault::Refuse(ResultCode::Success))
            })
        })
        .await;
    let volume = open(&client, &name).await;
    volume.write_at(100, pattern(7, 5000)).await.unwrap();
    cluster
        .client
        .vdi(&VdiSelector::working(name.clone()))
        .snapshot(&tag("between"))
        .await
        .unwrap();
    volume.flush().await.unwrap();
    let head = open(&cluster.client, &name).await;
    assert_eq!(head.read_at(100, 5000).await.unwrap(), pattern(7, 5000));
}

#[tokio::test(flavor = "multi_thread")]
async fn stale_vdi_is_never_read_as_another() {
    let cluster = Cluster::start().await;
    let name = cluster.create("gone", MIB).await;
    let volume = open(&cluster.client, &name).await;
    volume.write_at(0, pattern(1, 100)).await.unwrap();
    cluster
        .client
        .vdi(&VdiSelector::working(name.clone()))
        .snapshot(&tag("one"))
        .await
        .unwrap();
    volume.write_at(0, pattern(2, 100)).await.unwrap();
    cluster
        .client
        .vdi(&VdiSelector::tag(name.clone(), tag("one")))
        .rollback()
        .await
        .unwrap();
    assert!(matches!(
        volume.read_at(0, 100).await,
        Err(VolumeError::Stale(_))
    ));
    assert!(matches!(
        volume.write_at(0, pattern(3, 1)).await,
        Err(VolumeError::Stale(_))
    ));
    let again = open(&cluster.client, &name).await;
    assert_eq!(again.read_at(0, 100).await.unwrap(), pattern(1, 100));
    volume.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn snapshot_is_read_only_with_fixed_end() {
    let cluster = Cluster::start().await;
    let name = cluster.create("edges", MIB + 10).await;
    let volume = open(&cluster.client, &name).await;
    assert_eq!(volume.write_at(MIB, pattern(1, 100)).await.unwrap(), 10);
    assert!(matches!(
        volume.write_at(MIB + 10, pattern(1, 1)).await,
        Err(VolumeError::EndOfDevice(_))
    ));
    assert_eq!(volume.read_at(MIB + 10, 5).await.unwrap().len(), 0);
    assert_eq!(volume.read_at(MIB + 5, 500).await.unwrap(), pattern(1, 5));
    assert_eq!(volume.seek_data(0).unwrap(), MIB);
    assert_eq!(volume.seek_hole(0).unwrap(), 0);
    assert_eq!(volume.seek_hole(MIB).unwrap(), MIB + 10);
    assert!(matches!(
        volume.seek_data(MIB + 10),
        Err(VolumeError::NoMoreData(_))
    ));
    assert_eq!(volume.allocated(), MIB);

    cluster
        .client
        .vdi(&VdiSelector::working(name.clone()))
        .snapshot(&tag("ro"))
        .await
        .unwrap();
    let selector = VdiSelector::tag(name, tag("ro"));
    let snapshot = open_version(&cluster.client, selector).await;
    assert!(matches!(
        snapshot.write_at(0, pattern(1, 1)).await,
        Err(VolumeError::ReadOnly(_))
    ));
}

#[tokio::test(flavor = "multi_thread")]
async fn snapshot_flag_on_head_fails_read_only() {
    let cluster = Cluster::start().await;
    let name = cluster.create("frozen", MIB).await;
    let client = cluster
        .client_through(|inner| {
            FaultTransport::new(inner, |request| {
                let data =
                    request.operation().oid.and_then(|oid| oid.kind()) == Some(ObjectKind::Data);
                (data && request.opcode() != Opcode::ReadObj)
                    .then_some(Fault::Refuse(ResultCode::ReadOnly))
            })
        })
        .await;
    let volume = open(&client, &name).await;
    let refused = volume.write_at(0, pattern(1, 1)).await.unwrap_err();
    assert!(matches!(refused, VolumeError::HeadReadOnly(_)), "{refused}");
    assert_eq!(refused.errno() as i32, 5);
}

#[tokio::test(flavor = "multi_thread")]
async fn snapshot_storm_stops_no_writer() {
    const WRITES: u64 = 6;
    const SNAPSHOTS: u32 = 500;
    let cluster = Cluster::start().await;
    let name = cluster.create("snap-storm", 4 * MIB).await;
    let volume = open(&cluster.client, &name).await;
    let done = AtomicUsize::new(0);
    let write = async |stripe: u64| {
        for number in 1..=WRITES {
            let data = number.to_le_bytes().repeat(64);
            let written = volume.write_at(stripe * MIB + 7, data.into()).await;
            written.unwrap();
        }
        done.fetch_add(1, Ordering::Relaxed);
    };
    let snapshots = async {
        for number in 0..SNAPSHOTS {
            let tag = tag(format!("t{number}"));
            cluster
                .client
                .vdi(&VdiSelector::working(name.clone()))
                .snapshot(&tag)
                .await
                .unwrap();
            if done.load(Ordering::Relaxed) == 4 {
                return number;
            }
        }
        panic!("{WRITES} writes took more than {SNAPSHOTS} snapshots");
    };
    let writers = futures_util::future::join_all((0..4).map(write));
    let (_, number) = tokio::join!(writers, snapshots);
    println!("{WRITES} writes of each took {number} snapshots");
    let head = open(&cluster.client, &name).await;
    for stripe in 0..4 {
        let found = head.read_at(stripe * MIB + 7, 512).await.unwrap();
        assert_eq!(found, WRITES.to_le_bytes().repeat(64), "stripe {stripe}");
    }
}
