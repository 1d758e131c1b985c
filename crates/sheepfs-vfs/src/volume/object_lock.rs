//! Per-object locks: an object is created or cleared by one task at a time.

use crate::poison;

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use sheep_client::ClientError;
use sheep_proto::ObjectIndex;
use tokio::sync::{OwnedMutexGuard, watch};

/// Longest wait for a lock.
///
/// Longer than a holder needs if all its requests complete: the wait for a reclaim, and
/// three requests.
const LOCK_TIMEOUT: Duration = Duration::from_secs(240);

type Table = HashMap<ObjectIndex, Arc<Entry>>;

/// The object locks of a volume. Only held or awaited locks take memory.
#[derive(Debug, Default)]
pub(crate) struct ObjectLocks {
    table: Mutex<Table>,
}

#[derive(Debug, Default)]
struct Entry {
    lock: Arc<tokio::sync::Mutex<()>>,
    /// Set when the holder has timed out: how long it had waited for its response.
    abandoned_after: watch::Sender<Option<Duration>>,
}

/// The lock of one object, until the last clone is dropped. A request that may
/// still be executed at a sheep keeps one, also when its caller has timed out.
pub(crate) type SharedObjectLock = Arc<ObjectLockGuard>;

#[derive(Debug)]
pub(crate) struct ObjectLockGuard {
    locks: Arc<ObjectLocks>,
    index: ObjectIndex,
    entry: Option<Arc<Entry>>,
    held: Option<OwnedMutexGuard<()>>,
}

impl ObjectLocks {
    /// Locks an object, first come first served.
    ///
    /// # Errors
    /// The time waited, if a timed-out request pins the lock, or the wait times out.
    pub(crate) async fn lock(
        self: &Arc<Self>,
        index: ObjectIndex,
    ) -> Result<SharedObjectLock, Duration> {
        let locked = tokio::time::timeout(LOCK_TIMEOUT, self.wait_for(index)).await;
        locked.unwrap_or(Err(LOCK_TIMEOUT))
    }

    async fn wait_for(self: &Arc<Self>, index: ObjectIndex) -> Result<SharedObjectLock, Duration> {
        let entry = Arc::clone(self.table().entry(index).or_default());
        let mut abandoned = entry.abandoned_after.subscribe();
        // When the holder has timed out, waiters get the same time, no more.
        let time_out = async {
            loop {
                // The sender is in the entry, which is alive.
                let seen = abandoned.wait_for(Option::is_some).await;
                let waited = seen.map_or(None, |seen| *seen).unwrap_or_default();
                let next_holder = abandoned.wait_for(Option::is_none);
                if tokio::time::timeout(waited, next_holder).await.is_err() {
                    return waited;
                }
            }
        };
        tokio::select! {
            biased;
            held = Arc::clone(&entry.lock).lock_owned() => {
                entry.abandoned_after.send_replace(None);
                Ok(Arc::new(ObjectLockGuard {
                    locks: Arc::clone(self),
                    index,
                    entry: Some(entry),
                    held: Some(held),
                }))
            }
            waited = time_out => {
                drop(entry);
                self.remove_unused(index);
                Err(waited)
            }
        }
    }

    /// True if no object is being created or cleared, and no abandoned request may still
    /// do so.
    pub(crate) fn is_idle(&self) -> bool {
        self.table().is_empty()
    }

    /// The objects with a held or awaited lock.
    pub(crate) fn locked(&self) -> Vec<ObjectIndex> {
        self.table().keys().copied().collect()
    }

    /// True while the lock of an object is held or waited for.
    pub(crate) fn is_locked(&self, index: ObjectIndex) -> bool {
        self.table().contains_key(&index)
    }

    fn remove_unused(&self, index: ObjectIndex) {
        let mut table = self.table();
        // Entries are cloned only under the table lock, so a count of one is final.
        if table
            .get(&index)
            .is_some_and(|entry| Arc::strong_count(entry) == 1)
        {
            table.remove(&index);
        }
    }

    fn table(&self) -> std::sync::MutexGuard<'_, Table> {
        poison::lock(&self.table)
    }
}

impl ObjectLockGuard {
    /// Limits the waiters to the time that the holder has waited, if it timed out
    /// with `error`.
    pub(crate) fn abandon(&self, error: &ClientError) {
        if let (ClientError::Unreachable { waited, .. }, Some(entry)) = (error, &self.entry) {
            entry.abandoned_after.send_replace(Some(*waited));
        }
    }
}
impl Drop for ObjectLockGuard {
    fn drop(&mut self) {
        self.held = None;
        self.entry = None;
        self.locks.remove_unused(self.index);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    const WAITED: Duration = Duration::from_secs(7);

    fn no_answer() -> ClientError {
        ClientError::Unreachable {
            gateway: "sheep:7000".parse().unwrap(),
            waited: WAITED,
        }
    }

    #[tokio::test]
    async fn object_lock_has_one_holder_and_leaves_nothing() {
        let locks = Arc::new(ObjectLocks::default());
        let first = locks.lock(ObjectIndex(1)).await.unwrap();
        let other = locks.lock(ObjectIndex(2)).await.unwrap();
        let mut second = Box::pin(locks.lock(ObjectIndex(1)));
        assert!(futures_util::poll!(&mut second).is_pending());
        drop(first);
        drop(second.await.unwrap());
        drop(other);
        assert!(locks.table().is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn timeout_of_a_lock_holder_limits_waiters() {
        let locks = Arc::new(ObjectLocks::default());
        let request = locks.lock(ObjectIndex(1)).await.unwrap();
        let begun = tokio::time::Instant::now();
        let before = tokio::spawn({
            let locks = Arc::clone(&locks);
            async move { locks.lock(ObjectIndex(1)).await }
        });
        tokio::time::sleep(Duration::from_secs(100)).await;
        request.abandon(&no_answer());
        assert_eq!(before.await.unwrap().unwrap_err(), WAITED);
        let after = locks.lock(ObjectIndex(1)).await;
        assert_eq!(after.unwrap_err(), WAITED);
        assert_eq!(begun.elapsed(), Duration::from_secs(100) + 2 * WAITED);
        // Once it cannot run any more, everything is as before.
        drop(request);
        drop(locks.lock(ObjectIndex(1)).await.unwrap());
        assert!(locks.table().is_empty());
    }
}
