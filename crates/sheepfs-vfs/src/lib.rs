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
//! A file system serves a [`Tree`]. Other frontends use a [`Volume`] directly:
//! [`resolve`] finds the VDI of a name, [`LockPolicy`] decides whether to lock it, and
//! [`BlockDevice`] has the I/O operations. This crate knows neither FUSE nor a command
//! line, and reaches the cluster only through [`client::Client`].
//!
//! ```
//! use sheepfs_vfs::client::{Client, ClientConfig};
//! use sheepfs_vfs::{BlockDevice as _, Volume, VolumeOptions, resolve};
//! # use sheepfs_vfs::client::{NewVdi, VdiName};
//! # use sheep_embedded::{Config, Server, StoreKind};
//! # tokio::runtime::Runtime::new()?.block_on(async {
//! # let server = Server::start(Config::new(StoreKind::Memory)).await?;
//! # let client = Client::connect(ClientConfig::new(server.local_address().into())).await?;
//! # client.cluster().create_vdi(&NewVdi::new(VdiName::new("vm1")?, 8 << 20)).await?;
//!
//! // A client is made with `Client::connect`.
//! let selector = resolve::resolve(&client, b"vm1").await?;
//! let volume = Volume::open(client, selector, VolumeOptions::default()).await?;
//! let boot_sector = volume.read_at(0, 512).await?;
//! volume.write_at(0, boot_sector).await?;
//! volume.flush().await?;
//! volume.close().await?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! # })?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod attributes;
mod command;
mod error;
mod file_end;
mod ino;
mod lock_policy;
mod node;
mod poison;
pub mod report;
pub mod resolve;
mod tree;
pub mod volume;
mod xattrs;

pub use sheep_client as client;

pub use attributes::{
    AllocateMode, Attributes, Capacity, Entry, FileKind, Invalidation, OpenMode, Opened, SeekTo,
};
pub use error::{Chain, FsError};
pub use ino::{HandleId, Ino};
pub use lock_policy::{LockMode, LockPolicy};
pub use tree::{Attachments, MOUNT_OPTIONS, OpenFiles, Tree, TreeConfig};
pub use volume::{BlockDevice, Volume, VolumeError, VolumeOptions};
