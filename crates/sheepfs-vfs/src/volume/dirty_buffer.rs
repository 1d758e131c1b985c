//! The buffer of a write-back cache: one dirty extent that writes are coalesced into,
//! and the write-backs in flight. No I/O.

use std::collections::BTreeMap;
use std::ops::Range;

use bytes::{Bytes, BytesMut};
use tokio::time::Instant;

/// Largest coalesced write: large enough for full throughput.
pub(super) const MAX_COALESCED_LEN: usize = 1 << 20;

/// Dirty bytes and writes in flight.
#[derive(Debug, Default)]
pub(super) struct DirtyBuffer {
    dirty: Option<DirtyExtent>,
    /// In the order they were started.
    in_flight: BTreeMap<u64, Range<u64>>,
    next: u64,
}

/// Contiguous dirty bytes in one object, without a write-back yet.
#[derive(Debug)]
struct DirtyExtent {
    offset: u64,
    data: BytesMut,
    since: Instant,
}

/// A write that the caller must start now.
#[derive(Debug)]
pub(super) struct PendingWriteback {
    /// Sequence number.
    pub(super) number: u64,
    pub(super) offset: u64,
    pub(super) data: Bytes,
}

/// The outcome of [`DirtyBuffer::buffer`].
#[derive(Debug)]
pub(super) enum Buffered {
    /// The write was buffered; dirty bytes grew by `grown`.
    Taken {
        grown: usize,
        /// Writes to start now, in this order.
        writes: Vec<PendingWriteback>,
    },
    /// The write overlaps one in flight and was not buffered. The caller starts the
    /// given write, which overlaps as well, if any.
    Overlaps(Option<PendingWriteback>),
}

impl DirtyExtent {
    fn range(&self) -> Range<u64> {
        self.offset..self.offset + self.data.len() as u64
    }

    /// Takes `data` over when it begins inside or right past the extent. Returns by
    /// how many bytes that made it larger.
    fn try_coalesce(&mut self, offset: u64, data: &[u8]) -> Option<usize> {
        let range = self.range();
        if !(range.start..=range.end).contains(&offset) {
            return None;
        }
        let at = usize::try_from(offset - self.offset).ok()?;
        if at + data.len() > MAX_COALESCED_LEN {
            return None;
        }
        let (again, new) = data.split_at(data.len().min(self.data.len() - at));
        self.data[at..at + again.len()].copy_from_slice(again);
        self.data.extend_from_slice(new);
        Some(new.len())
    }
}

fn overlap(one: &Range<u64>, other: &Range<u64>) -> bool {
    one.start < other.end && other.start < one.end
}

impl DirtyBuffer {
    /// Copies `data` to write it later. No extent crosses a border between ranges
    /// of `object_size` bytes, a power of two.
    pub(super) fn buffer(&mut self, offset: u64, data: &[u8], object_size: u64) -> Buffered {
        let range = offset..offset + data.len() as u64;
        if self.overlaps_in_flight(&range) {
            return Buffered::Overlaps(None);
        }
        let same_object = |start: u64, end: u64| start / object_size == (end - 1) / object_size;
        let coalesced = match &mut self.dirty {
            Some(dirty) if same_object(dirty.offset, range.end) => dirty.try_coalesce(offset, data),
            _ => None,
        };
        let grown = coalesced.unwrap_or(data.len());
        let mut writes = Vec::new();
        if coalesced.is_none() {
            let taken = self.take_dirty();
            if self.overlaps_in_flight(&range) {
                return Buffered::Overlaps(taken);
            }
            writes.extend(taken);
            if data.len() >= MAX_COALESCED_LEN {
                writes.push(self.start(offset, Bytes::copy_from_slice(data)));
            } else {
                self.dirty = Some(DirtyExtent {
                    offset,
                    // Mostly more writes follow.
                    data: data.into(),
                    since: Instant::now(),
                });
            }
        }
        let complete = self.dirty.as_ref().is_some_and(|dirty| {
            dirty.data.len() >= MAX_COALESCED_LEN
                || !same_object(dirty.offset, dirty.range().end + 1)
        });
        if complete {
            writes.extend(self.take_dirty());
        }
        Buffered::Taken { grown, writes }
    }

    /// Moves the dirty extent to the writes in flight; the caller must make it.
    pub(super) fn take_dirty(&mut self) -> Option<PendingWriteback> {
        let dirty = self.dirty.take()?;
        Some(self.start(dirty.offset, dirty.data.freeze()))
    }

    fn start(&mut self, offset: u64, data: Bytes) -> PendingWriteback {
        let number = self.next;
        self.next += 1;
        let range = offset..offset + data.len() as u64;
        self.in_flight.insert(number, range);
        PendingWriteback {
            number,
            offset,
            data,
        }
    }

    /// Removes a write in flight that has ended.
    pub(super) fn complete(&mut self, number: u64) {
        self.in_flight.remove(&number);
    }

    /// Since when the oldest dirty byte waits.
    pub(super) fn dirty_since(&self) -> Option<Instant> {
        self.dirty.as_ref().map(|dirty| dirty.since)
    }

    /// Number of writes in flight.
    pub(super) fn writes_in_flight(&self) -> usize {
        self.in_flight.len()
    }

    /// The number that the next write to be started gets.
    pub(super) fn next_number(&self) -> u64 {
        self.next
    }

    /// Whether a write in flight was started before the one with this number.
    pub(super) fn has_earlier_than(&self, number: u64) -> bool {
        self.in_flight
            .first_key_value()
            .is_some_and(|(&first, _)| first < number)
    }

    pub(super) fn overlaps_in_flight(&self, range: &Range<u64>) -> bool {
        self.in_flight.values().any(|other| overlap(other, range))
    }

    /// Whether any byte of the range is dirty or in flight.
    pub(super) fn overlaps(&self, range: &Range<u64>) -> bool {
        let dirty = self.dirty.as_ref().map(DirtyExtent::range);
        dirty.is_some_and(|dirty| overlap(&dirty, range)) || self.overlaps_in_flight(range)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const OBJECT: u64 = 1 << 12;

    proptest! {
        /// Random writes that end in random order: applied in that order, they leave the
        /// bytes that were buffered last.
        #[test]
        fn write_back_order_does_not_change_the_bytes(
            steps in prop::collection::vec(
                (0u64..3 * OBJECT, 1usize..3000, any::<prop::sample::Index>(), 0u8..4),
                1..80,
            ),
        ) {
            let mut buffer = DirtyBuffer::default();
            let (mut expected, mut device) = (vec![0u8; 20_000], vec![0u8; 20_000]);
            let mut in_flight: Vec<PendingWriteback> = Vec::new();
            let mut value = 0u8;
            // A write reaches the device when it ends.
            let mut finish = |buffer: &mut DirtyBuffer, write: PendingWriteback| {
                let at = usize::try_from(write.offset).unwrap();
                device[at..at + write.data.len()].copy_from_slice(&write.data);
                buffer.complete(write.number);
            };
            for (offset, len, which, kind) in steps {
                value = value.wrapping_add(1);
                // A write that overlaps another one in flight is repeated after that has
                // ended.
                loop {
                    match buffer.buffer(offset, &vec![value; len], OBJECT) {
                        Buffered::Taken { writes, .. } => {
                            for write in &writes {
                                let end = write.offset + write.data.len() as u64 - 1;
                                let large = write.data.len() == len && write.data[0] == value;
                                prop_assert!(large || write.offset / OBJECT == end / OBJECT);
                            }
                            in_flight.extend(writes);
                            break;
                        }
                        Buffered::Overlaps(write) => {
                            in_flight.extend(write);
                            for write in in_flight.drain(..) {
                                finish(&mut buffer, write);
                            }
                        }
                    }
                }
                let at = usize::try_from(offset).unwrap();
                expected[at..at + len].fill(value);
                // Now and then any one of the writes in flight ends.
                if kind == 0 && !in_flight.is_empty() {
                    let write = in_flight.swap_remove(which.index(in_flight.len()));
                    finish(&mut buffer, write);
                }
            }
            // At the end all writes end, the last one first.
            in_flight.extend(buffer.take_dirty());
            prop_assert_eq!(buffer.writes_in_flight(), in_flight.len());
            for write in in_flight.into_iter().rev() {
                finish(&mut buffer, write);
            }
            prop_assert_eq!(device, expected);
        }
    }
}
