//! Making, finding, changing and deleting VDIs.

use std::collections::HashSet;

use sheep_client::cluster::FormatOptions;
use sheep_client::{ClientError, NewVdi, VdiSelector};
use sheep_proto::limits::HYPERVOLUME_MAX_SIZE;
use sheep_proto::{ClusterFlags, ObjectIndex, Oid, Redundancy, ResultCode, Vid};

use crate::{MIB, assert_refused, embedded, for_each_backend, refusal, tag, tagged, working};

#[tokio::test]
async fn vdi_create_makes_what_was_requested() {
    for_each_backend(async |fixture| {
        let client = &fixture.client;
        let new = NewVdi::new(fixture.name("v"), 12_345)
            .with_object_shift(23)
            .with_redundancy(Redundancy::Replicated(1));
        let vid = client.cluster().create_vdi(&new).await.unwrap();
        assert_eq!(client.vdi(&working(&new.name)).lookup().await.unwrap(), vid);
        let info = client.vdi(&working(&new.name)).stat().await.unwrap();
        assert_eq!((info.vid, &info.name), (vid, &new.name));
        assert_eq!((info.size, info.object_shift), (12_345, 23));
        assert_eq!(info.redundancy, Redundancy::Replicated(1));
        assert!(!info.is_snapshot() && !info.hypervolume && info.tag.is_empty());
        assert_eq!((info.snap_id, info.parent), (1, None));
        assert!(info.create_time > 0);
        assert!(!client.inode(vid).is_snapshot().await.unwrap());
        assert_eq!(client.inode(vid).stat().await.unwrap(), Some(info));
    })
    .await;
}

#[tokio::test]
async fn vdi_create_refuses_used_names_and_sizes() {
    for_each_backend(async |fixture| {
        let client = &fixture.client;
        let (name, _vid) = fixture.volume("v", MIB).await;
        assert_eq!(
            refusal(client.cluster().create_vdi(&NewVdi::new(name, MIB)).await),
            ResultCode::VdiExist
        );
        let mut new = NewVdi::new(fixture.name("w"), u64::MAX);
        assert!(matches!(
            client.cluster().create_vdi(&new).await,
            Err(ClientError::TooLarge { .. })
        ));
        new.size = HYPERVOLUME_MAX_SIZE + 1;
        new.hypervolume = true;
        assert!(matches!(
            client.cluster().create_vdi(&new).await,
            Err(ClientError::TooLarge { .. })
        ));
        // Kills a sheep.
        let bad = Redundancy::Erasure { data: 2, parity: 0 };
        let new = NewVdi::new(fixture.name("w"), MIB).with_redundancy(bad);
        assert_refused!(
            client.cluster().create_vdi(&new).await,
            ClientError::Redundancy(_)
        );
    })
    .await;
}

#[tokio::test]
async fn vdi_lookup_of_absent_vdi_is_not_found() {
    for_each_backend(async |fixture| {
        let client = &fixture.client;
        // No VDI has the name.
        let absent_name = fixture.name("absent");
        let no_vdi = ResultCode::NoVdi;
        assert_eq!(
            refusal(client.vdi(&working(&absent_name)).lookup().await),
            no_vdi
        );
        assert_eq!(
            refusal(client.vdi(&tagged(&absent_name, "t")).lookup().await),
            no_vdi
        );
        assert_eq!(
            refusal(client.vdi(&working(&absent_name)).delete().await),
            no_vdi
        );
        assert_eq!(
            refusal(client.vdi(&working(&absent_name)).resize(1).await),
            no_vdi
        );
        assert_eq!(
            refusal(client.vdi(&working(&absent_name)).snapshot(&tag("t")).await),
            no_vdi
        );
        // The VDI exists, but neither the tag nor the number of a snapshot.
        let (name, _vid) = fixture.volume("v", MIB).await;
        let no_tag = ResultCode::NoTag;
        assert_eq!(
            refusal(client.vdi(&tagged(&name, "t")).lookup().await),
            no_tag
        );
        let by_id = VdiSelector::snap_id(name, 9);
        assert_eq!(refusal(client.vdi(&by_id).lookup().await), no_tag);
        // No inode has the VID.
        let absent = Vid::new(0x12_3456).unwrap();
        assert_eq!(
            refusal(client.inode(absent).stat().await),
            ResultCode::NoObj
        );
    })
    .await;
}

#[tokio::test]
async fn vdi_lookup_takes_names_of_any_bytes() {
    for_each_backend(async |fixture| {
        let client = &fixture.client;
        let prefix = fixture.name("").as_bytes().to_vec();
        let longest = [&prefix[..], &[b'x'; 255]].concat()[..255].to_vec();
        let strange = [&prefix[..], b"a/b \xff\n"].concat();
        for bytes in [longest, strange] {
            let name = sheep_proto::VdiName::new(&bytes).unwrap();
            let new = NewVdi::new(name.clone(), MIB);
            let vid = client.cluster().create_vdi(&new).await.unwrap();
            assert_eq!(client.vdi(&working(&name)).stat().await.unwrap().name, name);
            assert_eq!(client.vdi(&working(&name)).lookup().await.unwrap(), vid);
        }
    })
    .await;
}

#[tokio::test]
async fn snapshot_is_found_by_tag_and_number() {
    for_each_backend(async |fixture| {
        let client = &fixture.client;
        let (name, first) = fixture.volume("v", 16 * MIB).await;
        fixture.write(first, 0, b"one").await;
        let second = client
            .vdi(&working(&name))
            .snapshot(&tag("a"))
            .await
            .unwrap();
        let third = client
            .vdi(&working(&name))
            .snapshot(&tag("b"))
            .await
            .unwrap();
        assert_eq!(
            client.vdi(&tagged(&name, "a")).lookup().await.unwrap(),
            first
        );
        assert_eq!(
            client.vdi(&tagged(&name, "b")).lookup().await.unwrap(),
            second
        );
        assert_eq!(client.vdi(&working(&name)).lookup().await.unwrap(), third);
        for (id, vid) in [(1, first), (2, second)] {
            let by_id = VdiSelector::snap_id(name.clone(), id);
            assert_eq!(client.vdi(&by_id).lookup().await.unwrap(), vid);
        }
        let info = client.inode(second).stat().await.unwrap().unwrap();
        assert!(info.is_snapshot());
        assert_eq!((info.tag, info.snap_id), (tag("b"), 2));
        assert_eq!(info.parent, Some(first));
        assert_eq!(info.size, 16 * MIB);
        assert!(client.inode(first).is_snapshot().await.unwrap());
        assert_eq!(fixture.read(third, 0, 3).await, &b"one"[..]);
    })
    .await;
}

#[tokio::test]
async fn snapshot_needs_a_unique_tag() {
    for_each_backend(async |fixture| {
        let client = &fixture.client;
        let (name, _vid) = fixture.volume("v", MIB).await;
        assert_refused!(
            client.vdi(&working(&name)).snapshot(&tag("")).await,
            ClientError::NoTag
        );
        let head = client
            .vdi(&working(&name))
            .snapshot(&tag("t"))
            .await
            .unwrap();
        assert_eq!(
            refusal(client.vdi(&working(&name)).snapshot(&tag("t")).await),
            ResultCode::VdiExist
        );
        assert_eq!(client.vdi(&working(&name)).lookup().await.unwrap(), head);
    })
    .await;
}

#[tokio::test]
async fn vdi_list_has_every_vdi_once_in_order() {
    for_each_backend(async |fixture| {
        let client = &fixture.client;
        let (kept, first) = fixture.volume("kept", MIB).await;
        let head = client
            .vdi(&working(&kept))
            .snapshot(&tag("t"))
            .await
            .unwrap();
        let (gone, gone_vid) = fixture.volume("gone", MIB).await;
        client.vdi(&working(&gone)).delete().await.unwrap();

        let listed = client.cluster().list_vdis().await.unwrap();
        assert!(listed.is_sorted_by(|a, b| a.vid < b.vid));
        let ours: HashSet<_> = listed
            .iter()
            .filter(|vdi| vdi.name == kept || vdi.name == gone)
            .map(|vdi| (vdi.vid, vdi.is_snapshot()))
            .collect();
        assert_eq!(ours, HashSet::from([(first, true), (head, false)]));
        assert!(
            !client
                .cluster()
                .list_vids()
                .await
                .unwrap()
                .contains(&gone_vid)
        );
        assert_eq!(client.inode(gone_vid).stat().await.unwrap(), None);

        let names = client.cluster().list_names().await.unwrap();
        assert_eq!(names.iter().filter(|&name| *name == kept).count(), 1);
        assert!(!names.contains(&gone));
    })
    .await;
}

#[tokio::test]
async fn clone_has_snapshot_content_and_diverges() {
    for_each_backend(async |fixture| {
        let client = &fixture.client;
        let (name, base) = fixture.volume("v", 16 * MIB).await;
        fixture.write(base, 1, b"shared").await;
        assert_refused!(
            client
                .vdi(&working(&name))
                .clone_to(&fixture.name("c"))
                .await,
            ClientError::NotSnapshot(_)
        );
        client
            .vdi(&working(&name))
            .snapshot(&tag("t"))
            .await
            .unwrap();

        let clone = fixture.name("c");
        let vid = client
            .vdi(&tagged(&name, "t"))
            .clone_to(&clone)
            .await
            .unwrap();
        let info = client.vdi(&working(&clone)).stat().await.unwrap();
        assert_eq!((info.vid, info.parent), (vid, Some(base)));
        assert_eq!((info.size, info.snap_id), (16 * MIB, 1));
        assert_eq!(fixture.read(vid, 1, 6).await, &b"shared"[..]);
        assert_eq!(
            refusal(client.vdi(&tagged(&name, "t")).clone_to(&clone).await),
            ResultCode::VdiExist
        );

        // Objects that the clone shares survive the deletion of its parent snapshot.
        client.vdi(&tagged(&name, "t")).delete().await.unwrap();
        client.vdi(&working(&name)).delete().await.unwrap();
        assert_eq!(fixture.read(vid, 1, 6).await, &b"shared"[..]);
    })
    .await;
}

#[tokio::test]
async fn rollback_restores_snapshot_content() {
    for_each_backend(async |fixture| {
        let client = &fixture.client;
        let (name, old) = fixture.volume("v", 16 * MIB).await;
        fixture.write(old, 0, b"before").await;
        let head = client
            .vdi(&working(&name))
            .snapshot(&tag("t"))
            .await
            .unwrap();
        fixture.write(head, 1, b"after").await;
        assert_refused!(
            client.vdi(&working(&name)).rollback().await,
            ClientError::NotSnapshot(_)
        );

        let new = client.vdi(&tagged(&name, "t")).rollback().await.unwrap();
        assert_eq!(client.vdi(&working(&name)).lookup().await.unwrap(), new);
        assert_eq!(fixture.read(new, 0, 6).await, &b"before"[..]);
        let slots = client
            .inode(new)
            .read_slots(ObjectIndex(1), 1)
            .await
            .unwrap();
        assert_eq!(slots, [None]);
        assert_eq!(client.vdi(&tagged(&name, "t")).lookup().await.unwrap(), old);

        // A name without a working VDI gets one, too.
        client.vdi(&working(&name)).delete().await.unwrap();
        let again = client.vdi(&tagged(&name, "t")).rollback().await.unwrap();
        assert_eq!(fixture.read(again, 0, 6).await, &b"before"[..]);
    })
    .await;
}

#[tokio::test]
async fn resize_grows_and_never_shrinks() {
    for_each_backend(async |fixture| {
        let client = &fixture.client;
        let (name, vid) = fixture.volume("v", MIB).await;
        client
            .vdi(&working(&name))
            .resize(5 * MIB + 3)
            .await
            .unwrap();
        let info = client.vdi(&working(&name)).stat().await.unwrap();
        assert_eq!((info.vid, info.size), (vid, 5 * MIB + 3));
        assert_refused!(
            client.vdi(&working(&name)).resize(MIB).await,
            ClientError::Shrink { .. }
        );
        assert!(matches!(
            client
                .vdi(&working(&name))
                .resize(info.max_size() + 1)
                .await,
            Err(ClientError::TooLarge { .. })
        ));
        client
            .vdi(&working(&name))
            .resize(info.max_size())
            .await
            .unwrap();
        let grown = client.inode(vid).stat().await.unwrap().unwrap();
        assert_eq!(grown.size, info.max_size());
    })
    .await;
}

#[tokio::test]
async fn vdi_delete_frees_the_name() {
    for_each_backend(async |fixture| {
        let client = &fixture.client;
        let (name, vid) = fixture.volume("v", 16 * MIB).await;
        fixture.write(vid, 0, b"a").await;
        fixture.write(vid, 3, b"b").await;
        client.vdi(&working(&name)).delete().await.unwrap();
        assert_eq!(
            refusal(client.vdi(&working(&name)).lookup().await),
            ResultCode::NoVdi
        );
        let (again, new) = fixture.volume("v", MIB).await;
        assert_eq!(again, name);
        let info = client.inode(new).stat().await.unwrap().unwrap();
        assert_eq!((info.size, info.parent), (MIB, None));
        let slots = client
            .inode(new)
            .read_slots(ObjectIndex(0), 4)
            .await
            .unwrap();
        assert_eq!(slots, [None; 4]);
    })
    .await;
}

#[tokio::test]
async fn vdi_delete_of_one_version_keeps_others() {
    for_each_backend(async |fixture| {
        let client = &fixture.client;
        let (name, first) = fixture.volume("v", 16 * MIB).await;
        fixture.write(first, 0, b"kept").await;
        let second = client
            .vdi(&working(&name))
            .snapshot(&tag("a"))
            .await
            .unwrap();
        let head = client
            .vdi(&working(&name))
            .snapshot(&tag("b"))
            .await
            .unwrap();

        client.vdi(&tagged(&name, "a")).delete().await.unwrap();
        assert_eq!(
            refusal(client.vdi(&tagged(&name, "a")).lookup().await),
            ResultCode::NoTag
        );
        assert_eq!(fixture.read(head, 0, 4).await, &b"kept"[..]);

        client.vdi(&working(&name)).delete().await.unwrap();
        let by_id = VdiSelector::snap_id(name.clone(), 2);
        assert_eq!(client.vdi(&by_id).lookup().await.unwrap(), second);
        assert_eq!(fixture.read(second, 0, 4).await, &b"kept"[..]);
        client.vdi(&by_id).delete().await.unwrap();
        assert_eq!(
            refusal(client.vdi(&by_id).lookup().await),
            ResultCode::NoVdi
        );
    })
    .await;
}

#[tokio::test]
async fn vdi_delete_clears_every_slot() {
    // On embedded alone, where an object takes no more than was written.
    embedded(
        |_config| (),
        async |fixture| {
            let client = &fixture.client;
            let (name, vid) = fixture.volume("v", 4 << 40).await;
            let dense = 1000..1300;
            let spread = (0..40).map(|n| n * 26_214);
            let all: Vec<u32> = dense.chain(spread).chain([(1 << 20) - 1]).collect();
            for &index in &all {
                fixture.write(vid, index, b"x").await;
            }
            client.vdi(&working(&name)).delete().await.unwrap();
            assert_eq!(client.inode(vid).stat().await.unwrap(), None);
            for index in all {
                let oid = Oid::data(vid, ObjectIndex(index));
                assert_eq!(
                    refusal(client.objects().read(oid, 0, 1).await),
                    ResultCode::NoObj
                );
            }
        },
    )
    .await;
}

#[tokio::test]
async fn lock_is_held_until_unlocked() {
    embedded(
        |config| config.format_if_new = false,
        async |fixture| {
            let client = &fixture.client;
            let options = FormatOptions::default()
                .with_redundancy(Redundancy::Replicated(1))
                .with_flags(ClusterFlags::USE_LOCK);
            client.cluster().format(&options).await.unwrap();
            let (name, vid) = fixture.volume("v", MIB).await;
            assert_eq!(client.vdi(&working(&name)).lock().await.unwrap(), vid);
            assert_eq!(
                refusal(client.vdi(&working(&name)).lock().await),
                ResultCode::VdiLocked
            );
            client.inode(vid).unlock().await.unwrap();
            assert_eq!(client.vdi(&working(&name)).lock().await.unwrap(), vid);
        },
    )
    .await;
}

#[tokio::test]
async fn lock_without_locking_is_a_lookup() {
    for_each_backend(async |fixture| {
        let client = &fixture.client;
        let (name, vid) = fixture.volume("v", MIB).await;
        for _ in 0..2 {
            assert_eq!(client.vdi(&working(&name)).lock().await.unwrap(), vid);
        }
        client.inode(vid).unlock().await.unwrap();
        assert_eq!(
            refusal(client.vdi(&working(&fixture.name("absent"))).lock().await),
            ResultCode::NoVdi
        );
    })
    .await;
}
