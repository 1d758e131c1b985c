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

/// The right to create one object, until dropped.
pub(crate) struct SlotGuard<'a> {
    guards: &'a SlotGuards,
    index: ObjectIndex,
    held: Option<OwnedMutexGuard<()>>,
}

impl SlotGuards {
    /// Waits for everyone who came before, first come first served.
    pub(crate) async fn acquire(&self, index: ObjectIndex) -> SlotGuard<'_> {
        let slot = Arc::clone(self.slots().entry(index).or_default());
        SlotGuard {
            guards: self,
            index,
            held: Some(slot.lock_owned().await),
        }
    }

    fn slots(&self) -> std::sync::MutexGuard<'_, Slots> {
        self.slots.lock().expect("no one panics with the guards")
    }
}

impl Drop for SlotGuard<'_> {
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
        let guards = SlotGuards::default();
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
