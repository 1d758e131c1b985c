//! The 2 MiB bitmaps of READ_VDIS and READ_DEL_VDIS.

use crate::Malformed;
use crate::id::Vid;
use crate::limits::VID_BITMAP_LEN;

/// A set of VIDs as it travels; bit `v` is byte `v / 8`, bit `v % 8`.
///
/// Source: protocol 5.2.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VidBitmap<B>(B);

impl<B: AsRef<[u8]>> VidBitmap<B> {
    /// Takes the payload of a READ_VDIS or READ_DEL_VDIS response.
    ///
    /// # Errors
    /// [`Malformed`] unless it has exactly 2 MiB.
    pub fn parse(bytes: B) -> Result<Self, Malformed> {
        if bytes.as_ref().len() == VID_BITMAP_LEN {
            Ok(Self(bytes))
        } else {
            Err(Malformed::new("VID bitmap", "it does not have 2 MiB"))
        }
    }

    /// True when `vid` is in the set.
    pub fn contains(&self, vid: Vid) -> bool {
        let bit = vid.get() as usize;
        self.0.as_ref()[bit / 8] & (1 << (bit % 8)) != 0
    }

    /// The VIDs of the set in ascending order.
    pub fn iter(&self) -> impl Iterator<Item = Vid> {
        let words = self.0.as_ref().chunks_exact(8).map(|word| {
            u64::from_le_bytes(word.try_into().expect("chunks_exact gives eight bytes"))
        });
        (0u32..)
            .zip(words)
            .flat_map(|(number, mut word)| {
                std::iter::from_fn(move || {
                    (word != 0).then(|| {
                        let bit = word.trailing_zeros();
                        word &= word - 1;
                        number * 64 + bit
                    })
                })
            })
            .filter_map(Vid::new)
    }
}

impl VidBitmap<Box<[u8]>> {
    /// The empty set.
    pub fn empty() -> Self {
        Self(vec![0; VID_BITMAP_LEN].into())
    }

    /// Adds `vid` to the set.
    pub fn insert(&mut self, vid: Vid) {
        let bit = vid.get() as usize;
        self.0[bit / 8] |= 1 << (bit % 8);
    }

    /// The bytes as they travel.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_come_back_in_order() {
        let mut bitmap = VidBitmap::empty();
        let vids = [0x11_f338, 1, 0xff_ffff, 63, 64].map(|raw| Vid::new(raw).unwrap());
        for vid in vids {
            bitmap.insert(vid);
            assert!(bitmap.contains(vid));
        }
        assert_eq!(bitmap.as_bytes()[0x23e67], 0x01);
        let found: Vec<_> = bitmap.iter().map(Vid::get).collect();
        assert_eq!(found, [1, 63, 64, 0x11_f338, 0xff_ffff]);
    }

    #[test]
    fn vid_bitmap_when_short_is_refused() {
        assert!(VidBitmap::parse([0u8; 512].as_slice()).is_err());
    }
}
