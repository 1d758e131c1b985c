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

use crate::options::LogFormat;

const JOURNAL_SOCKET: &str = "/run/systemd/journal/socket";
const SYSLOG_SOCKET: &str = "/dev/log";
/// Notice for the user if there is neither journald nor syslogd.
const NO_LOG: &str = "there is neither journald nor syslogd here: from now on nothing is logged \
                      (use -f to have the log on standard error)";
/// Prefix of the log targets of our crates.
const OURS: &str = "sheep";

/// What to log, and where.
#[derive(Clone, Copy, Debug)]
pub struct Logging {
    /// Identity for syslog.
    pub identity: &'static CStr,
    /// Log every request.
    pub debug: bool,
    /// Form of the lines on standard error.
    pub format: LogFormat,
    /// Log to journald or syslog.
    pub is_daemon_child: bool,
    /// Log target whose warnings are only logged with `debug`.
    pub quiet: Option<&'static str>,
}

/// Sends log lines to standard error in the foreground, else to journald or,
/// where there is none, to syslog. If there is neither, returns a notice to print.
///
/// # Errors
/// When logging was set up before.
pub fn init(logging: &Logging) -> anyhow::Result<Option<&'static str>> {
    let level = if logging.debug {
        Level::DEBUG
    } else {
        Level::INFO
    };
    let mut filter = Targets::new()
        .with_default(LevelFilter::WARN)
        .with_target(OURS, level);
    if let Some(quiet) = logging.quiet.filter(|_| !logging.debug) {
        filter = filter.with_target(quiet, LevelFilter::OFF);
    }
    let (layer, notice) = match logging.is_daemon_child {
        true => to_system_log(logging.identity),
        false => (to_stderr(logging.format), None),
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

fn to_system_log(identity: &'static CStr) -> (BoxedLayer, Option<&'static str>) {
    if Path::new(JOURNAL_SOCKET).exists()
        && let Ok(journal) = tracing_journald::layer()
    {
        return (journal.boxed(), None);
    }
    let syslog = Syslog::new(identity, Options::LOG_PID, Facility::Daemon)
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
    // A syslogd that starts later is used. Until the service is ready, warnings also go
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
