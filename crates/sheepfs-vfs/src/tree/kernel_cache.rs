//! What the kernel caches of the tree, and is told to forget.

use std::ops::Range;
use std::sync::OnceLock;
use std::time::Duration;

use futures_util::future::BoxFuture;

use crate::attributes::Invalidation;
use crate::ino::Ino;
use crate::node::Directory;
use crate::report::ReportText;

/// Longest wait for the kernel to take notice; attributes that may change have
/// expired by then as well.
const INVALIDATE_TIMEOUT: Duration = Duration::from_secs(1);

/// Has the kernel forget something; the future ends when it has.
pub(super) type Invalidator = Box<dyn Fn(Invalidation) -> BoxFuture<'static, ()> + Send + Sync>;

/// The kernel's cache. It has nothing to forget until an [`Invalidator`] is set.
#[derive(Default)]
pub(crate) struct KernelCache {
    invalidator: OnceLock<Invalidator>,
}

impl KernelCache {
    /// Only the first call counts.
    pub(super) fn set_invalidator(&self, invalidator: Invalidator) {
        let _already_set = self.invalidator.set(invalidator);
    }

    /// Has the kernel forget something, soon.
    pub(crate) fn invalidate(&self, what: Invalidation) {
        if let Some(invalidator) = self.invalidator.get() {
            // It happens whether or not anybody waits for it.
            drop(invalidator(what));
        }
    }

    /// Has the kernel forget the name of a volume that is not attached any more. A
    /// name that is attached anew stays: a bind mount of a forgotten one is shown
    /// as deleted.
    pub(crate) fn invalidate_volume_name(&self, name: &[u8]) {
        self.invalidate(Invalidation::Entry {
            parent: Directory::Volume.ino(),
            name: name.to_vec(),
        });
    }

    /// Returns when the kernel does not believe the attributes any more that it
    /// was told of a file before.
    pub(crate) async fn drop_attributes(&self, ino: Ino) {
        self.invalidate_and_wait(Invalidation::Inode(ino)).await;
    }

    /// Returns when the kernel knows which text a file has become, and how long
    /// it is; false when it is slow to take notice.
    pub(crate) async fn change_text(&self, ino: Ino, text: &ReportText) -> bool {
        let text = text.bytes.clone();
        self.invalidate_and_wait(Invalidation::Text { ino, text })
            .await
    }

    /// Has the kernel drop its pages of a range, and waits until it has; the
    /// kernel does so later when that takes long.
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

    /// False when the kernel is slow.
    async fn invalidate_and_wait(&self, what: Invalidation) -> bool {
        let Some(invalidator) = self.invalidator.get() else {
            return true;
        };
        tokio::time::timeout(INVALIDATE_TIMEOUT, invalidator(what))
            .await
            .is_ok()
    }
}
