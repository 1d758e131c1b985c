//! Replies of the transmission phase.
//!
//! | style | answers | when |
//! |---|---|---|
//! | simple | one message; data behind it when it is a read without an error | by default |
//! | structured | chunks for reads and block status, else simple messages | `STRUCTURED_REPLY` |
//! | extended | chunks with headers of 32 bytes for everything | `EXTENDED_HEADERS` |

use bytes::{BufMut as _, Bytes, BytesMut};
use zerocopy::big_endian::{U16, U32, U64};
use zerocopy::{Immutable, IntoBytes, Unaligned};

use super::error::ErrorCode;
use super::flags::ReplyFlags;
use super::limits::MAX_STRING_LEN;

const SIMPLE_MAGIC: u32 = 0x6744_6698;
const STRUCTURED_MAGIC: u32 = 0x668e_33ef;
const EXTENDED_MAGIC: u32 = 0x6e8a_278c;

const NONE: u16 = 0;
const OFFSET_DATA: u16 = 1;
const OFFSET_HOLE: u16 = 2;
const BLOCK_STATUS: u16 = 5;
const BLOCK_STATUS_EXT: u16 = 6;
const ERROR: u16 = (1 << 15) + 1;

/// Which replies the client understands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReplyStyle {
    /// Simple ones alone.
    Simple,
    /// Structured ones, too.
    Structured,
    /// Extended ones, and no others.
    Extended,
}

/// A message: its header, and data that is sent behind it without being copied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// Header, and what belongs to it.
    pub head: Bytes,
    /// Bytes of the export.
    pub data: Bytes,
}

impl Frame {
    /// Bytes on the wire.
    pub fn wire_len(&self) -> usize {
        self.head.len() + self.data.len()
    }
}

/// An extent with the status that a context gives it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StatusExtent {
    /// Bytes, at least one.
    pub len: u64,
    /// Status flags or value of the context.
    pub status: u32,
}

/// Where a reply belongs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReplyTo {
    /// What the client understands.
    pub style: ReplyStyle,
    /// The cookie of the request.
    pub cookie: u64,
    /// The offset of the request.
    pub offset: u64,
}

#[derive(IntoBytes, Immutable, Unaligned)]
#[repr(C)]
struct SimpleHeader {
    magic: U32,
    error: U32,
    cookie: U64,
}

#[derive(IntoBytes, Immutable, Unaligned)]
#[repr(C)]
struct StructuredHeader {
    magic: U32,
    flags: U16,
    kind: U16,
    cookie: U64,
    len: U32,
}

#[derive(IntoBytes, Immutable, Unaligned)]
#[repr(C)]
struct ExtendedHeader {
    magic: U32,
    flags: U16,
    kind: U16,
    cookie: U64,
    offset: U64,
    len: U64,
}

const _: () = assert!(
    size_of::<SimpleHeader>() == 16
        && size_of::<StructuredHeader>() == 20
        && size_of::<ExtendedHeader>() == 32
);

impl ReplyTo {
    /// The end of a successful reply: all of a simple one.
    pub fn done(self) -> Frame {
        match self.style {
            ReplyStyle::Extended => self.chunk(NONE, true, &[], Bytes::new()),
            ReplyStyle::Simple | ReplyStyle::Structured => self.simple(0, Bytes::new()),
        }
    }

    /// The end of a reply to a read that has no content.
    pub fn no_content(self) -> Frame {
        match self.style {
            ReplyStyle::Simple => self.simple(0, Bytes::new()),
            ReplyStyle::Structured | ReplyStyle::Extended => {
                self.chunk(NONE, true, &[], Bytes::new())
            }
        }
    }

    /// A failure, and what is known about it, which ends the reply.
    pub fn error(self, code: ErrorCode, message: &str) -> Frame {
        if self.style == ReplyStyle::Simple {
            return self.simple(code.number(), Bytes::new());
        }
        let message = shorten(message);
        let mut payload = Vec::with_capacity(6 + message.len());
        payload.put_u32(code.number());
        payload.put_u16(u16::try_from(message.len()).expect("at most 4,096"));
        payload.put_slice(message.as_bytes());
        self.chunk(ERROR, true, &payload, Bytes::new())
    }

    /// All that was read, in a simple reply.
    pub fn simple_data(self, data: Bytes) -> Frame {
        self.simple(0, data)
    }

    /// Bytes that were read from byte `offset` of the export on. Not for simple
    /// replies.
    pub fn data(self, offset: u64, data: Bytes, is_last: bool) -> Frame {
        self.chunk(OFFSET_DATA, is_last, &offset.to_be_bytes(), data)
    }

    /// Bytes from byte `offset` of the export on that are zeros. Not for simple
    /// replies.
    pub fn hole(self, offset: u64, len: u32, is_last: bool) -> Frame {
        let mut payload = [0; 12];
        payload[..8].copy_from_slice(&offset.to_be_bytes());
        payload[8..].copy_from_slice(&len.to_be_bytes());
        self.chunk(OFFSET_HOLE, is_last, &payload, Bytes::new())
    }

    /// The extents of one context from the request's offset on, at least one. Not
    /// for simple replies. A length that does not fit is cut, and nothing follows it.
    pub fn block_status(self, context: u32, extents: &[StatusExtent], is_last: bool) -> Frame {
        let mut payload = Vec::with_capacity(8 + 16 * extents.len());
        payload.put_u32(context);
        if self.style == ReplyStyle::Extended {
            payload.put_u32(u32::try_from(extents.len()).expect("at most MAX_EXTENTS"));
            for extent in extents {
                payload.put_u64(extent.len);
                payload.put_u64(u64::from(extent.status));
            }
            return self.chunk(BLOCK_STATUS_EXT, is_last, &payload, Bytes::new());
        }
        for extent in extents {
            let len = u32::try_from(extent.len);
            payload.put_u32(len.unwrap_or(LONGEST_EXTENT));
            payload.put_u32(extent.status);
            if len.is_err() {
                break;
            }
        }
        self.chunk(BLOCK_STATUS, is_last, &payload, Bytes::new())
    }

    fn simple(self, error: u32, data: Bytes) -> Frame {
        let header = SimpleHeader {
            magic: SIMPLE_MAGIC.into(),
            error: error.into(),
            cookie: self.cookie.into(),
        };
        Frame {
            head: Bytes::copy_from_slice(header.as_bytes()),
            data,
        }
    }

    fn chunk(self, kind: u16, is_last: bool, payload: &[u8], data: Bytes) -> Frame {
        let len = payload.len() + data.len();
        let flags = match is_last {
            true => ReplyFlags::DONE,
            false => ReplyFlags::empty(),
        };
        let mut head = BytesMut::with_capacity(size_of::<ExtendedHeader>() + payload.len());
        match self.style {
            ReplyStyle::Extended => head.put_slice(
                ExtendedHeader {
                    magic: EXTENDED_MAGIC.into(),
                    flags: flags.bits().into(),
                    kind: kind.into(),
                    cookie: self.cookie.into(),
                    offset: self.offset.into(),
                    len: (len as u64).into(),
                }
                .as_bytes(),
            ),
            ReplyStyle::Simple | ReplyStyle::Structured => head.put_slice(
                StructuredHeader {
                    magic: STRUCTURED_MAGIC.into(),
                    flags: flags.bits().into(),
                    kind: kind.into(),
                    cookie: self.cookie.into(),
                    len: u32::try_from(len).expect("a payload fits").into(),
                }
                .as_bytes(),
            ),
        }
        head.put_slice(payload);
        Frame {
            head: head.freeze(),
            data,
        }
    }
}

/// A multiple of every block size.
const LONGEST_EXTENT: u32 = 1 << 31;

/// The part of a message that the protocol has room for.
pub(super) fn shorten(message: &str) -> &str {
    let mut end = message.len().min(MAX_STRING_LEN);
    while !message.is_char_boundary(end) {
        end -= 1;
    }
    &message[..end]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn to(style: ReplyStyle) -> ReplyTo {
        ReplyTo {
            style,
            cookie: 0x0102_0304_0506_0708,
            offset: 0x1000,
        }
    }

    fn hex(frame: &Frame) -> String {
        let bytes = frame.head.iter().chain(&frame.data);
        bytes.map(|byte| format!("{byte:02x}")).collect()
    }

    #[test]
    fn simple_reply_has_header_and_data() {
        let reply = to(ReplyStyle::Simple);
        assert_eq!(hex(&reply.done()), "67446698000000000102030405060708");
        assert_eq!(
            hex(&reply.simple_data(Bytes::from_static(b"ab"))),
            "674466980000000001020304050607086162"
        );
        assert_eq!(
            hex(&reply.error(ErrorCode::NoSpace, "full")),
            "674466980000001c0102030405060708"
        );
    }

    #[test]
    fn structured_reply_is_chunks() {
        let reply = to(ReplyStyle::Structured);
        assert_eq!(hex(&reply.done()), "67446698000000000102030405060708");
        assert_eq!(
            hex(&reply.no_content()),
            "668e33ef00010000010203040506070800000000"
        );
        assert_eq!(
            hex(&reply.data(0x2000, Bytes::from_static(b"ab"), false)),
            "668e33ef0000000101020304050607080000000a00000000000020006162"
        );
        assert_eq!(
            hex(&reply.hole(0x2000, 0x200, true)),
            "668e33ef0001000201020304050607080000000c000000000000200000000200"
        );
        assert_eq!(
            hex(&reply.error(ErrorCode::Invalid, "no")),
            "668e33ef000180010102030405060708000000080000001600026e6f"
        );
    }

    #[test]
    fn extended_reply_repeats_request_offset() {
        let reply = to(ReplyStyle::Extended);
        assert_eq!(
            hex(&reply.done()),
            "6e8a278c00010000010203040506070800000000000010000000000000000000"
        );
        assert_eq!(
            hex(&reply.data(0x2000, Bytes::from_static(b"ab"), true)),
            "6e8a278c0001000101020304050607080000000000001000000000000000000a\
             00000000000020006162"
        );
    }

    #[test]
    fn block_status_reply_has_every_extent() {
        let extents = [
            StatusExtent {
                len: 512,
                status: 0,
            },
            StatusExtent {
                len: 1 << 40,
                status: 3,
            },
            StatusExtent { len: 1, status: 0 },
        ];
        assert_eq!(
            hex(&to(ReplyStyle::Structured).block_status(7, &extents, true)),
            "668e33ef00010005010203040506070800000014000000070000020000000000\
             8000000000000003"
        );
        assert_eq!(
            hex(&to(ReplyStyle::Extended).block_status(7, &extents[..2], false)),
            "6e8a278c00000006010203040506070800000000000010000000000000000028\
             000000070000000200000000000002000000000000000000\
             00000100000000000000000000000003"
        );
    }

    #[test]
    fn long_message_is_cut_between_characters() {
        let message = "ä".repeat(3000);
        assert_eq!(shorten(&message).len(), MAX_STRING_LEN);
        assert_eq!(shorten(&format!("x{message}")).len(), MAX_STRING_LEN - 1);
        assert_eq!(shorten("short"), "short");
    }
}
