//! A VDI attached as a range of bytes.
//!
//! ```text
//! read:    slot 0       -> zeros, no request
//!          slot V or P  -> READ_OBJ
//! write:   slot V       -> WRITE_OBJ                         (one round trip)
//!          slot 0 or P  -> guard, CREATE (copy of P), index  (three in sequence)
//! ```
//!
//! V is the attached VDI's own VID, P an ancestor's. Data goes first, then the
//! index, then the answer: a crash in between leaves an object nobody names,
//! never a slot that names nothing. A writer that begins one object after the
//! other finds the next one made [`ahead`] of it.
//!
//! Requests of one object are sent from the calling thread and completed where
//! the answer is read; everything longer runs as a task, which finishes even
//! when nobody waits for it any more.
//!
//! Someone may take a snapshot at any moment. Then V is read-only, and
//! [`reload`] moves the volume to the new working VDI without losing a write
//! that was acknowledged. A hypervolume cannot have snapshots.

mod ahead;
mod behind;
mod doubt;
mod facts;
mod object_map;
mod punch;
mod read;
mod reload;
mod revalidate;
mod slot_query;
mod write;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, RwLock, Weak};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use sheep_client::{Client, ClientError, IndexTree, VdiInfo, VdiSelector, WhichVersion};
use sheep_proto::inode::packed_seconds;
use sheep_proto::{ObjectIndex, ResultCode, Vid};
use tokio::runtime::Handle;
use tokio::time::Instant;

use self::ahead::Ahead;
use self::behind::Behind;
pub use self::behind::Losses;
use self::object_map::{ObjectMap, Owners};
use self::revalidate::Freshness;
use self::slot_query::SlotQueries;
use crate::error::FsError;
use crate::index_writer::IndexWriter;
use crate::slot_guard::SlotGuards;
use crate::write_tracker::WriteTracker;

/// Runs once with the outcome of a read or write, on any thread; it must not block.
pub type Done<T> = Box<dyn FnOnce(Result<T, FsError>) + Send>;

/// How often a VDI that changes between look-up and reading is looked up again.
const OPEN_TRIES: u32 = 8;
/// Objects of one request handled at once.
const PARALLEL_CHUNKS: usize = 16;

/// An attached VDI.
#[derive(Debug)]
pub struct Volume {
    me: Weak<Volume>,
    client: Client,
    selector: VdiSelector,
    writable: bool,
    /// Whether a lock is held and must go back.
    locked: bool,
    runtime: Handle,
    head: RwLock<Head>,
    /// One reload at a time; when the last one found the VDI frozen.
    reloading: tokio::sync::Mutex<Option<Instant>>,
    /// A VID whose lock was asked for without an answer.
    lock_asked: tokio::sync::Mutex<Option<Vid>>,
    guards: Arc<SlotGuards>,
    /// Guards of the objects that a reload brings over, while those who wait
    /// for it hold the others.
    moving: Arc<SlotGuards>,
    index_writer: Arc<IndexWriter>,
    writes: WriteTracker,
    behind: Behind,
    ahead: Ahead,
    /// A write was begun since the last sync.
    dirty: AtomicBool,
    /// The VDI is gone; nothing may be read or written any more.
    stale: AtomicBool,
    opened: Instant,
    header_asked: Freshness,
    index_asked: Freshness,
    slot_queries: SlotQueries,
    /// One look for a snapshot at a time: who comes second waits for its answer.
    syncing: tokio::sync::Mutex<()>,
    modified: Mutex<SystemTime>,
}

/// The VDI behind a volume at the moment, and its index.
#[derive(Debug)]
struct Head {
    info: VdiInfo,
    map: ObjectMap,
}

/// How to attach a VDI.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VolumeOptions {
    /// Refuse every write.
    pub read_only: bool,
    /// Take the VDI's lock, which only means something in a cluster formatted
    /// with locking.
    pub lock: bool,
}

impl Head {
    /// Reads a VDI's facts and index; `None` when it was deleted. The tree is a
    /// hypervolume's.
    async fn load(
        client: &Client,
        vid: Vid,
    ) -> Result<Option<(Self, Option<IndexTree>)>, ClientError> {
        let Some(info) = client.info(vid).await? else {
            return Ok(None);
        };
        if !info.hypervolume {
            let owners = read_index(client, &info).await?;
            let map = ObjectMap::new(vid, owners);
            return Ok(Some((Self { info, map }, None)));
        }
        let tree = client.read_tree(&info).await?;
        let map = ObjectMap::new(vid, tree_owners(&tree, &info));
        Ok(Some((Self { info, map }, Some(tree))))
    }
}

/// Reads a flat index.
async fn read_index(client: &Client, info: &VdiInfo) -> Result<Owners, ClientError> {
    let mut owners = Owners::default();
    client
        .for_each_slot(info, |index, owner| owners.set(index, Some(owner)))
        .await?;
    Ok(owners)
}

/// The slots of a hypervolume that lie inside it.
fn tree_owners(tree: &IndexTree, info: &VdiInfo) -> Owners {
    let mut owners = Owners::default();
    let inside = |index: ObjectIndex| u64::from(index.0) < info.object_count();
    tree.slots()
        .filter(|&(index, _)| inside(index))
        .for_each(|(index, owner)| owners.set(index, Some(owner)));
    owners
}

impl Volume {
    /// Attaches a VDI: the working one to read and write, a snapshot to read.
    ///
    /// # Errors
    /// `Cluster` with the refusal when there is no such VDI or someone else has
    /// its lock.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub async fn open(
        client: Client,
        selector: VdiSelector,
        options: VolumeOptions,
    ) -> Result<Arc<Self>, FsError> {
        let working = selector.which == WhichVersion::Working;
        let locked = options.lock && working && !options.read_only;
        let (head, tree) = Self::find_and_load(&client, &selector, locked).await?;
        let writable = working && !options.read_only;
        let modified = match head.info.snap_ctime {
            0 => SystemTime::now(),
            snapped => UNIX_EPOCH + Duration::from_secs(packed_seconds(snapped)),
        };
        Ok(Arc::new_cyclic(|me| Self {
            me: me.clone(),
            index_writer: IndexWriter::new(client.clone(), tree),
            client,
            selector,
            writable,
            locked,
            runtime: Handle::current(),
            head: RwLock::new(head),
            reloading: tokio::sync::Mutex::default(),
            lock_asked: tokio::sync::Mutex::default(),
            guards: Arc::default(),
            moving: Arc::default(),
            opened: Instant::now(),
            syncing: tokio::sync::Mutex::default(),
            writes: WriteTracker::default(),
            behind: Behind::default(),
            ahead: Ahead::default(),
            dirty: AtomicBool::new(false),
            stale: AtomicBool::new(false),
            header_asked: Freshness::default(),
            index_asked: Freshness::default(),
            slot_queries: SlotQueries::default(),
            modified: Mutex::new(modified),
        }))
    }

    async fn find_and_load(
        client: &Client,
        selector: &VdiSelector,
        locked: bool,
    ) -> Result<(Head, Option<IndexTree>), FsError> {
        for _ in 0..OPEN_TRIES {
            let vid = if locked {
                client.lock(selector).await?
            } else {
                client.find(selector).await?
            };
            let loaded = Head::load(client, vid).await;
            let working = selector.which == WhichVersion::Working;
            match loaded {
                Ok(Some(loaded)) if loaded.0.info.size > loaded.0.info.max_size() => {
                    if locked {
                        client.release(vid).await?;
                    }
                    return Err(FsError::Invalid(format!(
                        "{selector} has {} bytes, more than its index can name",
                        loaded.0.info.size
                    )));
                }
                Ok(Some(loaded)) if loaded.0.info.is_snapshot() != working => return Ok(loaded),
                // Deleted, or turned into a snapshot, since it was found.
                Ok(_) if !locked => {}
                Ok(_) => client.release(vid).await?,
                Err(error) => {
                    if locked {
                        client.release(vid).await?;
                    }
                    return Err(error.into());
                }
            }
        }
        Err(FsError::Stale(selector.to_string()))
    }

    /// Which VDI this is, as it was asked for.
    pub fn selector(&self) -> &VdiSelector {
        &self.selector
    }

    /// Whether it can be written.
    pub fn is_writable(&self) -> bool {
        self.writable
    }

    /// The facts of the VDI as last seen.
    pub fn info(&self) -> VdiInfo {
        self.head().info.clone()
    }

    /// Bytes of the volume.
    pub fn size(&self) -> u64 {
        self.head().info.size
    }

    /// Bytes of the objects that exist, inherited ones included.
    pub fn allocated(&self) -> u64 {
        let head = self.head();
        head.map.allocated().saturating_mul(head.info.object_size())
    }

    /// When it was attached, last written through this volume, or seen to have
    /// been changed by others, whichever is latest: what others did before cannot
    /// be known, and a backup must not skip it. A snapshot's is when it was taken.
    pub fn modified(&self) -> SystemTime {
        *self.modified.lock().expect("no one panics with the time")
    }

    /// Returns once every write that was acknowledged before is as durable as
    /// the cluster makes it.
    ///
    /// A sheep answers a write when it is (protocol 7.7), so what is left is to
    /// wait for those on their way, gathered ones included, and to see that none
    /// of them was overtaken by a snapshot. What became of gathered ones is said
    /// by [`Volume::flush`].
    ///
    /// # Errors
    /// `VolumeIo` when the cluster does not answer, `Stale`.
    pub async fn sync(&self) -> Result<(), FsError> {
        self.settle_behind().await;
        self.usable()?;
        self.writes.wait_for_earlier().await;
        self.ahead.settle().await;
        let _one_at_a_time = self.syncing.lock().await;
        if !self.dirty.swap(false, Ordering::AcqRel) {
            return Ok(());
        }
        let checked = self.look_for_snapshot().await;
        if checked.is_err() {
            self.dirty.store(true, Ordering::Release);
        }
        checked
    }

    async fn look_for_snapshot(&self) -> Result<(), FsError> {
        let asked = Instant::now();
        self.check().await?;
        self.head_mut().map.retire_commits(asked);
        Ok(())
    }

    /// Finishes what is on its way, looks for a snapshot once more, and gives
    /// the lock back.
    ///
    /// # Errors
    /// As [`Volume::sync`]; the volume stays usable and locked then.
    pub async fn close(&self) -> Result<(), FsError> {
        self.dirty.store(self.writable, Ordering::Release);
        match self.sync().await {
            // Nothing can be lost that is gone already.
            Ok(()) | Err(FsError::Stale(_)) => {}
            Err(error) => return Err(error),
        }
        self.settle_all().await;
        // What still runs could wipe what the next user writes.
        self.wait_until_idle().await?;
        self.release_lock().await
    }

    /// Gives the lock back, if there is one.
    ///
    /// # Errors
    /// `Cluster` when the cluster does not answer.
    pub async fn release_lock(&self) -> Result<(), FsError> {
        if !self.locked {
            return Ok(());
        }
        if let Some(asked) = self.lock_asked.lock().await.take() {
            self.client.release(asked).await?;
        }
        Ok(self.client.release(self.vid()).await?)
    }

    /// First byte at or behind `offset` that an object holds. Gathered writes
    /// count once they were flushed.
    ///
    /// # Errors
    /// `NothingThere` when only holes follow.
    pub fn next_data(&self, offset: u64) -> Result<u64, FsError> {
        let head = self.head();
        if offset >= head.info.size {
            return Err(FsError::NothingThere(offset));
        }
        let shift = head.info.object_shift;
        let start = u32::try_from(offset >> shift).map_err(|_| FsError::NothingThere(offset))?;
        match head.map.allocated_from(ObjectIndex(start)..).next() {
            Some((index, _)) => match u64::from(index.0) << shift {
                at if at >= head.info.size => Err(FsError::NothingThere(offset)),
                at => Ok(at.max(offset)),
            },
            None => Err(FsError::NothingThere(offset)),
        }
    }

    /// First byte at or behind `offset` that no object holds, or the end. Gathered
    /// writes count once they were flushed.
    ///
    /// # Errors
    /// `NothingThere` at or past the end.
    pub fn next_hole(&self, offset: u64) -> Result<u64, FsError> {
        let head = self.head();
        if offset >= head.info.size {
            return Err(FsError::NothingThere(offset));
        }
        let shift = head.info.object_shift;
        let first = u32::try_from(offset >> shift).map_err(|_| FsError::NothingThere(offset))?;
        let mut index = u64::from(first);
        for (owned, _) in head.map.allocated_from(ObjectIndex(first)..) {
            if u64::from(owned.0) != index {
                break;
            }
            index += 1;
        }
        let at = (index << shift).max(offset);
        Ok(at.min(head.info.size))
    }

    fn head(&self) -> std::sync::RwLockReadGuard<'_, Head> {
        self.head.read().expect("no one panics with the head")
    }

    fn vid(&self) -> Vid {
        self.head().info.vid
    }

    fn head_mut(&self) -> std::sync::RwLockWriteGuard<'_, Head> {
        self.head.write().expect("no one panics with the head")
    }

    /// The attached VID and the owner of an object, of one moment.
    fn slot(&self, index: ObjectIndex) -> Result<(Vid, Option<Vid>), FsError> {
        self.usable()?;
        let head = self.head();
        Ok((head.info.vid, head.map.owner(index)))
    }

    fn usable(&self) -> Result<(), FsError> {
        if self.stale.load(Ordering::Acquire) {
            return Err(FsError::Stale(self.selector.to_string()));
        }
        Ok(())
    }

    /// From now on nothing of the VDI is believed.
    fn gone(&self) -> FsError {
        self.stale.store(true, Ordering::Release);
        FsError::Stale(self.selector.to_string())
    }

    fn failed(&self, error: impl Into<Arc<ClientError>>) -> FsError {
        FsError::VolumeIo {
            volume: self.selector.to_string(),
            source: error.into(),
        }
    }

    fn arc(&self) -> Arc<Self> {
        self.me.upgrade().expect("a borrowed volume is alive")
    }
}

/// Zeros without memory of their own, up to a mebibyte.
fn zeros(len: u32) -> Bytes {
    static ZEROS: [u8; 1 << 20] = [0; 1 << 20];
    match ZEROS.get(..len as usize) {
        Some(zeros) => Bytes::from_static(zeros),
        None => Bytes::from(vec![0; len as usize]),
    }
}

/// True when a refusal says that the VDI has become a snapshot.
fn is_read_only(error: &ClientError) -> bool {
    error.code() == Some(ResultCode::ReadOnly)
}
