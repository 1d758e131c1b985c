//! A stream of responses, as a client reads it.
//!
//! Whatever is accepted encodes to the bytes it came from, in its operation's shape.

#![no_main]

use libfuzzer_sys::fuzz_target;
use sheep_proto::limits::HEADER_LEN;
use sheep_proto::{Opcode, RequestBody, RequestFlags, RequestHeader, ResponseHeader, decoder};
use zerocopy::IntoBytes as _;

const LIMIT: u32 = 1 << 16;

fuzz_target!(|stream: &[u8]| {
    let mut rest = stream;
    while let Ok(Some(header)) = decoder::response(rest, LIMIT) {
        assert_eq!(header.as_bytes(), &rest[..HEADER_LEN]);
        let (epoch, len) = (header.epoch.get(), header.data_length.get());
        assert!(len <= LIMIT);
        let opcode = Opcode::try_from(header.opcode).expect("only known opcodes are accepted");
        let mut request = RequestHeader::new(opcode, RequestFlags::empty(), 0, RequestBody::NONE);
        request.id = header.id;
        let again = ResponseHeader::answer(&request, epoch, len, header.body());
        assert_eq!(again, header);
        let code = header.tail[..4].try_into().expect("four bytes");
        assert_eq!(u32::from(header.result()), u32::from_le_bytes(code));
        assert!(!header.result().to_string().is_empty());
        match rest.get(HEADER_LEN + len as usize..) {
            Some(behind) => rest = behind,
            None => break,
        }
    }
});
