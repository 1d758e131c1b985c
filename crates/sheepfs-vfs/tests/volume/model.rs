//! Random operations on volumes against a vector of bytes.

use crate::support::{Cluster, formatted, open, open_version, read_all, tag, unique_name};
use sheep_client::VdiSelector;
use sheep_proto::{ClusterFlags, VdiName};

const MIB: u64 = 1 << 20;
const STEPS: usize = 150;

/// Performs random operations on one VDI; returns the snapshots taken and what
/// each must hold.
async fn random_operations(cluster: &Cluster, name: &VdiName, seed: u64) -> Vec<(String, Vec<u8>)> {
    let mut rng = fastrand::Rng::with_seed(seed);
    let mut volume = open(&cluster.client, name).await;
    let mut model = read_all(&volume).await;
    let mut snapshots = Vec::new();
    for step in 0..STEPS {
        let size = model.len() as u64;
        let offset = rng.u64(0..size);
        let len = usize::try_from(rng.u64(1..=(size - offset).min(3 * MIB))).unwrap();
        let start = usize::try_from(offset).unwrap();
        match rng.u8(0..100) {
            0..40 => {
                let mut data = vec![0; if rng.bool() { len } else { len.min(5000) }];
                rng.fill(&mut data);
                model[start..start + data.len()].copy_from_slice(&data);
                let len = u32::try_from(data.len()).unwrap();
                assert_eq!(volume.write_at(offset, data.into()).await.unwrap(), len);
            }
            40..75 => {
                let found = volume
                    .read_at(offset, u32::try_from(len).unwrap())
                    .await
                    .unwrap();
                assert!(
                    found == model[start..start + len],
                    "seed {seed}, step {step}"
                );
            }
            75..80 => {
                volume.punch_hole(offset, len as u64).await.unwrap();
                model[start..start + len].fill(0);
            }
            80..86 if !volume.info().hypervolume => {
                let text = format!("s{step}");
                cluster.client.snapshot(name, &tag(&text)).await.unwrap();
                snapshots.push((text, model.clone()));
            }
            86..90 => {
                let size = size + rng.u64(0..MIB);
                volume.set_size(size).await.unwrap();
                model.resize(usize::try_from(size).unwrap(), 0);
            }
            90..94 => volume.sync().await.unwrap(),
            _ => {
                volume.close().await.unwrap();
                volume = open(&cluster.client, name).await;
            }
        }
    }
    assert!(read_all(&volume).await == model, "seed {seed}, at the end");
    volume.close().await.unwrap();
    snapshots
}

async fn check_snapshots(cluster: &Cluster, name: &VdiName, snapshots: &[(String, Vec<u8>)]) {
    for (text, expected) in snapshots {
        let snapshot =
            open_version(&cluster.client, VdiSelector::tag(name.clone(), tag(text))).await;
        assert!(!snapshot.is_writable());
        assert!(&read_all(&snapshot).await == expected, "snapshot {text}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_volume_holds_what_was_written_and_its_snapshots_what_was_then() {
    let cluster = Cluster::start().await;
    for size in [5 * MIB + 4097, 2 * MIB, 1] {
        let seed = fastrand::u64(..);
        println!("seed {seed}");
        let name = cluster.create("model", size).await;
        let snapshots = random_operations(&cluster, &name, seed).await;
        check_snapshots(&cluster, &name, &snapshots).await;
        cluster
            .client
            .delete(&VdiSelector::working(name.clone()))
            .await
            .unwrap();
        check_snapshots(&cluster, &name, &snapshots).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clone_goes_its_own_way_and_leaves_its_parent_alone() {
    let cluster = Cluster::start().await;
    let seed = fastrand::u64(..);
    println!("seed {seed}");
    let name = cluster.create("parent", 4 * MIB + 1).await;
    random_operations(&cluster, &name, seed).await;
    cluster.client.snapshot(&name, &tag("base")).await.unwrap();
    let base = VdiSelector::tag(name.clone(), tag("base"));
    let before = read_all(&*open_version(&cluster.client, base.clone()).await).await;

    let clone = unique_name("clone");
    cluster.client.clone_vdi(&base, &clone).await.unwrap();
    let parent = open(&cluster.client, &name).await;
    let (snapshots, ()) = tokio::join!(random_operations(&cluster, &clone, seed ^ 1), async {
        for byte in 0..4u8 {
            let data = vec![byte; usize::try_from(MIB).unwrap()];
            parent
                .write_at(u64::from(byte) * MIB, data.into())
                .await
                .unwrap();
        }
    });
    check_snapshots(&cluster, &clone, &snapshots).await;
    assert!(read_all(&*open_version(&cluster.client, base).await).await == before);
    let parent = read_all(&parent).await;
    assert!((0..4).all(|byte| {
        let start = byte * usize::try_from(MIB).unwrap();
        parent[start] == u8::try_from(byte).unwrap()
    }));
}

#[tokio::test(flavor = "multi_thread")]
async fn every_kind_of_vdi_holds_what_was_written() {
    let cluster = Cluster::start().await;
    let seed = fastrand::u64(..);
    println!("seed {seed}");
    for shift in [20, 21, 22, 23, 25] {
        let name = cluster
            .create_kind("shift", |new| {
                new.size = 9 * MIB + 3;
                new.object_shift = Some(shift);
            })
            .await;
        random_operations(&cluster, &name, seed ^ u64::from(shift)).await;
    }
    let name = cluster
        .create_kind("hyper", |new| {
            new.size = 13 * MIB + 5;
            new.hypervolume = true;
        })
        .await;
    random_operations(&cluster, &name, seed ^ 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hypervolume_is_written_beyond_what_a_flat_index_can_name() {
    const TIB: u64 = 1 << 40;
    let cluster = Cluster::start().await;
    let name = cluster
        .create_kind("far", |new| {
            new.size = 16 * TIB;
            new.hypervolume = true;
        })
        .await;
    let volume = open(&cluster.client, &name).await;
    let far = [0, 5 * TIB + 77, 16 * TIB - 100, TIB, 4 * TIB - 50];
    let writes = far.map(|offset| volume.write_at(offset, vec![7; 100].into()));
    for written in futures_util::future::join_all(writes).await {
        assert_eq!(written.unwrap(), 100);
    }
    volume.punch_hole(TIB, 4 << 20).await.unwrap();
    let again = open(&cluster.client, &name).await;
    for offset in far {
        let expected = if offset == TIB { 0 } else { 7 };
        assert_eq!(
            again.read_at(offset, 100).await.unwrap(),
            vec![expected; 100]
        );
    }
    assert_eq!(
        again.next_data(5 * TIB + (4 << 20)).unwrap(),
        16 * TIB - (4 << 20)
    );
    assert_eq!(again.allocated(), 5 * (4 << 20));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_largest_objects_are_as_good_as_any() {
    // A C sheep takes 2 GiB from its disk for the first byte of each.
    let cluster = formatted(ClusterFlags::empty()).await;
    let name = cluster
        .create_kind("largest", |new| {
            new.size = (9 << 30) + 3;
            new.object_shift = Some(31);
        })
        .await;
    let volume = open(&cluster.client, &name).await;
    let border = 2u64 << 30;
    volume
        .write_at(border - 5, vec![7; 10].into())
        .await
        .unwrap();
    volume
        .write_at(4 * border, vec![8; 10].into())
        .await
        .unwrap();
    let again = open(&cluster.client, &name).await;
    assert_eq!(
        again.read_at(border - 6, 12).await.unwrap(),
        b"\0\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\0"[..]
    );
    assert_eq!(again.read_at(4 * border, 10).await.unwrap(), vec![8; 10]);
    assert_eq!(again.next_data(2 * border).unwrap(), 4 * border);
}
