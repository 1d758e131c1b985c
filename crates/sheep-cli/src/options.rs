//! Definitions of the options that several programs have; `--help` and the manual
//! pages are rendered from them.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

/// Options of the cluster and its volumes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Args)]
pub struct ClusterOptions {
    /// Sheep to connect to [default: 127.0.0.1]
    ///
    /// A name, an IPv4 or IPv6 address, or HOST:PORT, where an IPv6 address has to
    /// stand in brackets. Several, separated by commas, are tried in this order.
    /// When the sheep in use fails, these are tried again, then the other nodes
    /// of the cluster.
    #[arg(short, long, value_name = "HOST[,HOST]...", help_heading = "Cluster")]
    pub address: Option<String>,

    /// Port of addresses given without one [default: 7000]
    #[arg(short, long, value_name = "PORT", value_parser = port, help_heading = "Cluster")]
    pub port: Option<u16>,

    /// Start a small sheep in this process instead of connecting to one
    ///
    /// For trying things out. The sheep is a cluster of one node that listens
    /// on a free port of 127.0.0.1 only. It keeps its data in DIR, which is created
    /// if missing, or in memory without DIR. A new one gets a thin volume `demo` of
    /// 1 GiB.
    #[arg(
        long,
        value_name = "DIR",
        num_args = 0..=1,
        require_equals = true,
        conflicts_with_all = ["address", "port"],
        help_heading = "Cluster"
    )]
    pub embedded: Option<Option<PathBuf>>,

    /// Connections to the sheep, 1 to 64 [default: 8]
    ///
    /// A sheep reads the requests of one connection one after the other, so more
    /// connections help when many processes do I/O at the same time.
    #[arg(
        long,
        value_name = "N",
        value_parser = clap::value_parser!(u16).range(1..=64),
        help_heading = "Cluster"
    )]
    pub connections: Option<u16>,

    /// How long requests wait while no sheep responds [default: 60]
    ///
    /// Within this time programs that use a volume see only a pause when a sheep
    /// restarts or fails. After it requests fail with input/output errors until a
    /// sheep responds again. With 0 they fail immediately.
    #[arg(
        long,
        value_name = "SECONDS",
        value_parser = clap::value_parser!(u32).range(0..=86_400),
        help_heading = "Cluster"
    )]
    pub retry_for: Option<u32>,

    /// Whether to lock volumes against writers elsewhere [default: auto]
    #[arg(long, value_name = "MODE", value_enum, help_heading = "Volumes")]
    pub lock: Option<Lock>,

    /// Refuse every write
    #[arg(long, help_heading = "Volumes")]
    pub read_only: bool,
}

impl ClusterOptions {
    /// Merges two sets of options; `self` takes precedence.
    ///
    /// `--embedded` excludes `--address` and `--port`. If `self` has one of them,
    /// `fallback` contributes none of the other group.
    #[must_use]
    pub fn or(self, fallback: Self) -> Self {
        let cluster_given = self.address.is_some() || self.port.is_some();
        let keep_cluster = self.embedded.is_none();
        let embedded = match cluster_given {
            true => None,
            false => self.embedded.or(fallback.embedded),
        };
        Self {
            address: self.address.or(fallback.address.filter(|_| keep_cluster)),
            port: self.port.or(fallback.port.filter(|_| keep_cluster)),
            embedded,
            connections: self.connections.or(fallback.connections),
            retry_for: self.retry_for.or(fallback.retry_for),
            lock: self.lock.or(fallback.lock),
            read_only: self.read_only || fallback.read_only,
        }
    }
}

/// Options of a service process.
#[derive(Clone, Debug, Default, PartialEq, Eq, Args)]
pub struct ProcessOptions {
    /// Stay in the foreground and log to standard error
    ///
    /// In the background the log goes to journald, or to syslog without it.
    #[arg(short, long, help_heading = "Process")]
    pub foreground: bool,

    /// Log every request; implies -f
    #[arg(short, long, help_heading = "Process")]
    pub debug: bool,

    /// Form of the log with -f or -d [default: text]
    #[arg(long, value_name = "FORMAT", value_enum, help_heading = "Process")]
    pub log_format: Option<LogFormat>,

    /// Write the process id to FILE once ready, remove it at the end
    #[arg(long, value_name = "FILE", help_heading = "Process")]
    pub pidfile: Option<PathBuf>,
}

impl ProcessOptions {
    /// Merges two sets of options; `self` takes precedence. The log format of
    /// `fallback` applies only if the log goes to standard error.
    #[must_use]
    pub fn or(self, fallback: Self) -> Self {
        let foreground = self.foreground || fallback.foreground;
        let debug = self.debug || fallback.debug;
        let logs_here = foreground || debug;
        Self {
            foreground,
            debug,
            log_format: self
                .log_format
                .or(fallback.log_format.filter(|_| logs_here)),
            pidfile: self.pidfile.or(fallback.pidfile),
        }
    }

    /// Whether the program runs as a daemon.
    pub fn is_background(&self) -> bool {
        !self.foreground && !self.debug
    }
}

/// Values of --lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Lock {
    /// In clusters formatted with locking, lock a volume while it is attached
    Auto,
    /// Refuse to attach a volume that cannot be locked
    Require,
    /// Take no locks: nothing keeps two writers apart
    Off,
}

/// Values of --log-format.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// Plain text lines
    Text,
    /// One JSON object per line
    Json,
}

/// Error text for an invalid port.
pub const PORT_RANGE: &str = "a port is a number from 1 to 65535";

fn port(text: &str) -> Result<u16, String> {
    match text.parse() {
        Ok(port) if port != 0 => Ok(port),
        _ => Err(PORT_RANGE.into()),
    }
}
