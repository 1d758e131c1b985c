//! Open files.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, RwLock};

use bytes::Bytes;

use crate::error::FsError;
use crate::ino::{HandleId, Ino};
use crate::node::{Command, Setting};
use crate::volume::{Losses, Volume};

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
#[derive(Clone, Debug)]
pub(crate) enum Caching {
    /// What is answered is on the cluster.
    Direct,
    /// What is answered is on the cluster after the next flush or sync. Losses up
    /// to these were said by a sync of this handle, or were before it.
    Cached(Arc<Mutex<Losses>>),
}

impl Caching {
    /// A cached handle that answers for what is lost from now on.
    pub(crate) fn from_now_on(volume: &Volume) -> Self {
        Self::Cached(Arc::new(Mutex::new(volume.losses())))
    }

    /// Waits until what was written is on the cluster and nothing is under way
    /// any more, or no sheep is reachable.
    ///
    /// # Errors
    /// As [`Volume::flush`], until a sync has said it.
    pub(crate) async fn flush(&self, volume: &Volume) -> Result<(), FsError> {
        match self {
            Self::Direct => {
                volume.settle_while_reachable().await;
                Ok(())
            }
            Self::Cached(said) => volume.flush_while_reachable(known(said)).await,
        }
    }

    /// Waits until what was written is as durable as the cluster makes it.
    ///
    /// # Errors
    /// As [`Volume::flush`], once, and as [`Volume::sync`].
    pub(crate) async fn sync(&self, volume: &Volume) -> Result<(), FsError> {
        if let Self::Cached(said) = self {
            let flushed = volume.flush(known(said)).await;
            if flushed.is_err() {
                *said.lock().expect("no one panics with the losses") = volume.losses();
                return flushed;
            }
        }
        volume.sync().await
    }
}

fn known(said: &Mutex<Losses>) -> Losses {
    *said.lock().expect("no one panics with the losses")
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
