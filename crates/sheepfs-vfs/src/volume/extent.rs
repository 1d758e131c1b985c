//! Byte ranges cut into extents: the parts that fall in one object each.

use sheep_proto::ObjectIndex;

/// The part of a range that falls in one object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Extent {
    pub(crate) index: ObjectIndex,
    /// First byte in the object.
    pub(crate) offset: u32,
    pub(crate) len: u32,
}

impl Extent {
    /// The first `len` bytes, as far as there are so many, and what follows.
    pub(crate) fn split_at(self, len: u32) -> (Self, Self) {
        let len = len.min(self.len);
        let first = Self { len, ..self };
        let rest = Self {
            offset: self.offset + len,
            len: self.len - len,
            ..self
        };
        (first, rest)
    }
}

/// Yields the extents of `[offset, offset + len)` in ascending order.
///
/// Objects have `1 << shift` bytes, `shift` at most 31. The caller has clamped
/// the range to a volume that an index can name, so an object number fits 32 bits.
#[expect(
    clippy::cast_possible_truncation,
    reason = "bounded by the object size, 2^31"
)]
pub(crate) fn extents(offset: u64, len: u64, shift: u8) -> impl Iterator<Item = Extent> {
    let (size, end) = (1u64 << shift, offset + len);
    let first = offset >> shift;
    let after_last = if len == 0 {
        first
    } else {
        ((end - 1) >> shift) + 1
    };
    (first..after_last).map(move |index| {
        let object_start = index << shift;
        let start = offset.max(object_start);
        let stop = end.min(object_start + size);
        Extent {
            index: ObjectIndex(
                u32::try_from(index).expect("the caller clamps the range to 2^32 objects"),
            ),
            offset: (start - object_start) as u32,
            len: (stop - start) as u32,
        }
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn extents_tile_the_range(offset in 0..1u64 << 42, len in 0..64u64 << 20, shift in 20u8..=31) {
            let size = 1u64 << shift;
            let mut at = offset;
            for extent in extents(offset, len, shift) {
                prop_assert_eq!(u64::from(extent.index.0) * size + u64::from(extent.offset), at);
                prop_assert!(extent.len > 0);
                prop_assert!(u64::from(extent.offset) + u64::from(extent.len) <= size);
                at += u64::from(extent.len);
            }
            prop_assert_eq!(at, offset + len);
        }
    }
}
