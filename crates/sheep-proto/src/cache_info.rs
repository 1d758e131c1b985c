//! What the object cache of a sheep before 1.0 holds.

use std::mem::size_of;

use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::Malformed;
use crate::id::Vid;
use crate::limits::CACHE_INFO_LEN;

/// Records in an answer to GET_CACHE_INFO.
const MAX_CACHES: usize = 1024;

/// What is cached of one VDI.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(C)]
pub struct CachedVdi {
    /// The VDI.
    pub vid: U32,
    /// Objects that have not been written back.
    pub dirty: U32,
    /// Objects in all.
    pub total: U32,
}

/// The answer to GET_CACHE_INFO.
///
/// Source: `struct object_cache_info` in sheepdog's `include/internal_proto.h` of 0.9.
#[derive(Clone, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct CacheInfo {
    /// Bytes the cache may use; 0 when the sheep has none.
    pub size: U64,
    /// Bytes it uses.
    pub used: U64,
    /// The VDIs, the first `count` of them.
    pub vdis: [CachedVdi; MAX_CACHES],
    /// Records in use; signed in C, and a negative number is refused as too many.
    pub count: U32,
    /// Whether the cache bypasses the page cache of its host; not in 0.7.
    pub direct_io: u8,
    /// Padding.
    pub pad: [u8; 3],
}

const _: () = assert!(size_of::<CacheInfo>() == CACHE_INFO_LEN);

impl CacheInfo {
    /// Reads a GET_CACHE_INFO payload.
    ///
    /// # Errors
    /// [`Malformed`] unless it has exactly its length and at most 1,024 VDIs.
    pub fn parse(payload: &[u8]) -> Result<&Self, Malformed> {
        let info = Self::ref_from_bytes(payload)
            .map_err(|_| Malformed::new("cache information", "it does not have 12,312 bytes"))?;
        if info.count.get() as usize > MAX_CACHES {
            return Err(Malformed::new(
                "cache information",
                "it names more VDIs than it holds",
            ));
        }
        Ok(info)
    }

    /// True when the sheep has an object cache.
    pub fn is_enabled(&self) -> bool {
        self.size.get() != 0
    }

    /// What is cached of a VDI.
    pub fn of(&self, vid: Vid) -> Option<CachedVdi> {
        let count = (self.count.get() as usize).min(MAX_CACHES);
        let mut known = self.vdis[..count].iter().copied();
        known.find(|cached| cached.vid.get() == vid.get())
    }
}

#[cfg(test)]
mod tests {
    use zerocopy::FromZeros as _;

    use super::*;

    #[test]
    fn cached_vdis_are_found_among_those_in_use() {
        let mut info = CacheInfo::new_zeroed();
        info.size = 1.into();
        info.count = 1.into();
        for (cached, vid) in info.vdis.iter_mut().zip([7, 8]) {
            cached.vid = vid.into();
            cached.dirty = 3.into();
        }
        let info = CacheInfo::parse(info.as_bytes()).unwrap();
        assert!(info.is_enabled());
        assert_eq!(info.of(Vid::new(7).unwrap()).unwrap().dirty.get(), 3);
        assert_eq!(info.of(Vid::new(8).unwrap()), None);
    }

    #[test]
    fn cache_information_of_another_length_or_with_too_many_vdis_is_refused() {
        let mut info = CacheInfo::new_zeroed();
        assert!(CacheInfo::parse(&info.as_bytes()[1..]).is_err());
        info.count = 1025.into();
        assert!(CacheInfo::parse(info.as_bytes()).is_err());
        info.count = u32::MAX.into();
        assert!(CacheInfo::parse(info.as_bytes()).is_err());
    }
}
