//! File numbers of the mount.

/// Number of a file in the mount; never an inode of the cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Ino(pub u64);

impl Ino {
    /// The root of the tree.
    pub const ROOT: Self = Self(1);
    /// The first number for volumes; see [`crate::Tree::attach`].
    pub(crate) const FIRST_VOLUME: Self = Self(1 << 16);
}

/// Names an open file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct HandleId(pub u64);
