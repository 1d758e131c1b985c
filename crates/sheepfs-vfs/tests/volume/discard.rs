//! Giving space back.

use std::sync::{Arc, Mutex};

use futures_util::future::join_all;
use nix::errno::Errno;
use sheep_client::VdiSelector;
use sheep_client::testing::{Fault, FaultTransport};
use sheep_proto::{ObjectIndex, Oid, Opcode, ResultCode};

use crate::support::{Cluster, MIB, data_object, open, open_snapshot, pattern, read_all};
use sheepfs_vfs::BlockDevice as _;

#[tokio::test(flavor = "multi_thread")]
async fn discard_deallocates_objects_and_zeroes_parts() {
    let cluster = Cluster::start().await;
    let object = cluster.object_len();
    let len = |objects| cluster.objects_len(objects);
    let name = cluster.create("hole", 5 * object + 7).await;
    let volume = open(&cluster.client, &name).await;
    volume.write_at(0, pattern(9, len(6))).await.unwrap();
    assert_eq!(volume.allocated(), 6 * object);
    volume.discard(object - 10, 3 * object).await.unwrap();
    assert_eq!(volume.allocated(), 4 * object);
    volume.discard(4 * object, 100 * object).await.unwrap();
    assert_eq!(volume.allocated(), 2 * object);

    let mut expected = vec![0; len(5) + 7];
    expected[..len(1) - 10].fill(9);
    expected[len(4) - 10..len(4)].fill(9);
    assert!(read_all(&volume).await == expected);
    let again = open(&cluster.client, &name).await;
    assert!(read_all(&again).await == expected);
    assert_eq!(again.allocated(), 2 * object);
}

#[tokio::test(flavor = "multi_thread")]
async fn discard_in_head_keeps_snapshot_data() {
    let cluster = Cluster::start().await;
    let name = cluster.create("hole-snap", 3 * MIB).await;
    let volume = open(&cluster.client, &name).await;
    volume.write_at(0, pattern(9, 3 << 20)).await.unwrap();
    cluster.snapshot(&name, "full").await;
    volume.write_at(0, pattern(8, 10)).await.unwrap();
    volume.discard(0, 2 * MIB).await.unwrap();
    let head = read_all(&open(&cluster.client, &name).await).await;
    assert!(head[..2 << 20].iter().all(|&byte| byte == 0));
    assert!(head[2 << 20..].iter().all(|&byte| byte == 9));
    let full = open_snapshot(&cluster.client, &name, "full").await;
    assert!(read_all(&full).await == pattern(9, 3 << 20));
    cluster
        .client
        .vdi(&VdiSelector::working(name))
        .delete()
        .await
        .unwrap();
    assert!(read_all(&full).await == pattern(9, 3 << 20));
}

#[tokio::test(flavor = "multi_thread")]
async fn discard_clears_error_of_missing_object() {
    let cluster = Cluster::start().await;
    let object = cluster.object_len();
    let len = |objects| cluster.objects_len(objects);
    let name = cluster.create("lost", 2 * object).await;
    let volume = open(&cluster.client, &name).await;
    volume.write_at(0, pattern(9, len(2))).await.unwrap();
    let lost = Oid::data(volume.info().vid, ObjectIndex(0));
    cluster.client.objects().remove(lost).await.unwrap();
    for volume in [&volume, &open(&cluster.client, &name).await] {
        let error = volume.read_at(0, 10).await.unwrap_err();
        assert_eq!(error.errno(), Errno::EIO, "{error}");
        let error = volume.write_at(5, pattern(8, 10)).await.unwrap_err();
        assert_eq!(error.errno(), Errno::EIO, "{error}");
    }
    volume.discard(0, object).await.unwrap();
    assert_eq!(volume.read_at(0, 10).await.unwrap(), pattern(0, 10));
    volume.write_at(5, pattern(8, 10)).await.unwrap();
    let mut expected = vec![9; len(2)];
    expected[..len(1)].fill(0);
    expected[5..15].fill(8);
    assert!(read_all(&open(&cluster.client, &name).await).await == expected);
}

/// A read in between gets NO_OBJ.
#[tokio::test(flavor = "multi_thread")]
async fn discard_then_create_is_not_missing_object() {
    let cluster = Cluster::start().await;
    let name = cluster.create("again", 2 * MIB).await;
    let missed = Arc::new(Mutex::new(None));
    let plan = Arc::clone(&missed);
    let client = cluster
        .client_through(|inner| {
            FaultTransport::new(inner, move |request| {
                let mut missed = plan.lock().unwrap();
                (data_object(request).is_some()
                    && missed
                        .take_if(|opcode| *opcode == request.opcode())
                        .is_some())
                .then_some(Fault::Refuse(ResultCode::NoObj))
            })
        })
        .await;
    let volume = open(&client, &name).await;
    volume.write_at(0, pattern(9, 100)).await.unwrap();
    *missed.lock().unwrap() = Some(Opcode::ReadObj);
    assert_eq!(volume.read_at(0, 100).await.unwrap(), pattern(9, 100));
    assert_eq!(*missed.lock().unwrap(), None);
    *missed.lock().unwrap() = Some(Opcode::WriteObj);
    volume.write_at(0, pattern(8, 100)).await.unwrap();
    assert_eq!(*missed.lock().unwrap(), None);
    let again = open(&cluster.client, &name).await;
    assert_eq!(again.read_at(0, 100).await.unwrap(), pattern(8, 100));
}

/// A server removes an object some time after its slot was cleared.
#[tokio::test(flavor = "multi_thread")]
async fn discard_reclaim_spares_recreated_object() {
    const OBJECTS: u64 = 8;
    let cluster = Cluster::start().await;
    let name = cluster.create("hole-again", OBJECTS * MIB).await;
    let volume = open(&cluster.client, &name).await;
    for round in 1..=15u8 {
        let rounds = (0..OBJECTS).map(async |object| {
            volume
                .write_at(object * MIB, pattern(round, 4096))
                .await
                .unwrap();
            volume.discard(object * MIB, MIB).await.unwrap();
            volume
                .write_at(object * MIB + 8192, pattern(round, 4096))
                .await
                .unwrap();
        });
        join_all(rounds).await;
        for object in 0..OBJECTS {
            let found = volume.read_at(object * MIB, 12288).await.unwrap();
            assert!(found[..8192].iter().all(|&byte| byte == 0));
            assert_eq!(found[8192..], pattern(round, 4096));
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn discard_under_snapshots_disturbs_no_other_object() {
    let cluster = Cluster::start().await;
    let name = cluster.create("hole-race", 8 * MIB).await;
    let volume = open(&cluster.client, &name).await;
    let snapshots = async {
        for number in 0..8 {
            cluster.snapshot(&name, format!("t{number}")).await;
        }
    };
    // Even objects are punched last, odd ones written last.
    let work = join_all((0..8u64).map(|object| {
        let volume = Arc::clone(&volume);
        async move {
            for round in 1..12u8 {
                volume
                    .write_at(object * MIB, pattern(round, 1 << 20))
                    .await
                    .unwrap();
                volume.discard(object * MIB, MIB).await.unwrap();
                if object % 2 == 1 {
                    volume
                        .write_at(object * MIB, pattern(round, 1 << 20))
                        .await
                        .unwrap();
                }
            }
        }
    }));
    tokio::join!(work, snapshots);
    volume.flush().await.unwrap();
    let content = read_all(&open(&cluster.client, &name).await).await;
    for (object, bytes) in content.chunks(1 << 20).enumerate() {
        let expected = if object % 2 == 1 { 11 } else { 0 };
        assert!(
            bytes.iter().all(|&byte| byte == expected),
            "object {object}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn discard_before_detach_removes_no_later_write() {
    const OBJECTS: u64 = 32;
    let cluster = Cluster::start().await;
    let name = cluster.create("reattach", OBJECTS * MIB).await;
    for round in 1..4u8 {
        let volume = open(&cluster.client, &name).await;
        for object in 0..OBJECTS {
            volume
                .write_at(object * MIB, pattern(99, 512))
                .await
                .unwrap();
        }
        volume.discard(0, OBJECTS * MIB).await.unwrap();
        // Alternately without a close, as after a crash, and with one.
        if round % 2 == 0 {
            volume.close().await.unwrap();
        }
        drop(volume);
        let volume = open(&cluster.client, &name).await;
        for object in (0..OBJECTS).rev() {
            volume
                .write_at(object * MIB, pattern(round, 512))
                .await
                .unwrap();
        }
        for object in 0..OBJECTS {
            assert_eq!(
                volume.read_at(object * MIB, 4).await.unwrap(),
                pattern(round, 4)
            );
        }
    }
}
