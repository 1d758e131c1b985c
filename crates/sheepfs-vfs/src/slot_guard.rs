//! One creator per object: whoever makes an object holds its slot's guard.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use sheep_proto::ObjectIndex;
use tokio::sync::OwnedMutexGuard;

type Slots = HashMap<ObjectIndex, Arc<tokio::sync::Mutex<()>>>;

/// The guards of a volume; only slots with a creator or a queue take memory.
#[derive(Debug, Default)]
pub(crate) struct SlotGuards {
    slots: Mutex<Slots>,
}

/// The right to create one object, until the last clone is dropped. A request
/// that may still run at a sheep keeps one, whoever has given up on it.
pub(crate) type SharedGuard = Arc<SlotGuard>;

/// See [`SharedGuard`].
#[derive(Debug)]
pub(crate) struct SlotGuard {
    guards: Arc<SlotGuards>,
    index: ObjectIndex,
    held: Option<OwnedMutexGuard<()>>,
}

impl SlotGuards {
    /// Waits for everyone who came before, first come first served.
    pub(crate) async fn acquire(self: &Arc<Self>, index: ObjectIndex) -> SharedGuard {
        let slot = Arc::clone(self.slots().entry(index).or_default());
        Arc::new(SlotGuard {
            guards: Arc::clone(self),
            index,
            held: Some(slot.lock_owned().await),
        })
    }

    /// True when nobody makes an object, or has left a request behind that may.
    pub(crate) fn is_idle(&self) -> bool {
        self.slots().is_empty()
    }

    fn slots(&self) -> std::sync::MutexGuard<'_, Slots> {
        self.slots.lock().expect("no one panics with the guards")
    }
}

impl Drop for SlotGuard {
    fn drop(&mut self) {
        let mut slots = self.guards.slots();
        self.held = None;
        // Clones are only made under the lock held here: the last one is ours.
        if slots
            .get(&self.index)
            .is_some_and(|slot| Arc::strong_count(slot) == 1)
        {
            slots.remove(&self.index);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn one_holder_at_a_time_and_nothing_left_behind() {
        let guards = Arc::new(SlotGuards::default());
        let first = guards.acquire(ObjectIndex(1)).await;
        let other = guards.acquire(ObjectIndex(2)).await;
        let mut second = Box::pin(guards.acquire(ObjectIndex(1)));
        assert!(futures_util::poll!(&mut second).is_pending());
        drop(first);
        drop(second.await);
        drop(other);
        assert!(guards.slots().is_empty());
    }
}
