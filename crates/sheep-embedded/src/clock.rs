//! The time as inodes and epochs have it.

use std::time::{SystemTime, UNIX_EPOCH};

use sheep_proto::inode::pack_time;

/// The time in the format of an inode's times; its upper half is seconds since 1970.
pub(crate) fn now() -> u64 {
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    let seconds = u32::try_from(now.as_secs()).unwrap_or(u32::MAX);
    pack_time(seconds, now.subsec_nanos())
}
