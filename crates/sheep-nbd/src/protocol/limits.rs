//! Every length that the server accepts, advertises or sends.

/// Bytes of a name, a query or a message: "strings" of the specification.
pub const MAX_STRING_LEN: usize = 4096;

/// Data bytes of an option that is read. The longest options list queries of
/// metadata contexts.
pub const MAX_OPTION_LEN: u32 = 128 << 10;

/// Data bytes of an option that is skipped, and refused with `TOO_BIG`; with more
/// the connection is closed.
pub const MAX_SKIPPED_OPTION_LEN: u32 = 1 << 20;

/// Options of one connection.
pub const MAX_OPTIONS: u32 = 1024;

/// Queries in a list or selection of metadata contexts.
pub const MAX_QUERIES: usize = 128;

/// Metadata contexts selected for a connection.
pub const MAX_CONTEXTS: usize = 8;

/// Bytes of the smallest request: any alignment is served.
pub const MIN_BLOCK_LEN: u32 = 1;

/// Bytes that the data of a request is best a multiple of.
pub const PREFERRED_BLOCK_LEN: u32 = 4096;

/// Bytes that are read or written by one request.
pub const MAX_PAYLOAD_LEN: u32 = 32 << 20;

/// Bytes of a payload that is skipped, and refused; with more the connection is
/// closed.
pub const MAX_SKIPPED_PAYLOAD_LEN: u64 = 64 << 20;

/// Bytes of the payload of a block status request: an effect length, and each
/// selected context once.
pub const MAX_STATUS_PAYLOAD_LEN: u64 = 8 + 4 * MAX_CONTEXTS as u64;

/// Extents in a block status, of all its contexts together.
pub const MAX_EXTENTS: usize = 16_384;
