//! The nodes of the tree: static entries and volumes.

use std::sync::Arc;

use crate::ino::Ino;
use crate::report::{Format, Report};
use crate::volume::Volume;

/// A node of the tree. A new kind is a design change.
#[derive(Clone, Debug)]
pub(crate) enum FsNode {
    /// Holds other entries.
    Directory(Directory),
    /// A text file made when it is opened, such as `vdi/list`.
    Report(Report, Format),
    /// A file that acts on each line written, such as `vdi/mount`.
    Command(Command),
    /// A file that shows a setting and changes it, such as `config/page_cache`.
    Setting(Setting),
    /// An attached VDI: bytes in, bytes out.
    Volume(Arc<Volume>),
}

/// All directories.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Directory {
    Root,
    Cluster,
    Node,
    Vdi,
    Config,
    Volume,
}

/// The command files under `vdi/`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Command {
    Mount,
    Unmount,
    Create,
    Snapshot,
    Clone,
    Rollback,
    Resize,
    Delete,
    Unlock,
}

/// The files under `config/`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Setting {
    PageCache,
    ObjectCache,
    SheepInfo,
}

impl Command {
    /// The file's path in the tree.
    pub(crate) fn path(self) -> &'static str {
        match self {
            Self::Mount => "vdi/mount",
            Self::Unmount => "vdi/unmount",
            Self::Create => "vdi/create",
            Self::Snapshot => "vdi/snapshot",
            Self::Clone => "vdi/clone",
            Self::Rollback => "vdi/rollback",
            Self::Resize => "vdi/resize",
            Self::Delete => "vdi/delete",
            Self::Unlock => "vdi/unlock",
        }
    }
}

impl Setting {
    /// The file's path in the tree.
    pub(crate) fn path(self) -> &'static str {
        match self {
            Self::PageCache => "config/page_cache",
            Self::ObjectCache => "config/object_cache",
            Self::SheepInfo => "config/sheep_info",
        }
    }
}

/// An entry that always exists.
pub(crate) struct StaticEntry {
    pub(crate) ino: Ino,
    pub(crate) parent: Directory,
    pub(crate) name: &'static str,
    pub(crate) node: FsNode,
}

/// Every entry but the volumes. The numbers never change: scripts may use them, and the
/// kernel may keep one across a remount.
pub(crate) const STATIC_ENTRIES: &[StaticEntry] = &[
    static_entry(
        2,
        Directory::Root,
        "cluster",
        FsNode::Directory(Directory::Cluster),
    ),
    static_entry(
        3,
        Directory::Root,
        "node",
        FsNode::Directory(Directory::Node),
    ),
    static_entry(4, Directory::Root, "vdi", FsNode::Directory(Directory::Vdi)),
    static_entry(
        5,
        Directory::Root,
        "config",
        FsNode::Directory(Directory::Config),
    ),
    static_entry(
        6,
        Directory::Root,
        "volume",
        FsNode::Directory(Directory::Volume),
    ),
    static_entry(
        16,
        Directory::Cluster,
        "info",
        FsNode::Report(Report::ClusterInfo, Format::Text),
    ),
    static_entry(
        17,
        Directory::Cluster,
        "info.json",
        FsNode::Report(Report::ClusterInfo, Format::Json),
    ),
    static_entry(
        18,
        Directory::Node,
        "info",
        FsNode::Report(Report::NodeInfo, Format::Text),
    ),
    static_entry(
        19,
        Directory::Node,
        "info.json",
        FsNode::Report(Report::NodeInfo, Format::Json),
    ),
    static_entry(
        20,
        Directory::Node,
        "list",
        FsNode::Report(Report::NodeList, Format::Text),
    ),
    static_entry(
        21,
        Directory::Node,
        "list.json",
        FsNode::Report(Report::NodeList, Format::Json),
    ),
    static_entry(
        22,
        Directory::Vdi,
        "list",
        FsNode::Report(Report::VdiList, Format::Text),
    ),
    static_entry(
        23,
        Directory::Vdi,
        "list.json",
        FsNode::Report(Report::VdiList, Format::Json),
    ),
    static_entry(32, Directory::Vdi, "mount", FsNode::Command(Command::Mount)),
    static_entry(
        33,
        Directory::Vdi,
        "unmount",
        FsNode::Command(Command::Unmount),
    ),
    static_entry(
        34,
        Directory::Vdi,
        "create",
        FsNode::Command(Command::Create),
    ),
    static_entry(
        35,
        Directory::Vdi,
        "snapshot",
        FsNode::Command(Command::Snapshot),
    ),
    static_entry(36, Directory::Vdi, "clone", FsNode::Command(Command::Clone)),
    static_entry(
        37,
        Directory::Vdi,
        "rollback",
        FsNode::Command(Command::Rollback),
    ),
    static_entry(
        38,
        Directory::Vdi,
        "resize",
        FsNode::Command(Command::Resize),
    ),
    static_entry(
        39,
        Directory::Vdi,
        "delete",
        FsNode::Command(Command::Delete),
    ),
    static_entry(
        40,
        Directory::Vdi,
        "unlock",
        FsNode::Command(Command::Unlock),
    ),
    static_entry(
        48,
        Directory::Config,
        "page_cache",
        FsNode::Setting(Setting::PageCache),
    ),
    static_entry(
        49,
        Directory::Config,
        "object_cache",
        FsNode::Setting(Setting::ObjectCache),
    ),
    static_entry(
        50,
        Directory::Config,
        "sheep_info",
        FsNode::Setting(Setting::SheepInfo),
    ),
];

const fn static_entry(
    ino: u64,
    parent: Directory,
    name: &'static str,
    node: FsNode,
) -> StaticEntry {
    StaticEntry {
        ino: Ino(ino),
        parent,
        name,
        node,
    }
}

impl Directory {
    /// The directory's number.
    pub(crate) fn ino(self) -> Ino {
        match self {
            Self::Root => Ino::ROOT,
            Self::Cluster => Ino(2),
            Self::Node => Ino(3),
            Self::Vdi => Ino(4),
            Self::Config => Ino(5),
            Self::Volume => Ino(6),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn static_entries_are_unique() {
        let mut inos = HashSet::from([Ino::ROOT]);
        let mut names = HashSet::new();
        for entry in STATIC_ENTRIES {
            assert!(inos.insert(entry.ino) && entry.ino < Ino::FIRST_VOLUME);
            assert_eq!(entry.ino.of_text(1 << 40).report(), entry.ino);
            assert!(names.insert((entry.parent.ino(), entry.name)));
            if let FsNode::Directory(directory) = entry.node {
                assert_eq!(directory.ino(), entry.ino);
            }
        }
    }
}
