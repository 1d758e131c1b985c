//! The requests that a connection waits for, by id.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use sheep_proto::ResponseHeader;
use sheep_proto::decoder::BadFrame;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::Instant;

use crate::error::{ClientError, DisconnectReason};
use crate::request::{Request, Response};
use crate::retry::Attempts;
use crate::transport::Completion;

/// Hears of the end of its requests before their callers do, and may send them
/// again.
pub(crate) trait RequestOwner: Send + Sync {
    /// The request ended: with a response, whatever its result code, or because
    /// its connection ended.
    fn on_complete(self: Arc<Self>, pending: Pending, outcome: Result<Response, ClientError>);
}

/// A request on its way, with what is needed to complete or repeat it.
pub(crate) struct Pending {
    pub(crate) request: Request,
    /// `None` once the request has timed out.
    completion: Option<Completion>,
    /// How long to wait for a connection, for the response, and for transient
    /// refusals.
    pub(crate) timeout: Duration,
    sent_at: Option<Instant>,
    /// The attempts that failed so far.
    pub(crate) attempts: Attempts,
    /// Its share of the budget while it is in flight.
    pub(crate) permit: Option<OwnedSemaphorePermit>,
    /// `None` for a request that is never sent again.
    owner: Option<Arc<dyn RequestOwner>>,
}

impl Pending {
    /// A request that is sent once.
    pub(crate) fn new(request: Request, timeout: Duration, completion: Completion) -> Self {
        Self {
            request,
            completion: Some(completion),
            timeout,
            sent_at: None,
            attempts: Attempts::default(),
            permit: None,
            owner: None,
        }
    }

    /// The request with an owner, which is notified of its next end.
    pub(crate) fn owned_by(mut self, owner: Arc<dyn RequestOwner>) -> Self {
        self.owner = Some(owner);
        self
    }

    /// Hands the request to its owner, or completes it when it has none.
    fn end(mut self, outcome: Result<Response, ClientError>) {
        match self.owner.take() {
            Some(owner) => owner.on_complete(self, outcome),
            None => self.complete(outcome),
        }
    }

    /// Completes the request. Its permits and its tokens are released before the
    /// completion runs.
    pub(crate) fn complete(mut self, outcome: Result<Response, ClientError>) {
        drop(self.permit.take());
        self.request.release_tokens();
        if let Some(completion) = self.completion.take() {
            completion(outcome);
        }
    }

    /// Ends the request with the response to it.
    pub(super) fn respond(self, header: ResponseHeader, payload: BytesMut) {
        let response = Response {
            operation: self.request.operation(),
            header,
            payload,
        };
        self.end(Ok(response));
    }

    /// Ends the request with its connection.
    pub(super) fn disconnect(self, error: ClientError) {
        self.end(Err(error));
    }

    /// True once the request has timed out.
    pub(crate) fn is_expired(&self) -> bool {
        self.completion.is_none()
    }
}

/// A request that has just timed out.
pub(super) struct Expired {
    pub(super) id: u32,
    pub(super) completion: Completion,
    pub(super) waited: Duration,
    /// Bytes of it on the wire, both ways.
    pub(super) wire_len: usize,
}

/// What to do with a response header.
#[expect(clippy::large_enum_variant, reason = "it is taken apart at once")]
pub(super) enum Matched {
    /// All of it is there; the request is no longer in the table.
    Whole(Pending),
    /// More of its payload has to be read, into this memory if it suffices.
    Partial(BytesMut),
}

/// The table of a connection.
///
/// An id stays taken until its response arrives or the connection ends, even
/// when the caller has timed out: otherwise a late response would reach the next
/// user of the id.
#[derive(Default)]
pub(super) struct InFlight {
    next_id: u32,
    requests: HashMap<u32, Pending>,
}

impl InFlight {
    /// Adds a request and returns the id that it got.
    pub(super) fn insert(&mut self, mut pending: Pending) -> u32 {
        pending.sent_at = Some(Instant::now());
        while self.requests.contains_key(&self.next_id) {
            self.next_id = self.next_id.wrapping_add(1);
        }
        let id = self.next_id;
        self.next_id = self.next_id.wrapping_add(1);
        self.requests.insert(id, pending);
        id
    }

    /// Checks a response header against the request it answers. `available`
    /// bytes of its payload have arrived.
    ///
    /// # Errors
    /// When there is no such request, or the payload is longer than it allows.
    pub(super) fn match_response(
        &mut self,
        header: &ResponseHeader,
        available: usize,
    ) -> Result<Matched, DisconnectReason> {
        let (id, opcode) = (header.id.get(), header.opcode);
        let (len, payload_len) = (header.data_length.get(), header.data_length.get() as usize);
        let request = match self.requests.get_mut(&id) {
            Some(pending) if pending.request.opcode() as u8 == opcode => &mut pending.request,
            Some(_) | None => return Err(DisconnectReason::UnknownId { id, opcode }),
        };
        let limit = request.max_response_len();
        if len > limit {
            return Err(BadFrame::TooLong { len, limit }.into());
        }
        if available < payload_len {
            return Ok(Matched::Partial(request.take_recv_buffer()));
        }
        let pending = self
            .requests
            .remove(&id)
            .expect("the map had this id a line above, under the same lock");
        Ok(Matched::Whole(pending))
    }

    /// Removes the request with this id.
    pub(super) fn remove(&mut self, id: u32) -> Option<Pending> {
        self.requests.remove(&id)
    }

    /// Removes every request, oldest first: the order in which they are sent again.
    pub(super) fn drain(&mut self) -> Vec<Pending> {
        let next = self.next_id;
        let mut requests: Vec<_> = self.requests.drain().collect();
        // Ids wrap around: the one to be used next is the farthest in the past.
        requests.sort_unstable_by_key(|&(id, _)| id.wrapping_sub(next));
        requests.into_iter().map(|(_, pending)| pending).collect()
    }

    /// Takes the completions of requests that have timed out.
    ///
    /// Their ids stay taken and their tokens pinned, since the sheep may still
    /// execute them. Their share of the budget is free, or a few objects that
    /// hang would use it up for ever.
    pub(super) fn expire_overdue(&mut self) -> Vec<Expired> {
        let mut overdue: Vec<_> = self
            .requests
            .iter_mut()
            .filter_map(|(&id, pending)| {
                let waited = pending.sent_at?.elapsed();
                if waited < pending.timeout.max(pending.request.response_timeout()) {
                    return None;
                }
                let completion = pending.completion.take()?;
                let wire_len = pending.request.wire_len();
                pending.permit = None;
                pending.request.release_buffers();
                Some(Expired {
                    id,
                    completion,
                    waited,
                    wire_len,
                })
            })
            .collect();
        overdue.sort_unstable_by_key(|request| request.id);
        overdue
    }

    /// Expired requests whose response is still outstanding.
    pub(super) fn expired(&self) -> usize {
        self.requests
            .values()
            .filter(|pending| pending.is_expired())
            .count()
    }

    /// True when no caller waits for a response, and no token is pinned.
    pub(super) fn is_idle(&self) -> bool {
        self.requests
            .values()
            .all(|pending| pending.is_expired() && !pending.request.has_tokens())
    }
}

#[cfg(test)]
mod tests {
    use sheep_proto::{Generation, Opcode, RequestBody, ResponseBody, ResultCode};

    use super::*;

    fn pending(timeout: Duration) -> Pending {
        let request = Request::new(Opcode::ReadVdis, RequestBody::NONE).with_max_response_len(7);
        Pending::new(request, timeout, Box::new(drop))
    }

    /// The header of a response to request `id`, with `len` bytes of payload.
    fn response(opcode: Opcode, id: u32, len: u32) -> ResponseHeader {
        let mut request = Request::new(opcode, RequestBody::NONE).header(Generation::V1_0);
        request.id = id.into();
        ResponseHeader::answer(&request, 1, len, ResponseBody::result(ResultCode::Success))
    }

    #[test]
    fn id_in_use_is_skipped() {
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
    fn response_must_match_id_opcode_and_length() {
        let mut table = InFlight::default();
        let id = table.insert(pending(Duration::MAX));
        let mut refused = |header| table.match_response(&header, 0).err();
        assert!(matches!(
            refused(response(Opcode::ReadObj, id, 7)),
            Some(DisconnectReason::UnknownId { opcode: 2, .. })
        ));
        assert!(matches!(
            refused(response(Opcode::ReadVdis, id + 1, 7)),
            Some(DisconnectReason::UnknownId { .. })
        ));
        assert!(matches!(
            refused(response(Opcode::ReadVdis, id, 8)),
            Some(DisconnectReason::BadFrame(BadFrame::TooLong {
                len: 8,
                limit: 7
            }))
        ));
        let header = response(Opcode::ReadVdis, id, 7);
        let mut matched = |available| table.match_response(&header, available).unwrap();
        assert!(matches!(matched(6), Matched::Partial(_)));
        assert!(matches!(matched(7), Matched::Whole(_)));
        assert!(table.match_response(&header, 7).is_err(), "answered twice");
    }

    #[test]
    fn expired_request_keeps_its_id_and_expires_once() {
        let mut table = InFlight::default();
        let overdue = table.insert(pending(Duration::ZERO));
        let patient = table.insert(pending(Duration::MAX));
        assert_eq!(table.expire_overdue().len(), 1);
        assert_eq!(table.expire_overdue().len(), 0);
        assert_eq!(table.expired(), 1);
        assert!(!table.is_idle());
        assert!(!table.remove(patient).unwrap().is_expired());
        assert!(table.is_idle());
        table.next_id = overdue;
        assert_ne!(table.insert(pending(Duration::MAX)), overdue);
    }
}
