//! `sheepfs`: mounts a sheepdog cluster as a directory.

use std::env;
use std::ffi::OsString;
use std::process::ExitCode;

mod arguments;
mod cli;
mod daemon;
mod embedded;
mod logging;
mod run;
mod settings;

use arguments::Stop;
use daemon::Starter;
use settings::{Mode, Settings};

fn main() -> ExitCode {
    let arguments: Vec<OsString> = env::args_os().collect();
    match settings(&arguments) {
        Ok(settings) => start(&settings, &arguments),
        Err(Stop::Shown(text)) => {
            print!("{text}");
            ExitCode::SUCCESS
        }
        Err(Stop::Wrong(error)) => {
            eprintln!("sheepfs: {error}");
            ExitCode::FAILURE
        }
    }
}

fn settings(arguments: &[OsString]) -> Result<Settings, Stop> {
    let environment = |name: &str| env::var_os(name);
    let cli = arguments::parse(arguments, environment)?;
    Settings::resolve(cli, environment).map_err(Stop::Wrong)
}

fn start(settings: &Settings, arguments: &[OsString]) -> ExitCode {
    let result = match settings.mode {
        Mode::Foreground => serve(settings),
        Mode::Background => daemon::start(arguments),
        Mode::InBackground => {
            let result = serve(settings);
            if let Err(error) = &result {
                let reason = one_line(error);
                tracing::error!("{reason}");
                daemon::say_failed(&reason);
            }
            return exit_code(&result);
        }
    };
    if let Err(error) = &result {
        eprintln!("sheepfs: {}", one_line(error));
    }
    exit_code(&result)
}

fn serve(settings: &Settings) -> anyhow::Result<()> {
    let starter = Starter::begin(settings.mode)?;
    logging::init(settings)?;
    run::mount_and_serve(settings, &starter)
}

fn exit_code(result: &anyhow::Result<()>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

/// The error and what caused it, without the causes its text tells already.
fn one_line(error: &anyhow::Error) -> String {
    let mut line = error.to_string();
    for cause in error.chain().skip(1).map(ToString::to_string) {
        if !line.contains(&cause) {
            line = format!("{line}: {cause}");
        }
    }
    line.replace('\n', " ")
}

#[cfg(test)]
mod tests {
    use anyhow::{Context as _, anyhow};

    use super::one_line;

    #[test]
    fn a_cause_is_told_once_and_all_in_one_line() {
        let told = Err::<(), _>(anyhow!("refused")).context("cannot connect: refused");
        let told = told.context("no\nsheep").unwrap_err();
        assert_eq!(one_line(&told), "no sheep: cannot connect: refused");
    }
}
