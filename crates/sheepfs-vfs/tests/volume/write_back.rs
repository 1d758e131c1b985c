//! Write-back: writes that are acknowledged before they are on the cluster.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use fastrand::Rng;
use nix::errno::Errno;
use sheep_client::Client;
use sheep_client::testing::{Fault, FaultTransport};
use sheep_client::unstable::{BoxFuture, Request};
use sheep_proto::{Opcode, ResultCode, VdiName};
use sheepfs_vfs::{BlockDevice as _, TreeConfig, Volume, VolumeError};
use tokio::sync::{oneshot, watch};
use tokio::time::Instant;

use crate::support::{
    Cluster, FLUSH_AND_CLOSE, MIB, attached, attached_as, data_object, delay_until, open,
    open_snapshot, pattern, read_all, write_file,
};

const SMALL: u64 = 4096;
/// Longest wait for a background write-back.
const LIMIT: Duration = Duration::from_secs(20);

/// Submits a buffered write; the receiver gets its completion.
fn begin(
    volume: &Arc<Volume>,
    offset: u64,
    data: Bytes,
) -> oneshot::Receiver<Result<u32, VolumeError>> {
    let (done, taken) = oneshot::channel();
    volume
        .writer()
        .submit_write(offset, &data, move |result| drop(done.send(result)));
    taken
}

async fn write_buffered(
    volume: &Arc<Volume>,
    offset: u64,
    data: Bytes,
) -> Result<u32, VolumeError> {
    begin(volume, offset, data).await.unwrap()
}

fn is_data_write(request: &Request) -> bool {
    let writes = [Opcode::WriteObj, Opcode::CreateAndWriteObj];
    data_object(request).is_some() && writes.contains(&request.opcode())
}

/// A VDI with all objects allocated.
async fn filled(cluster: &Cluster, stem: &str, size: u64) -> VdiName {
    let name = cluster.create(stem, size).await;
    let volume = open(&cluster.client, &name).await;
    let data = pattern(1, usize::try_from(size).unwrap());
    volume.write_at(0, data).await.unwrap();
    volume.close().await.unwrap();
    name
}

/// The bytes as another client reads them.
async fn read_back(cluster: &Cluster, name: &VdiName) -> Vec<u8> {
    let volume = open(&cluster.client, name).await;
    read_all(&volume).await
}

#[tokio::test(flavor = "multi_thread")]
async fn write_back_coalesces_small_sequential_writes() {
    let cluster = Cluster::start().await;
    let name = filled(&cluster, "behind-row", 2 * MIB).await;
    let writes = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&writes);
    let client = cluster
        .client_through(|inner| {
            FaultTransport::new(inner, move |request| {
                count.fetch_add(usize::from(is_data_write(request)), Ordering::SeqCst);
                None
            })
        })
        .await;
    let volume = open(&client, &name).await;
    for block in 0..256 {
        let taken = write_buffered(&volume, block * SMALL, pattern(7, 4096)).await;
        assert_eq!(taken.unwrap(), 4096);
    }
    volume.flush().await.unwrap();
    let sent = writes.load(Ordering::SeqCst);
    assert!(sent < 16, "{sent} writes for one mebibyte in small pieces");
    let found = read_back(&cluster, &name).await;
    assert!(found[..1 << 20].iter().all(|&byte| byte == 7));
    assert!(found[1 << 20..].iter().all(|&byte| byte == 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn write_back_expires_without_sync() {
    let cluster = Cluster::start().await;
    let name = filled(&cluster, "behind-idle", MIB).await;
    let volume = open(&cluster.client, &name).await;
    write_buffered(&volume, 8192, pattern(9, 100))
        .await
        .unwrap();
    let other = open(&cluster.client, &name).await;
    let written = async {
        while other.read_at(8192, 100).await.unwrap() != pattern(9, 100) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(LIMIT, written)
        .await
        .expect("it is written without a sync");
}

#[tokio::test(flavor = "multi_thread")]
async fn write_back_throttles_fast_writer() {
    let cluster = Cluster::start().await;
    let name = filled(&cluster, "behind-fast", 64 * MIB).await;
    let (open_gate, gate) = watch::channel(false);
    let client = cluster
        .client_through(|inner| {
            delay_until(inner, move |request| {
                let mut gate = gate.clone();
                is_data_write(request).then(|| {
                    Box::pin(async move {
                        gate.wait_for(|&open| open).await.unwrap();
                    }) as BoxFuture<'static, ()>
                })
            })
        })
        .await;
    let volume = open(&client, &name).await;
    let mut answers = Vec::new();
    for mebibyte in 0..64 {
        answers.push(begin(&volume, mebibyte * MIB, pattern(3, 1 << 20)));
    }
    answers.retain_mut(|answer| answer.try_recv().is_err());
    assert!(
        (32..64).contains(&answers.len()),
        "{} of 64 writes wait",
        answers.len()
    );
    open_gate.send(true).unwrap();
    for answer in answers {
        assert_eq!(answer.await.unwrap().unwrap(), 1 << 20);
    }
    volume.flush().await.unwrap();
    let found = read_back(&cluster, &name).await;
    assert!(found.iter().all(|&byte| byte == 3));
}

/// A client with data writes that fail with NO_SPACE while the switch is on.
async fn failing_client(cluster: &Cluster) -> (Client, Arc<AtomicBool>) {
    let failing = Arc::new(AtomicBool::new(true));
    let fails = Arc::clone(&failing);
    let client = cluster
        .client_through(|inner| {
            FaultTransport::new(inner, move |request| {
                (is_data_write(request) && fails.load(Ordering::SeqCst))
                    .then_some(Fault::Refuse(ResultCode::NoSpace))
            })
        })
        .await;
    (client, failing)
}

#[tokio::test(flavor = "multi_thread")]
async fn write_back_error_makes_later_writes_synchronous() {
    let cluster = Cluster::start().await;
    let name = filled(&cluster, "behind-failing", MIB).await;
    let (client, failing) = failing_client(&cluster).await;
    let volume = open(&client, &name).await;
    let (writer, other) = (volume.writer(), volume.writer());
    write_buffered(&volume, 0, pattern(5, 4096)).await.unwrap();
    for writer in [&writer, &other] {
        let error = writer.sync().await.unwrap_err();
        assert_eq!(error.errno(), Errno::ENOSPC);
        // Each writer gets the error once.
        writer.check().unwrap();
        writer.sync().await.unwrap();
    }
    // The error was reported, so the device and a new writer do not get it.
    volume.flush().await.unwrap();
    volume.writer().sync().await.unwrap();
    let refused = write_buffered(&volume, 4096, pattern(5, 4096)).await;
    assert_eq!(refused.unwrap_err().errno(), Errno::ENOSPC);

    failing.store(false, Ordering::SeqCst);
    for block in 0..3 {
        let data = pattern(6, 4096);
        write_buffered(&volume, block * SMALL, data).await.unwrap();
    }
    writer.sync().await.unwrap();
    volume.close().await.unwrap();
    let found = read_back(&cluster, &name).await;
    assert_eq!(found[..3 * 4096], [6; 3 * 4096]);
}

#[tokio::test(flavor = "multi_thread")]
async fn write_back_error_is_reported_once_per_handle() {
    let cluster = Cluster::start().await;
    // A write that is acknowledged, and fails when it is written back.
    let name = filled(&cluster, "behind-handles", MIB).await;
    let (client, failing) = failing_client(&cluster).await;
    let (tree, file, mode) = attached(client, &name, true).await;
    let writer = tree
        .files()
        .open(file, mode, Instant::now())
        .await
        .unwrap()
        .handle;
    let other = tree
        .files()
        .open(file, mode, Instant::now())
        .await
        .unwrap()
        .handle;
    let data = pattern(5, 4096);
    write_file(&tree, writer, 0, &data).await.unwrap();

    // The first handle that syncs does not consume the error of the other.
    for handle in [other, writer] {
        // A flush reports the error without consuming it; a sync consumes it.
        for _ in 0..2 {
            let said = tree.files().flush(handle).await.unwrap_err();
            assert_eq!(said.errno(), Errno::ENOSPC);
        }
        let said = tree.files().sync(handle).await.unwrap_err();
        assert_eq!(said.errno(), Errno::ENOSPC);
        tree.files().flush(handle).await.unwrap();
        tree.files().sync(handle).await.unwrap();
    }
    // A later handle does not get it.
    let later = tree
        .files()
        .open(file, mode, Instant::now())
        .await
        .unwrap()
        .handle;
    tree.files().flush(later).await.unwrap();
    tree.files().sync(later).await.unwrap();
    for handle in [writer, other, later] {
        tree.files().release(handle);
    }
    failing.store(false, Ordering::SeqCst);
    tree.attachments().detach(name.as_bytes()).await.unwrap();
}

/// Without a writer that has reported it, the device itself reports the error.
#[tokio::test(flavor = "multi_thread")]
async fn write_back_error_returned_by_flush_and_close() {
    let cluster = Cluster::start().await;
    for end in FLUSH_AND_CLOSE {
        let name = filled(&cluster, "lost", MIB).await;
        let (client, failing) = failing_client(&cluster).await;
        let volume = open(&client, &name).await;
        write_buffered(&volume, 0, pattern(5, 4096)).await.unwrap();
        let error = end(&volume).await.unwrap_err();
        assert_eq!(error.errno(), Errno::ENOSPC);
        failing.store(false, Ordering::SeqCst);
        volume.close().await.unwrap();
        assert_eq!(read_back(&cluster, &name).await[..4096], [1; 4096]);
    }
}

/// What `-o sync` promises of a mount with page cache.
#[tokio::test(flavor = "multi_thread")]
async fn write_through_is_on_the_cluster_when_acknowledged() {
    let cluster = Cluster::start().await;
    for write_through in [true, false] {
        let name = filled(&cluster, "through", MIB).await;
        let config = TreeConfig::default()
            .with_page_cache(true)
            .with_write_through(write_through);
        let client = cluster.another_client().await;
        let (tree, file, mode) = attached_as(config, client, &name).await;
        let opened = tree.files().open(file, mode, Instant::now()).await.unwrap();
        assert!(!opened.direct_io);
        let data = pattern(5, 4096);
        write_file(&tree, opened.handle, 0, &data).await.unwrap();
        let found = read_back(&cluster, &name).await[0];
        assert_eq!(found, if write_through { 5 } else { 1 });
        tree.files().release(opened.handle);
        tree.attachments().detach(name.as_bytes()).await.unwrap();
    }
}

#[tokio::test]
async fn write_back_reports_end_of_device_immediately() {
    let cluster = Cluster::start().await;
    let name = cluster.create("behind-end", 5000).await;
    let volume = open(&cluster.client, &name).await;
    assert_eq!(
        write_buffered(&volume, 4096, pattern(1, 4096))
            .await
            .unwrap(),
        904
    );
    let refused = write_buffered(&volume, 5000, pattern(1, 1))
        .await
        .unwrap_err();
    assert_eq!(refused.errno(), Errno::ENOSPC);
    assert_eq!(write_buffered(&volume, 0, Bytes::new()).await.unwrap(), 0);
    volume.close().await.unwrap();
    let found = read_back(&cluster, &name).await;
    assert_eq!(found[4096..], [1; 904]);
}

/// Sequential and random writes of both kinds, reads, holes, snapshots and
/// remounts against bytes in memory.
#[tokio::test(flavor = "multi_thread")]
async fn write_back_matches_bytes_in_memory() {
    for cluster in Cluster::each().await {
        for seed in 0..6 {
            println!("seed {seed}");
            check_against_bytes(&cluster, &mut Rng::with_seed(seed)).await;
        }
    }
}

async fn check_against_bytes(cluster: &Cluster, random: &mut Rng) {
    const SIZE: usize = (5 << 20) + 777;
    let name = cluster.create("behind-model", SIZE as u64).await;
    let mut volume = open(&cluster.client, &name).await;
    let mut bytes = vec![0; SIZE];
    let mut at = 0;
    for step in 0..300 {
        // Mostly where the last write ended, often close to it.
        let offset = match random.u8(..8) {
            0 => random.usize(..SIZE),
            1 => at.max(9000) - random.usize(..9000),
            _ => at % SIZE,
        };
        let longest = if random.u8(..20) == 0 {
            2 << 20
        } else {
            20_000
        };
        let len = random.usize(1..longest).min(SIZE - offset);
        // Buffered and direct writes, reads, holes, flushes, snapshots and remounts.
        let range = offset..offset + len;
        match random.u8(..100) {
            0..70 => {
                let data = pattern(random.u8(..), len);
                let taken = write_buffered(&volume, offset as u64, data.clone()).await;
                assert_eq!(taken.unwrap() as usize, len);
                bytes[range.clone()].copy_from_slice(&data);
                at = range.end;
            }
            70..80 => {
                let data = pattern(random.u8(..), len);
                volume.write_at(offset as u64, data.clone()).await.unwrap();
                bytes[range].copy_from_slice(&data);
            }
            80..92 => {
                let found = volume
                    .read_at(offset as u64, u32::try_from(len).unwrap())
                    .await;
                assert!(
                    found.unwrap() == bytes[range.clone()],
                    "step {step}, {range:?}"
                );
            }
            92..95 => {
                volume.discard(offset as u64, len as u64).await.unwrap();
                bytes[range].fill(0);
            }
            95..97 => volume.flush().await.unwrap(),
            97..99 => {
                // A snapshot has exactly the flushed bytes.
                volume.flush().await.unwrap();
                let tag_text = format!("step-{step}");
                cluster.snapshot(&name, &tag_text).await;
                let snapshot = open_snapshot(&cluster.client, &name, &tag_text).await;
                assert!(read_all(&snapshot).await == bytes, "step {step}");
            }
            _ => {
                volume.close().await.unwrap();
                volume = open(&cluster.client, &name).await;
            }
        }
    }
    volume.close().await.unwrap();
    let found = read_back(cluster, &name).await;
    assert!(found == bytes);
}
