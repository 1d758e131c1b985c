//! VDI ids, object ids and object numbers.
//!
//! All arithmetic on raw object ids lives here. Source: protocol 3.1.

use std::fmt;
use std::num::NonZeroU32;

const KIND_MASK: u64 = 0xf800_0000_0000_0000;
const UNUSED_MASK: u64 = 0x0700_0000_0000_0000;
const VID_SHIFT: u32 = 32;
const VID_MASK: u32 = 0x00ff_ffff;

/// The 24-bit number of a VDI; never 0, so that a slot is an `Option<Vid>` of four bytes.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Vid(NonZeroU32);

impl Vid {
    /// The VID `raw`, unless it is 0 or wider than 24 bits.
    pub const fn new(raw: u32) -> Option<Self> {
        match NonZeroU32::new(raw) {
            Some(vid) if raw <= VID_MASK => Some(Self(vid)),
            _ => None,
        }
    }

    /// The VID that a name's hash stands for: its low 24 bits, 1 for 0 (protocol 6.1).
    pub(crate) fn from_low_bits(hash: u64) -> Self {
        let [a, b, c, ..] = hash.to_le_bytes();
        Self(NonZeroU32::new(u32::from_le_bytes([a, b, c, 0])).unwrap_or(NonZeroU32::MIN))
    }

    /// The number itself.
    pub const fn get(self) -> u32 {
        self.0.get()
    }
}

impl fmt::Debug for Vid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Vid({:x})", self.0)
    }
}

/// Prints as dog does: hexadecimal without leading zeros.
impl fmt::Display for Vid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:x}", self.0)
    }
}

/// Number of a data object in its VDI: volume offset divided by object size.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ObjectIndex(pub u32);

impl fmt::Display for ObjectIndex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Version of the cluster's membership; grows by one with every change.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Epoch(pub u32);

/// What an object holds, from the top five bits of its id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ObjectKind {
    /// A piece of a volume.
    Data,
    /// The VDI's metadata.
    Inode,
    /// Memory of a saved virtual machine.
    VmState,
    /// A key and value attached to a VDI.
    Attribute,
    /// A node of a hypervolume's index.
    BtreeNode,
    /// Reference counts of a data object.
    Ledger,
}

/// The 64-bit id of an object.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Oid(u64);

impl Oid {
    const INODE: u64 = 1 << 63;
    const VM_STATE: u64 = 1 << 62;
    const ATTRIBUTE: u64 = 1 << 61;
    const BTREE_NODE: u64 = 1 << 60;
    const LEDGER: u64 = 1 << 59;

    const fn build(kind: u64, vid: Vid, number: u32) -> Self {
        Self(kind | (vid.0.get() as u64) << VID_SHIFT | number as u64)
    }

    /// Data object `index` of `vid`.
    pub const fn data(vid: Vid, index: ObjectIndex) -> Self {
        Self::build(0, vid, index.0)
    }

    /// The inode of `vid`.
    pub const fn inode(vid: Vid) -> Self {
        Self::build(Self::INODE, vid, 0)
    }

    /// Saved machine memory `number` of `vid`.
    pub const fn vm_state(vid: Vid, number: u32) -> Self {
        Self::build(Self::VM_STATE, vid, number)
    }

    /// Attribute `attribute_id` of `vid`.
    pub const fn attribute(vid: Vid, attribute_id: u32) -> Self {
        Self::build(Self::ATTRIBUTE, vid, attribute_id)
    }

    /// B-tree node `number` of `vid`.
    pub const fn btree_node(vid: Vid, number: u32) -> Self {
        Self::build(Self::BTREE_NODE, vid, number)
    }

    /// Ledger of data object `index` of `vid`.
    pub const fn ledger(vid: Vid, index: ObjectIndex) -> Self {
        Self::build(Self::LEDGER, vid, index.0)
    }

    /// An id as it stands on the wire; it may be malformed, see [`Oid::kind`].
    pub const fn from_raw(raw: u64) -> Self {
        Self(raw)
    }

    /// The id as it stands on the wire.
    pub const fn raw(self) -> u64 {
        self.0
    }

    /// The kind, or `None` when the bits name none or several, or unused bits are set.
    pub const fn kind(self) -> Option<ObjectKind> {
        if self.0 & UNUSED_MASK != 0 {
            return None;
        }
        match self.0 & KIND_MASK {
            0 => Some(ObjectKind::Data),
            Self::INODE => Some(ObjectKind::Inode),
            Self::VM_STATE => Some(ObjectKind::VmState),
            Self::ATTRIBUTE => Some(ObjectKind::Attribute),
            Self::BTREE_NODE => Some(ObjectKind::BtreeNode),
            Self::LEDGER => Some(ObjectKind::Ledger),
            _ => None,
        }
    }

    /// The VDI the object belongs to, or `None` for VID 0.
    pub const fn vid(self) -> Option<Vid> {
        Vid::new((self.0 >> VID_SHIFT) as u32 & VID_MASK)
    }

    /// The low 32 bits: object number, attribute id or node number.
    #[expect(clippy::cast_possible_truncation, reason = "the low half is meant")]
    pub const fn number(self) -> u32 {
        self.0 as u32
    }
}

impl fmt::Debug for Oid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Oid({:016x})", self.0)
    }
}

/// Prints 16 hexadecimal digits, the name of the object's file in a plain store.
impl fmt::Display for Oid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn ids_have_the_documented_bits() {
        let vid = Vid::new(0xed202b).unwrap();
        assert_eq!(
            Oid::data(vid, ObjectIndex(3)).to_string(),
            "00ed202b00000003"
        );
        assert_eq!(Oid::inode(vid).to_string(), "80ed202b00000000");
        assert_eq!(Oid::vm_state(vid, 1).to_string(), "40ed202b00000001");
        assert_eq!(
            Oid::attribute(vid, 0xc323_bb4c).to_string(),
            "20ed202bc323bb4c"
        );
        assert_eq!(Oid::btree_node(vid, 0).to_string(), "10ed202b00000000");
        assert_eq!(
            Oid::ledger(vid, ObjectIndex(3)).to_string(),
            "08ed202b00000003"
        );
        assert_eq!(Vid::new(0), None);
        assert_eq!(Vid::new(1 << 24), None);
    }

    #[test]
    fn oid_of_data_has_nothing_in_its_upper_byte() {
        let data = Oid::data(Vid::new(0xff_ffff).unwrap(), ObjectIndex(u32::MAX));
        assert_eq!(data.kind(), Some(ObjectKind::Data));
        for bit in 56..64 {
            let other = Oid::from_raw(data.raw() | 1 << bit);
            assert_ne!(other.kind(), Some(ObjectKind::Data), "bit {bit}");
        }
    }

    #[test]
    fn oid_with_two_kinds_has_no_kind() {
        assert_eq!(Oid::from_raw(0xc000_0001_0000_0000).kind(), None);
        assert_eq!(Oid::from_raw(0x0100_0001_0000_0000).kind(), None);
    }

    proptest! {
        #[test]
        fn parts_come_back_out(vid in 1u32..1 << 24, number: u32) {
            let vid = Vid::new(vid).unwrap();
            for (oid, kind) in [
                (Oid::data(vid, ObjectIndex(number)), ObjectKind::Data),
                (Oid::vm_state(vid, number), ObjectKind::VmState),
                (Oid::attribute(vid, number), ObjectKind::Attribute),
                (Oid::btree_node(vid, number), ObjectKind::BtreeNode),
                (Oid::ledger(vid, ObjectIndex(number)), ObjectKind::Ledger),
            ] {
                prop_assert_eq!((oid.vid(), oid.number(), oid.kind()), (Some(vid), number, Some(kind)));
            }
        }
    }
}
