//! Copies in and out, comparisons, load.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::process::Command;

use anyhow::ensure;
use tests::{NbdServer, make_image, run};

use crate::{Fixture, program, text};

/// The way out is the recipe of README.
#[test]
fn nbdcopy_keeps_holes_both_ways() -> anyhow::Result<()> {
    let fixture = Fixture::start()?;
    let name = fixture.create("copied", "32M object_size=1M")?;
    let server = NbdServer::start(&fixture.cluster, &[&name])?;
    let (image, back) = (server.path("image"), server.path("back"));
    make_image(&image)?;
    let several = "--connections=4";
    run(Command::new("nbdcopy")
        .args([several, "--requests=32"])
        .arg(&image)
        .arg(server.uri(&name)))?;
    run(Command::new("nbdcopy")
        .arg(several)
        .arg(server.uri(&name))
        .arg(&back))?;
    run(Command::new("qemu-img")
        .args(["compare", "-f", "raw", "-F", "raw"])
        .arg(server.uri(&name))
        .arg(&back))?;
    run(Command::new("cmp").arg(&image).arg(&back))?;
    let blocks = fs::metadata(&back)?.blocks() * 512;
    ensure!(blocks < 8 << 20, "the hole is full: {blocks} bytes");
    // What came through NBD is what the mount has, and is as sparse there.
    let file = fixture.file(&name)?;
    run(Command::new("cmp").arg(&image).arg(&file))?;
    let blocks = fs::metadata(&file)?.blocks() * 512;
    ensure!(blocks < 8 << 20, "the volume is full: {blocks} bytes");
    server.stop()
}

#[test]
fn qemu_img_converts_compares_maps_and_benches() -> anyhow::Result<()> {
    let fixture = Fixture::start()?;
    let name = fixture.create("converted", "32M object_size=1M")?;
    let server = NbdServer::start(&fixture.cluster, &[&name])?;
    let uri = server.uri(&name);
    let (image, back) = (server.path("image"), server.path("back.qcow2"));
    make_image(&image)?;
    let qemu_img = |arguments: &[&str]| {
        let mut command = Command::new("qemu-img");
        command.args(arguments);
        command
    };
    let into = ["convert", "-n", "-W", "-m", "8", "-f", "raw", "-O", "raw"];
    run(qemu_img(&into).arg(&image).arg(&uri))?;
    run(qemu_img(&["compare", "-f", "raw", "-F", "raw"])
        .arg(&image)
        .arg(&uri))?;
    let out = ["convert", "-f", "raw", "-O", "qcow2"];
    run(qemu_img(&out).arg(&uri).arg(&back))?;
    run(qemu_img(&["compare", "-f", "qcow2", "-F", "raw"])
        .arg(&back)
        .arg(&image))?;
    let map = text(qemu_img(&["map", "--output=json", "-f", "raw"]).arg(&uri))?;
    ensure!(map.contains("\"zero\": true, \"data\": false"), "{map}");
    let bench_read = ["bench", "-f", "raw", "-c", "2000", "-d", "64", "-s", "4096"];
    run(qemu_img(&bench_read).arg(&uri))?;
    let bench_write = ["-w", "--flush-interval=100", "--pattern=7"];
    run(qemu_img(&bench_read).args(bench_write).arg(&uri))?;
    server.stop()
}

#[test]
fn qemu_io_patterns_are_right_across_objects() -> anyhow::Result<()> {
    let fixture = Fixture::start()?;
    let name = fixture.create("patterns", "16M object_size=1M")?;
    let server = NbdServer::start(&fixture.cluster, &[&name])?;
    let commands = [
        "write -P 0x11 0 8M",
        "write -f -P 0x22 1023k 2k",
        "write -z 4M 1M",
        "write -z -u 5M 1M",
        "discard 6M 1M",
        "flush",
        "read -P 0x11 0 1023k",
        "read -P 0x22 1023k 2k",
        "read -P 0x11 1025k 3047k",
        "read -P 0 4M 3M",
        "read -P 0x11 7M 1M",
        "read -P 0 8M 8M",
        "aio_write -P 0x33 9M 1M",
        "aio_write -P 0x44 11M 1M",
        "aio_flush",
        "read -P 0x33 9M 1M",
        "read -P 0x44 11M 1M",
    ];
    let mut qemu_io = Command::new("qemu-io");
    qemu_io.args(["-f", "raw", "-d", "unmap", "-t", "none"]);
    for command in commands {
        qemu_io.args(["-c", command]);
    }
    let printed = text(qemu_io.arg(server.uri(&name)))?;
    // qemu-io exits with 0 even when a pattern is wrong.
    ensure!(!printed.contains("failed"), "{printed}");
    server.stop()
}

#[test]
fn fio_verifies_mixed_io_at_depth_32() -> anyhow::Result<()> {
    let fixture = Fixture::start()?;
    let name = fixture.create("verified", "64M object_size=1M")?;
    let server = NbdServer::start(&fixture.cluster, &[&name])?;
    program(
        "fio",
        &[
            "--name=verify",
            "--ioengine=nbd",
            &format!("--uri={}", server.uri(&name)),
            "--rw=randrw",
            "--bsrange=512-128k",
            "--blockalign=512",
            "--size=64m",
            "--io_size=64m",
            "--iodepth=32",
            "--verify=crc32c",
            "--verify_fatal=1",
            "--fsync=64",
            // The file would be left in the working directory.
            "--verify_state_save=0",
            "--randseed=1",
        ],
    )?;
    server.stop()
}

#[test]
fn mount_and_export_of_one_volume_are_coherent() -> anyhow::Result<()> {
    use std::os::unix::fs::FileExt as _;
    let fixture = Fixture::start()?;
    let name = fixture.create("shared", "16M object_size=1M")?;
    let file = tests::open(&fixture.file(&name)?)?;
    // One of two that write to a VDI at once must not lock it.
    let server = NbdServer::start(&fixture.cluster, &["--lock=off", &name])?;
    let mut found = vec![0; 4096];
    for round in 0..16_u64 {
        let byte = u8::try_from(round + 1)?;
        file.write_all_at(&[byte; 4096], round << 20)?;
        let (here, there) = (round << 20, (round << 20) + 8192);
        let read = format!("read -P {byte} {here} 4k");
        let write = format!("write -P {byte} {there} 4k");
        let io = ["-f", "raw", "-c", &read, "-c", &write, &server.uri(&name)];
        let printed = program("qemu-io", &io)?;
        ensure!(!printed.contains("failed"), "{round}: {printed}");
        file.read_exact_at(&mut found, there)?;
        ensure!(found == vec![byte; 4096], "round {round}");
    }
    // What the mount wrote just now is no hole to somebody who copies it.
    let back = server.path("back");
    run(Command::new("nbdcopy").arg(server.uri(&name)).arg(&back))?;
    ensure!(fs::read(back)? == fs::read(fixture.mounted.volume(&name))?);
    server.stop()
}
