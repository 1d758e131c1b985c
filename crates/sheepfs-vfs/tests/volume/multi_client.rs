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
use sheep_proto::{ClusterFlags, ObjectKind, Opcode, RequestBody, VdiName};
use sheepfs_vfs::{BlockDevice as _, Volume, VolumeError, VolumeOptions};
use tokio::sync::oneshot;

use crate::model::KINDS;
use crate::support::{Cluster, delay_until, formatted, open, pattern, tag, unique_name};

const MIB: u64 = 1 << 20;
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

/// Reads as a file system does: without a future.
async fn read(volume: &Arc<Volume>, offset: u64, len: u32) -> Result<Bytes, VolumeError> {
    let (done, read) = oneshot::channel();
    volume.submit_read(offset, len, move |result| drop(done.send(result)));
    read.await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn multi_client_reads_show_writes_into_holes() {
    for cluster in Cluster::each().await {
        for (what, kind) in KINDS {
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
    cluster
        .client
        .vdi(&VdiSelector::working(base.clone()))
        .snapshot(&tag("s"))
        .await
        .unwrap();
    let name = unique_name("clone");
    let parent = VdiSelector::tag(base, tag("s"));
    cluster.client.vdi(&parent).clone_to(&name).await.unwrap();
    name
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
        // And what both made of it is the same.
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
            let text = format!("s{round}");
            cluster
                .client
                .vdi(&VdiSelector::working(name.clone()))
                .snapshot(&tag(text))
                .await
                .unwrap();
            here.write_at(0, pattern(round, 4096)).await.unwrap();
            here.write_at(2 * MIB, pattern(round, 4096)).await.unwrap();
            tokio::time::sleep(HEAD_AGE).await;
            // Nothing but reads, and they tell.
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
    // The other one has never heard of these objects.
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
        "a VDI could have been changed until now"
    );
    volume.write_at(0, pattern(1, 4096)).await.unwrap();
    let written = volume.modified();
    assert!(written > attached);
    cluster
        .client
        .vdi(&VdiSelector::working(name.clone()))
        .snapshot(&tag("s"))
        .await
        .unwrap();
    let selector = VdiSelector::tag(name, tag("s"));
    let info = cluster.client.vdi(&selector).stat().await.unwrap();
    let options = VolumeOptions::default()
        .with_read_only(true)
        .with_lock(false);
    let snapshot = Volume::open(cluster.client.clone(), selector, options).await;
    let taken = SystemTime::UNIX_EPOCH + Duration::from_secs(info.snap_ctime >> 32);
    assert_eq!(snapshot.unwrap().modified(), taken);
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
    let RequestBody::Object(body) = request.header(0).body() else {
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
    for cluster in Cluster::each().await {
        for (what, kind) in KINDS {
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
    let hosts = [
        elsewhere(cluster, &name).await,
        elsewhere(cluster, &name).await,
    ];
    let all = u32::try_from(hosts[0].size()).unwrap();
    let hypervolume = hosts[0].info().hypervolume;
    let mut bytes = read(&hosts[0], 0, all).await.unwrap().to_vec();
    let mut snapshots = 0;
    for step in 0..60 {
        // There is one writer of a hypervolume's tree.
        let writer = if hypervolume { 0 } else { random.usize(0..2) };
        let size = bytes.len();
        let start = random.usize(0..=size);
        let len = random.usize(0..=size - start).min(2 << 20);
        match random.u8(0..100) {
            0..45 => {
                let mut data = vec![0; len];
                random.fill(&mut data);
                bytes[start..start + len].copy_from_slice(&data);
                if start < size {
                    let written = hosts[writer].write_at(start as u64, data.into()).await;
                    assert_eq!(written.unwrap() as usize, len);
                }
            }
            45..48 if !hypervolume && snapshots < 2 => {
                snapshots += 1;
                let text = format!("s{step}");
                cluster
                    .client
                    .vdi(&VdiSelector::working(name.clone()))
                    .snapshot(&tag(text))
                    .await
                    .unwrap();
                tokio::time::sleep(HEAD_AGE).await;
            }
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
