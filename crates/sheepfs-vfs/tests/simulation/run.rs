//! One run: writers, readers, an administrator and bad luck.

mod clients;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use sheep_client::unstable::Pool;
use sheep_client::{Client, ClientConfig, NewVdi, VdiSelector};
use sheep_proto::{Generation, ResultCode, SnapshotTag, VdiName};
use sheepfs_vfs::{BlockDevice as _, Volume, VolumeError, VolumeOptions};
use tokio::sync::RwLock;

use crate::checker::{CELL, Checker, Since};
use crate::cluster::Cluster;
use crate::layout::{Layout, object_of};
use crate::sim_rng::SimRng;

const OBJECTS: usize = 5;
/// Objects after them, in some runs, for a sequential writer: enough to start
/// preallocation.
const STREAM: usize = 22;
/// Objects after all these: an unused one, which the sequential writer may preallocate,
/// and one that another host writes.
const OTHER_HOST: usize = 2;
/// After another client's snapshot reads may be as old as this.
const HEAD_AGE: Duration = Duration::from_secs(1);
/// The first number that is written.
const TEMPLATE: u64 = 1;
const WRITERS: usize = 4;
const SHEEP: u8 = 3;
/// Latest end of a client that crashes: its work takes about that long.
const MAX_UPTIME: Duration = Duration::from_secs(20);
/// Longer than any sheep takes over a request that it has read.
const DRAIN_TIME: Duration = Duration::from_secs(30);
/// Longest time that anything takes, in simulated time.
const LIMIT: Duration = Duration::from_secs(3600);

/// What happened in a run, or in many.
#[derive(Debug, Default)]
pub(crate) struct Totals {
    pub(crate) runs: u64,
    pub(crate) writes: u64,
    pub(crate) failed: u64,
    pub(crate) reads: u64,
    pub(crate) snapshots: u64,
    pub(crate) faults: u64,
    pub(crate) crashes: u64,
    pub(crate) clones: u64,
    /// Objects made ahead of a writer.
    pub(crate) preallocated: u64,
    pub(crate) trace: u64,
    pub(crate) longest: Duration,
}

impl Totals {
    pub(crate) fn add(&mut self, run: &Self) {
        self.runs += run.runs;
        self.writes += run.writes;
        self.failed += run.failed;
        self.reads += run.reads;
        self.snapshots += run.snapshots;
        self.faults += run.faults;
        self.crashes += run.crashes;
        self.clones += run.clones;
        self.preallocated += run.preallocated;
        self.longest = self.longest.max(run.longest);
    }
}

/// State that the tasks of a run share.
struct Simulation {
    rng: SimRng,
    cluster: Cluster,
    name: VdiName,
    checker: Checker,
    layout: Layout,
    /// Whether snapshots are taken.
    snapshots: bool,
    /// Read-locked by writers of an object, write-locked by its discard.
    objects: Vec<RwLock<()>>,
    /// Objects that are being freed, or were at the crash.
    freeing: std::sync::Mutex<BTreeSet<usize>>,
    numbers: AtomicU64,
    over: AtomicBool,
    counts: std::sync::Mutex<Totals>,
}

/// Runs one seed to its end.
pub(crate) fn run(seed: u64, generation: Generation) -> Totals {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .unwrap();
    runtime.block_on(async {
        tokio::time::timeout(LIMIT, Simulation::run(seed, generation))
            .await
            .expect("every operation ends")
    })
}

impl Simulation {
    async fn run(seed: u64, generation: Generation) -> Totals {
        // The seed decides the kind of VDI, and what happens to it.
        let rng = SimRng::new(seed);
        let cluster = Cluster::start(rng.clone(), SHEEP, generation);
        let streams = rng.one_in(4);
        let hypervolume = rng.one_in(4) && generation.writes_hypervolumes();
        let layout = Layout {
            objects: OBJECTS + if streams { STREAM } else { 0 } + OTHER_HOST,
            hypervolume,
            default_objects: !generation.has_object_sizes(),
        };
        let snapshots = !hypervolume && !rng.one_in(3);
        let simulation = Arc::new(Self {
            snapshots,
            name: VdiName::new("disk").unwrap(),
            checker: Checker::new(layout.cells()),
            layout,
            objects: (0..layout.objects).map(|_| RwLock::default()).collect(),
            freeing: std::sync::Mutex::default(),
            numbers: AtomicU64::new(TEMPLATE),
            over: AtomicBool::new(false),
            counts: std::sync::Mutex::default(),
            rng,
            cluster,
        });
        // A new VDI, or a clone of a template with data.
        let client = simulation.client(1).await;
        let cloned = !streams && !hypervolume && simulation.rng.one_in(3);
        if cloned {
            simulation.clone_template(&client).await;
        } else {
            let new = simulation.new_vdi(&simulation.name);
            let vid = client.cluster().create_vdi(&new).await.unwrap();
            if hypervolume && simulation.rng.one_in(2) {
                simulation.cluster.shared().store().deepen(vid);
            }
        }
        let volume = simulation.open(&client, &simulation.name).await;

        // Writers and readers of the volume under test, and of a second client.
        let mut writers = tokio::task::JoinSet::new();
        for writer in 0..WRITERS {
            writers.spawn(Arc::clone(&simulation).write_often(Arc::clone(&volume), writer));
        }
        writers.spawn(Arc::clone(&simulation).read_often(Arc::clone(&volume)));
        let other = simulation.client(4).await;
        let other = simulation.open(&other, &simulation.name).await;
        writers.spawn(Arc::clone(&simulation).read_elsewhere(Arc::clone(&other)));
        if !hypervolume {
            writers.spawn(Arc::clone(&simulation).write_elsewhere(other));
        }
        if streams {
            writers.spawn(Arc::clone(&simulation).write_on_and_on(Arc::clone(&volume)));
        }
        // Snapshots and other administration, and faults of sheep and network, beside them.
        let administrator = tokio::spawn(Arc::clone(&simulation).admin_loop());
        let faults = tokio::spawn(Arc::clone(&simulation).inject_faults());
        let all_end = async {
            while let Some(done) = writers.join_next().await {
                done.unwrap();
            }
        };
        // In one of four runs the client crashes before its writers have ended.
        let crashed = match simulation.rng.one_in(4) {
            true => {
                let uptime = simulation.rng.pause(MAX_UPTIME);
                tokio::time::timeout(uptime, all_end).await.is_err()
            }
            false => {
                all_end.await;
                false
            }
        };
        if crashed {
            simulation.cluster.end_client(1);
            writers.shutdown().await;
            simulation.checker.forget_pending();
            simulation.rng.note("crash");
            simulation.count(|totals| totals.crashes += 1);
        }
        // Everything ends, and late requests are executed, before the bytes are verified.
        simulation.over.store(true, Ordering::Relaxed);
        let tags = administrator.await.unwrap();
        faults.await.unwrap();
        if crashed {
            // The sheep may still execute requests that they had read.
            tokio::time::sleep(DRAIN_TIME).await;
        } else {
            simulation.check_own(&volume).await;
        }
        simulation.verify(tags, cloned).await;
        // Counts of the run, and the trace that a repeated run must have, too.
        let mut totals = std::mem::take(&mut *simulation.counts.lock().unwrap());
        totals.runs = 1;
        totals.preallocated = simulation
            .cluster
            .shared()
            .preallocated
            .load(Ordering::Relaxed);
        totals.trace = simulation.rng.trace();
        totals
    }

    /// A client with a network of its own, that may begin at any sheep.
    async fn client(&self, number: usize) -> Client {
        let mut addresses = self.cluster.addresses();
        addresses.rotate_left(number % usize::from(SHEEP));
        let mut config = ClientConfig::new(addresses[0].into());
        config.addresses = addresses
            .iter()
            .take(1 + number % 2)
            .map(|&address| address.into())
            .collect();
        config.connections = 1 + self.rng.up_to(3);
        loop {
            let pool = Pool::connect_with(config.clone(), self.cluster.network(number)).await;
            match pool {
                Ok(pool) => return Client::with_transport(Arc::new(pool)),
                Err(_offline) => tokio::time::sleep(Duration::from_millis(100)).await,
            }
        }
    }

    /// The disk, or the template, before anything is in it.
    fn new_vdi(&self, name: &VdiName) -> NewVdi {
        let new = NewVdi::new(name.clone(), self.layout.size());
        if self.layout.hypervolume {
            new.with_hypervolume()
        } else if self.layout.default_objects {
            new
        } else {
            new.with_object_shift(20)
        }
    }

    /// Makes the disk a clone of a snapshot with all cells written.
    async fn clone_template(&self, client: &Client) {
        let (name, tag) = template();
        client
            .cluster()
            .create_vdi(&self.new_vdi(&name))
            .await
            .unwrap();
        let volume = self.open(client, &name).await;
        let number = self.next_number();
        assert_eq!(number, TEMPLATE);
        self.checker.begin(0..self.layout.cells(), number);
        for cell in 0..self.layout.cells() {
            let data = Bytes::from(number.to_le_bytes().repeat(CELL / 8));
            volume
                .write_at(self.layout.offset(cell), data)
                .await
                .unwrap();
        }
        self.checker.end(0..self.layout.cells(), true);
        volume.close().await.unwrap();
        client
            .vdi(&VdiSelector::working(name.clone()))
            .snapshot(&tag)
            .await
            .unwrap();
        let snapshot = VdiSelector::tag(name, tag);
        client.vdi(&snapshot).clone_to(&self.name).await.unwrap();
        self.count(|totals| totals.clones += 1);
    }

    async fn open(&self, client: &Client, name: &VdiName) -> Arc<Volume> {
        let options = VolumeOptions::default().with_lock(false);
        let selector = VdiSelector::working(name.clone());
        Volume::open(client.clone(), selector, options)
            .await
            .unwrap()
    }

    async fn open_snapshot(
        &self,
        client: &Client,
        name: &VdiName,
        tag: &SnapshotTag,
    ) -> Arc<Volume> {
        let options = VolumeOptions::default()
            .with_read_only(true)
            .with_lock(false);
        let selector = VdiSelector::tag(name.clone(), tag.clone());
        Volume::open(client.clone(), selector, options)
            .await
            .unwrap()
    }

    fn count(&self, change: impl FnOnce(&mut Totals)) {
        change(&mut self.counts.lock().unwrap());
    }

    fn next_number(&self) -> u64 {
        self.numbers.fetch_add(1, Ordering::Relaxed)
    }

    async fn read_cell(&self, volume: &Arc<Volume>, cell: usize) -> Bytes {
        self.try_read_cell(volume, cell).await.unwrap()
    }

    async fn try_read_cell(&self, volume: &Arc<Volume>, cell: usize) -> Result<Bytes, VolumeError> {
        let len = u32::try_from(CELL).unwrap();
        volume.read_at(self.layout.offset(cell), len).await
    }

    /// Takes snapshots with a client of its own; returns them, each with the
    /// moment before it.
    async fn admin_loop(self: Arc<Self>) -> Vec<(SnapshotTag, Since)> {
        let client = self.client(2).await;
        let mut tags = Vec::new();
        if !self.snapshots {
            return tags;
        }
        while !self.over.load(Ordering::Relaxed) && tags.len() < 8 {
            tokio::time::sleep(self.rng.pause(Duration::from_secs(10))).await;
            let tag = SnapshotTag::new(format!("tag{}", tags.len())).unwrap();
            let since = self.checker.now();
            let taken = client
                .vdi(&VdiSelector::working(self.name.clone()))
                .snapshot(&tag)
                .await;
            self.rng.note(("snapshot", format!("{taken:?}")));
            if taken.is_ok() {
                tags.push((tag, since));
                self.count(|totals| totals.snapshots += 1);
            }
        }
        tags
    }

    /// Kills, stops and cuts, but always ends well.
    async fn inject_faults(self: Arc<Self>) {
        let all = usize::from(SHEEP);
        while !self.over.load(Ordering::Relaxed) {
            tokio::time::sleep(self.rng.pause(Duration::from_secs(8))).await;
            let number = self.rng.up_to(all - 1);
            let time = self.rng.pause(Duration::from_secs(15));
            self.count(|totals| totals.faults += 1);
            match self.rng.up_to(5) {
                0 | 1 => {
                    self.cluster.kill(number);
                    tokio::time::sleep(time).await;
                    self.cluster.restart(number);
                }
                2 => {
                    (0..all).for_each(|number| self.cluster.kill(number));
                    tokio::time::sleep(time).await;
                    (0..all).for_each(|number| self.cluster.restart(number));
                }
                3 => {
                    self.cluster.stop(number, true);
                    tokio::time::sleep(time).await;
                    self.cluster.stop(number, false);
                }
                _ => self.cluster.cut(number, |client| client == 1),
            }
        }
    }

    /// Looks at everything once more, through the volume, and closes it.
    async fn check_own(&self, volume: &Arc<Volume>) {
        volume.flush().await.unwrap();
        tokio::time::sleep(HEAD_AGE).await;
        let all = 0..self.layout.cells();
        let elsewhere = all.filter(|&cell| object_of(cell) == self.layout.objects - 1);
        let since = self.checker.now();
        let since = self.checker.before_discards(since, elsewhere);
        self.check_all(volume, &since, "the same volume").await;
        volume.close().await.unwrap();
    }

    /// Looks at everything from afar.
    async fn verify(&self, tags: Vec<(SnapshotTag, Since)>, cloned: bool) {
        let client = self.client(3).await;
        let again = self.open(&client, &self.name).await;
        self.check_all(&again, &self.checker.now(), "another client")
            .await;
        for (tag, since) in &tags {
            let snapshot = self.open_snapshot(&client, &self.name, tag).await;
            self.check_all(&snapshot, since, &format!("snapshot {tag:?}"))
                .await;
        }
        if cloned {
            let (name, tag) = template();
            let snapshot = self.open_snapshot(&client, &name, &tag).await;
            for cell in 0..self.layout.cells() {
                let found = self.read_cell(&snapshot, cell).await;
                let untouched = TEMPLATE.to_le_bytes().repeat(CELL / 8);
                assert_eq!(found, untouched, "cell {cell} of the template");
            }
        }
        tokio::time::sleep(Duration::from_secs(5)).await;
        let mut lost = self.cluster.shared().store().lost();
        lost.retain(|&(_vid, index, _owner)| !self.may_be_gone(index as usize));
        assert_eq!(lost, [], "slots that name nothing");
    }

    /// True when an object was being freed at the crash. A snapshot that is taken
    /// just then writes back slots of deleted objects, and the crashed client did not
    /// clear them again.
    fn may_be_gone(&self, object: usize) -> bool {
        !self.layout.hypervolume && self.freeing.lock().unwrap().contains(&object)
    }

    async fn check_all(&self, volume: &Arc<Volume>, since: &Since, whose: &str) {
        for cell in 0..self.layout.cells() {
            let found = match self.try_read_cell(volume, cell).await {
                Err(error) if is_lost(&error) && self.may_be_gone(object_of(cell)) => {
                    continue;
                }
                found => found.unwrap(),
            };
            self.checker.check(cell, since, &found, whose);
        }
    }
}

/// The snapshot that the disk is a clone of.
fn template() -> (VdiName, SnapshotTag) {
    let name = VdiName::new("template").unwrap();
    (name, SnapshotTag::new("done").unwrap())
}

/// True when a slot named an object that is not there.
fn is_lost(error: &VolumeError) -> bool {
    matches!(error, VolumeError::Io { source, .. } if source.code() == Some(ResultCode::NoObj))
}
