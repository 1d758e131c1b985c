//! Large reads and writes of objects, in pieces that are sent all at once.

use std::sync::{Arc, Mutex};

use bytes::{Bytes, BytesMut};

use crate::error::ClientError;

/// Most bytes that go in one request, give or take a block.
///
/// A C sheep takes memory for every payload. From 512 KiB on, the page it is
/// aligned to included, its C library fetches that from the kernel and gives it
/// back each time: 256 page faults for a mebibyte, which cost more than
/// everything else it does with it. Smaller pieces cost more requests.
pub(crate) const MAX_IO_LEN: u32 = 480 << 10;
/// Where the borders of pieces lie: a disk does not tear its blocks either.
const BLOCK_LEN: u64 = 4096;

/// First byte and length of each piece of `[offset, offset + len)`; one that is
/// empty when the range is.
///
/// As few as are needed, of about the same length, so that none of them keeps
/// the others waiting.
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

/// The results of all pieces.
pub(crate) struct FanOut<D> {
    payloads: Vec<BytesMut>,
    left: usize,
    error: Option<ClientError>,
    /// Nothing once it has run.
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

    /// Notes what became of a piece, and returns what became of all when it was
    /// the last.
    pub(crate) fn complete(
        &mut self,
        number: usize,
        result: Result<BytesMut, ClientError>,
    ) -> Option<(D, Result<Vec<BytesMut>, ClientError>)> {
        match result {
            Ok(payload) => self.payloads[number] = payload,
            // One that was not even refused may still run, and counts more.
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

/// One after the other, without a copy when they lie there like that already.
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
    fn split_io_of_an_empty_range_is_one_request() {
        for offset in [0, 1, MAX_IO_LEN, u32::MAX] {
            assert!(split_io(offset, 0).eq([(offset, 0)]), "{offset}");
        }
    }
}
