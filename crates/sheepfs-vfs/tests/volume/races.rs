//! Races of first writes to the same object.

use std::sync::Arc;

use sheepfs_vfs::{BlockDevice as _, Volume};

use crate::support::{Cluster, MIB, open, pattern, read_all};

const WRITERS: u8 = 32;

/// Writes from many tasks, each its own byte in its own stripe of each object.
async fn race(volume: &Arc<Volume>, objects: u64) {
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
    let clone = cluster.snapshot_and_clone(&name, "base").await;
    let volume = open(&cluster.client, &clone).await;
    race(&volume, 4).await;
    assert_all_there(&read_all(&open(&cluster.client, &clone).await).await);
}
