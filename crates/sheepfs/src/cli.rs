//! Definition of the command line; `--help` and the manual page are rendered from it.
//!
//! Uses only clap and std, so that the manual page can be rendered without building
//! the other crates.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Parser, ValueEnum};

/// Mount a Sheepdog cluster: its volumes as files, its state as text.
///
/// The mounted tree holds `volume/NAME` for each attached volume, the state of
/// the cluster in `cluster/`, `node/` and `vdi/`, and switches in `config/`.
/// Write a volume's name to `vdi/mount` to attach it, or see --attach.
///
/// The command goes to the background once the tree is served. It ends, cleanly
/// and with status 0, on `umount`, `fusermount3 -u`, SIGTERM or SIGINT.
#[derive(Clone, Debug, Default, PartialEq, Eq, Parser)]
#[command(
    name = "sheepfs",
    version,
    infer_long_args = true,
    args_override_self = true,
    override_usage = "sheepfs [OPTION]... MOUNTPOINT",
    after_help = "Every option can also be set in the environment; see --help.",
    after_long_help = ENVIRONMENT
)]
pub(crate) struct Cli {
    /// Directory to mount on
    ///
    /// It must exist (--embedded creates it). Its own content is hidden while the
    /// tree is mounted.
    #[arg(value_name = "MOUNTPOINT")]
    pub(crate) mountpoint: Option<PathBuf>,

    /// Sheep to connect to [default: 127.0.0.1]
    ///
    /// A name, an IPv4 or IPv6 address, or HOST:PORT, where an IPv6 address has to
    /// stand in brackets. Several, separated by commas, are tried in this order.
    /// When the sheep in use fails, these are tried again, then the other nodes
    /// of the cluster.
    #[arg(short, long, value_name = "HOST[,HOST]...", help_heading = "Cluster")]
    pub(crate) address: Option<String>,

    /// Port of addresses given without one [default: 7000]
    #[arg(short, long, value_name = "PORT", value_parser = port, help_heading = "Cluster")]
    pub(crate) port: Option<u16>,

    /// Start a small sheep in this process instead of connecting to one
    ///
    /// For trying sheepfs out. The sheep is a cluster of one node that listens
    /// on a free port of 127.0.0.1 only. It keeps its data in DIR, which is created
    /// if missing, or in memory without DIR. A new one gets a thin volume `demo` of
    /// 1 GiB. All its volumes are attached. A missing MOUNTPOINT is created, and
    /// removed at the end.
    #[arg(
        long,
        value_name = "DIR",
        num_args = 0..=1,
        require_equals = true,
        conflicts_with_all = ["address", "port"],
        help_heading = "Cluster"
    )]
    pub(crate) embedded: Option<Option<PathBuf>>,

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
    pub(crate) connections: Option<u16>,

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
    pub(crate) retry_for: Option<u32>,

    /// Attach a volume, or a snapshot by its tag, before mounting; repeatable
    #[arg(long, value_name = "NAME[@TAG]", help_heading = "Volumes")]
    pub(crate) attach: Vec<OsString>,

    /// Attach all volumes of the cluster before mounting
    #[arg(long, help_heading = "Volumes")]
    pub(crate) attach_all: bool,

    /// Whether to lock volumes against writers elsewhere [default: auto]
    #[arg(long, value_name = "MODE", value_enum, help_heading = "Volumes")]
    pub(crate) lock: Option<Lock>,

    /// Use the kernel's page cache for volumes
    ///
    /// Reads are cached and read ahead; writes are buffered, and durable when
    /// fsync(2) returns. Each open of a file starts with an empty cache. Off by
    /// default: then a write is on the cluster when it returns, and changes by other
    /// clients are seen immediately.
    #[arg(short = 'k', long = "pagecache", help_heading = "Volumes")]
    pub(crate) page_cache: bool,

    /// Use the object cache of a sheep before version 1.0
    ///
    /// Writes return when the gateway's cache has them, and are on the replicas when
    /// fsync(2) returns; see config/object_cache. No effect without such a cache.
    #[arg(short = 'o', long = "objectcache", help_heading = "Volumes")]
    pub(crate) object_cache: bool,

    /// Mount without write permission
    #[arg(long, help_heading = "Volumes")]
    pub(crate) read_only: bool,

    /// Let all users access the mount, as far as file permissions allow
    #[arg(long, conflicts_with_all = ["allow_root", "allow_none"], help_heading = "Access")]
    pub(crate) allow_other: bool,

    /// Let root access the mount besides the mounting user [default where permitted]
    ///
    /// Users other than root may use this and --allow-other only when
    /// /etc/fuse.conf has a line `user_allow_other`.
    #[arg(long, conflicts_with = "allow_none", help_heading = "Access")]
    pub(crate) allow_root: bool,

    /// Let only the mounting user access the mount
    #[arg(long, help_heading = "Access")]
    pub(crate) allow_none: bool,

    /// Owner of the files: a number or a name [default: the mounting user]
    #[arg(long, value_name = "USER", help_heading = "Access")]
    pub(crate) uid: Option<String>,

    /// Group of the files: a number or a name [default: that of the mounting user]
    #[arg(long, value_name = "GROUP", help_heading = "Access")]
    pub(crate) gid: Option<String>,

    /// Permission bits that no file has, octal [default: 000]
    ///
    /// Without it directories are 0755, files 0644 and snapshots 0444.
    #[arg(long, value_name = "OCTAL", value_parser = umask, help_heading = "Access")]
    pub(crate) umask: Option<u16>,

    /// Stay in the foreground and log to standard error
    ///
    /// In the background the log goes to journald, or to syslog without it.
    #[arg(short, long, help_heading = "Process")]
    pub(crate) foreground: bool,

    /// Log every request; implies -f
    #[arg(short, long, help_heading = "Process")]
    pub(crate) debug: bool,

    /// Form of the log with -f or -d [default: text]
    #[arg(long, value_name = "FORMAT", value_enum, help_heading = "Process")]
    pub(crate) log_format: Option<LogFormat>,

    /// Write the process id to FILE once mounted, remove it at the end
    #[arg(long, value_name = "FILE", help_heading = "Process")]
    pub(crate) pidfile: Option<PathBuf>,

    /// Accepted for scripts written for the original; it has no effect
    #[arg(short = 'n', hide = true)]
    pub(crate) no_effect: bool,
}

/// Values of --lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Lock {
    /// In clusters formatted with locking, lock a volume while it is attached
    Auto,
    /// Refuse to attach a volume that cannot be locked
    Require,
    /// Take no locks: nothing keeps two writers apart
    Off,
}

/// Values of --log-format.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum LogFormat {
    /// Plain text lines
    Text,
    /// One JSON object per line
    Json,
}

const ENVIRONMENT: &str = "\
Environment:
  An option that is not given is looked up under its long name: SHEEPFS_ADDRESS,
  SHEEPFS_RETRY_FOR, and so on. Switches take 1 or 0, as in SHEEPFS_READ_ONLY=1.
  SHEEPFS_EMBEDDED takes 1 or a directory, SHEEPFS_ATTACH names separated by
  blanks. Then SHEEPDOG_DOG_ADDR and SHEEPDOG_DOG_PORT are used, as dog does.

Examples:
  sheepfs -a 192.168.1.10 --attach vm1 /mnt/sheep
  qemu-img convert -p -O qcow2 /mnt/sheep/volume/vm1 vm1.qcow2
  umount /mnt/sheep";

/// Error text for an invalid port.
pub(crate) const PORT_RANGE: &str = "a port is a number from 1 to 65535";

fn port(text: &str) -> Result<u16, String> {
    match text.parse() {
        Ok(port) if port != 0 => Ok(port),
        _ => Err(PORT_RANGE.into()),
    }
}

fn umask(text: &str) -> Result<u16, String> {
    match u16::from_str_radix(text, 8) {
        Ok(bits) if bits <= 0o777 => Ok(bits),
        _ => Err("a umask is an octal number up to 777".into()),
    }
}
