//! Which VDIs there are: by VID, and by name.
//!
//! About 500 bytes of memory per VDI, deleted ones included.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, RwLock, RwLockReadGuard, RwLockWriteGuard};

use sheep_proto::hash::first_vid;
use sheep_proto::limits::VID_COUNT;
use sheep_proto::vid_bitmap::VidBitmap;
use sheep_proto::{InodeHeader, Redundancy, ResultCode, SnapshotTag, VdiName, Vid};

use crate::poison::{lock, read, write};

/// One VDI. Only its [`VdiState`] changes.
pub(crate) struct Vdi {
    pub(crate) vid: Vid,
    pub(crate) snap_id: u32,
    pub(crate) parent: Option<Vid>,
    pub(crate) redundancy: Redundancy,
    pub(crate) shift: u8,
    pub(crate) hypervolume: bool,
    /// Locked for reading by everything that writes objects or index entries
    /// of the VDI, until the write is done, and for writing by what must not
    /// run at the same time: becoming a snapshot, being copied, deletion,
    /// header writes.
    state: RwLock<VdiState>,
}

/// The part of a VDI's state that changes.
#[derive(Debug)]
pub(crate) struct VdiState {
    pub(crate) tag: SnapshotTag,
    pub(crate) is_snapshot: bool,
    /// `None` once the VDI is deleted.
    pub(crate) name: Option<VdiName>,
}

/// A VDI's state, locked for writing.
pub(crate) type VdiStateGuard<'a> = RwLockWriteGuard<'a, VdiState>;

impl Vdi {
    /// The VDI of an inode; `None` when its header cannot be one of `vid`.
    pub(crate) fn from_header(vid: Vid, header: &InodeHeader) -> Option<Self> {
        if header.vid() != Some(vid) {
            return None;
        }
        Some(Self {
            vid,
            snap_id: header.snap_id.get(),
            parent: header.parent(),
            redundancy: header.redundancy(),
            shift: header.object_shift()?,
            hypervolume: header.is_hypervolume(),
            state: RwLock::new(VdiState {
                tag: header.tag(),
                is_snapshot: header.is_snapshot(),
                name: header.name(),
            }),
        })
    }

    pub(crate) fn read(&self) -> RwLockReadGuard<'_, VdiState> {
        read(&self.state)
    }

    pub(crate) fn write(&self) -> VdiStateGuard<'_> {
        write(&self.state)
    }

    /// True while the VDI is the writable head of its name.
    pub(crate) fn is_head(&self) -> bool {
        let state = self.read();
        state.name.is_some() && !state.is_snapshot
    }
}

/// See the module.
#[derive(Default)]
pub(crate) struct Catalogue {
    /// Held by the one [`VdiOperation`] that runs.
    operations: Mutex<()>,
    entries: RwLock<Entries>,
}

#[derive(Default)]
struct Entries {
    by_vid: BTreeMap<Vid, Arc<Vdi>>,
    /// VDIs of a name from the oldest to the newest; deleted ones are not in it.
    by_name: HashMap<VdiName, Vec<Arc<Vdi>>>,
}

impl Catalogue {
    /// Waits until no other VDI operation runs, and keeps others out.
    pub(crate) fn begin_operation(&self) -> VdiOperation<'_> {
        VdiOperation {
            entries: &self.entries,
            _serialized: lock(&self.operations),
        }
    }

    pub(crate) fn get(&self, vid: Vid) -> Option<Arc<Vdi>> {
        read(&self.entries).by_vid.get(&vid).cloned()
    }

    /// Every VDI, deleted ones included, in ascending order of VID.
    pub(crate) fn all(&self) -> Vec<Arc<Vdi>> {
        read(&self.entries).by_vid.values().cloned().collect()
    }

    /// The VIDs of the VDIs that pass `filter`.
    pub(crate) fn bitmap(&self, filter: impl Fn(&Vdi) -> bool) -> VidBitmap<Box<[u8]>> {
        let mut bitmap = VidBitmap::empty();
        for vdi in self.all() {
            if filter(&vdi) {
                bitmap.insert(vdi.vid);
            }
        }
        bitmap
    }

    pub(crate) fn clear(&self) {
        *write(&self.entries) = Entries::default();
    }
}

/// The only VDI operation that runs: names are looked up and change within one
/// alone, so what it has found stays true until it ends.
pub(crate) struct VdiOperation<'a> {
    entries: &'a RwLock<Entries>,
    _serialized: MutexGuard<'a, ()>,
}

impl VdiOperation<'_> {
    /// Every name that has a VDI.
    pub(crate) fn names(&self) -> Vec<VdiName> {
        read(self.entries).by_name.keys().cloned().collect()
    }

    /// The VDIs of a name, newest first.
    pub(crate) fn versions_of(&self, name: &VdiName) -> Vec<Arc<Vdi>> {
        let entries = read(self.entries);
        let versions = entries.by_name.get(name);
        versions.into_iter().flatten().rev().cloned().collect()
    }

    /// The working VDI of a name.
    pub(crate) fn head(&self, name: &VdiName) -> Option<Arc<Vdi>> {
        self.versions_of(name).into_iter().find(|vdi| vdi.is_head())
    }

    /// The working VDI of a name, or its newest snapshot with this tag **or**
    /// this id (protocol 5.2).
    ///
    /// # Errors
    /// `NoVdi` when the name has no working VDI, else `NoTag`.
    pub(crate) fn lookup(
        &self,
        name: &VdiName,
        tag: &SnapshotTag,
        snap_id: u32,
    ) -> Result<Arc<Vdi>, ResultCode> {
        let head = self.head(name);
        if tag.is_empty() && snap_id == 0 {
            return head.ok_or(ResultCode::NoVdi);
        }
        let matches = |vdi: &Arc<Vdi>| {
            let state = vdi.read();
            let has_tag = !tag.is_empty() && state.tag == *tag;
            let has_id = snap_id != 0 && vdi.snap_id == snap_id;
            state.is_snapshot && (has_tag || has_id)
        };
        let missing = if head.is_some() {
            ResultCode::NoTag
        } else {
            ResultCode::NoVdi
        };
        self.versions_of(name)
            .into_iter()
            .find(matches)
            .ok_or(missing)
    }

    /// Adds a VDI. Those of one name come in the order in which they took their VIDs.
    pub(crate) fn insert(&self, vdi: Arc<Vdi>) {
        let name = vdi.read().name.clone();
        let mut entries = write(self.entries);
        entries.by_vid.insert(vdi.vid, Arc::clone(&vdi));
        if let Some(name) = name {
            let age = |vdi: &Arc<Vdi>| ring_distance(first_vid(name.as_bytes()), vdi.vid);
            let versions = entries.by_name.entry(name.clone()).or_default();
            let at = versions.partition_point(|other| age(other) < age(&vdi));
            versions.insert(at, vdi);
        }
    }

    /// Removes a deleted VDI from its name; its VID stays in use.
    pub(crate) fn remove_name(&self, name: &VdiName, vid: Vid) {
        let mut entries = write(self.entries);
        if let Some(versions) = entries.by_name.get_mut(name) {
            versions.retain(|vdi| vdi.vid != vid);
            if versions.is_empty() {
                entries.by_name.remove(name);
            }
        }
    }

    /// The VID of the next VDI called `name`: the first free one from its hash on (protocol 6.1).
    pub(crate) fn free_vid(&self, name: &VdiName) -> Option<Vid> {
        let entries = read(self.entries);
        let first = first_vid(name.as_bytes());
        let mut expected = first.get();
        for &used in entries.by_vid.range(first..).map(|(vid, _vdi)| vid) {
            if used.get() != expected {
                break;
            }
            expected += 1;
        }
        if let Some(vid) = Vid::new(expected) {
            return Some(vid);
        }
        let mut expected = 1;
        for &used in entries.by_vid.range(..first).map(|(vid, _vdi)| vid) {
            if used.get() != expected {
                break;
            }
            expected += 1;
        }
        Vid::new(expected).filter(|&vid| vid < first)
    }

    /// The VID of a deleted VDI that a new one called `name` gets in releases that use
    /// them again: they do not ask whether others need its objects.
    pub(crate) fn reusable_vid(&self, name: &VdiName) -> Option<Vid> {
        let entries = read(self.entries);
        let first = first_vid(name.as_bytes());
        let run: Vec<_> = (first.get()..)
            .zip(entries.by_vid.range(first..))
            .take_while(|(expected, (vid, _vdi))| vid.get() == *expected)
            .map(|(_expected, (_vid, vdi))| vdi)
            .collect();
        let mut lowest = None;
        for vdi in run.into_iter().rev() {
            match &vdi.read().name {
                None => lowest = Some(vdi.vid),
                Some(other) if other == name => break,
                Some(_other) => {}
            }
        }
        lowest
    }

    /// Locks the states of up to two VDIs for writing, once if they are the same.
    ///
    /// Nothing else locks two states, so two callers cannot wait for each other.
    pub(crate) fn write_both<'b>(
        &self,
        first: Option<&'b Vdi>,
        second: Option<&'b Vdi>,
    ) -> (Option<VdiStateGuard<'b>>, Option<VdiStateGuard<'b>>) {
        let is_same = first.map(|vdi| vdi.vid) == second.map(|vdi| vdi.vid);
        let first = first.map(Vdi::write);
        (first, second.filter(|_| !is_same).map(Vdi::write))
    }
}

/// How far `vid` comes after `first` on the ring of VIDs.
fn ring_distance(first: Vid, vid: Vid) -> usize {
    let (first, vid) = (first.get() as usize, vid.get() as usize);
    (vid + VID_COUNT - first) % VID_COUNT
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vdi(name: &VdiName, vid: Vid) -> Arc<Vdi> {
        let mut header = InodeHeader::zeroed();
        header.name = name.to_field();
        header.vdi_id = vid.get().into();
        Arc::new(Vdi::from_header(vid, &header).unwrap())
    }

    fn name(text: &str) -> VdiName {
        VdiName::new(text).unwrap()
    }

    #[test]
    fn vid_allocation_skips_taken_vids() {
        let catalogue = Catalogue::default();
        let operation = catalogue.begin_operation();
        let (demo, other) = (name("demo"), name("other"));
        let first = first_vid(b"demo");
        assert_eq!(operation.free_vid(&demo), Some(first));
        for offset in [0, 1, 3] {
            let vid = Vid::new(first.get() + offset).unwrap();
            operation.insert(vdi(&other, vid));
        }
        assert_eq!(operation.free_vid(&demo), Vid::new(first.get() + 2));
    }

    #[test]
    fn vid_allocation_wraps_around_the_ring() {
        let catalogue = Catalogue::default();
        let operation = catalogue.begin_operation();
        // A name with its hash close to the end of the ring.
        let mut names = (0..).map(|number| name(&number.to_string()));
        let demo = names
            .find(|name| first_vid(name.as_bytes()).get() > 0xff_f000)
            .unwrap();
        for raw in first_vid(demo.as_bytes()).get()..1 << 24 {
            let vid = Vid::new(raw).unwrap();
            write(&catalogue.entries)
                .by_vid
                .insert(vid, vdi(&demo, vid));
        }
        assert_eq!(operation.free_vid(&demo), Vid::new(1));
        let last = Vid::new((1 << 24) - 1).unwrap();
        operation.insert(vdi(&demo, Vid::new(1).unwrap()));
        operation.insert(vdi(&demo, last));
        assert_eq!(operation.free_vid(&demo), Vid::new(2));
        let newest_first: Vec<_> = operation
            .versions_of(&demo)
            .iter()
            .map(|vdi| vdi.vid)
            .collect();
        assert_eq!(newest_first, [Vid::new(1).unwrap(), last]);
    }
}
