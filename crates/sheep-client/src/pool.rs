//! The connections to a cluster, kept open through failures.
//!
//! All of them lead to one sheep, the gateway, since a write sent twice by two
//! roads could land on top of a newer one. A keeper task opens them, opens them
//! again when they close, and goes on to the next sheep when the gateway is
//! gone: first the addresses that were given, then the nodes of the last node
//! list. Calls go to the connection with the fewest bytes in flight.
//!
//! A call whose connection died is sent again if [`Resend`] allows it: the old
//! copy is gone with the connection. A gateway that is merely silent is waited
//! for, because the first copy may still be queued there; TCP keepalive finds
//! out whether its host is dead.

use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, RwLock, Weak};
use std::time::Duration;

use sheep_proto::limits::NODE_LIST_LEN;
use sheep_proto::node::NodeRecord;
use sheep_proto::{Opcode, RequestBody};
use tokio::runtime::Handle;
use tokio::sync::{Notify, Semaphore, oneshot, watch};
use tokio::time::Instant;

use crate::address::GatewayAddress;
use crate::backoff;
use crate::call::{Call, Resend, Response};
use crate::config::ClientConfig;
use crate::connection::{Connection, Observer, Shared};
use crate::error::{ClientError, Hangup};
use crate::gateway::{BoxFuture, Completion, Gateway};
use crate::in_flight::Pending;

/// The budget is counted in pieces of this many bytes.
const BUDGET_PIECE: usize = 4 << 10;
/// Payload bytes in flight in the whole pool, both ways.
const BUDGET_BYTES: usize = 64 << 20;
/// Least share of the budget: bounds the number of calls in flight to 1,024.
const LEAST_SHARE: usize = BUDGET_BYTES / 1024;
/// Nodes of the cluster remembered as gateways to fall back on.
const MAX_FALLBACKS: usize = 64;
/// Longest wait for one node's answer to a call sent to just that node.
const NODE_TIMEOUT: Duration = Duration::from_secs(10);

/// A pool of connections to a cluster; see the module.
#[derive(Debug)]
pub struct Pool {
    core: Arc<Core>,
}

struct Core {
    me: Weak<Core>,
    runtime: Handle,
    connections: usize,
    retry_for: Duration,
    open: RwLock<Vec<Arc<Connection>>>,
    sheep: Mutex<Sheep>,
    link: watch::Sender<Link>,
    /// Wakes the keeper: a connection closed, or the epoch moved.
    changed: Notify,
    epoch: AtomicU32,
    budget: Arc<Semaphore>,
}

/// Where a gateway can be found.
struct Sheep {
    given: Vec<GatewayAddress>,
    learned: Vec<SocketAddr>,
    /// Position among the given and learned ones of the gateway in use.
    current: usize,
}

#[derive(Clone, Copy, Debug)]
enum Link {
    Up,
    DownSince(Instant),
}

impl std::fmt::Debug for Core {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Core")
            .field("link", &*self.link.borrow())
            .finish_non_exhaustive()
    }
}

impl Pool {
    /// Connects to the first sheep that answers, and keeps connected from then on.
    ///
    /// # Errors
    /// `Connect` with the last address tried when none answers.
    ///
    /// # Panics
    /// Outside a tokio runtime, or when the configuration names no sheep.
    pub async fn connect(config: ClientConfig) -> Result<Self, ClientError> {
        assert!(
            !config.addresses.is_empty(),
            "a client needs the address of a sheep"
        );
        let core = Arc::new_cyclic(|me| Core {
            me: me.clone(),
            runtime: Handle::current(),
            connections: config.connections.max(1),
            retry_for: config.retry_for,
            open: RwLock::default(),
            sheep: Mutex::new(Sheep {
                given: config.addresses,
                learned: Vec::new(),
                current: 0,
            }),
            link: watch::Sender::new(Link::DownSince(Instant::now())),
            changed: Notify::new(),
            epoch: AtomicU32::new(0),
            budget: Arc::new(Semaphore::new(BUDGET_BYTES / BUDGET_PIECE)),
        });
        let mut attempts = core.sheep().given.len();
        loop {
            attempts -= 1;
            match core.open_one().await {
                Ok(()) => break,
                Err(error) if attempts == 0 => return Err(error),
                Err(error) => {
                    tracing::info!("{error}");
                    core.sheep().next();
                }
            }
        }
        tokio::spawn(keep_connected(Arc::downgrade(&core)));
        Ok(Self { core })
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        // The keeper holds no strong reference while it waits.
        self.core.changed.notify_one();
        self.core
            .open
            .write()
            .expect("no one panics with the list")
            .clear();
    }
}

impl Gateway for Pool {
    fn submit(&self, call: Call, done: Completion) {
        self.core.submit(call, done);
    }

    fn submit_to(&self, node: SocketAddr, call: Call, done: Completion) {
        self.core.runtime.spawn(async move {
            let answer = match Connection::open(node, Arc::new(OneNode)).await {
                Ok(connection) => ask(&connection, call).await,
                Err(source) => Err(ClientError::Connect {
                    gateway: node.into(),
                    source,
                }),
            };
            done(answer);
        });
    }

    fn address(&self) -> GatewayAddress {
        self.core.sheep().given[0].clone()
    }

    fn move_to(&self, address: GatewayAddress) -> BoxFuture<'_, Result<(), ClientError>> {
        Box::pin(self.core.move_to(address))
    }
}

/// Completes calls that are not repeated on failure.
struct OneNode;

impl Observer for OneNode {
    fn ended(&self, pending: Pending, outcome: Result<Response, ClientError>) {
        (pending.done)(outcome);
    }

    fn closed(&self, _connection: &Arc<Shared>, _why: &Hangup) {}
}

impl Sheep {
    fn count(&self) -> usize {
        self.given.len() + self.learned.len()
    }

    fn current(&self) -> GatewayAddress {
        match self.given.get(self.current) {
            Some(given) => given.clone(),
            None => self.learned[self.current - self.given.len()].into(),
        }
    }

    /// Goes on to the next sheep; true when all have been tried.
    fn next(&mut self) -> bool {
        self.current = (self.current + 1) % self.count();
        self.current == 0
    }
}

impl Core {
    fn sheep(&self) -> std::sync::MutexGuard<'_, Sheep> {
        self.sheep.lock().expect("no one panics with the addresses")
    }

    fn submit(&self, call: Call, done: Completion) {
        let share = call
            .wire_len()
            .clamp(LEAST_SHARE, BUDGET_BYTES)
            .div_ceil(BUDGET_PIECE);
        let share = u32::try_from(share).expect("bounded by the budget");
        let budget = Arc::clone(&self.budget);
        match Arc::clone(&budget).try_acquire_many_owned(share) {
            Ok(permit) => self.send(Pending::new(call, Some(permit), done)),
            Err(_) => {
                let Some(core) = self.me.upgrade() else {
                    return;
                };
                self.runtime.spawn(async move {
                    let permit = budget.acquire_many_owned(share).await;
                    core.send(Pending::new(call, permit.ok(), done));
                });
            }
        }
    }

    /// Sends on the least loaded connection, or when there is one again.
    fn send(&self, pending: Pending) {
        let unsent = match self.least_loaded() {
            None => pending,
            Some(connection) => match connection.send(pending) {
                Ok(()) => return,
                Err(unsent) => unsent,
            },
        };
        self.wait_and_send(unsent);
    }

    fn least_loaded(&self) -> Option<Arc<Connection>> {
        let open = self.open.read().expect("no one panics with the list");
        open.iter()
            .min_by_key(|connection| connection.bytes_in_flight())
            .map(Arc::clone)
    }

    /// Sends after the pause that the call's failures ask for, once a sheep is
    /// reachable, or fails the call when that takes too long.
    fn wait_and_send(&self, pending: Pending) {
        let Some(core) = self.me.upgrade() else {
            return;
        };
        self.runtime.spawn(async move {
            if pending.failures > 0 {
                tokio::time::sleep(backoff::pause(pending.failures - 1)).await;
            }
            match core.wait_for_link(core.patience(&pending.call)).await {
                Ok(()) => core.send(pending),
                Err(error) => (pending.done)(Err(error)),
            }
        });
    }

    fn patience(&self, call: &Call) -> Duration {
        call.patience()
            .unwrap_or(self.retry_for)
            .min(self.retry_for)
    }

    async fn wait_for_link(&self, patience: Duration) -> Result<(), ClientError> {
        let mut link = self.link.subscribe();
        loop {
            let since = match *link.borrow_and_update() {
                Link::Up => return Ok(()),
                Link::DownSince(since) => since,
            };
            // The sender lives in `self`, so only the deadline ends the wait.
            if tokio::time::timeout_at(since + patience, link.changed())
                .await
                .is_err()
            {
                return Err(ClientError::Unreachable {
                    gateway: self.sheep().current(),
                    waited: since.elapsed(),
                });
            }
        }
    }

    /// Opens one more connection to the current gateway.
    async fn open_one(&self) -> Result<(), ClientError> {
        let address = self.sheep().current();
        let connection = self.dial(&address).await?;
        self.adopt(connection, &address);
        Ok(())
    }

    async fn dial(&self, address: &GatewayAddress) -> Result<Connection, ClientError> {
        let fail = |source| ClientError::Connect {
            gateway: address.clone(),
            source,
        };
        let observer: Arc<dyn Observer> = self.me.upgrade().expect("self is alive");
        let mut last = io::ErrorKind::NotFound.into();
        let found = tokio::net::lookup_host((address.host(), address.port()))
            .await
            .map_err(fail)?;
        for peer in found {
            match Connection::open(peer, Arc::clone(&observer)).await {
                Ok(connection) => return Ok(connection),
                Err(error) => last = error,
            }
        }
        Err(fail(last))
    }

    fn adopt(&self, connection: Connection, address: &GatewayAddress) {
        let mut open = self.open.write().expect("no one panics with the list");
        if open.is_empty() {
            tracing::info!(gateway = %address, peer = %connection.peer(), "connected");
        }
        open.push(Arc::new(connection));
        self.link.send_replace(Link::Up);
    }

    /// Makes `address` the gateway, once a sheep has answered there.
    async fn move_to(&self, address: GatewayAddress) -> Result<(), ClientError> {
        let connection = self.dial(&address).await?;
        let nodes = ask_nodes(&connection).await?;
        let old = {
            let mut sheep = self.sheep();
            let mut open = self.open.write().expect("no one panics with the list");
            sheep.given = vec![address.clone()];
            sheep.learned = nodes;
            sheep.current = 0;
            std::mem::take(&mut *open)
        };
        self.adopt(connection, &address);
        self.changed.notify_one();
        self.runtime.spawn(async move {
            for connection in old {
                connection.drained().await;
            }
        });
        Ok(())
    }

    /// Remembers the cluster's nodes, to have somewhere to go when the gateway dies.
    async fn learn_nodes(&self) {
        let Some(connection) = self.least_loaded() else {
            return;
        };
        match ask_nodes(&connection).await {
            Ok(nodes) if !nodes.is_empty() => {
                let mut sheep = self.sheep();
                let gateway = sheep.current();
                sheep.learned = nodes;
                // Stay with the gateway in use wherever it is in the list now.
                let learned = sheep
                    .learned
                    .iter()
                    .position(|&node| gateway == node.into());
                if sheep.current >= sheep.given.len() {
                    sheep.current = learned.map_or(0, |at| sheep.given.len() + at);
                }
            }
            Ok(_) => {}
            Err(error) => tracing::debug!("cannot ask for the nodes of the cluster: {error}"),
        }
    }
}

/// Sends a call on this connection and no other, and waits a bounded time.
async fn ask(connection: &Connection, call: Call) -> Result<Response, ClientError> {
    let name = call.name();
    let lost = |why| ClientError::Lost {
        call: name,
        gateway: connection.peer(),
        why: Arc::new(why),
    };
    let (outcome, answer) = oneshot::channel();
    // Nobody listens any more once the time is up.
    let forward: Completion = Box::new(move |result| drop(outcome.send(result)));
    if connection.send(Pending::new(call, None, forward)).is_err() {
        return Err(lost(Hangup::Closed));
    }
    match tokio::time::timeout(NODE_TIMEOUT, answer).await {
        Ok(Ok(result)) => result,
        Ok(Err(_)) => Err(lost(Hangup::Closed)),
        Err(_) => Err(lost(Hangup::Io(io::ErrorKind::TimedOut.into()))),
    }
}

async fn ask_nodes(connection: &Connection) -> Result<Vec<SocketAddr>, ClientError> {
    let want = u32::try_from(NODE_LIST_LEN).expect("less than 4 GiB");
    let call = Call::new(Opcode::GetNodeList, RequestBody::NONE).wanting(want);
    let response = ask(connection, call).await?.accepted()?;
    let nodes =
        NodeRecord::parse_list(&response.payload).map_err(|source| response.bad_payload(source))?;
    Ok(nodes
        .iter()
        .map(NodeRecord::address)
        .take(MAX_FALLBACKS)
        .collect())
}

impl Observer for Core {
    fn ended(&self, mut pending: Pending, outcome: Result<Response, ClientError>) {
        let passes = match &outcome {
            Ok(response) => {
                let epoch = response.header.epoch.get();
                if self.epoch.swap(epoch, Ordering::Relaxed) != epoch {
                    self.changed.notify_one();
                }
                pending.call.may_retry(response.header.result())
            }
            Err(ClientError::Lost { .. }) => pending.call.resend() != Resend::Never,
            Err(_) => false,
        };
        let since = *pending.failing_since.get_or_insert_with(Instant::now);
        if !passes || since.elapsed() > self.patience(&pending.call) {
            return (pending.done)(outcome);
        }
        match &outcome {
            Ok(response) => {
                tracing::debug!(code = %response.header.result(), "{} again", response.call);
            }
            Err(error) => tracing::debug!(%error, "sending again"),
        }
        pending.failures += 1;
        self.wait_and_send(pending);
    }

    fn closed(&self, connection: &Arc<Shared>, why: &Hangup) {
        let mut open = self.open.write().expect("no one panics with the list");
        let before = open.len();
        open.retain(|known| !known.is(connection));
        if open.len() == before {
            return;
        }
        if let Hangup::BadFrame(_) | Hangup::UnknownId { .. } = why {
            tracing::warn!(gateway = %self.sheep().current(), "dropped a connection: {why}");
        }
        if open.is_empty() {
            tracing::warn!(gateway = %self.sheep().current(), "lost the sheep: {why}");
            self.link.send_replace(Link::DownSince(Instant::now()));
        }
        self.changed.notify_one();
    }
}

/// Opens what is missing until the pool is gone.
async fn keep_connected(core: Weak<Core>) {
    let mut failures = 0;
    let mut known_epoch = None;
    loop {
        let Some(core) = core.upgrade() else { return };
        let open = core.open.read().expect("no one panics with the list").len();
        let epoch = core.epoch.load(Ordering::Relaxed);
        if open > 0 && known_epoch != Some(epoch) {
            known_epoch = Some(epoch);
            core.learn_nodes().await;
            continue;
        }
        if open >= core.connections {
            let changed = core.changed.notified();
            tokio::select! {
                () = changed => {}
                // The pool may be dropped while nothing changes.
                () = tokio::time::sleep(Duration::from_secs(1)) => {}
            }
            continue;
        }
        match core.open_one().await {
            Ok(()) => failures = 0,
            Err(error) => {
                tracing::debug!("{error}");
                // While some connections live the gateway stays the same.
                let tried_all = open > 0 || core.sheep().next();
                if tried_all {
                    tokio::time::sleep(backoff::pause(failures)).await;
                    failures += 1;
                }
            }
        }
    }
}
