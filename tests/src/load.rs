//! Writers that record their acknowledged writes during a fault.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

use anyhow::{Context as _, bail, ensure};
use fastrand::Rng;

use crate::wait::{STALL_LIMIT, wait_until};

/// Bytes of one write; every block has one writer.
const BLOCK: usize = 4096;
/// Writers at the same time.
const WRITERS: usize = 6;
/// Writes that must be acknowledged before the load counts as running again.
const PROGRESS: u64 = 200;

/// Acknowledged writes, counted while [`under_load`] runs.
#[derive(Debug, Default)]
pub struct Progress(AtomicU64);

impl Progress {
    /// Returns when some hundred more writes have been acknowledged.
    ///
    /// # Errors
    /// When that takes longer than a minute.
    pub fn wait_for_more(&self) -> anyhow::Result<()> {
        let goal = self.0.load(Ordering::Relaxed) + PROGRESS;
        wait_until("writes go on", STALL_LIMIT, || {
            Ok(self.0.load(Ordering::Relaxed) >= goal)
        })
    }
}

/// The last acknowledged content of every block of a volume.
#[derive(Debug)]
pub struct Acknowledged {
    stamps: Vec<u64>,
}

impl Acknowledged {
    /// Reads the volume and looks for each block's last acknowledged write.
    ///
    /// # Errors
    /// When a block has another content, or cannot be read.
    pub fn check(&self, path: &Path) -> anyhow::Result<()> {
        let file = File::open(path)?;
        let mut found = vec![0; BLOCK];
        for (block, &stamp) in self.stamps.iter().enumerate() {
            file.read_exact_at(&mut found, (block * BLOCK) as u64)
                .with_context(|| format!("reading block {block}"))?;
            if found != content(block, stamp) {
                let older = (0..stamp)
                    .rev()
                    .find(|&older| found == content(block, older));
                bail!("block {block} has lost its write {stamp}; it has {older:?} (0: as created)");
            }
        }
        Ok(())
    }
}

/// Writes to the first `blocks` blocks of the volume at `path` from several
/// threads while `disturb` runs, and returns the acknowledged writes.
///
/// # Errors
/// The first error of a write, of a read, or of `disturb`.
pub fn under_load(
    path: &Path,
    blocks: usize,
    random: &mut Rng,
    disturb: impl FnOnce(&Progress) -> anyhow::Result<()>,
) -> anyhow::Result<Acknowledged> {
    let (progress, enough) = (Progress::default(), AtomicBool::new(false));
    let mut stamps = vec![0; blocks];
    let outcome = thread::scope(|scope| {
        let writers: Vec<_> = stamps
            .chunks_mut(blocks.div_ceil(WRITERS))
            .scan(0, |first, stamps| {
                let start = *first;
                *first += stamps.len();
                Some((start, stamps))
            })
            .map(|(first, stamps)| {
                let (progress, enough, random) = (&progress, &enough, random.fork());
                scope.spawn(move || write_until(path, first, stamps, random, progress, enough))
            })
            .collect();
        let disturbed = disturb(&progress);
        enough.store(true, Ordering::Relaxed);
        let mut outcome = Ok(());
        for writer in writers {
            match writer.join() {
                Ok(written) => outcome = outcome.and(written),
                Err(_) => bail!("a writer panicked"),
            }
        }
        // A writer's error explains why the disturber waited in vain.
        outcome.and(disturbed)
    });
    outcome.map(|()| Acknowledged { stamps })
}

/// One writer: random blocks of its own, some read back immediately.
fn write_until(
    path: &Path,
    first: usize,
    stamps: &mut [u64],
    mut random: Rng,
    progress: &Progress,
    enough: &AtomicBool,
) -> anyhow::Result<()> {
    let file = File::options().read(true).write(true).open(path)?;
    let mut found = vec![0; BLOCK];
    for stamp in 1.. {
        if enough.load(Ordering::Relaxed) {
            break;
        }
        let chosen = random.usize(..stamps.len());
        let block = first + chosen;
        let offset = (block * BLOCK) as u64;
        file.write_all_at(&content(block, stamp), offset)
            .with_context(|| format!("writing block {block}"))?;
        stamps[chosen] = stamp;
        progress.0.fetch_add(1, Ordering::Relaxed);
        if stamp % 4 == 0 {
            file.read_exact_at(&mut found, offset)
                .with_context(|| format!("reading block {block}"))?;
            ensure!(
                found == content(block, stamp),
                "block {block} lost write {stamp} at once"
            );
        }
    }
    Ok(())
}

/// The content of `block` after write `stamp`; 0 stands for a new volume.
fn content(block: usize, stamp: u64) -> Vec<u8> {
    let mut bytes = vec![0; BLOCK];
    if stamp > 0 {
        Rng::with_seed(stamp ^ (block as u64) << 32).fill(&mut bytes);
    }
    bytes
}
