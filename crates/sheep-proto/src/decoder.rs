//! Frames out of a byte stream: the 48-byte header first, then its payload.
//!
//! Both functions look at the front of a buffer and say how long the frame
//! there is, so that a reader knows how much to wait for before it allocates
//! anything. They never look behind the header.

use zerocopy::FromBytes;

use crate::header::{RequestHeader, ResponseHeader};
use crate::limits::HEADER_LEN;
use crate::opcode::Opcode;

/// A header after which the stream cannot be trusted any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BadFrame {
    /// The payload is longer than the reader accepts.
    #[error("a frame announces {len} bytes of payload, more than the limit of {limit}")]
    TooLong {
        /// Bytes announced.
        len: u32,
        /// Bytes accepted.
        limit: u32,
    },
    /// A response carries a version or flags, which no sheep sends.
    #[error("a response has version {proto_ver} and flags {flags:#06x}, where a sheep sends 0")]
    NotAResponse {
        /// The version byte found.
        proto_ver: u8,
        /// The flags found.
        flags: u16,
    },
    /// A response names no operation.
    #[error("a response has the unknown opcode {0:#04x}")]
    UnknownOpcode(u8),
}

/// The request header at the front of `buffer`; `None` until 48 bytes are there.
///
/// # Errors
/// [`BadFrame::TooLong`] when the payload exceeds `limit` bytes.
pub fn request(buffer: &[u8], limit: u32) -> Result<Option<RequestHeader>, BadFrame> {
    let Some(header) = buffer.first_chunk::<HEADER_LEN>() else {
        return Ok(None);
    };
    let header = RequestHeader::read_from_bytes(header).expect("a header has 48 bytes");
    match header.payload_len() {
        len if len > limit => Err(BadFrame::TooLong { len, limit }),
        _ => Ok(Some(header)),
    }
}

/// The response header at the front of `buffer`; `None` until 48 bytes are there.
///
/// # Errors
/// [`BadFrame`] when the payload exceeds `limit` bytes, or no sheep sends such a header.
pub fn response(buffer: &[u8], limit: u32) -> Result<Option<ResponseHeader>, BadFrame> {
    let Some(header) = buffer.first_chunk::<HEADER_LEN>() else {
        return Ok(None);
    };
    let header = ResponseHeader::read_from_bytes(header).expect("a header has 48 bytes");
    let (proto_ver, flags, len) = (
        header.proto_ver,
        header.flags.get(),
        header.data_length.get(),
    );
    if proto_ver != 0 || flags != 0 {
        Err(BadFrame::NotAResponse { proto_ver, flags })
    } else if Opcode::try_from(header.opcode).is_err() {
        Err(BadFrame::UnknownOpcode(header.opcode))
    } else if len > limit {
        Err(BadFrame::TooLong { len, limit })
    } else {
        Ok(Some(header))
    }
}

#[cfg(test)]
mod tests {
    use zerocopy::IntoBytes;

    use super::*;
    use crate::flags::RequestFlags;
    use crate::header::{RequestBody, ResponseBody};
    use crate::result_code::ResultCode;

    fn read_request(len: u32) -> RequestHeader {
        RequestHeader::new(
            Opcode::ReadObj,
            RequestFlags::empty(),
            len,
            RequestBody::NONE,
        )
    }

    #[test]
    fn decoder_waits_for_whole_header() {
        let header = read_request(512);
        let bytes = header.as_bytes();
        for cut in 0..HEADER_LEN {
            assert_eq!(request(&bytes[..cut], 0), Ok(None));
        }
        assert_eq!(request(bytes, 0), Ok(Some(header)));
    }

    #[test]
    fn decoder_ends_stream_at_too_long_payload() {
        let answer = ResponseHeader::answer(
            &read_request(0),
            1,
            513,
            ResponseBody::result(ResultCode::Success),
        );
        assert_eq!(
            response(answer.as_bytes(), 512),
            Err(BadFrame::TooLong {
                len: 513,
                limit: 512
            })
        );
        assert_eq!(response(answer.as_bytes(), 513), Ok(Some(answer)));
    }

    #[test]
    fn decoder_ends_stream_at_malformed_header() {
        let mut answer = ResponseHeader::answer(
            &read_request(0),
            1,
            0,
            ResponseBody::result(ResultCode::Success),
        );
        answer.proto_ver = 2;
        assert!(matches!(
            response(answer.as_bytes(), 0),
            Err(BadFrame::NotAResponse { .. })
        ));
        answer.proto_ver = 0;
        answer.opcode = 0xff;
        assert_eq!(
            response(answer.as_bytes(), 0),
            Err(BadFrame::UnknownOpcode(0xff))
        );
    }
}
