//! The namespace of the tree: its directories and files.

use std::sync::Arc;

use super::volume_table::VolumeTable;
use crate::attributes::{Entry, FileKind};
use crate::error::FsError;
use crate::ino::Ino;
use crate::node::{Directory, FsNode, STATIC_ENTRIES, StaticEntry};

pub(crate) struct Namespace {
    volumes: Arc<VolumeTable>,
}

impl Namespace {
    pub(super) fn new(volumes: Arc<VolumeTable>) -> Self {
        Self { volumes }
    }

    /// The node of a number.
    ///
    /// # Errors
    /// `NotFound`.
    pub(super) fn node(&self, ino: Ino) -> Result<FsNode, FsError> {
        if ino == Ino::ROOT {
            return Ok(FsNode::Directory(Directory::Root));
        }
        if let Some(volume) = self.volumes.get(ino) {
            return Ok(FsNode::Volume(volume));
        }
        let fixed = STATIC_ENTRIES
            .iter()
            .find(|entry| entry.ino == ino.report());
        Ok(fixed.ok_or(FsError::NotFound)?.node.clone())
    }

    /// The directory that `ino` is in; the root is in itself.
    ///
    /// # Errors
    /// `NotFound`.
    pub(super) fn parent(&self, ino: Ino) -> Result<Directory, FsError> {
        if let FsNode::Volume(_) = self.node(ino)? {
            return Ok(Directory::Volume);
        }
        let fixed = STATIC_ENTRIES
            .iter()
            .find(|entry| entry.ino == ino.report());
        Ok(fixed.map_or(Directory::Root, |entry| entry.parent))
    }

    /// The file or directory of a name in directory `parent`.
    ///
    /// # Errors
    /// `NotFound`, `NotDirectory`.
    pub(super) fn child(&self, parent: Ino, name: &[u8]) -> Result<(Ino, FsNode), FsError> {
        let directory = self.directory(parent)?;
        if directory == Directory::Volume {
            let (ino, volume) = self.volumes.named(name).ok_or(FsError::NotFound)?;
            return Ok((ino, FsNode::Volume(volume)));
        }
        let entry = STATIC_ENTRIES
            .iter()
            .find(|entry| entry.parent == directory && entry.name.as_bytes() == name)
            .ok_or(FsError::NotFound)?;
        Ok((entry.ino, entry.node.clone()))
    }

    /// The entries of a directory, without `.` and `..`, as of now.
    ///
    /// # Errors
    /// `NotFound`, `NotDirectory`.
    pub(super) fn readdir(&self, ino: Ino) -> Result<Vec<Entry>, FsError> {
        let directory = self.directory(ino)?;
        if directory == Directory::Volume {
            let entry = |(name, ino)| Entry {
                ino,
                kind: FileKind::Volume,
                name,
            };
            return Ok(self.volumes.names().into_iter().map(entry).collect());
        }
        let inside = STATIC_ENTRIES
            .iter()
            .filter(|entry| entry.parent == directory);
        let entry = |fixed: &StaticEntry| Entry {
            ino: fixed.ino,
            kind: match fixed.node {
                FsNode::Directory(_) => FileKind::Directory,
                _ => FileKind::Text,
            },
            name: fixed.name.into(),
        };
        Ok(inside.map(entry).collect())
    }

    fn directory(&self, ino: Ino) -> Result<Directory, FsError> {
        match self.node(ino)? {
            FsNode::Directory(directory) => Ok(directory),
            _ => Err(FsError::NotDirectory),
        }
    }
}
