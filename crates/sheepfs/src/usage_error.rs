//! Usage errors.

use std::fmt;

/// An error of the command line or the environment, in one line.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct UsageError(pub(crate) String);

impl fmt::Display for UsageError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}\nTry 'sheepfs --help' for help.", self.0)
    }
}

impl std::error::Error for UsageError {}
