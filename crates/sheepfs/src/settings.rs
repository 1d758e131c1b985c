//! Settings: the command line, checked and with defaults filled in.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt as _;
use std::path::PathBuf;

use nix::unistd::{Group, User, getegid, geteuid};
use sheep_cli::cluster::{Cluster, ClusterSettings, absolute};
use sheep_cli::options::LogFormat;
use sheep_cli::usage_error::UsageError;
use sheepfs_fuse::Access;
use sheepfs_vfs::TreeConfig;

use crate::cli::Cli;

/// Settings of the program. All paths are absolute.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    pub(crate) mode: Mode,
    pub(crate) debug: bool,
    pub(crate) log_format: LogFormat,
    pub(crate) cluster: ClusterSettings,
    pub(crate) tree: TreeConfig,
    /// `NAME` or `NAME@TAG` of each.
    pub(crate) attach: Vec<Vec<u8>>,
    pub(crate) attach_all: bool,
    pub(crate) mountpoint: PathBuf,
    /// Source in the mount table; the address of the sheep if `None`.
    pub(crate) source: Option<String>,
    pub(crate) access: Access,
    pub(crate) no_exec: bool,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) umask: u16,
    pub(crate) pidfile: Option<PathBuf>,
    /// Mount namespace to mount in, if it is another one.
    pub(crate) namespace: Option<PathBuf>,
}

/// Role of this process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    /// Mounts and serves in the foreground.
    Foreground,
    /// Starts the daemon child and waits until that is ready.
    Background,
    /// The daemon child: mounts and serves in the background.
    DaemonChild,
    /// Only checks the command line.
    DryRun,
}

impl Settings {
    /// Checks `cli`. Only dog's variables are read from `environment`.
    ///
    /// # Errors
    /// The first invalid option.
    pub(crate) fn resolve(
        cli: Cli,
        environment: impl Fn(&str) -> Option<OsString>,
    ) -> Result<Self, UsageError> {
        // Options that depend on each other.
        let Some(mountpoint) = cli.mountpoint.clone() else {
            return usage_error("no MOUNTPOINT given");
        };
        let mode = match cli.process.is_background() {
            true => Mode::Background,
            false => Mode::Foreground,
        };
        let cluster = ClusterSettings::resolve(&cli.cluster, environment)?;
        if mode == Mode::Background && cli.process.log_format.is_some() {
            return usage_error("--log-format is for the foreground: add -f");
        }
        // Every other option has its value or its default.
        Ok(Self {
            mode,
            debug: cli.process.debug,
            log_format: cli.process.log_format.unwrap_or(LogFormat::Text),
            tree: TreeConfig::default()
                .with_page_cache(cli.page_cache)
                .with_object_cache(cli.object_cache)
                .with_read_only(cluster.read_only)
                .with_lock(cluster.lock),
            cluster,
            attach: cli.attach.into_iter().map(OsString::into_vec).collect(),
            // The embedded sheep's volumes are what it was started for.
            attach_all: cli.attach_all || cli.cluster.embedded.is_some(),
            mountpoint: absolute("MOUNTPOINT", &mountpoint)?,
            source: None,
            no_exec: false,
            namespace: None,
            access: match (cli.allow_other, cli.allow_root, cli.allow_none) {
                (true, _, _) => Access::All,
                (_, true, _) => Access::Root,
                (_, _, true) => Access::Owner,
                _ => Access::Default,
            },
            uid: match cli.uid {
                None => geteuid().as_raw(),
                Some(text) => id("--uid", "user", &text, |name| {
                    Ok(User::from_name(name)?.map(|user| user.uid.as_raw()))
                })?,
            },
            gid: match cli.gid {
                None => getegid().as_raw(),
                Some(text) => id("--gid", "group", &text, |name| {
                    Ok(Group::from_name(name)?.map(|group| group.gid.as_raw()))
                })?,
            },
            umask: cli.umask.unwrap_or(0),
            pidfile: match cli.process.pidfile {
                None => None,
                Some(path) => Some(absolute("--pidfile", &path)?),
            },
        })
    }
}

impl Settings {
    /// Names and values of all options, to compare a remount with.
    pub(crate) fn mount_options(&self) -> Vec<(&'static str, String)> {
        let escape = |name: &Vec<u8>| name.escape_ascii().to_string();
        let mut attach: Vec<_> = self.attach.iter().map(escape).collect();
        attach.sort();
        let addresses = match &self.cluster.cluster {
            Cluster::Running(addresses) => addresses.iter().map(ToString::to_string).collect(),
            Cluster::Embedded(_) => Vec::new(),
        };
        vec![
            ("access", format!("{:?}", self.access)),
            ("addresses", addresses.join(",")),
            ("attach", format!("{attach:?}")),
            ("attach_all", self.attach_all.to_string()),
            ("connections", self.cluster.connections.to_string()),
            ("gid", self.gid.to_string()),
            ("lock", format!("{:?}", self.tree.lock)),
            ("objectcache", self.tree.object_cache.to_string()),
            ("pagecache", self.tree.page_cache.to_string()),
            ("pidfile", format!("{:?}", self.pidfile)),
            ("read_only", self.tree.read_only.to_string()),
            ("retry_for", self.cluster.retry_for.as_secs().to_string()),
            ("sync", self.tree.write_through.to_string()),
            ("uid", self.uid.to_string()),
            ("umask", format!("{:03o}", self.umask)),
        ]
    }
}

fn usage_error<T>(text: impl Into<String>) -> Result<T, UsageError> {
    Err(UsageError(text.into()))
}

/// Parses a numeric id, or looks up a name.
fn id(
    option: &str,
    kind: &str,
    text: &str,
    look_up: impl Fn(&str) -> nix::Result<Option<u32>>,
) -> Result<u32, UsageError> {
    if let Ok(number) = text.parse() {
        return Ok(number);
    }
    match look_up(text) {
        Ok(Some(number)) => Ok(number),
        Ok(None) => usage_error(format!("{option}: there is no {kind} '{text}'")),
        Err(error) => usage_error(format!("{option}: cannot look {kind} '{text}' up: {error}")),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use sheepfs_vfs::LockMode;

    use super::*;
    use crate::arguments;

    fn resolve(line: &str, environment: &[(&str, &str)]) -> Result<Settings, String> {
        let arguments: Vec<_> = std::iter::once("sheepfs")
            .chain(line.split_whitespace())
            .map(OsString::from)
            .collect();
        let lookup = |name: &str| {
            let found = environment.iter().find(|(known, _)| *known == name);
            found.map(|(_, value)| OsString::from(value))
        };
        let cli = arguments::parse(&arguments, lookup)
            .expect("the tests of this module pass valid command lines");
        Settings::resolve(cli, lookup).map_err(|error| error.0)
    }

    fn addresses(line: &str, environment: &[(&str, &str)]) -> Vec<String> {
        match resolve(line, environment).unwrap().cluster.cluster {
            Cluster::Running(addresses) => addresses.iter().map(ToString::to_string).collect(),
            Cluster::Embedded(_) => panic!("not embedded"),
        }
    }

    #[test]
    fn settings_default_to_local_sheep_in_background() {
        let settings = resolve("/mnt", &[]).unwrap();
        assert_eq!(settings.mode, Mode::Background);
        assert_eq!(addresses("/mnt", &[]), ["127.0.0.1:7000"]);
        assert_eq!(settings.access, Access::Default);
        assert_eq!(settings.tree.lock, LockMode::Auto);
        assert!(!settings.tree.page_cache && !settings.tree.object_cache && !settings.attach_all);
        assert_eq!(settings.cluster.retry_for, Duration::from_secs(60));
        assert_eq!((settings.uid, settings.umask), (geteuid().as_raw(), 0));
    }

    #[test]
    fn settings_port_applies_to_addresses_without_one() {
        assert_eq!(
            addresses("-a h1,10.0.0.1:7005,::1,[::1]:7006 -p 7002 /mnt", &[]),
            ["h1:7002", "10.0.0.1:7005", "[::1]:7002", "[::1]:7006"]
        );
    }

    #[test]
    fn settings_precedence_is_flag_then_sheepfs_then_dog() {
        let dog = ("SHEEPDOG_DOG_ADDR", "dog");
        let dog_port = ("SHEEPDOG_DOG_PORT", "7300");
        let ours = ("SHEEPFS_ADDRESS", "ours");
        let ours_port = ("SHEEPFS_PORT", "7200");
        type Environment = [(&'static str, &'static str)];
        let cases: [(&str, &Environment, &str); 6] = [
            ("/mnt", &[dog], "dog:7000"),
            ("/mnt", &[dog, dog_port], "dog:7300"),
            ("/mnt", &[dog, ours], "ours:7000"),
            ("/mnt", &[dog, dog_port, ours, ours_port], "ours:7200"),
            ("-a flag /mnt", &[dog, dog_port, ours], "flag:7300"),
            (
                "-a flag -p 7100 /mnt",
                &[dog_port, ours, ours_port],
                "flag:7100",
            ),
        ];
        for (line, environment, expected) in cases {
            assert_eq!(
                addresses(line, environment),
                [expected],
                "{line} {environment:?}"
            );
        }
    }

    #[test]
    fn settings_error_names_option() {
        let error = |line, environment| resolve(line, environment).unwrap_err();
        assert_eq!(error("-f", &[]), "no MOUNTPOINT given");
        assert_eq!(
            error("--log-format json /mnt", &[]),
            "--log-format is for the foreground: add -f"
        );
        assert_eq!(
            error("-a h:70000 /mnt", &[]),
            "--address: '70000' is not a port (1 to 65535)"
        );
        assert_eq!(
            error("-a h,,i /mnt", &[]),
            "--address: '' has no host name or address"
        );
        assert_eq!(
            error("/mnt", &[("SHEEPDOG_DOG_PORT", "x")]),
            "SHEEPDOG_DOG_PORT is 'x': a port is a number from 1 to 65535"
        );
        assert_eq!(
            error("--uid no-such-user-here /mnt", &[]),
            "--uid: there is no user 'no-such-user-here'"
        );
        assert_eq!(
            error("--gid no-such-group-here /mnt", &[]),
            "--gid: there is no group 'no-such-group-here'"
        );
    }

    #[test]
    fn settings_owner_is_number_or_name() {
        let settings = resolve("--uid root --gid 12345 /mnt", &[]).unwrap();
        assert_eq!((settings.uid, settings.gid), (0, 12345));
    }

    #[test]
    fn settings_paths_are_absolute() {
        let here = std::env::current_dir().unwrap();
        let settings = resolve("--embedded=data --pidfile run/pid mnt", &[]).unwrap();
        assert_eq!(settings.mountpoint, here.join("mnt"));
        assert_eq!(settings.pidfile, Some(here.join("run/pid")));
        assert_eq!(
            settings.cluster.cluster,
            Cluster::Embedded(Some(here.join("data")))
        );
    }

    #[test]
    fn settings_debug_is_foreground_and_embedded_attaches_all() {
        assert_eq!(resolve("-d /mnt", &[]).unwrap().mode, Mode::Foreground);
        let settings = resolve("--embedded /mnt", &[]).unwrap();
        assert_eq!(settings.cluster.cluster, Cluster::Embedded(None));
        assert!(settings.attach_all);
    }

    #[test]
    fn settings_log_format_variable_is_ignored_in_background() {
        let json = [("SHEEPFS_LOG_FORMAT", "json")];
        assert_eq!(
            resolve("-f /mnt", &json).unwrap().log_format,
            LogFormat::Json
        );
        assert_eq!(resolve("/mnt", &json).unwrap().mode, Mode::Background);
    }

    #[test]
    fn settings_pass_access_lock_and_cache_modes() {
        for (option, access) in [
            ("--allow-other", Access::All),
            ("--allow-root", Access::Root),
            ("--allow-none", Access::Owner),
        ] {
            assert_eq!(
                resolve(&format!("{option} /mnt"), &[]).unwrap().access,
                access
            );
        }
        assert_eq!(
            resolve("--lock off /mnt", &[]).unwrap().tree.lock,
            LockMode::Off
        );
        let settings = resolve("-ko --read-only /mnt", &[]).unwrap();
        assert!(settings.tree.page_cache && settings.tree.object_cache && settings.tree.read_only);
    }
}
