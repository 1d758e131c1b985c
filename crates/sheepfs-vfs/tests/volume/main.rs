//! Volumes on a cluster: a private sheep in memory, or the real one that
//! `SHEEPFS_TEST_SHEEP` names.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod holes;
mod model;
mod races;
mod support;
