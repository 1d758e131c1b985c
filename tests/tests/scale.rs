//! Many volumes, large volumes, many readers: what they cost.

use std::fs;
use std::process::Command;
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use tempfile::TempDir;
use tests::{Mounted, TestCluster, run, wait_until};

const KIB: u64 = 1 << 10;

/// A mount and the `/proc` directory of its process.
struct Watched {
    mounted: Mounted,
    process: String,
    _pidfile: TempDir,
}

impl Watched {
    fn start(cluster: &TestCluster) -> anyhow::Result<Self> {
        let directory = TempDir::with_prefix("sheepfs-test-pid-")?;
        let pidfile = directory.path().join("pid");
        let mounted = Mounted::start(cluster, &["--pidfile", pidfile.to_str().context("ASCII")?])?;
        wait_until("the pidfile is written", Duration::from_secs(5), || {
            Ok(fs::read_to_string(&pidfile).is_ok_and(|text| text.ends_with('\n')))
        })?;
        let pid = fs::read_to_string(&pidfile)?;
        Ok(Self {
            mounted,
            process: format!("/proc/{}", pid.trim()),
            _pidfile: directory,
        })
    }

    /// Bytes of memory that are its own.
    fn memory(&self) -> anyhow::Result<u64> {
        let status = fs::read_to_string(format!("{}/status", self.process))?;
        // "VmRSS:      9876 kB"
        let line = status.lines().find(|line| line.starts_with("VmRSS:"));
        let number = line.and_then(|line| line.split_whitespace().nth(1));
        Ok(number.context("no VmRSS")?.parse::<u64>()? * KIB)
    }

    fn sockets(&self) -> anyhow::Result<usize> {
        let mut count = 0;
        for entry in fs::read_dir(format!("{}/fd", self.process))? {
            // One that was closed meanwhile is none.
            let target = fs::read_link(entry?.path()).unwrap_or_default();
            count += usize::from(target.to_string_lossy().starts_with("socket:"));
        }
        Ok(count)
    }
}

#[test]
fn untouched_volumes_of_4_tib_cost_less_than_1_mib_each() -> anyhow::Result<()> {
    // Several, as the allocator keeps the buffers of the first for the others.
    const VOLUMES: u64 = 48;
    let cluster = TestCluster::start_own()?;
    let watched = Watched::start(&cluster)?;
    for number in 0..VOLUMES {
        let line = format!("large-{number} 4T");
        watched.mounted.command("vdi/create", line)?;
    }
    fs::read(watched.mounted.create("small", "4M")?)?;
    let before = watched.memory()?;
    for number in 0..VOLUMES {
        let path = watched.mounted.attach(&format!("large-{number}"))?;
        assert_eq!(fs::metadata(path)?.len(), 4 << 40);
    }
    let each = watched.memory()?.saturating_sub(before) / VOLUMES;
    println!("each costs {each} bytes");
    ensure!(each < 1024 * KIB, "each costs {each} bytes");
    Ok(())
}

#[test]
fn many_volumes_cost_little_memory_and_no_sockets() -> anyhow::Result<()> {
    const VOLUMES: u32 = 200;
    let cluster = TestCluster::start_own()?;
    let watched = Watched::start(&cluster)?;
    for number in 0..VOLUMES {
        let line = format!("many-{number} 1G");
        watched.mounted.command("vdi/create", line)?;
    }
    fs::write(watched.mounted.create("first", "4M")?, "data")?;
    let (memory, sockets) = (watched.memory()?, watched.sockets()?);
    ensure!(sockets > 0, "it is connected to nothing");
    for number in 0..VOLUMES {
        watched.mounted.attach(&format!("many-{number}"))?;
    }
    let each = watched.memory()?.saturating_sub(memory) / u64::from(VOLUMES);
    ensure!(each < 64 * KIB, "each costs {each} bytes");
    let more = watched.sockets()?;
    ensure!(more <= sockets, "{sockets} sockets became {more}");
    assert_eq!(
        fs::read_dir(watched.mounted.path("volume"))?.count(),
        VOLUMES as usize + 1
    );
    Ok(())
}

#[test]
fn a_thousand_vdis_are_listed_completely_to_fifty_readers() -> anyhow::Result<()> {
    const VDIS: usize = 1000;
    let cluster = TestCluster::start_own()?;
    let mounted = Mounted::start(&cluster, &[])?;
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
        creators
            .into_iter()
            .try_for_each(|creator| creator.join().expect("a creator panicked"))
    })?;

    let list = mounted.path("vdi/list");
    thread::scope(|scope| {
        let readers: Vec<_> = (0..50)
            .map(|_| scope.spawn(|| run(Command::new("cat").arg(&list))))
            .collect();
        for reader in readers {
            let text = String::from_utf8(reader.join().expect("a reader panicked")?)?;
            // The header and one line for each.
            assert_eq!(text.lines().count(), VDIS + 1);
            for number in 0..VDIS {
                let name = format!("vdi-{number:04}-");
                ensure!(text.contains(&name), "{name} is not listed");
            }
        }
        Ok(())
    })
}
