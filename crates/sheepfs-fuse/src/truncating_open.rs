//! Which handle an open with `O_TRUNC` has truncated.
//!
//! The kernel carries such an open out as two requests: OPEN, without the flag,
//! and then SETATTR with size 0, without a handle. truncate(2) sends the same
//! SETATTR. But it looks its path up first, whereas nothing comes between the two
//! requests of an open that could be mistaken for it: both are sent by one thread
//! within one system call. So a truncation to 0 belongs to the handle that its
//! thread has just opened, unless the thread has looked the file up since.
//!
//! `FUSE_ATOMIC_O_TRUNC` would put the flag into OPEN. But then the kernel takes
//! the file for empty until it next asks for its size, whatever that is:
//! processes that have mapped the file die of SIGBUS, what they changed and the
//! kernel has not written yet is lost, and reads of a loop device or a virtual
//! machine find the end of the file.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use fuser::{FileHandle, INodeNo};

/// The thread of a request, when it is in a PID namespace that this process
/// does not see: all of these look the same.
const UNKNOWN_THREAD: u32 = 0;

/// Handles that may be in the middle of an open with `O_TRUNC`.
#[derive(Debug, Default)]
pub(crate) struct TruncatingOpens {
    /// Number of `opens`, for writes, which come often and mostly find none.
    count: AtomicUsize,
    opens: Mutex<Vec<Open>>,
}

#[derive(Debug)]
struct Open {
    thread: u32,
    ino: INodeNo,
    handle: FileHandle,
    /// An unseen thread has looked the file up since.
    ambiguous: bool,
}

impl TruncatingOpens {
    /// `thread` has opened a file to write, and may truncate it next.
    pub(crate) fn on_open(&self, thread: u32, ino: INodeNo, handle: FileHandle) {
        self.update(|opens| {
            opens.retain(|open| thread == UNKNOWN_THREAD || !open.is_of(thread, ino));
            opens.push(Open {
                thread,
                ino,
                handle,
                ambiguous: false,
            });
        });
    }

    /// `thread` has looked the file up: its open is over.
    pub(crate) fn on_lookup(&self, thread: u32, ino: INodeNo) {
        self.update_unless_empty(|opens| {
            opens.retain_mut(|open| {
                open.ambiguous |= open.is_of(thread, ino);
                // Of unseen threads it may have been another one.
                thread == UNKNOWN_THREAD || !open.is_of(thread, ino)
            });
        });
    }

    /// The handle was written through, or is closed: its open is over.
    pub(crate) fn on_use(&self, handle: FileHandle) {
        self.update_unless_empty(|opens| opens.retain(|open| open.handle != handle));
    }

    /// The handle through which `thread` truncates the file to 0 without naming
    /// one; `None` for truncate(2), and when it is not certain.
    pub(crate) fn take_truncating(&self, thread: u32, ino: INodeNo) -> Option<FileHandle> {
        self.update(|opens| {
            let mut candidates = (0..)
                .zip(&*opens)
                .filter(|(_, open)| open.is_of(thread, ino));
            match (candidates.next(), candidates.next()) {
                (Some((at, open)), None) if !open.ambiguous => Some(opens.remove(at).handle),
                _ => None,
            }
        })
    }

    fn update_unless_empty(&self, update: impl FnOnce(&mut Vec<Open>)) {
        if self.count.load(Ordering::Acquire) != 0 {
            self.update(update);
        }
    }

    fn update<T>(&self, update: impl FnOnce(&mut Vec<Open>) -> T) -> T {
        // Whole between any two statements.
        let mut opens = self.opens.lock().unwrap_or_else(PoisonError::into_inner);
        let changed = update(&mut opens);
        self.count.store(opens.len(), Ordering::Release);
        changed
    }
}

impl Open {
    fn is_of(&self, thread: u32, ino: INodeNo) -> bool {
        (self.thread, self.ino) == (thread, ino)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: INodeNo = INodeNo(7);
    const OTHER_FILE: INodeNo = INodeNo(8);

    fn handle(number: u64) -> Option<FileHandle> {
        Some(FileHandle(number))
    }

    #[test]
    fn truncation_right_after_open_belongs_to_the_handle() {
        let opens = TruncatingOpens::default();
        opens.on_open(100, FILE, FileHandle(1));
        opens.on_open(101, FILE, FileHandle(2));
        opens.on_open(101, OTHER_FILE, FileHandle(3));
        assert_eq!(opens.take_truncating(102, FILE), None);
        assert_eq!(opens.take_truncating(101, FILE), handle(2));
        assert_eq!(opens.take_truncating(101, FILE), None, "twice");
        assert_eq!(opens.take_truncating(100, FILE), handle(1));
        assert_eq!(opens.take_truncating(101, OTHER_FILE), handle(3));
    }

    #[test]
    fn truncation_by_path_belongs_to_no_handle() {
        let opens = TruncatingOpens::default();
        opens.on_open(100, FILE, FileHandle(1));
        opens.on_lookup(101, FILE);
        opens.on_lookup(100, OTHER_FILE);
        opens.on_lookup(100, FILE);
        assert_eq!(opens.take_truncating(100, FILE), None);
        opens.on_open(100, FILE, FileHandle(2));
        assert_eq!(opens.take_truncating(100, FILE), handle(2));
    }

    #[test]
    fn truncation_skips_handles_in_use_and_older_ones() {
        let opens = TruncatingOpens::default();
        opens.on_open(100, FILE, FileHandle(1));
        opens.on_use(FileHandle(1));
        assert_eq!(opens.take_truncating(100, FILE), None);
        // A file that is a mountpoint of its own is opened without a look-up.
        opens.on_open(100, FILE, FileHandle(2));
        opens.on_open(100, FILE, FileHandle(3));
        assert_eq!(opens.take_truncating(100, FILE), handle(3));
        assert_eq!(opens.take_truncating(100, FILE), None);
    }

    #[test]
    fn truncation_by_unknown_thread_needs_single_candidate() {
        let opens = TruncatingOpens::default();
        opens.on_open(UNKNOWN_THREAD, FILE, FileHandle(1));
        assert_eq!(opens.take_truncating(UNKNOWN_THREAD, FILE), handle(1));

        opens.on_open(UNKNOWN_THREAD, FILE, FileHandle(2));
        opens.on_lookup(UNKNOWN_THREAD, FILE);
        assert_eq!(
            opens.take_truncating(UNKNOWN_THREAD, FILE),
            None,
            "who looked it up?"
        );
        opens.on_open(UNKNOWN_THREAD, FILE, FileHandle(3));
        assert_eq!(
            opens.take_truncating(UNKNOWN_THREAD, FILE),
            None,
            "which of the two?"
        );
        opens.on_use(FileHandle(2));
        assert_eq!(opens.take_truncating(UNKNOWN_THREAD, FILE), handle(3));
    }
}
