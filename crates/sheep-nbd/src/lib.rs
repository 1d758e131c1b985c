//! Volumes of a Sheepdog cluster as NBD exports, and an NBD server for any block
//! device.
//!
//! | module | job |
//! |---|---|
//! | [`protocol`] | codec of the protocol, without I/O |
//! | [`export`] | the interface of exports: a [`BlockDevice`](sheepfs_vfs::BlockDevice) with metadata contexts |
//! | [`server`] | connections, handshakes, requests |
//! | [`tls`] | configuration of TLS |
//! | [`volumes`] | the volumes of a cluster as exports |
//!
//! Knows nothing about files and mounts. See `examples/memory.rs` for a server in thirty
//! lines.

pub mod export;
pub mod protocol;
pub mod server;
pub mod tls;
pub mod volumes;

pub use export::{DeviceExports, Export, ExportError, Exports};
pub use server::{Listener, Server, Socket};
