//! When a request is sent again: the policies, the decision and the fence.
//!
//! Nothing here does I/O or looks at a clock, so every case is in a table of
//! tests.
//!
//! # After a disconnect
//!
//! A request whose connection ended is sent again if its [`RetryPolicy`]
//! allows it. Usually the connection ended because its sheep died, and the old
//! copy died with it. But a live sheep executes what it has read from a
//! connection, even after that connection has ended:
//!
//! - When this side closed the connection, because the sheep violated the
//!   protocol or because a task of this program panicked, the sheep is alive
//!   and the first copy may still be queued there. Only requests that change
//!   nothing are replayed; a mutating request ends with [`ClientError::Lost`].
//! - A network partition is indistinguishable from a crashed sheep. The old
//!   copy of a write could be executed after the new copy, and after later
//!   writes to the same bytes. A mutating request is therefore replayed behind
//!   a [`Fence`]: only after [`FENCE_INTERVAL`], counted from the disconnect or
//!   from the moment a sheep became reachable again, whichever is later. A sheep
//!   that has refused a new connection since is dead, and the interval counts from
//!   the disconnect: the nodes that it had forwarded the request to may still execute
//!   it. The protocol offers no certainty: a sheep that delays a request for longer
//!   than the interval can still execute it late.
//!
//! A request that has timed out is never sent again.

use std::net::SocketAddr;
use std::time::Duration;

use sheep_proto::{ResultCode, Retry};
use tokio::time::Instant;

use crate::backoff;
use crate::error::{ClientError, DisconnectReason};
use crate::request::{Request, Response, RetryPolicy};

/// Upper bound on how long a sheep may still execute requests from a connection
/// that has ended. Usually it is milliseconds.
pub(crate) const FENCE_INTERVAL: Duration = Duration::from_secs(2);

/// How often a request is sent whose effect is checked before each retry, see
/// `Sender::send_verified`.
pub(crate) const VERIFIED_ATTEMPTS: u32 = 5;

/// The failed attempts of one request.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Attempts {
    failures: u32,
    failing_since: Option<Instant>,
    fence: Option<Fence>,
}

/// A mutating request may not be sent before the node can no longer execute an
/// earlier copy of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Fence {
    /// The node that the earlier copy was sent to.
    pub(crate) node: SocketAddr,
    disconnected_at: Instant,
}

/// What to do with a request that has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Decision {
    /// The caller gets the outcome.
    Complete,
    /// The request is sent again after `delay`, behind `fence` if there is one.
    RetryAfter {
        delay: Duration,
        fence: Option<Fence>,
    },
}

impl Attempts {
    /// Counts one more failed attempt, after which the request is retried.
    pub(crate) fn record(&mut self, now: Instant, fence: Option<Fence>) {
        self.failures += 1;
        self.failing_since.get_or_insert(now);
        self.fence = fence;
    }

    /// What the next attempt has to wait for.
    pub(crate) fn fence(&self) -> Option<Fence> {
        self.fence
    }
}

impl Fence {
    /// When the request may be sent again.
    ///
    /// `refused_at`: when the node last refused a connection. `reachable_since`:
    /// when the sheep that the request is sent to now became reachable.
    pub(crate) fn ends_at(&self, refused_at: Option<Instant>, reachable_since: Instant) -> Instant {
        let is_dead = refused_at.is_some_and(|at| at >= self.disconnected_at);
        let since = match is_dead {
            true => self.disconnected_at,
            false => self.disconnected_at.max(reachable_since),
        };
        since + FENCE_INTERVAL
    }
}

/// Decides what becomes of `request`, whose last attempt ended with `outcome`
/// at `now`. It is retried for `timeout` from its first failed attempt on.
pub(crate) fn decide(
    request: &Request,
    attempts: &Attempts,
    outcome: &Result<Response, ClientError>,
    timeout: Duration,
    now: Instant,
) -> Decision {
    let (policy, is_mutating) = (request.retry_policy(), request.is_mutating());
    let fence = match outcome {
        Ok(response) if retries_after(policy, response.header.result()) => attempts.fence,
        Err(ClientError::Lost { gateway, why, .. }) if replays_after(policy, is_mutating, why) => {
            let fence = is_mutating.then_some(Fence {
                node: *gateway,
                disconnected_at: now,
            });
            fence.or(attempts.fence)
        }
        Ok(_) | Err(_) => return Decision::Complete,
    };
    let failing_since = attempts.failing_since.unwrap_or(now);
    if now.duration_since(failing_since) > timeout {
        return Decision::Complete;
    }
    Decision::RetryAfter {
        delay: backoff::pause(attempts.failures),
        fence,
    }
}

/// True when a request may be repeated after the transient refusal `code`.
fn retries_after(policy: RetryPolicy, code: ResultCode) -> bool {
    matches!(policy, RetryPolicy::OnTransientError | RetryPolicy::Always)
        && code.retry() == Retry::Later
}

/// True when a request may be replayed after its connection ended for `reason`.
fn replays_after(policy: RetryPolicy, is_mutating: bool, reason: &DisconnectReason) -> bool {
    matches!(policy, RetryPolicy::OnDisconnect | RetryPolicy::Always)
        && !(is_mutating && reason.closed_by_client())
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::Arc;

    use bytes::BytesMut;
    use sheep_proto::decoder::BadFrame;
    use sheep_proto::header::{RequestBody, VdiRequest};
    use sheep_proto::{
        Generation, ObjectIndex, Oid, Opcode, RequestFlags, ResponseBody, ResponseHeader, Vid,
    };

    use super::*;

    const TIMEOUT: Duration = Duration::from_secs(60);

    fn node() -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], 7000))
    }

    fn answered(request: &Request, code: ResultCode) -> Result<Response, ClientError> {
        let body = ResponseBody::result(code);
        Ok(Response {
            operation: request.operation(),
            header: ResponseHeader::answer(&request.header(Generation::V1_0), 1, 0, body),
            payload: BytesMut::new(),
        })
    }

    fn disconnected(request: &Request, why: DisconnectReason) -> Result<Response, ClientError> {
        Err(ClientError::Lost {
            operation: request.operation(),
            gateway: node(),
            why: Arc::new(why),
        })
    }

    fn unanswered(_request: &Request) -> Result<Response, ClientError> {
        Err(ClientError::Unreachable {
            gateway: node().into(),
            waited: TIMEOUT,
        })
    }

    type Outcome = fn(&Request) -> Result<Response, ClientError>;

    /// The columns of the table below.
    const OUTCOMES: [(&str, Outcome); 10] = [
        ("Success", |request| answered(request, ResultCode::Success)),
        ("Halt", |request| answered(request, ResultCode::Halt)),
        ("NoObj", |request| answered(request, ResultCode::NoObj)),
        ("ReadOnly", |request| {
            answered(request, ResultCode::ReadOnly)
        }),
        ("closed", |request| {
            disconnected(request, DisconnectReason::Closed)
        }),
        ("I/O error", |request| {
            let error = io::ErrorKind::ConnectionReset.into();
            disconnected(request, DisconnectReason::Io(error))
        }),
        ("bad frame", |request| {
            disconnected(
                request,
                DisconnectReason::BadFrame(BadFrame::UnknownOpcode(0xff)),
            )
        }),
        ("unknown id", |request| {
            disconnected(request, DisconnectReason::UnknownId { id: 1, opcode: 2 })
        }),
        ("aborted", |request| {
            disconnected(request, DisconnectReason::Aborted)
        }),
        ("timeout", unanswered),
    ];

    /// C completes, R is retried, F is retried behind a fence; a column for
    /// each of [`OUTCOMES`].
    fn table() -> Vec<(&'static str, Request, &'static str)> {
        let oid = Oid::data(Vid::new(7).unwrap(), ObjectIndex(0));
        let data = || b"w"[..].into();
        let vdi = || RequestBody::Vdi(VdiRequest::default());
        let other = |opcode, policy| Request::new(opcode, vdi()).with_retry_policy(policy);
        vec![
            ("read", Request::read_object(oid, 0, 8), "CRCCRRRRRC"),
            ("write", Request::write_object(oid, 0, data()), "CRCCFFCCCC"),
            (
                "create",
                Request::create_object(oid, 0, data(), None),
                "CRCCFFCCCC",
            ),
            ("discard", Request::discard_object(oid), "CRCCFFCCCC"),
            ("remove", Request::remove_object(oid), "CRCCFFCCCC"),
            (
                "slots",
                Request::write_object(oid, 0, data())
                    .with_retry_policy(RetryPolicy::OnTransientError),
                "CRCCCCCCCC",
            ),
            (
                "lookup",
                other(Opcode::GetVdiInfo, RetryPolicy::Always),
                "CRCCRRRRRC",
            ),
            (
                "query",
                other(Opcode::StatCluster, RetryPolicy::OnDisconnect),
                "CCCCRRRRRC",
            ),
            (
                "attribute",
                other(Opcode::GetVdiAttr, RetryPolicy::Always),
                "CRCCRRRRRC",
            ),
            (
                "set attribute",
                other(Opcode::GetVdiAttr, RetryPolicy::Always).with_flags(RequestFlags::CREAT),
                "CRCCFFCCCC",
            ),
            (
                "lock",
                other(Opcode::LockVdi, RetryPolicy::OnTransientError),
                "CRCCCCCCCC",
            ),
            (
                "unlock",
                other(Opcode::ReleaseVdi, RetryPolicy::OnDisconnect),
                "CCCCFFCCCC",
            ),
            (
                "create VDI",
                Request::new(Opcode::NewVdi, vdi()),
                "CCCCCCCCCC",
            ),
            (
                "delete VDI",
                Request::new(Opcode::DelVdi, vdi()),
                "CCCCCCCCCC",
            ),
            ("format", Request::new(Opcode::MakeFs, vdi()), "CCCCCCCCCC"),
        ]
    }

    #[test]
    fn retry_decision_depends_on_opcode_and_outcome() {
        let now = Instant::now();
        for (name, request, expected) in table() {
            assert_eq!(expected.len(), OUTCOMES.len());
            for ((outcome_name, outcome), expected) in OUTCOMES.iter().zip(expected.chars()) {
                let outcome = outcome(&request);
                let decision = decide(&request, &Attempts::default(), &outcome, TIMEOUT, now);
                let decided = match decision {
                    Decision::Complete => 'C',
                    Decision::RetryAfter { fence: None, .. } => 'R',
                    Decision::RetryAfter {
                        fence: Some(fence), ..
                    } => {
                        assert_eq!((fence.node, fence.disconnected_at), (node(), now));
                        'F'
                    }
                };
                assert_eq!(decided, expected, "{name} after {outcome_name}");
            }
        }
    }

    #[test]
    fn retry_ends_with_timeout_of_first_failure() {
        let request = Request::discard_object(Oid::from_raw(1));
        let halt = answered(&request, ResultCode::Halt);
        let (start, mut attempts) = (Instant::now(), Attempts::default());
        let mut delays = Vec::new();
        for seconds in [0, 30, 60] {
            let now = start + Duration::from_secs(seconds);
            match decide(&request, &attempts, &halt, TIMEOUT, now) {
                Decision::RetryAfter { delay, fence } => {
                    delays.push(delay);
                    attempts.record(now, fence);
                }
                Decision::Complete => panic!("completed after {seconds} s"),
            }
        }
        assert!(delays.is_sorted_by(|before, after| before < after));
        let late = start + TIMEOUT + Duration::from_millis(1);
        let decision = decide(&request, &attempts, &halt, TIMEOUT, late);
        assert_eq!(decision, Decision::Complete);
    }

    #[test]
    fn retry_of_a_refusal_keeps_the_fence() {
        let request = Request::discard_object(Oid::from_raw(1));
        let (now, mut attempts) = (Instant::now(), Attempts::default());
        let lost = disconnected(&request, DisconnectReason::Closed);
        let Decision::RetryAfter { fence, .. } = decide(&request, &attempts, &lost, TIMEOUT, now)
        else {
            panic!("a discard is replayed");
        };
        attempts.record(now, fence);
        let halt = answered(&request, ResultCode::Halt);
        let later = now + Duration::from_secs(1);
        let decision = decide(&request, &attempts, &halt, TIMEOUT, later);
        assert!(
            matches!(decision, Decision::RetryAfter { fence: kept, .. } if kept == fence),
            "{decision:?}"
        );
    }

    #[test]
    fn fence_ends_after_interval() {
        let disconnected_at = Instant::now();
        let fence = Fence {
            node: node(),
            disconnected_at,
        };
        let second = Duration::from_secs(1);
        let before = disconnected_at.checked_sub(second).unwrap();
        let after = disconnected_at + second;
        // Connected all the time, or again.
        let usual = disconnected_at + FENCE_INTERVAL;
        assert_eq!(fence.ends_at(None, before), usual);
        assert_eq!(fence.ends_at(None, after), after + FENCE_INTERVAL);
        // Refused before it was connected to.
        assert_eq!(fence.ends_at(Some(before), before), usual);
        assert_eq!(fence.ends_at(Some(before), after), after + FENCE_INTERVAL);
        // Dead since: other nodes may still execute what it had forwarded.
        for refused_at in [disconnected_at, after] {
            assert_eq!(fence.ends_at(Some(refused_at), after), usual);
        }
    }
}
