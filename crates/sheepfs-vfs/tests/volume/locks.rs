//! Locks in a cluster formatted with locking.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use sheep_client::testing::{Fault, FaultTransport};
use sheep_client::{ClientError, VdiSelector};
use sheep_proto::{ClusterFlags, Opcode, ResultCode};
use sheepfs_vfs::{
    BlockDevice as _, FsError, LockMode, Tree, TreeConfig, Volume, VolumeError, VolumeOptions,
};

use crate::support::{Cluster, MIB, formatted, open, open_version, pattern, tag, write_file};

async fn locked_cluster() -> Cluster {
    formatted(ClusterFlags::USE_LOCK).await
}

async fn is_locked(cluster: &Cluster, selector: &VdiSelector) -> bool {
    match cluster.client.vdi(selector).lock().await {
        Ok(vid) => {
            cluster.client.inode(vid).unlock().await.unwrap();
            false
        }
        Err(ClientError::Refused {
            code: ResultCode::VdiLocked,
            ..
        }) => true,
        Err(error) => panic!("{error}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn lock_is_held_until_volume_is_closed() {
    let cluster = locked_cluster().await;
    let name = cluster.create("locked", MIB).await;
    let selector = VdiSelector::working(name.clone());
    let volume = open(&cluster.client, &name).await;
    let options = VolumeOptions::default();
    let second = Volume::open(cluster.client.clone(), selector.clone(), options).await;
    assert_eq!(second.unwrap_err().errno(), nix::errno::Errno::EBUSY);
    volume.close().await.unwrap();
    assert!(!is_locked(&cluster, &selector).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn lock_follows_volume_over_snapshot() {
    let cluster = locked_cluster().await;
    let name = cluster.create("moving", MIB).await;
    let selector = VdiSelector::working(name.clone());
    let volume = open(&cluster.client, &name).await;
    volume.write_at(0, pattern(1, 10)).await.unwrap();
    cluster.snapshot(&name, "s").await;
    volume.write_at(0, pattern(2, 10)).await.unwrap();
    assert!(is_locked(&cluster, &selector).await);
    let snapshot = VdiSelector::tag(name, tag("s"));
    assert!(!is_locked(&cluster, &snapshot).await);
    let reader = open_version(&cluster.client, snapshot).await;
    assert_eq!(reader.read_at(0, 10).await.unwrap(), pattern(1, 10));
    volume.close().await.unwrap();
    assert!(!is_locked(&cluster, &selector).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn lock_is_not_taken_by_readers_or_off() {
    let cluster = locked_cluster().await;
    let name = cluster.create("unlocked", MIB).await;
    let selector = VdiSelector::working(name);
    for options in [
        VolumeOptions::default().with_read_only(true),
        VolumeOptions::default().with_lock(false),
    ] {
        let volume = Volume::open(cluster.client.clone(), selector.clone(), options)
            .await
            .unwrap();
        assert!(!is_locked(&cluster, &selector).await);
        volume.close().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn lock_required_is_refused_without_cluster_locking() {
    let config = TreeConfig::default().with_lock(LockMode::Require);
    let with = locked_cluster().await;
    let name = with.create("required", MIB).await;
    let tree = Tree::new(with.client.clone(), config);
    tree.attachments().attach(name.as_bytes()).await.unwrap();
    assert!(is_locked(&with, &VdiSelector::working(name)).await);

    let without = formatted(ClusterFlags::empty()).await;
    let name = without.create("required", MIB).await;
    let tree = Tree::new(without.client.clone(), config);
    let refused = tree.attachments().attach(name.as_bytes()).await;
    assert!(matches!(
        refused,
        Err(FsError::Volume(VolumeError::NoLocking))
    ));
}

#[tokio::test(flavor = "multi_thread")]
async fn lock_left_by_crash_is_broken_on_request() {
    let cluster = locked_cluster().await;
    let name = cluster.create("stale", MIB).await;
    let selector = VdiSelector::working(name.clone());
    cluster.client.vdi(&selector).lock().await.unwrap();
    let config = TreeConfig::default();
    let tree = Tree::new(cluster.client.clone(), config);
    let refused = tree
        .attachments()
        .attach(name.as_bytes())
        .await
        .unwrap_err();
    assert_eq!(refused.errno(), nix::errno::Errno::EBUSY);

    assert_eq!(
        tell(&tree, "unlock", name.as_bytes()).await.unwrap(),
        name.as_bytes().len()
    );
    tree.attachments().attach(name.as_bytes()).await.unwrap();
    let refused = tell(&tree, "unlock", name.as_bytes()).await.unwrap_err();
    assert_eq!(refused.errno(), nix::errno::Errno::EBUSY);
}

/// Writes a line to a file under `vdi/`.
async fn tell(tree: &std::sync::Arc<Tree>, file: &str, line: &[u8]) -> Result<usize, FsError> {
    let vdi = tree.lookup(sheepfs_vfs::Ino::ROOT, b"vdi").await?;
    let file = tree.lookup(vdi.ino, file.as_bytes()).await?;
    let mode = sheepfs_vfs::OpenMode {
        read: false,
        write: true,
    };
    let opened = tree
        .files()
        .open(file.ino, mode, tokio::time::Instant::now())
        .await?;
    let written = write_file(tree, opened.handle, 0, line).await;
    tree.files().release(opened.handle);
    written.map(|len| len as usize)
}

#[tokio::test(flavor = "multi_thread")]
async fn lock_is_kept_when_stat_is_cancelled() {
    let cluster = locked_cluster().await;
    let name = cluster.create("slow-lock", 4 * MIB).await;
    let locks = AtomicUsize::new(0);
    let client = cluster
        .client_through(|inner| {
            FaultTransport::new(inner, move |request| {
                let second = request.opcode() == Opcode::LockVdi
                    && locks.fetch_add(1, Ordering::AcqRel) == 1;
                second.then_some(Fault::DelayResponse(Duration::from_millis(300)))
            })
        })
        .await;
    let volume = open(&client, &name).await;
    volume.write_at(0, pattern(1, 4096)).await.unwrap();
    cluster.snapshot(&name, "s").await;
    let stat = volume.revalidate_header();
    let cancelled = tokio::time::timeout(Duration::from_millis(100), stat).await;
    assert!(cancelled.is_err(), "the lock was not slow");
    volume.write_at(0, pattern(2, 4096)).await.unwrap();
    volume.close().await.unwrap();
    assert!(!is_locked(&cluster, &VdiSelector::working(name)).await);
}
