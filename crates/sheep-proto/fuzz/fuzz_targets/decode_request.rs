//! A stream of requests, as a server reads it.
//!
//! Whatever is accepted encodes to the bytes it came from, in its operation's shape.

#![no_main]

use libfuzzer_sys::fuzz_target;
use sheep_proto::limits::HEADER_LEN;
use sheep_proto::{Opcode, RequestHeader, decoder};
use zerocopy::IntoBytes as _;

const LIMIT: u32 = 1 << 16;

fuzz_target!(|stream: &[u8]| {
    let mut rest = stream;
    while let Ok(Some(header)) = decoder::request(rest, LIMIT) {
        assert_eq!(header.as_bytes(), &rest[..HEADER_LEN]);
        assert!(header.payload_len() <= LIMIT);
        if let Ok(opcode) = Opcode::try_from(header.opcode) {
            let (flags, len) = (header.flags(), header.data_length.get());
            let mut again = RequestHeader::new(opcode, flags, len, header.body());
            again.proto_ver = header.proto_ver;
            again.epoch = header.epoch;
            again.id = header.id;
            assert_eq!(again, header);
        }
        match rest.get(HEADER_LEN + header.payload_len() as usize..) {
            Some(behind) => rest = behind,
            None => break,
        }
    }
});
