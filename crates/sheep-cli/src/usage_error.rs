//! Usage errors.

use clap::error::{ContextKind, ContextValue, ErrorKind};

/// An error of the command line or the environment, in one line.
#[derive(Debug, PartialEq, Eq)]
pub struct UsageError(pub String);

impl UsageError {
    /// The error, and a hint at `--help`.
    pub fn with_hint(&self, program: &str) -> String {
        format!("{}\nTry '{program} --help' for help.", self.0)
    }
}

/// Why the program exits after parsing.
#[derive(Debug)]
pub enum ParseExit {
    /// `--help` or `--version`: print this text and succeed.
    Help(String),
    /// A usage error.
    Usage(UsageError),
}

/// Converts clap's error: help and version unchanged, a usage error as one line.
pub fn parse_exit(error: clap::Error) -> ParseExit {
    if matches!(
        error.kind(),
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion
    ) {
        return ParseExit::Help(error.to_string());
    }
    let text = error.to_string();
    let lines = text.lines().take_while(|line| !line.trim().is_empty());
    let message: Vec<_> = lines.map(str::trim).collect();
    let mut message = message.join(" ");
    if let Some(rest) = message.strip_prefix("error: ") {
        message = rest.into();
    }
    if let Some(ContextValue::String(similar)) = error.get(ContextKind::SuggestedArg) {
        message = format!("{message}; did you mean {similar}?");
    }
    ParseExit::Usage(UsageError(message))
}
