//! A hypervisor with the volume as its image file.

use std::process::Command;

use tempfile::TempDir;
use tests::{Mounted, TestCluster, make_image, run};

fn qemu_img() -> Command {
    Command::new("qemu-img")
}

#[test]
fn qemu_img_convert_round_trips() -> anyhow::Result<()> {
    let cluster = TestCluster::start()?;
    let mounted = Mounted::start(&cluster, &[])?;
    let volume = mounted.create(&cluster.unique_name("image"), "32M")?;
    let scratch = TempDir::with_prefix("sheepfs-test-image-")?;
    let raw = scratch.path().join("image.raw");
    let packed = scratch.path().join("image.qcow2");
    make_image(&raw)?;
    run(qemu_img()
        .args(["convert", "-f", "raw", "-O", "qcow2"])
        .arg(&raw)
        .arg(&packed))?;

    // -n: the volume exists; it is filled, not replaced.
    run(qemu_img()
        .args(["convert", "-n", "-f", "qcow2", "-O", "raw"])
        .arg(&packed)
        .arg(&volume))?;
    run(qemu_img()
        .args(["compare", "-f", "qcow2", "-F", "raw"])
        .arg(&packed)
        .arg(&volume))?;

    let back = scratch.path().join("back.qcow2");
    run(qemu_img()
        .args(["convert", "-f", "raw", "-O", "qcow2"])
        .arg(&volume)
        .arg(&back))?;
    run(qemu_img()
        .args(["compare", "-f", "qcow2", "-F", "raw"])
        .arg(&back)
        .arg(&raw))?;
    run(qemu_img().args(["check"]).arg(&back))?;
    Ok(())
}

#[test]
fn qemu_io_without_cache_works() -> anyhow::Result<()> {
    let cluster = TestCluster::start()?;
    let mounted = Mounted::start(&cluster, &[])?;
    let volume = mounted.create(&cluster.unique_name("uncached"), "32M")?;
    let scratch = TempDir::with_prefix("sheepfs-test-image-")?;
    let raw = scratch.path().join("image.raw");
    make_image(&raw)?;

    let convert = [
        "convert", "-n", "-t", "none", "-T", "none", "-f", "raw", "-O", "raw",
    ];
    run(qemu_img().args(convert).arg(&raw).arg(&volume))?;
    run(qemu_img()
        .args(["compare", "-T", "none", "-f", "raw", "-F", "raw"])
        .arg(&volume)
        .arg(&raw))?;
    run(Command::new("cmp").arg(&volume).arg(&raw))?;
    Ok(())
}

#[test]
fn qemu_io_patterns_cross_object_boundaries() -> anyhow::Result<()> {
    let cluster = TestCluster::start()?;
    let mounted = Mounted::start(&cluster, &[])?;
    let volume = mounted.create(&cluster.unique_name("patterns"), "16M object_size=1M")?;
    let commands = [
        "write -P 0x11 0 8M",
        "write -P 0x22 1023k 2k",
        "write -z 4M 1M",
        "discard 6M 1M",
        "flush",
        "read -P 0x11 0 1023k",
        "read -P 0x22 1023k 2k",
        "read -P 0x11 1025k 3047k",
        "read -P 0 4M 1M",
        "read -P 0x11 7M 1M",
        "read -P 0 8M 8M",
    ];
    let mut qemu_io = Command::new("qemu-io");
    qemu_io.args(["-f", "raw", "-d", "unmap", "-t", "none"]);
    for command in commands {
        qemu_io.args(["-c", command]);
    }
    let printed = String::from_utf8(run(qemu_io.arg(&volume))?)?;
    // qemu-io exits with 0 even when a pattern is wrong.
    assert!(!printed.contains("verification failed"), "{printed}");
    Ok(())
}
