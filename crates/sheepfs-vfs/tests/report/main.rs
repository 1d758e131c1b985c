//! The reports against what dog printed, and what they do when a cluster is
//! not well.

#![expect(clippy::unwrap_used, reason = "a test may panic")]

mod documents;
mod shared;
mod sheep;
mod states;
mod texts;
