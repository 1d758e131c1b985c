//! The program as its callers see it: mount(8), systemd, and whoever ends it.
//!
//! These tests mount, so they need root and `/dev/fuse`.

#![expect(clippy::unwrap_used, reason = "what fails here fails the test")]

mod ending;
mod lies;
mod logs;
mod mount;
mod service;
mod sockets;
mod start;
mod support;
