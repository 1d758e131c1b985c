//! Pairs the LOOKUP of a report with the OPEN that follows it.
//!
//! open(2) of a path causes a LOOKUP and an OPEN of the same thread. Both use the
//! text generated for the LOOKUP, whose length the kernel already has. An OPEN
//! without a LOOKUP, as of a bind mount, generates a new text.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use fuser::INodeNo;
use tokio::time::Instant;

use crate::poison;

/// Longest time between a LOOKUP and its OPEN. A later OPEN generates a new text.
const LOOKUP_VALIDITY: Duration = Duration::from_millis(100);

#[derive(Debug)]
struct Lookup {
    file: u64,
    started: Instant,
    replied: Instant,
}

/// The last LOOKUP of each thread, by thread id.
#[derive(Debug, Default)]
pub(crate) struct Lookups(Mutex<HashMap<u32, Lookup>>);

impl Lookups {
    /// Records a LOOKUP of `file` by `thread` that arrived at `started`; the reply is
    /// about to be sent.
    pub(crate) fn record(&self, thread: u32, file: INodeNo, started: Instant) {
        // Threads of other PID namespaces all have id 0.
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

    /// Time of the LOOKUP that this OPEN belongs to, or the present time.
    pub(crate) fn opened_since(&self, thread: u32, file: INodeNo) -> Instant {
        match self.lock().remove(&thread) {
            Some(lookup) if lookup.file == file.0 && lookup.replied.elapsed() < LOOKUP_VALIDITY => {
                lookup.started
            }
            _ => Instant::now(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<u32, Lookup>> {
        poison::lock(&self.0)
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
