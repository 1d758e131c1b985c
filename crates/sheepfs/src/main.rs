//! `sheepfs`: mounts a sheepdog cluster as a directory.

use std::env;
use std::ffi::OsString;
use std::process::ExitCode;

mod arguments;
mod caller;
mod cli;
mod daemon;
mod embedded;
mod logging;
mod memory;
mod mount_cli;
mod mount_helper;
mod mount_options;
mod notify;
mod run;
mod settings;
mod usage_error;

use arguments::Stop;
use caller::{Caller, one_line};
use daemon::Starter;
use settings::{Mode, Settings};

fn main() -> ExitCode {
    let mut arguments: Vec<OsString> = env::args_os().collect();
    let in_background = daemon::take_flag(&mut arguments);
    let caller = Caller::of(&arguments);
    if let Some(status) = caller.remount(&arguments) {
        return status;
    }
    match caller.settings(&arguments) {
        Ok(mut settings) => {
            if in_background {
                settings.mode = Mode::InBackground;
            }
            start(&caller, &settings, &arguments)
        }
        Err(Stop::Shown(text)) => {
            print!("{text}");
            ExitCode::SUCCESS
        }
        Err(Stop::Wrong(error)) => caller.usage_error(&error),
    }
}

fn start(caller: &Caller, settings: &Settings, arguments: &[OsString]) -> ExitCode {
    match settings.mode {
        Mode::Check => ExitCode::SUCCESS,
        Mode::Foreground => match serve(settings) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => caller.failure(&error),
        },
        Mode::Background => match daemon::start(arguments) {
            Ok(()) => ExitCode::SUCCESS,
            Err(daemon::NotStarted::Ended { status, reason }) => caller.ended(status, &reason),
            Err(daemon::NotStarted::System(error)) => caller.system_error(&error),
        },
        Mode::InBackground => match serve(settings) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                let reason = one_line(&error);
                tracing::error!("{reason}");
                daemon::say_failed(&reason);
                caller.status_of(&error)
            }
        },
    }
}

fn serve(settings: &Settings) -> anyhow::Result<()> {
    mount_helper::enter_namespace(settings.namespace.as_ref())?;
    let mut starter = Starter::begin(settings.mode)?;
    if let Some(notice) = logging::init(settings)? {
        starter.mention(notice);
    }
    memory::prepare();
    run::mount_and_serve(settings, &starter)
}
