//! Definition of the command line; `--help` and the manual page are rendered from it.
//!
//! Uses only clap, std and the options in sheep-cli, so that the manual page can be
//! rendered without building the other crates.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::Parser;
use sheep_cli::options::{ClusterOptions, ProcessOptions};

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
    /// It must exist, or with --embedded its parent: then it is created, and removed
    /// at the end. Its own content is hidden while the tree is mounted.
    #[arg(value_name = "MOUNTPOINT")]
    pub(crate) mountpoint: Option<PathBuf>,

    #[command(flatten)]
    pub(crate) cluster: ClusterOptions,

    /// Attach a volume, or a snapshot by its tag, before mounting; repeatable
    #[arg(long, value_name = "NAME[@TAG]", help_heading = "Volumes")]
    pub(crate) attach: Vec<OsString>,

    /// Attach all volumes of the cluster before mounting; implied by --embedded
    #[arg(long, help_heading = "Volumes")]
    pub(crate) attach_all: bool,

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

    #[command(flatten)]
    pub(crate) process: ProcessOptions,

    /// Accepted for scripts written for the original; it has no effect
    #[arg(short = 'n', hide = true)]
    pub(crate) no_effect: bool,
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

fn umask(text: &str) -> Result<u16, String> {
    match u16::from_str_radix(text, 8) {
        Ok(bits) if bits <= 0o777 => Ok(bits),
        _ => Err("a umask is an octal number up to 777".into()),
    }
}
