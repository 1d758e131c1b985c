//! Open files.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, RwLock};

use bytes::Bytes;

use crate::ino::{HandleId, Ino};
use crate::node::{Command, Setting};
use crate::volume::Volume;

/// What a handle leads to.
#[derive(Clone, Debug)]
pub(crate) enum OpenFile {
    /// A report as it was when it was opened.
    Text(Bytes),
    Command(Command),
    /// A setting, and its text when it was opened.
    Setting(Setting, Bytes),
    Volume(Arc<Volume>, Caching),
}

/// Whether a handle goes through the kernel's page cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Caching {
    /// What is answered is on the cluster.
    Direct,
    /// What is answered is on the cluster after the next sync.
    Cached,
}

/// All open files of a tree.
#[derive(Debug, Default)]
pub(crate) struct Handles {
    next: AtomicU64,
    open: RwLock<HashMap<u64, (Ino, OpenFile)>>,
}

impl Handles {
    pub(crate) fn insert(&self, ino: Ino, file: OpenFile) -> HandleId {
        let handle = self.next.fetch_add(1, Ordering::Relaxed);
        self.open
            .write()
            .expect("no one panics with the handles")
            .insert(handle, (ino, file));
        HandleId(handle)
    }

    pub(crate) fn get(&self, handle: HandleId) -> Option<OpenFile> {
        let open = self.open.read().expect("no one panics with the handles");
        open.get(&handle.0).map(|(_, file)| file.clone())
    }

    pub(crate) fn remove(&self, handle: HandleId) {
        self.open
            .write()
            .expect("no one panics with the handles")
            .remove(&handle.0);
    }

    /// Whether any handle leads to `ino`.
    pub(crate) fn is_open(&self, ino: Ino) -> bool {
        let open = self.open.read().expect("no one panics with the handles");
        open.values().any(|(of, _)| *of == ino)
    }
}
