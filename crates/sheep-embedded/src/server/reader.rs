//! Frames out of a socket.

use std::io;

use sheep_proto::RequestHeader;
use sheep_proto::decoder::{self, BadFrame};
use sheep_proto::limits::{HEADER_LEN, MAX_PAYLOAD_LEN};
use tokio::io::AsyncReadExt;
use tokio::net::tcp::OwnedReadHalf;

use super::error::{ConnectionError, with_stall_timeout};
use super::limits::{ConnectionLimits, Permits};

/// Bytes of a connection that are read ahead; a frame with a small payload fits.
const BUFFER_LEN: usize = 16 << 10;
/// Bytes of a larger payload for which memory is taken before they arrive.
const RESERVE_LEN: usize = 256 << 10;

/// The reading half of a connection.
///
/// A header is read together with the bytes after it that have arrived, so that
/// a small request costs one system call. A larger payload is read into
/// its own memory, which grows with the bytes that arrive.
pub(crate) struct Reader {
    stream: OwnedReadHalf,
    buffer: Box<[u8]>,
    start: usize,
    end: usize,
}

impl Reader {
    pub(crate) fn new(stream: OwnedReadHalf) -> Self {
        Self {
            stream,
            buffer: vec![0; BUFFER_LEN].into(),
            start: 0,
            end: 0,
        }
    }

    fn buffered(&self) -> &[u8] {
        &self.buffer[self.start..self.end]
    }

    /// True when the next frame needs no more bytes from the socket.
    pub(crate) fn has_frame(&self) -> bool {
        match parse(self.buffered()) {
            Ok(Some(header)) => self.buffered().len() - HEADER_LEN >= header.payload_len() as usize,
            Ok(None) => false,
            Err(_reported_by_header) => true,
        }
    }

    /// The next header, or `None` when the client has closed between two frames.
    ///
    /// Between frames a client may be silent for ever, within one it may not.
    pub(crate) async fn header(&mut self) -> Result<Option<RequestHeader>, ConnectionError> {
        loop {
            if let Some(header) = parse(self.buffered())? {
                self.start += HEADER_LEN;
                return Ok(Some(header));
            }
            let is_between = self.buffered().is_empty();
            let read = self.fill();
            let read = if is_between {
                read.await?
            } else {
                with_stall_timeout(read).await??
            };
            match read {
                0 if is_between => return Ok(None),
                0 => return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()),
                _some => {}
            }
        }
    }

    /// Reads more after the buffered bytes, which are less than a header.
    async fn fill(&mut self) -> io::Result<usize> {
        self.buffer.copy_within(self.start..self.end, 0);
        self.end -= self.start;
        self.start = 0;
        let read = self.stream.read(&mut self.buffer[self.end..]).await?;
        self.end += read;
        Ok(read)
    }

    /// The payload of a header just read, if it was read with it.
    pub(crate) fn small_payload(&mut self, len: usize) -> Option<&[u8]> {
        let end = self.start.checked_add(len).filter(|&end| end <= self.end)?;
        let payload = &self.buffer[self.start..end];
        self.start = end;
        Some(payload)
    }

    /// The payload of a header just read, with permits for it.
    pub(crate) async fn payload(
        &mut self,
        len: usize,
        limits: &ConnectionLimits,
        permits: &mut Permits,
    ) -> Result<Vec<u8>, ConnectionError> {
        let mut payload = Vec::new();
        while payload.len() < len {
            let now = RESERVE_LEN.min(len - payload.len());
            limits.acquire(permits, now).await?;
            payload.reserve(now);
            let end = payload.len() + now;
            let buffered = now.min(self.end - self.start);
            payload.extend_from_slice(&self.buffer[self.start..self.start + buffered]);
            self.start += buffered;
            while payload.len() < end {
                let left = (end - payload.len()) as u64;
                let mut rest = (&mut self.stream).take(left);
                if with_stall_timeout(rest.read_buf(&mut payload)).await?? == 0 {
                    return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
                }
            }
        }
        Ok(payload)
    }
}

fn parse(bytes: &[u8]) -> Result<Option<RequestHeader>, BadFrame> {
    let limit = u32::try_from(MAX_PAYLOAD_LEN).expect("MAX_PAYLOAD_LEN is below 4 GiB");
    decoder::request(bytes, limit)
}
