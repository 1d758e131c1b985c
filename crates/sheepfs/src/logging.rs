//! Log targets: standard error, journald or syslog.

use std::ffi::CStr;
use std::io::{IsTerminal as _, stderr};
use std::path::Path;

use syslog_tracing::{Facility, InvalidCharAction, Options, Syslog};
use tracing::Level;
use tracing_subscriber::filter::{LevelFilter, Targets, filter_fn};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{Layer, Registry, fmt};

use crate::cli::LogFormat;
use crate::settings::{Mode, Settings};

const JOURNAL_SOCKET: &str = "/run/systemd/journal/socket";
const SYSLOG_SOCKET: &str = "/dev/log";
/// Notice for the user if there is neither journald nor syslogd.
const NO_LOG: &str = "there is neither journald nor syslogd here: from now on nothing is logged \
                      (use -f to have the log on standard error)";
const IDENTITY: &CStr = c"sheepfs";
/// Target of fuser's log lines. They report replies after an unmount, which are
/// harmless; errors that matter are returned.
const FUSER: &str = "fuser";
/// Prefix of the log targets of our crates.
const OURS: &str = "sheep";

/// Sends log lines to standard error in the foreground, else to journald or,
/// where there is none, to syslog. If there is neither, returns a notice to print.
///
/// # Errors
/// When logging was set up before.
pub(crate) fn init(settings: &Settings) -> anyhow::Result<Option<&'static str>> {
    let level = if settings.debug {
        Level::DEBUG
    } else {
        Level::INFO
    };
    let filter = Targets::new()
        .with_default(LevelFilter::WARN)
        .with_target(
            FUSER,
            if settings.debug {
                LevelFilter::WARN
            } else {
                LevelFilter::OFF
            },
        )
        .with_target(OURS, level);
    let (layer, notice) = match settings.mode {
        Mode::DaemonChild => to_system_log(),
        Mode::Foreground | Mode::Background | Mode::DryRun => {
            (to_stderr(settings.log_format), None)
        }
    };
    tracing_subscriber::registry()
        .with(layer.with_filter(filter))
        .try_init()?;
    Ok(notice)
}

type BoxedLayer = Box<dyn Layer<Registry> + Send + Sync>;

fn to_stderr(format: LogFormat) -> BoxedLayer {
    let layer = fmt::layer().with_writer(stderr);
    match format {
        LogFormat::Text => layer
            .with_target(false)
            .with_ansi(stderr().is_terminal())
            .boxed(),
        LogFormat::Json => layer.json().boxed(),
    }
}

fn to_system_log() -> (BoxedLayer, Option<&'static str>) {
    if Path::new(JOURNAL_SOCKET).exists()
        && let Ok(journal) = tracing_journald::layer()
    {
        return (journal.boxed(), None);
    }
    let syslog = Syslog::new(IDENTITY, Options::LOG_PID, Facility::Daemon)
        .expect("logging is initialised once per process")
        .invalid_chars(InvalidCharAction::Remove);
    // Syslog adds the time, and the level is the line's priority.
    let syslog = fmt::layer()
        .with_writer(syslog)
        .without_time()
        .with_level(false)
        .with_target(false)
        .with_ansi(false);
    if Path::new(SYSLOG_SOCKET).exists() {
        return (syslog.boxed(), None);
    }
    // A syslogd that starts later is used. Until the tree is served, warnings also go
    // to standard error, which the child shares with the command. The command prints
    // the error of a failed start itself.
    let early = fmt::layer()
        .with_writer(stderr)
        .without_time()
        .with_target(false)
        .with_ansi(false)
        .with_filter(filter_fn(|line| *line.level() == Level::WARN));
    (syslog.and_then(early).boxed(), Some(NO_LOG))
}
