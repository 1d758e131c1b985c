//! Invalidation of the kernel's caches.

use std::ops::Range;
use std::sync::OnceLock;
use std::time::Duration;

use futures_util::future::BoxFuture;

use crate::attributes::Invalidation;
use crate::ino::Ino;
use crate::node::Directory;
use crate::report::ReportText;

/// Longest wait for an invalidation. The TTL of volatile attributes has expired by
/// then as well.
const INVALIDATE_TIMEOUT: Duration = Duration::from_secs(1);

/// Invalidates an entry of the kernel's cache; the future ends when that is done.
pub(super) type Invalidator = Box<dyn Fn(Invalidation) -> BoxFuture<'static, ()> + Send + Sync>;

/// The kernel's cache. Nothing is cached until an [`Invalidator`] is set.
#[derive(Default)]
pub(crate) struct KernelCache {
    invalidator: OnceLock<Invalidator>,
}

impl KernelCache {
    /// Only the first call counts.
    pub(super) fn set_invalidator(&self, invalidator: Invalidator) {
        let _already_set = self.invalidator.set(invalidator);
    }

    /// Starts an invalidation and does not wait for it.
    pub(crate) fn invalidate(&self, what: Invalidation) {
        if let Some(invalidator) = self.invalidator.get() {
            // The notification is queued already; the future only waits for its end.
            drop(invalidator(what));
        }
    }

    /// Invalidates the name of a detached volume. The name of a volume that is attached
    /// again is not invalidated: the kernel would show a bind mount of it as deleted.
    pub(crate) fn invalidate_volume_name(&self, name: &[u8]) {
        self.invalidate(Invalidation::Entry {
            parent: Directory::Volume.ino(),
            name: name.to_vec(),
        });
    }

    /// Invalidates the cached attributes of a file and waits for that.
    pub(crate) async fn drop_attributes(&self, ino: Ino) {
        self.invalidate_and_wait(Invalidation::Inode(ino)).await;
    }

    /// Replaces the text and the length that the kernel caches of a file, and waits for
    /// that; false on a timeout.
    pub(crate) async fn change_text(&self, ino: Ino, text: &ReportText) -> bool {
        let text = text.bytes.clone();
        self.invalidate_and_wait(Invalidation::Text { ino, text })
            .await
    }

    /// Drops the cached pages of a range and waits for that, up to a timeout; the
    /// kernel still drops them afterwards.
    pub(crate) async fn drop_pages(&self, ino: Ino, range: Range<u64>) {
        if range.is_empty() {
            return;
        }
        if !self
            .invalidate_and_wait(Invalidation::Pages { ino, range })
            .await
        {
            tracing::debug!(
                "the kernel has not dropped discarded pages of file {} yet",
                ino.0
            );
        }
    }

    /// False on a timeout.
    async fn invalidate_and_wait(&self, what: Invalidation) -> bool {
        let Some(invalidator) = self.invalidator.get() else {
            return true;
        };
        tokio::time::timeout(INVALIDATE_TIMEOUT, invalidator(what))
            .await
            .is_ok()
    }
}
