//! What STAT reports: requests and bytes since the start.

use std::sync::atomic::{AtomicU64, Ordering};

use sheep_proto::statistics::RequestCounters;
use sheep_proto::{Opcode, RequestFlags, RequestHeader};

/// Counters of all connections.
#[derive(Default)]
pub(crate) struct Counters {
    active: AtomicU64,
    total: AtomicU64,
    received: AtomicU64,
    sent: AtomicU64,
    removes: AtomicU64,
    reads: AtomicU64,
    writes: AtomicU64,
    flushes: AtomicU64,
}

/// A request that is running.
pub(crate) struct Counted<'a>(&'a Counters);

impl Counters {
    /// Counts a request if it is one that a sheep counts: object I/O and flushes.
    pub(crate) fn begin(&self, header: &RequestHeader) -> Option<Counted<'_>> {
        let kind = match Opcode::try_from(header.opcode) {
            Ok(Opcode::ReadObj) => Some(&self.reads),
            Ok(Opcode::WriteObj | Opcode::CreateAndWriteObj) => Some(&self.writes),
            Ok(Opcode::DiscardObj) => Some(&self.removes),
            Ok(Opcode::FlushVdi) => Some(&self.flushes),
            Ok(Opcode::RemoveObj) => None,
            _ => return None,
        };
        self.active.fetch_add(1, Ordering::Relaxed);
        self.total.fetch_add(1, Ordering::Relaxed);
        let bytes = if header.flags().contains(RequestFlags::WRITE) {
            &self.received
        } else {
            &self.sent
        };
        bytes.fetch_add(header.data_length.get().into(), Ordering::Relaxed);
        if let Some(counter) = kind {
            counter.fetch_add(1, Ordering::Relaxed);
        }
        Some(Counted(self))
    }

    /// The counters as they travel; the peer ones stay 0.
    pub(crate) fn snapshot(&self) -> RequestCounters {
        let value = |counter: &AtomicU64| counter.load(Ordering::Relaxed).into();
        RequestCounters {
            gateway_active: value(&self.active),
            gateway_total: value(&self.total),
            gateway_rx_bytes: value(&self.received),
            gateway_tx_bytes: value(&self.sent),
            gateway_removes: value(&self.removes),
            gateway_reads: value(&self.reads),
            gateway_writes: value(&self.writes),
            gateway_flushes: value(&self.flushes),
            ..RequestCounters::default()
        }
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.active.fetch_sub(1, Ordering::Relaxed);
    }
}
