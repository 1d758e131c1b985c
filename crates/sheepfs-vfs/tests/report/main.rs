//! The reports against what dog printed, and what they do when a cluster is
//! not well.

#![expect(clippy::unwrap_used, reason = "a test may panic")]

mod cluster_states;
mod golden_text;
mod json;
mod scripted_transport;
mod single_flight;
