//! The end of the file as the handle that truncated it knows it.
//!
//! A volume keeps its size and its bytes when it is truncated. A program that
//! truncates a file and then leaves holes in it relies on zeros there, so the
//! handle remembers the end that it gave the file, and a write past that end
//! first discards the gap:
//!
//! ```text
//!   as written   |  discarded  |  the write  |  old bytes, kept
//! ---------------+-------------+-------------+------------------
//!               end         offset        new end
//! ```
//!
//! Nothing below the end is ever discarded, so a write there never waits for a
//! discard. The end moves under a lock, which is held while the gap in front of
//! a write is discarded: writes that would move the end wait, and a discard
//! that fails leaves the end where it was, so that a retry discards again.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::error::FsError;

/// The end of a handle that never truncated: every write lies below it.
const NOT_TRUNCATED: u64 = u64::MAX;

/// The end that one handle has given its file, if it has.
#[derive(Debug)]
pub(crate) struct FileEnd {
    end: AtomicU64,
    /// Held to change `end`, together with the discard that the change needs.
    change_lock: tokio::sync::Mutex<()>,
}

impl Default for FileEnd {
    fn default() -> Self {
        Self {
            end: AtomicU64::new(NOT_TRUNCATED),
            change_lock: tokio::sync::Mutex::default(),
        }
    }
}

impl FileEnd {
    /// Whether a write of `range` needs no discard and waits for none. If so,
    /// the end has moved to where the write ends.
    pub(crate) fn admit(&self, range: &Range<u64>) -> bool {
        if range.end <= self.get() {
            return true;
        }
        let Ok(_change_lock) = self.change_lock.try_lock() else {
            return false;
        };
        let end = self.get();
        if range.start <= end && end < range.end {
            self.set(range.end);
        }
        range.start <= end
    }

    /// Moves the end to where `range` ends, unless it is there already, after
    /// `discard` has made the bytes between the end and `range` zeros.
    ///
    /// # Errors
    /// That of `discard`; the end has not moved then.
    pub(crate) async fn extend<D>(
        &self,
        range: Range<u64>,
        discard: impl FnOnce(Range<u64>) -> D,
    ) -> Result<(), FsError>
    where
        D: Future<Output = Result<(), FsError>>,
    {
        let _change_lock = self.change_lock.lock().await;
        let end = self.get();
        if end < range.start {
            discard(end..range.start).await?;
        }
        if end < range.end {
            self.set(range.end);
        }
        Ok(())
    }

    /// Moves the end to `to`, as ftruncate(2) does, in a volume that had `size`
    /// bytes before it grew for this. `discard` makes the bytes zeros that come
    /// back into the file.
    ///
    /// # Errors
    /// That of `discard`; the end has not moved then.
    pub(crate) async fn truncate<D>(
        &self,
        to: u64,
        size: u64,
        discard: impl FnOnce(Range<u64>) -> D,
    ) -> Result<(), FsError>
    where
        D: Future<Output = Result<(), FsError>>,
    {
        let _change_lock = self.change_lock.lock().await;
        let end = self.get();
        // Until it is truncated, a file ends where its volume does.
        if end == NOT_TRUNCATED && to >= size {
            return Ok(());
        }
        // What the volume has grown by holds zeros.
        let back = end..to.min(size);
        if !back.is_empty() {
            discard(back).await?;
        }
        self.set(to);
        Ok(())
    }

    fn get(&self) -> u64 {
        self.end.load(Ordering::Acquire)
    }

    fn set(&self, end: u64) {
        self.end.store(end, Ordering::Release);
    }
}
