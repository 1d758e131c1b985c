//! Parses the command line and the environment into a [`Cli`].

mod merge;

use std::ffi::OsString;

use clap::{CommandFactory as _, Parser as _};
use sheep_cli::environment::{PREFIX, argv_from_env};
use sheep_cli::usage_error::{ParseExit, UsageError, parse_exit};

use self::merge::merge;
use crate::cli::Cli;

/// Parses `arguments`, the program's name first. Options that are not given are
/// taken from the environment.
pub(crate) fn parse(
    arguments: &[OsString],
    environment: impl Fn(&str) -> Option<OsString>,
) -> Result<Cli, ParseExit> {
    if let Some(option) = misplaced_mount_option(arguments) {
        return Err(ParseExit::Usage(UsageError(format!(
            "-o takes no value here (it turns the sheep's object cache on), so '{option}' is not \
             understood as a mount option: use --read-only, --allow-other and the like"
        ))));
    }
    let given = Cli::try_parse_from(arguments).map_err(parse_exit)?;
    let variables = argv_from_env(&Cli::command(), environment).map_err(ParseExit::Usage)?;
    let fallback = Cli::try_parse_from(variables).map_err(|error| match parse_exit(error) {
        ParseExit::Usage(UsageError(text)) => ParseExit::Usage(UsageError(format!(
            "in the environment ({PREFIX}...): {text}"
        ))),
        shown @ ParseExit::Help(_) => shown,
    })?;
    Ok(merge(given, fallback))
}

/// Finds the word after `-o` if it looks like mount options for mount(8).
///
/// Our `-o` takes no value, so getopt takes the word for the mountpoint, or for more
/// letters of a cluster of options.
fn misplaced_mount_option(arguments: &[OsString]) -> Option<String> {
    let words = arguments.iter().skip(1).map(|word| word.to_string_lossy());
    let mut words = words.take_while(|word| word != "--").peekable();
    while let Some(word) = words.next() {
        let Some(cluster) = word.strip_prefix('-').filter(|rest| !rest.starts_with('-')) else {
            continue;
        };
        // The rest of a cluster after -a or -p is their value.
        let Some(at) = cluster
            .find(['o', 'a', 'p'])
            .filter(|&at| cluster[at..].starts_with('o'))
        else {
            continue;
        };
        let attached = &cluster[at + 1..];
        if looks_like_mount_options(attached) {
            return Some(attached.into());
        }
        if let Some(next) = words.peek().filter(|_| attached.is_empty())
            && looks_like_mount_options(next)
        {
            return Some(next.to_string());
        }
    }
    None
}

fn looks_like_mount_options(word: &str) -> bool {
    const KNOWN: [&str; 26] = [
        "_netdev",
        "allow_other",
        "allow_root",
        "async",
        "atime",
        "auto",
        "auto_unmount",
        "default_permissions",
        "defaults",
        "dev",
        "direct_io",
        "dirsync",
        "exec",
        "kernel_cache",
        "noatime",
        "noauto",
        "nodev",
        "noexec",
        "nofail",
        "nonempty",
        "nosuid",
        "ro",
        "rw",
        "suid",
        "sync",
        "user",
    ];
    let is_path = word.starts_with(['/', '.']);
    !is_path && (word.contains(['=', ',']) || KNOWN.contains(&word))
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use sheep_cli::options::{ClusterOptions, Lock, LogFormat, ProcessOptions};

    use super::*;

    pub(super) fn parse_with(line: &str, environment: &[(&str, &str)]) -> Result<Cli, String> {
        let arguments: Vec<_> = std::iter::once("sheepfs")
            .chain(line.split_whitespace())
            .map(OsString::from)
            .collect();
        let lookup = |name: &str| {
            let found = environment.iter().find(|(known, _)| *known == name);
            found.map(|(_, value)| value.into())
        };
        parse(&arguments, lookup).map_err(|exit| match exit {
            ParseExit::Help(text) => format!("shown: {text}"),
            ParseExit::Usage(UsageError(text)) => text,
        })
    }

    fn parsed(line: &str) -> Cli {
        parse_with(line, &[]).unwrap_or_else(|error| panic!("{line}: {error}"))
    }

    fn error(line: &str) -> String {
        parse_with(line, &[]).expect_err(line)
    }

    #[test]
    fn cli_definition_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn cli_accepts_every_spelling_of_original_options() {
        let mnt = || Cli {
            mountpoint: Some("/mnt".into()),
            ..Cli::default()
        };
        let address = || Cli {
            cluster: ClusterOptions {
                address: Some("10.0.0.1".into()),
                ..ClusterOptions::default()
            },
            ..mnt()
        };
        let port = || Cli {
            cluster: ClusterOptions {
                port: Some(7001),
                ..ClusterOptions::default()
            },
            ..mnt()
        };
        let cached = || Cli {
            page_cache: true,
            process: ProcessOptions {
                foreground: true,
                ..ProcessOptions::default()
            },
            ..mnt()
        };
        // Command lines of the C program, and their meaning.
        let table = [
            ("/mnt", mnt()),
            ("-a 10.0.0.1 /mnt", address()),
            ("-a10.0.0.1 /mnt", address()),
            ("/mnt -a 10.0.0.1", address()),
            ("--address 10.0.0.1 /mnt", address()),
            ("--address=10.0.0.1 /mnt", address()),
            ("--addr 10.0.0.1 /mnt", address()),
            ("-a 10.0.0.2 -a 10.0.0.1 /mnt", address()),
            ("-p 7001 /mnt", port()),
            ("-p7001 /mnt", port()),
            ("/mnt --po=7001", port()),
            ("-k -f /mnt", cached()),
            ("-kf /mnt", cached()),
            ("/mnt -fk", cached()),
            ("-kf -f /mnt", cached()),
            ("--pagecache --foreground /mnt", cached()),
            ("--pa --f /mnt", cached()),
            (
                "-kfp 7001 /mnt",
                Cli {
                    cluster: ClusterOptions {
                        port: Some(7001),
                        ..ClusterOptions::default()
                    },
                    ..cached()
                },
            ),
            (
                "-o /mnt",
                Cli {
                    object_cache: true,
                    ..mnt()
                },
            ),
            (
                "--o /mnt",
                Cli {
                    object_cache: true,
                    ..mnt()
                },
            ),
            (
                "-d /mnt",
                Cli {
                    process: ProcessOptions {
                        debug: true,
                        ..ProcessOptions::default()
                    },
                    ..mnt()
                },
            ),
            (
                "--d /mnt",
                Cli {
                    process: ProcessOptions {
                        debug: true,
                        ..ProcessOptions::default()
                    },
                    ..mnt()
                },
            ),
            (
                "-n /mnt",
                Cli {
                    no_effect: true,
                    ..mnt()
                },
            ),
            (
                "-f -- /mnt",
                Cli {
                    process: ProcessOptions {
                        foreground: true,
                        ..ProcessOptions::default()
                    },
                    ..mnt()
                },
            ),
            (
                "-- -mnt",
                Cli {
                    mountpoint: Some("-mnt".into()),
                    ..Cli::default()
                },
            ),
            (
                "-o ./a,b",
                Cli {
                    object_cache: true,
                    mountpoint: Some("./a,b".into()),
                    ..Cli::default()
                },
            ),
            (
                "-a ro /mnt",
                Cli {
                    cluster: ClusterOptions {
                        address: Some("ro".into()),
                        ..ClusterOptions::default()
                    },
                    ..mnt()
                },
            ),
            (
                "-aro,x /mnt",
                Cli {
                    cluster: ClusterOptions {
                        address: Some("ro,x".into()),
                        ..ClusterOptions::default()
                    },
                    ..mnt()
                },
            ),
        ];
        for (line, expected) in table {
            assert_eq!(parsed(line), expected, "{line}");
        }
    }

    #[test]
    fn cli_new_options_are_long_only() {
        let all = parsed(
            "/mnt --connections 4 --retry-for 5 --attach a --attach b@c --attach-all \
             --lock require --read-only --allow-other --uid 107 --gid kvm --umask 027 \
             --log-format json --pidfile run/x",
        );
        let expected = Cli {
            mountpoint: Some("/mnt".into()),
            cluster: ClusterOptions {
                connections: Some(4),
                retry_for: Some(5),
                lock: Some(Lock::Require),
                read_only: true,
                ..ClusterOptions::default()
            },
            attach: vec!["a".into(), "b@c".into()],
            attach_all: true,
            allow_other: true,
            uid: Some("107".into()),
            gid: Some("kvm".into()),
            umask: Some(0o27),
            process: ProcessOptions {
                log_format: Some(LogFormat::Json),
                pidfile: Some("run/x".into()),
                ..ProcessOptions::default()
            },
            ..Cli::default()
        };
        assert_eq!(all, expected);
    }

    #[test]
    fn cli_embedded_directory_needs_equals_sign() {
        let in_memory = parsed("--embedded /mnt");
        assert_eq!(in_memory.cluster.embedded, Some(None));
        assert_eq!(in_memory.mountpoint, Some("/mnt".into()));
        let kept = parsed("--embedded=data /mnt");
        assert_eq!(kept.cluster.embedded, Some(Some(PathBuf::from("data"))));
    }

    #[test]
    fn cli_usage_error_is_one_line() {
        let port = "for '--port <PORT>': a port is a number from 1 to 65535";
        let table = [
            ("-p 70000 /mnt", format!("invalid value '70000' {port}")),
            ("-p 0 /mnt", format!("invalid value '0' {port}")),
            ("-p x /mnt", format!("invalid value 'x' {port}")),
            ("/mnt -p", "a value is required for '--port <PORT>' but none was supplied".into()),
            ("-x /mnt", "unexpected argument '-x' found".into()),
            ("--prot 1 /mnt", "unexpected argument '--prot' found; did you mean --port?".into()),
            ("/mnt /other", "unexpected argument '/other' found".into()),
            ("--foreground=1 /mnt", "unexpected value '1' for '--foreground' found; no more were expected".into()),
            (
                "--lock x /mnt",
                "invalid value 'x' for '--lock <MODE>' [possible values: auto, require, off]".into(),
            ),
            (
                "--umask 9 /mnt",
                "invalid value '9' for '--umask <OCTAL>': a umask is an octal number up to 777".into(),
            ),
            (
                "--connections 0 /mnt",
                "invalid value '0' for '--connections <N>': 0 is not in 1..=64".into(),
            ),
            (
                "--allow-other --allow-none /mnt",
                "the argument '--allow-other' cannot be used with '--allow-none'".into(),
            ),
            (
                "--embedded -a x /mnt",
                "the argument '--embedded[=<DIR>]' cannot be used with '--address <HOST[,HOST]...>'".into(),
            ),
        ];
        for (line, expected) in table {
            assert_eq!(error(line), expected, "{line}");
        }
        assert_eq!(
            UsageError(error("-x")).with_hint("sheepfs"),
            "unexpected argument '-x' found\nTry 'sheepfs --help' for help."
        );
    }

    #[test]
    fn cli_mount_options_after_o_are_refused() {
        for line in [
            "-o ro /mnt",
            "-oro /mnt",
            "-o allow_other /mnt",
            "-oallow_other /mnt",
            "/mnt -o rw",
            "-fo ro /mnt",
            "-fok,x /mnt",
            "-o uid=0 /mnt",
            "-o a,b /mnt",
            "-o fsname=/x /mnt",
        ] {
            assert!(error(line).starts_with("-o takes no value here"), "{line}");
        }
        assert_eq!(
            error("/mnt -o ro,allow_other"),
            "-o takes no value here (it turns the sheep's object cache on), so 'ro,allow_other' is \
             not understood as a mount option: use --read-only, --allow-other and the like"
        );
    }

    #[test]
    fn cli_help_and_version_are_no_errors() {
        assert!(error("-h").starts_with("shown: Mount a Sheepdog cluster"));
        assert!(error("--help").contains("SHEEPDOG_DOG_ADDR"));
        assert!(error("-V").starts_with("shown: sheepfs "));
        assert!(!error("--help").contains("in-background"));
    }
}
