//! Responses out of a byte stream, each checked against the call it answers.

use std::sync::{Arc, Mutex};

use bytes::{Buf, Bytes, BytesMut};
use sheep_proto::ResponseHeader;
use sheep_proto::decoder;
use sheep_proto::limits::HEADER_LEN;
use tokio_util::codec::Decoder;

use crate::error::Hangup;
use crate::in_flight::InFlight;

/// Splits a sheep's answers into frames.
///
/// Memory for a payload is only set aside once its header has matched a call
/// in flight and is no longer than that call asked for.
pub(crate) struct ResponseCodec {
    in_flight: Arc<Mutex<InFlight>>,
    header: Option<ResponseHeader>,
}

impl ResponseCodec {
    pub(crate) fn new(in_flight: Arc<Mutex<InFlight>>) -> Self {
        Self {
            in_flight,
            header: None,
        }
    }

    fn next_header(&self, src: &mut BytesMut) -> Result<Option<ResponseHeader>, Hangup> {
        let Some(header) = decoder::response(src, u32::MAX)? else {
            return Ok(None);
        };
        let (id, opcode) = (header.id.get(), header.opcode);
        let limit = self
            .in_flight
            .lock()
            .expect("no one panics with the table")
            .limit(id, opcode)
            .ok_or(Hangup::UnknownId { id, opcode })?;
        decoder::response(src, limit)?;
        src.advance(HEADER_LEN);
        Ok(Some(header))
    }
}

impl Decoder for ResponseCodec {
    type Item = (ResponseHeader, Bytes);
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
            src.reserve(len - src.len());
            self.header = Some(header);
            return Ok(None);
        }
        Ok(Some((header, src.split_to(len).freeze())))
    }
}
