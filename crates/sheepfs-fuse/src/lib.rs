//! Serves a [`sheepfs_vfs::Tree`] through FUSE.
//!
//! ```text
//! kernel ── /dev/fuse ──► event-loop thread ──► adapter ──► Tree
//!    ▲                                             │          │
//!    └────────── reply, exactly once ◄── dispatcher ◄─────────┘
//! ```
//!
//! Two event-loop threads read requests, each from its own clone of the
//! device, and never block. Reads and writes of a volume get a completion, which
//! replies on the thread that reads the response of the sheep. Other requests are
//! futures, polled once in place and moved to the runtime if they have to wait.
//! A write's payload is copied once, because the event loop reuses its buffer.
//!
//! | file | holds |
//! |---|---|
//! | `adapter.rs` | one short method per kernel request |
//! | `dispatcher.rs` | runs requests, replies once, logs failures once |
//! | `convert.rs` | conversion of attributes, open flags, errno |
//! | `directory.rs` | listings of open directories |
//! | `init.rs` | limits and capabilities negotiated with the kernel |
//! | `invalidate.rs` | invalidation of the kernel's caches |
//! | `lookups.rs` | pairs the LOOKUP of a report with its OPEN |
//! | `mountpoint.rs` | checks of the mountpoint, mount table |
//! | `poison.rs` | locking that ignores poisoning |
//! | `prefault.rs` | prefaulting of memory that requests need |
//! | `remount.rs` | remounting read-only or writable |
//! | `session.rs` | life cycle of a mount: options, event loops, unmounting |
//! | `truncating_open.rs` | finds the handle of an open with `O_TRUNC` |
//! | `xattr.rs` | replies for getxattr(2) and listxattr(2) |
//!
//! It knows nothing of sheep, VDIs, opcodes or the command line.

mod adapter;
mod convert;
mod directory;
mod dispatcher;
mod init;
mod invalidate;
mod lookups;
mod mountpoint;
mod poison;
mod prefault;
mod remount;
mod session;
mod truncating_open;
mod xattr;

pub use mountpoint::{MountpointError, unescape};
pub use prefault::prefault_thread;
pub use remount::{MountedTree, RemountError};
pub use session::{Access, Mount, MountConfig, MountError, check_mountable, mount};
