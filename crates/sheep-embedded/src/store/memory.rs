//! Objects in memory, up to a limit; gone when the server ends.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, RwLock};

use sheep_proto::{Oid, Vid};

use super::{NewObject, Space, Store, StoreError};
use crate::sync::{lock, read, write};

/// Bytes that are allocated together; a smaller write costs this much.
const PAGE_LEN: u64 = PAGE_BYTES as u64;
const PAGE_BYTES: usize = 4096;

type Page = Box<[u8; PAGE_BYTES]>;

/// One sparse object.
#[derive(Default)]
struct Pages {
    by_number: BTreeMap<u64, Page>,
    /// Set when the object was removed or replaced: a write that came too late goes nowhere.
    detached: bool,
}

impl Pages {
    /// Cuts the object off from the store; returns how many pages it had.
    fn detach(&mut self) -> usize {
        self.detached = true;
        std::mem::take(&mut self.by_number).len()
    }

    fn read(&self, offset: u64, buffer: &mut [u8]) {
        buffer.fill(0);
        let end = offset + buffer.len() as u64;
        for (&number, page) in self
            .by_number
            .range(offset / PAGE_LEN..end.div_ceil(PAGE_LEN))
        {
            let (page_start, page_end) = (number * PAGE_LEN, (number + 1) * PAGE_LEN);
            let (start, stop) = (offset.max(page_start), end.min(page_end));
            buffer[index(start - offset)..index(stop - offset)]
                .copy_from_slice(&page[index(start - page_start)..index(stop - page_start)]);
        }
    }

    /// Pages that a write of this range would have to add.
    fn missing(&self, offset: u64, len: u64) -> u64 {
        let wanted = offset / PAGE_LEN..(offset + len).div_ceil(PAGE_LEN);
        let present = self.by_number.range(wanted.clone()).count() as u64;
        (wanted.end - wanted.start) - present
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        let mut rest = data;
        let mut at = offset;
        while !rest.is_empty() {
            let in_page = index(at % PAGE_LEN);
            let (now, later) = rest.split_at(rest.len().min(PAGE_BYTES - in_page));
            let page = self
                .by_number
                .entry(at / PAGE_LEN)
                .or_insert_with(|| Box::new([0; PAGE_BYTES]));
            page[in_page..in_page + now.len()].copy_from_slice(now);
            at += now.len() as u64;
            rest = later;
        }
    }
}

/// An offset within a buffer that exists.
fn index(offset: u64) -> usize {
    usize::try_from(offset).expect("an offset within a buffer in memory")
}

/// The key keeps all objects of a VID together.
type Key = (u32, Oid);

fn key(oid: Oid) -> Key {
    (oid.vid().map_or(0, Vid::get), oid)
}

/// See the module.
pub(crate) struct MemoryStore {
    objects: RwLock<BTreeMap<Key, Arc<RwLock<Pages>>>>,
    record: Mutex<Option<Vec<u8>>>,
    limit_pages: u64,
    used_pages: AtomicU64,
}

impl MemoryStore {
    /// An empty store that holds at most `limit` bytes.
    pub(crate) fn new(limit: u64) -> Self {
        Self {
            objects: RwLock::default(),
            record: Mutex::default(),
            limit_pages: limit / PAGE_LEN,
            used_pages: AtomicU64::new(0),
        }
    }

    fn find(&self, oid: Oid) -> Result<Arc<RwLock<Pages>>, StoreError> {
        read(&self.objects)
            .get(&key(oid))
            .cloned()
            .ok_or(StoreError::NotFound)
    }

    fn reserve(&self, pages: u64) -> Result<(), StoreError> {
        self.used_pages
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |used| {
                used.checked_add(pages)
                    .filter(|&used| used <= self.limit_pages)
            })
            .map(drop)
            .map_err(|_used| StoreError::NoSpace)
    }

    fn give_back(&self, pages: usize) {
        self.used_pages.fetch_sub(pages as u64, Ordering::Relaxed);
    }

    fn overwrite(&self, pages: &mut Pages, offset: u64, data: &[u8]) -> Result<(), StoreError> {
        if pages.detached {
            return Ok(());
        }
        self.reserve(pages.missing(offset, data.len() as u64))?;
        pages.write(offset, data);
        Ok(())
    }

    fn fill(&self, pages: &mut Pages, object: NewObject<'_>) -> Result<(), StoreError> {
        if let Some(source) = object.source {
            let source = self.find(source)?;
            let source = read(&source);
            self.reserve(source.by_number.len() as u64)?;
            pages.by_number.clone_from(&source.by_number);
        }
        for &(offset, data) in object.pieces {
            self.overwrite(pages, offset, data)?;
        }
        Ok(())
    }
}

impl Store for MemoryStore {
    fn read(&self, oid: Oid, offset: u64, buffer: &mut [u8]) -> Result<(), StoreError> {
        let object = self.find(oid)?;
        read(&object).read(offset, buffer);
        Ok(())
    }

    fn write(&self, oid: Oid, offset: u64, data: &[u8]) -> Result<(), StoreError> {
        let object = self.find(oid)?;
        self.overwrite(&mut write(&object), offset, data)
    }

    fn sync(&self, _oid: Oid) -> Result<(), StoreError> {
        Ok(())
    }

    fn create(&self, oid: Oid, object: NewObject<'_>) -> Result<(), StoreError> {
        let mut pages = Pages::default();
        let filled = self.fill(&mut pages, object);
        if filled.is_err() {
            self.give_back(pages.by_number.len());
            return filled;
        }
        let old = write(&self.objects).insert(key(oid), Arc::new(RwLock::new(pages)));
        if let Some(old) = old {
            self.give_back(write(&old).detach());
        }
        Ok(())
    }

    fn remove(&self, oid: Oid) -> Result<(), StoreError> {
        let old = write(&self.objects)
            .remove(&key(oid))
            .ok_or(StoreError::NotFound)?;
        self.give_back(write(&old).detach());
        Ok(())
    }

    fn exists(&self, oid: Oid) -> Result<bool, StoreError> {
        Ok(read(&self.objects).contains_key(&key(oid)))
    }

    fn clear_from(&self, oid: Oid, offset: u64) -> Result<(), StoreError> {
        let object = self.find(oid)?;
        let mut pages = write(&object);
        let dropped = pages.by_number.split_off(&offset.div_ceil(PAGE_LEN));
        self.give_back(dropped.len());
        let in_page = index(offset % PAGE_LEN);
        if in_page != 0
            && let Some(page) = pages.by_number.get_mut(&(offset / PAGE_LEN))
        {
            page[in_page..].fill(0);
        }
        Ok(())
    }

    fn extents(&self, oid: Oid, range: Range<u64>) -> Result<Vec<Range<u64>>, StoreError> {
        let object = self.find(oid)?;
        let mut extents: Vec<Range<u64>> = Vec::new();
        let numbers = range.start / PAGE_LEN..range.end.div_ceil(PAGE_LEN);
        for (&number, _page) in read(&object).by_number.range(numbers) {
            let start = (number * PAGE_LEN).max(range.start);
            let end = ((number + 1) * PAGE_LEN).min(range.end);
            match extents.last_mut() {
                Some(last) if last.end == start => last.end = end,
                _ => extents.push(start..end),
            }
        }
        Ok(extents)
    }

    fn vids(&self) -> Result<Vec<Vid>, StoreError> {
        let mut vids: Vec<_> = read(&self.objects)
            .keys()
            .filter_map(|&(vid, _oid)| Vid::new(vid))
            .collect();
        vids.dedup();
        Ok(vids)
    }

    fn objects_of(&self, vid: Vid) -> Result<Vec<Oid>, StoreError> {
        let first = (vid.get(), Oid::from_raw(0));
        let last = (vid.get(), Oid::from_raw(u64::MAX));
        Ok(read(&self.objects)
            .range(first..=last)
            .map(|(&(_vid, oid), _pages)| oid)
            .collect())
    }

    fn cluster_record(&self) -> Result<Option<Vec<u8>>, StoreError> {
        Ok(lock(&self.record).clone())
    }

    fn format(&self, record: &[u8]) -> Result<(), StoreError> {
        write(&self.objects).clear();
        self.used_pages.store(0, Ordering::Relaxed);
        *lock(&self.record) = Some(record.to_vec());
        Ok(())
    }

    fn space(&self) -> Result<Space, StoreError> {
        let used = self.used_pages.load(Ordering::Relaxed);
        Ok(Space {
            size: self.limit_pages * PAGE_LEN,
            free: self.limit_pages.saturating_sub(used) * PAGE_LEN,
        })
    }

    fn path(&self) -> &[u8] {
        b"memory"
    }

    fn sync_all(&self) -> Result<(), StoreError> {
        Ok(())
    }
}
