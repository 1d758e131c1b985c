//! How the program was invoked: on the command line or as a helper of mount(8).
//! This decides how arguments are parsed and what exit statuses mean.

use std::env;
use std::ffi::OsString;
use std::process::{ExitCode, ExitStatus};

use sheep_cli::signals::Interrupted;
use sheep_cli::usage_error::{ParseExit, UsageError};

use crate::arguments;
use crate::mount_helper::{self, RemountFailure};
use crate::settings::Settings;

/// Exit status of every failure on the command line.
const FAILED: u8 = 1;
/// Exit statuses of helpers, as defined in mount(8).
const USAGE: u8 = 1;
const SYSTEM: u8 = 2;
const INTERRUPTED: u8 = 8;
const NOT_MOUNTED: u8 = 32;

/// How the program was invoked.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Invocation {
    /// On the command line.
    Cli,
    /// By mount(8), under this name.
    MountHelper(String),
}

impl Invocation {
    /// Detects the invocation from `arguments`, the program's name first.
    pub(crate) fn of(arguments: &[OsString]) -> Self {
        mount_helper::name(arguments).map_or(Self::Cli, Self::MountHelper)
    }

    /// Remounts if the arguments request it, and prints the error if that fails.
    pub(crate) fn remount(&self, arguments: &[OsString]) -> Option<ExitCode> {
        let Self::MountHelper(_) = self else {
            return None;
        };
        Some(match mount_helper::remount(arguments)? {
            Ok(()) => ExitCode::SUCCESS,
            Err(RemountFailure::Usage(error)) => self.usage_error(&error),
            Err(RemountFailure::System(error)) => self.failure(&error),
        })
    }

    /// Parses `arguments`.
    ///
    /// # Errors
    /// `Help` for `--help` and `--version`, `Usage` for invalid arguments.
    pub(crate) fn settings(&self, arguments: &[OsString]) -> Result<Settings, ParseExit> {
        match self {
            Self::Cli => {
                let environment = |name: &str| env::var_os(name);
                let cli = arguments::parse(arguments, environment)?;
                Settings::resolve(cli, environment).map_err(ParseExit::Usage)
            }
            Self::MountHelper(_) => mount_helper::settings(arguments),
        }
    }

    /// Prints a usage error.
    pub(crate) fn usage_error(&self, error: &UsageError) -> ExitCode {
        match self {
            Self::Cli => self.exit_with(FAILED, &error.with_hint("sheepfs")),
            // The hint at our `--help` does not apply to options of mount(8).
            Self::MountHelper(_) => self.exit_with(USAGE, &error.0),
        }
    }

    /// Prints why mounting failed, or why serving ended.
    pub(crate) fn failure(&self, error: &anyhow::Error) -> ExitCode {
        self.exit_with(self.exit_code(error), &one_line(error))
    }

    /// Prints why no background process could be started.
    pub(crate) fn system_error(&self, error: &anyhow::Error) -> ExitCode {
        let exit_code = match self {
            Self::Cli => FAILED,
            Self::MountHelper(_) => SYSTEM,
        };
        self.exit_with(exit_code, &one_line(error))
    }

    /// Prints the error of a background process that ended before it was ready.
    pub(crate) fn child_failed(&self, status: ExitStatus, reason: &str) -> ExitCode {
        let exit_code = match self {
            Self::Cli => FAILED,
            Self::MountHelper(_) => NOT_MOUNTED,
        };
        let said = status.code().and_then(|code| u8::try_from(code).ok());
        self.exit_with(said.filter(|code| *code != 0).unwrap_or(exit_code), reason)
    }

    /// Exit status of an error.
    pub(crate) fn status_of(&self, error: &anyhow::Error) -> ExitCode {
        self.exit_code(error).into()
    }

    fn exit_code(&self, error: &anyhow::Error) -> u8 {
        match self {
            Self::Cli => FAILED,
            Self::MountHelper(_) if error.is::<Interrupted>() => INTERRUPTED,
            Self::MountHelper(_) => NOT_MOUNTED,
        }
    }

    fn exit_with(&self, exit_code: u8, text: &str) -> ExitCode {
        let name = match self {
            Self::Cli => "sheepfs",
            Self::MountHelper(name) => name,
        };
        eprintln!("{name}: {text}");
        exit_code.into()
    }
}

/// The chain of an error's sources in one line.
pub(crate) fn one_line(error: &anyhow::Error) -> String {
    format!("{error:#}").replace('\n', " ")
}

#[cfg(test)]
mod tests {
    use anyhow::{Context as _, anyhow};

    use super::*;

    fn interrupted() -> Interrupted {
        Interrupted {
            signal: "SIGTERM",
            before: "the tree was mounted",
        }
    }

    #[test]
    fn exit_code_distinguishes_failures_for_mount_only() {
        let mount = Invocation::MountHelper("mount.sheepfs".into());
        assert_eq!(mount.exit_code(&anyhow!("no sheep")), 32);
        assert_eq!(mount.exit_code(&interrupted().into()), 8);
        assert_eq!(Invocation::Cli.exit_code(&anyhow!("no sheep")), 1);
        assert_eq!(Invocation::Cli.exit_code(&interrupted().into()), 1);
    }

    #[test]
    fn error_chain_is_one_line() {
        let told = Err::<(), _>(anyhow!("refused")).context("cannot\nconnect");
        assert_eq!(one_line(&told.unwrap_err()), "cannot connect: refused");
    }
}
