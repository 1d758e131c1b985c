//! Snapshots of an attached volume: under writers, between the requests of a write, and
//! while the volume is idle.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use sheep_client::VdiSelector;
use sheep_client::testing::{Fault, FaultTransport};
use sheep_proto::{ClusterFlags, Opcode, ResultCode};
use sheepfs_vfs::{BlockDevice as _, VolumeError};

use crate::support::{
    Cluster, FLUSH_AND_CLOSE, MIB, byte_at, data_object, formatted, is_index_update, open,
    open_snapshot, pattern, tag,
};

#[tokio::test(flavor = "multi_thread")]
async fn snapshot_under_writer_loses_no_acknowledged_write() {
    let cluster = Cluster::start().await;
    let name = cluster.create("snap-race", 16 * MIB).await;
    let volume = open(&cluster.client, &name).await;
    let stop = AtomicBool::new(false);
    let snapshots = async {
        for number in 0..12 {
            cluster.snapshot(&name, format!("t{number}")).await;
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
    // The head has the last acknowledged write of each stripe.
    let reopened = open(&cluster.client, &name).await;
    for (stripe, last) in (0..).zip(last) {
        let found = reopened.read_at(stripe * 700_001, 512).await.unwrap();
        assert_eq!(found, last.to_le_bytes().repeat(64), "stripe {stripe}");
    }
    for number in 0..12 {
        // A snapshot may have any of the writes, but only whole ones.
        let snapshot = open_snapshot(&cluster.client, &name, format!("t{number}")).await;
        for stripe in 0..20 {
            let found = snapshot.read_at(stripe * 700_001, 512).await.unwrap();
            assert!(
                found.chunks(8).all(|part| part == &found[..8]),
                "a torn write in t{number}"
            );
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn snapshot_followed_before_index_commit_migrates_object() {
    let cluster = Cluster::start().await;
    let object = cluster.object_len();
    let name = cluster.create("later", 2 * object).await;
    let before = open(&cluster.client, &name).await;
    before.write_at(object, pattern(1, 10)).await.unwrap();
    let (client, held, release) = cluster.client_held_at(is_index_update).await;
    let volume = open(&client, &name).await;
    let writer = tokio::spawn({
        let volume = Arc::clone(&volume);
        async move { volume.write_at(100, pattern(7, 5000)).await }
    });
    held.notified().await;
    cluster.snapshot(&name, "between").await;
    // Another write is refused and follows the head.
    volume.write_at(object, pattern(2, 10)).await.unwrap();
    release.notify_one();
    writer.await.unwrap().unwrap();
    let head = open(&cluster.client, &name).await;
    assert_eq!(head.read_at(100, 5000).await.unwrap(), pattern(7, 5000));
    assert_eq!(head.read_at(object, 10).await.unwrap(), pattern(2, 10));
}

#[tokio::test(flavor = "multi_thread")]
async fn snapshot_overwriting_index_commit_is_reconciled() {
    let cluster = Cluster::start().await;
    for end in FLUSH_AND_CLOSE {
        let name = cluster.create("lost", 2 * MIB).await;
        // The server acknowledges the commit, then writes the inode back without it.
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
        cluster.snapshot(&name, "between").await;
        end(&volume).await.unwrap();
        let head = open(&cluster.client, &name).await;
        assert_eq!(head.read_at(100, 5000).await.unwrap(), pattern(7, 5000));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn snapshot_is_read_only_with_fixed_end() {
    let cluster = Cluster::start().await;
    let object = cluster.object_len();
    let name = cluster.create("edges", object + 10).await;
    let volume = open(&cluster.client, &name).await;
    assert_eq!(volume.write_at(object, pattern(1, 100)).await.unwrap(), 10);
    assert!(matches!(
        volume.write_at(object + 10, pattern(1, 1)).await,
        Err(VolumeError::EndOfDevice(_))
    ));
    assert_eq!(volume.read_at(object + 10, 5).await.unwrap().len(), 0);
    assert_eq!(
        volume.read_at(object + 5, 500).await.unwrap(),
        pattern(1, 5)
    );
    assert_eq!(volume.seek_data(0).unwrap(), object);
    assert_eq!(volume.seek_hole(0).unwrap(), 0);
    assert_eq!(volume.seek_hole(object).unwrap(), object + 10);
    assert!(matches!(
        volume.seek_data(object + 10),
        Err(VolumeError::NoMoreData(_))
    ));
    assert_eq!(volume.allocated(), object);

    cluster.snapshot(&name, "ro").await;
    let snapshot = open_snapshot(&cluster.client, &name, "ro").await;
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
                (data_object(request).is_some() && request.opcode() != Opcode::ReadObj)
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
            cluster.snapshot(&name, format!("t{number}")).await;
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
                cluster.snapshot(&name, format!("t{number}")).await;
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
            assert_eq!(byte_at(cluster, &name, MIB).await, 2);
            let snapshot = open_snapshot(client, &name, "t3").await;
            assert_eq!(snapshot.read_at(MIB, 9).await.unwrap(), pattern(1, 9));
            volume.close().await.unwrap();
        }
    }
}
