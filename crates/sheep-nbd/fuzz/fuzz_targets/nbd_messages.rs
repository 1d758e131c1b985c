//! What a client sends, message by message. The first byte chooses the kind of
//! message that the rest is read as.

#![no_main]

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use sheep_nbd::protocol::handshake::{
    CLIENT_FLAGS_LEN, OPTION_HEADER_LEN, OptionHeader, OptionRequest, client_flags,
};
use sheep_nbd::protocol::limits::{MAX_QUERIES, MAX_SKIPPED_OPTION_LEN, MAX_STRING_LEN};
use sheep_nbd::protocol::request::{HeaderStyle, RequestHeader, StatusPayload};

fuzz_target!(|input: &[u8]| {
    let Some((&kind, rest)) = input.split_first() else {
        return;
    };
    match kind {
        0 => {
            if let Some(bytes) = rest.first_chunk::<CLIENT_FLAGS_LEN>() {
                drop(client_flags(*bytes));
            }
        }
        1 => {
            let Some(bytes) = rest.first_chunk::<OPTION_HEADER_LEN>() else {
                return;
            };
            if let Ok(header) = OptionHeader::parse(bytes) {
                assert!(header.len <= MAX_SKIPPED_OPTION_LEN);
                let data = Bytes::copy_from_slice(&rest[OPTION_HEADER_LEN..]);
                check_option(header.option, data);
            }
        }
        2 => {
            let Some((&option, data)) = rest.split_first() else {
                return;
            };
            check_option(u32::from(option), Bytes::copy_from_slice(data));
        }
        3 => check_request(HeaderStyle::Compact, rest),
        4 => check_request(HeaderStyle::Extended, rest),
        _ => {
            if let Some(payload) = StatusPayload::parse(rest) {
                assert_eq!(rest.len(), 8 + 4 * payload.contexts.len());
            }
        }
    }
});

fn check_option(option: u32, data: Bytes) {
    match OptionRequest::parse(option, data) {
        Ok(OptionRequest::SetMetaContext(request) | OptionRequest::ListMetaContext(request)) => {
            assert!(request.queries.len() <= MAX_QUERIES);
            let is_short = |query: &Bytes| query.len() <= MAX_STRING_LEN;
            assert!(is_short(&request.export) && request.queries.iter().all(is_short));
        }
        Ok(OptionRequest::Info(info) | OptionRequest::Go(info)) => {
            assert!(info.name.len() <= MAX_STRING_LEN);
        }
        _ => {}
    }
}

fn check_request(style: HeaderStyle, bytes: &[u8]) {
    if let Ok(header) = RequestHeader::parse(style, bytes) {
        assert!(header.payload_len(style) <= header.len);
        let _ = header.has_wrong_flags(style);
    }
}
