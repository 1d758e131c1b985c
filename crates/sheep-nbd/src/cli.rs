//! Definition of the command line; `--help` and the manual page are rendered from it.
//!
//! Uses only clap, std and the options in sheep-cli, so that the manual page can be
//! rendered without building the other crates.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::Parser;
use sheep_cli::options::{ClusterOptions, ProcessOptions};

/// Serve volumes of a Sheepdog cluster as NBD exports.
///
/// QEMU, libvirt, nbdcopy, the kernel and other clients of the Network Block Device
/// protocol use them under the names of the volumes. A volume is attached, and locked
/// in clusters with locking, when its first client connects, and detached after the
/// last one has disconnected.
///
/// The command goes to the background once it listens. On SIGTERM or SIGINT it
/// completes the requests in flight, releases locks, and ends with status 0.
#[derive(Clone, Debug, Default, PartialEq, Eq, Parser)]
#[command(
    name = "sheep-nbd",
    version,
    infer_long_args = true,
    args_override_self = true,
    override_usage = "sheep-nbd [OPTION]... [NAME[@TAG]]...",
    after_help = "Options of the cluster can also be set in the environment; see --help.",
    after_long_help = ENVIRONMENT
)]
pub(crate) struct Cli {
    /// Volumes to export, or snapshots by their tags
    #[arg(value_name = "NAME[@TAG]")]
    pub(crate) names: Vec<OsString>,

    #[command(flatten)]
    pub(crate) cluster: ClusterOptions,

    /// Export every volume and snapshot, including those created later
    #[arg(long, conflicts_with = "names", help_heading = "Volumes")]
    pub(crate) all: bool,

    /// Attach the named volumes at the start, and keep them until the end or a rollback
    #[arg(long, conflicts_with = "all", help_heading = "Volumes")]
    pub(crate) attach: bool,

    /// Listen on a Unix socket
    ///
    /// Its mode is 0600 unless --socket-mode is given. A stale socket is replaced; one
    /// on which a server listens is not.
    #[arg(long, value_name = "PATH", help_heading = "Clients")]
    pub(crate) socket: Option<PathBuf>,

    /// Permission bits of the Unix socket, octal [default: 0600]
    #[arg(
        long,
        value_name = "OCTAL",
        value_parser = mode,
        requires = "socket",
        help_heading = "Clients"
    )]
    pub(crate) socket_mode: Option<u32>,

    /// Listen on a TCP port [default port: 10809]
    ///
    /// ADDRESS is a name, an IPv4 or an IPv6 address, the latter in brackets when a
    /// port follows. Without it, as in `:10809`, it is 127.0.0.1. Every host that
    /// can connect can read and write the volumes: use --tls-certificates, or a separate
    /// network.
    #[arg(long, value_name = "[ADDRESS][:PORT]", help_heading = "Clients")]
    pub(crate) listen: Option<String>,

    /// Require TLS, with the certificates in a directory
    ///
    /// It holds `ca-cert.pem`, `server-cert.pem` and `server-key.pem`, as for qemu-nbd
    /// and nbdkit. A client certificate must be signed by that authority.
    #[arg(long, value_name = "DIR", help_heading = "Clients")]
    pub(crate) tls_certificates: Option<PathBuf>,

    /// Refuse clients without a certificate
    #[arg(long, requires = "tls_certificates", help_heading = "Clients")]
    pub(crate) tls_verify_peer: bool,

    #[command(flatten)]
    pub(crate) process: ProcessOptions,
}

const ENVIRONMENT: &str = "\
Environment:
  An option of the cluster that is not given is looked up under its long name, as
  sheepfs does: SHEEPFS_ADDRESS, SHEEPFS_RETRY_FOR, and so on. Then SHEEPDOG_DOG_ADDR
  and SHEEPDOG_DOG_PORT are used, as dog does. Sockets that systemd passes
  (LISTEN_FDS) are used when neither --socket nor --listen is given.

Examples:
  sheep-nbd -a 192.168.1.10 --socket /run/sheep-nbd.sock vm1
  qemu-img info 'nbd+unix:///vm1?socket=/run/sheep-nbd.sock'";

fn mode(text: &str) -> Result<u32, String> {
    match u32::from_str_radix(text, 8) {
        Ok(bits) if bits <= 0o777 => Ok(bits),
        _ => Err("a mode is an octal number up to 777".into()),
    }
}
