//! Splitting large reads and writes of objects into requests that are in flight
//! at the same time, and joining their results.

use std::sync::{Arc, Mutex};

use bytes::{Bytes, BytesMut};

use crate::error::ClientError;

/// Most bytes that go in one request, give or take a block.
///
/// A C sheep allocates a buffer for every payload. From 512 KiB on, alignment to
/// a page included, its C library maps the buffer anew and unmaps it each time:
/// 256 page faults for a mebibyte, which cost more than the rest of the request.
/// A smaller limit costs more requests.
pub(crate) const MAX_IO_LEN: u32 = 480 << 10;
/// Ranges are split at multiples of this: a disk does not tear its blocks either.
const BLOCK_LEN: u64 = 4096;

/// Offset and length of each request for `[offset, offset + len)`; a single empty
/// one for an empty range.
///
/// There are as few as possible, of about the same length, so that none of them
/// delays the whole.
///
/// # Panics
/// When the range reaches beyond any object.
pub fn split_io(offset: u32, len: u32) -> impl Iterator<Item = (u32, u32)> {
    let count = u64::from(len.div_ceil(MAX_IO_LEN).max(1));
    let (start, len) = (u64::from(offset), u64::from(len));
    let border = move |number: u64| match number {
        0 => start,
        _ if number == count => start + len,
        _ => (start + len * number / count) / BLOCK_LEN * BLOCK_LEN,
    };
    let number = |number: u64| u32::try_from(number).expect("an object has less than 4 GiB");
    (0..count).map(move |part| {
        let (from, to) = (border(part), border(part + 1));
        (number(from), number(to - from))
    })
}

/// # Panics
/// When the range reaches beyond any object.
pub(crate) fn check_range(offset: u32, len: u32) {
    offset
        .checked_add(len)
        .expect("an object has less than 4 GiB");
}

/// Joins the results of all requests.
pub(crate) struct FanOut<D> {
    payloads: Vec<BytesMut>,
    left: usize,
    error: Option<ClientError>,
    /// `None` once it has run.
    on_complete: Option<D>,
}

impl<D: FnOnce(Result<Vec<BytesMut>, ClientError>)> FanOut<D> {
    pub(crate) fn new(parts: usize, on_complete: D) -> Arc<Mutex<Self>> {
        Arc::new(Mutex::new(Self {
            payloads: vec![BytesMut::new(); parts],
            left: parts,
            error: None,
            on_complete: Some(on_complete),
        }))
    }

    /// Records the result of one request. Returns the callback and the result of
    /// the whole when it was the last.
    pub(crate) fn complete(
        &mut self,
        number: usize,
        result: Result<BytesMut, ClientError>,
    ) -> Option<(D, Result<Vec<BytesMut>, ClientError>)> {
        match result {
            Ok(payload) => self.payloads[number] = payload,
            // A request without a response may still be executed: the caller
            // has to know that rather than a refusal.
            Err(error) => match &self.error {
                Some(known) if known.code().is_none() => {}
                _ => self.error = Some(error),
            },
        }
        self.left -= 1;
        if self.left > 0 {
            return None;
        }
        let payloads = std::mem::take(&mut self.payloads);
        let outcome = self.error.take().map_or(Ok(payloads), Err);
        Some((self.on_complete.take()?, outcome))
    }
}

/// The parts in order, without a copy when they are adjacent in one buffer.
pub(crate) fn join(parts: Vec<BytesMut>) -> Bytes {
    let whole = parts.into_iter().reduce(|mut whole, part| {
        whole.unsplit(part);
        whole
    });
    whole.unwrap_or_default().freeze()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn split_io_tiles_the_range(offset in 0..1u32 << 31, len in 1..64u32 << 20) {
            let mut at = offset;
            for (start, len) in split_io(offset, len) {
                prop_assert_eq!(start, at);
                prop_assert!(start == offset || u64::from(start) % BLOCK_LEN == 0);
                prop_assert!((1..512 << 10).contains(&len));
                at += len;
            }
            prop_assert_eq!(at, offset + len);
        }
    }

    #[test]
    fn split_io_of_empty_range_is_one_request() {
        for offset in [0, 1, MAX_IO_LEN, u32::MAX] {
            assert!(split_io(offset, 0).eq([(offset, 0)]), "{offset}");
        }
    }
}
