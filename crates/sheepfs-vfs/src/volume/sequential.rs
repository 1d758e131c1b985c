//! Detects sequential writers.

use crate::poison;

use std::ops::Range;
use std::sync::{Mutex, MutexGuard};

use sheep_proto::ObjectIndex;

/// Consecutive objects after which a writer counts as sequential.
const SEQUENTIAL_THRESHOLD: u64 = 16;
/// Streams that are tracked.
const MAX_STREAMS: usize = 16;

/// The write streams of a volume.
#[derive(Debug, Default)]
pub(super) struct WriteStreams {
    /// In LRU order; the first is evicted.
    streams: Mutex<Vec<WriteStream>>,
}

#[derive(Debug)]
struct WriteStream {
    /// The object that a sequential writer begins next.
    next: u64,
    /// How many it has begun one after the other.
    begun: u64,
}

impl WriteStreams {
    fn streams(&self) -> MutexGuard<'_, Vec<WriteStream>> {
        poison::lock(&self.streams)
    }

    /// Records a write that begins one or more objects. True if its stream is sequential,
    /// so that the next object should be preallocated.
    pub(super) fn observe_write(&self, begun: &Range<u64>) -> bool {
        let mut streams = self.streams();
        let longest_to = |next: u64| {
            let there = streams.iter().filter(|stream| stream.next == next);
            there.map(|stream| stream.begun).max()
        };
        let count = match (longest_to(begun.start), longest_to(begun.end)) {
            // The last object of a stream, written to again.
            (None, Some(_)) => return false,
            (before, there) => {
                let count = before.unwrap_or(0) + begun.end - begun.start;
                count.max(there.unwrap_or(0))
            }
        };
        streams.retain(|stream| stream.next != begun.start && stream.next != begun.end);
        if streams.len() == MAX_STREAMS {
            streams.remove(0);
        }
        streams.push(WriteStream {
            next: begun.end,
            begun: count,
        });
        count >= SEQUENTIAL_THRESHOLD
    }

    /// True while an object is the next of a stream: no writer has begun it.
    pub(super) fn is_next(&self, index: ObjectIndex) -> bool {
        let next = u64::from(index.0);
        self.streams().iter().any(|stream| stream.next == next)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Begins objects; returns those that made the next one expected.
    fn begin(streams: &WriteStreams, objects: impl IntoIterator<Item = u64>) -> Vec<u64> {
        objects
            .into_iter()
            .filter(|&object| streams.observe_write(&(object..object + 1)))
            .collect()
    }

    #[test]
    fn sequential_writer_is_detected_at_its_sixteenth_object() {
        let streams = WriteStreams::default();
        assert_eq!(begin(&streams, 100..118), [115, 116, 117]);
        assert!(streams.observe_write(&(118..121)));
        assert!(streams.is_next(ObjectIndex(121)));
        assert!(!streams.is_next(ObjectIndex(120)));
    }

    #[test]
    fn sequential_writer_may_rewrite_what_it_has_begun() {
        let streams = WriteStreams::default();
        // A journal's head, and a writer that was here before.
        begin(&streams, [3; 100]);
        begin(&streams, [20]);
        assert!(begin(&streams, 0..15).is_empty());
        begin(&streams, [14, 14]);
        begin(&streams, [3; 100]);
        assert_eq!(begin(&streams, 15..25), Vec::from_iter(15..25));
    }

    #[test]
    fn sequential_writers_are_evicted_in_lru_order() {
        let streams = WriteStreams::default();
        // Long ago.
        for writer in 1000..1000 + MAX_STREAMS as u64 {
            begin(&streams, writer * 1000..writer * 1000 + 50);
        }
        for object in 0..20 {
            for writer in 0..MAX_STREAMS as u64 {
                let expected = begin(&streams, [writer * 100 + object]);
                assert_eq!(expected.is_empty(), object < 15, "object {object}");
            }
        }
        assert_eq!(streams.streams().len(), MAX_STREAMS);
    }
}
