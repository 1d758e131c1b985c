//! Faults for tests: a server that fails as it is told.
//!
//! A rule looks at each request's header and names what goes wrong with it:
//!
//! ```
//! # use sheep_embedded::{Config, Fault, Server, StoreKind, faults};
//! # use sheep_proto::{Opcode, ResultCode};
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() {
//! let server = Server::start(Config::new(StoreKind::Memory)).await.unwrap();
//! // The first two writes are refused, the third is done and never answered.
//! server.inject(faults::nth_request(Opcode::WriteObj, 0..2, Fault::Refuse(ResultCode::Halt)));
//! server.inject(faults::nth_request(Opcode::WriteObj, 2..3, Fault::DropResponse));
//! // ...
//! server.clear_faults();
//! # }
//! ```

use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, RwLock};
use std::time::Duration;

use sheep_proto::{Opcode, RequestHeader, ResultCode};
use tokio_util::sync::CancellationToken;

use crate::poison::{read, write};

/// What goes wrong with one request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Fault {
    /// It runs, and is answered, this much later. Others overtake it.
    Delay(Duration),
    /// It runs at once and is answered this much later.
    DelayResponse(Duration),
    /// It runs, and is answered, when the server is cleared.
    Hold,
    /// Its answer comes after the next one of its connection. Without another
    /// request in flight on the connection there is nothing to wait for.
    Reorder,
    /// It neither runs nor is answered; the connection stays.
    DropRequest,
    /// It runs and is not answered; the connection stays.
    DropResponse,
    /// It does not run; the connection is closed.
    CutRequest,
    /// It runs; the connection is closed behind this many bytes of its answer.
    CutResponse(usize),
    /// It runs and is answered under an id that no request of the connection
    /// is likely to have: its own with all bits flipped.
    WrongId,
    /// It does not run; this is the answer, without a payload.
    Refuse(ResultCode),
}

/// A rule that meets the requests of one kind that are numbered `nth`,
/// counted from 0 and from the time of this call.
pub fn nth_request(
    opcode: Opcode,
    nth: Range<usize>,
    fault: Fault,
) -> impl Fn(&RequestHeader) -> Option<Fault> + Send + Sync + 'static {
    let count = AtomicUsize::new(0);
    move |request| {
        let is_match =
            request.opcode == opcode as u8 && nth.contains(&count.fetch_add(1, Ordering::Relaxed));
        is_match.then_some(fault)
    }
}

type FaultRule = Box<dyn Fn(&RequestHeader) -> Option<Fault> + Send + Sync>;

/// The rules of a server.
#[derive(Clone, Default)]
pub(crate) struct Faults(Arc<Rules>);

#[derive(Default)]
struct Rules {
    /// Spares a server without rules the lock.
    is_any: AtomicBool,
    active: RwLock<Active>,
}

#[derive(Default)]
struct Active {
    rules: Vec<FaultRule>,
    /// Cancelled, and replaced, when the server is cleared.
    cleared: CancellationToken,
}

impl Faults {
    pub(crate) fn add(
        &self,
        rule: impl Fn(&RequestHeader) -> Option<Fault> + Send + Sync + 'static,
    ) {
        write(&self.0.active).rules.push(Box::new(rule));
        self.0.is_any.store(true, Ordering::Release);
    }

    pub(crate) fn clear(&self) {
        self.0.is_any.store(false, Ordering::Release);
        std::mem::take(&mut *write(&self.0.active)).cleared.cancel();
    }

    pub(crate) fn is_any(&self) -> bool {
        self.0.is_any.load(Ordering::Acquire)
    }

    /// What the first rule that knows something says, and how to wait for the healing.
    ///
    /// Every rule sees the request, so that each counts all of them.
    pub(crate) fn match_request(
        &self,
        request: &RequestHeader,
    ) -> Option<(Fault, CancellationToken)> {
        if !self.is_any() {
            return None;
        }
        let active = read(&self.0.active);
        let faults: Vec<_> = active
            .rules
            .iter()
            .filter_map(|rule| rule(request))
            .collect();
        let fault = faults.first()?;
        Some((*fault, active.cleared.clone()))
    }
}
