//! Which report each thread has just looked up, to open it.
//!
//! open(2) of a path reaches us as a look-up and an open, one right after the
//! other and from the same thread. Both are answered with one text: that of the
//! look-up, which told the kernel its length. An open without a look-up before
//! it, as of a bind mount, gets a text of its own.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use fuser::INodeNo;
use tokio::time::Instant;

/// Longest time from the answer to a look-up to the open it was for. A thread
/// that takes longer gets a new text.
const LOOKUP_VALIDITY: Duration = Duration::from_millis(100);

#[derive(Debug)]
struct Lookup {
    file: u64,
    started: Instant,
    replied: Instant,
}

/// The last look-up of each thread, by the kernel's number of the thread.
#[derive(Debug, Default)]
pub(crate) struct Lookups(Mutex<HashMap<u32, Lookup>>);

impl Lookups {
    /// Notes that `thread` is about to hear where `file` is, for which it has
    /// waited since `started`.
    pub(crate) fn record(&self, thread: u32, file: INodeNo, started: Instant) {
        // A thread of another PID namespace, which cannot be told from others.
        if thread == 0 {
            return;
        }
        let replied = Instant::now();
        let mut lookups = self.lock();
        lookups.retain(|_, lookup| lookup.replied.elapsed() < LOOKUP_VALIDITY);
        let file = file.0;
        lookups.insert(
            thread,
            Lookup {
                file,
                started,
                replied,
            },
        );
    }

    /// Since when the thread that opens `file` has been waiting for it.
    pub(crate) fn opened_since(&self, thread: u32, file: INodeNo) -> Instant {
        match self.lock().remove(&thread) {
            Some(lookup) if lookup.file == file.0 && lookup.replied.elapsed() < LOOKUP_VALIDITY => {
                lookup.started
            }
            _ => Instant::now(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<u32, Lookup>> {
        // Whole between any two statements.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: INodeNo = INodeNo(7);

    #[tokio::test(start_paused = true)]
    async fn lookup_time_applies_to_next_open() {
        let lookups = Lookups::default();
        let started = Instant::now();
        tokio::time::advance(Duration::from_secs(5)).await;
        lookups.record(1, FILE, started);
        tokio::time::advance(LOOKUP_VALIDITY / 2).await;
        assert_eq!(lookups.opened_since(1, FILE), started);
        assert_eq!(lookups.opened_since(1, FILE), Instant::now(), "used up");
    }

    #[tokio::test(start_paused = true)]
    async fn open_without_lookup_uses_present_time() {
        let lookups = Lookups::default();
        let started = Instant::now();
        tokio::time::advance(LOOKUP_VALIDITY / 2).await;
        for (thread, file) in [(2, FILE), (1, INodeNo(8))] {
            lookups.record(1, FILE, started);
            assert_eq!(lookups.opened_since(thread, file), Instant::now());
        }
        lookups.record(0, FILE, started);
        assert_eq!(lookups.opened_since(0, FILE), Instant::now());
        lookups.record(1, FILE, started);
        tokio::time::advance(LOOKUP_VALIDITY).await;
        assert_eq!(lookups.opened_since(1, FILE), Instant::now(), "too late");
    }
}
