//! Several clients of one VDI, without locks: what one has written, the others read.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use futures_util::future::join_all;
use sheep_client::unstable::Request;
use sheep_client::{Client, NewVdi, VdiSelector};
use sheep_proto::inode::SLOT_LEN;
use sheep_proto::limits::INODE_HEADER_LEN;
use sheep_proto::{ClusterFlags, Generation, ObjectKind, Opcode, RequestBody, VdiName};
use sheepfs_vfs::{BlockDevice as _, Volume, VolumeError, VolumeOptions};
use tokio::sync::oneshot;

use crate::model::kinds;
use crate::support::{
    Cluster, MIB, byte_at, delay_until, formatted, open, open_reader, pattern, tag,
};

/// After another client's snapshot reads may be as old as this, and so may be
/// stat(2) and lseek(2) in any case.
const HEAD_AGE: Duration = Duration::from_secs(1);

/// A volume of the same VDI on another host.
async fn elsewhere(cluster: &Cluster, name: &VdiName) -> Arc<Volume> {
    let options = VolumeOptions::default().with_lock(false);
    let selector = VdiSelector::working(name.clone());
    let client = cluster.another_client().await;
    Volume::open(client, selector, options).await.unwrap()
}

/// Reads as a file system does: with a completion.
async fn read(volume: &Arc<Volume>, offset: u64, len: u32) -> Result<Bytes, VolumeError> {
    let (done, read) = oneshot::channel();
    volume.submit_read(offset, len, move |result| drop(done.send(result)));
    read.await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn multi_client_reads_show_writes_into_holes() {
    for cluster in Cluster::each().await {
        for (what, kind) in kinds(&cluster) {
            let name = cluster.create_kind("holes", kind).await;
            let (here, there) = (
                elsewhere(&cluster, &name).await,
                elsewhere(&cluster, &name).await,
            );
            let size = here.size();
            let all = u32::try_from(size).unwrap();
            let hole = read(&there, 0, all).await.unwrap();
            assert!(hole.iter().all(|&byte| byte == 0), "{what}");
            let offsets = (0..size).step_by(300_000);
            for (number, offset) in (1u8..).zip(offsets) {
                let len = usize::try_from((size - offset).min(5000)).unwrap();
                here.write_at(offset, pattern(number, len)).await.unwrap();
                let count = u32::try_from(len).unwrap();
                let found = read(&there, offset, count).await.unwrap();
                assert_eq!(found, pattern(number, len), "{what} at {offset}");
            }
            // Across objects, too.
            let found = read(&there, 0, all).await.unwrap();
            assert_eq!(found, read(&here, 0, all).await.unwrap(), "{what}");
        }
    }
}

/// A clone of a volume full of ones.
async fn clone_of_ones(cluster: &Cluster, size: u64) -> VdiName {
    let base = cluster.create("ones", size).await;
    let volume = open(&cluster.client, &base).await;
    let ones = pattern(1, usize::try_from(size).unwrap());
    volume.write_at(0, ones).await.unwrap();
    volume.close().await.unwrap();
    cluster.snapshot_and_clone(&base, "s").await
}

#[tokio::test(flavor = "multi_thread")]
async fn multi_client_reads_show_writes_to_a_clone() {
    for cluster in Cluster::each().await {
        let name = clone_of_ones(&cluster, 4 * MIB).await;
        let (here, there) = (
            elsewhere(&cluster, &name).await,
            elsewhere(&cluster, &name).await,
        );
        for object in 0..4 {
            let at = object * MIB;
            assert_eq!(read(&there, at, 100).await.unwrap(), pattern(1, 100));
            here.write_at(at, pattern(2, 50)).await.unwrap();
            let found = read(&there, at, 100).await.unwrap();
            assert_eq!(found, [pattern(2, 50), pattern(1, 50)].concat());
        }
        // Both clients read the same bytes.
        there.write_at(MIB + 50, pattern(3, 10)).await.unwrap();
        let found = read(&here, MIB, 70).await.unwrap();
        let expected = [pattern(2, 50), pattern(3, 10), pattern(1, 10)].concat();
        assert_eq!(found, expected);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn multi_client_reads_follow_snapshot_within_a_second() {
    for cluster in Cluster::each().await {
        let name = cluster.create("followed", 4 * MIB).await;
        let here = elsewhere(&cluster, &name).await;
        here.write_at(0, pattern(1, 1 << 20)).await.unwrap();
        let there = elsewhere(&cluster, &name).await;
        assert_eq!(read(&there, 0, 4).await.unwrap(), pattern(1, 4));
        for round in 2..4u8 {
            cluster.snapshot(&name, format!("s{round}")).await;
            here.write_at(0, pattern(round, 4096)).await.unwrap();
            here.write_at(2 * MIB, pattern(round, 4096)).await.unwrap();
            tokio::time::sleep(HEAD_AGE).await;
            // Reads alone make the volume follow.
            assert_eq!(read(&there, 0, 4).await.unwrap(), pattern(round, 4));
            assert_eq!(read(&there, 2 * MIB, 4).await.unwrap(), pattern(round, 4));
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn multi_client_reads_fail_once_vdi_is_deleted() {
    let cluster = Cluster::start().await;
    let name = cluster.create("gone", 4 * MIB).await;
    let there = elsewhere(&cluster, &name).await;
    read(&there, 0, 4).await.unwrap();
    let selector = VdiSelector::working(name.clone());
    cluster.client.vdi(&selector).delete().await.unwrap();
    tokio::time::sleep(HEAD_AGE).await;
    let error = read(&there, 0, 4).await.unwrap_err();
    assert!(matches!(error, VolumeError::Stale(_)), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn multi_client_allocation_shows_within_a_second() {
    for hyper in [false, true] {
        let cluster = Cluster::start().await;
        if hyper && !cluster.generation.writes_hypervolumes() {
            println!("there are no hypervolumes on sheep {}", cluster.generation);
            continue;
        }
        let name = cluster
            .create_kind("allocation", |new: &mut NewVdi| {
                (new.size, new.hypervolume) = (64 * MIB, hyper);
                new.object_shift = (!hyper).then_some(22);
            })
            .await;
        let (here, there) = (
            elsewhere(&cluster, &name).await,
            elsewhere(&cluster, &name).await,
        );
        let attached = there.modified();
        there.refresh().await.unwrap();
        assert_eq!(there.allocated(), 0);
        here.write_at(8 * MIB, pattern(1, 4096)).await.unwrap();
        tokio::time::sleep(HEAD_AGE).await;
        there.refresh().await.unwrap();
        assert_eq!(there.allocated(), 4 * MIB, "hypervolume: {hyper}");
        assert_eq!(there.seek_data(0).unwrap(), 8 * MIB);
        assert_eq!(there.seek_hole(8 * MIB).unwrap(), 12 * MIB);
        // A backup by time of modification must not skip it.
        assert!(there.modified() > attached);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn multi_client_discard_takes_what_others_wrote() {
    let cluster = Cluster::start().await;
    let name = cluster.create("discarded", 8 * MIB).await;
    let (here, there) = (
        elsewhere(&cluster, &name).await,
        elsewhere(&cluster, &name).await,
    );
    here.write_at(0, pattern(1, 8 << 20)).await.unwrap();
    // The other client has not read the slots of these objects.
    there.discard(MIB / 2, 5 * MIB).await.unwrap();
    let mut expected = vec![1; 8 << 20];
    expected[1 << 19..(1 << 19) + (5 << 20)].fill(0);
    let volume = elsewhere(&cluster, &name).await;
    assert_eq!(read(&volume, 0, 8 << 20).await.unwrap(), expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn mtime_is_no_earlier_than_attach() {
    let cluster = Cluster::start().await;
    let name = cluster.create("time", 4 * MIB).await;
    tokio::time::sleep(Duration::from_millis(20)).await;
    let before = SystemTime::now();
    let volume = open(&cluster.client, &name).await;
    let attached = volume.modified();
    assert!(
        attached >= before,
        "the VDI may have changed until the attach"
    );
    volume.write_at(0, pattern(1, 4096)).await.unwrap();
    let written = volume.modified();
    assert!(written > attached);
    cluster.snapshot(&name, "s").await;
    let selector = VdiSelector::tag(name, tag("s"));
    let info = cluster.client.vdi(&selector).stat().await.unwrap();
    let snapshot = open_reader(&cluster.client, selector).await;
    let taken = SystemTime::UNIX_EPOCH + Duration::from_secs(info.snap_ctime >> 32);
    assert_eq!(snapshot.modified(), taken);
}

/// A client, and how many reads of an index it has sent.
async fn counted(cluster: &Cluster) -> (Client, Arc<AtomicUsize>) {
    let count = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&count);
    let client = cluster
        .client_through(|inner| {
            delay_until(inner, move |request| {
                if !is_index_read(request) {
                    return None;
                }
                counter.fetch_add(1, Ordering::AcqRel);
                // Long enough for other reads to come.
                Some(Box::pin(tokio::time::sleep(Duration::from_millis(20))))
            })
        })
        .await;
    (client, count)
}

fn is_index_read(request: &Request) -> bool {
    let inode = request
        .operation()
        .oid
        .is_some_and(|oid| oid.kind() == Some(ObjectKind::Inode));
    let RequestBody::Object(body) = request.header(Generation::V1_0).body() else {
        return false;
    };
    let index = body.offset.get() >= u32::try_from(INODE_HEADER_LEN).unwrap();
    inode && index && request.opcode() == Opcode::ReadObj
}

#[tokio::test(flavor = "multi_thread")]
async fn multi_client_reads_of_holes_share_queries() {
    let cluster = Cluster::start().await;
    let name = cluster.create("shared", 64 * MIB).await;
    let (client, count) = counted(&cluster).await;
    let options = VolumeOptions::default().with_lock(false);
    let selector = VdiSelector::working(name.clone());
    let volume = Volume::open(client, selector, options).await.unwrap();
    let before = count.load(Ordering::Acquire);
    let reads = (0..64).map(|object| read(&volume, object * MIB, 4096));
    for found in join_all(reads).await {
        assert_eq!(found.unwrap(), pattern(0, 4096));
    }
    let questions = count.load(Ordering::Acquire) - before;
    assert!((1..=8).contains(&questions), "{questions} for 64 reads");
    const { assert!(SLOT_LEN * 64 < 1024) };
}

#[tokio::test(flavor = "multi_thread")]
async fn lock_holder_trusts_cached_index() {
    let cluster = formatted(ClusterFlags::USE_LOCK).await;
    let name = cluster.create("locked", 8 * MIB).await;
    let (client, count) = counted(&cluster).await;
    let volume = open(&client, &name).await;
    let before = count.load(Ordering::Acquire);
    for object in 0..8 {
        let found = read(&volume, object * MIB, 4096).await.unwrap();
        assert_eq!(found, pattern(0, 4096));
    }
    assert_eq!(count.load(Ordering::Acquire), before);
    volume.close().await.unwrap();
}

/// Two hosts that take turns, at random, on holes and clones and after snapshots.
#[tokio::test(flavor = "multi_thread")]
async fn multi_client_turns_match_a_model() {
    for cluster in Cluster::each_generation().await {
        for (what, kind) in kinds(&cluster) {
            let seed = fastrand::u64(..);
            println!("{what}, seed {seed}");
            let name = cluster.create_kind("turns", kind).await;
            take_turns(&cluster, name, fastrand::Rng::with_seed(seed)).await;
        }
        let seed = fastrand::u64(..);
        println!("a clone, seed {seed}");
        let name = clone_of_ones(&cluster, 4 * MIB).await;
        take_turns(&cluster, name, fastrand::Rng::with_seed(seed)).await;
    }
}

async fn take_turns(cluster: &Cluster, name: VdiName, mut random: fastrand::Rng) {
    // Two hosts, and the bytes that both must read.
    let hosts = [
        elsewhere(cluster, &name).await,
        elsewhere(cluster, &name).await,
    ];
    let all = u32::try_from(hosts[0].size()).unwrap();
    let hypervolume = hosts[0].info().hypervolume;
    let mut bytes = read(&hosts[0], 0, all).await.unwrap().to_vec();
    let mut snapshots = 0;
    for step in 0..60 {
        // The index tree of a hypervolume supports only one writer.
        let writer = if hypervolume { 0 } else { random.usize(0..2) };
        let size = bytes.len();
        let start = random.usize(0..=size);
        let len = random.usize(0..=size - start).min(2 << 20);
        match random.u8(0..100) {
            // A write by one host, or the only writer.
            0..45 => {
                let mut data = vec![0; len];
                random.fill(&mut data);
                bytes[start..start + len].copy_from_slice(&data);
                if start < size {
                    let written = hosts[writer].write_at(start as u64, data.into()).await;
                    assert_eq!(written.unwrap() as usize, len);
                }
            }
            // A snapshot, which both hosts follow after the revalidation interval.
            45..48 if !hypervolume && snapshots < 2 => {
                snapshots += 1;
                cluster.snapshot(&name, format!("s{step}")).await;
                tokio::time::sleep(HEAD_AGE).await;
            }
            // A read by both hosts.
            _ => {
                let count = u32::try_from(len).unwrap();
                for host in &hosts {
                    let found = read(host, start as u64, count).await.unwrap();
                    assert!(found == bytes[start..start + len], "step {step}");
                }
            }
        }
    }
    for host in &hosts {
        assert!(read(host, 0, all).await.unwrap() == bytes, "at the end");
        host.close().await.unwrap();
    }
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
    assert_eq!(byte_at(&cluster, &name, 0).await, 7);
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
        let readers = [
            open_reader(&cluster.client, VdiSelector::working(name.clone())).await,
            elsewhere(&cluster, &name).await,
        ];
        cluster.snapshot(&name, "s1").await;
        if punch {
            writer.discard(0, MIB).await.unwrap();
        } else {
            writer.write_at(0, pattern(2, 1 << 20)).await.unwrap();
            cluster.snapshot(&name, "s2").await;
        }
        writer.flush().await.unwrap();
        let expected = if punch { 0 } else { 2 };
        for reader in readers {
            reader.revalidate().await.unwrap();
            assert_eq!(byte_at(&cluster, &name, 0).await, expected);
        }
    }
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

#[tokio::test(flavor = "multi_thread")]
async fn stale_vdi_is_never_read_as_another() {
    let cluster = Cluster::start().await;
    let name = cluster.create("gone", MIB).await;
    let volume = open(&cluster.client, &name).await;
    volume.write_at(0, pattern(1, 100)).await.unwrap();
    cluster.snapshot(&name, "one").await;
    volume.write_at(0, pattern(2, 100)).await.unwrap();
    cluster
        .client
        .vdi(&VdiSelector::tag(name.clone(), tag("one")))
        .rollback()
        .await
        .unwrap();
    if cluster.generation.reuses_vids() {
        // The new head has the VID of the old one, whose objects stay.
        let deadline = tokio::time::Instant::now() + Duration::from_secs(20);
        while let Ok(found) = volume.read_at(0, 100).await {
            assert_eq!(found, pattern(2, 100));
            assert!(tokio::time::Instant::now() < deadline);
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
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
