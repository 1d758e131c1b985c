//! Indexes, flat and as trees.

use bytes::Bytes;
use sheep_client::{ClientError, NewVdi, VdiInfo};
use sheep_proto::btree::{self, MAGIC, NodeHeader, RootEntry};
use sheep_proto::limits::FLAT_INDEX_SLOTS;
use sheep_proto::{ObjectIndex, Oid, Vid};
use zerocopy::IntoBytes;

use crate::{Fixture, MIB, assert_refused, for_each_backend, tag, working};

async fn slots(fixture: &Fixture, vdi: &VdiInfo) -> Vec<(u32, Vid)> {
    let mut found = Vec::new();
    fixture
        .client
        .index(vdi)
        .for_each_slot(|index, owner| found.push((index.0, owner)))
        .await
        .unwrap();
    found
}

#[tokio::test]
async fn index_scan_ends_with_the_volume() {
    for_each_backend(async |fixture| {
        let client = &fixture.client;
        // 300,000 objects: more slots than one request reads.
        let (name, vid) = fixture.volume("v", 300_000 * 4 * MIB).await;
        let vdi = client.vdi(&working(&name)).stat().await.unwrap();
        assert_eq!(slots(fixture, &vdi).await, []);
        let used = [0, 262_143, 262_144, 299_999];
        for index in used.into_iter().rev() {
            fixture.write(vid, index, b"x").await;
        }
        assert_eq!(slots(fixture, &vdi).await, used.map(|index| (index, vid)));
        for (index, owner) in [(262_144, Some(vid)), (5, None)] {
            let found = client.index(&vdi).slot(ObjectIndex(index)).await.unwrap();
            assert_eq!(found, owner);
        }
    })
    .await;
}

#[tokio::test]
async fn index_refuses_slots_past_its_end() {
    for_each_backend(async |fixture| {
        let client = &fixture.client;
        let (_name, vid) = fixture.volume("v", MIB).await;
        let last = ObjectIndex(FLAT_INDEX_SLOTS - 1);
        assert_eq!(client.inode(vid).read_slots(last, 1).await.unwrap(), [None]);
        assert_refused!(
            client.inode(vid).read_slots(last, 2).await,
            ClientError::SlotOutOfRange(_)
        );
        assert_refused!(
            client.inode(vid).read_slots(ObjectIndex(u32::MAX), 2).await,
            ClientError::SlotOutOfRange(_)
        );
        assert_refused!(
            client.inode(vid).write_slots(last, &[None, None]).await,
            ClientError::SlotOutOfRange(_)
        );
    })
    .await;
}

/// A hypervolume of 8 TiB, twice what a flat index of 4 MiB objects can name.
async fn hypervolume(fixture: &Fixture) -> VdiInfo {
    let new = NewVdi::new(fixture.name("hyper"), 8 << 40).with_hypervolume();
    fixture.client.cluster().create_vdi(&new).await.unwrap();
    fixture
        .client
        .vdi(&working(&new.name))
        .stat()
        .await
        .unwrap()
}

async fn write_root(fixture: &Fixture, vid: Vid, node: Vec<u8>) {
    let bytes = [&btree::ROOT_WRITE_LEAD[..], &node].concat();
    fixture
        .client
        .objects()
        .write(Oid::inode(vid), btree::ROOT_WRITE_OFFSET, bytes.into())
        .await
        .unwrap();
}

fn leaf(vid: Vid, indexes: &[u32]) -> Vec<u8> {
    btree::encode_leaf(indexes.iter().map(|&index| (ObjectIndex(index), vid)))
}

#[tokio::test]
async fn index_scan_visits_the_tree_of_hypervolumes() {
    for_each_backend(async |fixture| {
        let client = &fixture.client;
        let vdi = hypervolume(fixture).await;
        assert!(vdi.hypervolume);
        assert_eq!((vdi.size, vdi.object_shift), (8 << 40, 22));
        assert_eq!(slots(fixture, &vdi).await, []);

        let used = [0, 3, 7, 1_048_577];
        write_root(fixture, vdi.vid, leaf(vdi.vid, &used)).await;
        assert_eq!(
            slots(fixture, &vdi).await,
            used.map(|index| (index, vdi.vid))
        );
        let found = client.index(&vdi).slot(ObjectIndex(7)).await.unwrap();
        assert_eq!(found, Some(vdi.vid));
        assert_eq!(client.index(&vdi).slot(ObjectIndex(8)).await.unwrap(), None);

        assert_refused!(
            client.vdi(&working(&vdi.name)).snapshot(&tag("t")).await,
            ClientError::HypervolumeSnapshot(_)
        );
    })
    .await;
}

#[tokio::test]
async fn index_scan_of_two_levels_ignores_wrong_maxima() {
    for_each_backend(async |fixture| {
        let vdi = hypervolume(fixture).await;
        let parts = [&[900, 1_500_000][..], &[], &[1, 2, 800]];
        let mut root = NodeHeader {
            magic: MAGIC.into(),
            depth: 2.into(),
            entries: 3.into(),
        }
        .as_bytes()
        .to_vec();
        for (number, part) in (0u32..).zip(parts) {
            let oid = Oid::btree_node(vdi.vid, number);
            let mut node = leaf(vdi.vid, part);
            node.resize(4 << 20, 0xee);
            fixture
                .client
                .objects()
                .create(oid, 0, Bytes::from(node), None)
                .await
                .unwrap();
            let entry = RootEntry {
                max_index: 0.into(),
                pad: [0xee; 4],
                oid: oid.raw().into(),
            };
            root.extend_from_slice(entry.as_bytes());
        }
        write_root(fixture, vdi.vid, root).await;
        assert_eq!(
            slots(fixture, &vdi).await,
            [1, 2, 800, 900, 1_500_000].map(|index| (index, vdi.vid))
        );
    })
    .await;
}
