//! The seeded random number generator of a run.

use std::hash::{DefaultHasher, Hash, Hasher as _};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use tokio::time::Instant;

use crate::locked;

/// The generator of a run. Clones share its state.
#[derive(Clone, Debug)]
pub(crate) struct SimRng {
    shared: Arc<Mutex<Shared>>,
    started: Instant,
    /// Longest usual delay of a piece on the wire.
    slowest: Duration,
}

#[derive(Debug)]
struct Shared {
    rng: fastrand::Rng,
    trace: DefaultHasher,
}

impl SimRng {
    pub(crate) fn new(seed: u64) -> Self {
        let mut rng = fastrand::Rng::with_seed(seed);
        let slowest = [100, 1_000, 20_000, 200_000][rng.usize(..4)];
        Self {
            shared: Arc::new(Mutex::new(Shared {
                rng,
                trace: DefaultHasher::new(),
            })),
            started: Instant::now(),
            slowest: Duration::from_micros(slowest),
        }
    }

    fn shared(&self) -> MutexGuard<'_, Shared> {
        locked(&self.shared)
    }

    /// True once in `n` times.
    pub(crate) fn one_in(&self, n: u32) -> bool {
        self.shared().rng.u32(..n) == 0
    }

    /// A number from 0 to `most`.
    pub(crate) fn up_to(&self, most: usize) -> usize {
        self.shared().rng.usize(..=most)
    }

    /// A time up to `longest`, mostly short.
    pub(crate) fn pause(&self, longest: Duration) -> Duration {
        let part = self.shared().rng.f64();
        longest.mul_f64(part * part * part)
    }

    /// The delay of a piece on the wire.
    pub(crate) fn latency(&self) -> Duration {
        match self.one_in(200) {
            true => self.pause(Duration::from_millis(400)),
            false => self.pause(self.slowest),
        }
    }

    /// Notes something that happened: two runs of one seed note the same.
    pub(crate) fn note(&self, what: impl Hash + std::fmt::Debug) {
        let at = self.started.elapsed();
        if std::env::var_os(crate::SEED_VARIABLE).is_some() {
            println!("{:>12.6} {what:?}", at.as_secs_f64());
        }
        (at, what).hash(&mut self.shared().trace);
    }

    /// A digest of the notes.
    pub(crate) fn trace(&self) -> u64 {
        self.shared().trace.finish()
    }
}
