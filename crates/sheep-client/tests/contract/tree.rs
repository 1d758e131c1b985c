//! Hypervolumes: changing their trees.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use sheep_client::testing::{Fault, FaultTransport};
use sheep_client::unstable::IndexTree;
use sheep_client::unstable::Pool;
use sheep_client::{Client, ClientConfig, ClientError, NewVdi, VdiInfo};
use sheep_embedded::{Config, Server, StoreKind};
use sheep_proto::btree::LEAF_MAX_ENTRIES;
use sheep_proto::{ObjectIndex, Oid, Opcode, ResultCode, VdiName, Vid};

use crate::{Fixture, assert_refused, for_each_backend, refusal, working};

/// A hypervolume of 16 TiB.
async fn hypervolume(client: &Client, name: &VdiName) -> VdiInfo {
    let new = NewVdi::new(name.clone(), 16 << 40).with_hypervolume();
    client.cluster().create_vdi(&new).await.unwrap();
    let selector = working(name);
    client.vdi(&selector).stat().await.unwrap()
}

fn own(vid: Vid, indexes: impl IntoIterator<Item = u32>) -> Vec<(ObjectIndex, Vid)> {
    let slots = indexes.into_iter().map(|index| (ObjectIndex(index), vid));
    slots.collect()
}

fn indexes(tree: &IndexTree) -> Vec<u32> {
    tree.slots().map(|(index, _)| index.0).collect()
}

/// Creates data objects that contain their number.
async fn make(fixture: &Fixture, vid: Vid, indexes: &[u32]) {
    for &index in indexes {
        let oid = Oid::data(vid, ObjectIndex(index));
        let data = Bytes::from(format!("{index:8}"));
        fixture
            .client
            .objects()
            .create(oid, 0, data, None)
            .await
            .unwrap();
    }
}

async fn check(fixture: &Fixture, vid: Vid, indexes: &[u32]) {
    for &index in indexes {
        let oid = Oid::data(vid, ObjectIndex(index));
        let data = fixture.client.objects().read(oid, 0, 8).await.unwrap();
        assert_eq!(data, format!("{index:8}").as_bytes());
    }
}

#[tokio::test]
async fn tree_growth_adds_level_without_touching_objects() {
    for_each_backend(async |fixture| {
        let client = &fixture.client;
        let vdi = hypervolume(client, &fixture.name("hyper")).await;
        // A tree with a single leaf.
        let used: Vec<_> = (0..12).collect();
        make(fixture, vdi.vid, &used).await;
        let mut tree = client.index(&vdi).tree().await.unwrap();
        let slots = own(vdi.vid, used.iter().copied());
        tree.commit(client.objects(), &slots, &[]).await.unwrap();
        check(fixture, vdi.vid, &used).await;

        // Fills the root, splits it, then adds slots between the others and after them.
        let full = own(vdi.vid, (0..LEAF_MAX_ENTRIES).map(|number| 2 * number));
        let room = full.len() - (used.len() / 2);
        tree.commit(client.objects(), &full[..room], &[])
            .await
            .unwrap();
        let mut expected = tree.slots().count();
        assert_eq!(expected, LEAF_MAX_ENTRIES as usize);
        for index in [2_000_001, 4_000_000, 101, 4_000_001] {
            let slots = own(vdi.vid, [index]);
            tree.commit(client.objects(), &slots, &[]).await.unwrap();
            expected += 1;
        }
        check(fixture, vdi.vid, &used).await;

        // A tree read from the cluster has the same slots, each of which is also found alone.
        let read = client.index(&vdi).tree().await.unwrap();
        assert_eq!(read.slots().count(), expected);
        assert!(read.slots().eq(tree.slots()));
        for (index, owner) in [
            (101, Some(vdi.vid)),
            (103, None),
            (2_000_001, Some(vdi.vid)),
            (4_000_001, Some(vdi.vid)),
        ] {
            let found = client.index(&vdi).slot(ObjectIndex(index)).await.unwrap();
            assert_eq!(found, owner, "{index}");
        }
        // The header of the inode is unchanged.
        let info = client.vdi(&working(&vdi.name)).stat().await.unwrap();
        assert_eq!(info, vdi);
    })
    .await;
}

#[tokio::test]
async fn tree_change_keeps_discarded_objects_discarded() {
    for_each_backend(async |fixture| {
        let client = &fixture.client;
        let vdi = hypervolume(client, &fixture.name("hyper")).await;
        make(fixture, vdi.vid, &[3, 4]).await;
        let mut tree = client.index(&vdi).tree().await.unwrap();
        let slots = own(vdi.vid, [3, 4]);
        tree.commit(client.objects(), &slots, &[]).await.unwrap();

        let discarded = Oid::data(vdi.vid, ObjectIndex(3));
        client.objects().discard(discarded).await.unwrap();
        tree.mark_hole(ObjectIndex(3));
        make(fixture, vdi.vid, &[5]).await;
        let slots = own(vdi.vid, [5]);
        tree.commit(client.objects(), &slots, &[]).await.unwrap();
        let found = client.index(&vdi).tree().await.unwrap();
        assert_eq!(indexes(&found), [4, 5]);
        check(fixture, vdi.vid, &[4, 5]).await;
    })
    .await;
}

#[tokio::test]
async fn tree_of_a_flat_index_is_refused() {
    for_each_backend(async |fixture| {
        let (name, _vid) = fixture.volume("flat", 1 << 30).await;
        let vdi = fixture.client.vdi(&working(&name)).stat().await.unwrap();
        assert_refused!(
            fixture.client.index(&vdi).tree().await,
            ClientError::NotHypervolume(_)
        );
    })
    .await;
}

/// Splits the root with a failure of write number `failing`, then repeats the split.
/// Returns false if the split takes fewer writes.
async fn split_with_a_refusal(fault: fn() -> Fault, failing: usize) -> bool {
    // A client with a write that fails once the countdown is set.
    let server = Server::start(Config::new(StoreKind::Memory)).await.unwrap();
    let config = ClientConfig::new(server.local_address().into());
    let pool = Arc::new(Pool::connect(config).await.unwrap());
    let left = Arc::new(AtomicUsize::new(usize::MAX));
    let faulty = FaultTransport::new(pool, {
        let left = Arc::clone(&left);
        move |request| {
            let is_write = matches!(
                request.opcode(),
                Opcode::WriteObj | Opcode::CreateAndWriteObj
            );
            let hit = is_write && left.fetch_sub(1, Ordering::SeqCst) == 0;
            hit.then(fault)
        }
    });
    let client = Client::with_transport(Arc::new(faulty));
    // One more slot than fits in the root.
    let vdi = hypervolume(&client, &VdiName::new("v").unwrap()).await;
    let mut tree = client.index(&vdi).tree().await.unwrap();
    let full = own(vdi.vid, 0..LEAF_MAX_ENTRIES);
    tree.commit(client.objects(), &full, &[]).await.unwrap();

    let more = own(vdi.vid, [600_000]);
    left.store(failing, Ordering::SeqCst);
    let result = tree.commit(client.objects(), &more, &[]).await;
    left.store(usize::MAX, Ordering::SeqCst);
    let is_hit = result.is_err();
    // A failed split leaves the tree unchanged, in memory and on the cluster.
    if is_hit {
        assert_eq!(tree.slots().count(), full.len());
        let there = client.index(&vdi).tree().await.unwrap();
        assert!(there.slots().take(full.len()).eq(full.iter().copied()));
        // Other slots first, so that the repeated split writes other leaves.
        let other = own(vdi.vid, [700_000, 700_001]);
        tree.commit(client.objects(), &other, &[]).await.unwrap();
        tree.commit(client.objects(), &more, &[]).await.unwrap();
    }
    // The split has succeeded in the end.
    let found = client.index(&vdi).tree().await.unwrap();
    assert!(found.slots().eq(tree.slots()));
    assert_eq!(found.slot(ObjectIndex(600_000)), Some(vdi.vid));
    drop(client);
    server.shutdown().await.unwrap();
    is_hit
}

#[tokio::test]
async fn tree_write_that_fails_leaves_usable_tree() {
    let faults: [fn() -> Fault; 2] = [|| Fault::Refuse(ResultCode::NoSpace), || Fault::LoseAfter];
    for fault in faults {
        let mut failing = 0;
        while split_with_a_refusal(fault, failing).await {
            failing += 1;
        }
        // The counter, two leaves and the root.
        assert_eq!(failing, 4);
    }
}

#[tokio::test]
async fn tree_new_leaf_fails_when_cluster_is_full() {
    let server = Server::start(Config::new(StoreKind::Memory)).await.unwrap();
    let config = ClientConfig::new(server.local_address().into());
    let pool = Arc::new(Pool::connect(config).await.unwrap());
    let faulty = FaultTransport::new(pool, |request| {
        let is_create = request.opcode() == Opcode::CreateAndWriteObj;
        is_create.then_some(Fault::Refuse(ResultCode::NoSpace))
    });
    let client = Client::with_transport(Arc::new(faulty));
    let vdi = hypervolume(&client, &VdiName::new("v").unwrap()).await;
    let mut tree = client.index(&vdi).tree().await.unwrap();
    let slots = own(vdi.vid, 0..=LEAF_MAX_ENTRIES);
    let result = tree.commit(client.objects(), &slots, &[]).await;
    assert_eq!(refusal(result), ResultCode::NoSpace);
    assert_eq!(tree.slots().count(), 0);
    drop(client);
    server.shutdown().await.unwrap();
}
