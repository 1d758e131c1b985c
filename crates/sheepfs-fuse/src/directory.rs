//! Listings of open directories.
//!
//! The kernel reads a directory piece by piece, with an offset we choose: here
//! the number of entries before. So that names which come and go meanwhile
//! neither repeat nor hide others, a handle keeps the listing it began with
//! until it is rewound.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use fuser::FileHandle;
use sheepfs_vfs::Entry;

type Listing = Arc<[Entry]>;

/// The listing of each open directory, by handle.
#[derive(Debug, Default)]
pub(crate) struct OpenDirectories {
    next: AtomicU64,
    listings: Mutex<HashMap<u64, Listing>>,
}

impl OpenDirectories {
    /// A new handle, with nothing listed yet.
    pub(crate) fn open(&self) -> FileHandle {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        self.lock().insert(number, Arc::default());
        FileHandle(number)
    }

    /// What the handle listed when it was read from the start.
    pub(crate) fn listing(&self, handle: FileHandle) -> Listing {
        self.lock().get(&handle.0).cloned().unwrap_or_default()
    }

    /// Starts the handle over with what the directory holds now.
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
        // The map is whole between any two statements, so a panic elsewhere
        // leaves nothing half done.
        self.listings.lock().unwrap_or_else(PoisonError::into_inner)
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
