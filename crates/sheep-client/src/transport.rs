//! The interface below all handles: a request to the cluster, a response back.

use std::fmt::Debug;
use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::time::Duration;

use sheep_proto::Generation;

use crate::address::GatewayAddress;
use crate::error::ClientError;
use crate::request::{Request, Response};
use crate::session::Session;

/// Runs once with the outcome of a request: a response, whatever its result code,
/// or the reason why there is none.
///
/// The reader task of the connection runs it before it reads the next response, so
/// it must neither block nor take long.
pub type Completion = Box<dyn FnOnce(Result<Response, ClientError>) + Send>;

/// A future in a box, for trait objects.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// Sends requests to a cluster. [`Pool`](crate::pool::Pool) does it over TCP; tests
/// put transports in front of it that lose, delay and refuse requests.
pub trait Transport: Debug + Send + Sync {
    /// Sends a request to the cluster and runs `completion` with the outcome.
    ///
    /// Neither blocks nor needs an async runtime to be entered. While the
    /// socket has room the frame is written by the calling thread.
    fn submit(&self, request: Request, completion: Completion);

    /// Sends a request to one node of the cluster, for what only that node knows.
    fn submit_to(&self, node: SocketAddr, request: Request, completion: Completion);

    /// The address that was given, not the one failed over to.
    fn address(&self) -> GatewayAddress;

    /// The sheep in use now; `None` while none is connected.
    fn peer(&self) -> Option<SocketAddr> {
        None
    }

    /// The generation of the sheep in use: what requests mean to it. Waits for a
    /// connection at most for `timeout`.
    fn generation(&self, timeout: Duration) -> BoxFuture<'_, Result<Generation, ClientError>>;

    /// The session with the gateway; one that has ended is never the same again.
    fn session(&self) -> Session {
        Session::default()
    }

    /// Checks that a sheep answers at `address`, then sends every later request
    /// there. Requests in flight complete on their old connections.
    fn switch_gateway(&self, address: GatewayAddress) -> BoxFuture<'_, Result<(), ClientError>>;

    /// How long a request may still be executed after it ended with
    /// [`ClientError::Lost`].
    fn fence_interval(&self) -> Duration {
        Duration::ZERO
    }
}
