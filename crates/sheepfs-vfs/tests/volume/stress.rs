//! Stress of the fast paths: many concurrent jobs, responses in any order, dropped callers,
//! reused buffers.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use fastrand::Rng;
use sheep_client::testing::{Fault, FaultTransport};
use sheepfs_vfs::{BlockDevice as _, Volume};
use tokio::sync::oneshot;
use tokio::task::JoinSet;

use crate::support::{Cluster, open, read_all};

/// Bytes of one object.
const OBJECT: usize = 1 << 20;
/// Each job owns a part of every object exclusively; some parts cross the border between
/// two requests of a split write.
const JOBS: usize = 6;
const PART: usize = OBJECT / JOBS;
const OBJECTS: usize = 6;
const STEPS: usize = 150;

/// Content that identifies the job and its step.
fn content(job: usize, step: usize, len: usize) -> Bytes {
    let seed = (job as u64) << 32 | step as u64;
    let mut bytes = vec![0; len];
    Rng::with_seed(seed).fill(&mut bytes);
    bytes.into()
}

/// A job with the expected content of its parts.
struct Job {
    volume: Arc<Volume>,
    number: usize,
    random: Rng,
    parts: Vec<Vec<u8>>,
}

impl Job {
    async fn run(mut self) -> (usize, Vec<Vec<u8>>) {
        for step in 1..=STEPS {
            let object = self.random.usize(..OBJECTS);
            let at = self.random.usize(..PART);
            // As often a few bytes as a whole part.
            let longest = [600, 5000, PART][self.random.usize(..3)].min(PART - at);
            let range = at..at + self.random.usize(1..=longest);
            let offset = (object * OBJECT + self.number * PART + at) as u64;
            let stays = self.random.u8(..5) > 0;
            if self.random.bool() {
                let data = content(self.number, step, range.len());
                let written = begin_write(&self.volume, offset, data.clone());
                if stays {
                    assert_eq!(written.await.unwrap() as usize, range.len());
                } else {
                    // The write continues, and a flush waits for it.
                    drop(written);
                    self.volume.flush().await.unwrap();
                }
                self.parts[object][range].copy_from_slice(&data);
            } else {
                let read = begin_read(&self.volume, offset, u32::try_from(range.len()).unwrap());
                if stays {
                    let found = read.await.unwrap();
                    let expected = &self.parts[object][range];
                    assert!(found == expected, "job {} step {step}", self.number);
                }
            }
        }
        (self.number, self.parts)
    }
}

fn begin_write(volume: &Arc<Volume>, offset: u64, data: Bytes) -> oneshot::Receiver<u32> {
    let (done, written) = oneshot::channel();
    let done = move |result: Result<u32, _>| {
        // The receiver may have been dropped.
        let _gone = done.send(result.expect("it is written"));
    };
    volume.submit_write(offset, data, done);
    written
}

fn begin_read(volume: &Arc<Volume>, offset: u64, len: u32) -> oneshot::Receiver<Bytes> {
    let (done, read) = oneshot::channel();
    let done = move |result: Result<Bytes, _>| {
        let _gone = done.send(result.expect("it is read"));
    };
    volume.submit_read(offset, len, done);
    read
}

async fn stress(cluster: &Cluster, seed: u64) {
    let name = cluster.create("stress", (OBJECTS * OBJECT) as u64).await;
    let mut faults = Rng::with_seed(seed);
    let client = cluster
        .client_through(move |inner| {
            FaultTransport::new(inner, move |_call| match faults.u8(..10) {
                0 => Some(Fault::Delay(Duration::from_micros(faults.u64(..2000)))),
                1 | 2 => Some(Fault::DelayResponse(Duration::from_micros(
                    faults.u64(..3000),
                ))),
                _ => None,
            })
        })
        .await;
    let volume = open(&client, &name).await;
    let mut jobs = JoinSet::new();
    for number in 0..JOBS {
        let job = Job {
            volume: Arc::clone(&volume),
            number,
            random: Rng::with_seed(seed ^ (number as u64 + 1) << 40),
            parts: vec![vec![0; PART]; OBJECTS],
        };
        jobs.spawn(job.run());
    }
    let mut expected = vec![0; OBJECTS * OBJECT];
    while let Some(job) = jobs.join_next().await {
        let (number, parts) = job.expect("a job that fails says why");
        for (object, part) in parts.iter().enumerate() {
            let start = object * OBJECT + number * PART;
            expected[start..start + PART].copy_from_slice(part);
        }
    }
    volume.close().await.unwrap();
    let other = open(&cluster.client, &name).await;
    assert!(read_all(&other).await == expected);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn stress_no_job_sees_bytes_of_another() {
    for cluster in Cluster::each().await {
        for seed in 0..3 {
            println!("seed {seed}");
            stress(&cluster, seed).await;
        }
    }
}
