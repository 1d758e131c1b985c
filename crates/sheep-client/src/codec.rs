//! Responses out of a byte stream, each checked against the call it answers.

use std::sync::{Arc, Mutex, MutexGuard};

use bytes::{Buf, BytesMut};
use sheep_proto::ResponseHeader;
use sheep_proto::decoder;
use sheep_proto::limits::HEADER_LEN;
use tokio_util::codec::Decoder;

use crate::error::Hangup;
use crate::in_flight::InFlight;

/// Splits a sheep's answers into frames.
///
/// Memory for a payload is only set aside once its header has matched a call
/// in flight and is no longer than that call asked for. A call that brought
/// memory for it gets it there, and nothing copies it any more.
pub(crate) struct ResponseCodec {
    in_flight: Arc<Mutex<InFlight>>,
    header: Option<ResponseHeader>,
    /// What is read into when no payload goes elsewhere.
    aside: Option<BytesMut>,
}

impl ResponseCodec {
    pub(crate) fn new(in_flight: Arc<Mutex<InFlight>>) -> Self {
        Self {
            in_flight,
            header: None,
            aside: None,
        }
    }

    fn in_flight(&self) -> MutexGuard<'_, InFlight> {
        self.in_flight.lock().expect("no one panics with the table")
    }

    fn next_header(&self, src: &mut BytesMut) -> Result<Option<ResponseHeader>, Hangup> {
        let Some(header) = decoder::response(src, u32::MAX)? else {
            return Ok(None);
        };
        let (id, opcode) = (header.id.get(), header.opcode);
        let limit = self
            .in_flight()
            .limit(id, opcode)
            .ok_or(Hangup::UnknownId { id, opcode })?;
        decoder::response(src, limit)?;
        src.advance(HEADER_LEN);
        Ok(Some(header))
    }

    /// Sees to it that the rest of a payload of `len` bytes is read into memory
    /// that has room for it. All of `src` belongs to it.
    fn make_room(&mut self, id: u32, len: usize, src: &mut BytesMut) {
        if self.aside.is_none() {
            let mut room = self.in_flight().take_room(id);
            if room.capacity() >= len {
                room.extend_from_slice(src);
                src.clear();
                self.aside = Some(std::mem::replace(src, room));
            }
        }
        src.reserve(len - src.len());
    }
}

impl Decoder for ResponseCodec {
    type Item = (ResponseHeader, BytesMut);
    type Error = Hangup;

    fn decode(&mut self, src: &mut BytesMut) -> Result<Option<Self::Item>, Hangup> {
        let header = match self.header.take() {
            Some(header) => header,
            None => match self.next_header(src)? {
                Some(header) => header,
                None => return Ok(None),
            },
        };
        let len = header.data_length.get() as usize;
        if src.len() < len {
            self.make_room(header.id.get(), len, src);
            self.header = Some(header);
            return Ok(None);
        }
        let payload = src.split_to(len);
        if let Some(mut aside) = self.aside.take() {
            // More than the payload, when it was shorter than its memory.
            aside.extend_from_slice(src);
            *src = aside;
        }
        Ok(Some((header, payload)))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::collection::vec;
    use proptest::prelude::*;
    use sheep_proto::{Oid, ResponseBody, ResultCode};
    use zerocopy::IntoBytes as _;

    use super::*;
    use crate::call::Call;
    use crate::in_flight::Pending;

    /// A read of an object, and what a sheep answers.
    #[derive(Clone, Debug)]
    struct Read {
        want: u32,
        room: usize,
        payload: Vec<u8>,
    }

    fn reads() -> impl Strategy<Value = Vec<Read>> {
        let read = (0..300u32).prop_flat_map(|want| {
            let payload = vec(any::<u8>(), 0..=want as usize);
            (Just(want), 0..400usize, payload)
        });
        let read = read.prop_map(|(want, room, payload)| Read {
            want,
            room,
            payload,
        });
        vec(read, 1..12)
    }

    proptest! {
        #[test]
        fn every_payload_comes_whole(
            reads in reads(),
            arrivals in vec(1..200usize, 1..20),
        ) {
            let mut in_flight = InFlight::default();
            let mut bytes = Vec::new();
            let mut ids = Vec::new();
            for read in &reads {
                let call = Call::read_object(Oid::from_raw(1), 0, read.want)
                    .with_room(BytesMut::with_capacity(read.room));
                let mut request = call.header(0);
                request.id = in_flight.insert(Pending::new(call, Duration::MAX, Box::new(drop))).into();
                let len = u32::try_from(read.payload.len()).unwrap();
                let success = ResponseBody::result(ResultCode::Success);
                let header = ResponseHeader::answer(&request, 1, len, success);
                ids.push(header.id.get());
                bytes.extend_from_slice(header.as_bytes());
                bytes.extend_from_slice(&read.payload);
            }
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
                while let Some((header, payload)) = codec.decode(&mut src).unwrap() {
                    answers.push((header.id.get(), payload.to_vec()));
                }
                if now.is_empty() {
                    break;
                }
            }
            let expected: Vec<_> = ids
                .into_iter()
                .zip(reads.into_iter().map(|read| read.payload))
                .collect();
            prop_assert_eq!(answers, expected);
        }
    }
}
