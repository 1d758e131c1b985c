//! Error numbers of replies, and what ends a connection.

/// Error number in a reply.
///
/// Source: "Error values" of the specification.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum ErrorCode {
    /// The export is read-only.
    Perm = 1,
    /// The cluster could not do it.
    Io = 5,
    /// There is no memory for it.
    NoMem = 12,
    /// The request is wrong.
    Invalid = 22,
    /// The cluster is full, or the write lies past the end.
    NoSpace = 28,
    /// The request would not be fast.
    NotSupported = 95,
    /// The server is about to end.
    Shutdown = 108,
}

impl ErrorCode {
    /// The number on the wire.
    pub const fn number(self) -> u32 {
        self as u32
    }
}

/// What a client sent that no client sends. The stream behind it cannot be
/// understood: the connection is closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProtocolError {
    /// Flags that the server has not offered.
    #[error("the client set unknown handshake flags: {0:#010x}")]
    ClientFlags(u32),
    /// No option begins like this.
    #[error("an option begins with {0:#018x} instead of IHAVEOPT")]
    OptionMagic(u64),
    /// No request begins like this.
    #[error("a request begins with {0:#010x} instead of its magic number")]
    RequestMagic(u32),
    /// An option of a length that no option has.
    #[error("option {option} has {len} bytes of data")]
    OptionTooLong {
        /// Its number.
        option: u32,
        /// Its length.
        len: u32,
    },
    /// A payload of a length that the server has not offered.
    #[error("a request has {0} bytes of payload")]
    PayloadTooLong(u64),
    /// A client that negotiates without end.
    #[error("the client has sent more options than {}", super::limits::MAX_OPTIONS)]
    TooManyOptions,
}
