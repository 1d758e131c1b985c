//! Results of stat(2), readdir(3) and open(2).

use std::ops::Range;
use std::time::{Duration, SystemTime};

use bytes::Bytes;

use crate::ino::{HandleId, Ino};

/// Directory or file; the tree has nothing else.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileKind {
    /// A directory.
    Directory,
    /// A regular file of text: a report, a setting, a command file.
    Text,
    /// A regular file with the bytes of a VDI.
    Volume,
}

/// The attributes of stat(2) except the owner.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attributes {
    /// Number of the file, for stat(2).
    pub ino: Ino,
    /// The node id for the kernel. It is `ino` except for a report: each text of a report
    /// is a node of its own, and all show one `ino`.
    pub node: Ino,
    /// Directory or file.
    pub kind: FileKind,
    /// Length in bytes if it were opened now.
    pub size: u64,
    /// Blocks of 512 bytes it takes in the cluster.
    pub blocks: u64,
    /// Permission bits before the umask.
    pub permissions: u16,
    /// Last change.
    pub modified: SystemTime,
    /// Cache TTL of the attributes and of the entry.
    pub ttl: Duration,
}

/// An entry of a directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Number of the file.
    pub ino: Ino,
    /// Directory or file.
    pub kind: FileKind,
    /// Its name: bytes, without a slash.
    pub name: Vec<u8>,
}

/// Access mode of open(2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OpenMode {
    /// Reading.
    pub read: bool,
    /// Writing.
    pub write: bool,
}

/// An open file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Opened {
    /// Its handle.
    pub handle: HandleId,
    /// Whether reads and writes go past the kernel's page cache.
    pub direct_io: bool,
}

/// Space of the cluster, for df(1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capacity {
    /// Bytes of all stores together.
    pub total: u64,
    /// Bytes free.
    pub free: u64,
}

/// Modes of fallocate(2) within the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AllocateMode {
    /// Space for later writes.
    Allocate,
    /// The range reads as zeros and may be deallocated.
    PunchHole,
    /// The range reads as zeros.
    ZeroRange,
}

/// Where lseek(2) is to go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SeekTo {
    /// The next byte an object holds.
    Data,
    /// The next byte no object holds.
    Hole,
}

/// A kernel cache entry to invalidate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Invalidation {
    /// A name in a directory.
    Entry {
        /// The directory.
        parent: Ino,
        /// The name.
        name: Vec<u8>,
    },
    /// Attributes and pages of a file.
    Inode(Ino),
    /// Attributes and pages of a report file with a new text. The kernel must know the
    /// new length before it opens the file.
    Text {
        /// The file.
        ino: Ino,
        /// What it has now.
        text: Bytes,
    },
    /// Attributes of a file, and its pages with any byte of a range.
    Pages {
        /// The file.
        ino: Ino,
        /// Bytes; not empty.
        range: Range<u64>,
    },
}
