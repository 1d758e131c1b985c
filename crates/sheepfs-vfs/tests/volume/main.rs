//! Volumes on a cluster: a private sheep in memory, or the real one that
//! `SHEEPFS_TEST_SHEEP` names.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod abandoned_requests;
mod discard;
mod erasure_code;
mod error_mapping;
mod flush;
mod generations;
mod in_doubt;
mod index_traffic;
mod inode_bytes;
mod locks;
mod model;
mod multi_client;
mod object_cache;
mod preallocation;
mod races;
mod snapshot_race;
mod snapshots;
mod stress;
mod support;
mod truncation;
mod vdi_geometry;
mod write_back;
