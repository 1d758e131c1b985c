//! The store that the simulated sheep share, with the operations of a C sheep on it.
//!
//! Written from protocol.md alone, with the properties that are hard for a client: only a
//! single read or write of an object is atomic, references are counted by generation, and
//! objects are removed some time after their last reference.

use std::collections::{BTreeMap, BTreeSet};

use sheep_proto::generation::Reclaim;
use sheep_proto::hash::first_vid;
use sheep_proto::inode::{InodeHeader, STORE_POLICY_HYPERVOLUME};
use sheep_proto::limits::{FLAT_INDEX_SLOTS, INODE_HEADER_LEN};
use sheep_proto::name::unpad;
use sheep_proto::vid_bitmap::VidBitmap;
use sheep_proto::{ObjectIndex, ObjectKind, Oid, ResultCode, Vid};
use zerocopy::{FromBytes as _, IntoBytes as _};

const PAGE: usize = 512;
const INDEX: usize = INODE_HEADER_LEN;
const REFERENCES: usize = INDEX + 4 * FLAT_INDEX_SLOTS as usize;

/// The bytes of an object that are not zero, in pages.
#[derive(Clone, Default)]
pub(crate) struct Object(BTreeMap<usize, [u8; PAGE]>);

impl Object {
    pub(crate) fn read(&self, offset: usize, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        let first = offset / PAGE;
        for (&page, content) in self.0.range(first..=(offset + len) / PAGE) {
            for (at, &byte) in content.iter().enumerate() {
                if let Some(place) = (page * PAGE + at).checked_sub(offset)
                    && place < len
                {
                    bytes[place] = byte;
                }
            }
        }
        bytes
    }

    pub(crate) fn write(&mut self, offset: usize, bytes: &[u8]) {
        let mut at = offset;
        let mut rest = bytes;
        while !rest.is_empty() {
            let (page, start) = (at / PAGE, at % PAGE);
            let (now, behind) = rest.split_at(rest.len().min(PAGE - start));
            let content = self.0.entry(page).or_insert([0; PAGE]);
            content[start..start + now.len()].copy_from_slice(now);
            at += now.len();
            rest = behind;
        }
    }

    fn u32_at(&self, offset: usize) -> u32 {
        let bytes = self.read(offset, 4);
        u32::from_le_bytes(bytes.try_into().expect("four bytes"))
    }

    pub(crate) fn header(&self) -> InodeHeader {
        InodeHeader::read_from_bytes(&self.read(0, INODE_HEADER_LEN)).expect("the length of one")
    }

    pub(crate) fn set_header(&mut self, header: &InodeHeader) {
        self.write(0, header.as_bytes());
    }

    pub(crate) fn owner(&self, index: u32) -> u32 {
        self.u32_at(INDEX + 4 * index as usize)
    }

    /// Generation and count.
    fn reference(&self, index: u32) -> (u32, u32) {
        let at = REFERENCES + 8 * index as usize;
        (self.u32_at(at), self.u32_at(at + 4))
    }

    fn set_reference(&mut self, index: u32, generation: u32, count: u32) {
        let at = REFERENCES + 8 * index as usize;
        self.write(at, &generation.to_le_bytes());
        self.write(at + 4, &count.to_le_bytes());
    }

    /// The slots that name an owner.
    pub(crate) fn slots(&self) -> Vec<(u32, u32)> {
        let mut slots = Vec::new();
        for (&page, content) in self.0.range(INDEX / PAGE..=REFERENCES / PAGE) {
            let start = page * PAGE;
            // No slot lies in two pages.
            for at in (start.max(INDEX)..(start + PAGE).min(REFERENCES)).step_by(4) {
                let bytes = content[at - start..][..4].try_into().expect("four bytes");
                let owner = u32::from_le_bytes(bytes);
                if owner != 0 {
                    let index = u32::try_from((at - INDEX) / 4).expect("2^20 slots");
                    slots.push((index, owner));
                }
            }
        }
        slots
    }
}

/// A slot before it is written: its number, owner, and reference.
pub(crate) type Before = (u32, u32, (u32, u32));

/// A dropped reference: the object, its generation, its count.
pub(crate) type Dropped = (Oid, u32, u32);

/// All objects of the cluster, and the memory of the sheep.
#[derive(Default)]
pub(crate) struct Store {
    objects: BTreeMap<u64, Object>,
    ledgers: BTreeMap<u64, Vec<i64>>,
    /// VIDs that refuse data writes.
    read_only: BTreeSet<u32>,
    used: BTreeSet<u32>,
    clock: u64,
}

impl Store {
    pub(crate) fn object(&self, oid: Oid) -> Result<&Object, ResultCode> {
        self.objects.get(&oid.raw()).ok_or(ResultCode::NoObj)
    }

    /// Refuses a change of a snapshot's data.
    pub(crate) fn may_write(&self, oid: Oid) -> Result<(), ResultCode> {
        let vid = oid.vid().map_or(0, Vid::get);
        match oid.kind() {
            Some(ObjectKind::Data) if self.read_only.contains(&vid) => Err(ResultCode::ReadOnly),
            _ => Ok(()),
        }
    }

    pub(crate) fn read(&self, oid: Oid, offset: usize, len: usize) -> Result<Vec<u8>, ResultCode> {
        Ok(self.object(oid)?.read(offset, len))
    }

    pub(crate) fn copy(&self, oid: Oid) -> Result<Object, ResultCode> {
        self.object(oid).cloned()
    }

    pub(crate) fn write(&mut self, oid: Oid, offset: usize, data: &[u8]) -> Result<(), ResultCode> {
        let object = self.objects.get_mut(&oid.raw()).ok_or(ResultCode::NoObj)?;
        object.write(offset, data);
        Ok(())
    }

    pub(crate) fn put(&mut self, oid: Oid, object: Object) {
        self.objects.insert(oid.raw(), object);
    }

    pub(crate) fn remove(&mut self, oid: Oid) {
        self.objects.remove(&oid.raw());
    }

    pub(crate) fn has(&self, oid: Oid) -> bool {
        self.objects.contains_key(&oid.raw())
    }

    /// The slots that a write of an inode changes as an index, if it is one.
    pub(crate) fn slots_written(offset: usize, len: usize) -> Option<std::ops::Range<u32>> {
        if offset < INDEX || offset + len > REFERENCES || len == 0 {
            return None;
        }
        let first = (offset - INDEX) / 4;
        let behind = (offset + len - INDEX).div_ceil(4);
        Some(u32::try_from(first).ok()?..u32::try_from(behind).ok()?)
    }

    /// Owners and references of some slots, which a server reads first.
    pub(crate) fn before(
        &self,
        oid: Oid,
        slots: std::ops::Range<u32>,
    ) -> Result<Vec<Before>, ResultCode> {
        let inode = self.object(oid)?;
        Ok(slots
            .map(|index| (index, inode.owner(index), inode.reference(index)))
            .collect())
    }

    /// Writes slots, drops their references, and returns the objects to remove.
    pub(crate) fn write_slots(
        &mut self,
        oid: Oid,
        offset: usize,
        data: &[u8],
        before: &[Before],
        reclaim: Reclaim,
    ) -> Result<Vec<Dropped>, ResultCode> {
        let inode = self.objects.get_mut(&oid.raw()).ok_or(ResultCode::NoObj)?;
        inode.write(offset, data);
        let mut dropped = Vec::new();
        if reclaim == Reclaim::Never {
            return Ok(dropped);
        }
        for &(index, owner, (generation, count)) in before {
            if reclaim == Reclaim::BeforeAnswer && inode.owner(index) == owner {
                continue;
            }
            inode.set_reference(index, 0, 0);
            if let Some(owner) = Vid::new(owner)
                && inode.owner(index) != owner.get()
            {
                dropped.push((Oid::data(owner, ObjectIndex(index)), generation, count));
            }
        }
        Ok(dropped)
    }

    /// Takes references off an object, and removes it with the last one.
    pub(crate) fn drop_reference(&mut self, (oid, generation, count): Dropped) -> bool {
        let ledger = self.ledgers.entry(oid.raw()).or_insert_with(|| vec![1]);
        let at = generation as usize;
        if ledger.len() < at + 2 {
            ledger.resize(at + 2, 0);
        }
        ledger[at] -= 1;
        ledger[at + 1] += i64::from(count);
        if ledger.iter().any(|&references| references != 0) {
            return false;
        }
        self.ledgers.remove(&oid.raw());
        self.objects.remove(&oid.raw()).is_some()
    }

    fn now(&mut self) -> u64 {
        self.clock += 1;
        (1_700_000_000 + self.clock) << 32
    }

    /// The VDIs of a name, newest first.
    pub(crate) fn versions(&self, name: &[u8]) -> Vec<(Vid, InodeHeader)> {
        self.used
            .iter()
            .rev()
            .filter_map(|&vid| {
                let vid = Vid::new(vid)?;
                let header = self.objects.get(&Oid::inode(vid).raw())?.header();
                (unpad(&header.name) == name && !name.is_empty()).then_some((vid, header))
            })
            .collect()
    }

    /// The VDI that a name and a tag or number mean.
    pub(crate) fn find(&self, name: &[u8], tag: &[u8], snap_id: u32) -> Result<Vid, ResultCode> {
        let versions = self.versions(name);
        let working = versions.iter().find(|(_, header)| !header.is_snapshot());
        if tag.is_empty() && snap_id == 0 {
            return working.map(|&(vid, _)| vid).ok_or(ResultCode::NoVdi);
        }
        let wanted = |header: &InodeHeader| {
            header.is_snapshot()
                && (!tag.is_empty() && unpad(&header.tag) == tag
                    || snap_id != 0 && header.snap_id.get() == snap_id)
        };
        let found = versions.iter().find(|(_, header)| wanted(header));
        found.map(|&(vid, _)| vid).ok_or(match working {
            Some(_) => ResultCode::NoTag,
            None => ResultCode::NoVdi,
        })
    }

    fn free_vid(&self, name: &[u8]) -> Vid {
        let mut raw = first_vid(name).get();
        while self.used.contains(&raw) {
            raw += 1;
        }
        Vid::new(raw).expect("few VDIs")
    }

    /// The first thing that happens to a VDI that becomes a snapshot.
    pub(crate) fn freeze(&mut self, vid: Vid) {
        self.read_only.insert(vid.get());
    }

    /// Reads the inode of a VDI that becomes a base, as it will be written back.
    pub(crate) fn read_base(&self, base: Vid) -> Result<Object, ResultCode> {
        let mut inode = self
            .object(Oid::inode(base))
            .map_err(|_| ResultCode::BaseVdiRead)?
            .clone();
        for (index, _) in inode.slots() {
            let (generation, count) = inode.reference(index);
            inode.set_reference(index, generation, count + 1);
        }
        Ok(inode)
    }

    /// Writes the inode of a base back as it was read, `whole` or only its header.
    pub(crate) fn write_base(
        &mut self,
        base: Vid,
        inode: &mut Object,
        becomes_snapshot: bool,
        whole: bool,
    ) {
        if becomes_snapshot {
            let mut header = inode.header();
            header.snap_ctime = self.now().into();
            inode.set_header(&header);
        }
        let stored = self.objects.entry(Oid::inode(base).raw()).or_default();
        if whole {
            *stored = inode.clone();
        } else {
            stored.set_header(&inode.header());
        }
    }

    /// The payload of READ_VDIS.
    pub(crate) fn used_vids(&self) -> Vec<u8> {
        let mut used = VidBitmap::empty();
        let vids = self.used.iter().copied().filter_map(Vid::new);
        vids.for_each(|vid| used.insert(vid));
        used.as_bytes().to_vec()
    }

    /// Makes a VDI, from a base or from nothing.
    pub(crate) fn make(
        &mut self,
        name: &[u8],
        size: u64,
        shift: u8,
        base: Option<(Vid, &Object)>,
    ) -> Vid {
        let vid = self.free_vid(name);
        let mut header = InodeHeader::zeroed();
        header.name[..name.len()].copy_from_slice(name);
        header.create_time = self.now().into();
        header.vdi_size = size.into();
        header.nr_copies = 1;
        header.block_size_shift = shift;
        header.vdi_id = vid.get().into();
        let newest = self
            .versions(name)
            .iter()
            .filter(|(_, header)| header.is_snapshot())
            .map(|(_, header)| header.snap_id.get())
            .max();
        header.snap_id = (newest.unwrap_or(0) + 1).into();
        let mut inode = Object::default();
        if let Some((base, from)) = base {
            header.parent_vdi_id = base.get().into();
            for (index, owner) in from.slots() {
                inode.write(INDEX + 4 * index as usize, &owner.to_le_bytes());
                inode.set_reference(index, from.reference(index).0 + 1, 0);
            }
        }
        inode.set_header(&header);
        self.objects.insert(Oid::inode(vid).raw(), inode);
        self.used.insert(vid.get());
        vid
    }

    /// Makes a new VDI a hypervolume.
    pub(crate) fn make_hypervolume(&mut self, vid: Vid) {
        self.change_header(vid, |header| header.store_policy = STORE_POLICY_HYPERVOLUME);
        self.plant(vid);
    }

    pub(crate) fn change_header(&mut self, vid: Vid, change: impl FnOnce(&mut InodeHeader)) {
        let inode = self.objects.get_mut(&Oid::inode(vid).raw());
        let inode = inode.expect("a VDI that exists");
        let mut header = inode.header();
        change(&mut header);
        inode.set_header(&header);
    }

    /// Blanks the inode of a deleted VDI.
    pub(crate) fn blank(&mut self, vid: Vid) {
        if let Some(inode) = self.objects.get_mut(&Oid::inode(vid).raw()) {
            let mut header = inode.header();
            header.name = [0; 256];
            header.vdi_size = 0.into();
            *inode = Object::default();
            inode.set_header(&header);
        }
    }

    /// Slots that name an object which does not exist: there may be none, ever.
    pub(crate) fn lost(&self) -> Vec<(u32, u32, u32)> {
        let mut lost = Vec::new();
        for &vid in &self.used {
            let Some(inode) =
                Vid::new(vid).and_then(|vid| self.objects.get(&Oid::inode(vid).raw()))
            else {
                continue;
            };
            let slots = match Vid::new(vid) {
                Some(vid) if inode.header().is_hypervolume() => self.tree_slots(vid),
                _ => inode.slots(),
            };
            for (index, owner) in slots {
                let oid = Vid::new(owner).map(|owner| Oid::data(owner, ObjectIndex(index)));
                if !oid.is_some_and(|oid| self.has(oid)) {
                    lost.push((vid, index, owner));
                }
            }
        }
        lost
    }
}
