//! A volume and the bytes it should have.

use std::fs::File;
use std::os::unix::fs::FileExt as _;

use anyhow::{Context as _, ensure};
use fastrand::Rng;

/// Bytes compared at a time.
const STEP: usize = 1 << 20;

/// A random number generator. Its seed is printed, and shown if the test fails.
///
/// `SHEEPFS_TEST_SEED` repeats an earlier run.
///
/// # Panics
/// When that variable is not a number.
#[must_use]
pub fn seeded() -> Rng {
    let seed = std::env::var("SHEEPFS_TEST_SEED").map_or_else(
        |_| fastrand::u64(..),
        |text| text.parse().expect("SHEEPFS_TEST_SEED is a number"),
    );
    println!("SHEEPFS_TEST_SEED={seed}");
    Rng::with_seed(seed)
}

/// What reads of a volume must return: the volume's first `len` bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Model {
    bytes: Vec<u8>,
}

impl Model {
    /// A new volume of `len` bytes.
    #[must_use]
    pub fn zeroed(len: usize) -> Self {
        Self {
            bytes: vec![0; len],
        }
    }

    /// A model of a volume with these bytes.
    #[must_use]
    pub fn from_bytes(bytes: Vec<u8>) -> Self {
        Self { bytes }
    }

    /// The bytes themselves.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Writes `len` random bytes at `offset` to both.
    ///
    /// # Errors
    /// When the volume refuses.
    pub fn write(
        &mut self,
        file: &File,
        offset: usize,
        len: usize,
        random: &mut Rng,
    ) -> anyhow::Result<()> {
        let part = &mut self.bytes[offset..offset + len];
        random.fill(part);
        file.write_all_at(part, offset as u64)
            .with_context(|| format!("writing {len} bytes at {offset}"))
    }

    /// Reads a range of the volume and compares it.
    ///
    /// # Errors
    /// Names the first byte that differs.
    pub fn check(&self, file: &File, offset: usize, len: usize) -> anyhow::Result<()> {
        let mut found = vec![0; len];
        file.read_exact_at(&mut found, offset as u64)
            .with_context(|| format!("reading {len} bytes at {offset}"))?;
        let expected = &self.bytes[offset..offset + len];
        let difference = expected
            .iter()
            .zip(&found)
            .position(|(left, right)| left != right);
        ensure!(
            difference.is_none(),
            "byte {} of a read of {len} bytes at {offset} differs",
            offset + difference.unwrap_or_default()
        );
        Ok(())
    }

    /// Compares the whole volume.
    ///
    /// # Errors
    /// As [`Model::check`].
    pub fn check_all(&self, file: &File) -> anyhow::Result<()> {
        for offset in (0..self.bytes.len()).step_by(STEP) {
            self.check(file, offset, STEP.min(self.bytes.len() - offset))?;
        }
        Ok(())
    }

    /// One random read or write, at most `longest` bytes long.
    ///
    /// # Errors
    /// As [`Model::write`] and [`Model::check`].
    pub fn random_step(
        &mut self,
        file: &File,
        longest: usize,
        random: &mut Rng,
    ) -> anyhow::Result<()> {
        let len = random.usize(1..=longest);
        let offset = random.usize(..=self.bytes.len() - len);
        // Half of the accesses are aligned, as those of real file systems are.
        let mask = if random.bool() { !0 } else { !4095 };
        if random.bool() {
            self.write(file, offset & mask, len, random)
        } else {
            self.check(file, offset & mask, len)
        }
    }
}
