//! Single-flight queries: concurrent readers of a report share one query.

use crate::poison;

use std::sync::{Arc, Mutex, MutexGuard};
use std::time::SystemTime;

use bytes::Bytes;
use futures_util::FutureExt as _;
use futures_util::future::{BoxFuture, Shared, WeakShared};
use sheep_client::ClientError;
use tokio::time::Instant;

/// The text of a report.
#[derive(Debug)]
pub struct ReportText {
    /// What a reader gets.
    pub bytes: Bytes,
    /// When a query first returned this text.
    pub made: SystemTime,
    /// How many texts the report had before.
    pub(crate) number: u64,
}

/// A text, and when the query for it was started.
#[derive(Clone, Debug)]
pub struct Found {
    /// Consecutive queries with the same bytes share one text.
    pub text: Arc<ReportText>,
    /// The text is as new as this, or newer.
    pub asked: Instant,
}

/// Queries the cluster for the bytes of a report.
type Ask = dyn Fn() -> BoxFuture<'static, Result<Vec<u8>, Arc<ClientError>>> + Send + Sync;
/// The result that all waiters of a query get.
type Answer = Result<Found, Arc<ClientError>>;
type Query = Shared<BoxFuture<'static, Answer>>;

/// A single-flight cache of a report.
///
/// At most one query runs at a time. A reader that arrives while it runs waits for
/// the next query and shares that with all other such readers. So no text is older
/// than the read of it. A query is driven by its waiters, and is cancelled when all
/// of them are dropped.
#[derive(Clone)]
pub struct SingleFlight {
    inner: Arc<Inner>,
}

struct Inner {
    ask: Box<Ask>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// The query that has started last, and when.
    started: Option<(Instant, WeakShared<BoxFuture<'static, Answer>>)>,
    /// The query that has not started; new readers join it.
    next: Option<WeakShared<BoxFuture<'static, Answer>>>,
    last: Option<Found>,
}

impl std::fmt::Debug for SingleFlight {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SingleFlight").finish_non_exhaustive()
    }
}

impl SingleFlight {
    /// A report that is produced by `ask`.
    pub fn new<F>(ask: impl Fn() -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = Result<Vec<u8>, Arc<ClientError>>> + Send + 'static,
    {
        Self {
            inner: Arc::new(Inner {
                ask: Box::new(move || ask().boxed()),
                state: Mutex::default(),
            }),
        }
    }

    /// The report at some time after `instant`: the cached text, a running query or a
    /// new one. With the present as `instant` it is always a query that starts later.
    ///
    /// # Errors
    /// Those of the query, if there is one.
    pub async fn since(&self, instant: Instant) -> Answer {
        let query = {
            let mut state = self.inner.state();
            match &state.last {
                Some(last) if last.asked > instant => return Ok(last.clone()),
                _ => {}
            }
            let running = match &state.started {
                Some((started, query)) if *started > instant => query.upgrade(),
                _ => None,
            };
            running.unwrap_or_else(|| self.inner.next(&mut state))
        };
        query.await
    }
}

impl Inner {
    fn state(&self) -> MutexGuard<'_, State> {
        poison::lock(&self.state)
    }

    /// The query that has not started, or a new one.
    fn next(self: &Arc<Self>, state: &mut State) -> Query {
        if let Some(next) = state.next.as_ref().and_then(WeakShared::upgrade) {
            return next;
        }
        let before = state
            .started
            .as_ref()
            .and_then(|(_, query)| query.upgrade())
            .filter(|query| query.peek().is_none());
        let next = Arc::clone(self).run(before).boxed().shared();
        state.next = next.downgrade();
        next
    }

    /// Runs a query once the one `before` it has ended.
    async fn run(self: Arc<Self>, before: Option<Query>) -> Answer {
        if let Some(before) = before {
            // Its outcome belongs to its own waiters.
            drop(before.await);
        }
        let asked = Instant::now();
        {
            let mut state = self.state();
            // `next` is this query; from here on new readers start another.
            state.started = state.next.take().map(|this| (asked, this));
        }
        let bytes = Bytes::from((self.ask)().await?);
        let mut state = self.state();
        let text = match &state.last {
            Some(last) if last.text.bytes == bytes => Arc::clone(&last.text),
            last => Arc::new(ReportText {
                bytes,
                made: SystemTime::now(),
                number: last.as_ref().map_or(0, |last| last.text.number + 1),
            }),
        };
        let found = Found { text, asked };
        state.last = Some(found.clone());
        Ok(found)
    }
}
