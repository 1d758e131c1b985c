//! Who called the program, and so: how to read its words and which exit status
//! means what.

use std::env;
use std::ffi::OsString;
use std::process::{ExitCode, ExitStatus};

use crate::arguments::{self, ParseExit};
use crate::mount_helper::{self, RemountFailure};
use crate::run::Interrupted;
use crate::settings::Settings;
use crate::usage_error::UsageError;

/// Exit status of anything that went wrong, when a person or script called.
const FAILED: u8 = 1;
/// What mount(8) says its helpers return.
const USAGE: u8 = 1;
const SYSTEM: u8 = 2;
const INTERRUPTED: u8 = 8;
const NOT_MOUNTED: u8 = 32;

/// Who called the program.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Invocation {
    /// A person or a script.
    Cli,
    /// mount(8), under this name.
    MountHelper(String),
}

impl Invocation {
    /// `arguments` begin with the program's name.
    pub(crate) fn of(arguments: &[OsString]) -> Self {
        mount_helper::name(arguments).map_or(Self::Cli, Self::MountHelper)
    }

    /// Remounts, if that is what it wants, and says what went wrong.
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

    /// What it wants.
    ///
    /// # Errors
    /// Help that was asked for, or what is wrong with the words.
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

    /// Says what is wrong with the words.
    pub(crate) fn usage_error(&self, error: &UsageError) -> ExitCode {
        match self {
            Self::Cli => self.exit_with(FAILED, &error.to_string()),
            // mount(8) is not called with `--help` of ours.
            Self::MountHelper(_) => self.exit_with(USAGE, &error.0),
        }
    }

    /// Says why the tree is not served, or how serving it ended.
    pub(crate) fn failure(&self, error: &anyhow::Error) -> ExitCode {
        self.exit_with(self.exit_code(error), &one_line(error))
    }

    /// Says why there is no background process.
    pub(crate) fn system_error(&self, error: &anyhow::Error) -> ExitCode {
        let exit_code = match self {
            Self::Cli => FAILED,
            Self::MountHelper(_) => SYSTEM,
        };
        self.exit_with(exit_code, &one_line(error))
    }

    /// Says what a background process said that ended without serving.
    pub(crate) fn child_failed(&self, status: ExitStatus, reason: &str) -> ExitCode {
        let exit_code = match self {
            Self::Cli => FAILED,
            Self::MountHelper(_) => NOT_MOUNTED,
        };
        let said = status.code().and_then(|code| u8::try_from(code).ok());
        self.exit_with(said.filter(|code| *code != 0).unwrap_or(exit_code), reason)
    }

    /// The exit status that stands for an error.
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

/// The error and what caused it.
pub(crate) fn one_line(error: &anyhow::Error) -> String {
    format!("{error:#}").replace('\n', " ")
}

#[cfg(test)]
mod tests {
    use anyhow::{Context as _, anyhow};

    use super::*;

    #[test]
    fn exit_code_distinguishes_failures_for_mount_only() {
        let mount = Invocation::MountHelper("mount.sheepfs".into());
        assert_eq!(mount.exit_code(&anyhow!("no sheep")), 32);
        assert_eq!(mount.exit_code(&Interrupted("SIGTERM").into()), 8);
        assert_eq!(Invocation::Cli.exit_code(&anyhow!("no sheep")), 1);
        assert_eq!(Invocation::Cli.exit_code(&Interrupted("SIGTERM").into()), 1);
    }

    #[test]
    fn error_chain_is_one_line() {
        let told = Err::<(), _>(anyhow!("refused")).context("cannot\nconnect");
        assert_eq!(one_line(&told.unwrap_err()), "cannot connect: refused");
    }
}
