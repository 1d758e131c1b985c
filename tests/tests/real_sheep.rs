//! Tests against daemons of the C Sheepdog, in a cluster of their own.

use std::env;
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;
use std::process::Command;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use nix::errno::Errno;
use nix::sys::signal::Signal;
use tempfile::TempDir;
use tests::{
    DOG_VARIABLE, Fio, MIB, Model, Mounted, NbdServer, RawSheep, RealCluster, RealSheep,
    SHEEP_BINARY_VARIABLE, open, outage, seeded, under_load, wait_until,
};

/// A cluster and its directory, which is dropped last.
struct Own {
    cluster: RealCluster,
    generation: String,
    _directory: TempDir,
}

impl Own {
    fn start(format_options: &[&str]) -> anyhow::Result<Self> {
        let path = |variable| env::var_os(variable).map(PathBuf::from);
        let programs = RealSheep::find(
            path(SHEEP_BINARY_VARIABLE).as_deref(),
            path(DOG_VARIABLE).as_deref(),
        )?
        .with_context(|| {
            format!("this test needs `sheep` on PATH or in {SHEEP_BINARY_VARIABLE}")
        })?;
        let directory = TempDir::with_prefix("sheepfs-test-cluster-")?;
        Ok(Self {
            generation: programs.generation()?,
            cluster: RealCluster::start(programs, directory.path(), 3, format_options)?,
            _directory: directory,
        })
    }

    fn mount(&self, arguments: &[&str]) -> anyhow::Result<Mounted> {
        let address = self.cluster.address(1);
        let mut all = vec!["--address", address.as_str()];
        all.extend(arguments);
        Mounted::start_with(&all)
    }
}

/// The daemons' local driver keeps its locks in one place for the whole machine, so
/// only one cluster may run at a time. Each test starts its own, because a failure
/// may leave a cluster broken.
static ONE_CLUSTER: Mutex<()> = Mutex::new(());

fn with_cluster(
    format_options: &[&str],
    test: impl FnOnce(&mut Own) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    // The mutex has no data: that another test panicked does not matter.
    let _guard = ONE_CLUSTER.lock().unwrap_or_else(PoisonError::into_inner);
    test(&mut Own::start(format_options)?)
}

macro_rules! cases {
    ($format_options:expr, $($name:ident),+ $(,)?) => {
        $(#[test]
        fn $name() -> anyhow::Result<()> {
            with_cluster(&$format_options, case::$name)
        })+
    };
}

cases!(
    ["--copies", "2"],
    failover_after_kill_of_gateway,
    failover_under_fio_is_only_a_pause,
    failover_of_nbd_export_is_only_a_pause,
    reconnect_after_kill_of_other_node,
    erasure_coded_data_survives_missing_node,
    snapshot_by_dog_loses_no_write,
    snapshot_by_dog_every_second_causes_no_error,
    index_leaf_split_by_dog_is_repaired,
    resize_by_dog_is_seen,
    deletion_by_dog_never_shows_foreign_data,
    report_equals_output_of_dog,
    volume_bytes_are_equal_in_dog,
);
cases!(
    ["--copies", "2", "--lock"],
    lock_excludes_second_writer,
    lock_is_held_by_nbd_export,
    lock_left_by_crash_is_broken_on_request,
);

mod case {
    use super::*;

    /// Several epochs, a snapshot and, where there is one, an erasure code are there to
    /// show.
    pub(super) fn report_equals_output_of_dog(own: &mut Own) -> anyhow::Result<()> {
        let mounted = own.mount(&[])?;
        let mut volumes = vec![("plain", "16M object_size=1M")];
        if own.generation != "0.7" {
            volumes.push(("erasure", "8M copies=2:1"));
        }
        for (name, options) in volumes {
            open(&mounted.create(name, options)?)?.write_all_at(b"data", 0)?;
        }
        own.cluster
            .dog(&["vdi", "snapshot", "--snapshot", "tag", "plain"])?;
        mounted.stop()?;
        own.cluster.kill(2)?;
        own.rejoin(2)?;
        // Each node has its own times for the epochs, so both must ask the same one.
        let address = own.cluster.address(0);
        let mounted = Mounted::start_with(&["--address", &address])?;
        for file in ["cluster/info", "node/list", "node/info", "vdi/list"] {
            let arguments: Vec<&str> = file.split('/').collect();
            // Recent changes may not have reached all nodes yet.
            wait_until(file, Duration::from_secs(30), || {
                Ok(mounted.report(file)? == own.cluster.dog(&arguments)?)
            })?;
        }
        Ok(())
    }

    /// Volumes of every shape, and the two sides of a snapshot, in which both write on.
    pub(super) fn volume_bytes_are_equal_in_dog(own: &mut Own) -> anyhow::Result<()> {
        let mounted = own.mount(&[])?;
        let mut random = seeded();
        let mut volumes = vec![
            ("small-objects", "object_size=1M", 6 * MIB + 513),
            ("default-objects", "object_size=4M", 9 * MIB),
            ("large-objects", "object_size=8M", 17 * MIB + 1),
        ];
        if !["0.7", "0.8"].contains(&own.generation.as_str()) {
            volumes.push(("hypervolume", "hyper", 9 * MIB));
        }
        for (name, options, len) in volumes {
            let file = open(&mounted.create(name, &format!("{len} {options}"))?)?;
            let mut model = Model::zeroed(len);
            for _ in 0..40 {
                model.random_step(&file, MIB, &mut random)?;
            }
            file.sync_all()?;
            own.check_by_dog(name, &model)?;
        }

        let head = open(&mounted.create("head", "6M object_size=1M")?)?;
        let mut head_model = Model::zeroed(6 * MIB);
        head_model.write(&head, 0, 6 * MIB, &mut random)?;
        mounted.command("vdi/snapshot", "head first")?;
        mounted.command("vdi/clone", "head@first clone")?;
        let clone = open(&mounted.attach("clone")?)?;
        let mut clone_model = head_model.clone();
        for _ in 0..20 {
            head_model.random_step(&head, MIB, &mut random)?;
            clone_model.random_step(&clone, MIB, &mut random)?;
        }
        own.check_by_dog("head", &head_model)?;
        own.check_by_dog("clone", &clone_model)
    }

    pub(super) fn failover_after_kill_of_gateway(own: &mut Own) -> anyhow::Result<()> {
        let mounted = own.mount(&[])?;
        let path = mounted.create("gateway", "16M object_size=1M")?;
        let acknowledged = under_load(&path, 4096, &mut seeded(), |progress| {
            progress.wait_for_more()?;
            own.cluster.kill(1)?;
            progress.wait_for_more()
        })?;
        acknowledged.check(&path)?;
        own.rejoin(1)?;
        acknowledged.check(&path)?;
        mounted.stop()?;
        acknowledged.check(&own.mount(&[])?.attach("gateway")?)
    }

    pub(super) fn failover_under_fio_is_only_a_pause(own: &mut Own) -> anyhow::Result<()> {
        let mounted = own.mount(&[])?;
        let volume = mounted.create("sixteen", "32M object_size=1M")?;
        failover_is_only_a_pause(own, || Fio::sixteen_jobs(&volume, 5))
    }

    pub(super) fn failover_of_nbd_export_is_only_a_pause(own: &mut Own) -> anyhow::Result<()> {
        let mounted = own.mount(&[])?;
        mounted.command("vdi/create", "exported 32M object_size=1M")?;
        let address = own.cluster.address(1);
        let server = NbdServer::start_with(&["--address", &address, "exported"])?;
        let uri = server.uri("exported");
        let connections = || server.log().matches(": connected to exported").count();
        failover_is_only_a_pause(own, || {
            let before = connections();
            let fio = Fio::nbd(&uri, 5)?;
            wait_until("fio is connected", Duration::from_secs(30), || {
                Ok(connections() > before)
            })?;
            Ok(fio)
        })?;
        server.stop()
    }

    /// The longest pauses are printed.
    fn failover_is_only_a_pause(
        own: &mut Own,
        start: impl Fn() -> anyhow::Result<Fio>,
    ) -> anyhow::Result<()> {
        let mut fio = start()?;
        ensure!(!fio.ends_within(Duration::from_secs(1))?, "fio ended soon");
        own.cluster.kill(1)?;
        fio.report("killed gateway")?;
        own.rejoin(1)?;

        let mut fio = start()?;
        ensure!(!fio.ends_within(Duration::from_secs(1))?, "fio ended soon");
        own.cluster.signal(1, Signal::SIGSTOP)?;
        let ended = fio.ends_within(outage());
        own.cluster.signal(1, Signal::SIGCONT)?;
        ensure!(!ended?, "fio ended while its gateway was stopped");
        fio.report("stopped gateway")?;

        let mut fio = start()?;
        ensure!(!fio.ends_within(Duration::from_secs(1))?, "fio ended soon");
        own.cluster.restart_all(|| std::thread::sleep(outage()))?;
        fio.report("whole cluster away")
    }

    pub(super) fn reconnect_after_kill_of_other_node(own: &mut Own) -> anyhow::Result<()> {
        let mounted = own.mount(&[])?;
        let path = mounted.create("node", "16M object_size=1M")?;
        let acknowledged = under_load(&path, 4096, &mut seeded(), |progress| {
            progress.wait_for_more()?;
            own.cluster.kill(2)?;
            progress.wait_for_more()
        })?;
        own.rejoin(2)?;
        acknowledged.check(&path)
    }

    pub(super) fn erasure_coded_data_survives_missing_node(own: &mut Own) -> anyhow::Result<()> {
        let mounted = own.mount(&[])?;
        let file = open(&mounted.create("erasure", "8M copies=2:1")?)?;
        let mut random = seeded();
        let mut model = Model::zeroed(8 * MIB);
        for _ in 0..100 {
            model.random_step(&file, MIB, &mut random)?;
        }
        own.cluster.kill(2)?;
        model.check_all(&file)?;
        own.rejoin(2)?;
        model.check_all(&file)
    }

    pub(super) fn snapshot_by_dog_loses_no_write(own: &mut Own) -> anyhow::Result<()> {
        let mounted = own.mount(&[])?;
        let path = mounted.create("snapped", "16M object_size=1M")?;
        let acknowledged = under_load(&path, 4096, &mut seeded(), |progress| {
            for number in 0..5 {
                progress.wait_for_more()?;
                let tag = format!("tag{number}");
                own.cluster
                    .dog(&["vdi", "snapshot", "--snapshot", &tag, "snapped"])?;
            }
            progress.wait_for_more()
        })?;
        acknowledged.check(&path)?;
        mounted.stop()?;
        acknowledged.check(&own.mount(&[])?.attach("snapped")?)
    }

    /// dog writes a wrong maximum into the root, which hides slots.
    pub(super) fn index_leaf_split_by_dog_is_repaired(own: &mut Own) -> anyhow::Result<()> {
        const OBJECT: u64 = 4 << 20;
        // A hypervolume with a full leaf, and a second leaf.
        own.cluster.dog(&["vdi", "create", "-y", "split", "16T"])?;
        let mounted = own.mount(&[])?;
        let json: serde_json::Value = serde_json::from_str(&mounted.report("vdi/list.json")?)?;
        let vdis = json["vdis"].as_array().context("no list of VDIs")?;
        let vdi = vdis.iter().find(|vdi| vdi["name"] == "split");
        let vid = vdi.and_then(|vdi| vdi["vdi_id"].as_u64());
        let vid = u32::try_from(vid.context("not listed")?)?;
        let mut sheep = RawSheep::connect(&own.cluster.address(0))?;
        let full: Vec<u32> = (0..524_287).map(|number| 2 * number).collect();
        sheep.fill_leaves(vid, &[&full, &[2_000_000]])?;

        let text = |object: u32| format!("object {object} ").repeat(64).into_bytes();
        let offset = |object: u32| u64::from(object) * OBJECT;
        for object in [100, 1_000_000] {
            sheep.make_object(vid, object, &text(object))?;
        }
        // The new slot splits the full leaf. dog puts it into the upper half, and its root
        // hides the lower one.
        own.dog_writes("split", offset(101), &text(101))?;
        assert_eq!(sheep.root(vid)?, (2, 3));
        let dog_finds = |object: u32| {
            let (offset, len) = (offset(object).to_string(), text(object).len().to_string());
            let found = own.cluster.dog(&["vdi", "read", "split", &offset, &len])?;
            anyhow::Ok(found.as_bytes() == text(object))
        };
        ensure!(
            !dog_finds(100)?,
            "dog finds the slot, so there is no wrong maximum to repair"
        );

        // sheepfs finds the slots in spite of the root.
        let file = open(&mounted.attach("split")?)?;
        for object in [100, 101, 1_000_000] {
            let mut found = vec![0; text(object).len()];
            file.read_exact_at(&mut found, offset(object))?;
            ensure!(found == text(object), "object {object} is not found");
        }
        // The first change of the index puts it in order, for dog as well.
        for object in [103, 2_000_001] {
            file.write_all_at(&text(object), offset(object))?;
        }
        for object in [100, 101, 103, 1_000_000, 2_000_001] {
            ensure!(dog_finds(object)?, "dog does not find object {object}");
        }
        Ok(())
    }

    pub(super) fn snapshot_by_dog_every_second_causes_no_error(
        own: &mut Own,
    ) -> anyhow::Result<()> {
        let mounted = own.mount(&[])?;
        let path = mounted.create("fio", "64M object_size=1M")?;
        let mut fio = Fio::verifying(
            &path,
            &[
                "--name=verify",
                "--bs=4k",
                "--numjobs=16",
                "--size=4m",
                "--offset_increment=4m",
                "--verify_backlog=64",
                "--rw=randwrite",
                "--ioengine=psync",
                "--direct=1",
                "--time_based",
                "--runtime=20",
            ],
        )?;
        let mut number = 0;
        while !fio.ends_within(Duration::from_secs(1))? {
            number += 1;
            let tag = format!("tag{number}");
            own.cluster
                .dog(&["vdi", "snapshot", "--snapshot", &tag, "fio"])?;
        }
        ensure!(number > 5, "{number} snapshots");
        let jobs = &fio.finish()?[0];
        println!("{number} snapshots, {} writes", jobs["write"]["total_ios"]);
        mounted.stop()
    }

    pub(super) fn resize_by_dog_is_seen(own: &mut Own) -> anyhow::Result<()> {
        let mounted = own.mount(&[])?;
        let path = mounted.create("resized", "8M")?;
        own.cluster.dog(&["vdi", "resize", "resized", "12M"])?;
        wait_until("the new size shows", Duration::from_secs(5), || {
            Ok(path.metadata()?.len() == 12 << 20)
        })?;
        open(&path)?.write_all_at(b"end", (12 << 20) - 3)?;
        Ok(())
    }

    pub(super) fn deletion_by_dog_never_shows_foreign_data(own: &mut Own) -> anyhow::Result<()> {
        let mounted = own.mount(&[])?;
        let file = open(&mounted.create("deleted", "8M")?)?;
        file.write_all_at(b"old bytes", 0)?;
        own.cluster.dog(&["vdi", "delete", "deleted"])?;
        own.cluster.dog(&["vdi", "create", "deleted", "8M"])?;
        let mut found = [0; 9];
        wait_until("the deletion is noticed", Duration::from_secs(10), || {
            let Err(error) = file.read_exact_at(&mut found, 0) else {
                ensure!(&found == b"old bytes" || found == [0; 9], "found {found:?}");
                return Ok(false);
            };
            let errno = error.raw_os_error().map(Errno::from_raw);
            ensure!(matches!(errno, Some(Errno::EIO | Errno::ESTALE)), "{error}");
            Ok(true)
        })
    }

    pub(super) fn lock_excludes_second_writer(own: &mut Own) -> anyhow::Result<()> {
        let first = own.mount(&[])?;
        first.create("locked", "8M")?;
        let second = own.mount(&[])?;
        let refused = second.command("vdi/mount", "locked");
        let errno = refused.err().and_then(|error| error.raw_os_error());
        ensure!(
            errno.map(Errno::from_raw) == Some(Errno::EBUSY),
            "{errno:?}"
        );

        // After a snapshot the volume holds the lock of the new head.
        first.command("vdi/snapshot", "locked tag")?;
        open(&first.volume("locked"))?.write_all_at(b"mine", 0)?;
        ensure!(
            second.command("vdi/mount", "locked").is_err(),
            "the new head is not locked"
        );

        // Detaching gives it back, and so does ending.
        first.command("vdi/unmount", "locked")?;
        let file = open(&second.attach("locked")?)?;
        let mut found = [0; 4];
        file.read_exact_at(&mut found, 0)?;
        ensure!(&found == b"mine");
        drop(file);
        ensure!(first.command("vdi/mount", "locked").is_err());
        second.stop()?;
        first.attach("locked")?;
        first.stop()
    }

    fn busy(refused: std::io::Result<()>) -> bool {
        let errno = refused.err().and_then(|error| error.raw_os_error());
        errno.map(Errno::from_raw) == Some(Errno::EBUSY)
    }

    pub(super) fn lock_is_held_by_nbd_export(own: &mut Own) -> anyhow::Result<()> {
        let mounted = own.mount(&[])?;
        mounted.command("vdi/create", "exported 8M")?;
        let address = own.cluster.address(2);
        let server = NbdServer::start_with(&["--address", &address, "--attach", "exported"])?;
        ensure!(busy(mounted.command("vdi/mount", "exported")), "not locked");
        // After a snapshot it holds the lock of the new head.
        mounted.command("vdi/snapshot", "exported tag")?;
        let write = ["-f", "raw", "-c", "write 0 4k", &server.uri("exported")];
        tests::run(Command::new("qemu-io").args(write))?;
        ensure!(busy(mounted.command("vdi/mount", "exported")), "new head");
        server.stop()?;
        mounted.attach("exported").map(drop)
    }

    pub(super) fn lock_left_by_crash_is_broken_on_request(own: &mut Own) -> anyhow::Result<()> {
        let mut killed = own.mount(&["--lock", "require"])?;
        let path = killed.create("left", "8M")?;
        open(&path)?.write_all_at(b"mine", 0)?;
        killed.signal(Signal::SIGKILL)?;
        killed.wait()?;
        drop(killed);

        let next = own.mount(&[])?;
        ensure!(busy(next.command("vdi/mount", "left")), "the lock is gone");
        // A client that takes no locks is not excluded.
        let unlocked = own.mount(&["--lock", "off"])?;
        let found = std::fs::read(unlocked.attach("left")?)?;
        ensure!(found.starts_with(b"mine"));
        unlocked.stop()?;
        ensure!(
            busy(next.command("vdi/mount", "left")),
            "the lock is released"
        );

        next.command("vdi/unlock", "left")?;
        open(&next.attach("left")?)?.write_all_at(b"next", 0)?;
        ensure!(busy(next.command("vdi/unlock", "left")), "its own lock");
        let other = own.mount(&[])?;
        ensure!(busy(other.command("vdi/mount", "left")), "not locked again");
        next.stop()?;
        other.attach("left").map(drop)
    }
}

impl Own {
    /// Fails unless dog reads the bytes of the model.
    fn check_by_dog(&self, vdi: &str, model: &Model) -> anyhow::Result<()> {
        let found = self.cluster.dog_bytes(&["vdi", "read", vdi])?;
        ensure!(found == model.bytes(), "dog reads other bytes of {vdi}");
        Ok(())
    }

    fn dog_writes(&self, vdi: &str, offset: u64, bytes: &[u8]) -> anyhow::Result<()> {
        let (offset, len) = (offset.to_string(), bytes.len().to_string());
        let arguments = ["vdi", "write", vdi, &offset, &len];
        self.cluster.dog_reading(&arguments, bytes)
    }

    /// Starts a killed node again, and waits until all objects have all copies.
    ///
    /// No client may write during recovery: the daemons can lose acknowledged writes
    /// then, even of a client that only overwrites.
    fn rejoin(&mut self, node: usize) -> anyhow::Result<()> {
        self.cluster.start_again(node)?;
        wait_until("recovery is over", Duration::from_secs(60), || {
            let text = self.cluster.dog(&["node", "recovery", "--raw"])?;
            Ok(text.trim().is_empty())
        })
    }
}
