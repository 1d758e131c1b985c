//! The cost of many volumes, large volumes and many readers.

use std::fs;
use std::process::Command;
use std::thread;

use anyhow::ensure;
use tests::{Mounted, TestCluster, run};

const KIB: u64 = 1 << 10;

#[test]
fn scale_untouched_volume_needs_under_1_mib() -> anyhow::Result<()> {
    // Several, as the allocator keeps the buffers of the first for the others.
    const VOLUMES: u64 = 48;
    let cluster = TestCluster::start_own()?;
    let mounted = Mounted::start(&cluster, &[])?;
    for number in 0..VOLUMES {
        let line = format!("large-{number} 4T");
        mounted.command("vdi/create", line)?;
    }
    fs::read(mounted.create("small", "4M")?)?;
    let before = mounted.memory()?;
    for number in 0..VOLUMES {
        let path = mounted.attach(&format!("large-{number}"))?;
        assert_eq!(fs::metadata(path)?.len(), 4 << 40);
    }
    let each = mounted.memory()?.saturating_sub(before) / VOLUMES;
    println!("each costs {each} bytes");
    ensure!(each < 1024 * KIB, "each costs {each} bytes");
    Ok(())
}

#[test]
fn scale_thousand_vdis_list_and_attach_cheaply() -> anyhow::Result<()> {
    const VDIS: usize = 1000;
    let cluster = TestCluster::start_own()?;
    let mounted = Mounted::start(&cluster, &[])?;
    // Creates the VDIs, from several threads.
    let creators = 8;
    thread::scope(|scope| {
        let creators: Vec<_> = (0..creators)
            .map(|first| {
                let mounted = &mounted;
                scope.spawn(move || {
                    for number in (first..VDIS).step_by(creators) {
                        mounted.command("vdi/create", format!("vdi-{number:04}- 4M"))?;
                    }
                    std::io::Result::Ok(())
                })
            })
            .collect();
        creators.into_iter().try_for_each(|creator| {
            creator
                .join()
                .expect("creator threads return errors instead of panicking")
        })
    })?;

    // Every one of many concurrent readers gets the whole list.
    let list = mounted.path("vdi/list");
    thread::scope(|scope| {
        let readers: Vec<_> = (0..50)
            .map(|_| scope.spawn(|| run(Command::new("cat").arg(&list))))
            .collect();
        for reader in readers {
            let text = String::from_utf8(
                reader
                    .join()
                    .expect("reader threads return errors instead of panicking")?,
            )?;
            // The header and one line for each.
            assert_eq!(text.lines().count(), VDIS + 1);
            for number in 0..VDIS {
                let name = format!("vdi-{number:04}-");
                ensure!(text.contains(&name), "{name} is not listed");
            }
        }
        anyhow::Ok(())
    })?;

    // Attached together they need little memory and no socket.
    fs::write(mounted.create("first", "4M")?, "data")?;
    let (memory, sockets) = (mounted.memory()?, mounted.sockets()?);
    ensure!(sockets > 0, "it is connected to nothing");
    for number in 0..VDIS {
        mounted.attach(&format!("vdi-{number:04}-"))?;
    }
    let each = mounted.memory()?.saturating_sub(memory) / VDIS as u64;
    println!("each of {VDIS} volumes costs {each} bytes");
    ensure!(each < 64 * KIB, "each costs {each} bytes");
    let more = mounted.sockets()?;
    ensure!(more <= sockets, "{sockets} sockets became {more}");
    assert_eq!(fs::read_dir(mounted.path("volume"))?.count(), VDIS + 1);
    // A sample of the volumes can be written and read.
    for number in (0..VDIS).step_by(97) {
        let path = mounted.volume(&format!("vdi-{number:04}-"));
        let text = format!("volume {number}");
        fs::write(&path, &text)?;
        ensure!(fs::read(&path)?.starts_with(text.as_bytes()));
    }
    Ok(())
}
