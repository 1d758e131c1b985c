//! Reads and writes of the head's own data objects, through the object cache of the
//! gateway if the volume uses it. All other requests go past that cache.
//!
//! ```text
//!            start                       a request finds the gateway lost
//! Bypass ────────────► Cached(stay) ───────────────────────────────────► Lost
//!   ▲                    │     ▲                                           │
//!   └──── stop ◄─────────┘     └─── another gateway ◄── drop all caches ◄──┘
//! ```
//!
//! A write through the cache is acknowledged when it is in the cache of that one gateway.
//! It is on the replicas after [`DataIo::flush`]. So until then:
//!
//! - Requests go to that gateway only, for as long as its connections last (a *stay*).
//! - The objects written are remembered. When the gateway is lost, so are these writes,
//!   and the next flush reports it ([`DataIo::take_loss`]). A gateway that is only out of
//!   reach, or comes back, would write its old copies over newer data: the caches of all
//!   sheep are dropped before anything else is sent.
//! - When the head becomes a snapshot, its gateway throws the changes away instead of
//!   writing them back, but can still read them from its cache. `recovery.rs` copies
//!   these objects to the new head.
//!
//! No two requests for an object go different ways at the same time: a change of mode
//! waits for the requests in flight, and keeps new ones waiting.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};

use bytes::Bytes;
use sheep_client::error::Chain;
use sheep_client::{Client, ClientError, Session};
use sheep_proto::{Generation, ObjectIndex, Oid, ResultCode, VdiName, Vid};
use tokio::runtime::Handle;
use tokio::time::Instant;
use tokio_util::task::task_tracker::TaskTrackerToken;

use super::extent::Extent;
use super::flush_tracker::FlushTracker;
use super::object_io::ObjectIo;
use crate::poison;

/// Gateways tried one after the other, if each is lost before its cache is known.
const MAX_GATEWAYS: u32 = 5;

/// How requests for data objects are sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    /// Past every cache.
    Bypass,
    /// Through the cache of a gateway.
    Cached(Stay),
    /// Not before the caches of all sheep were dropped.
    Lost,
    /// Not before a change of the mode has ended, for which requests of the stay in use
    /// so far are waited for.
    Changing(Option<Stay>),
}

/// The use of one gateway's cache, from start to stop or loss.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stay {
    session: Session,
    /// Counts the stays of the volume.
    number: u64,
}

/// See the module.
#[derive(Debug)]
pub(super) struct DataIo {
    client: Client,
    object: ObjectIo,
    name: VdiName,
    /// Whether sheep of this generation can have a cache.
    is_possible: bool,
    state: Mutex<State>,
    /// Serialises changes of the mode. The time of the last one that failed.
    changing: tokio::sync::Mutex<Option<Instant>>,
    in_flight: FlushTracker,
    runtime: Handle,
}

#[derive(Debug)]
struct State {
    mode: Mode,
    head: Vid,
    /// Former heads that a cache may hold objects of, that of a lost gateway included.
    former: Vec<Vid>,
    /// The objects of the head with writes that no flush covers, each with the number of
    /// the last one.
    unflushed: Unflushed,
    /// Counts the writes through the cache.
    writes: u64,
    stays: u64,
    /// What `take_loss` returns.
    loss: Option<Arc<ClientError>>,
    /// A gateway was lost: it may come back with old copies.
    had_loss: bool,
}

/// Objects with the numbers of their last writes through the cache.
pub(super) type Unflushed = BTreeMap<ObjectIndex, u64>;

/// The way of one request.
#[derive(Debug)]
struct Route {
    stay: Option<Stay>,
    _in_flight: Option<TaskTrackerToken>,
}

/// What a flush has come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Flushed {
    /// Every write acknowledged before is on the replicas, or reported as lost.
    Done,
    /// This VDI has become a snapshot, which has to be followed first.
    Frozen(Vid),
}

/// A change of the mode, which ends when this is dropped.
struct Change<'a> {
    io: &'a DataIo,
    to: Mode,
}

impl Drop for Change<'_> {
    fn drop(&mut self) {
        self.io.state().mode = self.to;
    }
}

impl DataIo {
    /// # Panics
    /// Outside a tokio runtime.
    pub(super) fn new(
        client: Client,
        generation: Generation,
        name: VdiName,
        head: Vid,
    ) -> Arc<Self> {
        Arc::new(Self {
            object: ObjectIo::new(client.clone()),
            client,
            name,
            is_possible: generation.has_object_cache(),
            state: Mutex::new(State {
                mode: Mode::Bypass,
                head,
                former: Vec::new(),
                unflushed: Unflushed::new(),
                writes: 0,
                stays: 0,
                loss: None,
                had_loss: false,
            }),
            changing: tokio::sync::Mutex::default(),
            in_flight: FlushTracker::default(),
            runtime: Handle::current(),
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        poison::lock(&self.state)
    }

    /// Reads an extent of an object that `owner` has, and runs `completion` in the reader
    /// task.
    pub(super) fn submit_read(
        self: &Arc<Self>,
        owner: Vid,
        extent: Extent,
        completion: impl FnOnce(Result<Bytes, ClientError>) + Send + 'static,
    ) {
        let io = Arc::clone(self);
        let later = move |completion: Box<dyn FnOnce(_) + Send>| {
            let reading = Arc::clone(&io);
            io.runtime
                .spawn(async move { completion(reading.read(owner, extent).await) });
        };
        let Some(route) = self.try_route(Some(owner)) else {
            return later(Box::new(completion));
        };
        let Some(stay) = route.stay else {
            return self.object.submit_read(owner, extent, move |read| {
                drop(route);
                completion(read);
            });
        };
        let (io, oid) = (Arc::clone(self), Oid::data(owner, extent.index));
        let objects = self.client.objects().through_cache(stay.session);
        objects.submit_read(oid, extent.offset, extent.len, move |read| match read {
            Err(error) if error.is_gateway_lost() => {
                io.lose(stay, error);
                drop(route);
                later(Box::new(completion));
            }
            read => {
                drop(route);
                completion(read);
            }
        });
    }

    /// Reads an extent of an object that `owner` has.
    pub(super) async fn read(&self, owner: Vid, extent: Extent) -> Result<Bytes, ClientError> {
        loop {
            let route = self.route(Some(owner)).await?;
            let Some(stay) = route.stay else {
                return self.object.read(owner, extent).await;
            };
            let oid = Oid::data(owner, extent.index);
            let objects = self.client.objects().through_cache(stay.session);
            match objects.read(oid, extent.offset, extent.len).await {
                Err(error) if error.is_gateway_lost() => self.lose(stay, error),
                read => return read,
            }
        }
    }

    /// Overwrites an extent of an object of `vid`, and runs `completion` in the reader
    /// task.
    pub(super) fn submit_write(
        self: &Arc<Self>,
        vid: Vid,
        extent: Extent,
        data: Bytes,
        completion: impl FnOnce(Result<(), ClientError>) + Send + 'static,
    ) {
        let io = Arc::clone(self);
        let later = move |data, completion: Box<dyn FnOnce(_) + Send>| {
            let writing = Arc::clone(&io);
            io.runtime
                .spawn(async move { completion(writing.write(vid, extent, data).await) });
        };
        let Some(route) = self.try_route(Some(vid)) else {
            return later(data, Box::new(completion));
        };
        let Some(stay) = route.stay else {
            return self.object.submit_write(vid, extent, data, move |written| {
                drop(route);
                completion(written);
            });
        };
        let (io, oid, again) = (Arc::clone(self), Oid::data(vid, extent.index), data.clone());
        let objects = self.client.objects().through_cache(stay.session);
        objects.submit_write(oid, extent.offset, data, move |written| {
            let done = io.note_written(stay, vid, extent.index, written);
            drop(route);
            match done {
                Some(written) => completion(written),
                None => later(again, Box::new(completion)),
            }
        });
    }

    /// Overwrites an extent of an object of `vid`.
    pub(super) async fn write(
        &self,
        vid: Vid,
        extent: Extent,
        data: Bytes,
    ) -> Result<(), ClientError> {
        loop {
            let route = self.route(Some(vid)).await?;
            let Some(stay) = route.stay else {
                return self.object.write(vid, extent, data).await;
            };
            let oid = Oid::data(vid, extent.index);
            let objects = self.client.objects().through_cache(stay.session);
            let written = objects.write(oid, extent.offset, data.clone()).await;
            if let Some(written) = self.note_written(stay, vid, extent.index, written) {
                return written;
            }
        }
    }

    /// Records the outcome of a write through the cache. `None` when the gateway was lost,
    /// and the write with it: it has to be repeated.
    fn note_written(
        &self,
        stay: Stay,
        vid: Vid,
        index: ObjectIndex,
        written: Result<(), ClientError>,
    ) -> Option<Result<(), ClientError>> {
        match written {
            Ok(()) => {}
            Err(error) if error.is_gateway_lost() => {
                self.lose(stay, error);
                return None;
            }
            refused => return Some(refused),
        }
        let mut state = self.state();
        let State {
            mode,
            head,
            unflushed,
            writes,
            ..
        } = &mut *state;
        // An answer that was read after the loss was found.
        if !matches!(*mode, Mode::Cached(now) | Mode::Changing(Some(now)) if now == stay) {
            return None;
        }
        // A write to a former head is repeated on the new one by the caller.
        if vid == *head {
            *writes += 1;
            unflushed.insert(index, *writes);
        }
        Some(Ok(()))
    }

    /// The way of a request for an object of `vid`, or else of the head, unless it has to
    /// wait.
    fn try_route(&self, vid: Option<Vid>) -> Option<Route> {
        let bypass = Route {
            stay: None,
            _in_flight: None,
        };
        if !self.is_possible {
            return Some(bypass);
        }
        let state = self.state();
        let stay = match state.mode {
            Mode::Bypass => None,
            // Other VDIs' objects do not change, and are complete on the replicas.
            Mode::Cached(_) if vid.is_some_and(|vid| vid != state.head) => return Some(bypass),
            Mode::Cached(stay) => Some(stay),
            Mode::Lost | Mode::Changing(_) => return None,
        };
        Some(Route {
            stay,
            _in_flight: Some(self.in_flight.begin()),
        })
    }

    /// The way of a request for an object of `vid`; drops the caches of a lost gateway
    /// before.
    async fn route(&self, vid: Option<Vid>) -> Result<Route, ClientError> {
        let asked = Instant::now();
        loop {
            if let Some(route) = self.try_route(vid) {
                return Ok(route);
            }
            let mut last_failure = self.changing.lock().await;
            if self.state().mode != Mode::Lost {
                continue;
            }
            // Waiters share one attempt.
            if last_failure.is_some_and(|failed| failed > asked) {
                return Err(ClientError::Unreachable {
                    gateway: self.client.address(),
                    waited: asked.elapsed(),
                });
            }
            let recovered = self.recover(true).await;
            *last_failure = recovered.is_err().then(Instant::now);
            recovered?;
        }
    }

    /// Records that the gateway of a stay was lost.
    fn lose(&self, stay: Stay, error: ClientError) {
        let mut state = self.state();
        if state.mode == Mode::Cached(stay) {
            state.mode = Mode::Lost;
            self.note_loss(&mut state, error);
        }
    }

    fn note_loss(&self, state: &mut State, error: ClientError) {
        state.had_loss = true;
        let lost = std::mem::take(&mut state.unflushed).len();
        if lost == 0 {
            return;
        }
        tracing::error!(
            "writes to {lost} objects of {} that were not flushed are lost with the object cache \
             of the sheep, which the next fsync reports: {}",
            self.name,
            Chain(&error)
        );
        state.loss = Some(Arc::new(error));
    }

    /// Drops the caches of all sheep after the gateway was lost, then goes on with that of
    /// another gateway, if it shall and can. The caller has locked `changing`.
    async fn recover(&self, restart: bool) -> Result<(), ClientError> {
        let mut change = self.begin_change(Mode::Lost);
        self.in_flight.flush_barrier().await;
        // A sheep that is only out of reach may still execute what it was sent.
        self.client.fence().await;
        self.delete_copies().await?;
        change.to = match restart {
            true => self.enter_cache().await?,
            false => Mode::Bypass,
        };
        Ok(())
    }

    /// Drops what the caches of all sheep hold.
    async fn delete_copies(&self) -> Result<(), ClientError> {
        for vid in self.cached_vids() {
            self.client.object_cache(vid).delete().await?;
        }
        Ok(())
    }

    /// Every VDI that a cache may hold objects of.
    fn cached_vids(&self) -> Vec<Vid> {
        let state = self.state();
        let mut vids = state.former.clone();
        vids.push(state.head);
        vids
    }

    /// The mode that uses the cache of the gateway, or [`Mode::Bypass`] without one.
    async fn enter_cache(&self) -> Result<Mode, ClientError> {
        let head = self.state().head;
        let entered = self
            .client
            .object_cache(head)
            .drop_clean(&self.name)
            .await?;
        let Some(session) = entered else {
            return Ok(Mode::Bypass);
        };
        let mut state = self.state();
        state.stays += 1;
        Ok(Mode::Cached(Stay {
            session,
            number: state.stays,
        }))
    }

    fn begin_change(&self, otherwise: Mode) -> Change<'_> {
        let mut state = self.state();
        let stay = match state.mode {
            Mode::Cached(stay) => Some(stay),
            Mode::Bypass | Mode::Lost | Mode::Changing(_) => None,
        };
        state.mode = Mode::Changing(stay);
        Change {
            io: self,
            to: otherwise,
        }
    }

    /// Uses the object cache of the gateway from now on, if it has one.
    ///
    /// # Errors
    /// `DirtyCache` when it holds somebody's changes of the head; otherwise the error of
    /// the cluster. The cache is not used then.
    pub(super) async fn start(&self) -> Result<(), ClientError> {
        let mut failed = self.changing.lock().await;
        if self.state().mode != Mode::Bypass {
            return Ok(());
        }
        let mut change = self.begin_change(Mode::Bypass);
        self.in_flight.flush_barrier().await;
        self.delete_old_copies().await?;
        change.to = self.enter_cache().await?;
        *failed = None;
        Ok(())
    }

    /// Whether the volume uses an object cache.
    pub(super) fn uses_cache(&self) -> bool {
        self.state().mode != Mode::Bypass
    }

    /// Writes back what was written through the cache, and acknowledged, before this call.
    ///
    /// # Errors
    /// The error of the cluster; what was not written back is kept. A lost gateway is no
    /// error here, see [`Self::take_loss`].
    pub(super) async fn flush(&self) -> Result<Flushed, ClientError> {
        for _ in 0..MAX_GATEWAYS {
            let route = self.route(None).await?;
            let Some(stay) = route.stay else {
                return Ok(Flushed::Done);
            };
            match self.flush_stay(stay).await {
                Err(error) if is_lost(&error) => self.lose(stay, error),
                other => return other,
            }
        }
        Ok(Flushed::Done)
    }

    async fn flush_stay(&self, stay: Stay) -> Result<Flushed, ClientError> {
        let (head, index, last) = {
            let state = self.state();
            let Some(&index) = state.unflushed.keys().next() else {
                return Ok(Flushed::Done);
            };
            (state.head, index, state.writes)
        };
        let cache = self.client.object_cache(head);
        cache.flush(stay.session).await?;
        // While a snapshot begins, what is flushed is thrown away without an error.
        if !cache.accepts_writes(stay.session, index).await? {
            return Ok(Flushed::Frozen(head));
        }
        let mut state = self.state();
        if state.head == head {
            state.unflushed.retain(|_, number| *number > last);
        }
        Ok(Flushed::Done)
    }

    /// The error of writes that were acknowledged and lost with a gateway, once.
    pub(super) fn take_loss(&self) -> Option<Arc<ClientError>> {
        self.state().loss.take()
    }

    /// The same, without taking it.
    pub(super) fn loss(&self) -> Option<Arc<ClientError>> {
        self.state().loss.clone()
    }

    /// Writes back what was written through the cache and drops it there; from then on
    /// requests go past all caches.
    ///
    /// # Errors
    /// The error of the cluster; the cache stays in use then.
    pub(super) async fn stop(&self) -> Result<Flushed, ClientError> {
        let _one_at_a_time = self.changing.lock().await;
        let mode = self.state().mode;
        match mode {
            Mode::Cached(stay) => {
                let mut change = self.begin_change(mode);
                self.in_flight.flush_barrier().await;
                let stopped = match self.flush_stay(stay).await {
                    Ok(Flushed::Done) => self.release(stay, self.cached_vids()).await,
                    Ok(frozen) => return Ok(frozen),
                    Err(error) => Err(error),
                };
                match stopped {
                    Ok(()) => change.to = Mode::Bypass,
                    Err(error) if is_lost(&error) => {
                        self.note_loss(&mut self.state(), error);
                        change.to = Mode::Lost;
                        drop(change);
                        self.recover(false).await?;
                    }
                    Err(error) => return Err(error),
                }
            }
            Mode::Lost => self.recover(false).await?,
            Mode::Bypass | Mode::Changing(_) => {}
        }
        self.delete_old_copies().await?;
        Ok(Flushed::Done)
    }

    /// Drops the copies of a gateway that was lost, and may be back by now: it takes all
    /// that it has for changes which were not written back.
    async fn delete_old_copies(&self) -> Result<(), ClientError> {
        if self.state().had_loss {
            self.delete_copies().await?;
        }
        Ok(())
    }

    async fn release(&self, stay: Stay, vids: Vec<Vid>) -> Result<(), ClientError> {
        for vid in vids {
            self.client.object_cache(vid).release(stay.session).await?;
            let mut state = self.state();
            // A gateway that was lost has it still.
            if !state.had_loss {
                state.former.retain(|&former| former != vid);
            }
        }
        Ok(())
    }

    /// The objects of `vid` with writes that are only in the cache of its gateway.
    pub(super) fn unflushed(&self, vid: Vid) -> Unflushed {
        let state = self.state();
        match state.head == vid {
            true => state.unflushed.clone(),
            false => Unflushed::new(),
        }
    }

    /// Reads an object of a former head with all that was written through the cache.
    /// `None` when the gateway was lost, and that with it, or the object is gone.
    ///
    /// # Errors
    /// The error of the cluster.
    pub(super) async fn read_unflushed(
        &self,
        vid: Vid,
        extent: Extent,
    ) -> Result<Option<Bytes>, ClientError> {
        let route = self.route(Some(vid)).await?;
        let Some(stay) = route.stay else {
            return Ok(None);
        };
        let oid = Oid::data(vid, extent.index);
        let objects = self.client.objects().through_cache(stay.session);
        match objects.read(oid, extent.offset, extent.len).await {
            Ok(bytes) => Ok(Some(bytes)),
            Err(error) if error.is_gateway_lost() => {
                self.lose(stay, error);
                Ok(None)
            }
            Err(error) if error.is_missing_object() => {
                self.forget(vid, extent.index);
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// Makes `to` the head, unless an object was written through the cache that is not in
    /// `saved` with its last write, and `is_owned` by the former one.
    pub(super) fn switch_head(
        &self,
        to: Vid,
        saved: &Unflushed,
        is_owned: impl Fn(ObjectIndex) -> bool,
    ) -> bool {
        let mut state = self.state();
        let is_saved = |(index, number): (&ObjectIndex, &u64)| {
            saved.get(index) == Some(number) || !is_owned(*index)
        };
        if !state.unflushed.iter().all(is_saved) {
            return false;
        }
        state.unflushed.clear();
        let former = std::mem::replace(&mut state.head, to);
        if state.mode != Mode::Bypass {
            state.former.push(former);
        }
        true
    }

    /// Forgets the writes to an object that was discarded.
    pub(super) fn forget(&self, vid: Vid, index: ObjectIndex) {
        let mut state = self.state();
        if state.head == vid {
            state.unflushed.remove(&index);
        }
    }

    /// Drops what the gateway's cache holds of former heads, all of which was saved.
    pub(super) async fn release_former(&self) {
        let (stay, former) = {
            let state = self.state();
            match state.mode {
                Mode::Cached(stay) => (stay, state.former.clone()),
                Mode::Bypass | Mode::Lost | Mode::Changing(_) => return,
            }
        };
        if let Err(error) = self.release(stay, former).await {
            tracing::warn!(
                "the object cache still holds a snapshot of {}: {}",
                self.name,
                Chain(&error)
            );
        }
    }
}

/// True when a flush has found a gateway's cache lost, with what was not flushed.
fn is_lost(error: &ClientError) -> bool {
    error.is_gateway_lost() || error.code() == Some(ResultCode::InvalidParms)
}
