//! Headers of requests in the transmission phase.

use zerocopy::big_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::error::ProtocolError;
use super::flags::CommandFlags;

const COMPACT_MAGIC: u32 = 0x2560_9513;
const EXTENDED_MAGIC: u32 = 0x21e4_1c71;

/// How the requests of a connection are laid out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HeaderStyle {
    /// 28 bytes, with a length of 32 bits.
    Compact,
    /// 32 bytes, with a length of 64 bits.
    Extended,
}

impl HeaderStyle {
    /// Bytes of a header.
    pub const fn header_len(self) -> usize {
        match self {
            Self::Compact => size_of::<CompactHeader>(),
            Self::Extended => size_of::<ExtendedHeader>(),
        }
    }
}

/// Bytes of the longest header.
pub const MAX_HEADER_LEN: usize = size_of::<ExtendedHeader>();

#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct CompactHeader {
    magic: U32,
    flags: U16,
    command: U16,
    cookie: U64,
    offset: U64,
    len: U32,
}

#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct ExtendedHeader {
    magic: U32,
    flags: U16,
    command: U16,
    cookie: U64,
    offset: U64,
    len: U64,
}

const _: () = assert!(size_of::<CompactHeader>() == 28 && size_of::<ExtendedHeader>() == 32);

/// Type of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// Bytes of the export.
    Read,
    /// Store the payload.
    Write,
    /// The client goes; there is no reply.
    Disconnect,
    /// Make durable what was answered.
    Flush,
    /// Give space back.
    Trim,
    /// Read ahead.
    Cache,
    /// Store zeros.
    WriteZeroes,
    /// The extents of the selected contexts.
    BlockStatus,
    /// None that the specification has.
    Unknown(u16),
}

impl From<u16> for Command {
    fn from(number: u16) -> Self {
        match number {
            0 => Self::Read,
            1 => Self::Write,
            2 => Self::Disconnect,
            3 => Self::Flush,
            4 => Self::Trim,
            5 => Self::Cache,
            6 => Self::WriteZeroes,
            7 => Self::BlockStatus,
            unknown => Self::Unknown(unknown),
        }
    }
}

impl Command {
    /// Whether it changes the export.
    pub const fn is_write(self) -> bool {
        matches!(self, Self::Write | Self::Trim | Self::WriteZeroes)
    }

    /// The flags that mean something with it. `FUA` is accepted with every command:
    /// clients are known to set it anywhere.
    pub const fn flags(self, style: HeaderStyle) -> CommandFlags {
        let own = match self {
            Self::Read => CommandFlags::DF,
            Self::WriteZeroes => CommandFlags::NO_HOLE.union(CommandFlags::FAST_ZERO),
            Self::BlockStatus => CommandFlags::REQ_ONE,
            _ => CommandFlags::empty(),
        };
        let payload = match (style, self) {
            (HeaderStyle::Extended, Self::Write | Self::BlockStatus) => CommandFlags::PAYLOAD_LEN,
            _ => CommandFlags::empty(),
        };
        own.union(payload).union(CommandFlags::FUA)
    }
}

/// The header of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RequestHeader {
    /// The client's name for it, which the reply repeats.
    pub cookie: u64,
    /// Type of the request.
    pub command: Command,
    /// How.
    pub flags: CommandFlags,
    /// First byte of the export that it is about.
    pub offset: u64,
    /// Bytes of the export that it is about, or of its payload: see
    /// [`Self::payload_len`].
    pub len: u64,
}

impl RequestHeader {
    /// Reads a header of [`HeaderStyle::header_len`] bytes.
    ///
    /// # Errors
    /// [`ProtocolError::RequestMagic`] for anything else.
    pub fn parse(style: HeaderStyle, bytes: &[u8]) -> Result<Self, ProtocolError> {
        let (magic, expected, header) = match style {
            HeaderStyle::Compact => {
                let header = CompactHeader::read_from_bytes(bytes).map_err(|_| not_one(bytes))?;
                let len = u64::from(header.len.get());
                (
                    header.magic,
                    COMPACT_MAGIC,
                    Self::new(
                        header.command,
                        header.flags,
                        header.cookie,
                        header.offset,
                        len,
                    ),
                )
            }
            HeaderStyle::Extended => {
                let header = ExtendedHeader::read_from_bytes(bytes).map_err(|_| not_one(bytes))?;
                let len = header.len.get();
                (
                    header.magic,
                    EXTENDED_MAGIC,
                    Self::new(
                        header.command,
                        header.flags,
                        header.cookie,
                        header.offset,
                        len,
                    ),
                )
            }
        };
        match magic.get() == expected {
            true => Ok(header),
            false => Err(ProtocolError::RequestMagic(magic.get())),
        }
    }

    fn new(command: U16, flags: U16, cookie: U64, offset: U64, len: u64) -> Self {
        Self {
            cookie: cookie.get(),
            command: command.get().into(),
            flags: CommandFlags::from_bits_retain(flags.get()),
            offset: offset.get(),
            len,
        }
    }

    /// Bytes that follow the header.
    pub const fn payload_len(&self, style: HeaderStyle) -> u64 {
        let has_payload = match style {
            HeaderStyle::Compact => matches!(self.command, Command::Write),
            HeaderStyle::Extended => self.flags.contains(CommandFlags::PAYLOAD_LEN),
        };
        if has_payload { self.len } else { 0 }
    }

    /// Whether it has flags that mean nothing with it, or lacks one that it needs.
    pub fn has_wrong_flags(&self, style: HeaderStyle) -> bool {
        let unknown = !self.command.flags(style).contains(self.flags);
        let lacks_payload = style == HeaderStyle::Extended
            && self.command == Command::Write
            && !self.flags.contains(CommandFlags::PAYLOAD_LEN);
        unknown || lacks_payload
    }
}

fn not_one(bytes: &[u8]) -> ProtocolError {
    let magic = U32::read_from_prefix(bytes).map_or(0, |(magic, _)| magic.get());
    ProtocolError::RequestMagic(magic)
}

/// The payload of a block status request in the extended style: which contexts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StatusPayload {
    /// Bytes of the export that it is about.
    pub len: u64,
    /// Ids of contexts, each once.
    pub contexts: Vec<u32>,
}

impl StatusPayload {
    /// Reads a payload; `None` when it is not one, or names a context twice.
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let (len, ids) = U64::read_from_prefix(bytes).ok()?;
        let ids = <[U32]>::ref_from_bytes(ids).ok()?;
        let mut contexts = Vec::new();
        for id in ids {
            if contexts.contains(&id.get()) {
                return None;
            }
            contexts.push(id.get());
        }
        Some(Self {
            len: len.get(),
            contexts,
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn compact(header: &RequestHeader, command: u16) -> Vec<u8> {
        CompactHeader {
            magic: COMPACT_MAGIC.into(),
            flags: header.flags.bits().into(),
            command: command.into(),
            cookie: header.cookie.into(),
            offset: header.offset.into(),
            len: u32::try_from(header.len).unwrap().into(),
        }
        .as_bytes()
        .to_vec()
    }

    proptest! {
        #[test]
        fn request_header_round_trips(
            command: u16, flags: u16, cookie: u64, offset: u64, len: u32,
        ) {
            let header = RequestHeader {
                cookie,
                command: command.into(),
                flags: CommandFlags::from_bits_retain(flags),
                offset,
                len: u64::from(len),
            };
            let bytes = compact(&header, command);
            prop_assert_eq!(RequestHeader::parse(HeaderStyle::Compact, &bytes), Ok(header));
            prop_assert!(RequestHeader::parse(HeaderStyle::Extended, &bytes).is_err());
            let mut extended = bytes[..24].to_vec();
            extended[..4].copy_from_slice(&EXTENDED_MAGIC.to_be_bytes());
            extended.extend(u64::from(len).to_be_bytes());
            prop_assert_eq!(RequestHeader::parse(HeaderStyle::Extended, &extended), Ok(header));
        }

        #[test]
        fn request_parser_refuses_headers_without_magic(bytes: Vec<u8>) {
            for style in [HeaderStyle::Compact, HeaderStyle::Extended] {
                if let Ok(header) = RequestHeader::parse(style, &bytes) {
                    prop_assert_eq!(bytes.len(), style.header_len());
                    prop_assert!(header.payload_len(style) <= header.len);
                }
            }
        }

        #[test]
        fn status_payload_names_each_context_once(len: u64, ids in prop::collection::vec(0..4u32, 0..6)) {
            let mut bytes = len.to_be_bytes().to_vec();
            ids.iter().for_each(|id| bytes.extend(id.to_be_bytes()));
            let mut unique = ids.clone();
            unique.sort_unstable();
            unique.dedup();
            let parsed = StatusPayload::parse(&bytes);
            prop_assert_eq!(parsed.is_some(), unique.len() == ids.len());
            if let Some(parsed) = parsed {
                prop_assert_eq!((parsed.len, parsed.contexts), (len, ids));
            }
            bytes.push(0);
            prop_assert_eq!(StatusPayload::parse(&bytes), None);
        }
    }

    #[test]
    fn request_flags_must_match_command() {
        let header = |command: u16, flags: CommandFlags| RequestHeader {
            cookie: 0,
            command: command.into(),
            flags,
            offset: 0,
            len: 1,
        };
        let wrong = |command, flags, style| header(command, flags).has_wrong_flags(style);
        let (compact, extended) = (HeaderStyle::Compact, HeaderStyle::Extended);
        assert!(!wrong(0, CommandFlags::DF | CommandFlags::FUA, compact));
        assert!(wrong(0, CommandFlags::NO_HOLE, compact));
        assert!(wrong(1, CommandFlags::PAYLOAD_LEN, compact));
        assert!(!wrong(1, CommandFlags::PAYLOAD_LEN, extended));
        assert!(wrong(1, CommandFlags::empty(), extended));
        assert!(wrong(0, CommandFlags::PAYLOAD_LEN, extended));
        assert!(wrong(7, CommandFlags::from_bits_retain(1 << 15), compact));
    }
}
