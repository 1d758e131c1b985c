//! Which requests a connection waits for, by id.

use std::collections::HashMap;

use tokio::sync::OwnedSemaphorePermit;
use tokio::time::Instant;

use crate::call::Call;
use crate::gateway::Completion;

/// A call on its way, with what is needed to answer or repeat it.
pub(crate) struct Pending {
    pub(crate) call: Call,
    pub(crate) done: Completion,
    /// When it first failed in a way that may pass.
    pub(crate) failing_since: Option<Instant>,
    /// How often it failed in such a way.
    pub(crate) failures: u32,
    /// Its share of the pool's budget, given back when it is answered.
    #[expect(dead_code, reason = "held for what its drop does")]
    pub(crate) permit: Option<OwnedSemaphorePermit>,
}

impl Pending {
    pub(crate) fn new(call: Call, permit: Option<OwnedSemaphorePermit>, done: Completion) -> Self {
        Self {
            call,
            done,
            failing_since: None,
            failures: 0,
            permit,
        }
    }
}

/// The table of a connection.
///
/// An id stays taken until its response arrives or the connection dies, even
/// when the caller gave up: otherwise a late response would reach the next
/// user of the id.
#[derive(Default)]
pub(crate) struct InFlight {
    next_id: u32,
    calls: HashMap<u32, Pending>,
}

impl InFlight {
    /// Enters a call and gives it a free id.
    pub(crate) fn insert(&mut self, pending: Pending) -> u32 {
        while self.calls.contains_key(&self.next_id) {
            self.next_id = self.next_id.wrapping_add(1);
        }
        let id = self.next_id;
        self.next_id = self.next_id.wrapping_add(1);
        self.calls.insert(id, pending);
        id
    }

    /// Most bytes of payload a response may have; `None` when nothing waits for it.
    pub(crate) fn limit(&self, id: u32, opcode: u8) -> Option<u32> {
        let call = &self.calls.get(&id)?.call;
        (call.opcode() as u8 == opcode).then(|| call.want())
    }

    /// Takes the call that a response answers.
    pub(crate) fn remove(&mut self, id: u32) -> Option<Pending> {
        self.calls.remove(&id)
    }

    /// Takes every call, when no response will come any more.
    pub(crate) fn drain(&mut self) -> Vec<Pending> {
        self.calls.drain().map(|(_, pending)| pending).collect()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.calls.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use sheep_proto::{Opcode, RequestBody};

    use super::*;

    fn pending() -> Pending {
        let call = Call::new(Opcode::ReadVdis, RequestBody::NONE).wanting(7);
        Pending::new(call, None, Box::new(|_| ()))
    }

    #[test]
    fn an_id_is_not_given_twice_while_it_is_taken() {
        let mut table = InFlight {
            next_id: u32::MAX,
            ..InFlight::default()
        };
        let first = table.insert(pending());
        assert_eq!(table.insert(pending()), 0);
        table.next_id = first;
        assert_eq!(table.insert(pending()), 1);
    }

    #[test]
    fn a_response_must_match_id_and_opcode() {
        let mut table = InFlight::default();
        let id = table.insert(pending());
        assert_eq!(table.limit(id, Opcode::ReadVdis as u8), Some(7));
        assert_eq!(table.limit(id, Opcode::ReadObj as u8), None);
        assert_eq!(table.limit(id + 1, Opcode::ReadVdis as u8), None);
    }
}
