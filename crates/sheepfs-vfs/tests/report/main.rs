//! Reports: equal to the output of dog, and their behaviour on an unhealthy cluster.

#![expect(clippy::unwrap_used, reason = "a test may panic")]

mod cluster_states;
mod generations;
mod golden_text;
mod json;
mod scripted_transport;
mod single_flight;
