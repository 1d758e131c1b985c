//! The configuration of a server, and its limits.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use sheep_proto::Generation;
use sheep_proto::limits::MAX_PAYLOAD_LEN;

use crate::release::Release;

/// Connections served at once; further ones wait in the listener's queue.
pub(crate) const MAX_CONNECTIONS: usize = 1024;
/// Requests of one connection that run at once; the next header is read when one is done.
pub(crate) const MAX_REQUESTS_PER_CONNECTION: usize = 64;
/// Requests of all connections that run at once, each on a thread of its own.
pub(crate) const MAX_RUNNING_REQUESTS: usize = 64;
/// KiB of payload, of requests and responses together, held for one connection.
pub(crate) const MAX_KIB_PER_CONNECTION: usize = 4 * (MAX_PAYLOAD_LEN >> 10);
/// KiB of payload held for all connections.
pub(crate) const MAX_KIB: usize = 4 * MAX_KIB_PER_CONNECTION;
/// Longest payload of a request or response that runs inline, in a store in memory.
pub(crate) const MAX_INLINE_LEN: usize = 4 << 20;
/// Longest payload of an inline request that takes no permits of these limits.
pub(crate) const MAX_UNCOUNTED_LEN: usize = 64 << 10;
/// A peer that moves no byte of a frame for this long is disconnected; between frames it may be silent for ever.
pub(crate) const STALL_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a shutdown waits for the requests in flight.
pub(crate) const DRAIN_TIMEOUT: Duration = Duration::from_secs(10);
/// Default limit of a memory store, in bytes of objects.
const DEFAULT_MEMORY_LIMIT: u64 = 1 << 30;

/// Where a server keeps its objects.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StoreKind {
    /// In memory; gone when the server ends.
    Memory,
    /// In this directory, which is made when it is missing.
    Directory(PathBuf),
}

/// Settings of a [`Server`](crate::Server).
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Config {
    /// Address to listen on; port 0 lets the system choose one.
    pub listen: SocketAddr,
    /// Where objects are kept.
    pub store: StoreKind,
    /// Answer a write only when it would survive a power cut. Means nothing to a memory store.
    pub sync: bool,
    /// Format a store that was never formatted, with one copy and 4 MiB objects,
    /// instead of waiting for MAKE_FS.
    pub format_if_new: bool,
    /// The releases of sheep that the server is like.
    pub generation: Generation,
    /// Be like the worst release of that generation, not like its last one.
    pub worst_release: bool,
    /// Give the first node an object cache, as `sheep -w` has one; only before 1.0.
    pub object_cache: bool,
    /// Bytes of objects a memory store holds before it answers NO_SPACE.
    pub memory_limit: u64,
}

impl Config {
    /// A durable, formatted server on a free port of 127.0.0.1.
    pub fn new(store: StoreKind) -> Self {
        Self {
            listen: (Ipv4Addr::LOCALHOST, 0).into(),
            store,
            sync: true,
            format_if_new: true,
            generation: Generation::NEWEST,
            worst_release: true,
            object_cache: false,
            memory_limit: DEFAULT_MEMORY_LIMIT,
        }
    }

    pub(crate) fn release(&self) -> Release {
        Release {
            generation: self.generation,
            is_worst: self.worst_release,
        }
    }
}
