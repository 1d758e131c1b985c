//! A sheep of one node: the server side of the protocol for trying sheepfs
//! out, for tests and for demonstrations.
//!
//! ```text
//!  TCP -> connection: frames, limits -> sheep: version, status -> dispatch
//!           many requests at once                                   |
//!                                                               services
//!                                                                   |
//!                                 catalogue, locks, inodes, references, members
//!                                                                   |
//!                                                 store: directory or memory
//! ```
//!
//! It speaks to any client of the 1.0 series: dog, tgt, the original sheepfs; or, when
//! it is told so, to those of 0.7, 0.8 or 0.9, as the worst release of them does
//! (`release.rs`).
//! One copy of everything is kept, whatever redundancy a VDI asks for. What it
//! does better than the original is said where it is done: a snapshot loses no
//! write (`service/vdi.rs`), a deletion frees what the client left behind
//! (`reclaim.rs`), no index write frees what other VDIs reference (`references.rs`), and
//! bad requests are answered with a code.
//!
//! For tests it injects faults ([`faults`]), and several nodes can share one
//! store ([`Server::add_node`]).
//!
//! It knows nothing of clients: this crate and `sheep-client` share only
//! `sheep-proto`, so that a misunderstanding of one shows against the other.
//! Not here: peers, recovery, erasure coding, preallocation (objects are
//! sparse, so an overwrite can run out of space), and VIDs used again.

mod catalogue;
mod clock;
mod cluster;
mod config;
mod counters;
mod dispatch;
mod family;
pub mod faults;
mod hypervolume;
mod inode;
mod lock;
mod membership;
mod node_record;
mod object_cache;
mod payload;
mod poison;
mod reclaim;
mod recovery;
mod recovery_settings;
mod references;
mod release;
mod request;
mod server;
mod service;
mod sheep;
mod store;

pub use config::{Config, StoreKind};
pub use faults::Fault;
pub use recovery::LoadError;
pub use server::{Server, StartError};
pub use store::{OpenError, StoreError};
