//! The attached volumes by name and by number.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, RwLock, RwLockReadGuard, RwLockWriteGuard};

use sheep_client::VdiSelector;

use crate::error::FsError;
use crate::ino::Ino;
use crate::poison;
use crate::volume::{Volume, VolumeError};

/// The volumes below `volume/`.
#[derive(Default)]
pub(crate) struct VolumeTable(RwLock<Attached>);

#[derive(Default)]
struct Attached {
    by_name: BTreeMap<Vec<u8>, Ino>,
    by_ino: BTreeMap<Ino, Arc<Volume>>,
    /// The number of every name that was attached since the mount. Names are
    /// never dropped: the kernel, a bind mount or a file handle may hold a
    /// number for as long as the mount lives. An entry takes about 100 bytes, and
    /// only attaching an existing VDI makes one, so a thousand new snapshots a day
    /// come to 36 MB in a year.
    numbers: HashMap<Vec<u8>, Ino>,
}

impl Attached {
    /// The number of `name`; a name without one gets one that none ever had.
    fn number(&mut self, name: &[u8]) -> Ino {
        let next = Ino(Ino::FIRST_VOLUME.0 + self.numbers.len() as u64);
        *self.numbers.entry(name.to_vec()).or_insert(next)
    }
}

impl VolumeTable {
    pub(crate) fn contains(&self, name: &[u8]) -> bool {
        self.read().by_name.contains_key(name)
    }

    pub(crate) fn named(&self, name: &[u8]) -> Option<(Ino, Arc<Volume>)> {
        let attached = self.read();
        let ino = *attached.by_name.get(name)?;
        Some((ino, Arc::clone(&attached.by_ino[&ino])))
    }

    pub(crate) fn get(&self, ino: Ino) -> Option<Arc<Volume>> {
        self.read().by_ino.get(&ino).cloned()
    }

    /// Every name and its number, in the order of the names.
    pub(crate) fn names(&self) -> Vec<(Vec<u8>, Ino)> {
        let attached = self.read();
        let names = attached.by_name.iter();
        names.map(|(name, &ino)| (name.clone(), ino)).collect()
    }

    pub(crate) fn all(&self) -> Vec<Arc<Volume>> {
        self.read().by_ino.values().map(Arc::clone).collect()
    }

    /// The volumes of a VDI.
    pub(crate) fn of(&self, selector: &VdiSelector) -> Vec<(Ino, Arc<Volume>)> {
        let attached = self.read();
        let same = attached
            .by_ino
            .iter()
            .filter(|(_, volume)| volume.selector() == selector);
        same.map(|(&ino, volume)| (ino, Arc::clone(volume)))
            .collect()
    }

    /// The names of the volumes of a VDI.
    pub(crate) fn names_of_vdi(&self, selector: &VdiSelector) -> Vec<Vec<u8>> {
        let attached = self.read();
        let same = |ino: &Ino| attached.by_ino[ino].selector() == selector;
        attached
            .by_name
            .iter()
            .filter(|(_, ino)| same(ino))
            .map(|(name, _)| name.clone())
            .collect()
    }

    /// Adds a volume, under the number that its name had before.
    pub(crate) fn insert(&self, name: Vec<u8>, volume: Arc<Volume>) {
        let mut attached = self.write();
        let ino = attached.number(&name);
        attached.by_name.insert(name, ino);
        attached.by_ino.insert(ino, volume);
    }

    /// Removes a volume unless it is open; false if it is. Excludes
    /// [`Self::while_attached`].
    pub(crate) fn remove_unless(
        &self,
        name: &[u8],
        ino: Ino,
        is_open: impl FnOnce() -> bool,
    ) -> bool {
        let mut attached = self.write();
        if is_open() {
            return false;
        }
        attached.by_name.remove(name);
        attached.by_ino.remove(&ino);
        true
    }

    /// Removes all volumes, open ones too.
    pub(crate) fn drain(&self) -> Vec<Arc<Volume>> {
        let mut attached = self.write();
        attached.by_name.clear();
        std::mem::take(&mut attached.by_ino).into_values().collect()
    }

    /// Runs `open` if `volume` has this number; the volume is not detached meanwhile.
    ///
    /// # Errors
    /// `NotFound` when it is detached, `Stale` when another one has its number.
    pub(crate) fn while_attached<T>(
        &self,
        ino: Ino,
        volume: &Arc<Volume>,
        open: impl FnOnce() -> T,
    ) -> Result<T, FsError> {
        let attached = self.read();
        match attached.by_ino.get(&ino) {
            Some(now) if Arc::ptr_eq(now, volume) => Ok(open()),
            // The kernel looks the path up again.
            Some(_) => Err(VolumeError::Stale(volume.selector().to_string()).into()),
            None => Err(FsError::NotFound),
        }
    }

    fn read(&self) -> RwLockReadGuard<'_, Attached> {
        poison::read(&self.0)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Attached> {
        poison::write(&self.0)
    }
}
