//! The NBD protocol as a server speaks it: bytes in, typed messages out, and the
//! reverse. No I/O.
//!
//! | module | messages |
//! |---|---|
//! | [`handshake`] | the greeting, option requests and their replies |
//! | [`request`] | headers of requests in the transmission phase |
//! | [`reply`] | simple, structured and extended replies |
//! | [`flags`], [`error`] | flag words and error numbers |
//! | [`limits`] | every length that is accepted or advertised |
//!
//! Source: `doc/proto.md` of NetworkBlockDevice/nbd, and its branch
//! `extension-ext-header` for extended headers.

pub mod error;
pub mod flags;
pub mod handshake;
pub mod limits;
pub mod reply;
pub mod request;
