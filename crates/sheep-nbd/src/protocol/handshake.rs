//! The handshake: greeting, option requests, and replies to them.
//!
//! ```text
//! server  NBDMAGIC IHAVEOPT flags                     greeting()
//! client  flags                                       ClientFlags
//! client  IHAVEOPT option length data                 OptionHeader, OptionRequest
//! server  magic option type length data, several      OptionReply
//! ```

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use zerocopy::big_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, KnownLayout, Unaligned};

use super::error::ProtocolError;
use super::flags::{ClientFlags, HandshakeFlags, TransmissionFlags};
use super::limits::{
    MAX_PAYLOAD_LEN, MAX_QUERIES, MAX_SKIPPED_OPTION_LEN, MAX_STRING_LEN, MIN_BLOCK_LEN,
    PREFERRED_BLOCK_LEN,
};
use super::reply::shorten;

const NBD_MAGIC: u64 = u64::from_be_bytes(*b"NBDMAGIC");
const OPTION_MAGIC: u64 = u64::from_be_bytes(*b"IHAVEOPT");
const REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
/// Zeros behind the reply to `EXPORT_NAME`, unless the client wants none.
const PADDING: usize = 124;

const INFO_EXPORT: u16 = 0;
const INFO_NAME: u16 = 1;
const INFO_DESCRIPTION: u16 = 2;
const INFO_BLOCK_SIZE: u16 = 3;

/// The first bytes on a connection.
pub fn greeting() -> Bytes {
    let flags = HandshakeFlags::FIXED_NEWSTYLE | HandshakeFlags::NO_ZEROES;
    let mut bytes = BytesMut::with_capacity(18);
    bytes.put_u64(NBD_MAGIC);
    bytes.put_u64(OPTION_MAGIC);
    bytes.put_u16(flags.bits());
    bytes.freeze()
}

/// Bytes of the client's answer to the greeting.
pub const CLIENT_FLAGS_LEN: usize = 4;

/// Reads the client's answer to the greeting.
///
/// # Errors
/// For a flag that was not offered.
pub fn client_flags(bytes: [u8; CLIENT_FLAGS_LEN]) -> Result<ClientFlags, ProtocolError> {
    let bits = u32::from_be_bytes(bytes);
    ClientFlags::from_bits(bits).ok_or(ProtocolError::ClientFlags(bits))
}

#[derive(FromBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RawOptionHeader {
    magic: U64,
    option: U32,
    len: U32,
}

/// Bytes of an option's header.
pub const OPTION_HEADER_LEN: usize = size_of::<RawOptionHeader>();

const _: () = assert!(OPTION_HEADER_LEN == 16);

/// The header of an option.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OptionHeader {
    /// Its number, which replies repeat.
    pub option: u32,
    /// Bytes of data that follow, at most [`MAX_SKIPPED_OPTION_LEN`].
    pub len: u32,
}

impl OptionHeader {
    /// Reads a header.
    ///
    /// # Errors
    /// For anything else, and for a length that no option has.
    pub fn parse(bytes: &[u8; OPTION_HEADER_LEN]) -> Result<Self, ProtocolError> {
        let header = RawOptionHeader::ref_from_bytes(bytes).expect("as long as a header");
        if header.magic.get() != OPTION_MAGIC {
            return Err(ProtocolError::OptionMagic(header.magic.get()));
        }
        let (option, len) = (header.option.get(), header.len.get());
        match len <= MAX_SKIPPED_OPTION_LEN {
            true => Ok(Self { option, len }),
            false => Err(ProtocolError::OptionTooLong { option, len }),
        }
    }
}

/// An option.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OptionRequest {
    /// Use this export, without a word if it cannot be.
    ExportName(Bytes),
    /// Give up.
    Abort,
    /// Name the exports.
    List,
    /// Go on with TLS.
    StartTls,
    /// Describe an export.
    Info(InfoRequest),
    /// Describe an export, and use it.
    Go(InfoRequest),
    /// Send structured replies.
    StructuredReply,
    /// Name metadata contexts.
    ListMetaContext(ContextRequest),
    /// Select metadata contexts.
    SetMetaContext(ContextRequest),
    /// Use extended headers.
    ExtendedHeaders,
    /// None that the specification has.
    Unknown,
}

/// An export, and what to say about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InfoRequest {
    /// Its name; the default export's is empty.
    pub name: Bytes,
    /// Whether the client wants to hear its name.
    pub wants_name: bool,
}

/// Metadata contexts of an export.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ContextRequest {
    /// The name of the export; the default export's is empty.
    pub export: Bytes,
    /// Names of contexts, or what stands for several of them.
    pub queries: Vec<Bytes>,
}

/// Why the data of an option are invalid. The text is for
/// the client.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadOption {
    /// Its data is not what the option has.
    #[error("{0}")]
    Invalid(&'static str),
    /// A part of its data is too long.
    #[error("{0}")]
    TooBig(&'static str),
}

impl OptionRequest {
    /// Reads the data of option number `option`.
    ///
    /// # Errors
    /// When it is not what that option has.
    pub fn parse(option: u32, data: Bytes) -> Result<Self, BadOption> {
        match option {
            1 => Ok(Self::ExportName(checked(data)?)),
            // A client that gives up is not told what is wrong with that.
            2 => Ok(Self::Abort),
            3 => no_data(&data, Self::List),
            5 => no_data(&data, Self::StartTls),
            6 => Ok(Self::Info(InfoRequest::parse(data)?)),
            7 => Ok(Self::Go(InfoRequest::parse(data)?)),
            8 => no_data(&data, Self::StructuredReply),
            9 => Ok(Self::ListMetaContext(ContextRequest::parse(data)?)),
            10 => Ok(Self::SetMetaContext(ContextRequest::parse(data)?)),
            11 => no_data(&data, Self::ExtendedHeaders),
            _ => Ok(Self::Unknown),
        }
    }
}

const NO_DATA: BadOption = BadOption::Invalid("this option has no data");
const SHORT: BadOption = BadOption::Invalid("the data of the option ends too early");
const LONG: BadOption = BadOption::Invalid("the option has more data than it needs");
const LONG_STRING: BadOption = BadOption::TooBig("a name or query is longer than 4096 bytes");
const MANY_QUERIES: BadOption = BadOption::TooBig("these are too many queries");

fn no_data(data: &Bytes, request: OptionRequest) -> Result<OptionRequest, BadOption> {
    match data.is_empty() {
        true => Ok(request),
        false => Err(NO_DATA),
    }
}

fn checked(string: Bytes) -> Result<Bytes, BadOption> {
    match string.len() <= MAX_STRING_LEN {
        true => Ok(string),
        false => Err(LONG_STRING),
    }
}

/// Takes a string with its length in front.
fn take_string(data: &mut Bytes) -> Result<Bytes, BadOption> {
    let len = data.try_get_u32().map_err(|_| SHORT)? as usize;
    match len <= data.len() {
        true => checked(data.split_to(len)),
        false => Err(SHORT),
    }
}

impl InfoRequest {
    fn parse(mut data: Bytes) -> Result<Self, BadOption> {
        let name = take_string(&mut data)?;
        let count = data.try_get_u16().map_err(|_| SHORT)?;
        let mut wants_name = false;
        for _ in 0..count {
            wants_name |= data.try_get_u16().map_err(|_| SHORT)? == INFO_NAME;
        }
        match data.is_empty() {
            true => Ok(Self { name, wants_name }),
            false => Err(LONG),
        }
    }
}

impl ContextRequest {
    fn parse(mut data: Bytes) -> Result<Self, BadOption> {
        let export = take_string(&mut data)?;
        let count = data.try_get_u32().map_err(|_| SHORT)?;
        let mut queries = Vec::new();
        for _ in 0..count {
            if queries.len() == MAX_QUERIES {
                return Err(MANY_QUERIES);
            }
            queries.push(take_string(&mut data)?);
        }
        match data.is_empty() {
            true => Ok(Self { export, queries }),
            false => Err(LONG),
        }
    }
}

/// Why an option is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum OptionError {
    /// The option is unknown.
    Unsupported = (1 << 31) + 1,
    /// The option is known, and not allowed.
    Policy = (1 << 31) + 2,
    /// The option is wrong, or comes at the wrong time.
    Invalid = (1 << 31) + 3,
    /// TLS has to come first.
    TlsRequired = (1 << 31) + 5,
    /// There is no such export.
    Unknown = (1 << 31) + 6,
    /// The server is about to end.
    Shutdown = (1 << 31) + 7,
    /// The option is too long.
    TooBig = (1 << 31) + 9,
    /// Extended headers were negotiated, and this would take them back.
    ExtendedHeadersRequired = (1 << 31) + 10,
}

/// A reply to an option.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OptionReply<'a> {
    /// Done.
    Ack,
    /// One export of a list.
    Export {
        /// Its name.
        name: &'a [u8],
        /// Words about it, or none.
        description: &'a str,
    },
    /// Size and abilities of an export.
    InfoExport {
        /// Size in bytes.
        size: u64,
        /// What it can do.
        flags: TransmissionFlags,
    },
    /// The name of an export.
    InfoName(&'a [u8]),
    /// Words about an export.
    InfoDescription(&'a str),
    /// Which lengths an export serves.
    InfoBlockSize,
    /// A metadata context.
    MetaContext {
        /// What stands for it in block status.
        id: u32,
        /// Its name.
        name: &'a [u8],
    },
    /// It is refused.
    Error(OptionError, &'a str),
}

impl OptionReply<'_> {
    /// Appends the reply to option number `option`.
    pub fn encode(&self, option: u32, out: &mut BytesMut) {
        let mut data = BytesMut::new();
        let kind = match *self {
            Self::Ack => 1,
            Self::Export { name, description } => {
                data.put_u32(u32::try_from(name.len()).expect("a name is short"));
                data.put_slice(name);
                data.put_slice(shorten(description).as_bytes());
                2
            }
            Self::InfoExport { size, flags } => {
                data.put_u16(INFO_EXPORT);
                data.put_u64(size);
                data.put_u16(flags.bits());
                3
            }
            Self::InfoName(name) => {
                data.put_u16(INFO_NAME);
                data.put_slice(name);
                3
            }
            Self::InfoDescription(text) => {
                data.put_u16(INFO_DESCRIPTION);
                data.put_slice(shorten(text).as_bytes());
                3
            }
            Self::InfoBlockSize => {
                data.put_u16(INFO_BLOCK_SIZE);
                data.put_u32(MIN_BLOCK_LEN);
                data.put_u32(PREFERRED_BLOCK_LEN);
                data.put_u32(MAX_PAYLOAD_LEN);
                3
            }
            Self::MetaContext { id, name } => {
                data.put_u32(id);
                data.put_slice(name);
                4
            }
            Self::Error(error, message) => {
                data.put_slice(shorten(message).as_bytes());
                error as u32
            }
        };
        out.put_u64(REPLY_MAGIC);
        out.put_u32(option);
        out.put_u32(kind);
        out.put_u32(u32::try_from(data.len()).expect("strings are short"));
        out.put_slice(&data);
    }
}

/// The reply to `EXPORT_NAME`, which has a form of its own.
pub fn export_name_reply(size: u64, flags: TransmissionFlags, client: ClientFlags) -> Bytes {
    let mut bytes = BytesMut::with_capacity(10 + PADDING);
    bytes.put_u64(size);
    bytes.put_u16(flags.bits());
    if !client.contains(ClientFlags::NO_ZEROES) {
        bytes.put_bytes(0, PADDING);
    }
    bytes.freeze()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn string(bytes: &[u8]) -> Vec<u8> {
        [&u32::try_from(bytes.len()).unwrap().to_be_bytes(), bytes].concat()
    }

    fn context_data(export: &[u8], queries: &[Vec<u8>]) -> Vec<u8> {
        let mut data = string(export);
        data.extend(u32::try_from(queries.len()).unwrap().to_be_bytes());
        queries.iter().for_each(|query| data.extend(string(query)));
        data
    }

    proptest! {
        #[test]
        fn option_parser_accepts_or_refuses_arbitrary_bytes(option in 0..14u32, data: Vec<u8>) {
            let whole = data.len();
            match OptionRequest::parse(option, data.into()) {
                Ok(OptionRequest::Info(info) | OptionRequest::Go(info)) => prop_assert!(info.name.len() <= whole),
                Ok(OptionRequest::SetMetaContext(request) | OptionRequest::ListMetaContext(request)) => {
                    prop_assert!(request.queries.len() <= MAX_QUERIES);
                }
                _ => {}
            }
        }

        #[test]
        fn context_request_round_trips(
            export: Vec<u8>,
            queries in prop::collection::vec(any::<Vec<u8>>(), 0..MAX_QUERIES),
            cut: prop::sample::Index,
        ) {
            let data = context_data(&export, &queries);
            let queries: Vec<_> = queries.into_iter().map(Bytes::from).collect();
            let request = ContextRequest { export: export.into(), queries };
            let cut = Bytes::copy_from_slice(&data[..cut.index(data.len())]);
            prop_assert_eq!(OptionRequest::parse(10, cut), Err(SHORT));
            prop_assert_eq!(
                OptionRequest::parse(10, data.into()),
                Ok(OptionRequest::SetMetaContext(request))
            );
        }

        #[test]
        fn info_request_round_trips(name: Vec<u8>, infos: Vec<u16>) {
            let mut data = string(&name);
            data.extend(u16::try_from(infos.len()).unwrap().to_be_bytes());
            infos.iter().for_each(|info| data.extend(info.to_be_bytes()));
            let request = InfoRequest { name: name.into(), wants_name: infos.contains(&INFO_NAME) };
            prop_assert_eq!(OptionRequest::parse(7, data.clone().into()), Ok(OptionRequest::Go(request)));
            data.push(0);
            prop_assert_eq!(OptionRequest::parse(6, data.into()), Err(LONG));
        }
    }

    #[test]
    fn option_header_needs_magic_and_plausible_length() {
        let header = |magic: &[u8; 8], len: u32| {
            let mut bytes = [0; OPTION_HEADER_LEN];
            bytes[..8].copy_from_slice(magic);
            bytes[11] = 7;
            bytes[12..].copy_from_slice(&len.to_be_bytes());
            OptionHeader::parse(&bytes)
        };
        assert_eq!(
            header(b"IHAVEOPT", 9),
            Ok(OptionHeader { option: 7, len: 9 })
        );
        assert_eq!(
            header(b"GET / HT", 9),
            Err(ProtocolError::OptionMagic(u64::from_be_bytes(*b"GET / HT")))
        );
        assert_eq!(
            header(b"IHAVEOPT", MAX_SKIPPED_OPTION_LEN + 1),
            Err(ProtocolError::OptionTooLong {
                option: 7,
                len: MAX_SKIPPED_OPTION_LEN + 1
            })
        );
    }

    #[test]
    fn option_limits_refuse_long_strings_and_many_queries() {
        let long = vec![b'x'; MAX_STRING_LEN + 1];
        assert_eq!(
            OptionRequest::parse(1, long.clone().into()),
            Err(LONG_STRING)
        );
        assert_eq!(
            OptionRequest::parse(9, context_data(&long, &[]).into()),
            Err(LONG_STRING)
        );
        let queries = vec![Vec::new(); MAX_QUERIES + 1];
        assert_eq!(
            OptionRequest::parse(10, context_data(b"", &queries).into()),
            Err(MANY_QUERIES)
        );
        assert_eq!(
            OptionRequest::parse(8, Bytes::from_static(b"x")),
            Err(NO_DATA)
        );
    }

    #[test]
    fn flags_that_were_not_offered_are_refused() {
        assert_eq!(client_flags([0, 0, 0, 3]), Ok(ClientFlags::all()));
        assert_eq!(
            client_flags([0, 0, 0, 4]),
            Err(ProtocolError::ClientFlags(4))
        );
    }

    #[test]
    fn option_replies_repeat_option_and_length() {
        let encode = |reply: OptionReply<'_>| {
            let mut out = BytesMut::new();
            reply.encode(7, &mut out);
            out.iter()
                .map(|byte| format!("{byte:02x}"))
                .collect::<String>()
        };
        let magic = "0003e889045565a9";
        assert_eq!(
            encode(OptionReply::Ack),
            format!("{magic}000000070000000100000000")
        );
        let export = OptionReply::Export {
            name: b"vm1",
            description: "x",
        };
        assert_eq!(
            encode(export),
            format!("{magic}0000000700000002000000080000000{}766d3178", 3)
        );
        let info = OptionReply::InfoExport {
            size: 1 << 32,
            flags: TransmissionFlags::HAS_FLAGS,
        };
        assert_eq!(
            encode(info),
            format!("{magic}00000007000000030000000c000000000001000000000001")
        );
        assert_eq!(
            encode(OptionReply::InfoBlockSize),
            format!("{magic}00000007000000030000000e0003000000010000100002000000")
        );
        assert_eq!(
            encode(OptionReply::Error(OptionError::Unknown, "no")),
            format!("{magic}0000000780000006000000026e6f")
        );
    }

    #[test]
    fn export_name_reply_is_padded_without_no_zeroes() {
        let flags = TransmissionFlags::HAS_FLAGS;
        assert_eq!(export_name_reply(1, flags, ClientFlags::all()).len(), 10);
        assert_eq!(
            export_name_reply(1, flags, ClientFlags::FIXED_NEWSTYLE).len(),
            134
        );
    }
}
