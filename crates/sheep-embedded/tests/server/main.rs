//! The server over TCP, with a client that shares only `sheep-proto` with it.
#![expect(clippy::unwrap_used, reason = "tests fail by panicking")]

mod behaviour;
mod captures;
mod client;
mod crash;
mod faults;
mod hostile;
mod kills;
mod locks;
mod model;
mod program;
mod storage;
