//! Object I/O of a gateway with an object cache, and what clients may do with the cache.
//!
//! | flags | read | write, create |
//! |---|---|---|
//! | none | the copy, which is fetched first | copy and store |
//! | CACHE | as without | the copy, which is dirty then |
//! | DIRECT | the copy if there is one, else the store | all copies of the VDI are written back and dropped, then the store |
//! | COW | the store | the store |
//!
//! Other gateways know nothing of it, and neither do the rules of [`super::object`] when a
//! copy is written back: an inode overwrites what was done to it since, and data of a VDI
//! that has become a snapshot is thrown away. As in a sheep, an object that is made while
//! there is a copy of it ends the node, and so does a copy for which there is no space.

use std::sync::Arc;

use sheep_proto::{ObjectKind, Oid, RequestFlags, ResponseBody, ResultCode, SnapshotTag, Vid};
use zerocopy::FromBytes;

use super::object::{ObjectService, Target};
use crate::cluster::Cluster;
use crate::object_cache::{Copies, ObjectCache, dirty_ranges, info_without_cache, length};
use crate::request::{Fate, HandlerResult, Reply, Request};
use crate::store::{NewObject, StoreError};

/// See the module.
pub(crate) struct CacheService {
    pub(crate) uncached: ObjectService,
    pub(crate) cache: Option<Arc<ObjectCache>>,
}

/// Why copies could not be written back.
enum PushError {
    Code(ResultCode),
    Fate(Fate),
}

impl From<StoreError> for PushError {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::NoSpace => Self::Fate(Fate::Dies("a full disk at a write-back")),
            other => Self::Code(other.into()),
        }
    }
}

impl From<ResultCode> for PushError {
    fn from(code: ResultCode) -> Self {
        if code == ResultCode::NoSpace {
            Self::from(StoreError::NoSpace)
        } else {
            Self::Code(code)
        }
    }
}

impl From<PushError> for HandlerResult {
    fn from(error: PushError) -> Self {
        match error {
            PushError::Code(code) => Err(code),
            PushError::Fate(fate) => Ok(Reply {
                fate,
                ..Reply::error(ResultCode::SystemError)
            }),
        }
    }
}

impl CacheService {
    /// The cache of the asked node.
    fn cache_of(&self, request: &Request<'_>) -> Option<&ObjectCache> {
        let cache = self.cache.as_deref()?;
        cache.is_of(request.origin.node).then_some(cache)
    }

    /// The copies of the asked node and the object, if the request goes through them.
    fn copies(&self, request: &Request<'_>) -> Result<Option<(Copies<'_>, Target)>, ResultCode> {
        let Some(cache) = self.cache_of(request) else {
            return Ok(None);
        };
        let target = self.uncached.io_target(request)?;
        let is_cached = matches!(target.kind, ObjectKind::Data | ObjectKind::Inode);
        if !is_cached || request.flags().contains(RequestFlags::COW) {
            return Ok(None);
        }
        Ok(Some((cache.lock(), target)))
    }

    /// READ_OBJ.
    pub(crate) fn read(&self, request: &Request<'_>) -> HandlerResult {
        let Some((mut copies, target)) = self.copies(request)? else {
            return self.uncached.read(request);
        };
        if !copies.contains(target.oid) {
            if request.flags().contains(RequestFlags::DIRECT) {
                return self.uncached.read(request);
            }
            copies.fetch(self.uncached.store.as_ref(), target.oid, target.len)?;
        }
        let len = request.max_response_len()?;
        let offset = target.check_range(request.object().offset.get(), len)?;
        let payload = copies.store().read_payload(target.oid, offset, len)?;
        Ok(Reply::payload(payload))
    }

    /// WRITE_OBJ.
    pub(crate) fn write(&self, request: &Request<'_>, cluster: &Cluster) -> HandlerResult {
        let Some((mut copies, target)) = self.copies(request)? else {
            return self.uncached.write(request, cluster);
        };
        target.check_writable(cluster)?;
        let flags = request.flags();
        if flags.contains(RequestFlags::DIRECT) {
            return match self.write_all_back(&mut copies, target.oid) {
                Ok(()) => self.uncached.write(request, cluster),
                Err(error) => error.into(),
            };
        }
        if !copies.contains(target.oid) {
            copies.fetch(self.uncached.store.as_ref(), target.oid, target.len)?;
        }
        let data = request.data()?;
        let offset = target.check_range(request.object().offset.get(), data.len())?;
        let is_dirty = flags.contains(RequestFlags::CACHE);
        copies.write(target.oid, target.len, offset, data, is_dirty)?;
        if is_dirty {
            Ok(Reply::ok())
        } else {
            self.uncached.write(request, cluster)
        }
    }

    /// CREATE_AND_WRITE_OBJ.
    pub(crate) fn create(&self, request: &Request<'_>, cluster: &Cluster) -> HandlerResult {
        let Some((mut copies, target)) = self.copies(request)? else {
            return self.uncached.create(request, cluster);
        };
        target.check_writable(cluster)?;
        let flags = request.flags();
        if flags.contains(RequestFlags::DIRECT) {
            return match self.write_all_back(&mut copies, target.oid) {
                Ok(()) => self.uncached.create(request, cluster),
                Err(error) => error.into(),
            };
        }
        if copies.contains(target.oid) {
            return Ok(Reply::death("a new object of which its cache has a copy"));
        }
        let data = request.data()?;
        let offset = target.check_range(request.object().offset.get(), data.len())?;
        let is_dirty = flags.contains(RequestFlags::CACHE);
        if !is_dirty {
            self.uncached.create(request, cluster)?;
        }
        copies.insert(target.oid, target.len, &[(offset, data)], is_dirty)?;
        Ok(Reply::ok())
    }

    /// DISCARD_OBJ: the copy goes too.
    pub(crate) fn discard(&self, request: &Request<'_>) -> HandlerResult {
        if let Some(cache) = self.cache_of(request) {
            cache
                .lock()
                .remove(Oid::from_raw(request.object().oid.get()));
        }
        self.uncached.discard(request)
    }

    /// FLUSH_VDI: writes the dirty objects of a VDI back, also of one that is not known.
    pub(crate) fn flush(&self, request: &Request<'_>) -> HandlerResult {
        let cache = self.cache_of(request).ok_or(ResultCode::InvalidParms)?;
        self.flush_vdi(&mut cache.lock(), vid_of(request.object().oid.get()))
    }

    /// Before a snapshot: writes the dirty objects of its base back.
    pub(crate) fn flush_base(&self, request: &Request<'_>) -> HandlerResult {
        match self.cache_of(request) {
            Some(cache) if request.vdi().snapid.get() != 0 => {
                let base = Vid::new(request.vdi().base_vdi_id.get());
                self.flush_vdi(&mut cache.lock(), base)
            }
            _ => Ok(Reply::ok()),
        }
    }

    /// What RELEASE_VDI does with the cache: a flush, and then the copies go.
    pub(crate) fn release(&self, request: &Request<'_>) -> HandlerResult {
        let Some(cache) = self.cache_of(request) else {
            return Ok(Reply::ok());
        };
        let vid = Vid::new(request.vdi().base_vdi_id.get());
        let mut copies = cache.lock();
        let flushed = self.flush_vdi(&mut copies, vid)?;
        if vid.is_some() {
            copies.clear(vid);
        }
        Ok(flushed)
    }

    /// FLUSH_DEL_CACHE: writes everything back, stale copies too, and drops it.
    pub(crate) fn flush_and_delete(&self, request: &Request<'_>) -> HandlerResult {
        let Some(cache) = self.cache_of(request) else {
            return Ok(Reply::ok());
        };
        let oid = Oid::from_raw(request.object().oid.get());
        match self.write_all_back(&mut cache.lock(), oid) {
            Ok(()) => Ok(Reply::ok()),
            Err(error) => error.into(),
        }
    }

    /// DELETE_CACHE: through any node it drops the copies of those that run, dirty ones
    /// too.
    pub(crate) fn delete(&self, request: &Request<'_>) -> HandlerResult {
        if let Some(cache) = &self.cache
            && cache.is_running()
            && let Some(vid) = vid_of(request.object().oid.get())
        {
            cache.lock().clear(Some(vid));
        }
        Ok(Reply::ok())
    }

    /// CACHE_PURGE: drops the copies of one VDI, or of all.
    pub(crate) fn purge(&self, request: &Request<'_>) -> HandlerResult {
        if let Some(cache) = self.cache_of(request) {
            let is_one = request.flags().contains(RequestFlags::WRITE);
            let vid = vid_of(request.object().oid.get());
            cache.lock().clear(vid.filter(|_vid| is_one));
        }
        Ok(Reply::ok())
    }

    /// GET_CACHE_INFO.
    pub(crate) fn info(&self, request: &Request<'_>) -> HandlerResult {
        let info = match self.cache_of(request) {
            Some(cache) => cache.lock().info(),
            None => info_without_cache(),
        };
        request.reply_with(info)
    }

    /// A look-up as the asked node does it: a copy of an inode hides that it has become a
    /// snapshot.
    pub(crate) fn as_cached(&self, request: &Request<'_>, found: Reply) -> HandlerResult {
        let ResponseBody::Vdi(body) = found.body else {
            return Ok(found);
        };
        let (_name, tag) = request.name_and_tag()?;
        let wants_snapshot = tag != SnapshotTag::default() || request.vdi().snapid.get() != 0;
        let (Some(cache), Some(vid)) = (self.cache_of(request), Vid::new(body.vdi_id.get())) else {
            return Ok(found);
        };
        let copies = cache.lock();
        let inode = Oid::inode(vid);
        if wants_snapshot && copies.contains(inode) {
            let mut bytes = [0; size_of::<sheep_proto::InodeHeader>()];
            copies.store().read(inode, 0, &mut bytes)?;
            let header = sheep_proto::InodeHeader::read_from_bytes(&bytes)
                .map_err(|_size| ResultCode::Eio)?;
            if !header.is_snapshot() {
                return Err(ResultCode::NoTag);
            }
        }
        Ok(found)
    }

    fn flush_vdi(&self, copies: &mut Copies<'_>, vid: Option<Vid>) -> HandlerResult {
        let Some(vid) = vid else {
            return Ok(Reply::ok());
        };
        match self.write_back(copies, vid) {
            Ok(()) => Ok(Reply::ok()),
            Err(error) => error.into(),
        }
    }

    /// Writes every object of the VDI of `oid` back, clean ones too, and drops the copies.
    fn write_all_back(&self, copies: &mut Copies<'_>, oid: Oid) -> Result<(), PushError> {
        let Some(vid) = oid.vid() else {
            return Ok(());
        };
        copies.mark_dirty(vid);
        self.write_back(copies, vid)?;
        copies.clear(Some(vid));
        Ok(())
    }

    fn write_back(&self, copies: &mut Copies<'_>, vid: Vid) -> Result<(), PushError> {
        for oid in copies.dirty_objects(vid) {
            let blocks = copies.dirty_blocks(oid);
            if self.uncached.release.generation.flush_deadlocks()
                && oid.kind() == Some(ObjectKind::Inode)
                && self.changes_late_entries(copies, oid, blocks)?
            {
                return Err(PushError::Fate(Fate::Hangs));
            }
            self.push(copies, oid, blocks)?;
            copies.mark_clean(oid);
        }
        Ok(())
    }

    /// True when an entry behind the first block differs from that in the store: the
    /// sheep waits for its own lock of the inode to change the references.
    fn changes_late_entries(
        &self,
        copies: &Copies<'_>,
        oid: Oid,
        blocks: u64,
    ) -> Result<bool, PushError> {
        const FIRST: u64 = 1;
        let target = self.uncached.target(oid.raw())?;
        for range in dirty_ranges(blocks & !FIRST, target.len) {
            let mut copy = vec![0; length(&range)];
            copies.store().read(oid, range.start, &mut copy)?;
            let mut stored = vec![0; copy.len()];
            self.uncached.store.read(oid, range.start, &mut stored)?;
            if copy != stored {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn push(&self, copies: &Copies<'_>, oid: Oid, blocks: u64) -> Result<(), PushError> {
        let target = match self.uncached.target(oid.raw()) {
            // Its VDI is gone.
            Err(ResultCode::NoObj) => return Ok(()),
            other => other?,
        };
        let mut parts = Vec::new();
        for range in dirty_ranges(blocks, target.len) {
            let mut bytes = vec![0; length(&range)];
            copies.store().read(oid, range.start, &mut bytes)?;
            parts.push((range.start, bytes));
        }
        let vdi = target.vdi()?;
        if target.kind == ObjectKind::Inode {
            return Ok(self.uncached.inodes.overwrite(vdi, &parts)?);
        }
        let state = vdi.read();
        if state.is_snapshot {
            tracing::warn!("what was written to {oid} is lost: its VDI is a snapshot");
            return Ok(());
        }
        let store = &self.uncached.store;
        if store.exists(oid)? {
            for (offset, bytes) in &parts {
                store.write(oid, *offset, bytes)?;
            }
            return Ok(store.sync(oid)?);
        }
        let writes: Vec<_> = parts
            .iter()
            .map(|(offset, bytes)| (*offset, bytes.as_slice()))
            .collect();
        let object = NewObject {
            len: target.len,
            source: None,
            writes: &writes,
        };
        Ok(store.create(oid, object)?)
    }
}

fn vid_of(raw: u64) -> Option<Vid> {
    Oid::from_raw(raw).vid()
}
