//! Volumes of a Sheepdog cluster as bytes, and the tree that shows them.
//!
//! ```text
//! /
//! ├── cluster/info              as `dog cluster info` prints it, and .json
//! ├── node/info, node/list      as `dog node info`, `dog node list`, and .json
//! ├── vdi/list                  as `dog vdi list`, and .json
//! ├── vdi/mount, vdi/unmount    write NAME or NAME@TAG: attach, detach
//! ├── vdi/create, snapshot, clone, rollback, resize, delete, unlock
//! ├── config/page_cache, object_cache, sheep_info
//! └── volume/NAME               the bytes of a working VDI
//!     volume/NAME@TAG           the bytes of a snapshot
//! ```
//!
//! [`Tree`] is what a file system serves; [`Volume`] stands on its own, for
//! other frontends. Both are asked and answered in bytes and paths: this crate
//! knows neither FUSE nor a command line, and reaches the cluster only through
//! [`sheep_client::Client`].

mod attributes;
mod chunk;
mod command;
mod error;
mod handle;
mod index_writer;
mod ino;
mod node;
pub mod report;
mod slot_guard;
mod tree;
mod volume;
mod write_tracker;

pub use attributes::{
    AllocateMode, Attributes, Capacity, Entry, FileKind, Invalidation, OpenMode, Opened, SeekTo,
};
pub use error::FsError;
pub use ino::{HandleId, Ino};
pub use tree::{LockMode, Tree, TreeConfig};
pub use volume::{Done, Losses, Volume, VolumeOptions};
