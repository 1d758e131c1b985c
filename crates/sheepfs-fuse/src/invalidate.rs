//! Telling the kernel that a name or a file is not what it remembers.
//!
//! A notification can block: dropping a name takes the directory's lock, which
//! a lookup that waits for *us* may hold; dropping a cached file first writes
//! its dirty pages, through us. So they leave from a thread of their own, and
//! nobody waits for them. Nothing depends on when they arrive: names of files
//! are looked up at every use anyway (`convert::name_lifetime`).

use std::collections::HashSet;
use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;

use fuser::{INodeNo, Notifier};
use sheepfs_vfs::Invalidation;

/// What waits to be told. A set: it never holds more than the tree has files.
#[derive(Debug, Default)]
struct Waiting {
    names: HashSet<(u64, Vec<u8>)>,
    files: HashSet<u64>,
    closed: bool,
}

/// The thread that tells the kernel, and what it is to tell.
#[derive(Clone, Debug, Default)]
pub(crate) struct Invalidator {
    shared: Arc<(Mutex<Waiting>, Condvar)>,
}

impl Invalidator {
    /// Starts the thread; it ends after [`Self::close`].
    ///
    /// # Errors
    /// When the system has no thread left.
    pub(crate) fn start(notifier: Notifier) -> io::Result<Self> {
        let invalidator = Self::default();
        let own = invalidator.clone();
        thread::Builder::new()
            .name("invalidate".into())
            .spawn(move || own.run(&notifier))?;
        Ok(invalidator)
    }

    /// Has the kernel told, soon. Never blocks.
    pub(crate) fn post(&self, invalidation: Invalidation) {
        let mut waiting = self.lock();
        match invalidation {
            Invalidation::Entry { parent, name } => {
                waiting.names.insert((parent.0, name));
            }
            Invalidation::Inode(ino) => {
                waiting.files.insert(ino.0);
            }
        }
        self.shared.1.notify_one();
    }

    /// Ends the thread; what is still waiting is of no interest any more.
    pub(crate) fn close(&self) {
        self.lock().closed = true;
        self.shared.1.notify_one();
    }

    fn run(&self, notifier: &Notifier) {
        while let Some(told) = self.next() {
            for (parent, name) in told.names {
                let name = OsStr::from_bytes(&name);
                log(notifier.inval_entry(INodeNo(parent), name));
            }
            for ino in told.files {
                log(notifier.inval_inode(INodeNo(ino), 0, 0));
            }
        }
    }

    fn next(&self) -> Option<Waiting> {
        let mut waiting = self.lock();
        loop {
            if waiting.closed {
                return None;
            }
            if !waiting.names.is_empty() || !waiting.files.is_empty() {
                return Some(std::mem::take(&mut *waiting));
            }
            waiting = self
                .shared
                .1
                .wait(waiting)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        // Whole between any two statements.
        self.shared.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The only failure is an unmount that happens at the same time.
fn log(result: io::Result<()>) {
    if let Err(error) = result {
        tracing::debug!("the kernel took no notice of a change: {error}");
    }
}
