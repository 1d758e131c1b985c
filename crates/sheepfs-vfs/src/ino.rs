//! File numbers of the mount.

/// Number of a file in the mount; never an inode of the cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Ino(pub u64);

impl Ino {
    /// The root of the tree.
    pub const ROOT: Self = Self(1);
    /// The first number for volumes; see [`crate::Attachments::attach`].
    pub(crate) const FIRST_VOLUME: Self = Self(1 << 16);
    /// Set in the number of the file of one text. The report's own number is in
    /// the lowest byte, the text's number between.
    const TEXT: u64 = 1 << 63;

    /// The number of the file that has the `text`th text of this report.
    pub(crate) fn of_text(self, text: u64) -> Self {
        Self(Self::TEXT | text << 8 | self.0)
    }

    /// The report that this file is a text of; the file itself if it is no report.
    pub(crate) fn report(self) -> Self {
        match self.0 & Self::TEXT {
            0 => self,
            _ => Self(self.0 & 0xff),
        }
    }
}

/// Names an open file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct HandleId(pub u64);
