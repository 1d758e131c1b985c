//! A client of sheep that was not written here, on the same volumes as sheepfs.

use std::fs::{self, File};
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::process::Command;

use anyhow::ensure;
use tempfile::TempDir;
use tests::{IscsiTarget, MIB, Mounted, TestCluster, run, seeded};

const SIZE: usize = 64 * MIB;

/// Runs commands of qemu-io on the disk; each must succeed, patterns included.
fn qemu_io(url: &str, commands: &[&str]) -> anyhow::Result<()> {
    let mut qemu_io = Command::new("qemu-io");
    qemu_io.args(["-f", "raw"]);
    for command in commands {
        qemu_io.args(["-c", command]);
    }
    let printed = String::from_utf8(run(qemu_io.arg(url))?)?;
    // It exits with 0 although a pattern did not match.
    ensure!(!printed.contains("verification failed"), "{printed}");
    Ok(())
}

fn qemu_img(arguments: &[&str]) -> anyhow::Result<()> {
    run(Command::new("qemu-img").args(arguments)).map(drop)
}

fn is_all(path: &Path, offset: usize, len: usize, value: u8) -> anyhow::Result<()> {
    let mut found = vec![!value; len];
    File::open(path)?.read_exact_at(&mut found, offset as u64)?;
    let at = found.iter().position(|&byte| byte != value);
    ensure!(
        at.is_none(),
        "{}: not {value:#x} at {offset} + {at:?}",
        path.display()
    );
    Ok(())
}

#[test]
fn tgt_and_sheepfs_read_each_others_writes() -> anyhow::Result<()> {
    let cluster = TestCluster::start()?;
    let mounted = Mounted::start(&cluster, &[])?;
    let name = cluster.unique_name("tgt");
    mounted.command("vdi/create", format!("{name} 64M"))?;

    // Within an object, across two, at the end; holes between.
    let target = IscsiTarget::serve(cluster.address(), &name)?;
    qemu_io(
        &target.url(),
        &[
            "write -P 0x11 0 1M",
            "write -P 0x22 4M 512",
            "write -P 0x33 8388096 1024",
            "write -P 0x44 67108352 512",
            "flush",
            "read -P 0x11 0 1M",
            "read -P 0 1M 3M",
        ],
    )?;
    target.close()?;

    // sheepfs reads what tgt wrote, and overwrites parts of it.
    let path = mounted.attach(&name)?;
    is_all(&path, 0, MIB, 0x11)?;
    is_all(&path, MIB, 3 * MIB, 0)?;
    is_all(&path, 4 * MIB, 512, 0x22)?;
    is_all(&path, 8 * MIB - 512, 1024, 0x33)?;
    is_all(&path, 8 * MIB + 512, SIZE - 8 * MIB - 1024, 0)?;
    is_all(&path, SIZE - 512, 512, 0x44)?;
    let file = File::options().write(true).open(&path)?;
    file.write_all_at(&[0x55; 100_000], 4096)?;
    file.write_all_at(&[0x66; 2 * MIB], (11 * MIB) as u64)?;
    drop(file);
    mounted.command("vdi/unmount", &name)?;

    // tgt reads both.
    let target = IscsiTarget::serve(cluster.address(), &name)?;
    qemu_io(
        &target.url(),
        &[
            "read -P 0x11 0 4096",
            "read -P 0x55 4096 100000",
            "read -P 0x11 104096 944480",
            "read -P 0x66 11M 2M",
            "read -P 0x44 67108352 512",
        ],
    )?;

    // Its next write finds that the VDI has become a snapshot, and goes to the new head.
    mounted.command("vdi/snapshot", format!("{name} before"))?;
    qemu_io(
        &target.url(),
        &[
            "write -P 0x77 0 8192",
            "write -P 0x88 20M 1M",
            "read -P 0x77 0 8192",
            "read -P 0x55 8192 95904",
            "read -P 0x66 11M 2M",
            "read -P 0x88 20M 1M",
        ],
    )?;
    target.close()?;

    // sheepfs reads the new head, and the snapshot without the later writes.
    let path = mounted.attach(&name)?;
    is_all(&path, 0, 8192, 0x77)?;
    is_all(&path, 8192, 95_904, 0x55)?;
    is_all(&path, 11 * MIB, 2 * MIB, 0x66)?;
    is_all(&path, 20 * MIB, MIB, 0x88)?;
    let snapshot = mounted.attach(&format!("{name}@before"))?;
    is_all(&snapshot, 0, 4096, 0x11)?;
    is_all(&snapshot, 4096, 100_000, 0x55)?;
    is_all(&snapshot, 20 * MIB, MIB, 0)
}

#[test]
fn tgt_copy_of_image_matches_mount() -> anyhow::Result<()> {
    let cluster = TestCluster::start()?;
    let mounted = Mounted::start(&cluster, &[])?;
    let name = cluster.unique_name("tgt-image");
    mounted.command("vdi/create", format!("{name} 64M"))?;
    let scratch = TempDir::with_prefix("sheepfs-test-image-")?;
    let image = scratch.path().join("image.raw");
    let mut bytes = vec![0; SIZE];
    let mut random = seeded();
    random.fill(&mut bytes[..13 * MIB + 777]);
    random.fill(&mut bytes[40 * MIB - 1..]);
    fs::write(&image, &bytes)?;
    let image = image.to_string_lossy();

    let target = IscsiTarget::serve(cluster.address(), &name)?;
    let (raw, url) = (["-f", "raw"], target.url());
    qemu_img(&["convert", "-n", raw[0], raw[1], "-O", "raw", &image, &url])?;
    qemu_img(&["compare", raw[0], raw[1], "-F", "raw", &image, &url])?;
    target.close()?;

    let path = mounted.attach(&name)?;
    ensure!(fs::read(path)? == bytes, "the image has changed on its way");
    Ok(())
}
