//! Listings of open directories.
//!
//! The kernel reads a directory in several requests with an offset of our choice:
//! the number of the entry. Each handle keeps a snapshot of the listing until it is
//! rewound, so that names created or removed in between neither repeat nor hide
//! others.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use fuser::FileHandle;
use sheepfs_vfs::Entry;

use crate::poison;

type Listing = Arc<[Entry]>;

/// The listing of each open directory, by handle.
#[derive(Debug, Default)]
pub(crate) struct OpenDirectories {
    next: AtomicU64,
    listings: Mutex<HashMap<u64, Listing>>,
}

impl OpenDirectories {
    /// Returns a new handle with an empty listing.
    pub(crate) fn open(&self) -> FileHandle {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        self.lock().insert(number, Arc::default());
        FileHandle(number)
    }

    /// The listing taken when the handle was last read from the start.
    pub(crate) fn listing(&self, handle: FileHandle) -> Listing {
        self.lock().get(&handle.0).cloned().unwrap_or_default()
    }

    /// Replaces the listing of the handle (rewinddir).
    pub(crate) fn restart(&self, handle: FileHandle, entries: Vec<Entry>) -> Listing {
        let listing: Listing = entries.into();
        if let Some(kept) = self.lock().get_mut(&handle.0) {
            *kept = Arc::clone(&listing);
        }
        listing
    }

    /// Forgets the handle.
    pub(crate) fn close(&self, handle: FileHandle) {
        self.lock().remove(&handle.0);
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<u64, Listing>> {
        poison::lock(&self.listings)
    }
}

#[cfg(test)]
mod tests {
    use sheepfs_vfs::{FileKind, Ino};

    use super::*;

    fn entry(name: &str) -> Entry {
        Entry {
            ino: Ino(7),
            kind: FileKind::Volume,
            name: name.into(),
        }
    }

    #[test]
    fn readdir_keeps_listing_until_rewinddir() {
        let open = OpenDirectories::default();
        let (first, second) = (open.open(), open.open());
        open.restart(first, vec![entry("a")]);
        open.restart(second, vec![entry("a"), entry("b")]);
        assert_eq!(open.listing(first).len(), 1);
        open.restart(first, vec![]);
        assert_eq!(open.listing(first).len(), 0);
        assert_eq!(open.listing(second).len(), 2);
    }

    #[test]
    fn readdir_closed_handle_is_forgotten() {
        let open = OpenDirectories::default();
        let handle = open.open();
        open.restart(handle, vec![entry("a")]);
        open.close(handle);
        open.restart(handle, vec![entry("a")]);
        assert!(open.lock().is_empty());
    }
}
