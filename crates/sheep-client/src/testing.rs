//! Transports for tests, with feature `testing`.

mod fault_transport;

pub use fault_transport::{Fault, FaultTransport};
