//! Tracks writes in flight, so that a flush waits for the earlier ones only.

use crate::poison;

use std::sync::Mutex;

use tokio_util::task::TaskTracker;
use tokio_util::task::task_tracker::TaskTrackerToken;

/// Writes in flight, grouped by the flush that they precede.
#[derive(Debug, Default)]
pub(crate) struct FlushTracker {
    batches: Mutex<Batches>,
}

#[derive(Debug, Default)]
struct Batches {
    current: TaskTracker,
    earlier: Vec<TaskTracker>,
}

impl FlushTracker {
    /// Counts a write as in flight until the token is dropped.
    pub(crate) fn begin(&self) -> TaskTrackerToken {
        poison::lock(&self.batches).current.token()
    }

    /// Waits for every write begun before the call; later ones do not delay it.
    pub(crate) async fn flush_barrier(&self) {
        let waiting = {
            let mut batches = poison::lock(&self.batches);
            let batch = std::mem::take(&mut batches.current);
            batch.close();
            batches.earlier.retain(|batch| !batch.is_empty());
            batches.earlier.push(batch);
            batches.earlier.clone()
        };
        for batch in waiting {
            batch.wait().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn flush_waits_for_earlier_writes_only() {
        let tracker = FlushTracker::default();
        let earlier = tracker.begin();
        let mut first = Box::pin(tracker.flush_barrier());
        assert!(futures_util::poll!(&mut first).is_pending());
        let later = tracker.begin();
        let mut second = Box::pin(tracker.flush_barrier());
        assert!(futures_util::poll!(&mut second).is_pending());
        drop(earlier);
        first.await;
        assert!(futures_util::poll!(&mut second).is_pending());
        drop(later);
        second.await;
    }
}
