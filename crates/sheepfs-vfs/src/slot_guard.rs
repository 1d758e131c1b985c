//! One creator per object: whoever makes an object holds its slot's guard.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use sheep_client::ClientError;
use sheep_proto::ObjectIndex;
use tokio::sync::{OwnedMutexGuard, watch};

type Slots = HashMap<ObjectIndex, Arc<Slot>>;

/// The guards of a volume; only slots with a creator or a queue take memory.
#[derive(Debug, Default)]
pub(crate) struct SlotGuards {
    slots: Mutex<Slots>,
}

#[derive(Debug, Default)]
struct Slot {
    lock: Arc<tokio::sync::Mutex<()>>,
    /// How long the holder has waited for an answer before it gave up.
    given_up: watch::Sender<Option<Duration>>,
}

/// The right to create one object, until the last clone is dropped. A request
/// that may still run at a sheep keeps one, whoever has given up on it.
pub(crate) type SharedGuard = Arc<SlotGuard>;

/// See [`SharedGuard`].
#[derive(Debug)]
pub(crate) struct SlotGuard {
    guards: Arc<SlotGuards>,
    index: ObjectIndex,
    slot: Option<Arc<Slot>>,
    held: Option<OwnedMutexGuard<()>>,
}

impl SlotGuards {
    /// Waits for everyone who came before, first come first served.
    ///
    /// # Errors
    /// The time waited, as long as the holder did, when that has given up on a
    /// request and the request still keeps the guard.
    pub(crate) async fn acquire(
        self: &Arc<Self>,
        index: ObjectIndex,
    ) -> Result<SharedGuard, Duration> {
        let slot = Arc::clone(self.slots().entry(index).or_default());
        let mut given_up = slot.given_up.subscribe();
        let in_vain = async {
            loop {
                // The sender is in the slot, which is alive.
                let seen = given_up.wait_for(Option::is_some).await;
                let waited = seen.map_or(None, |seen| *seen).unwrap_or_default();
                let next_holder = given_up.wait_for(Option::is_none);
                if tokio::time::timeout(waited, next_holder).await.is_err() {
                    return waited;
                }
            }
        };
        tokio::select! {
            biased;
            held = Arc::clone(&slot.lock).lock_owned() => {
                slot.given_up.send_replace(None);
                Ok(Arc::new(SlotGuard {
                    guards: Arc::clone(self),
                    index,
                    slot: Some(slot),
                    held: Some(held),
                }))
            }
            waited = in_vain => {
                drop(slot);
                self.forget_if_unused(index);
                Err(waited)
            }
        }
    }

    /// True when nobody makes an object, or has left a request behind that may.
    pub(crate) fn is_idle(&self) -> bool {
        self.slots().is_empty()
    }

    /// True while somebody makes or clears the object, or waits for that.
    pub(crate) fn is_locked(&self, index: ObjectIndex) -> bool {
        self.slots().contains_key(&index)
    }

    fn forget_if_unused(&self, index: ObjectIndex) {
        let mut slots = self.slots();
        // Clones are only made under the lock held here: the last one is ours.
        if slots
            .get(&index)
            .is_some_and(|slot| Arc::strong_count(slot) == 1)
        {
            slots.remove(&index);
        }
    }

    fn slots(&self) -> std::sync::MutexGuard<'_, Slots> {
        self.slots.lock().expect("no one panics with the guards")
    }
}

impl SlotGuard {
    /// Tells those who wait that the holder leaves with this error: when it is
    /// that no answer came, they need not wait longer than it did.
    pub(crate) fn leave_with(&self, error: &ClientError) {
        if let (ClientError::Unreachable { waited, .. }, Some(slot)) = (error, &self.slot) {
            slot.given_up.send_replace(Some(*waited));
        }
    }
}
impl Drop for SlotGuard {
    fn drop(&mut self) {
        self.held = None;
        self.slot = None;
        self.guards.forget_if_unused(self.index);
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
    async fn one_holder_at_a_time_and_nothing_left_behind() {
        let guards = Arc::new(SlotGuards::default());
        let first = guards.acquire(ObjectIndex(1)).await.unwrap();
        let other = guards.acquire(ObjectIndex(2)).await.unwrap();
        let mut second = Box::pin(guards.acquire(ObjectIndex(1)));
        assert!(futures_util::poll!(&mut second).is_pending());
        drop(first);
        drop(second.await.unwrap());
        drop(other);
        assert!(guards.slots().is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn who_waits_for_a_request_that_was_given_up_waits_no_longer_than_its_holder() {
        let guards = Arc::new(SlotGuards::default());
        let request = guards.acquire(ObjectIndex(1)).await.unwrap();
        let begun = tokio::time::Instant::now();
        let before = tokio::spawn({
            let guards = Arc::clone(&guards);
            async move { guards.acquire(ObjectIndex(1)).await }
        });
        tokio::time::sleep(Duration::from_secs(1000)).await;
        request.leave_with(&no_answer());
        assert_eq!(before.await.unwrap().unwrap_err(), WAITED);
        let after = guards.acquire(ObjectIndex(1)).await;
        assert_eq!(after.unwrap_err(), WAITED);
        assert_eq!(begun.elapsed(), Duration::from_secs(1000) + 2 * WAITED);
        // Once it cannot run any more, everything is as before.
        drop(request);
        drop(guards.acquire(ObjectIndex(1)).await.unwrap());
        assert!(guards.slots().is_empty());
    }
}
