//! File handles (`open_by_handle_at(2)`, NFS servers) outlive the kernel's caches.

use std::fs;

use anyhow::{Context as _, ensure};
use nix::errno::Errno;
use tests::{FileHandle, Mounted, TestCluster, detach};

/// Has the kernel evict every inode that is not in use.
fn drop_caches() -> anyhow::Result<()> {
    fs::write("/proc/sys/vm/drop_caches", "2").context("/proc/sys/vm/drop_caches")
}

#[test]
fn file_handle_survives_eviction_of_its_inode() -> anyhow::Result<()> {
    let cluster = TestCluster::start_own()?;
    let mounted = Mounted::start(&cluster, &[])?;
    fs::write(mounted.create("v", "4M")?, "data of the volume")?;
    for (path, expected) in [
        ("", "cluster\nconfig\nnode\nvdi\nvolume\n"),
        ("volume", "v\n"),
        ("config", "object_cache\npage_cache\nsheep_info\n"),
        ("volume/v", "data of the volume"),
        ("vdi/list", "  Name        Id    Size"),
        ("vdi/create", ""),
        ("config/page_cache", "0\n"),
    ] {
        let handle = FileHandle::of(&mounted.path(path))?;
        drop_caches()?;
        let found = handle.read(&mounted.mountpoint())?;
        let found = found.with_context(|| format!("{path:?}"))?;
        ensure!(
            found.starts_with(expected.as_bytes()),
            "{path:?}: {}",
            found.escape_ascii()
        );
    }
    mounted.stop()
}

#[test]
fn file_handle_of_report_reads_present_text() -> anyhow::Result<()> {
    let cluster = TestCluster::start_own()?;
    let mounted = Mounted::start(&cluster, &[])?;
    let handle = FileHandle::of(&mounted.path("vdi/list"))?;
    mounted.command("vdi/create", "later 4M")?;
    drop_caches()?;
    let text = handle.read(&mounted.mountpoint())??;
    ensure!(String::from_utf8(text)?.contains("later"));
    mounted.stop()
}

#[test]
fn file_handle_is_stale_while_volume_is_detached() -> anyhow::Result<()> {
    let cluster = TestCluster::start_own()?;
    let mounted = Mounted::start(&cluster, &[])?;
    fs::write(mounted.create("v", "4M")?, "first")?;
    fs::write(mounted.create("w", "4M")?, "other")?;
    let handle = FileHandle::of(&mounted.volume("v"))?;
    detach(&mounted, "v")?;
    for drops in 0..2 {
        if drops > 0 {
            drop_caches()?;
        }
        let found = handle.read(&mounted.mountpoint())?;
        assert_eq!(found, Err(Errno::ESTALE), "{drops}");
    }
    mounted.attach("v")?;
    drop_caches()?;
    ensure!(handle.read(&mounted.mountpoint())??.starts_with(b"first"));

    mounted.stop()
}

#[test]
fn file_handle_is_stale_in_later_mount() -> anyhow::Result<()> {
    let cluster = TestCluster::start_own()?;
    let mounted = Mounted::start(&cluster, &[])?;
    mounted.create("v", "4M")?;
    mounted.command("vdi/create", "w 4M")?;
    let handle = FileHandle::of(&mounted.volume("v"))?;
    mounted.stop()?;

    let mounted = Mounted::start(&cluster, &[])?;
    // Attached first, as the other one was.
    mounted.attach("w")?;
    let found = handle.read(&mounted.mountpoint())?;
    assert_eq!(found, Err(Errno::ESTALE));
    mounted.stop()
}
