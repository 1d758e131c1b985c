//! Requests that are executed after their caller has failed, timed out or been dropped.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use sheep_client::testing::{Fault, FaultTransport};
use sheep_client::unstable::{BoxFuture, Request};
use sheep_client::{Client, VdiSelector};
use sheep_proto::inode::VDI_SIZE_OFFSET;
use sheep_proto::{ClusterFlags, Oid, Opcode, ResultCode, VdiName};
use sheepfs_vfs::{BlockDevice as _, Volume, VolumeError, VolumeOptions};
use tokio::sync::Notify;

use crate::support::{
    Cluster, delay_until, formatted, is_index_update, open, open_version, pattern, tag,
};

const MIB: u64 = 1 << 20;

async fn in_cluster(cluster: &Cluster, name: &VdiName, offset: u64) -> u8 {
    let volume = open(&cluster.client, name).await;
    volume.read_at(offset, 1).await.unwrap()[0]
}

#[tokio::test(flavor = "multi_thread")]
async fn multi_client_migration_back_keeps_remote_writes() {
    let cluster = Cluster::start().await;
    let name = cluster.create("migrated", 4 * MIB).await;
    let here = open(&cluster.client, &name).await;
    let there = open(&cluster.client, &name).await;
    there.write_at(0, pattern(7, 8192)).await.unwrap();
    there.close().await.unwrap();
    // A write without a revalidation must not overwrite it either.
    here.write_at(4096, pattern(9, 4096)).await.unwrap();
    assert_eq!(in_cluster(&cluster, &name, 0).await, 7);
    there.write_at(2 * MIB, pattern(8, 100)).await.unwrap();
    here.revalidate().await.unwrap();
    assert_eq!(here.read_at(2 * MIB, 100).await.unwrap(), pattern(8, 100));
}

#[tokio::test(flavor = "multi_thread")]
async fn multi_client_reader_following_snapshots_changes_nothing() {
    for punch in [false, true] {
        let cluster = Cluster::start().await;
        let name = cluster.create("reader", 4 * MIB).await;
        let writer = open(&cluster.client, &name).await;
        writer.write_at(0, pattern(1, 1 << 20)).await.unwrap();
        let readers = [true, false].map(|read_only| {
            let options = VolumeOptions::default()
                .with_read_only(read_only)
                .with_lock(false);
            Volume::open(
                cluster.client.clone(),
                VdiSelector::working(name.clone()),
                options,
            )
        });
        let readers = futures_util::future::join_all(readers).await;
        cluster
            .client
            .vdi(&VdiSelector::working(name.clone()))
            .snapshot(&tag("s1"))
            .await
            .unwrap();
        if punch {
            writer.discard(0, MIB).await.unwrap();
        } else {
            writer.write_at(0, pattern(2, 1 << 20)).await.unwrap();
            cluster
                .client
                .vdi(&VdiSelector::working(name.clone()))
                .snapshot(&tag("s2"))
                .await
                .unwrap();
        }
        writer.flush().await.unwrap();
        let expected = if punch { 0 } else { 2 };
        for reader in readers {
            reader.unwrap().revalidate().await.unwrap();
            assert_eq!(in_cluster(&cluster, &name, 0).await, expected);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn write_failed_in_part_leaves_nothing_in_flight() {
    let cluster = Cluster::start().await;
    let name = cluster.create("part", 4 * MIB).await;
    let release = Arc::new(Notify::new());
    let wait = Arc::clone(&release);
    let armed = AtomicBool::new(true);
    let client = cluster
        .client_through(|inner| {
            let refusing = FaultTransport::new(inner, |request| {
                let create = request.opcode() == Opcode::CreateAndWriteObj;
                (create && request.operation().oid?.number() == 0)
                    .then_some(Fault::Refuse(ResultCode::NoSpace))
            });
            delay_until(Arc::new(refusing), move |request| {
                let create = request.opcode() == Opcode::CreateAndWriteObj;
                if !create || request.operation().oid?.number() == 0 {
                    return None;
                }
                if !armed.swap(false, Ordering::AcqRel) {
                    return None;
                }
                let wait = Arc::clone(&wait);
                let ready: BoxFuture<'static, ()> = Box::pin(async move { wait.notified().await });
                Some(ready)
            })
        })
        .await;
    let volume = open(&client, &name).await;
    let mut first = Box::pin(volume.write_at(MIB - 4096, pattern(1, 8192)));
    assert!(futures_util::poll!(&mut first).is_pending());
    let second = tokio::spawn({
        let volume = Arc::clone(&volume);
        async move { volume.write_at(MIB + 65536, pattern(2, 4096)).await }
    });
    release.notify_one();
    assert_eq!(first.await.unwrap_err().errno(), nix::errno::Errno::ENOSPC);
    second.await.unwrap().unwrap();
    assert_eq!(in_cluster(&cluster, &name, MIB + 65536).await, 2);
    assert_eq!(in_cluster(&cluster, &name, MIB).await, 1);
}

/// A volume with one request that times out, and is executed after the signal.
async fn timing_out(
    cluster: &Cluster,
    name: &VdiName,
    pick: fn(&Request) -> bool,
    waited: Duration,
) -> (Arc<Volume>, Arc<Notify>) {
    let release = Arc::new(Notify::new());
    let (mut armed, late) = (true, Arc::clone(&release));
    let client = cluster
        .client_through(|inner| {
            FaultTransport::new(inner, move |request| {
                if !pick(request) || !std::mem::take(&mut armed) {
                    return None;
                }
                let late = Arc::clone(&late);
                let until = Box::pin(async move { late.notified().await });
                Some(Fault::TimeOut { waited, until })
            })
        })
        .await;
    (open(&client, name).await, release)
}

/// Longer than any test runs.
const LONG: Duration = Duration::from_secs(600);

#[tokio::test(flavor = "multi_thread")]
async fn timeout_of_lock_holder_limits_other_writers() {
    let cluster = Cluster::start().await;
    for pick in [
        |request: &Request| request.opcode() == Opcode::CreateAndWriteObj,
        is_index_update,
    ] {
        let name = cluster.create("held-up", 4 * MIB).await;
        let short = Duration::from_millis(50);
        let (volume, release) = timing_out(&cluster, &name, pick, short).await;
        volume.write_at(0, pattern(1, 4096)).await.unwrap_err();
        let refused = volume.write_at(65536, pattern(2, 4096)).await.unwrap_err();
        assert_eq!(refused.errno(), nix::errno::Errno::EIO, "{refused}");
        // Other objects are not affected.
        volume.write_at(MIB, pattern(3, 4096)).await.unwrap();
        release.notify_one();
        while volume.write_at(65536, pattern(2, 4096)).await.is_err() {}
        assert_eq!(in_cluster(&cluster, &name, 65536).await, 2);
    }
}

/// Writes while an earlier request for the object is in flight, then releases that.
async fn write_after_late_request(volume: &Arc<Volume>, release: &Notify) {
    let mut second = Box::pin(volume.write_at(65536, pattern(2, 4096)));
    assert!(futures_util::poll!(&mut second).is_pending());
    release.notify_one();
    second.await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn timeout_late_create_overwrites_nothing() {
    let cluster = Cluster::start().await;
    let name = cluster.create("late-create", 4 * MIB).await;
    let create = |request: &Request| request.opcode() == Opcode::CreateAndWriteObj;
    let (volume, release) = timing_out(&cluster, &name, create, LONG).await;
    volume.write_at(0, pattern(1, 4096)).await.unwrap_err();
    write_after_late_request(&volume, &release).await;
    assert_eq!(in_cluster(&cluster, &name, 65536).await, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn timeout_late_discard_removes_nothing() {
    let cluster = Cluster::start().await;
    let name = cluster.create("late-hole", 4 * MIB).await;
    let clear = |request: &Request| {
        is_index_update(request) && request.payload().iter().all(|&byte| byte == 0)
    };
    let (volume, release) = timing_out(&cluster, &name, clear, LONG).await;
    volume.write_at(0, pattern(1, 4096)).await.unwrap();
    volume.discard(0, MIB).await.unwrap_err();
    write_after_late_request(&volume, &release).await;
    assert_eq!(in_cluster(&cluster, &name, 65536).await, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn lock_is_kept_when_impatient_stat_is_dropped() {
    let cluster = formatted(ClusterFlags::USE_LOCK).await;
    let name = cluster.create("slow-lock", 4 * MIB).await;
    let locks = AtomicUsize::new(0);
    let client = cluster
        .client_through(|inner| {
            FaultTransport::new(inner, move |request| {
                let second = request.opcode() == Opcode::LockVdi
                    && locks.fetch_add(1, Ordering::AcqRel) == 1;
                second.then_some(Fault::DelayResponse(Duration::from_millis(300)))
            })
        })
        .await;
    let volume = open(&client, &name).await;
    volume.write_at(0, pattern(1, 4096)).await.unwrap();
    cluster
        .client
        .vdi(&VdiSelector::working(name.clone()))
        .snapshot(&tag("s"))
        .await
        .unwrap();
    let impatient =
        tokio::time::timeout(Duration::from_millis(100), volume.revalidate_header()).await;
    assert!(impatient.is_err(), "the lock was not slow");
    volume.write_at(0, pattern(2, 4096)).await.unwrap();
    volume.close().await.unwrap();
    let lock = cluster.client.vdi(&VdiSelector::working(name)).lock().await;
    assert!(lock.is_ok(), "{lock:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn discard_before_detach_removes_no_later_write() {
    const OBJECTS: u64 = 32;
    let cluster = Cluster::start().await;
    let name = cluster.create("reattach", OBJECTS * MIB).await;
    for round in 1..4u8 {
        let volume = open(&cluster.client, &name).await;
        for object in 0..OBJECTS {
            volume
                .write_at(object * MIB, pattern(99, 512))
                .await
                .unwrap();
        }
        volume.discard(0, OBJECTS * MIB).await.unwrap();
        // Alternately without a close, as after a crash, and with one.
        if round % 2 == 0 {
            volume.close().await.unwrap();
        }
        drop(volume);
        let volume = open(&cluster.client, &name).await;
        for object in (0..OBJECTS).rev() {
            volume
                .write_at(object * MIB, pattern(round, 512))
                .await
                .unwrap();
        }
        for object in 0..OBJECTS {
            assert_eq!(
                volume.read_at(object * MIB, 4).await.unwrap(),
                pattern(round, 4)
            );
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn open_refuses_size_beyond_index() {
    let cluster = formatted(ClusterFlags::empty()).await;
    let name = cluster.create("huge", 4 * MIB).await;
    let selector = VdiSelector::working(name);
    let vid = cluster.client.vdi(&selector).lookup().await.unwrap();
    let huge = bytes::Bytes::copy_from_slice(&(1u64 << 62).to_le_bytes());
    // A C sheep takes it; ours does not, and the volume stays what it was.
    let options = VolumeOptions::default().with_lock(false);
    match cluster
        .client
        .objects()
        .write(Oid::inode(vid), VDI_SIZE_OFFSET, huge)
        .await
    {
        Ok(()) => {
            let refused = Volume::open(cluster.client.clone(), selector, options).await;
            assert!(matches!(refused, Err(VolumeError::TooLarge { .. })));
        }
        Err(error) => assert_eq!(error.code(), Some(ResultCode::InvalidParms)),
    }
}

/// A client with a failure of the first probe after an index update.
async fn failing_probe_client(cluster: &Cluster) -> Client {
    let armed = AtomicBool::new(true);
    cluster
        .client_through(|inner| {
            FaultTransport::new(inner, move |request| {
                let probe = request.opcode() == Opcode::WriteObj && request.payload().is_empty();
                (probe && armed.swap(false, Ordering::AcqRel))
                    .then_some(Fault::Refuse(ResultCode::Eio))
            })
        })
        .await
}

#[tokio::test(flavor = "multi_thread")]
async fn in_doubt_slot_is_hole_after_discard() {
    let cluster = Cluster::start().await;
    let name = cluster.create("doubt", 4 * MIB).await;
    let client = failing_probe_client(&cluster).await;
    let volume = open(&client, &name).await;
    volume.write_at(0, pattern(5, 4096)).await.unwrap_err();
    assert_eq!(volume.read_at(0, 4).await.unwrap(), pattern(5, 4));
    volume.discard(0, MIB).await.unwrap();
    assert_eq!(volume.read_at(0, 4).await.unwrap(), pattern(0, 4));
    volume.close().await.unwrap();
    assert_eq!(in_cluster(&cluster, &name, 0).await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn in_doubt_write_never_changes_after_first_read() {
    let cluster = Cluster::start().await;
    let name = cluster.create("doubt-copy", 4 * MIB).await;
    let before = open(&cluster.client, &name).await;
    before.write_at(0, pattern(1, 8192)).await.unwrap();
    cluster
        .client
        .vdi(&VdiSelector::working(name.clone()))
        .snapshot(&tag("s"))
        .await
        .unwrap();
    let client = failing_probe_client(&cluster).await;
    let volume = open(&client, &name).await;
    volume.write_at(0, pattern(5, 4096)).await.unwrap_err();
    // The outcome is unknown, but must not change after the first read.
    let seen = volume.read_at(0, 4096).await.unwrap();
    volume.write_at(4096, pattern(6, 4096)).await.unwrap();
    let again = volume.read_at(0, 4096).await.unwrap();
    assert!(again == seen, "{} became {}", seen[0], again[0]);
    assert_eq!(in_cluster(&cluster, &name, 0).await, seen[0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn snapshot_race_is_reconciled_by_close() {
    let cluster = Cluster::start().await;
    let name = cluster.create("detach", 2 * MIB).await;
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
    volume.flush().await.unwrap();
    cluster
        .client
        .vdi(&VdiSelector::working(name.clone()))
        .snapshot(&tag("between"))
        .await
        .unwrap();
    volume.close().await.unwrap();
    assert_eq!(in_cluster(&cluster, &name, 100).await, 7);
}

#[tokio::test(flavor = "multi_thread")]
async fn stale_vdi_fails_writes_and_flush() {
    let cluster = Cluster::start().await;
    let name = cluster.create("deleted", 4 * MIB).await;
    let volume = open(&cluster.client, &name).await;
    cluster
        .client
        .vdi(&VdiSelector::working(name))
        .delete()
        .await
        .unwrap();
    let refused = volume.write_at(0, pattern(1, 512)).await.unwrap_err();
    assert!(matches!(refused, VolumeError::Stale(_)), "{refused}");
    assert!(matches!(volume.flush().await, Err(VolumeError::Stale(_))));
}

/// Snapshots are rotated while a volume is attached and idle: the VDI that it has as its
/// head is a deleted snapshot by then.
#[tokio::test(flavor = "multi_thread")]
async fn snapshot_rotation_is_followed_by_idle_volume() {
    let clusters = [
        Cluster::start().await,
        formatted(ClusterFlags::USE_LOCK).await,
    ];
    for cluster in &clusters {
        let client = &cluster.client;
        for first_use in 0..7 {
            let name = cluster.create("rotation", 4 * MIB).await;
            let volume = open(client, &name).await;
            volume.write_at(0, pattern(1, 2 << 20)).await.unwrap();
            for number in 0..4 {
                let tag = tag(format!("t{number}"));
                client
                    .vdi(&VdiSelector::working(name.clone()))
                    .snapshot(&tag)
                    .await
                    .unwrap();
            }
            for number in 0..3 {
                let snapshot = VdiSelector::tag(name.clone(), tag(format!("t{number}")));
                client.vdi(&snapshot).delete().await.unwrap();
            }
            match first_use {
                0 => assert_eq!(volume.read_at(0, 9).await.unwrap(), pattern(1, 9)),
                1 => drop(volume.write_at(0, pattern(1, 9)).await.unwrap()),
                2 => drop(volume.write_at(3 * MIB, pattern(0, 9)).await.unwrap()),
                3 => volume.discard(2 * MIB, MIB).await.unwrap(),
                4 => volume.revalidate().await.unwrap(),
                5 => volume.revalidate_header().await.unwrap(),
                _ => volume.set_size(5 * MIB).await.unwrap(),
            }
            volume.write_at(MIB, pattern(2, 9)).await.unwrap();
            volume.flush().await.unwrap();
            let expected = [pattern(1, 1 << 20), pattern(2, 9), pattern(1, 9)].concat();
            let len = u32::try_from(expected.len()).unwrap();
            assert!(volume.read_at(0, len).await.unwrap() == expected);
            assert_eq!(in_cluster_read_only(cluster, &name, MIB).await, 2);
            let snapshot = VdiSelector::tag(name, tag("t3"));
            let snapshot = open_version(client, snapshot).await;
            assert_eq!(snapshot.read_at(MIB, 9).await.unwrap(), pattern(1, 9));
            volume.close().await.unwrap();
        }
    }
}

async fn in_cluster_read_only(cluster: &Cluster, name: &VdiName, offset: u64) -> u8 {
    let options = VolumeOptions::default()
        .with_read_only(true)
        .with_lock(false);
    let selector = VdiSelector::working(name.clone());
    let volume = Volume::open(cluster.client.clone(), selector, options);
    volume.await.unwrap().read_at(offset, 1).await.unwrap()[0]
}
