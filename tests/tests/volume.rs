//! `volume/NAME` as a file: reads return the last write.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::Path;
use std::process::Command;
use std::sync::Barrier;
use std::thread;

use anyhow::ensure;
use fastrand::Rng;
use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, OFlag, fallocate};
use tests::{MIB, Model, Mounted, TestCluster, errno, open, run, seeded};

/// Random reads and writes, checked immediately and after a remount.
fn check_random_io(options: &str, len: usize, arguments: &[&str]) -> anyhow::Result<()> {
    let cluster = TestCluster::start()?;
    let name = cluster.unique_name("model");
    let mut random = seeded();
    let mut model = Model::zeroed(len);

    let mounted = Mounted::start(&cluster, arguments)?;
    let file = open(&mounted.create(&name, &format!("{len} {options}"))?)?;
    ensure!(file.metadata()?.len() == len as u64);
    for _ in 0..150 {
        model.random_step(&file, 3 * MIB, &mut random)?;
    }
    // Short ones around object borders, where a request is cut in two.
    for border in (MIB..len - MIB).step_by(MIB) {
        model.write(&file, border - 1, 2, &mut random)?;
        model.check(&file, border - 5, 10)?;
    }
    model.check_all(&file)?;
    file.sync_all()?;
    drop(file);
    mounted.stop()?;

    let mounted = Mounted::start(&cluster, arguments)?;
    let file = open(&mounted.attach(&name)?)?;
    model.check_all(&file)
}

#[test]
fn random_io_matches_model_with_4_mib_objects() -> anyhow::Result<()> {
    check_random_io("object_size=4M", 40 * MIB, &[])
}

#[test]
fn random_io_matches_model_with_1_mib_objects() -> anyhow::Result<()> {
    check_random_io("object_size=1M", 24 * MIB + 513, &[])
}

#[test]
fn random_io_matches_model_with_8_mib_objects() -> anyhow::Result<()> {
    check_random_io("object_size=8M", 40 * MIB + 1, &[])
}

#[test]
fn random_io_matches_model_on_hypervolume() -> anyhow::Result<()> {
    check_random_io("hyper", 40 * MIB, &[])
}

#[test]
fn random_io_matches_model_with_page_cache() -> anyhow::Result<()> {
    check_random_io("object_size=2M", 24 * MIB, &["--pagecache"])
}

#[test]
fn preallocation_at_creation_allocates_zeros() -> anyhow::Result<()> {
    let cluster = TestCluster::start()?;
    let mounted = Mounted::start(&cluster, &[])?;
    let name = cluster.unique_name("prealloc");
    let file = open(&mounted.create(&name, "9M prealloc")?)?;
    Model::zeroed(9 * MIB).check_all(&file)?;
    ensure!(file.metadata()?.blocks() * 512 >= 9 << 20);
    Ok(())
}

/// Bytes of one thread's turn; odd, so that turns share objects and pages.
const TURN: usize = 300_007;

#[test]
fn concurrent_writers_of_same_objects_lose_nothing() -> anyhow::Result<()> {
    const THREADS: usize = 8;
    const LEN: usize = 32 * MIB;
    let cluster = TestCluster::start()?;
    let mounted = Mounted::start(&cluster, &[])?;
    let name = cluster.unique_name("threads");
    let path = mounted.create(&name, &format!("{LEN}"))?;
    let model = write_concurrently(&path, THREADS, LEN, || Ok(()))?;
    model.check_all(&open(&path)?)?;
    mounted.stop()?;
    let mounted = Mounted::start(&cluster, &[])?;
    model.check_all(&open(&mounted.attach(&name)?)?)
}

/// Threads that write a zeroed volume in turns, while the caller does something else;
/// returns the bytes that the volume must have then.
fn write_concurrently(
    path: &Path,
    threads: usize,
    len: usize,
    meanwhile: impl FnOnce() -> anyhow::Result<()>,
) -> anyhow::Result<Model> {
    let mut random = seeded();
    let turns: Vec<Vec<(usize, Vec<u8>)>> = thread::scope(|scope| {
        let workers: Vec<_> = (0..threads)
            .map(|worker| {
                let random = random.fork();
                scope.spawn(move || write_own_turns(path, worker, threads, len, random))
            })
            .collect();
        meanwhile()?;
        workers
            .into_iter()
            .map(|worker| {
                worker
                    .join()
                    .expect("worker threads return errors instead of panicking")
            })
            .collect::<anyhow::Result<_>>()
    })?;
    let mut whole = vec![0; len];
    for (offset, bytes) in turns.into_iter().flatten() {
        whole[offset..offset + bytes.len()].copy_from_slice(&bytes);
    }
    Ok(Model::from_bytes(whole))
}

/// Random reads and writes within every `step`-th turn of the volume.
fn write_own_turns(
    path: &Path,
    first: usize,
    step: usize,
    len: usize,
    mut random: Rng,
) -> anyhow::Result<Vec<(usize, Vec<u8>)>> {
    let file = open(path)?;
    let mut turns: Vec<_> = (first * TURN..len)
        .step_by(step * TURN)
        .map(|start| (start, vec![0; TURN.min(len - start)]))
        .collect();
    for _ in 0..400 {
        let chosen = random.usize(..turns.len());
        let (start, bytes) = &mut turns[chosen];
        let count = random.usize(1..=bytes.len().min(40_000));
        let at = random.usize(..=bytes.len() - count);
        let part = &mut bytes[at..at + count];
        let offset = (*start + at) as u64;
        if random.bool() {
            random.fill(part);
            file.write_all_at(part, offset)?;
        } else {
            let mut found = vec![0; count];
            file.read_exact_at(&mut found, offset)?;
            ensure!(
                found == part,
                "a read of {count} bytes at {offset} is wrong"
            );
        }
    }
    Ok(turns)
}

/// Writers of one volume that meet in each object, and the bytes they leave.
const MEETING: usize = 8;
const OBJECTS: usize = 24;

/// Lets each writer put its own byte into its part of every object, all at the
/// same time; half of each part stays as it was.
fn writers_meet(path: &Path) -> anyhow::Result<()> {
    const PART: usize = MIB / MEETING;
    let files: Vec<File> = (0..MEETING)
        .map(|_| open(path))
        .collect::<anyhow::Result<_>>()?;
    let together = Barrier::new(MEETING);
    thread::scope(|scope| {
        let writers: Vec<_> = files
            .iter()
            .zip(1..)
            .map(|(file, byte)| {
                let together = &together;
                scope.spawn(move || {
                    let mut outcome = Ok(());
                    for object in 0..OBJECTS {
                        // Also after an error: the others count on it.
                        together.wait();
                        let offset = (object * MIB + usize::from(byte - 1) * PART) as u64;
                        outcome = outcome.and(file.write_all_at(&[byte; PART / 2], offset));
                    }
                    anyhow::Ok(outcome?)
                })
            })
            .collect();
        writers.into_iter().try_for_each(|writer| {
            writer
                .join()
                .expect("writer threads return errors instead of panicking")
        })
    })
}

/// The bytes afterwards, over a volume full of `before`.
fn after_they_met(before: u8) -> Model {
    let mut expected = Vec::with_capacity(MIB);
    for (part, byte) in (0..MEETING).zip(1..) {
        expected.resize((2 * part + 1) * MIB / MEETING / 2, byte);
        expected.resize((part + 1) * MIB / MEETING, before);
    }
    Model::from_bytes(expected.repeat(OBJECTS))
}

#[test]
fn concurrent_first_writes_of_objects_lose_nothing() -> anyhow::Result<()> {
    let cluster = TestCluster::start()?;
    let mounted = Mounted::start(&cluster, &[])?;
    let name = cluster.unique_name("fresh");
    let path = mounted.create(&name, &format!("{OBJECTS}M object_size=1M"))?;
    writers_meet(&path)?;
    mounted.stop()?;
    let mounted = Mounted::start(&cluster, &[])?;
    after_they_met(0).check_all(&open(&mounted.attach(&name)?)?)
}

#[test]
fn concurrent_copy_up_in_clone_loses_nothing() -> anyhow::Result<()> {
    let cluster = TestCluster::start()?;
    let mounted = Mounted::start(&cluster, &[])?;
    let (parent, clone) = (cluster.unique_name("parent"), cluster.unique_name("met"));
    let path = mounted.create(&parent, &format!("{OBJECTS}M object_size=1M"))?;
    std::fs::write(&path, vec![0xee; OBJECTS * MIB])?;
    mounted.command("vdi/snapshot", format!("{parent} tag"))?;
    mounted.command("vdi/clone", format!("{parent}@tag {clone}"))?;
    writers_meet(&mounted.attach(&clone)?)?;
    mounted.stop()?;
    let mounted = Mounted::start(&cluster, &[])?;
    after_they_met(0xee).check_all(&open(&mounted.attach(&clone)?)?)?;
    let parent = open(&mounted.attach(&parent)?)?;
    Model::from_bytes(vec![0xee; OBJECTS * MIB]).check_all(&parent)
}

#[test]
fn volume_end_behaves_like_block_device() -> anyhow::Result<()> {
    const LEN: u64 = 5 << 20;
    let cluster = TestCluster::start()?;
    let mounted = Mounted::start(&cluster, &[])?;
    let name = cluster.unique_name("end");
    let path = mounted.create(&name, "5M")?;
    let file = open(&path)?;

    let mut buffer = [0xff; 100];
    assert_eq!(file.read_at(&mut buffer, LEN)?, 0);
    assert_eq!(file.read_at(&mut buffer, LEN + 12345)?, 0);
    assert_eq!(file.read_at(&mut buffer, LEN - 40)?, 40);
    assert_eq!(errno(file.write_at(b"x", LEN)), Some(Errno::ENOSPC));
    assert_eq!(errno(file.write_at(b"x", LEN + 4096)), Some(Errno::ENOSPC));
    assert_eq!(file.write_at(&[7; 100], LEN - 40)?, 40);
    assert_eq!(file.metadata()?.len(), LEN);

    let appended = OpenOptions::new().append(true).open(&path)?;
    assert_eq!(errno(appended.write_at(b"x", 0)), Some(Errno::ENOSPC));
    Ok(())
}

#[test]
fn truncation_never_shrinks_and_growth_resizes_vdi() -> anyhow::Result<()> {
    let cluster = TestCluster::start()?;
    let mounted = Mounted::start(&cluster, &[])?;
    let name = cluster.unique_name("truncate");
    let path = mounted.create(&name, "6M")?;
    let mut random = seeded();
    let mut model = Model::zeroed(6 * MIB);
    model.write(&open(&path)?, 5 * MIB, 1000, &mut random)?;

    run(Command::new("sh")
        .args(["-c", "echo hello > \"$0\""])
        .arg(&path))?;
    let mut bytes = model.bytes().to_vec();
    bytes[..6].copy_from_slice(b"hello\n");
    let file = open(&path)?;
    file.set_len(100)?;
    assert_eq!(file.metadata()?.len(), 6 << 20);
    Model::from_bytes(bytes.clone()).check_all(&file)?;

    file.set_len(10 << 20)?;
    assert_eq!(file.metadata()?.len(), 10 << 20);
    // As with any file that was truncated first, the new bytes are zeros.
    bytes.truncate(100);
    bytes.resize(10 * MIB, 0);
    let mut model = Model::from_bytes(bytes);
    model.write(&file, 9 * MIB, 4096, &mut random)?;
    drop(file);
    mounted.stop()?;
    let mounted = Mounted::start(&cluster, &[])?;
    let file = open(&mounted.attach(&name)?)?;
    assert_eq!(file.metadata()?.len(), 10 << 20);
    model.check_all(&file)
}

#[test]
fn discard_by_punch_hole_zeroes_and_frees_space() -> anyhow::Result<()> {
    let cluster = TestCluster::start()?;
    let mounted = Mounted::start(&cluster, &[])?;
    let name = cluster.unique_name("hole");
    let file = open(&mounted.create(&name, "8M object_size=1M")?)?;
    let mut random = seeded();
    let mut model = Model::zeroed(8 * MIB);
    model.write(&file, 0, 8 * MIB, &mut random)?;
    let before = file.metadata()?.blocks();

    let keep = FallocateFlags::FALLOC_FL_KEEP_SIZE;
    let (start, len) = (MIB + 1000, 3 * MIB);
    let (offset, count) = (i64::try_from(start)?, i64::try_from(len)?);
    fallocate(
        &file,
        FallocateFlags::FALLOC_FL_PUNCH_HOLE | keep,
        offset,
        count,
    )?;
    let mut bytes = model.bytes().to_vec();
    bytes[start..start + len].fill(0);
    Model::from_bytes(bytes.clone()).check_all(&file)?;
    ensure!(file.metadata()?.blocks() < before, "no space came back");

    fallocate(&file, FallocateFlags::FALLOC_FL_ZERO_RANGE | keep, 10, 4096)?;
    bytes[10..10 + 4096].fill(0);
    let mut model = Model::from_bytes(bytes);
    model.write(&file, 2 * MIB + 5, 70_000, &mut random)?;
    model.check_all(&file)?;
    fallocate(&file, FallocateFlags::empty(), 0, 8 << 20)?;
    model.check_all(&file)
}

#[test]
fn snapshot_data_survives_writes_to_head_and_clone() -> anyhow::Result<()> {
    let cluster = TestCluster::start()?;
    let mounted = Mounted::start(&cluster, &[])?;
    let name = cluster.unique_name("head");
    let clone = cluster.unique_name("clone");
    let mut random = seeded();
    let head_path = mounted.create(&name, "12M object_size=1M")?;
    let head = open(&head_path)?;
    let mut head_model = Model::zeroed(12 * MIB);
    for _ in 0..40 {
        head_model.random_step(&head, 2 * MIB, &mut random)?;
    }

    // The head stays open; later writes to it are not in the snapshot.
    mounted.command("vdi/snapshot", format!("{name} first"))?;
    mounted.command("vdi/clone", format!("{name}@first {clone}"))?;
    let snapshot_model = head_model.clone();
    let mut clone_model = head_model.clone();
    let clone_file = open(&mounted.attach(&clone)?)?;
    for _ in 0..60 {
        head_model.random_step(&head, MIB, &mut random)?;
        clone_model.random_step(&clone_file, MIB, &mut random)?;
    }

    let snapshot_path = mounted.attach(&format!("{name}@first"))?;
    let refused = File::options().write(true).open(&snapshot_path);
    assert_eq!(errno(refused), Some(Errno::EROFS));
    snapshot_model.check_all(&File::open(&snapshot_path)?)?;
    head_model.check_all(&head)?;
    clone_model.check_all(&clone_file)?;
    drop((head, clone_file));
    mounted.stop()?;

    let mounted = Mounted::start(&cluster, &[])?;
    snapshot_model.check_all(&File::open(mounted.attach(&format!("{name}@first"))?)?)?;
    head_model.check_all(&open(&mounted.attach(&name)?)?)?;
    clone_model.check_all(&open(&mounted.attach(&clone)?)?)
}

#[test]
fn snapshot_under_load_loses_no_write() -> anyhow::Result<()> {
    const LEN: usize = 16 * MIB;
    const SNAPSHOTS: usize = 6;
    let cluster = TestCluster::start()?;
    let mounted = Mounted::start(&cluster, &[])?;
    let name = cluster.unique_name("busy");
    let path = mounted.create(&name, &format!("{LEN} object_size=1M"))?;
    let model = write_concurrently(&path, 4, LEN, || {
        for number in 0..SNAPSHOTS {
            mounted.command("vdi/snapshot", format!("{name} number-{number}"))?;
        }
        Ok(())
    })?;
    model.check_all(&open(&path)?)?;
    mounted.stop()?;
    let mounted = Mounted::start(&cluster, &[])?;
    model.check_all(&open(&mounted.attach(&name)?)?)
}

#[test]
fn direct_io_works_at_every_alignment() -> anyhow::Result<()> {
    let cluster = TestCluster::start()?;
    let mounted = Mounted::start(&cluster, &[])?;
    let name = cluster.unique_name("direct");
    let path = mounted.create(&name, "4M object_size=1M")?;
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(OFlag::O_DIRECT.bits())
        .open(path)?;
    let mut random = seeded();
    let mut model = Model::zeroed(4 * MIB);
    for _ in 0..200 {
        model.random_step(&file, 200_000, &mut random)?;
    }
    model.check_all(&file)
}

#[test]
fn copy_with_cp_and_dd_round_trips() -> anyhow::Result<()> {
    let cluster = TestCluster::start()?;
    let mounted = Mounted::start(&cluster, &[])?;
    let name = cluster.unique_name("copy");
    let path = mounted.create(&name, "10M")?;
    let scratch = tempfile::TempDir::new()?;
    let (source, back) = (scratch.path().join("source"), scratch.path().join("back"));
    let mut bytes = vec![0; 10 * MIB];
    seeded().fill(&mut bytes);
    std::fs::write(&source, &bytes)?;

    run(Command::new("cp").arg(&source).arg(&path))?;
    run(Command::new("cp")
        .arg("--sparse=always")
        .arg(&path)
        .arg(&back))?;
    run(Command::new("cmp").arg(&source).arg(&back))?;

    let mut reversed = bytes;
    reversed.reverse();
    std::fs::write(&source, &reversed)?;
    run(Command::new("dd")
        .arg(format!("if={}", source.display()))
        .arg(format!("of={}", path.display()))
        .args(["bs=64k", "conv=fsync"]))?;
    run(Command::new("cmp").arg(&source).arg(&path))?;
    Ok(())
}
