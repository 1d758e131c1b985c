//! Where log lines go.

use std::ffi::CStr;
use std::io::{IsTerminal as _, stderr};
use std::path::Path;

use syslog_tracing::{Facility, InvalidCharAction, Options, Syslog};
use tracing::Level;
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{Layer, Registry, fmt};

use crate::cli::LogFormat;
use crate::settings::{Mode, Settings};

const JOURNAL_SOCKET: &str = "/run/systemd/journal/socket";
const IDENTITY: &CStr = c"sheepfs";
/// It complains of replies that come too late, as the last ones of a mount do;
/// what matters it returns as errors.
const FUSER: &str = "fuser";
/// Our crates' targets begin with this; the rest of the program is others'.
const OURS: &str = "sheep";

/// Sends log lines to standard error in the foreground, else to journald or,
/// where there is none, to syslog.
///
/// # Errors
/// When logging was set up before.
pub(crate) fn init(settings: &Settings) -> anyhow::Result<()> {
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
    let layer = match settings.mode {
        Mode::Foreground | Mode::Background => to_stderr(settings.log_format),
        Mode::InBackground => to_system_log(),
    };
    tracing_subscriber::registry()
        .with(layer.with_filter(filter))
        .try_init()?;
    Ok(())
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

fn to_system_log() -> BoxedLayer {
    if Path::new(JOURNAL_SOCKET).exists()
        && let Ok(journal) = tracing_journald::layer()
    {
        return journal.boxed();
    }
    let syslog = Syslog::new(IDENTITY, Options::LOG_PID, Facility::Daemon)
        .expect("syslog is opened once in a process")
        .invalid_chars(InvalidCharAction::Remove);
    // Syslog adds the time, and the level is the line's priority.
    fmt::layer()
        .with_writer(syslog)
        .without_time()
        .with_level(false)
        .with_target(false)
        .with_ansi(false)
        .boxed()
}
