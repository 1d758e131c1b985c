//! A session with a gateway, for requests that only mean something to that one process.

/// A session with a gateway. It ends with the first of its connections that is lost, or
/// when another gateway is chosen.
///
/// A sheep that was restarted is reached with new connections, so whatever it had in
/// memory or in its object cache during a session is there until the session ends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Session(u64);

impl Session {
    /// The session after this one.
    pub(crate) fn next(self) -> Self {
        Self(self.0 + 1)
    }
}
