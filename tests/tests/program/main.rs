//! The program as mount(8), systemd and signals see it.
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
