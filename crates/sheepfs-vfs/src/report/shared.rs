//! One query for many readers.

use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt as _;
use futures_util::future::{BoxFuture, Shared, WeakShared};
use sheep_client::ClientError;
use tokio::time::Instant;

/// A text, or why there is none; shared by all who waited for it.
type Answer = Result<Bytes, Arc<ClientError>>;
type Query = Shared<BoxFuture<'static, Answer>>;

/// A report that many ask for at once.
///
/// At most one query runs at a time. Whoever asks while it runs waits for the
/// next one, together with all others who do, so that no text is older than the
/// moment it was asked for. Queries are run by those who wait for them: when all
/// have given up, a query ends too.
#[derive(Clone)]
pub struct SharedReport {
    inner: Arc<Inner>,
}

struct Inner {
    ask: Box<dyn Fn() -> BoxFuture<'static, Result<Vec<u8>, ClientError>> + Send + Sync>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// The query that has started last, and when.
    started: Option<(Instant, WeakShared<BoxFuture<'static, Answer>>)>,
    /// The query that has not started; those who ask may still join it.
    next: Option<WeakShared<BoxFuture<'static, Answer>>>,
    /// The newest text, and when its query started.
    last: Option<(Instant, Bytes)>,
}

impl std::fmt::Debug for SharedReport {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SharedReport").finish_non_exhaustive()
    }
}

impl SharedReport {
    /// A report that is produced by `ask`.
    pub fn new<F>(ask: impl Fn() -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = Result<Vec<u8>, ClientError>> + Send + 'static,
    {
        Self {
            inner: Arc::new(Inner {
                ask: Box::new(move || ask().boxed()),
                state: Mutex::default(),
            }),
        }
    }

    /// The report as it is now: its query starts after this call.
    ///
    /// # Errors
    /// Those of the query.
    pub async fn fresh(&self) -> Answer {
        let query = self.inner.next(&mut self.inner.state());
        query.await
    }

    /// The report as it was at most `max_age` ago, without a query when that
    /// is possible.
    ///
    /// # Errors
    /// Those of the query, if there is one.
    pub async fn recent(&self, max_age: Duration) -> Answer {
        let query = {
            let mut state = self.inner.state();
            match &state.last {
                Some((started, text)) if started.elapsed() <= max_age => return Ok(text.clone()),
                _ => {}
            }
            let running = match &state.started {
                Some((started, query)) if started.elapsed() <= max_age => query.upgrade(),
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
        let started = Instant::now();
        {
            let mut state = self.state();
            // Nobody joins any more: `next` is this query.
            state.started = state.next.take().map(|this| (started, this));
        }
        let text = Bytes::from((self.ask)().await.map_err(Arc::new)?);
        self.state().last = Some((started, text.clone()));
        Ok(text)
    }
}
