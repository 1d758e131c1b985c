//! Units of sizes.

/// Bytes of a mebibyte, for lengths in memory.
pub const MIB: usize = 1 << 20;
/// Bytes of a mebibyte, for offsets in files.
pub const MIB_U64: u64 = 1 << 20;
