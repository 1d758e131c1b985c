//! A virtual machine that boots from an export.

use std::fs;
use std::process::Command;
use std::time::Duration;

use anyhow::ensure;
use tests::{NbdServer, output, run, seeded};

use crate::Fixture;

const SECTOR: usize = 512;
/// Sector that the machine reads, and the one that it writes the same bytes to.
const SOURCE: u8 = 8;
const TARGET: u8 = 9;
/// Exit status of QEMU after 0x2a was written to the debug port: `value << 1 | 1`.
const SUCCESS: i32 = 0x55;
const LIMIT: Duration = Duration::from_secs(60);

/// A boot sector: reads [`SOURCE`] and writes it to [`TARGET`] by the disk services of
/// the BIOS, then ends the machine through the debug port.
#[rustfmt::skip]
const BOOT: [u8; 56] = [
    0x31, 0xc0, 0x8e, 0xd8, 0x8e, 0xc0,         // 00 xor ax, ax; mov ds, ax; mov es, ax
    0xbe, 0x28, 0x7c,                           // 06 mov si, packet
    0xb4, 0x42, 0xcd, 0x13, 0x72, 0x11,         // 09 read; jc failed
    0xc7, 0x06, 0x30, 0x7c, TARGET, 0,    // 0f mov word [packet + 8], TARGET
    0xb8, 0x00, 0x43, 0xcd, 0x13, 0x72, 0x04,   // 15 write; jc failed
    0xb0, 0x2a, 0xe6, 0xf4,                     // 1c mov al, 0x2a; out 0xf4, al
    0xb0, 0x01, 0xe6, 0xf4,                     // 20 failed: mov al, 1; out 0xf4, al
    0xf4, 0xeb, 0xfd, 0,                        // 24 hlt; jmp 0x24
    16, 0, 1, 0, 0x00, 0x80, 0, 0,              // 28 packet: one sector at 0:8000
    SOURCE, 0, 0, 0, 0, 0, 0, 0,
];

#[test]
fn qemu_system_boots_reads_and_writes() -> anyhow::Result<()> {
    let fixture = Fixture::start()?;
    let name = fixture.create("boot", "8M object_size=1M")?;
    let server = NbdServer::start(&fixture.cluster, &[&name])?;
    let (image, back) = (server.path("image"), server.path("back"));
    let mut bytes = vec![0; 8 << 20];
    bytes[..BOOT.len()].copy_from_slice(&BOOT);
    bytes[SECTOR - 2..SECTOR].copy_from_slice(&[0x55, 0xaa]);
    let [source, target] = [SOURCE, TARGET].map(|sector| usize::from(sector) * SECTOR);
    seeded().fill(&mut bytes[source..source + SECTOR]);
    fs::write(&image, &bytes)?;
    run(Command::new("nbdcopy").arg(&image).arg(server.uri(&name)))?;
    let drive = format!("file={},format=raw,if=ide", server.uri(&name));
    let finished = output(
        LIMIT,
        Command::new("qemu-system-x86_64")
            .args(["-machine", "pc,accel=tcg", "-m", "32", "-nodefaults"])
            .args(["-display", "none", "-drive", &drive])
            .args(["-device", "isa-debug-exit,iobase=0xf4,iosize=1"]),
    )?;
    ensure!(finished.status.code() == Some(SUCCESS), "{finished:?}");
    run(Command::new("nbdcopy").arg(server.uri(&name)).arg(&back))?;
    bytes.copy_within(source..source + SECTOR, target);
    ensure!(fs::read(&back)? == bytes);
    server.stop()
}
