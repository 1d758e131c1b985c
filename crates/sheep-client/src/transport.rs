//! The one thing everything above needs: a request there, a response back.

use std::fmt::Debug;
use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::time::Duration;

use crate::address::GatewayAddress;
use crate::error::ClientError;
use crate::request::{Request, Response};

/// Runs once with the outcome of a call: an answer, whatever its result code,
/// or the reason why there is none.
///
/// It runs where the answer was read, before the next answer is read there, so
/// it must neither block nor take long.
pub type Completion = Box<dyn FnOnce(Result<Response, ClientError>) + Send>;

/// A future in a box, for trait objects.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// Gets calls to a cluster. [`Pool`](crate::pool::Pool) does it over TCP; tests
/// put others in front of it that lose, delay and refuse.
pub trait Transport: Debug + Send + Sync {
    /// Sends `request` to the cluster and runs `completion` with the outcome.
    ///
    /// Neither blocks nor needs an async runtime to be entered. While the
    /// socket has room the frame is written by the calling thread.
    fn submit(&self, request: Request, completion: Completion);

    /// Sends `request` to one node of the cluster, for what only that node knows.
    fn submit_to(&self, node: SocketAddr, request: Request, completion: Completion);

    /// The address that was given, not the one failed over to.
    fn address(&self) -> GatewayAddress;

    /// The sheep that calls go to now; `None` while there is none.
    fn peer(&self) -> Option<SocketAddr> {
        None
    }

    /// Checks that a sheep answers at `address`, then uses it for every call
    /// from now on. Calls in flight finish where they are.
    fn switch_gateway(&self, address: GatewayAddress) -> BoxFuture<'_, Result<(), ClientError>>;

    /// How long a call may still run after it ended with [`ClientError::Lost`].
    fn fence_interval(&self) -> Duration {
        Duration::ZERO
    }
}
