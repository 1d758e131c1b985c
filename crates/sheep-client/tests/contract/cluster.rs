//! Questions about the cluster, and formatting it.

use bytes::Bytes;
use sheep_client::cluster::FormatOptions;
use sheep_client::{ClientError, NewVdi};
use sheep_proto::{Generation, Oid, Redundancy, ResultCode};

use crate::{MIB, assert_refused, embedded, for_each_backend, refusal, working};

#[tokio::test]
async fn cluster_info_has_members_and_settings() {
    for_each_backend(async |fixture| {
        let client = &fixture.client;
        let nodes = client.cluster().nodes().await.unwrap();
        assert!(!nodes.is_empty());
        let info = client.cluster().info().await.unwrap();
        assert_eq!(info.nodes.len(), nodes.len());
        assert!(info.header.ctime.get() > 0);
        let default = client.cluster().defaults().await.unwrap();
        assert_eq!(default.redundancy, Some(info.header.redundancy()));
        assert_eq!(default.object_shift, info.header.block_size_shift);

        let status = client.cluster().history().await.unwrap();
        assert_eq!(status.status, ResultCode::Success);
        let newest = status.epochs.first().unwrap();
        assert_eq!(newest.nodes.len(), nodes.len());
        assert_eq!(newest.header.epoch.get() as usize, status.epochs.len());
    })
    .await;
}

#[tokio::test]
async fn node_query_is_answered_by_that_node() {
    for_each_backend(async |fixture| {
        let client = &fixture.client;
        let (_name, vid) = fixture.volume("v", 16 * MIB).await;
        fixture.write(vid, 0, b"so that something is stored").await;
        for node in client.cluster().nodes().await.unwrap() {
            let node = node.address();
            let space = client.node(node).store_space().await.unwrap();
            assert!(space.free <= space.total && space.total > 0);
            client.node(node).disks().await.unwrap();
            client.node(node).request_counters().await.unwrap();
            let recovery = client.node(node).recovery_state().await.unwrap();
            assert_eq!(recovery.in_recovery, 0);
        }
    })
    .await;
}

/// The mark that the fork of 2026 makes in the inode of an access list.
#[tokio::test]
async fn access_list_is_neither_listed_nor_found() {
    for (generation, is_list) in [(Generation::V1_0, true), (Generation::V0_9, false)] {
        embedded(
            |config| config.generation = generation,
            async |fixture| {
                let client = &fixture.client;
                let (volume, _) = fixture.volume("volume", 16 * MIB).await;
                let (list, vid) = fixture.volume("list", 16 * MIB).await;
                let mark = Bytes::from_static(&[1, 0, 0, 0]);
                client
                    .objects()
                    .write(Oid::inode(vid), 592, mark)
                    .await
                    .unwrap();
                let mut names = client.cluster().list_names().await.unwrap();
                names.retain(|name| *name != volume);
                let found = client.vdi(&working(&list)).stat().await;
                if is_list {
                    assert_eq!(names, []);
                    assert_eq!(client.inode(vid).stat().await.unwrap(), None);
                    assert_eq!(refusal(found), ResultCode::NoVdi);
                } else {
                    assert_eq!(names, [list]);
                    assert_eq!(found.unwrap().vid, vid);
                }
            },
        )
        .await;
    }
}

#[tokio::test]
async fn cluster_is_unformatted_until_format() {
    embedded(
        |config| config.format_if_new = false,
        async |fixture| {
            let client = &fixture.client;
            // Reports work without a format, everything else is refused.
            let status = client.cluster().history().await.unwrap();
            assert_eq!(status.status, ResultCode::WaitForFormat);
            assert!(status.epochs.is_empty());
            assert_eq!(client.cluster().defaults().await.unwrap().object_shift, 0);
            assert!(client.cluster().list_vids().await.unwrap().is_empty());
            let new = NewVdi::new(fixture.name("v"), MIB);
            // The missing default object size is not what the error reports.
            for (object_shift, hypervolume) in [(None, false), (Some(23), false), (None, true)] {
                let mut new = new.clone();
                new.object_shift = object_shift;
                new.hypervolume = hypervolume;
                assert_eq!(
                    refusal(client.cluster().create_vdi(&new).await),
                    ResultCode::WaitForFormat
                );
            }
            assert_eq!(
                refusal(client.vdi(&working(&new.name)).lookup().await),
                ResultCode::WaitForFormat
            );

            // The options of the format become the defaults of new VDIs.
            let redundancy = Redundancy::Erasure { data: 4, parity: 2 };
            let options = FormatOptions::default()
                .with_redundancy(redundancy)
                .with_object_shift(23);
            client.cluster().format(&options).await.unwrap();
            let status = client.cluster().history().await.unwrap();
            assert_eq!(status.status, ResultCode::Success);
            assert_eq!(status.epochs.len(), 1);
            assert_eq!(status.epochs[0].header.redundancy(), redundancy);
            assert_eq!(status.epochs[0].header.store(), b"plain");
            client.cluster().create_vdi(&new).await.unwrap();
            let info = client.vdi(&working(&new.name)).stat().await.unwrap();
            assert_eq!((info.object_shift, info.redundancy), (23, redundancy));

            // Another format removes every VDI.
            client
                .cluster()
                .format(&FormatOptions::default())
                .await
                .unwrap();
            assert!(client.cluster().list_vids().await.unwrap().is_empty());
        },
    )
    .await;
}

#[tokio::test]
async fn format_with_impossible_settings_is_not_sent() {
    embedded(
        |_config| (),
        async |fixture| {
            let client = &fixture.client;
            let (name, _vid) = fixture.volume("v", MIB).await;
            let good = FormatOptions::default();
            assert_refused!(
                client
                    .cluster()
                    .format(&good.with_redundancy(Redundancy::Erasure { data: 2, parity: 0 }))
                    .await,
                ClientError::Redundancy(_)
            );
            assert_refused!(
                client.cluster().format(&good.with_object_shift(9)).await,
                ClientError::ObjectSize { .. }
            );
            client.vdi(&working(&name)).lookup().await.unwrap();
        },
    )
    .await;
}
