//! Talk to a Sheepdog cluster: objects, VDIs, cluster state.
//!
//! ```text
//! Client      handles: vdi, cluster, node, objects, inode, index
//!    |        request -> response
//! Transport   sends requests to a cluster: the pool, or one of a test
//!    |
//! Dispatcher  admission, choice of a connection, timeouts
//!    |------- retry         what is sent again, and when
//! Supervisor  the connections of each node; reconnects, fails over
//!    |------- topology      where to look for a sheep, and which cluster it is
//!    |------- membership    what a sheep says about its cluster
//! Connection  one socket: writes frames, matches responses by id
//!    |
//! Connector   TCP, or what a test puts in its place
//! ```
//!
//! A [`Client`] is made with [`Client::connect`] and is cheap to clone. Its
//! operations are grouped by what they act on: [`Client::vdi`], [`Client::cluster`],
//! [`Client::node`], [`Client::objects`], [`Client::inode`] and [`Client::index`]
//! return handles. Their methods are `async` and may be dropped at any time: a
//! request that was sent is still executed, and its response is discarded. For the
//! lowest latency there are [`Objects::submit_read`] and [`Objects::submit_write`],
//! which send from the calling thread and complete where the response is read.
//! Large reads and writes are split into several requests that are in flight at
//! the same time, because that is what a sheep is fastest at.
//!
//! The types of the protocol are in [`proto`], the usual ones here as well, so
//! that one crate is enough.
//!
//! # Retries
//!
//! Object reads, writes and creates, index updates and queries are retried after a
//! disconnect, on the same sheep or the next, and after a transient refusal (a
//! cluster that waits for a node, say), for as long as [`ClientConfig::retry_for`]
//! allows. When the client closed the connection because of a protocol violation,
//! only requests that change nothing are (`retry.rs`). Operations that are not
//! idempotent ([`Cluster::create_vdi`], [`Vdi::lock`], ...) are not: they fail with
//! [`ClientError::Lost`], and the caller looks what became of them. No request is
//! sent elsewhere while a sheep is merely unresponsive; after `retry_for` it ends
//! with [`ClientError::Unreachable`] and may still be executed.
//!
//! The client never fails over to a sheep of another cluster, one that was
//! formatted at another time; [`Client::switch_gateway`] does.
//!
//! # Generations
//!
//! Sheep from 0.7 on are supported. What a sheep is, the client asks it before
//! anything else, on every connection. No request is sent that kills sheep of that
//! generation ([`ClientError::Unsupported`]), and a sheep of another generation than
//! the rest of its cluster is not used.
//!
//! # One writer
//!
//! A VDI has one writer at a time, and an object is created by one caller at a
//! time ([`Objects::create`]). This crate does not enforce that; `sheepfs-vfs` is
//! the layer that keeps these rules for a volume.
//!
//! # Example
//!
//! ```
//! use sheep_client::{Client, ClientConfig};
//! # use sheep_embedded::{Config, Server, StoreKind};
//! # tokio::runtime::Runtime::new()?.block_on(async {
//! # let server = Server::start(Config::new(StoreKind::Memory)).await?;
//! # let address = server.local_address().into();
//! // Usually `"127.0.0.1:7000".parse()?`.
//! let client = Client::connect(ClientConfig::new(address)).await?;
//! for vdi in client.cluster().list_vdis().await? {
//!     println!("{} {} {} bytes", vdi.vid, vdi.name, vdi.size);
//! }
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! # })?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod address;
mod backoff;
mod client;
pub mod cluster;
pub mod config;
mod connection;
mod connector;
mod dispatcher;
pub mod error;
mod index;
mod inode;
mod membership;
pub mod node;
mod object;
mod object_cache;
mod poison;
mod pool;
mod query;
mod request;
mod retry;
mod sender;
mod session;
mod split_io;
mod supervisor;
#[cfg(feature = "testing")]
pub mod testing;
mod topology;
mod transport;
mod tree;
mod vdi;
mod vdi_info;
mod vid_reuse;

pub use address::{BadAddress, GatewayAddress};
pub use client::Client;
pub use cluster::Cluster;
pub use config::ClientConfig;
pub use error::{Chain, ClientError};
pub use index::Index;
pub use inode::Inode;
pub use node::Node;
pub use object::Objects;
pub use object_cache::ObjectCache;
pub use session::Session;
pub use sheep_proto as proto;
pub use sheep_proto::{Generation, ObjectIndex, Oid, ResultCode, SnapshotTag, VdiName, Vid};
pub use vdi::Vdi;
pub use vdi_info::{NewVdi, VdiInfo, VdiSelector, VdiVersion};

/// What the layers above and the tests use of the inside. It changes without
/// notice.
#[doc(hidden)]
pub mod unstable {
    pub use crate::connector::{ByteStream, Connector, WriteHalf};
    pub use crate::pool::Pool;
    pub use crate::request::{InFlightToken, Request, Response, RetryPolicy};
    pub use crate::split_io::split_io;
    pub use crate::transport::{BoxFuture, Completion, Transport};
    pub use crate::tree::{IndexTree, TreeWrite, apply_writes};
}
