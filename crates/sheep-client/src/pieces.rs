//! Large reads and writes of objects, in pieces that are sent all at once.

use std::sync::{Arc, Mutex};

use bytes::{Bytes, BytesMut};
use sheep_proto::Oid;

use crate::call::{Call, Response};
use crate::client::Client;
use crate::connection::READ_BUFFER;
use crate::error::ClientError;
use crate::gateway::Completion;

/// Most bytes that go in one request, give or take a block.
///
/// A C sheep takes memory for every payload. From 512 KiB on, the page it is
/// aligned to included, its C library fetches that from the kernel and gives it
/// back each time: 256 page faults for a mebibyte, which cost more than
/// everything else it does with it. Smaller pieces cost more requests.
const MAX_PIECE_LEN: u32 = 480 << 10;
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
pub fn pieces(offset: u32, len: u32) -> impl Iterator<Item = (u32, u32)> {
    let count = u64::from(len.div_ceil(MAX_PIECE_LEN).max(1));
    let (start, len) = (u64::from(offset), u64::from(len));
    let border = move |number: u64| match number {
        0 => start,
        _ if number == count => start + len,
        _ => (start + len * number / count) / BLOCK_LEN * BLOCK_LEN,
    };
    let number = |number: u64| u32::try_from(number).expect("an object has less than 4 GiB");
    (0..count).map(move |piece| {
        let (from, to) = (border(piece), border(piece + 1));
        (number(from), number(to - from))
    })
}

/// # Panics
/// When the range reaches beyond any object.
fn check_range(offset: u32, len: u32) {
    offset
        .checked_add(len)
        .expect("an object has less than 4 GiB");
}

/// The results of all pieces.
struct Gathering<D> {
    payloads: Vec<BytesMut>,
    left: usize,
    error: Option<ClientError>,
    /// Nothing once it has run.
    done: Option<D>,
}

impl<D: FnOnce(Result<Vec<BytesMut>, ClientError>)> Gathering<D> {
    fn new(pieces: usize, done: D) -> Arc<Mutex<Self>> {
        Arc::new(Mutex::new(Self {
            payloads: vec![BytesMut::new(); pieces],
            left: pieces,
            error: None,
            done: Some(done),
        }))
    }

    /// Notes what became of a piece, and returns what became of all when it was
    /// the last.
    fn note(
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
        Some((self.done.take()?, outcome))
    }
}

impl Client {
    /// Reads `len` bytes at byte `offset` of an object and runs `done` with them,
    /// where the last answer is read.
    ///
    /// Does not block. Asks for more than 480 KiB in several requests, between
    /// which a writer may come. Memory for all of it is taken at once.
    ///
    /// # Panics
    /// When the range reaches beyond 4 GiB.
    pub fn submit_read(
        &self,
        oid: Oid,
        offset: u32,
        len: u32,
        done: impl FnOnce(Result<Bytes, ClientError>) + Send + 'static,
    ) {
        let mut room = BytesMut::new();
        if len as usize > READ_BUFFER {
            room.reserve(len as usize);
        }
        if len <= MAX_PIECE_LEN {
            check_range(offset, len);
            let call = Call::read_object(oid, offset, len).with_room(room);
            let completion: Completion = Box::new(move |outcome| {
                let bytes = outcome.and_then(|response| response.object_bytes(len));
                done(bytes.map(BytesMut::freeze));
            });
            return self.submit(call, completion);
        }
        // Every piece is received into its part of the whole.
        let calls = pieces(offset, len)
            .map(|(offset, len)| {
                let rest = room.split_off(room.capacity().min(len as usize));
                let room = std::mem::replace(&mut room, rest);
                Call::read_object(oid, offset, len).with_room(room)
            })
            .collect();
        self.submit_pieces(
            calls,
            |response, want| response.object_bytes(want),
            move |pieces| {
                done(pieces.map(join));
            },
        );
    }

    /// Overwrites `data.len()` bytes at byte `offset` of an existing object and
    /// runs `done` where the last answer is read.
    ///
    /// Does not block. Sends more than 480 KiB in several requests: when one
    /// fails, others may have written their part. None is under way any more
    /// then, unless the error is [`ClientError::Unreachable`].
    ///
    /// # Panics
    /// When the range reaches beyond 4 GiB.
    pub fn submit_write(
        &self,
        oid: Oid,
        offset: u32,
        data: Bytes,
        done: impl FnOnce(Result<(), ClientError>) + Send + 'static,
    ) {
        let len = u32::try_from(data.len()).expect("an object has less than 4 GiB");
        if len <= MAX_PIECE_LEN {
            check_range(offset, len);
            let call = Call::write_object(oid, offset, data);
            let completion: Completion =
                Box::new(move |outcome| done(outcome.and_then(Response::accepted).map(drop)));
            return self.submit(call, completion);
        }
        let calls = pieces(offset, len)
            .map(|(at, len)| {
                let from = (at - offset) as usize;
                Call::write_object(oid, at, data.slice(from..from + len as usize))
            })
            .collect();
        self.submit_pieces(
            calls,
            |response, _| response.accepted().map(|_| BytesMut::new()),
            move |pieces| {
                done(pieces.map(drop));
            },
        );
    }

    fn submit_pieces(
        &self,
        calls: Vec<Call>,
        result: fn(Response, u32) -> Result<BytesMut, ClientError>,
        done: impl FnOnce(Result<Vec<BytesMut>, ClientError>) + Send + 'static,
    ) {
        let gathering = Gathering::new(calls.len(), done);
        for (number, call) in calls.into_iter().enumerate() {
            let want = call.want();
            let gathering = Arc::clone(&gathering);
            let completion: Completion = Box::new(move |outcome| {
                let piece = outcome.and_then(|response| result(response, want));
                let all = gathering
                    .lock()
                    .expect("no one panics with the pieces")
                    .note(number, piece);
                if let Some((done, outcome)) = all {
                    done(outcome);
                }
            });
            self.submit(call, completion);
        }
    }
}

/// One after the other, without a copy when they lie there like that already.
fn join(pieces: Vec<BytesMut>) -> Bytes {
    let whole = pieces.into_iter().reduce(|mut whole, piece| {
        whole.unsplit(piece);
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
        fn pieces_tile_the_range(offset in 0..1u32 << 31, len in 1..64u32 << 20) {
            let mut at = offset;
            for (start, len) in pieces(offset, len) {
                prop_assert_eq!(start, at);
                prop_assert!(start == offset || u64::from(start) % BLOCK_LEN == 0);
                prop_assert!((1..512 << 10).contains(&len));
                at += len;
            }
            prop_assert_eq!(at, offset + len);
        }
    }

    #[test]
    fn an_empty_range_is_one_piece() {
        for offset in [0, 1, MAX_PIECE_LEN, u32::MAX] {
            assert!(pieces(offset, 0).eq([(offset, 0)]), "{offset}");
        }
    }
}
