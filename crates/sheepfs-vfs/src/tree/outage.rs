//! Negative cache for an unreachable cluster.
//!
//! A request to an unreachable cluster fails only after its timeout, which is
//! seconds. A program that sends many, as find(1) does, would wait for each one. So
//! the last failure is cached for a second, and requests fail with it immediately.

use std::pin::pin;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::{Either, select};
use sheep_client::{Client, ClientError};
use sheep_proto::node::NodeRecord;
use tokio::time::Instant;

use crate::error::FsError;
use crate::poison;

/// How long a failure is cached.
const OUTAGE_TTL: Duration = Duration::from_secs(1);
/// A revalidation that takes this long has timed out.
const REVALIDATE_TIMEOUT: Duration = Duration::from_secs(2);
#[derive(Debug, Default)]
pub(crate) struct Outage {
    silent: Mutex<Option<(Instant, Arc<ClientError>)>>,
    timed_out_at: Mutex<Option<Instant>>,
}

impl Outage {
    /// The live nodes, which any sheep knows without asking another.
    ///
    /// # Errors
    /// As [`Cluster::nodes`](sheep_client::Cluster::nodes); immediately while a
    /// failure is cached.
    pub(crate) async fn nodes(&self, client: &Client) -> Result<Vec<NodeRecord>, Arc<ClientError>> {
        self.check()?;
        client
            .cluster()
            .nodes()
            .await
            .map_err(|error| self.note(error))
    }

    /// Runs `query` unless the cluster is unreachable.
    ///
    /// A query may wait for one node or object while the gateway answers other
    /// requests. So a second request that the gateway answers alone is sent in
    /// parallel. Only if that times out, too, is the cluster unreachable.
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

    /// Runs `look`, which revalidates a volume. If a revalidation has just timed out,
    /// or the cluster is unreachable, it is started but not waited for; the caller
    /// uses the cached state.
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

    /// Clears the cache: the gateway was switched.
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
        poison::lock(&self.silent)
    }

    fn timed_out_at(&self) -> std::sync::MutexGuard<'_, Option<Instant>> {
        poison::lock(&self.timed_out_at)
    }
}

fn is_unreachable(error: &ClientError) -> bool {
    matches!(error, ClientError::Unreachable { .. })
}
