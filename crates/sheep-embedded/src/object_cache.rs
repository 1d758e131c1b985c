//! The object cache of a gateway, which releases before 1.0 have when they are started
//! with `-w`.
//!
//! It holds whole objects, and of each one which blocks were written back and which are
//! dirty. Nothing tells it what other gateways write: what is in it is what this
//! gateway answers. A node that starts again has it still, and so has a server whose store
//! is a directory; then all of it counts as dirty, as in a sheep.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};

use sheep_proto::limits::CACHE_INFO_LEN;
use sheep_proto::{Oid, Vid};

use crate::poison::lock;
use crate::store::{NewObject, Store, StoreError};

/// Blocks of an object that are written back together.
const BLOCKS: u64 = 64;
/// Lengths of blocks are multiples of this.
const BLOCK_UNIT: u64 = 512;
/// Bit set of all blocks.
const ALL_DIRTY: u64 = u64::MAX;
/// What the cache says of its size; nothing is ever thrown out for want of space.
const SIZE: u64 = 200 << 20;
/// VDIs that GET_CACHE_INFO has room for.
const MAX_INFO_VDIS: usize = 1024;

/// See the module.
pub(crate) struct ObjectCache {
    /// The node whose cache it is: the first one.
    node: OnceLock<SocketAddr>,
    was_started: AtomicBool,
    is_running: AtomicBool,
    copies: Arc<dyn Store>,
    /// Dirty blocks by object.
    dirty: Mutex<BTreeMap<Oid, u64>>,
}

impl ObjectCache {
    /// A cache on a store of its own.
    pub(crate) fn load(copies: Arc<dyn Store>) -> Result<Self, StoreError> {
        let mut dirty = BTreeMap::new();
        for vid in copies.vids()? {
            dirty.extend(
                copies
                    .objects_of(vid)?
                    .into_iter()
                    .map(|oid| (oid, ALL_DIRTY)),
            );
        }
        Ok(Self {
            node: OnceLock::new(),
            was_started: AtomicBool::new(false),
            is_running: AtomicBool::new(false),
            copies,
            dirty: Mutex::new(dirty),
        })
    }

    /// Notes the start of a node. The first one gets the cache.
    pub(crate) fn note_start(&self, node: SocketAddr) {
        if *self.node.get_or_init(|| node) == node {
            let is_again = self.was_started.swap(true, Ordering::AcqRel);
            if is_again {
                self.lock().mark_all_dirty();
            }
            self.is_running.store(true, Ordering::Release);
        }
    }

    /// Notes the end of a node.
    pub(crate) fn note_end(&self, node: SocketAddr) {
        if self.is_of(node) {
            self.is_running.store(false, Ordering::Release);
        }
    }

    /// True while its node runs.
    pub(crate) fn is_running(&self) -> bool {
        self.is_running.load(Ordering::Acquire)
    }

    pub(crate) fn is_of(&self, node: SocketAddr) -> bool {
        self.node.get() == Some(&node)
    }

    /// Keeps every other request out of the cache.
    pub(crate) fn lock(&self) -> Copies<'_> {
        Copies {
            store: self.copies.as_ref(),
            dirty: lock(&self.dirty),
        }
    }
}

/// The content of a cache, for one request at a time.
pub(crate) struct Copies<'a> {
    store: &'a dyn Store,
    dirty: MutexGuard<'a, BTreeMap<Oid, u64>>,
}

impl Copies<'_> {
    pub(crate) fn contains(&self, oid: Oid) -> bool {
        self.dirty.contains_key(&oid)
    }

    /// The store that holds the copies.
    pub(crate) fn store(&self) -> &dyn Store {
        self.store
    }

    /// Puts an object in that is as `source` has it, and clean.
    pub(crate) fn fetch(
        &mut self,
        source: &dyn Store,
        oid: Oid,
        len: u64,
    ) -> Result<(), StoreError> {
        let mut parts = Vec::new();
        for extent in source.extents(oid, 0..len)? {
            let mut bytes = vec![0; length(&extent)];
            source.read(oid, extent.start, &mut bytes)?;
            parts.push((extent.start, bytes));
        }
        let writes: Vec<_> = parts
            .iter()
            .map(|(offset, bytes)| (*offset, bytes.as_slice()))
            .collect();
        self.insert(oid, len, &writes, false)
    }

    /// Puts a new object in.
    pub(crate) fn insert(
        &mut self,
        oid: Oid,
        len: u64,
        writes: &[(u64, &[u8])],
        is_dirty: bool,
    ) -> Result<(), StoreError> {
        let object = NewObject {
            len,
            source: None,
            writes,
        };
        self.store.create(oid, object)?;
        let blocks = if is_dirty { ALL_DIRTY } else { 0 };
        self.dirty.insert(oid, blocks);
        Ok(())
    }

    /// Changes a part of an object of `len` bytes.
    pub(crate) fn write(
        &mut self,
        oid: Oid,
        len: u64,
        offset: u64,
        data: &[u8],
        is_dirty: bool,
    ) -> Result<(), StoreError> {
        self.store.write(oid, offset, data)?;
        if is_dirty
            && !data.is_empty()
            && let Some(blocks) = self.dirty.get_mut(&oid)
        {
            let block_len = block_len(len);
            let last = (offset + data.len() as u64 - 1) / block_len;
            for block in offset / block_len..=last.min(BLOCKS - 1) {
                *blocks |= 1 << block;
            }
        }
        Ok(())
    }

    /// The dirty blocks of an object.
    pub(crate) fn dirty_blocks(&self, oid: Oid) -> u64 {
        self.dirty.get(&oid).copied().unwrap_or_default()
    }

    pub(crate) fn mark_clean(&mut self, oid: Oid) {
        if let Some(blocks) = self.dirty.get_mut(&oid) {
            *blocks = 0;
        }
    }

    /// Makes every object count as dirty.
    fn mark_all_dirty(&mut self) {
        for blocks in self.dirty.values_mut() {
            *blocks = ALL_DIRTY;
        }
    }

    /// Makes every object of a VDI count as dirty.
    pub(crate) fn mark_dirty(&mut self, vid: Vid) {
        for (_oid, blocks) in self
            .dirty
            .iter_mut()
            .filter(|(oid, _)| oid.vid() == Some(vid))
        {
            *blocks = ALL_DIRTY;
        }
    }

    pub(crate) fn dirty_objects(&self, vid: Vid) -> Vec<Oid> {
        let of_vdi = self.dirty.iter().filter(|(oid, _)| oid.vid() == Some(vid));
        of_vdi
            .filter(|&(_oid, &blocks)| blocks != 0)
            .map(|(&oid, _)| oid)
            .collect()
    }

    /// Drops an object, whatever was not written back.
    pub(crate) fn remove(&mut self, oid: Oid) {
        if self.dirty.remove(&oid).is_some()
            && let Err(error) = self.store.remove(oid)
        {
            tracing::warn!("object {oid} stays in the cache: {error}");
        }
    }

    /// Drops the objects that belong to `vid`, or all.
    pub(crate) fn clear(&mut self, vid: Option<Vid>) {
        let mut oids: Vec<_> = self.dirty.keys().copied().collect();
        oids.retain(|oid| vid.is_none() || oid.vid() == vid);
        for oid in oids {
            self.remove(oid);
        }
    }

    /// What GET_CACHE_INFO answers.
    pub(crate) fn info(&self) -> Vec<u8> {
        let mut vdis: BTreeMap<Option<Vid>, [u32; 2]> = BTreeMap::new();
        for (oid, &blocks) in self.dirty.iter() {
            let [dirty, total] = vdis.entry(oid.vid()).or_default();
            *dirty += u32::from(blocks != 0);
            *total += 1;
        }
        let count = vdis.len().min(MAX_INFO_VDIS);
        let mut info = info_header(SIZE);
        for (vid, [dirty, total]) in vdis.into_iter().take(count) {
            for number in [vid.map_or(0, Vid::get), dirty, total] {
                info.extend_from_slice(&number.to_le_bytes());
            }
        }
        info.resize(CACHE_INFO_LEN - 8, 0);
        info.extend_from_slice(&(count as u64).to_le_bytes());
        info
    }
}

/// What GET_CACHE_INFO answers without a cache.
pub(crate) fn info_without_cache() -> Vec<u8> {
    let mut info = info_header(0);
    info.resize(CACHE_INFO_LEN, 0);
    info
}

/// The size of the cache, and how much of it is used, which is not counted.
fn info_header(size: u64) -> Vec<u8> {
    [size.to_le_bytes(), [0; 8]].concat()
}

/// Bytes of the blocks of an object of `len` bytes.
pub(crate) fn block_len(len: u64) -> u64 {
    len.div_ceil(BLOCKS).next_multiple_of(BLOCK_UNIT)
}

/// The ranges of an object of `len` bytes that the bits of `blocks` stand for.
pub(crate) fn dirty_ranges(blocks: u64, len: u64) -> Vec<Range<u64>> {
    let block_len = block_len(len);
    let mut ranges: Vec<Range<u64>> = Vec::new();
    for block in (0..BLOCKS).filter(|block| blocks & 1 << block != 0) {
        let start = (block * block_len).min(len);
        let end = (start + block_len).min(len);
        match ranges.last_mut() {
            Some(last) if last.end == start => last.end = end,
            _ => ranges.push(start..end),
        }
    }
    ranges.retain(|range| !range.is_empty());
    ranges
}

/// Bytes of a range of an object.
pub(crate) fn length(range: &Range<u64>) -> usize {
    usize::try_from(range.end - range.start).expect("a range of an object fits into memory")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dirty_ranges_cover_what_was_written_and_end_with_the_object() {
        const INODE: u64 = 12_587_576;
        assert_eq!(block_len(INODE), 197_120);
        assert_eq!(block_len(4 << 20), 65_536);
        assert_eq!(dirty_ranges(0, INODE), []);
        assert_eq!(
            dirty_ranges(0b1011, 4 << 20),
            [0..131_072, 196_608..262_144]
        );
        for len in [INODE, 4_198_968] {
            let whole = 0..len;
            assert_eq!(
                dirty_ranges(ALL_DIRTY, len),
                std::slice::from_ref(&whole),
                "{len}"
            );
        }
    }
}
