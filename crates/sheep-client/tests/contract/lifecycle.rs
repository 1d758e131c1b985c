//! Making, finding, changing and deleting VDIs.

use std::collections::HashSet;

use sheep_client::{ClientError, NewVdi, VdiSelector};
use sheep_proto::limits::HYPERVOLUME_MAX_SIZE;
use sheep_proto::{ClusterFlags, ObjectIndex, Oid, Redundancy, ResultCode, Vid};

use crate::{MIB, assert_refused, embedded, everywhere, refusal, tag, tagged, working};

#[tokio::test]
async fn a_new_vdi_is_found_by_name_and_is_what_was_asked_for() {
    everywhere(async |place| {
        let client = &place.client;
        let new = NewVdi {
            object_shift: Some(23),
            redundancy: Some(Redundancy::Replicated(1)),
            ..NewVdi::new(place.name("v"), 12_345)
        };
        let vid = client.create_vdi(&new).await.unwrap();
        assert_eq!(client.find(&working(&new.name)).await.unwrap(), vid);
        let info = client.find_info(&working(&new.name)).await.unwrap();
        assert_eq!((info.vid, &info.name), (vid, &new.name));
        assert_eq!((info.size, info.object_shift), (12_345, 23));
        assert_eq!(info.redundancy, Redundancy::Replicated(1));
        assert!(!info.is_snapshot() && !info.hypervolume && info.tag.is_empty());
        assert_eq!((info.snap_id, info.parent), (1, None));
        assert!(info.create_time > 0);
        assert!(!client.is_snapshot(vid).await.unwrap());
        assert_eq!(client.info(vid).await.unwrap(), Some(info));
    })
    .await;
}

#[tokio::test]
async fn a_name_in_use_and_impossible_sizes_are_refused() {
    everywhere(async |place| {
        let client = &place.client;
        let (name, _vid) = place.volume("v", MIB).await;
        assert_eq!(
            refusal(client.create_vdi(&NewVdi::new(name, MIB)).await),
            ResultCode::VdiExist
        );
        let mut new = NewVdi::new(place.name("w"), u64::MAX);
        assert!(matches!(
            client.create_vdi(&new).await,
            Err(ClientError::TooLarge { .. })
        ));
        new.size = HYPERVOLUME_MAX_SIZE + 1;
        new.hypervolume = true;
        assert!(matches!(
            client.create_vdi(&new).await,
            Err(ClientError::TooLarge { .. })
        ));
        let new = NewVdi {
            // Kills a sheep.
            redundancy: Some(Redundancy::Erasure { data: 2, parity: 0 }),
            ..NewVdi::new(place.name("w"), MIB)
        };
        assert_refused!(client.create_vdi(&new).await, ClientError::Redundancy(_));
    })
    .await;
}

#[tokio::test]
async fn what_does_not_exist_is_not_found() {
    everywhere(async |place| {
        let client = &place.client;
        let nobody = place.name("nobody");
        let no_vdi = ResultCode::NoVdi;
        assert_eq!(refusal(client.find(&working(&nobody)).await), no_vdi);
        assert_eq!(refusal(client.find(&tagged(&nobody, "t")).await), no_vdi);
        assert_eq!(refusal(client.delete(&working(&nobody)).await), no_vdi);
        assert_eq!(refusal(client.resize(&nobody, 1).await), no_vdi);
        assert_eq!(refusal(client.snapshot(&nobody, &tag("t")).await), no_vdi);
        let (name, _vid) = place.volume("v", MIB).await;
        let no_tag = ResultCode::NoTag;
        assert_eq!(refusal(client.find(&tagged(&name, "t")).await), no_tag);
        let by_id = VdiSelector::snap_id(name, 9);
        assert_eq!(refusal(client.find(&by_id).await), no_tag);
        let absent = Vid::new(0x12_3456).unwrap();
        assert_eq!(refusal(client.info(absent).await), ResultCode::NoObj);
    })
    .await;
}

#[tokio::test]
async fn names_of_any_bytes_up_to_255_are_found_again() {
    everywhere(async |place| {
        let client = &place.client;
        let prefix = place.name("").as_bytes().to_vec();
        let longest = [&prefix[..], &[b'x'; 255]].concat()[..255].to_vec();
        let strange = [&prefix[..], b"a/b \xff\n"].concat();
        for bytes in [longest, strange] {
            let name = sheep_proto::VdiName::new(&bytes).unwrap();
            let new = NewVdi::new(name.clone(), MIB);
            let vid = client.create_vdi(&new).await.unwrap();
            assert_eq!(client.find_info(&working(&name)).await.unwrap().name, name);
            assert_eq!(client.find(&working(&name)).await.unwrap(), vid);
        }
    })
    .await;
}

#[tokio::test]
async fn snapshots_are_found_by_tag_and_number_and_the_name_goes_on() {
    everywhere(async |place| {
        let client = &place.client;
        let (name, first) = place.volume("v", 16 * MIB).await;
        place.put(first, 0, b"one").await;
        let second = client.snapshot(&name, &tag("a")).await.unwrap();
        let third = client.snapshot(&name, &tag("b")).await.unwrap();
        assert_eq!(client.find(&tagged(&name, "a")).await.unwrap(), first);
        assert_eq!(client.find(&tagged(&name, "b")).await.unwrap(), second);
        assert_eq!(client.find(&working(&name)).await.unwrap(), third);
        for (id, vid) in [(1, first), (2, second)] {
            let by_id = VdiSelector::snap_id(name.clone(), id);
            assert_eq!(client.find(&by_id).await.unwrap(), vid);
        }
        let info = client.info(second).await.unwrap().unwrap();
        assert!(info.is_snapshot());
        assert_eq!((info.tag, info.snap_id), (tag("b"), 2));
        assert_eq!(info.parent, Some(first));
        assert_eq!(info.size, 16 * MIB);
        assert!(client.is_snapshot(first).await.unwrap());
        assert_eq!(place.get(third, 0, 3).await, &b"one"[..]);
    })
    .await;
}

#[tokio::test]
async fn a_snapshot_needs_a_tag_of_its_own() {
    everywhere(async |place| {
        let client = &place.client;
        let (name, _vid) = place.volume("v", MIB).await;
        assert_refused!(client.snapshot(&name, &tag("")).await, ClientError::NoTag);
        let head = client.snapshot(&name, &tag("t")).await.unwrap();
        assert_eq!(
            refusal(client.snapshot(&name, &tag("t")).await),
            ResultCode::VdiExist
        );
        assert_eq!(client.find(&working(&name)).await.unwrap(), head);
    })
    .await;
}

#[tokio::test]
async fn the_listing_has_every_vdi_once_in_order() {
    everywhere(async |place| {
        let client = &place.client;
        let (kept, first) = place.volume("kept", MIB).await;
        let head = client.snapshot(&kept, &tag("t")).await.unwrap();
        let (gone, gone_vid) = place.volume("gone", MIB).await;
        client.delete(&working(&gone)).await.unwrap();

        let listed = client.vdis().await.unwrap();
        assert!(listed.is_sorted_by(|a, b| a.vid < b.vid));
        let ours: HashSet<_> = listed
            .iter()
            .filter(|vdi| vdi.name == kept || vdi.name == gone)
            .map(|vdi| (vdi.vid, vdi.is_snapshot()))
            .collect();
        assert_eq!(ours, HashSet::from([(first, true), (head, false)]));
        assert!(!client.vids().await.unwrap().contains(&gone_vid));
        assert_eq!(client.info(gone_vid).await.unwrap(), None);

        let names = client.working_names().await.unwrap();
        assert_eq!(names.iter().filter(|&name| *name == kept).count(), 1);
        assert!(!names.contains(&gone));
    })
    .await;
}

#[tokio::test]
async fn a_clone_has_the_snapshots_content_and_goes_its_own_way() {
    everywhere(async |place| {
        let client = &place.client;
        let (name, base) = place.volume("v", 16 * MIB).await;
        place.put(base, 1, b"shared").await;
        assert_refused!(
            client.clone_vdi(&working(&name), &place.name("c")).await,
            ClientError::NotSnapshot(_)
        );
        client.snapshot(&name, &tag("t")).await.unwrap();

        let clone = place.name("c");
        let vid = client.clone_vdi(&tagged(&name, "t"), &clone).await.unwrap();
        let info = client.find_info(&working(&clone)).await.unwrap();
        assert_eq!((info.vid, info.parent), (vid, Some(base)));
        assert_eq!((info.size, info.snap_id), (16 * MIB, 1));
        assert_eq!(place.get(vid, 1, 6).await, &b"shared"[..]);
        assert_eq!(
            refusal(client.clone_vdi(&tagged(&name, "t"), &clone).await),
            ResultCode::VdiExist
        );

        // What the clone shares survives the snapshot it was made from.
        client.delete(&tagged(&name, "t")).await.unwrap();
        client.delete(&working(&name)).await.unwrap();
        assert_eq!(place.get(vid, 1, 6).await, &b"shared"[..]);
    })
    .await;
}

#[tokio::test]
async fn a_rollback_brings_the_snapshots_content_back() {
    everywhere(async |place| {
        let client = &place.client;
        let (name, old) = place.volume("v", 16 * MIB).await;
        place.put(old, 0, b"before").await;
        let head = client.snapshot(&name, &tag("t")).await.unwrap();
        place.put(head, 1, b"after").await;
        assert_refused!(
            client.rollback(&working(&name)).await,
            ClientError::NotSnapshot(_)
        );

        let new = client.rollback(&tagged(&name, "t")).await.unwrap();
        assert_eq!(client.find(&working(&name)).await.unwrap(), new);
        assert_eq!(place.get(new, 0, 6).await, &b"before"[..]);
        let slots = client.read_slots(new, ObjectIndex(1), 1).await.unwrap();
        assert_eq!(slots, [None]);
        assert_eq!(client.find(&tagged(&name, "t")).await.unwrap(), old);

        // A name without a working VDI gets one, too.
        client.delete(&working(&name)).await.unwrap();
        let again = client.rollback(&tagged(&name, "t")).await.unwrap();
        assert_eq!(place.get(again, 0, 6).await, &b"before"[..]);
    })
    .await;
}

#[tokio::test]
async fn a_volume_grows_and_never_shrinks() {
    everywhere(async |place| {
        let client = &place.client;
        let (name, vid) = place.volume("v", MIB).await;
        client.resize(&name, 5 * MIB + 3).await.unwrap();
        let info = client.find_info(&working(&name)).await.unwrap();
        assert_eq!((info.vid, info.size), (vid, 5 * MIB + 3));
        assert_refused!(client.resize(&name, MIB).await, ClientError::Shrink { .. });
        assert!(matches!(
            client.resize(&name, info.max_size() + 1).await,
            Err(ClientError::TooLarge { .. })
        ));
        client.resize(&name, info.max_size()).await.unwrap();
        let grown = client.info(vid).await.unwrap().unwrap();
        assert_eq!(grown.size, info.max_size());
    })
    .await;
}

#[tokio::test]
async fn a_deleted_vdi_is_gone_and_its_name_free() {
    everywhere(async |place| {
        let client = &place.client;
        let (name, vid) = place.volume("v", 16 * MIB).await;
        place.put(vid, 0, b"a").await;
        place.put(vid, 3, b"b").await;
        client.delete(&working(&name)).await.unwrap();
        assert_eq!(
            refusal(client.find(&working(&name)).await),
            ResultCode::NoVdi
        );
        let (again, new) = place.volume("v", MIB).await;
        assert_eq!(again, name);
        let info = client.info(new).await.unwrap().unwrap();
        assert_eq!((info.size, info.parent), (MIB, None));
        let slots = client.read_slots(new, ObjectIndex(0), 4).await.unwrap();
        assert_eq!(slots, [None; 4]);
    })
    .await;
}

#[tokio::test]
async fn deleting_one_version_leaves_the_others() {
    everywhere(async |place| {
        let client = &place.client;
        let (name, first) = place.volume("v", 16 * MIB).await;
        place.put(first, 0, b"kept").await;
        let second = client.snapshot(&name, &tag("a")).await.unwrap();
        let head = client.snapshot(&name, &tag("b")).await.unwrap();

        client.delete(&tagged(&name, "a")).await.unwrap();
        assert_eq!(
            refusal(client.find(&tagged(&name, "a")).await),
            ResultCode::NoTag
        );
        assert_eq!(place.get(head, 0, 4).await, &b"kept"[..]);

        client.delete(&working(&name)).await.unwrap();
        let by_id = VdiSelector::snap_id(name.clone(), 2);
        assert_eq!(client.find(&by_id).await.unwrap(), second);
        assert_eq!(place.get(second, 0, 4).await, &b"kept"[..]);
        client.delete(&by_id).await.unwrap();
        assert_eq!(refusal(client.find(&by_id).await), ResultCode::NoVdi);
    })
    .await;
}

#[tokio::test]
async fn deleting_clears_every_slot_however_they_are_spread() {
    // On embedded alone, where an object takes no more than was written.
    embedded(
        |_config| (),
        async |place| {
            let client = &place.client;
            let (name, vid) = place.volume("v", 4 << 40).await;
            let dense = 1000..1300;
            let spread = (0..40).map(|n| n * 26_214);
            let all: Vec<u32> = dense.chain(spread).chain([(1 << 20) - 1]).collect();
            for &index in &all {
                place.put(vid, index, b"x").await;
            }
            client.delete(&working(&name)).await.unwrap();
            assert_eq!(client.info(vid).await.unwrap(), None);
            for index in all {
                let oid = Oid::data(vid, ObjectIndex(index));
                assert_eq!(
                    refusal(client.read_object(oid, 0, 1).await),
                    ResultCode::NoObj
                );
            }
        },
    )
    .await;
}

#[tokio::test]
async fn a_lock_is_held_until_it_is_given_back() {
    embedded(
        |config| config.format_if_new = false,
        async |place| {
            let client = &place.client;
            let options = sheep_client::cluster::FormatOptions {
                redundancy: Redundancy::Replicated(1),
                flags: ClusterFlags::AUTO_VNODES | ClusterFlags::USE_LOCK,
                ..Default::default()
            };
            client.format(&options).await.unwrap();
            let (name, vid) = place.volume("v", MIB).await;
            assert_eq!(client.lock(&working(&name)).await.unwrap(), vid);
            assert_eq!(
                refusal(client.lock(&working(&name)).await),
                ResultCode::VdiLocked
            );
            client.release(vid).await.unwrap();
            assert_eq!(client.lock(&working(&name)).await.unwrap(), vid);
        },
    )
    .await;
}

#[tokio::test]
async fn without_locking_a_lock_is_a_lookup() {
    everywhere(async |place| {
        let client = &place.client;
        let (name, vid) = place.volume("v", MIB).await;
        for _ in 0..2 {
            assert_eq!(client.lock(&working(&name)).await.unwrap(), vid);
        }
        client.release(vid).await.unwrap();
        assert_eq!(
            refusal(client.lock(&working(&place.name("nobody"))).await),
            ResultCode::NoVdi
        );
    })
    .await;
}
