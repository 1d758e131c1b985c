//! Who called the program, and so: how to read its words and which exit status
//! means what.

use std::env;
use std::ffi::OsString;
use std::process::{ExitCode, ExitStatus};

use crate::arguments::{self, Stop};
use crate::mount_helper::{self, NotRemounted};
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
pub(crate) enum Caller {
    /// A person or a script.
    Command,
    /// mount(8), under this name.
    Mount(String),
}

impl Caller {
    /// `arguments` begin with the program's name.
    pub(crate) fn of(arguments: &[OsString]) -> Self {
        mount_helper::name(arguments).map_or(Self::Command, Self::Mount)
    }

    /// Remounts, if that is what it wants, and says what went wrong.
    pub(crate) fn remount(&self, arguments: &[OsString]) -> Option<ExitCode> {
        let Self::Mount(_) = self else { return None };
        Some(match mount_helper::remount(arguments)? {
            Ok(()) => ExitCode::SUCCESS,
            Err(NotRemounted::Wrong(error)) => self.usage_error(&error),
            Err(NotRemounted::System(error)) => self.failure(&error),
        })
    }

    /// What it wants.
    ///
    /// # Errors
    /// Help that was asked for, or what is wrong with the words.
    pub(crate) fn settings(&self, arguments: &[OsString]) -> Result<Settings, Stop> {
        match self {
            Self::Command => {
                let environment = |name: &str| env::var_os(name);
                let cli = arguments::parse(arguments, environment)?;
                Settings::resolve(cli, environment).map_err(Stop::Wrong)
            }
            Self::Mount(_) => mount_helper::settings(arguments),
        }
    }

    /// Says what is wrong with the words.
    pub(crate) fn usage_error(&self, error: &UsageError) -> ExitCode {
        match self {
            Self::Command => self.say(FAILED, &error.to_string()),
            // mount(8) is not called with `--help` of ours.
            Self::Mount(_) => self.say(USAGE, &error.0),
        }
    }

    /// Says why the tree is not served, or how serving it ended.
    pub(crate) fn failure(&self, error: &anyhow::Error) -> ExitCode {
        self.say(self.number(error), &one_line(error))
    }

    /// Says why there is no background process.
    pub(crate) fn system_error(&self, error: &anyhow::Error) -> ExitCode {
        let number = match self {
            Self::Command => FAILED,
            Self::Mount(_) => SYSTEM,
        };
        self.say(number, &one_line(error))
    }

    /// Says what a background process said that ended without serving.
    pub(crate) fn ended(&self, status: ExitStatus, reason: &str) -> ExitCode {
        let number = match self {
            Self::Command => FAILED,
            Self::Mount(_) => NOT_MOUNTED,
        };
        let said = status.code().and_then(|code| u8::try_from(code).ok());
        self.say(said.filter(|code| *code != 0).unwrap_or(number), reason)
    }

    /// The exit status that stands for an error.
    pub(crate) fn status_of(&self, error: &anyhow::Error) -> ExitCode {
        self.number(error).into()
    }

    fn number(&self, error: &anyhow::Error) -> u8 {
        match self {
            Self::Command => FAILED,
            Self::Mount(_) if error.is::<Interrupted>() => INTERRUPTED,
            Self::Mount(_) => NOT_MOUNTED,
        }
    }

    fn say(&self, number: u8, text: &str) -> ExitCode {
        let name = match self {
            Self::Command => "sheepfs",
            Self::Mount(name) => name,
        };
        eprintln!("{name}: {text}");
        number.into()
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
    fn mount_is_told_by_number_what_happened_and_people_that_it_failed() {
        let mount = Caller::Mount("mount.sheepfs".into());
        assert_eq!(mount.number(&anyhow!("no sheep")), 32);
        assert_eq!(mount.number(&Interrupted("SIGTERM").into()), 8);
        assert_eq!(Caller::Command.number(&anyhow!("no sheep")), 1);
        assert_eq!(Caller::Command.number(&Interrupted("SIGTERM").into()), 1);
    }

    #[test]
    fn error_and_its_causes_are_one_line() {
        let told = Err::<(), _>(anyhow!("refused")).context("cannot\nconnect");
        assert_eq!(one_line(&told.unwrap_err()), "cannot connect: refused");
    }
}
