//! A VDI attached as a block device.
//!
//! The volume is layers, from the bottom:
//!
//! | layer | files | job |
//! |---|---|---|
//! | L0 | `extent` `extent_map` `object_map` `flush_tracker` `sequential` `dirty_buffer` `block_device` `memory_device` `error` | pure, no I/O |
//! | L1 | `lineage` `object_io` `object_lock` `index_commit` | one request on one VID; no retry, no head |
//! | L2 | `data_io` `head_state` `head` `recovery` `follow` `revalidate` `slot_query` `reclaim` | the head: follow, reconcile, revalidate, reclaim; the object cache |
//! | L3 | `allocate` `io` `deallocate` | one extent: retries, first writes, discards |
//! | L4 | `device` | fan-out over extents, flush, open and close |
//! | L5 | `preallocate` | the next object of a sequential writer |
//! | L6 | `write_back` | buffered writes and their errors |
//!
//! A file uses only files of lower layers, or of its own without a cycle;
//! `cargo xtask tidy` checks that. [`Volume`] is the stack that a frontend attaches.
//!
//! Data goes first, then the index, then the acknowledgement: a crash in between
//! leaves an orphan, never a slot without an object.

mod allocate;
mod block_device;
mod data_io;
mod deallocate;
mod device;
mod dirty_buffer;
mod error;
mod extent;
mod extent_map;
mod flush_tracker;
mod follow;
mod head;
mod head_state;
mod index_commit;
mod io;
mod lineage;
mod memory_device;
mod object_io;
mod object_lock;
mod object_map;
mod preallocate;
mod reclaim;
mod recovery;
mod revalidate;
mod sequential;
mod slot_query;
mod stack;
mod write_back;

pub use self::block_device::{BlockDevice, BlockStatus};
pub use self::device::VolumeOptions;
pub use self::error::VolumeError;
pub use self::extent_map::{ChangedExtent, ExtentMap, OwnedExtent};
pub use self::head_state::load_extent_map;
pub use self::lineage::Lineage;
pub use self::memory_device::MemoryDevice;
pub use self::stack::{Volume, VolumeWriter};
pub use self::write_back::{Opener, WriteBack};
