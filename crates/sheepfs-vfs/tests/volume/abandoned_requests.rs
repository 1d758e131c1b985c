//! Requests that are executed after their caller has failed, timed out or been dropped.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use sheep_client::testing::{Fault, FaultTransport};
use sheep_client::unstable::Request;
use sheep_proto::{Opcode, ResultCode, VdiName};
use sheepfs_vfs::{BlockDevice as _, Volume};
use tokio::sync::Notify;

use crate::support::{
    Cluster, FENCE_INTERVAL, MIB, byte_at, delay_until, is_index_update, open, pattern,
};

#[tokio::test(flavor = "multi_thread")]
async fn write_failed_in_part_leaves_nothing_in_flight() {
    let cluster = Cluster::start().await;
    let object = cluster.object_len();
    let name = cluster.create("part", 4 * object).await;
    let release = Arc::new(Notify::new());
    let wait = Arc::clone(&release);
    let mut armed = true;
    // The create of the first object is refused, that of the second one is delayed.
    let client = cluster
        .client_through(|inner| {
            FaultTransport::new(inner, move |request| {
                if request.opcode() != Opcode::CreateAndWriteObj {
                    return None;
                }
                if request.operation().oid?.number() == 0 {
                    return Some(Fault::Refuse(ResultCode::NoSpace));
                }
                let wait = Arc::clone(&wait);
                std::mem::take(&mut armed)
                    .then(|| Fault::DelayUntil(Box::pin(async move { wait.notified().await })))
            })
        })
        .await;
    let volume = open(&client, &name).await;
    let mut first = Box::pin(volume.write_at(object - 4096, pattern(1, 8192)));
    assert!(futures_util::poll!(&mut first).is_pending());
    let second = tokio::spawn({
        let volume = Arc::clone(&volume);
        async move { volume.write_at(object + 65536, pattern(2, 4096)).await }
    });
    release.notify_one();
    assert_eq!(first.await.unwrap_err().errno(), nix::errno::Errno::ENOSPC);
    second.await.unwrap().unwrap();
    assert_eq!(byte_at(&cluster, &name, object + 65536).await, 2);
    assert_eq!(byte_at(&cluster, &name, object).await, 1);
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
    let object = cluster.object_len();
    for pick in [
        |request: &Request| request.opcode() == Opcode::CreateAndWriteObj,
        is_index_update,
    ] {
        let name = cluster.create("held-up", 4 * object).await;
        let short = Duration::from_millis(50);
        let (volume, release) = timing_out(&cluster, &name, pick, short).await;
        volume.write_at(0, pattern(1, 4096)).await.unwrap_err();
        let refused = volume.write_at(65536, pattern(2, 4096)).await.unwrap_err();
        assert_eq!(refused.errno(), nix::errno::Errno::EIO, "{refused}");
        // Other objects are not affected.
        volume.write_at(object, pattern(3, 4096)).await.unwrap();
        release.notify_one();
        while volume.write_at(65536, pattern(2, 4096)).await.is_err() {}
        assert_eq!(byte_at(&cluster, &name, 65536).await, 2);
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
    assert_eq!(byte_at(&cluster, &name, 65536).await, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn timeout_late_discard_removes_nothing() {
    let cluster = Cluster::start().await;
    let object = cluster.object_len();
    let name = cluster.create("late-hole", 4 * object).await;
    let clear = |request: &Request| {
        let clears = request.payload().iter().all(|&byte| byte == 0);
        request.opcode() == Opcode::DiscardObj || is_index_update(request) && clears
    };
    let (volume, release) = timing_out(&cluster, &name, clear, LONG).await;
    volume.write_at(0, pattern(1, 4096)).await.unwrap();
    volume.discard(0, object).await.unwrap_err();
    write_after_late_request(&volume, &release).await;
    assert_eq!(byte_at(&cluster, &name, 65536).await, 2);
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
