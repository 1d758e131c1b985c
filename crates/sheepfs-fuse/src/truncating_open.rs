//! Finds the handle of an open with `O_TRUNC`.
//!
//! The kernel splits such an open into two requests: OPEN, without the flag, and
//! SETATTR with size 0, without a handle. truncate(2) sends the same SETATTR, but a
//! LOOKUP before it. The two requests of an open come from one thread within one
//! system call. So a truncation to 0 belongs to the handle that its thread has just
//! opened, unless the thread has looked up the file since.
//!
//! `FUSE_ATOMIC_O_TRUNC` would pass the flag in OPEN. But then the kernel assumes an
//! empty file until it next requests the size, although a volume keeps it: processes
//! that have mapped the file get SIGBUS, dirty pages are lost, and loop devices and
//! virtual machines read past the end of the file.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use fuser::{FileHandle, INodeNo};

use crate::poison;

/// Thread id of requests from PID namespaces that are not visible here; different
/// threads share it.
const UNKNOWN_THREAD: u32 = 0;

/// Handles that may be in the middle of an open with `O_TRUNC`.
#[derive(Debug, Default)]
pub(crate) struct TruncatingOpens {
    /// Length of `opens`: lets writes skip the lock, because it is usually empty.
    count: AtomicUsize,
    opens: Mutex<Vec<Open>>,
}

#[derive(Debug)]
struct Open {
    thread: u32,
    ino: INodeNo,
    handle: FileHandle,
    /// A thread with unknown id has looked up the file since.
    ambiguous: bool,
}

impl TruncatingOpens {
    /// `thread` has opened the file for writing and may truncate it next.
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

    /// `thread` has looked up the file, so its open has completed.
    pub(crate) fn on_lookup(&self, thread: u32, ino: INodeNo) {
        self.update_unless_empty(|opens| {
            opens.retain_mut(|open| {
                open.ambiguous |= open.is_of(thread, ino);
                // With an unknown id it may have been another thread.
                thread == UNKNOWN_THREAD || !open.is_of(thread, ino)
            });
        });
    }

    /// The handle was written to or closed, so its open has completed.
    pub(crate) fn on_use(&self, handle: FileHandle) {
        self.update_unless_empty(|opens| opens.retain(|open| open.handle != handle));
    }

    /// Takes the handle that a SETATTR of `thread` with size 0 belongs to; `None` for
    /// truncate(2), and if there are several candidates.
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
        let mut opens = poison::lock(&self.opens);
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
