//! Faults for tests: a server that fails as it is told.
//!
//! A plan looks at each request's header and names what goes wrong with it:
//!
//! ```
//! # use sheep_embedded::{Config, Fault, Server, StoreKind, faults};
//! # use sheep_proto::{Opcode, ResultCode};
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() {
//! let server = Server::start(Config::new(StoreKind::Memory)).await.unwrap();
//! // The first two writes are refused, the third is done and never answered.
//! server.inject(faults::on(Opcode::WriteObj, 0..2, Fault::Refuse(ResultCode::Halt)));
//! server.inject(faults::on(Opcode::WriteObj, 2..3, Fault::DropAnswer));
//! // ...
//! server.heal();
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
pub enum Fault {
    /// It runs, and is answered, this much later. Others overtake it.
    Delay(Duration),
    /// It runs at once and is answered this much later.
    DelayAnswer(Duration),
    /// It runs, and is answered, when the server is healed.
    Hold,
    /// Its answer comes after the next one of its connection. Without another
    /// request in flight on the connection there is nothing to wait for.
    Reorder,
    /// It neither runs nor is answered; the connection stays.
    DropRequest,
    /// It runs and is not answered; the connection stays.
    DropAnswer,
    /// It does not run; the connection is closed.
    CutRequest,
    /// It runs; the connection is closed behind this many bytes of its answer.
    CutAnswer(usize),
    /// It runs and is answered under an id that no request of the connection
    /// is likely to have: its own with all bits flipped.
    WrongId,
    /// It does not run; this is the answer, without a payload.
    Refuse(ResultCode),
}

/// A plan that meets the requests of one kind that are numbered `hits`,
/// counted from 0 and from the time of this call.
pub fn on(
    opcode: Opcode,
    hits: Range<usize>,
    fault: Fault,
) -> impl Fn(&RequestHeader) -> Option<Fault> + Send + Sync + 'static {
    let seen = AtomicUsize::new(0);
    move |request| {
        let is_hit =
            request.opcode == opcode as u8 && hits.contains(&seen.fetch_add(1, Ordering::Relaxed));
        is_hit.then_some(fault)
    }
}

type Plan = Box<dyn Fn(&RequestHeader) -> Option<Fault> + Send + Sync>;

/// The plans of a server.
#[derive(Clone, Default)]
pub(crate) struct Faults(Arc<Plans>);

#[derive(Default)]
struct Plans {
    /// Spares a server without plans the lock.
    is_any: AtomicBool,
    active: RwLock<Active>,
}

#[derive(Default)]
struct Active {
    plans: Vec<Plan>,
    /// Cancelled, and replaced, when the server is healed.
    healed: CancellationToken,
}

impl Faults {
    pub(crate) fn add(
        &self,
        plan: impl Fn(&RequestHeader) -> Option<Fault> + Send + Sync + 'static,
    ) {
        write(&self.0.active).plans.push(Box::new(plan));
        self.0.is_any.store(true, Ordering::Release);
    }

    pub(crate) fn heal(&self) {
        self.0.is_any.store(false, Ordering::Release);
        std::mem::take(&mut *write(&self.0.active)).healed.cancel();
    }

    pub(crate) fn is_any(&self) -> bool {
        self.0.is_any.load(Ordering::Acquire)
    }

    /// What the first plan that knows something says, and how to wait for the healing.
    ///
    /// Every plan sees the request, so that each counts all of them.
    pub(crate) fn meet(&self, request: &RequestHeader) -> Option<(Fault, CancellationToken)> {
        if !self.is_any() {
            return None;
        }
        let active = read(&self.0.active);
        let faults: Vec<_> = active
            .plans
            .iter()
            .filter_map(|plan| plan(request))
            .collect();
        let fault = faults.first()?;
        Some((*fault, active.healed.clone()))
    }
}
