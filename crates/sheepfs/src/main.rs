//! `sheepfs`: mounts a sheepdog cluster as a directory.

use std::env;
use std::ffi::OsString;
use std::process::ExitCode;

mod arguments;
mod cli;
mod invocation;
mod memory;
mod mount_cli;
mod mount_helper;
mod mount_options;
mod mountpoint;
mod run;
mod settings;
mod status;

use sheep_cli::daemon::{self, ParentLink};
use sheep_cli::logging::{self, Logging};
use sheep_cli::usage_error::ParseExit;

use invocation::{Invocation, one_line};
use settings::{Mode, Settings};

fn main() -> ExitCode {
    let mut arguments: Vec<OsString> = env::args_os().collect();
    let in_background = daemon::take_flag(&mut arguments);
    let invocation = Invocation::of(&arguments);
    if let Some(status) = invocation.remount(&arguments) {
        return status;
    }
    match invocation.settings(&arguments) {
        Ok(mut settings) => {
            if in_background {
                settings.mode = Mode::DaemonChild;
            }
            start(&invocation, &settings, &arguments)
        }
        Err(ParseExit::Help(text)) => {
            print!("{text}");
            ExitCode::SUCCESS
        }
        Err(ParseExit::Usage(error)) => invocation.usage_error(&error),
    }
}

fn start(invocation: &Invocation, settings: &Settings, arguments: &[OsString]) -> ExitCode {
    match settings.mode {
        Mode::DryRun => ExitCode::SUCCESS,
        Mode::Foreground => match serve(settings) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => invocation.failure(&error),
        },
        Mode::Background => match daemon::start(arguments) {
            Ok(()) => ExitCode::SUCCESS,
            Err(daemon::SpawnError::Ended { status, reason }) => {
                invocation.child_failed(status, &reason)
            }
            Err(daemon::SpawnError::System(error)) => invocation.system_error(&error),
        },
        Mode::DaemonChild => match serve(settings) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                let reason = one_line(&error);
                tracing::error!("{reason}");
                daemon::report_failure(&reason);
                invocation.status_of(&error)
            }
        },
    }
}

fn serve(settings: &Settings) -> anyhow::Result<()> {
    mount_helper::enter_namespace(settings.namespace.as_ref())?;
    let is_daemon_child = settings.mode == Mode::DaemonChild;
    let mut parent = ParentLink::detach("sheepfs", is_daemon_child)?;
    let logging = Logging {
        identity: c"sheepfs",
        debug: settings.debug,
        format: settings.log_format,
        is_daemon_child,
        // fuser reports replies after an unmount, which are harmless; errors that
        // matter are returned.
        quiet: Some("fuser"),
    };
    if let Some(notice) = logging::init(&logging)? {
        parent.add_notice(notice);
    }
    memory::prepare();
    run::mount_and_serve(settings, &parent)
}
