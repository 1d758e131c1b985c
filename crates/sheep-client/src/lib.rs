//! Talk to a Sheepdog cluster: objects, VDIs, cluster state.
//!
//! ```text
//! Client  read_object, create_vdi, nodes, ...        typed, async
//!    |    Call -> Response
//! Gateway                                            submit(call, completion)
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
//! A [`Client`] is made with [`Client::connect`] and is cheap to clone. Its
//! methods are `async` and may be dropped at any time: what was sent still
//! runs, and nobody else gets its answer. Who needs every microsecond uses
//! [`Client::submit`], which sends from the calling thread and completes where
//! the answer was read. Large reads and writes of objects go in pieces, several
//! at a time, because that is what a sheep is fastest at.
//!
//! # What is sent again
//!
//! Object reads, writes and creates, index updates and plain queries are sent
//! again when their connection dies, to the same sheep or the next, and when a
//! refusal is one that passes (a cluster that waits for a node, say), for as
//! long as [`ClientConfig::retry_for`] allows. When the client itself hung up on
//! a sheep that answered nonsense, only what changes nothing is (`retry.rs`).
//! Operations that would not do the same a second time
//! ([`Client::create_vdi`], [`Client::lock`], ...) are not: they fail with
//! [`ClientError::Lost`], and the caller looks what became of them. Nothing is
//! ever sent elsewhere while a sheep is merely silent; after
//! `retry_for` without an answer a call ends with [`ClientError::Unreachable`]
//! and may still run.
//!
//! A sheep of another cluster, one that was formatted at another time, is never
//! taken for a lost one; [`Client::move_to`] goes to any.
//!
//! # One writer
//!
//! A VDI has one writer at a time, and objects are created by one caller at a
//! time ([`Client::create_object`]). This crate sends what it is told;
//! `sheepfs-vfs` is the layer that keeps these rules for a volume.
//!
//! # Example
//!
//! ```no_run
//! # async fn example() -> Result<(), sheep_client::ClientError> {
//! use sheep_client::{Client, ClientConfig};
//!
//! let address = "127.0.0.1:7000".parse().expect("an address");
//! let client = Client::connect(ClientConfig::new(address)).await?;
//! for vdi in client.vdis().await? {
//!     println!("{} {} {} bytes", vdi.vid, vdi.name, vdi.size);
//! }
//! # Ok(())
//! # }
//! ```

pub mod address;
mod attribute;
mod backoff;
pub mod call;
mod client;
pub mod cluster;
pub mod config;
mod connection;
mod dispatcher;
pub mod error;
pub mod gateway;
mod index;
mod lifecycle;
mod lock;
mod lookup;
pub mod network;
mod object;
mod pieces;
pub mod pool;
mod retry;
mod supervisor;
#[cfg(feature = "testing")]
pub mod testing;
mod topology;
pub mod tree;
pub mod vdi;

pub use address::GatewayAddress;
pub use call::{Call, KeepAlive, Resend, Response};
pub use client::Client;
pub use config::ClientConfig;
pub use error::ClientError;
pub use gateway::{Completion, Gateway};
pub use pieces::pieces;
pub use tree::{IndexTree, TreeWrite};
pub use vdi::{NewVdi, VdiInfo, VdiSelector, WhichVersion};
