//! Which requests a connection waits for, by id.

use std::collections::HashMap;
use std::time::Duration;

use bytes::BytesMut;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::Instant;

use crate::call::{Call, Response};
use crate::error::ClientError;
use crate::gateway::Completion;
use crate::retry::Attempts;

/// A call on its way, with what is needed to answer or repeat it.
pub(crate) struct Pending {
    pub(crate) call: Call,
    /// Nothing once the caller was told that there is no answer.
    done: Option<Completion>,
    /// How long to wait for a sheep, for its answer, and for refusals to pass.
    pub(crate) patience: Duration,
    sent: Option<Instant>,
    /// The attempts that failed so far.
    pub(crate) attempts: Attempts,
    /// Its share of the pool's budget while it is in flight.
    pub(crate) permit: Option<OwnedSemaphorePermit>,
}

impl Pending {
    pub(crate) fn new(call: Call, patience: Duration, done: Completion) -> Self {
        Self {
            call,
            done: Some(done),
            patience,
            sent: None,
            attempts: Attempts::default(),
            permit: None,
        }
    }

    /// Ends the call. The budget is free again, and what the call held is let
    /// go, before the caller hears of it.
    pub(crate) fn finish(mut self, outcome: Result<Response, ClientError>) {
        drop(self.permit.take());
        self.call.let_go();
        if let Some(done) = self.done.take() {
            done(outcome);
        }
    }

    /// True when the caller was told that there is no answer.
    pub(crate) fn is_given_up(&self) -> bool {
        self.done.is_none()
    }
}

/// A call whose caller must hear that there is no answer.
pub(crate) struct GivenUp {
    pub(crate) id: u32,
    pub(crate) done: Completion,
    pub(crate) waited: Duration,
    /// Bytes of it on the wire, both ways.
    pub(crate) wire_len: usize,
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
    pub(crate) fn insert(&mut self, mut pending: Pending) -> u32 {
        pending.sent = Some(Instant::now());
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

    /// Takes the memory set aside for the payload of a response, if any was.
    pub(crate) fn take_room(&mut self, id: u32) -> BytesMut {
        let pending = self.calls.get_mut(&id);
        pending.map_or_else(BytesMut::new, |pending| pending.call.take_room())
    }

    /// Takes the call that a response answers.
    pub(crate) fn remove(&mut self, id: u32) -> Option<Pending> {
        self.calls.remove(&id)
    }

    /// Takes every call, when no response will come any more. The eldest comes
    /// first, and is sent again first.
    pub(crate) fn drain(&mut self) -> Vec<Pending> {
        let newest = self.next_id;
        let mut calls: Vec<_> = self.calls.drain().collect();
        calls.sort_unstable_by_key(|&(id, _)| id.wrapping_sub(newest));
        calls.into_iter().map(|(_, pending)| pending).collect()
    }

    /// Gives up the calls that have waited too long. Their ids stay taken, and
    /// what they hold stays held, since the sheep still has them. Their share of
    /// the budget is free, or a few objects that hang would use it up for ever.
    pub(crate) fn give_up_overdue(&mut self) -> Vec<GivenUp> {
        let mut overdue: Vec<_> = self
            .calls
            .iter_mut()
            .filter_map(|(&id, pending)| {
                let waited = pending.sent?.elapsed();
                if waited < pending.patience {
                    return None;
                }
                let done = pending.done.take()?;
                let wire_len = pending.call.wire_len();
                pending.permit = None;
                pending.call.forget_payloads();
                Some(GivenUp {
                    id,
                    done,
                    waited,
                    wire_len,
                })
            })
            .collect();
        overdue.sort_unstable_by_key(|call| call.id);
        overdue
    }

    /// Calls given up whose answer is still out.
    pub(crate) fn given_up(&self) -> usize {
        self.calls
            .values()
            .filter(|call| call.is_given_up())
            .count()
    }

    /// True when nobody waits for an answer, and nothing is held until one comes.
    pub(crate) fn is_idle(&self) -> bool {
        self.calls
            .values()
            .all(|pending| pending.is_given_up() && !pending.call.is_holding())
    }
}

#[cfg(test)]
mod tests {
    use sheep_proto::{Opcode, RequestBody};

    use super::*;

    fn pending(patience: Duration) -> Pending {
        let call = Call::new(Opcode::ReadVdis, RequestBody::NONE).wanting(7);
        Pending::new(call, patience, Box::new(|_| ()))
    }

    #[test]
    fn an_id_is_not_given_twice_while_it_is_taken() {
        let mut table = InFlight {
            next_id: u32::MAX,
            ..InFlight::default()
        };
        let first = table.insert(pending(Duration::MAX));
        assert_eq!(table.insert(pending(Duration::MAX)), 0);
        table.next_id = first;
        assert_eq!(table.insert(pending(Duration::MAX)), 1);
    }

    #[test]
    fn a_response_must_match_id_and_opcode() {
        let mut table = InFlight::default();
        let id = table.insert(pending(Duration::MAX));
        assert_eq!(table.limit(id, Opcode::ReadVdis as u8), Some(7));
        assert_eq!(table.limit(id, Opcode::ReadObj as u8), None);
        assert_eq!(table.limit(id + 1, Opcode::ReadVdis as u8), None);
    }

    #[test]
    fn a_call_given_up_keeps_its_id_and_is_given_up_once() {
        let mut table = InFlight::default();
        let overdue = table.insert(pending(Duration::ZERO));
        let patient = table.insert(pending(Duration::MAX));
        assert_eq!(table.give_up_overdue().len(), 1);
        assert_eq!(table.give_up_overdue().len(), 0);
        assert_eq!(table.given_up(), 1);
        assert!(!table.is_idle());
        assert!(!table.remove(patient).unwrap().is_given_up());
        assert!(table.is_idle());
        table.next_id = overdue;
        assert_ne!(table.insert(pending(Duration::MAX)), overdue);
    }
}
