//! Crash-consistency checker: writers number their writes, so that the content of a
//! volume shows which of them it has. A consistent volume has all writes up to some
//! moment and none after it.

use std::fs::{self, File};
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

use anyhow::{Context as _, bail, ensure};

use crate::wait::{STALL_LIMIT, wait_until};

/// Bytes of one write.
const BLOCK: usize = 4096;
/// Blocks between two writes: prime, so that each turn visits all of them.
const STRIDE: u64 = 257;

/// Several writers to one volume, each with blocks of its own and one write at
/// a time.
#[derive(Debug)]
pub struct DurabilityChecker {
    writers: Vec<Writer>,
    blocks_each: u64,
}

/// The last write that was sent and the last one acknowledged. A failed write is
/// retried with the same number.
#[derive(Debug, Default)]
struct Writer {
    begun: AtomicU64,
    acknowledged: AtomicU64,
}

/// The numbers of all writers at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Numbers(Vec<u64>);

/// When a writer counts its writes as acknowledged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AckPolicy {
    /// When they return.
    EachWrite,
    /// When an fsync after some of them has returned.
    Fsync,
}

/// Writes before an fsync.
const FSYNC_EVERY: u64 = 16;

impl DurabilityChecker {
    /// For a volume of `writers * blocks_each` blocks of 4 KiB; `blocks_each`
    /// is a power of two.
    #[must_use]
    pub fn new(writers: usize, blocks_each: u64) -> Self {
        Self {
            writers: (0..writers).map(|_| Writer::default()).collect(),
            blocks_each,
        }
    }

    /// Writes until `disturb` has returned; returns its result and the errors that ended
    /// writers earlier.
    ///
    /// # Errors
    /// The error of `disturb`, or that a writer found an old block.
    pub fn run<T>(
        &self,
        path: &Path,
        acknowledge: AckPolicy,
        disturb: impl FnOnce() -> anyhow::Result<T>,
    ) -> anyhow::Result<(T, Vec<std::io::Error>)> {
        let enough = AtomicBool::new(false);
        thread::scope(|scope| {
            let threads: Vec<_> = (0..self.writers.len())
                .map(|writer| {
                    let enough = &enough;
                    scope.spawn(move || self.write(path, writer, acknowledge, enough))
                })
                .collect();
            let disturbed = disturb();
            enough.store(true, Ordering::SeqCst);
            let mut errors = Vec::new();
            for thread in threads {
                match thread.join() {
                    Ok(Ok(())) => {}
                    Ok(Err(error)) => errors.push(error),
                    Err(_) => bail!("a writer panicked"),
                }
            }
            // A writer's error explains why the disturber waited in vain.
            let done = disturbed.with_context(|| format!("the writers' errors: {errors:?}"))?;
            Ok((done, errors))
        })
    }

    fn write(
        &self,
        path: &Path,
        writer: usize,
        acknowledge: AckPolicy,
        enough: &AtomicBool,
    ) -> std::io::Result<()> {
        let file = File::options().read(true).write(true).open(path)?;
        let own = &self.writers[writer];
        let mut found = vec![0; BLOCK];
        for number in own.acknowledged.load(Ordering::SeqCst) + 1.. {
            let block = self.block_of(writer, number);
            let offset = block * BLOCK as u64;
            own.begun.fetch_max(number, Ordering::SeqCst);
            file.write_all_at(&content(block, number), offset)?;
            if acknowledge == AckPolicy::EachWrite {
                own.acknowledged.store(number, Ordering::SeqCst);
            } else if number % FSYNC_EVERY == 0 {
                file.sync_all()?;
                own.acknowledged.store(number, Ordering::SeqCst);
            }
            if number % 3 == 0 {
                file.read_exact_at(&mut found, offset)?;
                assert!(found == content(block, number), "block {block} is old");
            }
            if enough.load(Ordering::SeqCst) {
                break;
            }
        }
        Ok(())
    }

    /// Block of the write with that number.
    fn block_of(&self, writer: usize, number: u64) -> u64 {
        let (turn, step) = (number / self.blocks_each, number % self.blocks_each);
        writer as u64 * self.blocks_each + (turn + STRIDE * step) % self.blocks_each
    }

    /// The last writes that were acknowledged.
    #[must_use]
    pub fn acknowledged(&self) -> Numbers {
        self.numbers(|writer| &writer.acknowledged)
    }

    /// The last writes that were begun.
    #[must_use]
    pub fn begun(&self) -> Numbers {
        self.numbers(|writer| &writer.begun)
    }

    fn numbers(&self, which: impl Fn(&Writer) -> &AtomicU64) -> Numbers {
        let number = |writer| which(writer).load(Ordering::SeqCst);
        Numbers(self.writers.iter().map(number).collect())
    }

    /// Returns when `count` more writes have been acknowledged.
    ///
    /// # Errors
    /// When that takes longer than a minute.
    pub fn wait_for_more(&self, count: u64) -> anyhow::Result<()> {
        let sum = || self.acknowledged().0.iter().sum::<u64>();
        let goal = sum() + count;
        wait_until("writes go on", STALL_LIMIT, || Ok(sum() >= goal))
    }

    /// Fails unless the volume has, of each writer, all writes up to one that
    /// is at least `oldest` and at most `newest`, and none after it.
    ///
    /// # Errors
    /// Names the first block that has another write, or is mixed of two.
    pub fn check(&self, path: &Path, oldest: &Numbers, newest: &Numbers) -> anyhow::Result<()> {
        for (writer, found) in self.found(path)?.iter().enumerate() {
            let last = found.iter().copied().max().unwrap_or(0);
            let (oldest, newest) = (oldest.0[writer], newest.0[writer]);
            ensure!(
                (oldest..=newest).contains(&last),
                "writer {writer} got as far as {last}, not {oldest} to {newest}"
            );
            let expected = self.after(writer, last);
            for (block, (found, expected)) in found.iter().zip(expected).enumerate() {
                ensure!(
                    *found == expected,
                    "block {block} of writer {writer} has write {found} and not {expected}, \
                     though write {last} is there"
                );
            }
        }
        Ok(())
    }

    /// Fails unless the volume has, of each writer, all writes up to `oldest`;
    /// of those after it, up to `newest`, it may have any.
    ///
    /// # Errors
    /// As [`DurabilityChecker::check`].
    pub fn check_any_after(
        &self,
        path: &Path,
        oldest: &Numbers,
        newest: &Numbers,
    ) -> anyhow::Result<()> {
        for (writer, found) in self.found(path)?.iter().enumerate() {
            let (oldest, newest) = (oldest.0[writer], newest.0[writer]);
            let expected = self.after(writer, oldest);
            for (block, (found, expected)) in found.iter().zip(expected).enumerate() {
                ensure!(
                    *found == expected || (oldest + 1..=newest).contains(found),
                    "block {block} of writer {writer} has write {found} and not {expected}, \
                     of {oldest} that were acknowledged"
                );
            }
        }
        Ok(())
    }

    /// The number in each block, by writer.
    fn found(&self, path: &Path) -> anyhow::Result<Vec<Vec<u64>>> {
        let bytes = fs::read(path).with_context(|| path.display().to_string())?;
        let found = bytes
            .chunks(BLOCK)
            .zip(0..)
            .map(|(bytes, block)| number_in(block, bytes))
            .collect::<anyhow::Result<Vec<_>>>()?;
        let each = usize::try_from(self.blocks_each)?;
        Ok(found.chunks(each).map(<[u64]>::to_vec).collect())
    }

    /// The content of a writer's blocks after its write `last`.
    fn after(&self, writer: usize, last: u64) -> Vec<u64> {
        let mut numbers = vec![
            0;
            usize::try_from(self.blocks_each)
                .expect("blocks_each fits the size of a test volume")
        ];
        for number in last.saturating_sub(2 * self.blocks_each).max(1)..=last {
            let block = self.block_of(writer, number) % self.blocks_each;
            numbers[usize::try_from(block).expect("blocks_each fits the size of a test volume")] =
                number;
        }
        numbers
    }
}

fn content(block: u64, number: u64) -> Vec<u8> {
    let stamp = [block.to_le_bytes(), number.to_le_bytes()].concat();
    stamp.repeat(BLOCK / 16)
}

/// The number in a block, which must have it from end to end.
fn number_in(block: u64, bytes: &[u8]) -> anyhow::Result<u64> {
    if bytes.iter().all(|&byte| byte == 0) {
        return Ok(0);
    }
    let number = u64::from_le_bytes(bytes[8..16].try_into()?);
    ensure!(bytes == content(block, number), "block {block} is mixed up");
    Ok(number)
}

#[cfg(test)]
mod tests {
    use tempfile::NamedTempFile;

    use super::*;

    const BLOCKS: u64 = 8;

    /// A file with all writes of one writer up to `last`.
    fn written(writers: &DurabilityChecker, last: u64) -> NamedTempFile {
        let file = NamedTempFile::new().unwrap();
        file.as_file().set_len(BLOCKS * BLOCK as u64).unwrap();
        for number in 1..=last {
            write(writers, &file, number);
        }
        file
    }

    fn write(writers: &DurabilityChecker, file: &NamedTempFile, number: u64) {
        let block = writers.block_of(0, number);
        let bytes = content(block, number);
        let offset = block * BLOCK as u64;
        file.as_file().write_all_at(&bytes, offset).unwrap();
    }

    fn numbers(number: u64) -> Numbers {
        Numbers(vec![number])
    }

    #[test]
    fn durability_check_accepts_prefix_of_writes() {
        let writers = DurabilityChecker::new(1, BLOCKS);
        for last in 0..40 {
            let file = written(&writers, last);
            let (oldest, newest) = (numbers(last), numbers(last + 1));
            writers.check(file.path(), &oldest, &newest).unwrap();
        }
    }

    #[test]
    fn durability_check_finds_reordered_write() {
        let writers = DurabilityChecker::new(1, BLOCKS);
        let file = written(&writers, 20);
        write(&writers, &file, 22);
        let error = writers.check(file.path(), &numbers(20), &numbers(22));
        let text = format!("{:#}", error.unwrap_err());
        assert!(text.contains("and not 21, though write 22"), "{text}");
        // But not where only 20 were acknowledged.
        let check = |oldest| writers.check_any_after(file.path(), &numbers(oldest), &numbers(22));
        check(20).unwrap();
        let text = check(21).unwrap_err().to_string();
        assert!(text.contains("and not 21, of 21"), "{text}");
    }

    #[test]
    fn durability_check_finds_missing_or_torn_write() {
        let writers = DurabilityChecker::new(1, BLOCKS);
        let file = written(&writers, 20);
        let error = writers.check(file.path(), &numbers(21), &numbers(21));
        assert!(error.unwrap_err().to_string().contains("as far as 20"));
        file.as_file().write_all_at(b"mixed", 100).unwrap();
        let error = writers.check(file.path(), &numbers(20), &numbers(20));
        assert!(error.unwrap_err().to_string().contains("mixed up"));
    }
}
