//! Options from environment variables.

use std::ffi::{OsStr, OsString};

use clap::CommandFactory as _;

use crate::cli::Cli;
use crate::usage_error::UsageError;

/// Prefix of variables that set an option.
pub(super) const PREFIX: &str = "SHEEPFS_";

/// Converts the environment to an equivalent command line.
pub(super) fn argv_from_env(
    environment: impl Fn(&str) -> Option<OsString>,
) -> Result<Vec<OsString>, UsageError> {
    let mut words = vec![OsString::from("sheepfs")];
    for argument in Cli::command().get_arguments() {
        let Some(long) = argument.get_long().filter(|_| !argument.is_hide_set()) else {
            continue;
        };
        let variable = format!("{PREFIX}{}", long.replace('-', "_").to_ascii_uppercase());
        let Some(value) = environment(&variable).filter(|value| !value.is_empty()) else {
            continue;
        };
        let switched = switch(&value);
        let takes_value = argument.get_action().takes_values();
        let switch_possible = !takes_value || long == "embedded";
        match switched {
            Some(true) if switch_possible => words.push(format!("--{long}").into()),
            Some(false) if switch_possible => {}
            _ if !takes_value => {
                return Err(UsageError(format!(
                    "{variable} is '{}': a switch is 1 or 0",
                    value.to_string_lossy()
                )));
            }
            _ if long == "attach" => {
                words.extend(blank_separated(&value).map(|name| word(long, name)));
            }
            _ => words.push(word(long, &value)),
        }
    }
    Ok(words)
}

fn switch(value: &OsStr) -> Option<bool> {
    match value.to_str()?.to_ascii_lowercase().as_str() {
        "1" | "yes" | "true" | "on" => Some(true),
        "0" | "no" | "false" | "off" => Some(false),
        _ => None,
    }
}

fn word(long: &str, value: &OsStr) -> OsString {
    let mut word = OsString::from(format!("--{long}="));
    word.push(value);
    word
}

fn blank_separated(value: &OsStr) -> impl Iterator<Item = &OsStr> {
    use std::os::unix::ffi::OsStrExt as _;
    value
        .as_bytes()
        .split(u8::is_ascii_whitespace)
        .filter(|name| !name.is_empty())
        .map(OsStr::from_bytes)
}

/// Merges two sets of options; `given` takes precedence.
///
/// Options that exclude each other form a group. If `given` has one of a group,
/// `fallback` contributes none of that group.
pub(super) fn merge(given: Cli, fallback: Cli) -> Cli {
    // Groups of which the command line has at least one option.
    let access_given = given.allow_other || given.allow_root || given.allow_none;
    let cluster_given = given.address.is_some() || given.port.is_some();
    let embedded = if cluster_given {
        None
    } else {
        given.embedded.clone().or(fallback.embedded)
    };
    let keep_cluster = given.embedded.is_none();
    // A log format in the environment applies only if the log goes to stderr.
    let foreground = given.foreground || fallback.foreground;
    let debug = given.debug || fallback.debug;
    let logs_here = foreground || debug;
    // Everything else is merged option by option.
    Cli {
        mountpoint: given.mountpoint,
        address: given.address.or(fallback.address.filter(|_| keep_cluster)),
        port: given.port.or(fallback.port.filter(|_| keep_cluster)),
        embedded,
        connections: given.connections.or(fallback.connections),
        retry_for: given.retry_for.or(fallback.retry_for),
        attach: if given.attach.is_empty() {
            fallback.attach
        } else {
            given.attach
        },
        attach_all: given.attach_all || fallback.attach_all,
        lock: given.lock.or(fallback.lock),
        page_cache: given.page_cache || fallback.page_cache,
        object_cache: given.object_cache || fallback.object_cache,
        read_only: given.read_only || fallback.read_only,
        allow_other: given.allow_other || (!access_given && fallback.allow_other),
        allow_root: given.allow_root || (!access_given && fallback.allow_root),
        allow_none: given.allow_none || (!access_given && fallback.allow_none),
        uid: given.uid.or(fallback.uid),
        gid: given.gid.or(fallback.gid),
        umask: given.umask.or(fallback.umask),
        foreground,
        debug,
        log_format: given
            .log_format
            .or(fallback.log_format.filter(|_| logs_here)),
        pidfile: given.pidfile.or(fallback.pidfile),
        no_effect: given.no_effect,
    }
}

#[cfg(test)]
mod tests {
    use crate::arguments::tests::parse_with;
    use crate::cli::{Cli, Lock};

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
            address: Some("h1,h2".into()),
            port: Some(7002),
            attach: vec!["a".into(), "b@c".into()],
            page_cache: true,
            lock: Some(Lock::Off),
            ..Cli::default()
        };
        assert_eq!(cli, expected);
    }

    #[test]
    fn environment_yields_to_exclusive_options_of_command_line() {
        let cli = parse_with("--allow-none /mnt", &[("SHEEPFS_ALLOW_OTHER", "1")]).unwrap();
        assert!(cli.allow_none && !cli.allow_other);
        let cli = parse_with("--embedded /mnt", &[("SHEEPFS_ADDRESS", "h")]).unwrap();
        assert_eq!((cli.embedded, cli.address), (Some(None), None));
        let cli = parse_with("-a h /mnt", &[("SHEEPFS_EMBEDDED", "/data")]).unwrap();
        assert_eq!((cli.embedded, cli.address), (None, Some("h".into())));
    }

    #[test]
    fn environment_embedded_is_switch_or_directory() {
        let embedded = |value| {
            parse_with("/mnt", &[("SHEEPFS_EMBEDDED", value)])
                .unwrap()
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
