//! Snapshots at each step of a write: between any two of its requests, and while the
//! server itself is between the steps of the snapshot.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use futures_util::future::join_all;
use sheep_client::VdiSelector;
use sheep_client::testing::{Fault, FaultTransport};
use sheep_client::unstable::Request;
use sheep_proto::generation::Locking;
use sheep_proto::{ClusterFlags, Opcode, ResultCode, VdiName};
use sheepfs_vfs::{BlockDevice as _, Volume, VolumeOptions};
use tokio::sync::Notify;

use crate::support::{
    Cluster, MIB, data_object, formatted, is_index_update, open, open_reader, open_snapshot,
    pattern,
};

/// Range of the write under test.
const OFFSET: u64 = 100;
const LEN: usize = 5000;

/// State of the object before the write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Before {
    Absent,
    Inherited,
    Owned,
}

/// The request of the write that waits until the snapshots have been taken.
#[derive(Clone, Copy, Debug)]
pub(crate) enum WriteStep {
    /// The object's data; of one that is owned already, the whole write.
    Data,
    /// The commit of the slot.
    Commit,
    /// The probe whether the VDI is still the head.
    Probe,
}

impl WriteStep {
    pub(crate) fn matches(self, request: &Request) -> bool {
        let data = data_object(request).is_some() && request.opcode() != Opcode::ReadObj;
        match self {
            Self::Data => data && !request.payload().is_empty(),
            Self::Commit => is_index_update(request),
            Self::Probe => data && request.payload().is_empty(),
        }
    }
}

/// A VDI of two objects, the first one in state `before`.
async fn prepare(cluster: &Cluster, before: Before) -> VdiName {
    let name = cluster.create("step", 2 * MIB).await;
    if before == Before::Absent {
        return name;
    }
    let volume = open(&cluster.client, &name).await;
    volume.write_at(0, pattern(1, 1 << 20)).await.unwrap();
    volume.close().await.unwrap();
    if before == Before::Owned {
        return name;
    }
    cluster.snapshot_and_clone(&name, "parent").await
}

/// True if the volume has the whole write, false if it has nothing of it.
async fn find(volume: &Arc<Volume>, before: Before) -> bool {
    let around = u8::from(before != Before::Absent);
    let found = volume.read_at(0, 1 << 20).await.unwrap();
    let start = usize::try_from(OFFSET).unwrap();
    let (first, rest) = found.split_at(start);
    let (written, last) = rest.split_at(LEN);
    assert!(first.iter().chain(last).all(|&byte| byte == around));
    let there = written[0] == 7;
    let expected = if there { 7 } else { around };
    assert!(written.iter().all(|&byte| byte == expected), "a torn write");
    there
}

async fn snapshots_at(cluster: &Cluster, before: Before, step: WriteStep, count: u32) {
    let case = format!("{before:?}, {step:?}, {count} snapshots");
    let name = prepare(cluster, before).await;
    let (client, held, release) = cluster
        .client_held_at(move |request| step.matches(request))
        .await;
    let volume = open(&client, &name).await;
    let writer = tokio::spawn({
        let volume = Arc::clone(&volume);
        async move { volume.write_at(OFFSET, pattern(7, LEN)).await }
    });
    held.notified().await;
    for number in 0..count {
        cluster.snapshot(&name, format!("t{number}")).await;
    }
    release.notify_one();
    assert_eq!(writer.await.unwrap().unwrap() as usize, LEN, "{case}");

    // Visible immediately, to other clients, and after further writes.
    assert!(find(&volume, before).await, "{case}");
    let selector = VdiSelector::working(name.clone());
    let head = open_reader(&cluster.client, selector.clone()).await;
    assert!(find(&head, before).await, "{case}, acknowledged");
    volume.write_at(MIB, pattern(8, 10)).await.unwrap();
    volume.flush().await.unwrap();
    let head = open_reader(&cluster.client, selector.clone()).await;
    assert!(find(&head, before).await, "{case}, flushed");
    for number in 0..count {
        let snapshot = open_snapshot(&cluster.client, &name, format!("t{number}")).await;
        let there = find(&snapshot, before).await;
        // Data that is refused comes after every snapshot.
        assert!(!(there && matches!(step, WriteStep::Data)), "{case}");
    }
    volume.close().await.unwrap();
    if cluster.generation.locking() != Locking::Never {
        let lock = cluster.client.vdi(&selector).lock().await;
        cluster.client.inode(lock.unwrap()).unlock().await.unwrap();
    }
}

async fn snapshots_at_every_step(cluster: &Cluster) {
    let mut cases = Vec::new();
    for count in [1, 3] {
        for before in [Before::Absent, Before::Inherited] {
            for step in [WriteStep::Data, WriteStep::Commit, WriteStep::Probe] {
                cases.push(snapshots_at(cluster, before, step, count));
            }
        }
        cases.push(snapshots_at(cluster, Before::Owned, WriteStep::Data, count));
    }
    join_all(cases).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn snapshot_at_any_write_step_tears_nothing() {
    snapshots_at_every_step(&Cluster::start().await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn snapshot_at_any_write_step_keeps_head_locked() {
    snapshots_at_every_step(&formatted(ClusterFlags::USE_LOCK).await).await;
}

/// The server refuses data writes from its first step on; for a while the name still
/// resolves to the old VDI, which is no snapshot yet.
#[tokio::test(flavor = "multi_thread")]
async fn snapshot_in_progress_delays_write() {
    let cluster = Cluster::start().await;
    for before in [Before::Absent, Before::Inherited, Before::Owned] {
        let name = prepare(&cluster, before).await;
        let begun = Arc::new(AtomicBool::new(true));
        let refusing = Arc::clone(&begun);
        let asked = Arc::new(Notify::new());
        let tell = Arc::clone(&asked);
        let client = cluster
            .client_through(|inner| {
                FaultTransport::new(inner, move |request| {
                    if request.opcode() == Opcode::GetVdiInfo && refusing.load(Ordering::Acquire) {
                        tell.notify_one();
                    }
                    let data =
                        data_object(request).is_some() && request.opcode() != Opcode::ReadObj;
                    (data && refusing.load(Ordering::Acquire))
                        .then_some(Fault::Refuse(ResultCode::ReadOnly))
                })
            })
            .await;
        let options = VolumeOptions::default().with_lock(false);
        let selector = VdiSelector::working(name.clone());
        let volume = Volume::open(client, selector, options).await.unwrap();
        // The lookup of the open.
        asked.notified().await;
        let write = volume.write_at(OFFSET, pattern(7, LEN));
        let snapshot = async {
            asked.notified().await;
            cluster.snapshot(&name, "slow").await;
            begun.store(false, Ordering::Release);
        };
        let (written, ()) = tokio::join!(write, snapshot);
        written.unwrap();
        let head = open(&cluster.client, &name).await;
        assert!(find(&head, before).await, "{before:?}");
        let snapshot = open_snapshot(&cluster.client, &name, "slow").await;
        assert!(!find(&snapshot, before).await, "{before:?}");
    }
}
