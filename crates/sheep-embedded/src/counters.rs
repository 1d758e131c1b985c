//! What STAT reports: requests and bytes since the start.

use std::sync::atomic::{AtomicU64, Ordering};

use sheep_proto::statistics::RequestCounters;
use sheep_proto::{Opcode, RequestHeader};

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
    pub(crate) fn begin(&self, header: &RequestHeader) -> Counted<'_> {
        self.active.fetch_add(1, Ordering::Relaxed);
        self.total.fetch_add(1, Ordering::Relaxed);
        self.received
            .fetch_add(header.payload_len().into(), Ordering::Relaxed);
        let kind = match Opcode::try_from(header.opcode) {
            Ok(Opcode::ReadObj) => Some(&self.reads),
            Ok(Opcode::WriteObj | Opcode::CreateAndWriteObj) => Some(&self.writes),
            Ok(Opcode::RemoveObj | Opcode::DiscardObj) => Some(&self.removes),
            Ok(Opcode::FlushVdi) => Some(&self.flushes),
            _ => None,
        };
        if let Some(counter) = kind {
            counter.fetch_add(1, Ordering::Relaxed);
        }
        Counted(self)
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

impl Counted<'_> {
    /// The answer has a payload of `len` bytes.
    pub(crate) fn end(self, len: u32) {
        self.0.sent.fetch_add(len.into(), Ordering::Relaxed);
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.active.fetch_sub(1, Ordering::Relaxed);
    }
}
