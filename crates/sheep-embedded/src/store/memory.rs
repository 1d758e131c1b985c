//! Objects in memory, up to a limit; gone when the server ends.
//!
//! A read copies nothing: the answer shares the pages.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, RwLock};

use sheep_proto::{Oid, Vid};

use super::{NewObject, Space, Store, StoreError};
use crate::payload::{Page, Payload};
use crate::poison::{lock, read, write};

/// Bytes that are allocated together; a smaller write costs this much. A
/// smaller page would save memory, a larger one time.
const PAGE_LEN: u64 = PAGE_BYTES as u64;
const PAGE_BYTES: usize = 16 << 10;

/// One sparse object. Its pages may be shared with responses and other objects,
/// so a write copies a shared page first.
#[derive(Default)]
struct Pages {
    by_number: BTreeMap<u64, Page>,
    /// Set when the object was removed or replaced: a racing write is discarded.
    detached: bool,
}

impl Pages {
    /// Detaches the object from the store; returns its number of pages.
    /// Reads in flight still see all of it.
    fn detach(&mut self) -> usize {
        self.detached = true;
        self.by_number.len()
    }

    fn read(&self, offset: u64, len: usize) -> Payload {
        let end = offset + len as u64;
        let numbers = offset / PAGE_LEN..end.div_ceil(PAGE_LEN);
        let mut payload = Payload::with_capacity(index(numbers.end - numbers.start));
        let mut at = offset;
        for (&number, page) in self.by_number.range(numbers) {
            let page_start = number * PAGE_LEN;
            if at < page_start {
                payload.push_zeros(index(page_start - at));
                at = page_start;
            }
            let stop = end.min(page_start + PAGE_LEN);
            payload.push(
                Arc::clone(page),
                index(at - page_start)..index(stop - page_start),
            );
            at = stop;
        }
        payload.push_zeros(index(end - at));
        payload
    }

    /// Pages that a write of this range would have to add.
    fn missing_pages(&self, offset: u64, len: u64) -> u64 {
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
            let page = self.by_number.entry(at / PAGE_LEN);
            if now.len() == PAGE_BYTES {
                // No need to copy or to clear what is replaced as a whole.
                let page = page.or_default();
                match Arc::get_mut(page) {
                    Some(bytes) if !bytes.is_empty() => bytes.copy_from_slice(now),
                    _shared_or_new => *page = Arc::new(now.to_vec()),
                }
            } else {
                let page = page.or_insert_with(|| Arc::new(vec![0; PAGE_BYTES]));
                Arc::make_mut(page)[in_page..in_page + now.len()].copy_from_slice(now);
            }
            at += now.len() as u64;
            rest = later;
        }
    }
}

/// An offset within a buffer that exists.
fn index(offset: u64) -> usize {
    usize::try_from(offset).expect("the offset is within a buffer in memory")
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

    fn release(&self, pages: usize) {
        self.used_pages.fetch_sub(pages as u64, Ordering::Relaxed);
    }

    fn overwrite(&self, pages: &mut Pages, offset: u64, data: &[u8]) -> Result<(), StoreError> {
        if pages.detached {
            return Ok(());
        }
        self.reserve(pages.missing_pages(offset, data.len() as u64))?;
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
        for &(offset, data) in object.writes {
            self.overwrite(pages, offset, data)?;
        }
        Ok(())
    }
}

impl Store for MemoryStore {
    fn read(&self, oid: Oid, offset: u64, buffer: &mut [u8]) -> Result<(), StoreError> {
        let payload = self.read_payload(oid, offset, buffer.len())?;
        let mut rest = buffer;
        for slice in payload.slices() {
            let (now, later) = rest.split_at_mut(slice.len());
            now.copy_from_slice(slice);
            rest = later;
        }
        Ok(())
    }

    fn read_payload(&self, oid: Oid, offset: u64, len: usize) -> Result<Payload, StoreError> {
        let object = self.find(oid)?;
        let payload = read(&object).read(offset, len);
        Ok(payload)
    }

    fn is_memory(&self) -> bool {
        true
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
            self.release(pages.by_number.len());
            return filled;
        }
        let old = write(&self.objects).insert(key(oid), Arc::new(RwLock::new(pages)));
        if let Some(old) = old {
            self.release(write(&old).detach());
        }
        Ok(())
    }

    fn remove(&self, oid: Oid) -> Result<(), StoreError> {
        let old = write(&self.objects)
            .remove(&key(oid))
            .ok_or(StoreError::NotFound)?;
        self.release(write(&old).detach());
        Ok(())
    }

    fn exists(&self, oid: Oid) -> Result<bool, StoreError> {
        Ok(read(&self.objects).contains_key(&key(oid)))
    }

    fn clear_from(&self, oid: Oid, offset: u64) -> Result<(), StoreError> {
        let object = self.find(oid)?;
        let mut pages = write(&object);
        let dropped = pages.by_number.split_off(&offset.div_ceil(PAGE_LEN));
        self.release(dropped.len());
        let in_page = index(offset % PAGE_LEN);
        if in_page != 0
            && let Some(page) = pages.by_number.get_mut(&(offset / PAGE_LEN))
        {
            Arc::make_mut(page)[in_page..].fill(0);
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

    fn save_record(&self, record: &[u8]) -> Result<(), StoreError> {
        *lock(&self.record) = Some(record.to_vec());
        Ok(())
    }

    fn format(&self, record: &[u8]) -> Result<(), StoreError> {
        write(&self.objects).clear();
        self.used_pages.store(0, Ordering::Relaxed);
        self.save_record(record)
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
