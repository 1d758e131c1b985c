//! `sheep-nbd`: serves volumes of a sheepdog cluster as NBD exports.

use std::env;
use std::ffi::OsString;
use std::process::ExitCode;

mod cli;
mod run;
mod settings;
mod sockets;

use sheep_cli::daemon::{self, ParentLink, SpawnError};
use sheep_cli::logging::{self, Logging};
use sheep_cli::usage_error::ParseExit;

use settings::Settings;

fn main() -> ExitCode {
    let mut arguments: Vec<OsString> = env::args_os().collect();
    let is_daemon_child = daemon::take_flag(&mut arguments);
    let settings = match Settings::read(&arguments, |name| env::var_os(name)) {
        Ok(settings) => settings,
        Err(ParseExit::Help(text)) => {
            print!("{text}");
            return ExitCode::SUCCESS;
        }
        Err(ParseExit::Usage(error)) => return failed(&error.with_hint("sheep-nbd")),
    };
    if settings.background && !is_daemon_child {
        return match daemon::start(&arguments) {
            Ok(()) => ExitCode::SUCCESS,
            Err(SpawnError::Ended { reason, .. }) => failed(&reason),
            Err(SpawnError::System(error)) => failed(&one_line(&error)),
        };
    }
    match serve(&settings, is_daemon_child) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if is_daemon_child => {
            let reason = one_line(&error);
            tracing::error!("{reason}");
            daemon::report_failure(&reason);
            ExitCode::FAILURE
        }
        Err(error) => failed(&one_line(&error)),
    }
}

fn serve(settings: &Settings, is_daemon_child: bool) -> anyhow::Result<()> {
    let mut parent = ParentLink::detach("sheep-nbd", is_daemon_child)?;
    let logging = Logging {
        identity: c"sheep-nbd",
        debug: settings.debug,
        format: settings.log_format,
        is_daemon_child,
        quiet: None,
    };
    if let Some(notice) = logging::init(&logging)? {
        parent.add_notice(notice);
    }
    run::serve(settings, &parent)
}

fn failed(text: &str) -> ExitCode {
    eprintln!("sheep-nbd: {text}");
    ExitCode::FAILURE
}

fn one_line(error: &anyhow::Error) -> String {
    format!("{error:#}").replace('\n', " ")
}
