//! The load of a busy host, which leaves no file, memory or VDI behind.

use std::fs::{self, File};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use tempfile::TempDir;
use tests::{Fio, MIB, Mounted, TestCluster, detach, wait_for_exit, wait_until};

/// Memory that the allocator may keep after use.
const KEPT: u64 = 24 << 20;

/// Sizes of requests in bytes: sectors, pages, odd ones, up to whole objects.
const SIZES: [&str; 8] = ["512", "4k", "6k", "16k", "60k", "256k", "1m", "3m"];
const JOBS_OF_EACH: usize = 8;

#[test]
fn load_of_64_mixed_size_jobs_verifies() -> anyhow::Result<()> {
    let cluster = TestCluster::start()?;
    let mounted = Mounted::start(&cluster, &[])?;
    let name = cluster.unique_name("jobs");
    let volume = mounted.create(&name, "1600M")?;
    // A given cluster gets the whole minute.
    let seconds = if cluster.is_own() { 8 } else { 60 };
    let mut arguments: Vec<String> = [
        "--rw=randwrite",
        "--ioengine=psync",
        "--direct=1",
        "--size=24m",
        "--time_based",
        "--verify_backlog=32",
    ]
    .map(str::to_owned)
    .to_vec();
    arguments.push(format!("--runtime={seconds}"));
    // One group of jobs for each block size, in a range of its own.
    for (number, size) in SIZES.iter().enumerate() {
        let offset = number * JOBS_OF_EACH * 24;
        arguments.extend([
            format!("--name=of-{size}"),
            format!("--bs={size}"),
            format!("--numjobs={JOBS_OF_EACH}"),
            format!("--offset={offset}m"),
            "--offset_increment=24m".to_owned(),
            "--new_group".to_owned(),
        ]);
    }
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    // fio verifies what it has written, and fails on a difference.
    let groups = Fio::verifying(&volume, &arguments)?.finish()?;
    assert_eq!(groups.len(), SIZES.len());
    for (group, size) in groups.iter().zip(SIZES) {
        let writes = &group["write"]["total_ios"];
        println!(
            "{size}: {writes} writes, {} reads",
            group["read"]["total_ios"]
        );
    }
    detach(&mounted, &name)?;
    mounted.command("vdi/delete", &name)?;
    mounted.stop()
}

/// What volume `number` has in its object `object`.
fn bytes_of(number: usize, object: usize) -> Vec<u8> {
    format!("volume {number:04}, object {object:03}\n")
        .repeat(150)
        .into_bytes()
}

/// Runs `work` for all numbers below `count` on several threads.
fn in_parallel(
    count: usize,
    work: impl Fn(usize) -> anyhow::Result<()> + Sync,
) -> anyhow::Result<()> {
    const THREADS: usize = 16;
    thread::scope(|scope| {
        let threads: Vec<_> = (0..THREADS)
            .map(|first| {
                let work = &work;
                scope.spawn(move || (first..count).step_by(THREADS).try_for_each(work))
            })
            .collect();
        threads.into_iter().try_for_each(|thread| {
            thread
                .join()
                .expect("threads return errors instead of panicking")
        })
    })
}

/// Waits until all files are closed, then checks that the memory is free again.
fn assert_released(mounted: &Mounted, files: usize, memory: u64) -> anyhow::Result<()> {
    wait_until("its files are closed", Duration::from_secs(20), || {
        Ok(mounted.open_files()?.len() <= files)
    })
    .with_context(|| format!("{:?}", mounted.open_files()))?;
    let now = mounted.memory()?;
    println!("{memory} bytes of memory became {now}");
    ensure!(now <= memory + KEPT, "{memory} bytes became {now}");
    Ok(())
}

#[test]
fn load_of_200_volumes_leaks_nothing() -> anyhow::Result<()> {
    const VOLUMES: usize = 200;
    const OBJECTS: usize = 3;
    let cluster = TestCluster::start()?;
    let mounted = Mounted::start(&cluster, &[])?;
    let prefix = cluster.unique_name("many");
    let name = |number: usize| format!("{prefix}-{number:03}");
    // One round warms up, another shows what grows.
    let mut before = None;
    // All volumes exist before the first round.
    in_parallel(VOLUMES, |number| {
        Ok(mounted.create_unattached(&name(number), "3M object_size=1M")?)
    })?;
    for round in 0..2 {
        // Attaches and opens all volumes.
        in_parallel(VOLUMES, |number| mounted.attach(&name(number)).map(drop))?;
        let path = |number| mounted.volume(&name(number));
        let open = |number| {
            let mut options = File::options();
            options.read(true).write(true).open(path(number))
        };
        let files = (0..VOLUMES).map(open).collect::<Result<Vec<_>, _>>()?;
        // Neighbours in time are different volumes.
        in_parallel(VOLUMES * OBJECTS, |turn| {
            let (number, object) = (turn % VOLUMES, turn / VOLUMES);
            let bytes = bytes_of(number, object + round);
            Ok(files[number].write_all_at(&bytes, (object * MIB + 100) as u64)?)
        })?;
        // Each volume has its own bytes.
        in_parallel(VOLUMES, |number| {
            files[number].sync_all()?;
            for object in 0..OBJECTS {
                let expected = bytes_of(number, object + round);
                let mut found = vec![0; expected.len()];
                files[number].read_exact_at(&mut found, (object * MIB + 100) as u64)?;
                ensure!(found == expected, "volume {number}, object {object}");
            }
            Ok(())
        })?;
        // Detached, they give back files and memory.
        drop(files);
        in_parallel(VOLUMES, |number| detach(&mounted, &name(number)))?;
        if let Some((files, memory)) = before {
            assert_released(&mounted, files, memory)?;
        }
        before = Some((mounted.open_files()?.len(), mounted.memory()?));
    }
    in_parallel(VOLUMES, |number| {
        Ok(mounted.command("vdi/delete", name(number))?)
    })?;
    mounted.stop()
}

/// Processes that read all reports again and again until `enough` appears.
struct Readers {
    processes: Vec<Child>,
    enough: PathBuf,
}

impl Readers {
    const SCRIPT: &str = r#"while [ ! -e "$1" ]; do
        for report in cluster/info node/list node/info vdi/list vdi/list.json config/sheep_info; do
            [ -n "$(cat "$0/$report")" ] || exit 1
        done
        ls "$0/volume" > /dev/null || exit 2
    done"#;

    fn start(count: usize, tree: &Path, enough: PathBuf) -> anyhow::Result<Self> {
        let start = |_| {
            Command::new("sh")
                .args(["-c", Self::SCRIPT])
                .args([tree, &enough])
                .stdout(Stdio::null())
                .spawn()
                .context("starting a reader")
        };
        let processes = (0..count).map(start).collect::<anyhow::Result<_>>()?;
        Ok(Self { processes, enough })
    }

    /// Ends them; each must have read without an error.
    fn finish(mut self) -> anyhow::Result<()> {
        File::create(&self.enough)?;
        for process in &mut self.processes {
            let status = wait_for_exit(process, Duration::from_secs(60))?;
            ensure!(status.success(), "a reader ended with {status}");
        }
        Ok(())
    }
}

impl Drop for Readers {
    fn drop(&mut self) {
        for process in &mut self.processes {
            // It may have ended already.
            drop(process.kill());
            drop(process.wait());
        }
    }
}

#[test]
fn load_survives_attach_and_detach_during_reads() -> anyhow::Result<()> {
    const READERS: usize = 32;
    const VOLUMES: usize = 8;
    let cluster = TestCluster::start()?;
    let mounted = Mounted::start(&cluster, &[])?;
    // Volumes that are attached, written, read and detached in turns, by a thread each.
    let prefix = cluster.unique_name("turns");
    for number in 0..VOLUMES {
        mounted.create_unattached(&format!("{prefix}-{number}"), "2M object_size=1M")?;
    }
    let attach_and_detach = |times: usize| {
        thread::scope(|scope| {
            let threads: Vec<_> = (0..VOLUMES)
                .map(|number| {
                    let (mounted, name) = (&mounted, format!("{prefix}-{number}"));
                    scope.spawn(move || {
                        for turn in 0..times / VOLUMES {
                            let path = mounted.attach(&name)?;
                            let text = format!("{name}, turn {turn}");
                            fs::write(&path, &text)?;
                            let found = fs::read(&path)?;
                            ensure!(found.starts_with(text.as_bytes()), "{text}");
                            detach(mounted, &name)?;
                        }
                        anyhow::Ok(())
                    })
                })
                .collect();
            threads.into_iter().try_for_each(|thread| {
                thread
                    .join()
                    .expect("threads return errors instead of panicking")
            })
        })
    };
    let scratch = TempDir::with_prefix("sheepfs-test-readers-")?;
    // The first round warms up; the second one must need no more.
    let readers = Readers::start(READERS, &mounted.mountpoint(), scratch.path().join("first"))?;
    attach_and_detach(200)?;
    readers.finish()?;
    let (files, memory) = (mounted.open_files()?.len(), mounted.memory()?);
    let times = if cluster.is_own() { 400 } else { 2000 };
    let readers = Readers::start(
        READERS,
        &mounted.mountpoint(),
        scratch.path().join("second"),
    )?;
    attach_and_detach(times)?;
    readers.finish()?;
    assert_released(&mounted, files, memory)?;
    ensure!(fs::read_dir(mounted.path("volume"))?.count() == 0);
    for number in 0..VOLUMES {
        mounted.command("vdi/delete", format!("{prefix}-{number}"))?;
    }
    mounted.stop()
}
