//! The open handles of a tree.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, RwLock};

use bytes::Bytes;

use super::open_volume::OpenVolume;
use crate::ino::{HandleId, Ino};
use crate::node::{Command, Setting};
use crate::poison;
use crate::report::ReportText;

/// The file of a handle.
#[derive(Clone)]
pub(crate) enum OpenFile {
    /// A report file with the text that it had at open.
    Text(Ino, Arc<ReportText>),
    Command(Command),
    /// A setting, and its text at open.
    Setting(Setting, Bytes),
    Volume(Arc<OpenVolume>),
}

/// All open files of a tree.
#[derive(Default)]
pub(crate) struct Handles {
    next: AtomicU64,
    open: RwLock<HashMap<u64, (Ino, OpenFile)>>,
}

impl Handles {
    pub(crate) fn insert(&self, ino: Ino, file: OpenFile) -> HandleId {
        let handle = self.next.fetch_add(1, Ordering::Relaxed);
        poison::write(&self.open).insert(handle, (ino, file));
        HandleId(handle)
    }

    pub(crate) fn get(&self, handle: HandleId) -> Option<OpenFile> {
        let open = poison::read(&self.open);
        open.get(&handle.0).map(|(_, file)| file.clone())
    }

    pub(crate) fn remove(&self, handle: HandleId) {
        poison::write(&self.open).remove(&handle.0);
    }

    /// Whether all handles of `file` have this text.
    pub(crate) fn all_have(&self, file: Ino, text: &Arc<ReportText>) -> bool {
        let open = poison::read(&self.open);
        open.values().all(|(_, other)| match other {
            OpenFile::Text(of, other) => *of != file || Arc::ptr_eq(other, text),
            OpenFile::Command(_) | OpenFile::Setting(..) | OpenFile::Volume(..) => true,
        })
    }

    /// Whether any handle refers to `ino`.
    pub(crate) fn is_open(&self, ino: Ino) -> bool {
        let open = poison::read(&self.open);
        open.values().any(|(of, _)| *of == ino)
    }
}
