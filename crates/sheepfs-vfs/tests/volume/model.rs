//! Random operations on volumes against a vector of bytes.

use crate::support::{Cluster, open, open_version, read_all, tag, unique_name};
use sheep_client::VdiSelector;
use sheep_proto::VdiName;

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
            80..86 => {
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
