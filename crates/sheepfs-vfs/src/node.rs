//! What stands behind an entry of the tree.

use std::sync::Arc;

use crate::ino::Ino;
use crate::report::{Format, Report};
use crate::volume::Volume;

/// What stands behind one entry of the tree. A new kind is a design change.
#[derive(Clone, Debug)]
pub(crate) enum Node {
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

/// The directories; there are no others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Directory {
    Root,
    Cluster,
    Node,
    Vdi,
    Config,
    Volume,
}

/// The files under `vdi/` that take a line.
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

/// An entry that is always there.
pub(crate) struct Fixed {
    pub(crate) ino: Ino,
    pub(crate) parent: Directory,
    pub(crate) name: &'static str,
    pub(crate) node: Node,
}

/// Every entry but the volumes. Numbers are fixed for good: they may be in use
/// in a script, and a kernel that remembers one must find the same file.
pub(crate) const FIXED: &[Fixed] = &[
    fixed(
        2,
        Directory::Root,
        "cluster",
        Node::Directory(Directory::Cluster),
    ),
    fixed(3, Directory::Root, "node", Node::Directory(Directory::Node)),
    fixed(4, Directory::Root, "vdi", Node::Directory(Directory::Vdi)),
    fixed(
        5,
        Directory::Root,
        "config",
        Node::Directory(Directory::Config),
    ),
    fixed(
        6,
        Directory::Root,
        "volume",
        Node::Directory(Directory::Volume),
    ),
    fixed(
        16,
        Directory::Cluster,
        "info",
        Node::Report(Report::ClusterInfo, Format::Text),
    ),
    fixed(
        17,
        Directory::Cluster,
        "info.json",
        Node::Report(Report::ClusterInfo, Format::Json),
    ),
    fixed(
        18,
        Directory::Node,
        "info",
        Node::Report(Report::NodeInfo, Format::Text),
    ),
    fixed(
        19,
        Directory::Node,
        "info.json",
        Node::Report(Report::NodeInfo, Format::Json),
    ),
    fixed(
        20,
        Directory::Node,
        "list",
        Node::Report(Report::NodeList, Format::Text),
    ),
    fixed(
        21,
        Directory::Node,
        "list.json",
        Node::Report(Report::NodeList, Format::Json),
    ),
    fixed(
        22,
        Directory::Vdi,
        "list",
        Node::Report(Report::VdiList, Format::Text),
    ),
    fixed(
        23,
        Directory::Vdi,
        "list.json",
        Node::Report(Report::VdiList, Format::Json),
    ),
    fixed(32, Directory::Vdi, "mount", Node::Command(Command::Mount)),
    fixed(
        33,
        Directory::Vdi,
        "unmount",
        Node::Command(Command::Unmount),
    ),
    fixed(34, Directory::Vdi, "create", Node::Command(Command::Create)),
    fixed(
        35,
        Directory::Vdi,
        "snapshot",
        Node::Command(Command::Snapshot),
    ),
    fixed(36, Directory::Vdi, "clone", Node::Command(Command::Clone)),
    fixed(
        37,
        Directory::Vdi,
        "rollback",
        Node::Command(Command::Rollback),
    ),
    fixed(38, Directory::Vdi, "resize", Node::Command(Command::Resize)),
    fixed(39, Directory::Vdi, "delete", Node::Command(Command::Delete)),
    fixed(40, Directory::Vdi, "unlock", Node::Command(Command::Unlock)),
    fixed(
        48,
        Directory::Config,
        "page_cache",
        Node::Setting(Setting::PageCache),
    ),
    fixed(
        49,
        Directory::Config,
        "object_cache",
        Node::Setting(Setting::ObjectCache),
    ),
    fixed(
        50,
        Directory::Config,
        "sheep_info",
        Node::Setting(Setting::SheepInfo),
    ),
];

const fn fixed(ino: u64, parent: Directory, name: &'static str, node: Node) -> Fixed {
    Fixed {
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
    fn numbers_and_names_are_unique_and_directories_know_theirs() {
        let mut inos = HashSet::from([Ino::ROOT]);
        let mut names = HashSet::new();
        for entry in FIXED {
            assert!(inos.insert(entry.ino) && entry.ino < Ino::FIRST_VOLUME);
            assert_eq!(entry.ino.of_text(1 << 40).report(), entry.ino);
            assert!(names.insert((entry.parent.ino(), entry.name)));
            if let Node::Directory(directory) = entry.node {
                assert_eq!(directory.ino(), entry.ino);
            }
        }
    }
}
