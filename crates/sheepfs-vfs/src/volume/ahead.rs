//! Makes the next object before a writer gets there.
//!
//! ```text
//! writes:  0 | 0 | 0 | 0 | 1 | 1 | 1 | 1 | 2 ...
//! ahead:                   [make 2, set its slot]
//! ```
//!
//! Who has begun many objects one after the other soon begins the next one.
//! Making it and setting its slot takes a server longer than a write does, so it
//! is done while the writer is still busy with the object before. What it holds
//! until then is zeros, as the hole did. An object that is not needed after all
//! stays, as with file systems that reserve space behind the end of a file:
//! taking it back could take back what somebody has just written there.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Mutex;

use sheep_proto::ObjectIndex;

use super::{Volume, zeros};
use crate::chunk::Chunk;
use crate::error::FsError;

/// Objects begun one after the other before the next is made ahead: for so many
/// that are written, one may be made in vain.
const MIN_RUN: u64 = 16;
/// Writers that are followed at once.
const MAX_STREAMS: usize = 16;
/// Zeros that an object is made with; a server takes space for all of it.
const BLOCK: u32 = 4096;

/// The writers that have begun an object lately.
#[derive(Debug, Default)]
pub(super) struct Streams {
    /// Whoever has not been seen for longest comes first.
    streams: Mutex<VecDeque<Stream>>,
}

#[derive(Debug)]
struct Stream {
    /// The object that is to be begun next.
    next: u64,
    /// How many were begun one after the other.
    run: u64,
}

impl Streams {
    /// Notes that objects were begun, at least one. True when the one behind
    /// them is likely to be begun soon.
    fn note(&self, begun: &Range<u64>) -> bool {
        let mut streams = self.streams.lock().expect("no one panics with the streams");
        let known = streams
            .iter()
            .position(|stream| stream.next == begun.start)
            .and_then(|at| streams.remove(at));
        if streams.len() == MAX_STREAMS {
            streams.pop_front();
        }
        let run = known.map_or(0, |stream| stream.run) + begun.end - begun.start;
        streams.push_back(Stream {
            next: begun.end,
            run,
        });
        run >= MIN_RUN
    }
}

impl Volume {
    /// Looks at a write that is about to start, and makes the object behind it
    /// when that will be wanted soon. Does not block.
    pub(super) fn look_ahead(&self, offset: u64, len: u32) {
        let Some(next) = self.expected(offset, len) else {
            return;
        };
        let token = self.begin_write();
        let volume = self.arc();
        self.runtime.spawn(async move {
            // Nobody has asked for it: the writer will hear of what is wrong.
            if let Err(error) = volume.make_empty(next).await {
                tracing::debug!("cannot make an object ahead: {error}");
            }
            drop(token);
        });
    }

    /// The object that writers will want next, and that is not there yet.
    fn expected(&self, offset: u64, len: u32) -> Option<ObjectIndex> {
        let head = self.head();
        let size = head.info.object_size();
        // Those whose first byte is written.
        let begun = offset.div_ceil(size)..(offset + u64::from(len)).div_ceil(size);
        let in_volume = begun.end < head.info.object_count();
        if begun.is_empty() || !self.streams.note(&begun) || !in_volume {
            return None;
        }
        let next = ObjectIndex(u32::try_from(begun.end).ok()?);
        head.map.get(next).is_none().then_some(next)
    }

    /// Makes the object of an empty slot.
    async fn make_empty(&self, index: ObjectIndex) -> Result<(), FsError> {
        let guard = self.guard(index).await?;
        let seen = self.certain_slot(index).await?;
        if seen.1.is_some() {
            return Ok(());
        }
        self.settle(seen.0, index).await?;
        let block = Chunk {
            index,
            offset: 0,
            len: BLOCK,
        };
        if let Err(error) = self.create(seen, block, zeros(BLOCK), &guard).await {
            guard.leave_with(&error);
            return Err(self.failed(error));
        }
        self.publish(seen.0, index, guard).await
    }
}
