//! The metadata of a VDI, how to name one, and the options of a new one.

use std::fmt;

use sheep_proto::inode::{InodeHeader, max_volume_size, object_count, pack_time};
use sheep_proto::limits::{
    DEFAULT_BLOCK_SIZE_SHIFT, MAX_BLOCK_SIZE_SHIFT, MAX_COPIES, MIN_BLOCK_SIZE_SHIFT,
};
use sheep_proto::{Generation, Malformed, Redundancy, SnapshotTag, VdiName, Vid};

use crate::error::ClientError;

/// One version of a name: its working VDI, or one of its snapshots.
///
/// ```
/// use sheep_client::{SnapshotTag, VdiName, VdiSelector};
///
/// let name = VdiName::new("disk0")?;
/// assert_eq!(VdiSelector::working(name.clone()).to_string(), "disk0");
/// let snapshot = VdiSelector::tag(name, SnapshotTag::new("monday")?);
/// assert_eq!(snapshot.to_string(), "disk0@monday");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct VdiSelector {
    /// Name of the VDI.
    pub name: VdiName,
    /// Which of the VDIs with that name.
    pub version: VdiVersion,
}

/// Tells the VDIs of one name apart.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum VdiVersion {
    /// The writable head.
    Working,
    /// The newest snapshot with this tag.
    Tag(SnapshotTag),
    /// The snapshot with this number.
    SnapId(u32),
}

impl VdiSelector {
    /// The working VDI called `name`.
    pub fn working(name: VdiName) -> Self {
        Self {
            name,
            version: VdiVersion::Working,
        }
    }

    /// The snapshot of `name` tagged `tag`.
    pub fn tag(name: VdiName, tag: SnapshotTag) -> Self {
        Self {
            name,
            version: VdiVersion::Tag(tag),
        }
    }

    /// The snapshot of `name` with number `snap_id`.
    pub fn snap_id(name: VdiName, snap_id: u32) -> Self {
        Self {
            name,
            version: VdiVersion::SnapId(snap_id),
        }
    }
}

/// Prints `NAME`, `NAME@TAG` or `NAME@ID`.
impl fmt::Display for VdiSelector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.version {
            VdiVersion::Working => write!(f, "{}", self.name),
            VdiVersion::Tag(tag) => write!(f, "{}@{tag}", self.name),
            VdiVersion::SnapId(id) => write!(f, "{}@{id}", self.name),
        }
    }
}

/// The metadata in the inode header of a VDI.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VdiInfo {
    /// Its number.
    pub vid: Vid,
    /// Its name.
    pub name: VdiName,
    /// Its tag; empty on a working VDI and on a snapshot without a tag.
    pub tag: SnapshotTag,
    /// 1, 2, 3 ... along the name; the working VDI has one too.
    pub snap_id: u32,
    /// Bytes of the volume.
    pub size: u64,
    /// Object size as a power of two, 20 to 31.
    pub object_shift: u8,
    /// Replicas or erasure code.
    pub redundancy: Redundancy,
    /// Whether the index is a B-tree.
    pub hypervolume: bool,
    /// When it was made: seconds since 1970 in the high half, nanoseconds in the low.
    pub create_time: u64,
    /// When it became a snapshot, in the same form; 0 on a working VDI.
    pub snap_ctime: u64,
    /// The VDI it was made from.
    pub parent: Option<Vid>,
}

impl VdiInfo {
    /// Reads the facts from the header of `vid`'s inode; `None` when the VDI
    /// was deleted, and for an [access list](Generation::is_access_list), which is no
    /// volume.
    ///
    /// # Errors
    /// [`Malformed`] for an object size no cluster can have.
    pub fn from_header(
        vid: Vid,
        header: &InodeHeader,
        generation: Generation,
    ) -> Result<Option<Self>, Malformed> {
        let Some(name) = header.name() else {
            return Ok(None);
        };
        if generation.is_access_list(header) {
            return Ok(None);
        }
        let object_shift = header.object_shift().ok_or(Malformed {
            what: "inode",
            why: "its object size is not 2^20 to 2^31",
        })?;
        Ok(Some(Self {
            vid,
            name,
            tag: header.tag(),
            snap_id: header.snap_id.get(),
            size: header.vdi_size.get(),
            object_shift,
            redundancy: header.redundancy(),
            hypervolume: header.is_hypervolume(),
            create_time: header.create_time.get(),
            snap_ctime: header.snap_ctime.get(),
            parent: header.parent(),
        }))
    }

    /// True once it has become a snapshot.
    pub fn is_snapshot(&self) -> bool {
        self.snap_ctime != 0
    }

    /// Bytes of an object.
    pub fn object_size(&self) -> u64 {
        1 << self.object_shift
    }

    /// Objects of the whole volume.
    pub fn object_count(&self) -> u64 {
        object_count(self.size, self.object_shift)
    }

    /// Bytes the volume could grow to.
    pub fn max_size(&self) -> u64 {
        max_volume_size(self.hypervolume, self.object_shift)
    }
}

/// A VDI to be made.
///
/// ```
/// use sheep_client::{NewVdi, VdiName};
///
/// let new = NewVdi::new(VdiName::new("disk0")?, 1 << 30).with_object_shift(23);
/// assert_eq!(new.object_shift, Some(23));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct NewVdi {
    /// Its name, not yet in use.
    pub name: VdiName,
    /// Bytes of the volume; any number up to what the index can name.
    pub size: u64,
    /// Redundancy; the cluster's default when `None`.
    pub redundancy: Option<Redundancy>,
    /// Object size as a power of two, 20 to 31; the cluster's default when
    /// `None`. A hypervolume always has 22.
    pub object_shift: Option<u8>,
    /// Whether the index shall be a B-tree, for volumes beyond what a flat
    /// index can name.
    pub hypervolume: bool,
}

impl NewVdi {
    /// A VDI with the cluster's defaults.
    pub fn new(name: VdiName, size: u64) -> Self {
        Self {
            name,
            size,
            redundancy: None,
            object_shift: None,
            hypervolume: false,
        }
    }

    /// The VDI with another redundancy than the cluster's default.
    #[must_use]
    pub fn with_redundancy(mut self, redundancy: Redundancy) -> Self {
        self.redundancy = Some(redundancy);
        self
    }

    /// The VDI with objects of `1 << shift` bytes.
    #[must_use]
    pub fn with_object_shift(mut self, shift: u8) -> Self {
        self.object_shift = Some(shift);
        self
    }

    /// The VDI as a hypervolume.
    #[must_use]
    pub fn with_hypervolume(mut self) -> Self {
        self.hypervolume = true;
        self
    }

    /// The object size to ask for, checked against the volume's size.
    pub(crate) fn checked_shift(&self, default: u8) -> Result<u8, ClientError> {
        let shift = match (self.hypervolume, self.object_shift) {
            (true, None | Some(DEFAULT_BLOCK_SIZE_SHIFT)) => DEFAULT_BLOCK_SIZE_SHIFT,
            (true, Some(shift)) => return Err(ClientError::HypervolumeObjectSize { shift }),
            (false, shift) => shift.unwrap_or(default),
        };
        check_shift(shift)?;
        check_size(self.size, max_volume_size(self.hypervolume, shift))?;
        Ok(shift)
    }
}

/// Refuses an object size that a sheep accepts but that is unusable (protocol 4.2).
pub(crate) fn check_shift(shift: u8) -> Result<(), ClientError> {
    if (MIN_BLOCK_SIZE_SHIFT..=MAX_BLOCK_SIZE_SHIFT).contains(&shift) {
        Ok(())
    } else {
        Err(ClientError::ObjectSize { shift })
    }
}

/// Refuses a size that the index cannot name; a sheep would not (protocol 4.2).
pub(crate) fn check_size(size: u64, limit: u64) -> Result<(), ClientError> {
    if size > limit {
        Err(ClientError::TooLarge { size, limit })
    } else {
        Ok(())
    }
}

/// Refuses a redundancy that no cluster can hold; some kill a sheep (protocol 1.9).
pub(crate) fn check_redundancy(redundancy: Redundancy) -> Result<(), ClientError> {
    match redundancy {
        Redundancy::Replicated(1..=MAX_COPIES)
        | Redundancy::Erasure {
            data: 2 | 4 | 8 | 16,
            parity: 1..=15,
        } => Ok(()),
        _ => Err(ClientError::Redundancy(redundancy)),
    }
}

/// Now, in the form of `create_time`.
pub(crate) fn packed_now() -> u64 {
    let now = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap_or_default();
    pack_time(
        u32::try_from(now.as_secs()).unwrap_or(u32::MAX),
        now.subsec_nanos(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn new(size: u64, object_shift: Option<u8>, hypervolume: bool) -> NewVdi {
        let name = VdiName::new("v").unwrap();
        NewVdi {
            object_shift,
            hypervolume,
            ..NewVdi::new(name, size)
        }
    }

    #[test]
    fn vdi_size_is_limited_by_its_index() {
        assert_eq!(new(4 << 40, None, false).checked_shift(22).unwrap(), 22);
        assert!(matches!(
            new((4 << 40) + 1, None, false).checked_shift(22),
            Err(ClientError::TooLarge { limit, .. }) if limit == 4 << 40
        ));
        assert_eq!(new(1 << 54, None, true).checked_shift(23).unwrap(), 22);
    }

    #[test]
    fn object_size_no_client_can_use_is_refused() {
        for shift in [0, 9, 19, 32, 40] {
            assert!(matches!(
                new(1, Some(shift), false).checked_shift(22),
                Err(ClientError::ObjectSize { shift: refused }) if refused == shift
            ));
        }
        assert!(new(1, Some(23), true).checked_shift(22).is_err());
    }

    #[test]
    fn redundancy_that_crashes_a_sheep_is_refused() {
        let erasure = |data, parity| Redundancy::Erasure { data, parity };
        for bad in [erasure(2, 0), erasure(0, 1), erasure(6, 2), erasure(4, 16)] {
            assert!(check_redundancy(bad).is_err(), "{bad}");
        }
        for bad in [0, 32] {
            assert!(check_redundancy(Redundancy::Replicated(bad)).is_err());
        }
        for good in [erasure(2, 1), erasure(16, 15), Redundancy::Replicated(31)] {
            assert!(check_redundancy(good).is_ok(), "{good}");
        }
    }
}
