//! The server over TCP, with a client that shares only `sheep-proto` with it.
#![expect(clippy::unwrap_used, reason = "tests fail by panicking")]

mod client;
mod crash_consistency;
mod fault_injection;
mod generations;
mod lock;
mod malformed_request;
mod operations;
mod persistence;
mod process_exit;
mod program;
mod replay;
mod replay_generations;
mod vdi_model;
