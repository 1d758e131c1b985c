//! Volumes on a cluster: a private sheep in memory, or the real one that
//! `SHEEPFS_TEST_SHEEP` names.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod codes;
mod holes;
mod locks;
mod model;
mod moments;
mod multi_client;
mod others;
mod preallocation;
mod races;
mod shapes;
mod stress;
mod support;
mod truncation;
mod wire;
mod write_back;
