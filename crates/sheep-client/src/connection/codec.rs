//! Responses out of a byte stream, each checked against the request it answers.

use std::sync::{Arc, Mutex, MutexGuard};

use bytes::{Buf as _, BytesMut};
use sheep_proto::ResponseHeader;
use sheep_proto::decoder;
use sheep_proto::limits::HEADER_LEN;
use tokio_util::codec::Decoder;

use super::pending::{InFlight, Matched, Pending};
use crate::error::DisconnectReason;
use crate::poison;

/// A response with the request it answers, which is no longer in flight.
pub(super) struct Completed {
    pub(super) pending: Pending,
    pub(super) header: ResponseHeader,
    pub(super) payload: BytesMut,
}

/// Splits the byte stream of a sheep into responses.
///
/// Memory for a payload is only allocated once its header has matched a request
/// in flight and is no longer than that request asked for. The payload of a
/// request that brought its own buffer is received there, without a copy.
pub(super) struct ResponseCodec {
    in_flight: Arc<Mutex<InFlight>>,
    /// The header of a response whose payload is still arriving.
    header: Option<ResponseHeader>,
    /// The read buffer, while a payload is received into another one.
    spare: Option<BytesMut>,
}

impl ResponseCodec {
    pub(super) fn new(in_flight: Arc<Mutex<InFlight>>) -> Self {
        Self {
            in_flight,
            header: None,
            spare: None,
        }
    }

    fn in_flight(&self) -> MutexGuard<'_, InFlight> {
        poison::lock(&self.in_flight)
    }

    /// Starts the next response: completes it when all of it has arrived.
    fn start(&mut self, src: &mut BytesMut) -> Result<Option<Completed>, DisconnectReason> {
        // How long it may be depends on the request, see below.
        let Some(header) = decoder::response(src, u32::MAX)? else {
            return Ok(None);
        };
        let len = header.data_length.get() as usize;
        let available = src.len() - HEADER_LEN;
        let matched = self.in_flight().match_response(&header, available)?;
        src.advance(HEADER_LEN);
        match matched {
            Matched::Whole(pending) => Ok(Some(Completed {
                pending,
                header,
                payload: take_payload(len, src),
            })),
            Matched::Partial(buffer) => {
                self.reserve_payload(buffer, len, src);
                self.header = Some(header);
                Ok(None)
            }
        }
    }

    /// Makes room for a payload of `len` bytes, of which the first are in `src`:
    /// in `buffer` if it is large enough, else behind them.
    fn reserve_payload(&mut self, mut buffer: BytesMut, len: usize, src: &mut BytesMut) {
        if buffer.capacity() >= len {
            buffer.extend_from_slice(src);
            src.clear();
            self.spare = Some(std::mem::replace(src, buffer));
        }
        src.reserve(len - src.len());
    }

    /// Completes the response whose payload was still arriving.
    fn finish(
        &mut self,
        header: ResponseHeader,
        src: &mut BytesMut,
    ) -> Result<Option<Completed>, DisconnectReason> {
        let len = header.data_length.get() as usize;
        if src.len() < len {
            src.reserve(len - src.len());
            self.header = Some(header);
            return Ok(None);
        }
        let payload = take_payload(len, src);
        if let Some(mut spare) = self.spare.take() {
            // Not empty when the payload was shorter than its buffer.
            spare.extend_from_slice(src);
            *src = spare;
        }
        let (id, opcode) = (header.id.get(), header.opcode);
        // It has expired in between, and nothing of it had been sent.
        let gone = DisconnectReason::UnknownId { id, opcode };
        Ok(Some(Completed {
            pending: self.in_flight().remove(id).ok_or(gone)?,
            header,
            payload,
        }))
    }
}

/// The first `len` bytes; nothing is allocated for none.
fn take_payload(len: usize, src: &mut BytesMut) -> BytesMut {
    if len == 0 {
        BytesMut::new()
    } else {
        src.split_to(len)
    }
}

impl Decoder for ResponseCodec {
    type Item = Completed;
    type Error = DisconnectReason;

    fn decode(&mut self, src: &mut BytesMut) -> Result<Option<Completed>, DisconnectReason> {
        match self.header.take() {
            None => self.start(src),
            Some(header) => self.finish(header, src),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::collection::vec;
    use proptest::prelude::*;
    use sheep_proto::{Generation, Oid, ResponseBody, ResultCode};
    use zerocopy::IntoBytes as _;

    use super::*;
    use crate::request::Request;

    /// A read of an object, and the response to it.
    #[derive(Clone, Debug)]
    struct Read {
        max_len: u32,
        buffer_len: usize,
        payload: Vec<u8>,
    }

    fn reads() -> impl Strategy<Value = Vec<Read>> {
        let read = (0..300u32).prop_flat_map(|max_len| {
            let payload = vec(any::<u8>(), 0..=max_len as usize);
            (Just(max_len), 0..400usize, payload)
        });
        let read = read.prop_map(|(max_len, buffer_len, payload)| Read {
            max_len,
            buffer_len,
            payload,
        });
        vec(read, 1..12)
    }

    proptest! {
        #[test]
        fn response_payload_arrives_whole(
            reads in reads(),
            arrivals in vec(1..200usize, 1..20),
        ) {
            // The responses to all reads, one after the other.
            let mut in_flight = InFlight::default();
            let mut bytes = Vec::new();
            let mut ids = Vec::new();
            for read in &reads {
                let request = Request::read_object(Oid::from_raw(1), 0, read.max_len)
                    .with_recv_buffer(BytesMut::with_capacity(read.buffer_len));
                let mut header = request.header(Generation::V1_0);
                header.id = in_flight.insert(Pending::new(request, Duration::MAX, Box::new(drop))).into();
                let len = u32::try_from(read.payload.len()).unwrap();
                let success = ResponseBody::result(ResultCode::Success);
                let header = ResponseHeader::answer(&header, 1, len, success);
                ids.push(header.id.get());
                bytes.extend_from_slice(header.as_bytes());
                bytes.extend_from_slice(&read.payload);
            }
            // They arrive in parts of any length.
            let mut codec = ResponseCodec::new(Arc::new(Mutex::new(in_flight)));
            let mut src = BytesMut::with_capacity(100);
            let mut answers = Vec::new();
            let mut rest = &bytes[..];
            for arrival in arrivals.iter().cycle() {
                // As FramedRead does it.
                src.reserve(1);
                let space = src.capacity() - src.len();
                let now;
                (now, rest) = rest.split_at(rest.len().min(space).min(*arrival));
                src.extend_from_slice(now);
                while let Some(completed) = codec.decode(&mut src).unwrap() {
                    answers.push((completed.header.id.get(), completed.payload.to_vec()));
                }
                if now.is_empty() {
                    break;
                }
            }
            // Each read gets its own payload.
            let expected: Vec<_> = ids
                .into_iter()
                .zip(reads.into_iter().map(|read| read.payload))
                .collect();
            prop_assert_eq!(answers, expected);
        }
    }
}
