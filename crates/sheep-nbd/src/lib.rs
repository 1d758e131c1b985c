//! Volumes of a Sheepdog cluster as NBD exports, and an NBD server for any block
//! device.
//!
//! | module | job |
//! |---|---|
//! | [`protocol`] | what the bytes mean; no I/O |
//! | [`export`] | what can be served: a [`BlockDevice`](sheepfs_vfs::BlockDevice), and the extents of its contexts |
//! | [`server`] | connections, handshakes, requests |
//! | [`tls`] | certificates and keys |
//! | [`volumes`] | the volumes of a cluster as exports |
//!
//! Knows nothing of files and mounts. See `examples/memory.rs` for a server in thirty
//! lines.

pub mod export;
pub mod protocol;
pub mod server;
pub mod tls;
pub mod volumes;

pub use export::{DeviceExports, Export, ExportError, Exports};
pub use server::{Listener, Server, Socket};
