//! Talk to a Sheepdog cluster: objects, VDIs, cluster state.
//!
//! ```text
//! Client      handles: vdi, cluster, node, objects, inode, index
//!    |        request -> response
//! gateway     what gets requests to a cluster: a pool, or a test
//!    |
//! Dispatcher  admission, choice of a connection, timeouts
//!    |------- retry         what is sent again, and when
//! Supervisor  the connections of each node; reconnects, fails over
//!    |------- topology      where to look for a sheep, and which cluster it is
//! Connection  one socket: writes frames, matches responses by id
//!    |
//! network     TCP, or what a test puts in its place
//! ```
//!
//! A [`Client`] is made with [`Client::connect`] and is cheap to clone. What can
//! be done is grouped by what it is done to: [`Client::vdi`], [`Client::cluster`],
//! [`Client::node`], [`Client::objects`], [`Client::inode`] and [`Client::index`]
//! return handles. Their methods are `async` and may be dropped at any time: what
//! was sent still runs, and nobody else gets its response. A caller for whom every
//! microsecond counts uses [`Objects::submit_read`] and [`Objects::submit_write`],
//! which send from the calling thread and complete where the response is read.
//! Large reads and writes are split into several requests that are sent at the
//! same time, because that is what a sheep is fastest at.
//!
//! The types of the protocol are in [`proto`], the usual ones here as well, so
//! that one crate is enough.
//!
//! # What is sent again
//!
//! Object reads, writes and creates, index updates and plain queries are sent
//! again when their connection dies, to the same sheep or the next, and when a
//! refusal is one that passes (a cluster that waits for a node, say), for as
//! long as [`ClientConfig::retry_for`] allows. When the client itself hung up on
//! a sheep that answered nonsense, only what changes nothing is (`retry.rs`).
//! Operations that would not do the same a second time
//! ([`Cluster::create_vdi`], [`Vdi::lock`], ...) are not: they fail with
//! [`ClientError::Lost`], and the caller looks what became of them. Nothing is
//! ever sent elsewhere while a sheep is merely silent; after
//! `retry_for` without an answer a call ends with [`ClientError::Unreachable`]
//! and may still run.
//!
//! A sheep of another cluster, one that was formatted at another time, is never
//! taken for a lost one; [`Client::switch_gateway`] goes to any.
//!
//! # One writer
//!
//! A VDI has one writer at a time, and objects are created by one caller at a
//! time ([`Objects::create`]). This crate sends what it is told;
//! `sheepfs-vfs` is the layer that keeps these rules for a volume.
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
pub mod node;
mod object;
mod pool;
mod request;
mod retry;
mod sender;
mod split_io;
mod supervisor;
#[cfg(feature = "testing")]
pub mod testing;
mod topology;
mod transport;
mod tree;
mod vdi;
mod vdi_info;

pub use address::{BadAddress, GatewayAddress};
pub use client::Client;
pub use cluster::Cluster;
pub use config::ClientConfig;
pub use error::{Chain, ClientError};
pub use index::Index;
pub use inode::Inode;
pub use node::Node;
pub use object::Objects;
pub use sheep_proto as proto;
pub use sheep_proto::{ObjectIndex, Oid, ResultCode, SnapshotTag, VdiName, Vid};
pub use vdi::Vdi;
pub use vdi_info::{NewVdi, VdiInfo, VdiSelector, VdiVersion};

/// What the layers above and the tests need of the inside. Not for others: it
/// changes without notice.
#[doc(hidden)]
pub mod unstable {
    pub use crate::connector::{ByteStream, Connector, WriteHalf};
    pub use crate::pool::Pool;
    pub use crate::request::{InFlightToken, Request, Response, RetryPolicy};
    pub use crate::split_io::split_io;
    pub use crate::transport::{BoxFuture, Completion, Transport};
    pub use crate::tree::{IndexTree, TreeWrite, apply_writes};
}
