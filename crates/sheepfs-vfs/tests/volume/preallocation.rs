//! Preallocation for sequential writers.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use sheep_client::Client;
use sheep_client::testing::{Fault, FaultTransport};
use sheep_client::unstable::Request;
use sheep_proto::generation::Reclaim;
use sheep_proto::{ObjectIndex, Oid, Opcode, ResultCode, VdiName};
use sheepfs_vfs::{BlockDevice as _, Volume, VolumeError};
use tokio::sync::Notify;

use crate::snapshot_race::WriteStep;
use crate::support::{
    Cluster, End, FLUSH_AND_CLOSE, attached, data_object, open, open_snapshot, pattern, read_all,
    write_file,
};

/// Consecutive objects before the next one is preallocated.
const RUN: u64 = 16;

/// Bytes of an object.
fn object_len(volume: &Volume) -> u64 {
    1 << volume.info().object_shift
}

/// Begins objects, one after the other.
async fn begin(volume: &Arc<Volume>, objects: impl IntoIterator<Item = u64>) {
    for object in objects {
        let written = volume
            .write_at(object * object_len(volume), pattern(1, 100))
            .await;
        assert_eq!(written.unwrap(), 100);
    }
}

/// Allocated objects of the volume, once nothing is in flight.
async fn allocated(volume: &Arc<Volume>) -> u64 {
    volume.flush().await.unwrap();
    volume.allocated() / object_len(volume)
}

/// Checks that a volume holds what [`begin`] wrote to its first objects.
async fn assert_started(cluster: &Cluster, name: &VdiName, objects: u64) {
    let volume = open(&cluster.client, name).await;
    let bytes = read_all(&volume).await;
    for (object, bytes) in (0..).zip(bytes.chunks(cluster.objects_len(1))) {
        let (start, rest) = bytes.split_at(100);
        let expected = u8::from(object < objects);
        assert!(
            start.iter().all(|&byte| byte == expected),
            "object {object}"
        );
        assert!(rest.iter().all(|&byte| byte == 0), "object {object}");
    }
    volume.close().await.unwrap();
}

fn creates(request: &Request) -> bool {
    request.opcode() == Opcode::CreateAndWriteObj
}

/// A client, and how many objects it has made.
async fn counting(cluster: &Cluster) -> (Client, Arc<AtomicU64>) {
    let made = Arc::new(AtomicU64::new(0));
    let count = Arc::clone(&made);
    let client = cluster
        .client_through(|inner| {
            FaultTransport::new(inner, move |request| {
                count.fetch_add(u64::from(creates(request)), Ordering::Relaxed);
                None
            })
        })
        .await;
    (client, made)
}

#[tokio::test(flavor = "multi_thread")]
async fn preallocation_makes_next_object_of_sequential_writer() {
    for cluster in Cluster::each().await {
        let name = cluster.create("ahead", 24 * cluster.object_len()).await;
        let (client, made) = counting(&cluster).await;
        let volume = open(&client, &name).await;
        begin(&volume, 0..RUN - 1).await;
        assert_eq!(allocated(&volume).await, RUN - 1);
        for object in RUN - 1..RUN + 3 {
            let before = made.load(Ordering::Relaxed);
            begin(&volume, [object]).await;
            assert_eq!(allocated(&volume).await, object + 2);
            // Its own, and from then on only the one ahead.
            let expected = if object == RUN - 1 { 2 } else { 1 };
            let now = made.load(Ordering::Relaxed);
            assert_eq!(now - before, expected, "object {object}");
        }
        volume.close().await.unwrap();
        assert_started(&cluster, &name, RUN + 3).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn preallocation_tracks_several_writers_separately() {
    let cluster = Cluster::start().await;
    let name = cluster
        .create("ahead-several", 200 * cluster.object_len())
        .await;
    let volume = open(&cluster.client, &name).await;
    for object in 0..RUN {
        begin(&volume, (0..4).map(|writer| writer * 50 + object)).await;
    }
    assert_eq!(allocated(&volume).await, 4 * (RUN + 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn preallocation_ignores_random_writers() {
    let cluster = Cluster::start().await;
    let name = cluster
        .create("ahead-not", 100 * cluster.object_len())
        .await;
    let volume = open(&cluster.client, &name).await;
    // Every other object.
    begin(&volume, (0..20).map(|number| 2 * number)).await;
    assert_eq!(allocated(&volume).await, 20);
    // Backwards.
    begin(&volume, (60..90).rev()).await;
    assert_eq!(allocated(&volume).await, 50);
    // Into the middle of each.
    for object in 40..60 {
        let written = volume
            .write_at(object * object_len(&volume) + 512, pattern(1, 10))
            .await;
        assert_eq!(written.unwrap(), 10);
    }
    assert_eq!(allocated(&volume).await, 70);
    // Where the next object is there, and at the end of the volume.
    begin(&volume, 40..89).await;
    assert_eq!(allocated(&volume).await, 70);
    begin(&volume, 89..100).await;
    assert_eq!(allocated(&volume).await, 80);
}

#[tokio::test(flavor = "multi_thread")]
async fn preallocation_skips_writer_of_whole_objects() {
    let cluster = Cluster::start().await;
    let name = cluster
        .create("ahead-whole", 24 * cluster.object_len())
        .await;
    let volume = open(&cluster.client, &name).await;
    let whole = pattern(1, cluster.objects_len(1));
    for object in 0..RUN + 4 {
        let written = volume
            .write_at(object * object_len(&volume), whole.clone())
            .await;
        assert_eq!(written.unwrap() as usize, whole.len());
    }
    assert_eq!(allocated(&volume).await, RUN + 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn preallocation_copies_no_inherited_object() {
    let cluster = Cluster::start().await;
    let name = cluster
        .create("ahead-base", 24 * cluster.object_len())
        .await;
    let volume = open(&cluster.client, &name).await;
    for half in 0..2 {
        let start = half * 12 * cluster.object_len();
        let data = pattern(2, cluster.objects_len(12));
        volume.write_at(start, data).await.unwrap();
    }
    volume.close().await.unwrap();
    let clone = cluster.snapshot_and_clone(&name, "s").await;
    let (client, made) = counting(&cluster).await;
    let volume = open(&client, &clone).await;
    begin(&volume, 0..RUN + 4).await;
    volume.flush().await.unwrap();
    assert_eq!(made.load(Ordering::Relaxed), RUN + 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn preallocation_leaves_object_of_other_client_alone() {
    let cluster = Cluster::start().await;
    let name = cluster
        .create("ahead-other", 24 * cluster.object_len())
        .await;
    let volume = open(&cluster.client, &name).await;
    begin(&volume, 0..RUN - 1).await;
    // The volume has not revalidated its index.
    let other = open(&cluster.client, &name).await;
    begin(&other, [RUN]).await;
    begin(&volume, [RUN - 1]).await;
    assert_eq!(allocated(&volume).await, RUN + 1);
    assert_started(&cluster, &name, RUN + 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn preallocation_skips_object_pending_reclaim() {
    let cluster = Cluster::start().await;
    let name = cluster
        .create("ahead-lingers", 24 * cluster.object_len())
        .await;
    let volume = open(&cluster.client, &name).await;
    let next = Oid::data(volume.info().vid, ObjectIndex(16));
    let left_over = Request::create_object(next, 0, pattern(9, 100), None);
    cluster.client.send(left_over).await.unwrap();
    begin(&volume, 0..RUN).await;
    // Where objects go before the answer, one without a slot is the rest of a crash.
    let goes_late = cluster.generation.reclaim() == Reclaim::AfterAnswer;
    let expected = if goes_late { RUN } else { RUN + 1 };
    assert_eq!(allocated(&volume).await, expected);
    begin(&volume, [RUN]).await;
    volume.close().await.unwrap();
    assert_started(&cluster, &name, RUN + 1).await;
}

const WRITE_STEPS: [WriteStep; 3] = [WriteStep::Data, WriteStep::Commit, WriteStep::Probe];

/// A client that delays the request of that step for the object past the run, once the
/// switch is on; see [`Cluster::client_held_at`].
async fn held_client(
    cluster: &Cluster,
    step: WriteStep,
) -> (Client, Arc<AtomicBool>, Arc<Notify>, Arc<Notify>) {
    let armed = Arc::new(AtomicBool::new(false));
    let arm = Arc::clone(&armed);
    let (client, held, release) = cluster
        .client_held_at(move |request| {
            let before = data_object(request).is_some_and(|oid| u64::from(oid.number()) < RUN);
            step.matches(request) && !before && armed.load(Ordering::Acquire)
        })
        .await;
    (client, arm, held, release)
}

/// A volume with a preallocation in flight; its request waits for the signal.
async fn preallocating(cluster: &Cluster, step: WriteStep) -> (VdiName, Arc<Volume>, Arc<Notify>) {
    let name = cluster
        .create("ahead-step", 24 * cluster.object_len())
        .await;
    let (client, arm, held, release) = held_client(cluster, step).await;
    let volume = open(&client, &name).await;
    begin(&volume, 0..RUN - 1).await;
    // The last one of the run is there, so that only the next is to be made.
    let last = (RUN - 1) * object_len(&volume);
    volume.write_at(last + 4096, pattern(0, 1)).await.unwrap();
    arm.store(true, Ordering::Release);
    begin(&volume, [RUN - 1]).await;
    soon(held.notified()).await;
    (name, volume, release)
}

/// Awaits a background event, with a deadline.
async fn soon<T>(event: impl Future<Output = T>) -> T {
    let event = tokio::time::timeout(Duration::from_secs(20), event);
    event.await.expect("the event comes within the deadline")
}

/// Checks that something waits for the signal, and gives it.
async fn assert_waits_for<T>(release: &Notify, event: impl Future<Output = T>) -> T {
    tokio::pin!(event);
    let early = tokio::time::timeout(Duration::from_millis(50), &mut event);
    assert!(early.await.is_err(), "it does not wait");
    release.notify_one();
    soon(event).await
}

#[tokio::test(flavor = "multi_thread")]
async fn preallocation_in_flight_never_overwrites_write() {
    let cluster = Cluster::start().await;
    for step in WRITE_STEPS {
        let (name, volume, release) = preallocating(&cluster, step).await;
        assert_waits_for(&release, begin(&volume, [RUN])).await;
        volume.close().await.unwrap();
        assert_started(&cluster, &name, RUN + 1).await;
    }
}

/// Another host may write next, and a late create would overwrite its data.
#[tokio::test(flavor = "multi_thread")]
async fn preallocation_ends_before_flush_close_and_revalidate() {
    let [flush, close] = FLUSH_AND_CLOSE;
    let ends: [End; 3] = [flush, close, |volume| Box::pin(volume.revalidate())];
    let cluster = Cluster::start().await;
    for step in WRITE_STEPS {
        for end in ends {
            let (name, volume, release) = preallocating(&cluster, step).await;
            assert_waits_for(&release, end(&volume)).await.unwrap();
            let other = open(&cluster.client, &name).await;
            assert_eq!(allocated(&other).await, RUN + 1, "{step:?}");
            begin(&other, [RUN]).await;
            assert_started(&cluster, &name, RUN + 1).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn preallocation_ends_before_file_is_closed() {
    let cluster = Cluster::start().await;
    for page_cache in [false, true] {
        let name = cluster
            .create("ahead-file", 24 * cluster.object_len())
            .await;
        let (client, arm, held, release) = held_client(&cluster, WriteStep::Data).await;
        let (tree, file, mode) = attached(client, &name, page_cache).await;
        let handle = tree
            .files()
            .open(file, mode, tokio::time::Instant::now())
            .await
            .unwrap()
            .handle;
        arm.store(true, Ordering::Release);
        for object in 0..RUN {
            let data = pattern(1, 100);
            let written = soon(write_file(
                &tree,
                handle,
                object * cluster.object_len(),
                &data,
            ))
            .await;
            assert_eq!(written.unwrap(), 100);
        }
        // The flusher writes buffered data when it expires.
        soon(held.notified()).await;
        assert_waits_for(&release, tree.files().flush(handle))
            .await
            .unwrap();
        assert_started(&cluster, &name, RUN).await;
        tree.files().release(handle);
        tree.attachments().detach(name.as_bytes()).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn preallocation_in_flight_survives_snapshot() {
    let cluster = Cluster::start().await;
    for step in WRITE_STEPS {
        let (name, volume, release) = preallocating(&cluster, step).await;
        cluster.snapshot(&name, "s").await;
        release.notify_one();
        begin(&volume, [RUN, RUN + 1]).await;
        volume.close().await.unwrap();
        assert_started(&cluster, &name, RUN + 2).await;
        let snapshot = open_snapshot(&cluster.client, &name, "s").await;
        let behind = snapshot
            .read_at(RUN * object_len(&snapshot), 1 << 20)
            .await
            .unwrap();
        assert!(behind.iter().all(|&byte| byte == 0), "{step:?}");
    }
}

/// Preallocation starts only after the write that triggers it has completed, so a write
/// gets the last free space.
#[tokio::test(flavor = "multi_thread")]
async fn preallocation_leaves_last_free_space_to_writer() {
    let cluster = Cluster::start().await;
    let name = cluster
        .create("ahead-room", 24 * cluster.object_len())
        .await;
    let (held, release) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let (tell, wait) = (Arc::clone(&held), Arc::clone(&release));
    let preallocated = Arc::new(AtomicBool::new(false));
    let created = Arc::clone(&preallocated);
    let client = cluster
        .client_through(|inner| {
            FaultTransport::new(inner, move |request| {
                let index = u64::from(data_object(request)?.number());
                if !creates(request) || index < RUN - 1 {
                    return None;
                }
                if index == RUN {
                    created.store(true, Ordering::Release);
                    return None;
                }
                tell.notify_one();
                let wait = Arc::clone(&wait);
                Some(Fault::DelayUntil(Box::pin(async move {
                    wait.notified().await;
                })))
            })
        })
        .await;
    let volume = open(&client, &name).await;
    begin(&volume, 0..RUN - 1).await;
    let check = async {
        soon(held.notified()).await;
        tokio::time::sleep(Duration::from_millis(50)).await;
        assert!(!preallocated.load(Ordering::Acquire), "it took the space");
        release.notify_one();
    };
    tokio::join!(begin(&volume, [RUN - 1]), check);
    volume.close().await.unwrap();
    assert!(preallocated.load(Ordering::Acquire));
    assert_started(&cluster, &name, RUN).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn preallocation_failure_is_no_error_until_write() {
    let cluster = Cluster::start().await;
    let name = cluster
        .create("ahead-full", 24 * cluster.object_len())
        .await;
    let full = Arc::new(AtomicBool::new(true));
    let is_full = Arc::clone(&full);
    let client = cluster
        .client_through(|inner| {
            FaultTransport::new(inner, move |request| {
                let index = u64::from(data_object(request)?.number());
                (creates(request) && index >= RUN && is_full.load(Ordering::Acquire))
                    .then_some(Fault::Refuse(ResultCode::NoSpace))
            })
        })
        .await;
    let volume = open(&client, &name).await;
    begin(&volume, 0..RUN).await;
    assert_eq!(allocated(&volume).await, RUN);
    let refused = volume
        .write_at(RUN * object_len(&volume), pattern(1, 100))
        .await;
    let Err(VolumeError::Io { source, .. }) = refused else {
        panic!("{refused:?}");
    };
    assert_eq!(source.code(), Some(ResultCode::NoSpace));
    full.store(false, Ordering::Release);
    begin(&volume, RUN..RUN + 3).await;
    volume.close().await.unwrap();
    assert_started(&cluster, &name, RUN + 3).await;
}
