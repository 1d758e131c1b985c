//! Arguments that mount(8) passes to a helper; `mount.sheepfs --help` shows them.
//!
//! Uses only clap and std, as `cli.rs` does and for the same reason.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::Parser;

/// Mount a Sheepdog cluster, called by mount(8)
///
/// `mount -t sheepfs` and lines of /etc/fstab with the type `sheepfs` run this
/// program. It returns when the tree is served, and a process that serves it
/// stays in the background. sheepfs(8) says what is in the tree.
#[derive(Clone, Debug, Default, PartialEq, Eq, Parser)]
#[command(
    name = "mount.sheepfs",
    version,
    override_usage = "mount.sheepfs SPEC DIRECTORY [-sfnv] [-N NAMESPACE] [-o OPTION[,OPTION]...] [-t TYPE]"
)]
pub(crate) struct MountCli {
    /// Sheep to connect to, as HOST[:PORT][,HOST[:PORT]]...
    ///
    /// A name, an IPv4 address, or an IPv6 address, which needs brackets when a
    /// port follows. Several are tried in this order.
    #[arg(value_name = "SPEC")]
    pub(crate) spec: String,

    /// Directory to mount on; it must exist
    #[arg(value_name = "DIRECTORY")]
    pub(crate) directory: PathBuf,

    /// Mount options, separated by commas; repeatable
    #[arg(short = 'o', value_name = "OPTION[,OPTION]...")]
    pub(crate) options: Vec<OsString>,

    /// Ignore unknown mount options
    #[arg(short = 's')]
    pub(crate) sloppy: bool,

    /// Check the command line and the options, and mount nothing
    #[arg(short = 'f')]
    pub(crate) fake: bool,

    /// Accepted; nothing is written to /etc/mtab anyway
    #[arg(short = 'n')]
    pub(crate) no_mtab: bool,

    /// Accepted; mount(8) itself says what was mounted
    #[arg(short = 'v')]
    pub(crate) verbose: bool,

    /// Mount in the mount namespace of this file
    #[arg(short = 'N', value_name = "NAMESPACE")]
    pub(crate) namespace: Option<PathBuf>,

    /// Accepted: sheepfs or fuse.sheepfs
    #[arg(short = 't', value_name = "TYPE", value_parser = ["sheepfs", "fuse.sheepfs"])]
    pub(crate) kind: Option<String>,
}
