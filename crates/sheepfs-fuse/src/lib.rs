//! The kernel's side of sheepfs: FUSE requests in, calls on the tree, replies out.
//!
//! ```text
//! kernel ── /dev/fuse ──► event-loop thread ──► adapter ──► Tree
//!    ▲                                             │          │
//!    └───────────── reply, exactly once ◄── answer ◄──────────┘
//! ```
//!
//! Two event-loop threads read requests, each from its own clone of the
//! device, and never block: a read or write of a volume is handed to the tree
//! with a completion that replies from wherever the sheep's answer was read;
//! everything else is a future that is polled once in place and moved to the
//! runtime only when it has to wait (a lookup of a fixed name never does).
//! A write's payload is copied once, because the event loop reuses its buffer.
//!
//! | file | holds |
//! |---|---|
//! | `adapter.rs` | one short method per kernel request |
//! | `dispatcher.rs` | runs the work, replies once, logs a failure once |
//! | `convert.rs` | attributes, open flags, errno: this side's types to that side's |
//! | `directory.rs` | listings of open directories |
//! | `init.rs` | limits and abilities agreed with the kernel |
//! | `invalidate.rs` | telling the kernel that a name or a file has changed |
//! | `lookups.rs` | which report a thread has looked up, to open it |
//! | `mountpoint.rs` | is this a place we can mount on, and what is there already |
//! | `prefault.rs` | touching memory before it is needed |
//! | `session.rs` | mount options, the end of a mount |
//! | `xattr.rs` | extended attributes as getxattr(2) and listxattr(2) want them |
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
mod prefault;
mod remount;
mod session;
mod truncating_open;
mod xattr;

pub use mountpoint::{MountpointError, unescape};
pub use prefault::prefault_thread;
pub use remount::{MountedTree, RemountError};
pub use session::{Access, Mount, MountConfig, MountError, check_mountable, mount};
