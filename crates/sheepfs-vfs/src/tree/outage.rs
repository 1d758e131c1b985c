//! What is known of a cluster in which no sheep answers.
//!
//! A question that nobody answers takes seconds until that is certain. Who asks
//! many, as find(1) does, would wait for each. So for a second whoever asks hears
//! what the last one heard who waited.

use std::pin::pin;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::{Either, select};
use sheep_client::{Client, ClientError};
use sheep_proto::node::NodeRecord;
use tokio::time::Instant;

use crate::error::FsError;

/// How long it is believed that no sheep answers.
const OUTAGE_TTL: Duration = Duration::from_secs(1);
/// A look at a volume that takes this long was given up without an answer.
const REVALIDATE_TIMEOUT: Duration = Duration::from_secs(2);

/// The last time that no sheep answered.
#[derive(Debug, Default)]
pub(crate) struct Outage {
    silent: Mutex<Option<(Instant, Arc<ClientError>)>>,
    timed_out_at: Mutex<Option<Instant>>,
}

impl Outage {
    /// The live nodes: the question that any sheep answers on its own.
    ///
    /// # Errors
    /// As [`Cluster::nodes`](sheep_client::Cluster::nodes), at once when that
    /// was the answer a moment ago.
    pub(crate) async fn nodes(&self, client: &Client) -> Result<Vec<NodeRecord>, Arc<ClientError>> {
        self.check()?;
        client
            .cluster()
            .nodes()
            .await
            .map_err(|error| self.note(error))
    }

    /// Runs `query` for as long as it may be answered.
    ///
    /// A query may wait for one node or object while its sheep answers others.
    /// Only when the sheep does not answer a question of its own either, which
    /// is asked beside the query, is that taken for an outage.
    ///
    /// # Errors
    /// Those of the query; `Unreachable` during an outage.
    pub(crate) async fn unless_offline<T>(
        &self,
        client: &Client,
        query: impl Future<Output = Result<T, ClientError>>,
    ) -> Result<T, Arc<ClientError>> {
        self.check()?;
        let (query, nodes) = (pin!(query), pin!(client.cluster().nodes()));
        match select(query, nodes).await {
            Either::Left((Err(error), nodes)) if is_unreachable(&error) => match nodes.await {
                Err(silence) if is_unreachable(&silence) => Err(self.note(silence)),
                _ => Err(Arc::new(error)),
            },
            Either::Right((Err(silence), _)) if is_unreachable(&silence) => Err(self.note(silence)),
            Either::Left((answer, _)) => answer.map_err(Arc::new),
            Either::Right((_, query)) => query.await.map_err(Arc::new),
        }
    }

    /// Runs `look` at a volume. When another has just ended without an answer,
    /// or no sheep answers, it is begun and not waited for: what is known serves.
    ///
    /// # Errors
    /// Those of `look`.
    pub(crate) async fn look(
        &self,
        look: impl Future<Output = Result<(), FsError>>,
    ) -> Result<(), FsError> {
        let in_vain = *self.timed_out_at();
        if in_vain.is_some_and(|ended| ended.elapsed() < OUTAGE_TTL) || self.check().is_err() {
            return look.now_or_never().unwrap_or(Ok(()));
        }
        let begun = Instant::now();
        let outcome = look.await;
        if begun.elapsed() >= REVALIDATE_TIMEOUT {
            *self.timed_out_at() = Some(Instant::now());
        }
        outcome
    }

    /// Forgets what is known: from now on another sheep is asked.
    pub(crate) fn forget(&self) {
        *self.silent() = None;
        *self.timed_out_at() = None;
    }

    fn check(&self) -> Result<(), Arc<ClientError>> {
        match &*self.silent() {
            Some((ended, error)) if ended.elapsed() < OUTAGE_TTL => Err(Arc::clone(error)),
            _ => Ok(()),
        }
    }

    fn note(&self, error: ClientError) -> Arc<ClientError> {
        let error = Arc::new(error);
        if is_unreachable(&error) {
            *self.silent() = Some((Instant::now(), Arc::clone(&error)));
        }
        error
    }

    fn silent(&self) -> std::sync::MutexGuard<'_, Option<(Instant, Arc<ClientError>)>> {
        self.silent.lock().expect("no one panics with the error")
    }

    fn timed_out_at(&self) -> std::sync::MutexGuard<'_, Option<Instant>> {
        self.timed_out_at
            .lock()
            .expect("no one panics with the time")
    }
}

fn is_unreachable(error: &ClientError) -> bool {
    matches!(error, ClientError::Unreachable { .. })
}
