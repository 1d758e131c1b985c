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
//!
//! Nobody has asked for the object, so it must not get in anybody's way. It does
//! not take the space that the write which leads to it may still need. And it is
//! over before a file is closed or synced: the next user of the VDI may be on
//! another host, and a late object would wipe what is written there.

use std::ops::Range;
use std::sync::{Mutex, MutexGuard};

use sheep_proto::ObjectIndex;

use super::{Done, Volume, zeros};
use crate::chunk::Chunk;
use crate::error::FsError;
use crate::write_tracker::WriteTracker;

/// Objects begun one after the other before the next is made ahead.
const MIN_RUN: u64 = 16;
/// Writers that are followed at once.
const MAX_STREAMS: usize = 16;
/// Zeros that an object is made with; a server takes space for all of it.
const BLOCK: u32 = 4096;

/// Where writers are heading, and what is made ahead of them.
#[derive(Debug, Default)]
pub(super) struct Ahead {
    /// Whoever has not been seen for longest comes first, and goes first.
    streams: Mutex<Vec<Stream>>,
    under_way: WriteTracker,
}

#[derive(Debug)]
struct Stream {
    /// The object that is to be begun next.
    next: u64,
    /// How many were begun one after the other.
    run: u64,
}

impl Ahead {
    fn streams(&self) -> MutexGuard<'_, Vec<Stream>> {
        self.streams.lock().expect("no one panics with the streams")
    }

    /// Notes that objects were begun, at least one. True when the one behind
    /// them is likely to be begun soon.
    fn note(&self, begun: &Range<u64>) -> bool {
        let mut streams = self.streams();
        let longest_to = |next: u64| {
            let there = streams.iter().filter(|stream| stream.next == next);
            there.map(|stream| stream.run).max()
        };
        let run = match (longest_to(begun.start), longest_to(begun.end)) {
            // Begun once more.
            (None, Some(_)) => return false,
            (before, there) => {
                let run = before.unwrap_or(0) + begun.end - begun.start;
                run.max(there.unwrap_or(0))
            }
        };
        streams.retain(|stream| stream.next != begun.start && stream.next != begun.end);
        if streams.len() == MAX_STREAMS {
            streams.remove(0);
        }
        streams.push(Stream {
            next: begun.end,
            run,
        });
        run >= MIN_RUN
    }

    /// True until somebody has begun an object that was expected.
    fn is_expected(&self, index: ObjectIndex) -> bool {
        let next = u64::from(index.0);
        self.streams().iter().any(|stream| stream.next == next)
    }

    /// Waits for the objects that are being made.
    pub(super) async fn settle(&self) {
        self.under_way.wait_for_earlier().await;
    }
}

impl Volume {
    /// Looks at a write that is about to start, and has the object behind it
    /// made when that will be wanted soon. Returns the write's completion.
    pub(super) fn look_ahead(&self, offset: u64, len: u32, done: Done<u32>) -> Done<u32> {
        let Some(next) = self.expected(offset, len) else {
            return done;
        };
        let token = self.ahead.under_way.begin();
        let (volume, runtime) = (self.arc(), self.runtime.clone());
        let make = async move {
            // The writer will hear of what is wrong.
            if let Err(error) = volume.make_empty(next).await {
                tracing::debug!("cannot make an object ahead: {error}");
            }
            drop(token);
        };
        if self.in_place(offset, len).is_some() {
            runtime.spawn(make);
            return done;
        }
        Box::new(move |written| {
            if written.is_ok() {
                runtime.spawn(make);
            }
            done(written);
        })
    }

    /// The object that the writer will want next, and that is not there yet.
    fn expected(&self, offset: u64, len: u32) -> Option<ObjectIndex> {
        let head = self.head();
        let (size, end) = (head.info.object_size(), offset + u64::from(len));
        // Those whose first byte is written.
        let begun = offset.div_ceil(size)..end.div_ceil(size);
        if begun.is_empty() || !self.ahead.note(&begun) {
            return None;
        }
        // A writer that has reached the next one already makes it itself.
        let is_ahead = end % size != 0 && begun.end < head.info.object_count();
        let next = ObjectIndex(u32::try_from(begun.end).ok()?);
        (is_ahead && head.map.owner(next).is_none()).then_some(next)
    }

    /// Makes the object of an empty slot, unless somebody wants it already.
    async fn make_empty(&self, index: ObjectIndex) -> Result<(), FsError> {
        if !self.ahead.is_expected(index) {
            return Ok(());
        }
        let guard = self.guard(index).await?;
        let seen = self.certain_slot(index).await?;
        // Whoever writes there waits for what lingers; those who sync now should not.
        if seen.1.is_some() || self.lingers(seen.0, index).await? {
            return Ok(());
        }
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

#[cfg(test)]
mod tests {
    use super::*;

    /// Begins objects; returns those that made the next one expected.
    fn begin(ahead: &Ahead, objects: impl IntoIterator<Item = u64>) -> Vec<u64> {
        objects
            .into_iter()
            .filter(|&object| ahead.note(&(object..object + 1)))
            .collect()
    }

    #[test]
    fn the_next_object_is_expected_from_the_sixteenth_on() {
        let ahead = Ahead::default();
        assert_eq!(begin(&ahead, 100..118), [115, 116, 117]);
        assert!(ahead.note(&(118..121)));
        assert!(ahead.is_expected(ObjectIndex(121)));
        assert!(!ahead.is_expected(ObjectIndex(120)));
    }

    #[test]
    fn what_is_begun_again_ends_no_run() {
        let ahead = Ahead::default();
        // A journal's head, and somebody who was here before.
        begin(&ahead, [3; 100]);
        begin(&ahead, [20]);
        assert!(begin(&ahead, 0..15).is_empty());
        begin(&ahead, [14, 14]);
        begin(&ahead, [3; 100]);
        assert_eq!(begin(&ahead, 15..25), Vec::from_iter(15..25));
    }

    #[test]
    fn as_many_writers_as_there_is_room_for_are_followed() {
        let ahead = Ahead::default();
        // Long ago.
        for writer in 1000..1000 + MAX_STREAMS as u64 {
            begin(&ahead, writer * 1000..writer * 1000 + 50);
        }
        for object in 0..20 {
            for writer in 0..MAX_STREAMS as u64 {
                let expected = begin(&ahead, [writer * 100 + object]);
                assert_eq!(expected.is_empty(), object < 15, "object {object}");
            }
        }
        assert_eq!(ahead.streams().len(), MAX_STREAMS);
    }
}
