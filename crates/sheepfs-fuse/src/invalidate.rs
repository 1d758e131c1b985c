//! Invalidation of entries and pages in the kernel's caches.
//!
//! A notification can block: invalidating an entry takes the lock of the directory,
//! which a lookup that waits for *us* may hold; invalidating a cached file first
//! writes its dirty pages, through us. So a thread of its own sends them. Event
//! loops never wait for it; tasks of the tree may. Entries of files are not cached
//! (`convert::entry_ttl`), so their order does not matter, and files come first.

use std::collections::{HashMap, HashSet};
use std::ffi::OsStr;
use std::io;
use std::ops::Range;
use std::os::unix::ffi::OsStrExt as _;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread;

use bytes::Bytes;
use fuser::{INodeNo, Notifier};
use sheepfs_vfs::Invalidation;
use tokio::sync::oneshot;

use crate::poison;

/// Pending notifications; at most one of each kind per file of the tree.
#[derive(Debug, Default)]
struct Waiting {
    names: HashSet<(u64, Vec<u8>)>,
    files: HashSet<u64>,
    texts: HashMap<u64, Bytes>,
    /// For each file the smallest range that covers all pages to drop.
    pages: HashMap<u64, Range<u64>>,
    /// Dropped when the notifications of files, texts and pages have been sent.
    waiters: Vec<oneshot::Sender<()>>,
    closed: bool,
}

impl Waiting {
    fn has_any(&self) -> bool {
        !(self.names.is_empty()
            && self.files.is_empty()
            && self.texts.is_empty()
            && self.pages.is_empty())
    }
}

/// Queue of notifications and the thread that sends them.
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

    /// Queues a notification; never blocks. The returned channel closes when it has
    /// been sent or the mount has ended. For an entry it closes immediately, because
    /// waiting for the lock of the directory could deadlock.
    pub(crate) fn post(&self, invalidation: Invalidation) -> oneshot::Receiver<()> {
        let (tell, told) = oneshot::channel();
        let mut waiting = self.lock();
        if waiting.closed {
            return told;
        }
        let is_name = matches!(invalidation, Invalidation::Entry { .. });
        match invalidation {
            Invalidation::Entry { parent, name } => {
                waiting.names.insert((parent.0, name));
            }
            Invalidation::Inode(ino) => {
                waiting.files.insert(ino.0);
            }
            Invalidation::Text { ino, text } => {
                waiting.texts.insert(ino.0, text);
            }
            Invalidation::Pages { ino, range } => {
                let all = waiting.pages.entry(ino.0).or_insert(range.clone());
                *all = all.start.min(range.start)..all.end.max(range.end);
            }
        }
        if !is_name {
            // The tree retries while a notification blocks: forget waiters that timed out.
            waiting.waiters.retain(|tell| !tell.is_closed());
            waiting.waiters.push(tell);
        }
        self.shared.1.notify_one();
        told
    }

    /// Ends the thread and discards pending notifications.
    pub(crate) fn close(&self) {
        *self.lock() = Waiting {
            closed: true,
            ..Waiting::default()
        };
        self.shared.1.notify_one();
    }

    fn run(&self, notifier: &Notifier) {
        while let Some(told) = self.next() {
            for ino in told.files {
                log(notifier.inval_inode(INodeNo(ino), 0, 0));
            }
            for (ino, text) in &told.texts {
                log(notifier.inval_inode(INodeNo(*ino), 0, 0));
                log(lengthen(notifier, INodeNo(*ino), text));
            }
            for (ino, range) in told.pages {
                // The kernel counts bytes of a file in 63 bits.
                let [start, len] = [range.start, range.end - range.start].map(u64::cast_signed);
                log(notifier.inval_inode(INodeNo(ino), start, len));
            }
            // Closing the channels wakes the waiting tasks.
            drop(told.waiters);
            for (parent, name) in told.names {
                let name = OsStr::from_bytes(&name);
                log(notifier.inval_entry(INodeNo(parent), name));
            }
        }
    }

    fn next(&self) -> Option<Waiting> {
        let mut waiting = self.lock();
        loop {
            if waiting.closed {
                return None;
            }
            if waiting.has_any() {
                return Some(std::mem::take(&mut *waiting));
            }
            waiting = poison::wait(&self.shared.1, waiting);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        poison::lock(&self.shared.0)
    }
}

/// Extends the cached file size to the length of `text` by storing its last byte.
/// A shorter text needs no notification: the kernel finds the end when it reads.
fn lengthen(notifier: &Notifier, ino: INodeNo, text: &[u8]) -> io::Result<()> {
    match text.split_last() {
        Some((last, before)) => notifier.store(ino, before.len() as u64, &[*last]),
        None => Ok(()),
    }
}

/// Notifications fail only during an unmount.
fn log(result: io::Result<()>) {
    if let Err(error) = result {
        tracing::debug!("the kernel took no notice of a change: {error}");
    }
}

#[cfg(test)]
mod tests {
    use sheepfs_vfs::Ino;

    use super::*;

    #[test]
    fn invalidation_of_pages_covers_all_ranges() {
        let invalidator = Invalidator::default();
        let pages = |ino, range| Invalidation::Pages {
            ino: Ino(ino),
            range,
        };
        let mut first = invalidator.post(pages(7, 4096..8192));
        drop(invalidator.post(pages(7, 0..10)));
        drop(invalidator.post(pages(8, 5..6)));
        assert!(invalidator.lock().has_any(), "the thread would sleep");
        let told = invalidator.next().expect("the invalidator is not closed");
        assert_eq!(told.pages, HashMap::from([(7, 0..8192), (8, 5..6)]));
        assert!(!invalidator.lock().has_any());

        assert_eq!(first.try_recv(), Err(oneshot::error::TryRecvError::Empty));
        drop(told);
        assert_eq!(first.try_recv(), Err(oneshot::error::TryRecvError::Closed));
    }

    #[test]
    fn invalidation_of_file_completes_after_notification() {
        let ino = Ino(7);
        for invalidation in [
            Invalidation::Inode(ino),
            Invalidation::Text {
                ino,
                text: Bytes::from_static(b"text"),
            },
            Invalidation::Pages { ino, range: 0..1 },
        ] {
            let invalidator = Invalidator::default();
            let what = format!("{invalidation:?}");
            let mut asked = invalidator.post(invalidation);
            let told = invalidator.next().expect("the invalidator is not closed");
            assert_eq!(
                asked.try_recv(),
                Err(oneshot::error::TryRecvError::Empty),
                "{what}"
            );
            drop(told);
            assert_eq!(
                asked.try_recv(),
                Err(oneshot::error::TryRecvError::Closed),
                "{what}"
            );
        }
    }
}
