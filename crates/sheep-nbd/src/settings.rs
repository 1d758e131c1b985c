//! Settings: the command line, checked and with defaults filled in.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt as _;
use std::path::PathBuf;

use bytes::Bytes;
use clap::{Args as _, FromArgMatches as _, Parser as _};
use sheep_cli::cluster::{ClusterSettings, absolute};
use sheep_cli::environment::{PREFIX, argv_from_env};
use sheep_cli::options::{ClusterOptions, LogFormat};
use sheep_cli::usage_error::{ParseExit, UsageError, parse_exit};
use sheep_nbd::volumes::Selection;

use crate::cli::Cli;

/// Address if only a port is given.
const DEFAULT_HOST: &str = "127.0.0.1";
/// The registered port of NBD.
const DEFAULT_PORT: u16 = 10809;
/// Permission bits of a Unix socket.
const DEFAULT_MODE: u32 = 0o600;

/// Settings of the program. All paths are absolute.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    pub(crate) background: bool,
    pub(crate) debug: bool,
    pub(crate) log_format: LogFormat,
    pub(crate) cluster: ClusterSettings,
    pub(crate) selection: Selection,
    /// Attach the named volumes at the start.
    pub(crate) attach: bool,
    pub(crate) socket: Option<UnixSocket>,
    /// `HOST:PORT`.
    pub(crate) listen: Option<String>,
    pub(crate) tls: Option<TlsFiles>,
    pub(crate) pidfile: Option<PathBuf>,
}

/// Files for TLS.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct TlsFiles {
    pub(crate) directory: PathBuf,
    /// Refuse clients without a certificate.
    pub(crate) verify_peer: bool,
}

/// The Unix socket to listen on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct UnixSocket {
    pub(crate) path: PathBuf,
    pub(crate) mode: u32,
}

impl Settings {
    /// Parses `arguments`, the program's name first. Options of the cluster that are not
    /// given are taken from the environment.
    ///
    /// # Errors
    /// `Help` for `--help` and `--version`, `Usage` for the first invalid option.
    pub(crate) fn read(
        arguments: &[OsString],
        environment: impl Fn(&str) -> Option<OsString>,
    ) -> Result<Self, ParseExit> {
        let cli = Cli::try_parse_from(arguments).map_err(parse_exit)?;
        let given = cli.cluster.clone();
        let cluster = given.or(cluster_of_environment(&environment)?);
        Self::resolve(Cli { cluster, ..cli }, environment).map_err(ParseExit::Usage)
    }

    fn resolve(
        cli: Cli,
        environment: impl Fn(&str) -> Option<OsString>,
    ) -> Result<Self, UsageError> {
        let background = cli.process.is_background();
        if background && cli.process.log_format.is_some() {
            return usage_error("--log-format is for the foreground: add -f");
        }
        if cli.listen.as_deref() == Some("") {
            return usage_error("--listen needs an address, or :PORT for loopback");
        }
        let embedded = cli.cluster.embedded.is_some();
        let names = cli.names.into_iter().map(OsString::into_vec);
        let names: Vec<_> = names.map(Bytes::from).collect();
        let selection = match (cli.all, names.is_empty()) {
            (true, _) => Selection::All,
            (false, false) => Selection::Named(names),
            // An embedded sheep is started for its volumes.
            (false, true) if embedded => Selection::All,
            (false, true) => return usage_error("nothing to export: name volumes, or use --all"),
        };
        if cli.attach && selection == Selection::All {
            return usage_error("--attach is for volumes that are named");
        }
        Ok(Self {
            background,
            debug: cli.process.debug,
            log_format: cli.process.log_format.unwrap_or(LogFormat::Text),
            cluster: ClusterSettings::resolve(&cli.cluster, environment)?,
            selection,
            attach: cli.attach,
            socket: match cli.socket {
                None => None,
                Some(path) => Some(UnixSocket {
                    path: absolute("--socket", &path)?,
                    mode: cli.socket_mode.unwrap_or(DEFAULT_MODE),
                }),
            },
            listen: cli.listen.as_deref().map(with_port),
            tls: match cli.tls_certificates {
                None => None,
                Some(path) => Some(TlsFiles {
                    directory: absolute("--tls-certificates", &path)?,
                    verify_peer: cli.tls_verify_peer,
                }),
            },
            pidfile: match cli.process.pidfile {
                None => None,
                Some(path) => Some(absolute("--pidfile", &path)?),
            },
        })
    }
}

fn usage_error<T>(text: impl Into<String>) -> Result<T, UsageError> {
    Err(UsageError(text.into()))
}

/// Options of the cluster in the environment.
fn cluster_of_environment(
    environment: &impl Fn(&str) -> Option<OsString>,
) -> Result<ClusterOptions, ParseExit> {
    let command = ClusterOptions::augment_args(clap::Command::new("sheep-nbd"));
    let words = argv_from_env(&command, environment).map_err(ParseExit::Usage)?;
    let parsed = command
        .try_get_matches_from(words)
        .and_then(|matches| ClusterOptions::from_arg_matches(&matches));
    parsed.map_err(|error| match parse_exit(error) {
        ParseExit::Usage(UsageError(text)) => ParseExit::Usage(UsageError(format!(
            "in the environment ({PREFIX}...): {text}"
        ))),
        shown @ ParseExit::Help(_) => shown,
    })
}

/// The address with a port: an IPv6 address is one only in brackets.
fn with_port(text: &str) -> String {
    let is_bare_ipv6 = text.parse::<std::net::Ipv6Addr>().is_ok();
    let has_port = text
        .rsplit_once(':')
        .is_some_and(|(_, port)| !port.ends_with(']'));
    match (is_bare_ipv6, has_port) {
        _ if text.starts_with(':') && !is_bare_ipv6 => format!("{DEFAULT_HOST}{text}"),
        (true, _) => format!("[{text}]:{DEFAULT_PORT}"),
        (false, true) => text.to_owned(),
        (false, false) => format!("{text}:{DEFAULT_PORT}"),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;
    use sheep_cli::cluster::Cluster;

    use super::*;

    fn read(line: &str, environment: &[(&str, &str)]) -> Result<Settings, String> {
        let arguments: Vec<_> = std::iter::once("sheep-nbd")
            .chain(line.split_whitespace())
            .map(OsString::from)
            .collect();
        let lookup = |name: &str| {
            let found = environment.iter().find(|(known, _)| *known == name);
            found.map(|(_, value)| OsString::from(value))
        };
        Settings::read(&arguments, lookup).map_err(|stop| match stop {
            ParseExit::Help(text) => text,
            ParseExit::Usage(UsageError(text)) => text,
        })
    }

    #[test]
    fn the_command_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn volumes_are_named_or_all() {
        let named = read("vm1 vm2@monday", &[]).unwrap();
        let names = vec![Bytes::from("vm1"), Bytes::from("vm2@monday")];
        assert_eq!(named.selection, Selection::Named(names));
        assert!(named.background && !named.attach);
        assert_eq!(read("--all", &[]).unwrap().selection, Selection::All);
        assert_eq!(read("--embedded", &[]).unwrap().selection, Selection::All);
    }

    #[test]
    fn what_is_wrong_is_one_line() {
        for (line, expected) in [
            ("", "nothing to export: name volumes, or use --all"),
            (
                "--all --listen=",
                "--listen needs an address, or :PORT for loopback",
            ),
            (
                "--all --attach",
                "the argument '--all' cannot be used with '--attach'",
            ),
            (
                "--embedded --attach",
                "--attach is for volumes that are named",
            ),
            (
                "--all vm1",
                "the argument '--all' cannot be used with '[NAME[@TAG]]...'",
            ),
            (
                "--log-format json vm1",
                "--log-format is for the foreground: add -f",
            ),
            (
                "--socket s --socket-mode 9 vm1",
                "invalid value '9' for '--socket-mode <OCTAL>': a mode is an octal number up to 777",
            ),
            ("-a h:0 vm1", "--address: '0' is not a port (1 to 65535)"),
        ] {
            assert_eq!(read(line, &[]).unwrap_err(), expected, "{line}");
        }
    }

    #[test]
    fn settings_of_cluster_match_sheepfs() {
        let environment = [("SHEEPFS_ADDRESS", "h1"), ("SHEEPFS_PIDFILE", "/run/other")];
        let settings = read("-p 7001 --read-only --lock off vm1", &environment).unwrap();
        let Cluster::Running(addresses) = &settings.cluster.cluster else {
            panic!("{:?}", settings.cluster);
        };
        assert_eq!(addresses[0].to_string(), "h1:7001");
        assert!(settings.cluster.read_only);
        assert_eq!(settings.pidfile, None, "that is sheepfs's");
    }

    #[test]
    fn listen_address_defaults_to_port_10809() {
        for (text, expected) in [
            ("--listen=:10810", "127.0.0.1:10810"),
            ("--listen=0.0.0.0", "0.0.0.0:10809"),
            ("--listen=host:5", "host:5"),
            ("--listen=::1", "[::1]:10809"),
            ("--listen=[::1]", "[::1]:10809"),
            ("--listen=[::1]:5", "[::1]:5"),
        ] {
            let listen = read(&format!("{text} vm1"), &[]).unwrap().listen;
            assert_eq!(listen.as_deref(), Some(expected));
        }
    }
}
