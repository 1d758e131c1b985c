//! Flag words.

bitflags::bitflags! {
    /// What the server can do in the handshake.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct HandshakeFlags: u16 {
        /// Every option is answered.
        const FIXED_NEWSTYLE = 1;
        /// The padding of the reply to `EXPORT_NAME` may be left out.
        const NO_ZEROES = 1 << 1;
    }
}

bitflags::bitflags! {
    /// What the client can do in the handshake.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct ClientFlags: u32 {
        /// It understands replies to every option.
        const FIXED_NEWSTYLE = 1;
        /// It expects no padding.
        const NO_ZEROES = 1 << 1;
    }
}

bitflags::bitflags! {
    /// What an export can do.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct TransmissionFlags: u16 {
        /// This field means something.
        const HAS_FLAGS = 1;
        /// It cannot be written.
        const READ_ONLY = 1 << 1;
        /// It can be flushed.
        const SEND_FLUSH = 1 << 2;
        /// A single write can be made durable.
        const SEND_FUA = 1 << 3;
        /// Ranges can be discarded.
        const SEND_TRIM = 1 << 5;
        /// Zeros can be written without sending them.
        const SEND_WRITE_ZEROES = 1 << 6;
        /// The DF flag of reads is supported.
        const SEND_DF = 1 << 7;
        /// A flush of one connection covers all of them.
        const CAN_MULTI_CONN = 1 << 8;
        /// Ranges can be read ahead.
        const SEND_CACHE = 1 << 10;
        /// The FAST_ZERO flag is supported.
        const SEND_FAST_ZERO = 1 << 11;
        /// Block status of selected contexts is supported.
        const BLOCK_STATUS_PAYLOAD = 1 << 12;
    }
}

bitflags::bitflags! {
    /// How a request is to be carried out.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct CommandFlags: u16 {
        /// Answer when it is durable.
        const FUA = 1;
        /// Zeros are to take space.
        const NO_HOLE = 1 << 1;
        /// Answer a read in one piece.
        const DF = 1 << 2;
        /// One extent of each context is enough.
        const REQ_ONE = 1 << 3;
        /// Write zeros only if that is faster than writing.
        const FAST_ZERO = 1 << 4;
        /// The length is that of a payload.
        const PAYLOAD_LEN = 1 << 5;
        const _ = !0;
    }
}

bitflags::bitflags! {
    /// A chunk of a reply.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct ReplyFlags: u16 {
        /// The last one.
        const DONE = 1;
    }
}

bitflags::bitflags! {
    /// The status of an extent in the context `base:allocation`.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct AllocationState: u32 {
        /// It takes no space.
        const HOLE = 1;
        /// It reads as zeros.
        const ZERO = 1 << 1;
    }
}
