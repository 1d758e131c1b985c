//! What real clients send, as they sent it: libnbd 1.14, QEMU 7.2, nbd-client 3.24.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::fmt::Write as _;

use bytes::Bytes;
use sheep_nbd::protocol::handshake::{
    CLIENT_FLAGS_LEN, OPTION_HEADER_LEN, OptionHeader, OptionRequest, client_flags,
};
use sheep_nbd::protocol::request::{HeaderStyle, RequestHeader};

fn unhex(text: &str) -> Bytes {
    let digits: String = text.split_whitespace().collect();
    let byte = |at| u8::from_str_radix(&digits[at..at + 2], 16).unwrap();
    (0..digits.len()).step_by(2).map(byte).collect()
}

/// Every message of a connection, a line for each.
fn messages(hex: &str) -> String {
    let mut bytes = unhex(hex);
    let mut take = |len: usize| (len <= bytes.len()).then(|| bytes.split_to(len));
    let flags = take(CLIENT_FLAGS_LEN).unwrap();
    let flags = client_flags(flags[..].try_into().unwrap()).unwrap();
    let mut lines = format!("{flags:?}\n");
    let mut is_transmitting = false;
    while !is_transmitting {
        let Some(header) = take(OPTION_HEADER_LEN) else {
            return lines;
        };
        let header = OptionHeader::parse(header[..].try_into().unwrap()).unwrap();
        let data = take(header.len as usize).unwrap();
        let request = OptionRequest::parse(header.option, data).unwrap();
        is_transmitting = matches!(request, OptionRequest::Go(_) | OptionRequest::ExportName(_));
        writeln!(lines, "{request:?}").unwrap();
    }
    let style = HeaderStyle::Compact;
    while let Some(header) = take(style.header_len()) {
        let request = RequestHeader::parse(style, &header).unwrap();
        assert!(!request.has_wrong_flags(style), "{request:?}");
        let payload = take(usize::try_from(request.payload_len(style)).unwrap()).unwrap();
        let RequestHeader {
            command,
            flags,
            offset,
            len,
            ..
        } = request;
        let payload = payload.len();
        writeln!(lines, "{command:?} {offset}+{len} {flags:?} {payload}").unwrap();
    }
    lines
}

#[test]
fn golden_nbdinfo_list() {
    assert_eq!(
        messages(include_str!("golden/nbdinfo-list.hex")),
        r#"ClientFlags(FIXED_NEWSTYLE | NO_ZEROES)
StructuredReply
List
Info(InfoRequest { name: b"demo", wants_name: true })
ListMetaContext(ContextRequest { export: b"demo", queries: [] })
Abort
"#
    );
}

#[test]
fn golden_nbdinfo_map() {
    assert_eq!(
        messages(include_str!("golden/nbdinfo-map.hex")),
        r#"ClientFlags(FIXED_NEWSTYLE | NO_ZEROES)
StructuredReply
SetMetaContext(ContextRequest { export: b"demo", queries: [b"base:allocation"] })
Go(InfoRequest { name: b"demo", wants_name: false })
BlockStatus 0+1073741824 CommandFlags(0x0) 0
Disconnect 0+0 CommandFlags(0x0) 0
"#
    );
}

#[test]
fn golden_qemu_io() {
    assert_eq!(
        messages(include_str!("golden/qemu-io.hex")),
        r#"ClientFlags(FIXED_NEWSTYLE | NO_ZEROES)
StructuredReply
SetMetaContext(ContextRequest { export: b"demo", queries: [b"base:allocation"] })
Go(InfoRequest { name: b"demo", wants_name: false })
Write 4096+512 CommandFlags(FUA) 512
Read 4096+512 CommandFlags(0x0) 0
WriteZeroes 8192+4096 CommandFlags(FUA) 0
Trim 0+4096 CommandFlags(0x0) 0
Flush 0+0 CommandFlags(0x0) 0
Flush 0+0 CommandFlags(0x0) 0
Disconnect 0+0 CommandFlags(0x0) 0
"#
    );
}

#[test]
fn golden_nbd_client_list() {
    assert_eq!(
        messages(include_str!("golden/nbd-client-list.hex")),
        "ClientFlags(FIXED_NEWSTYLE | NO_ZEROES)\nList\nAbort\n"
    );
}
