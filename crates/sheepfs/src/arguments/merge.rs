//! The command line merged with the environment.

use crate::cli::Cli;

/// Merges two sets of options; `given` takes precedence.
///
/// Options that exclude each other form a group. If `given` has one of a group,
/// `fallback` contributes none of that group.
pub(super) fn merge(given: Cli, fallback: Cli) -> Cli {
    let access_given = given.allow_other || given.allow_root || given.allow_none;
    Cli {
        mountpoint: given.mountpoint,
        cluster: given.cluster.or(fallback.cluster),
        attach: if given.attach.is_empty() {
            fallback.attach
        } else {
            given.attach
        },
        attach_all: given.attach_all || fallback.attach_all,
        page_cache: given.page_cache || fallback.page_cache,
        object_cache: given.object_cache || fallback.object_cache,
        allow_other: given.allow_other || (!access_given && fallback.allow_other),
        allow_root: given.allow_root || (!access_given && fallback.allow_root),
        allow_none: given.allow_none || (!access_given && fallback.allow_none),
        uid: given.uid.or(fallback.uid),
        gid: given.gid.or(fallback.gid),
        umask: given.umask.or(fallback.umask),
        process: given.process.or(fallback.process),
        no_effect: given.no_effect,
    }
}

#[cfg(test)]
mod tests {
    use crate::arguments::tests::parse_with;
    use crate::cli::Cli;
    use sheep_cli::options::{ClusterOptions, Lock};

    #[test]
    fn environment_fills_in_missing_options() {
        let environment = [
            ("SHEEPFS_ADDRESS", "h1,h2"),
            ("SHEEPFS_PORT", "7001"),
            ("SHEEPFS_ATTACH", "a  b@c"),
            ("SHEEPFS_PAGECACHE", "1"),
            ("SHEEPFS_READ_ONLY", "no"),
            ("SHEEPFS_LOCK", "off"),
            ("SHEEPFS_UMASK", ""),
        ];
        let cli = parse_with("-p 7002 /mnt", &environment).unwrap();
        let expected = Cli {
            mountpoint: Some("/mnt".into()),
            cluster: ClusterOptions {
                address: Some("h1,h2".into()),
                port: Some(7002),
                lock: Some(Lock::Off),
                ..ClusterOptions::default()
            },
            attach: vec!["a".into(), "b@c".into()],
            page_cache: true,
            ..Cli::default()
        };
        assert_eq!(cli, expected);
    }

    #[test]
    fn environment_yields_to_exclusive_options_of_command_line() {
        let cli = parse_with("--allow-none /mnt", &[("SHEEPFS_ALLOW_OTHER", "1")]).unwrap();
        assert!(cli.allow_none && !cli.allow_other);
        let cli = parse_with("--embedded /mnt", &[("SHEEPFS_ADDRESS", "h")]).unwrap();
        assert_eq!(
            (cli.cluster.embedded, cli.cluster.address),
            (Some(None), None)
        );
        let cli = parse_with("-a h /mnt", &[("SHEEPFS_EMBEDDED", "/data")]).unwrap();
        assert_eq!(
            (cli.cluster.embedded, cli.cluster.address),
            (None, Some("h".into()))
        );
    }

    #[test]
    fn environment_embedded_is_switch_or_directory() {
        let embedded = |value| {
            parse_with("/mnt", &[("SHEEPFS_EMBEDDED", value)])
                .unwrap()
                .cluster
                .embedded
        };
        assert_eq!(embedded("1"), Some(None));
        assert_eq!(embedded("0"), None);
        assert_eq!(embedded("/data"), Some(Some("/data".into())));
    }

    #[test]
    fn environment_error_names_variable() {
        assert_eq!(
            parse_with("/mnt", &[("SHEEPFS_DEBUG", "maybe")]).unwrap_err(),
            "SHEEPFS_DEBUG is 'maybe': a switch is 1 or 0"
        );
        assert_eq!(
            parse_with("/mnt", &[("SHEEPFS_PORT", "0")]).unwrap_err(),
            "in the environment (SHEEPFS_...): invalid value '0' for '--port <PORT>': \
             a port is a number from 1 to 65535"
        );
    }
}
