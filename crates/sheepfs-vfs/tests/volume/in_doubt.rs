//! Index updates with an unknown outcome.

use std::sync::atomic::{AtomicBool, Ordering};

use sheep_client::Client;
use sheep_client::testing::{Fault, FaultTransport};
use sheep_proto::{Opcode, ResultCode};
use sheepfs_vfs::BlockDevice as _;

use crate::support::{Cluster, MIB, byte_at, open, pattern};

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
    assert_eq!(byte_at(&cluster, &name, 0).await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn in_doubt_write_never_changes_after_first_read() {
    let cluster = Cluster::start().await;
    let name = cluster.create("doubt-copy", 4 * MIB).await;
    let before = open(&cluster.client, &name).await;
    before.write_at(0, pattern(1, 8192)).await.unwrap();
    cluster.snapshot(&name, "s").await;
    let client = failing_probe_client(&cluster).await;
    let volume = open(&client, &name).await;
    volume.write_at(0, pattern(5, 4096)).await.unwrap_err();
    // The outcome is unknown, but must not change after the first read.
    let seen = volume.read_at(0, 4096).await.unwrap();
    volume.write_at(4096, pattern(6, 4096)).await.unwrap();
    let again = volume.read_at(0, 4096).await.unwrap();
    assert!(again == seen, "{} became {}", seen[0], again[0]);
    assert_eq!(byte_at(&cluster, &name, 0).await, seen[0]);
}
