//! One query for many readers.

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
    /// When the report became this text, as far as anybody asked.
    pub made: SystemTime,
    /// How many texts the report had before.
    pub(crate) number: u64,
}

/// A text, and when the query that answered with it was started.
#[derive(Clone, Debug)]
pub struct Found {
    /// Two answers in a row with the same bytes share one text.
    pub text: Arc<ReportText>,
    /// The text is as new as this, or newer.
    pub asked: Instant,
}

/// Asks the cluster for the bytes of a report.
type Ask = dyn Fn() -> BoxFuture<'static, Result<Vec<u8>, Arc<ClientError>>> + Send + Sync;
/// What all who waited for a query get.
type Answer = Result<Found, Arc<ClientError>>;
type Query = Shared<BoxFuture<'static, Answer>>;

/// A report that many ask for at once.
///
/// At most one query runs at a time. Whoever asks while it runs waits for the
/// next one, together with all others who do, so that no text is older than the
/// moment it was asked for. Queries are run by those who wait for them: when all
/// have given up, a query ends too.
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
    /// The query that has not started; those who ask may still join it.
    next: Option<WeakShared<BoxFuture<'static, Answer>>>,
    /// The newest answer.
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

    /// The report as it was at some time after `instant`, without a query of its
    /// own when that is possible. With the present as `instant` it never is.
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
        self.state.lock().expect("no one panics with the state")
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
            // Its outcome is for those who asked for it.
            drop(before.await);
        }
        let asked = Instant::now();
        {
            let mut state = self.state();
            // Nobody joins any more: `next` is this query.
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
