//! The program as its callers see it: mount(8), systemd, and whoever ends it.
//!
//! These tests mount, so they need root and `/dev/fuse`.

#![expect(clippy::unwrap_used, reason = "what fails here fails the test")]

mod listening_sockets;
mod logs;
mod malformed_response;
mod mount;
mod sd_notify;
mod shutdown;
mod startup;
mod support;
