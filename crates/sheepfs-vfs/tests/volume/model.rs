//! Random operations on volumes against a vector of bytes.

use std::sync::Arc;

use futures_util::future::{join, join_all};
use sheep_client::testing::{Fault, FaultTransport};
use sheep_client::{Client, NewVdi, VdiSelector};
use sheep_proto::{Redundancy, ResultCode, VdiName};
use sheepfs_vfs::{BlockDevice as _, Volume, VolumeError, VolumeOptions};

use crate::support::{Cluster, MIB, tag, unique_name};

const STEPS: usize = 120;
/// A volume does not grow beyond this.
const LARGEST: u64 = 40 * MIB;

/// A VDI under random operations, and the model of its bytes.
pub(crate) struct ModelTest<'a> {
    cluster: &'a Cluster,
    /// The client of the volume, with random faults if `faulty`.
    client: Client,
    volume: Arc<Volume>,
    name: VdiName,
    bytes: Vec<u8>,
    snapshots: Vec<Snapshot>,
    random: fastrand::Rng,
    faulty: bool,
    /// For failure messages.
    place: String,
}

#[derive(Clone)]
struct Snapshot {
    of: VdiName,
    tag: String,
    id: u32,
    bytes: Vec<u8>,
}

impl Snapshot {
    fn selector(&self, by_number: bool) -> VdiSelector {
        if by_number {
            VdiSelector::snap_id(self.of.clone(), self.id)
        } else {
            VdiSelector::tag(self.of.clone(), tag(&self.tag))
        }
    }
}

async fn open(client: &Client, selector: VdiSelector) -> Arc<Volume> {
    let options = VolumeOptions::default().with_lock(false);
    // Attaching fails at random, too.
    for _ in 0..100 {
        match Volume::open(client.clone(), selector.clone(), options).await {
            Ok(volume) => return volume,
            Err(error) => println!("attaching {selector}: {error}"),
        }
    }
    panic!("{selector} cannot be attached");
}

/// Repeats an operation with random faults until it succeeds.
async fn retry_until_ok(mut operation: impl AsyncFnMut() -> Result<(), VolumeError>) {
    for _ in 0..100 {
        match operation().await {
            Ok(()) => return,
            Err(error) => println!("once more: {error}"),
        }
    }
    panic!("it never succeeds");
}

impl<'a> ModelTest<'a> {
    /// Makes a VDI and attaches it through `client`, which may be `faulty`.
    pub(crate) async fn create(
        cluster: &'a Cluster,
        client: Client,
        seed: u64,
        kind: impl FnOnce(&mut NewVdi),
        faulty: bool,
    ) -> Self {
        let name = cluster.create_kind("model", kind).await;
        let volume = open(&client, VdiSelector::working(name.clone())).await;
        let place = format!("seed {seed}, {:?}", volume.info());
        Self {
            cluster,
            client,
            bytes: vec![0; usize::try_from(volume.size()).unwrap()],
            volume,
            name,
            snapshots: Vec::new(),
            random: fastrand::Rng::with_seed(seed),
            faulty,
            place,
        }
    }

    pub(crate) async fn work(&mut self) {
        for step in 0..STEPS {
            self.step(step).await;
        }
        self.remount().await;
        self.check(0, self.bytes.len()).await;
        self.check_snapshots().await;
    }

    async fn step(&mut self, step: usize) {
        let size = self.bytes.len();
        let start = self.random.usize(0..=size);
        let len = self.random.usize(0..=size - start).min(3 << 20);
        match self.random.u8(0..100) {
            0..40 => {
                let short = if self.random.bool() { 5000 } else { len };
                self.write(start, len.min(short)).await;
            }
            40..68 => self.check(start, len).await,
            68..75 => self.punch(start, len).await,
            75..81 => self.snapshot(step).await,
            81..84 => self.clone_newest_snapshot().await,
            84..86 => self.delete_oldest_snapshot().await,
            86..90 => self.grow().await,
            90..94 => retry_until_ok(async || self.volume.flush().await).await,
            _ => self.remount().await,
        }
    }

    async fn write(&mut self, start: usize, len: usize) {
        let mut data = vec![0; len];
        self.random.fill(&mut data);
        let written = self.volume.write_at(start as u64, data.clone().into());
        match written.await {
            Ok(count) => {
                assert_eq!(count as usize, len, "{}", self.place);
                self.bytes[start..start + len].copy_from_slice(&data);
            }
            Err(_) => self.resolve_outcome(start, &data).await,
        }
    }

    async fn punch(&mut self, start: usize, len: usize) {
        let punched = self.volume.discard(start as u64, len as u64).await;
        match punched {
            Ok(()) => self.bytes[start..start + len].fill(0),
            Err(_) => self.resolve_outcome(start, &vec![0; len]).await,
        }
    }

    /// After an operation that failed: each byte is as before or as it was to
    /// be, and stays so.
    async fn resolve_outcome(&mut self, start: usize, new: &[u8]) {
        let count = u32::try_from(new.len()).unwrap();
        let mut found = None;
        retry_until_ok(async || {
            found = Some(self.volume.read_at(start as u64, count).await?);
            Ok(())
        })
        .await;
        let found = found.expect("it was read");
        let old = &mut self.bytes[start..start + new.len()];
        let pieces = found.chunks(512).zip(old.chunks(512)).zip(new.chunks(512));
        for ((found, old), new) in pieces {
            if found != old && found != new {
                let mut each = found.iter().zip(old).zip(new);
                let known = each.all(|((found, old), new)| found == old || found == new);
                assert!(known, "{}: other bytes after a failure", self.place);
            }
        }
        old.copy_from_slice(&found);
    }

    /// Reads a range; it may only fail with faults.
    async fn check(&self, start: usize, len: usize) {
        let count = u32::try_from(len).unwrap();
        match self.volume.read_at(start as u64, count).await {
            Ok(found) => {
                self.compare(&found, start, &self.bytes[start..start + len], "the volume");
            }
            Err(error) => assert!(self.faulty, "{}: {error}", self.place),
        }
    }

    fn compare(&self, found: &[u8], start: usize, expected: &[u8], what: &str) {
        if found != expected {
            let wrong = found.iter().zip(expected).position(|(a, b)| a != b);
            let wrong = wrong.map(|at| start + at);
            panic!("{}: {what} differs at {wrong:?}", self.place);
        }
    }

    async fn snapshot(&mut self, step: usize) {
        if self.volume.info().hypervolume {
            return;
        }
        let text = format!("s{step}");
        let client = &self.cluster.client;
        self.cluster.snapshot(&self.name, &text).await;
        let mut snapshot = Snapshot {
            of: self.name.clone(),
            tag: text,
            id: 0,
            bytes: self.bytes.clone(),
        };
        let info = client.vdi(&snapshot.selector(false)).stat().await.unwrap();
        snapshot.id = info.snap_id;
        self.snapshots.push(snapshot);
    }

    /// Continues with a clone; its parent may be a clone as well.
    async fn clone_newest_snapshot(&mut self) {
        let Some(newest) = self.snapshots.last().cloned() else {
            return;
        };
        let name = unique_name("model-clone");
        let client = &self.cluster.client;
        let parent = newest.selector(false);
        client.vdi(&parent).clone_to(&name).await.unwrap();
        retry_until_ok(async || self.volume.close().await).await;
        self.volume = open(&self.client, VdiSelector::working(name.clone())).await;
        self.name = name;
        self.bytes = newest.bytes;
    }

    async fn delete_oldest_snapshot(&mut self) {
        if self.snapshots.len() > 2 {
            let oldest = self.snapshots.remove(0);
            let client = &self.cluster.client;
            client.vdi(&oldest.selector(true)).delete().await.unwrap();
        }
    }

    async fn grow(&mut self) {
        let size = (self.bytes.len() as u64 + self.random.u64(0..MIB)).min(LARGEST);
        retry_until_ok(async || self.volume.set_size(size).await).await;
        self.bytes.resize(usize::try_from(size).unwrap(), 0);
        assert_eq!(self.volume.size(), size, "{}", self.place);
    }

    async fn remount(&mut self) {
        retry_until_ok(async || self.volume.close().await).await;
        self.volume = open(&self.client, VdiSelector::working(self.name.clone())).await;
        assert_eq!(
            self.volume.size(),
            self.bytes.len() as u64,
            "{}",
            self.place
        );
    }

    async fn check_snapshots(&self) {
        for (number, snapshot) in self.snapshots.iter().enumerate() {
            let selector = snapshot.selector(number % 2 == 0);
            let volume = open(&self.cluster.client, selector.clone()).await;
            assert!(!volume.is_writable());
            let count = u32::try_from(snapshot.bytes.len()).unwrap();
            let found = volume.read_at(0, count).await.unwrap();
            self.compare(&found, 0, &snapshot.bytes, &selector.to_string());
        }
    }
}

pub(crate) type Kind = (&'static str, fn(&mut NewVdi));

/// One VDI of each kind, most of them with a size that is no multiple of a block.
const KINDS: [Kind; 9] = [
    ("1 MiB objects", |new| {
        (new.size, new.object_shift) = (5 * MIB + 4097, Some(20));
    }),
    ("2 MiB objects", |new| {
        (new.size, new.object_shift) = (9 * MIB + 3, Some(21));
    }),
    ("4 MiB objects", |new| {
        (new.size, new.object_shift) = (13 * MIB + 513, Some(22));
    }),
    ("8 MiB objects", |new| {
        (new.size, new.object_shift) = (11 * MIB, Some(23));
    }),
    ("one object of 32 MiB", |new| {
        (new.size, new.object_shift) = (9 * MIB + 511, Some(25));
    }),
    ("no bytes", |new| new.object_shift = Some(20)),
    ("one byte", |new| {
        (new.size, new.object_shift) = (1, Some(20));
    }),
    ("erasure-coded", |new| {
        (new.size, new.object_shift) = (5 * MIB + 1, Some(20));
        new.redundancy = Some(Redundancy::Erasure { data: 2, parity: 1 });
    }),
    ("hypervolume", |new| {
        (new.size, new.hypervolume) = (13 * MIB + 5, true);
    }),
];

/// The kinds that a cluster can have.
pub(crate) fn kinds(cluster: &Cluster) -> Vec<Kind> {
    let generation = cluster.generation;
    let exists = |&(what, kind): &Kind| {
        let mut new = NewVdi::new(unique_name("kind"), 0);
        kind(&mut new);
        let is_coded = matches!(new.redundancy, Some(Redundancy::Erasure { .. }));
        let exists = (!is_coded || generation.has_erasure_code())
            && (!new.hypervolume || generation.writes_hypervolumes());
        if !exists {
            println!("there is none on sheep {generation}: {what}");
        }
        exists
    };
    KINDS.into_iter().filter(exists).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn model_every_vdi_kind_matches_bytes_and_snapshots() {
    for cluster in Cluster::each_generation().await {
        for (what, kind) in kinds(&cluster) {
            let seed = fastrand::u64(..);
            println!("{}, {what}, seed {seed}", cluster.generation);
            let client = cluster.client.clone();
            let subject = ModelTest::create(&cluster, client, seed, kind, false);
            subject.await.work().await;
        }
    }
}

/// A client with random faults of every kind.
async fn faulty(cluster: &Cluster, seed: u64) -> Client {
    let mut faults = fastrand::Rng::with_seed(seed ^ 1);
    cluster
        .client_through(|inner| {
            FaultTransport::new(inner, move |_call| match faults.u8(0..100) {
                0..2 => Some(Fault::LoseBefore),
                2..4 => Some(Fault::LoseAfter),
                4..6 => Some(Fault::Refuse(ResultCode::Eio)),
                _ => None,
            })
        })
        .await
}

#[tokio::test(flavor = "multi_thread")]
async fn model_acknowledged_writes_survive_faults() {
    for cluster in Cluster::each_generation().await {
        for (what, kind) in kinds(&cluster) {
            let seed = fastrand::u64(..);
            println!("{}, {what}, seed {seed}", cluster.generation);
            let client = faulty(&cluster, seed).await;
            let subject = ModelTest::create(&cluster, client, seed, kind, true);
            subject.await.work().await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn model_clone_of_clone_is_independent() {
    for cluster in Cluster::each_generation().await {
        clone_of_clone(&cluster).await;
    }
}

async fn clone_of_clone(cluster: &Cluster) {
    let seed = fastrand::u64(..);
    println!("{}, seed {seed}", cluster.generation);
    let (_, kind) = KINDS[0];
    let client = cluster.client.clone();
    let mut subject = ModelTest::create(cluster, client, seed, kind, false).await;
    let mut families = Vec::new();
    for generation in 0..4 {
        for step in 0..30 {
            subject.step(1000 * generation + step).await;
        }
        subject.snapshot(1000 * generation + 999).await;
        families.push((subject.name.clone(), subject.bytes.clone()));
        subject.clone_newest_snapshot().await;
    }
    // All of them are written at the same time, each its own way.
    let writes = families.iter_mut().zip(1u8..).map(async |(family, byte)| {
        let (name, bytes) = family;
        let volume = open(&cluster.client, VdiSelector::working(name.clone())).await;
        for start in (0..bytes.len()).step_by(400_000) {
            let end = (start + 3000).min(bytes.len());
            let data = vec![byte; end - start];
            volume.write_at(start as u64, data.into()).await.unwrap();
            bytes[start..end].fill(byte);
        }
    });
    join(join_all(writes), subject.work()).await;
    for (name, bytes) in families {
        let volume = open(&cluster.client, VdiSelector::working(name)).await;
        let count = u32::try_from(bytes.len()).unwrap();
        let found = volume.read_at(0, count).await.unwrap();
        subject.compare(&found, 0, &bytes, "a parent");
    }
}
