//! Helper of mount(8): `mount.sheepfs SPEC DIRECTORY [-o OPTION]...`.
//!
//! mount.fuse3(8), which `mount -t fuse.sheepfs` runs where this program is not
//! installed as `mount.fuse.sheepfs`, calls `sheepfs SPEC DIRECTORY -o OPTIONS`.
//! That is no valid command line of sheepfs, so it selects the helper as well.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use clap::Parser as _;
use nix::sched::{CloneFlags, setns};
use sheep_cli::options::ClusterOptions;
use sheep_cli::usage_error::{ParseExit, UsageError, parse_exit};
use sheepfs_fuse::{MountedTree, RemountError};

use crate::cli::Cli;
use crate::mount_cli::MountCli;
use crate::mount_options::MountOptions;
use crate::settings::{Mode, Settings};

/// Prefix of the names of mount helpers.
const PREFIX: &str = "mount.";

/// The name of the helper if mount(8) or mount.fuse3(8) runs this program.
pub(crate) fn name(arguments: &[OsString]) -> Option<String> {
    let name = Path::new(arguments.first()?).file_name()?.to_string_lossy();
    let is_word = |word: &OsStr| !word.to_string_lossy().starts_with('-');
    let by_mount_fuse = matches!(
        arguments,
        [_, spec, directory, option, _] if is_word(spec) && is_word(directory) && option == "-o"
    );
    (name.starts_with(PREFIX) || by_mount_fuse).then(|| name.into_owned())
}

/// Parses the arguments of mount(8). The environment is ignored, so that a line of
/// fstab(5) has the same meaning for every user.
pub(crate) fn settings(arguments: &[OsString]) -> Result<Settings, ParseExit> {
    let given = MountCli::try_parse_from(arguments).map_err(parse_exit)?;
    let mut options = MountOptions::default();
    for list in &given.options {
        let read = options.read(list, given.sloppy, |_| false);
        read.map_err(ParseExit::Usage)?;
    }
    options
        .words
        .push(format!("--address={}", given.spec).into());
    let settings = resolve(&options, &given.directory)?;
    Ok(Settings {
        mode: if given.fake {
            Mode::DryRun
        } else {
            settings.mode
        },
        // `mount -a` compares this with fstab(5) to see what is mounted.
        source: Some(given.spec),
        no_exec: options.no_exec.unwrap_or(false),
        tree: settings
            .tree
            .with_write_through(options.sync.unwrap_or(false)),
        namespace: given.namespace,
        ..settings
    })
}

fn resolve(options: &MountOptions, directory: &Path) -> Result<Settings, ParseExit> {
    let mut words = vec![OsString::from("sheepfs")];
    words.extend(options.words.iter().cloned());
    words.extend(["--".into(), directory.into()]);
    let cli = Cli::try_parse_from(words).map_err(|error| match parse_exit(error) {
        ParseExit::Usage(UsageError(text)) => {
            ParseExit::Usage(UsageError(format!("in the mount options: {text}")))
        }
        shown @ ParseExit::Help(_) => shown,
    })?;
    let cli = Cli {
        cluster: ClusterOptions {
            read_only: options.read_only.unwrap_or(false),
            ..cli.cluster
        },
        ..cli
    };
    Settings::resolve(cli, |_| None).map_err(ParseExit::Usage)
}

/// Why a remount failed.
#[derive(Debug)]
pub(crate) enum RemountFailure {
    /// An option is invalid or cannot be changed.
    Usage(UsageError),
    /// Nothing is mounted there, or the kernel refused.
    System(anyhow::Error),
}

impl From<UsageError> for RemountFailure {
    fn from(error: UsageError) -> Self {
        Self::Usage(error)
    }
}

impl From<anyhow::Error> for RemountFailure {
    fn from(error: anyhow::Error) -> Self {
        Self::System(error)
    }
}

impl From<RemountError> for RemountFailure {
    fn from(error: RemountError) -> Self {
        Self::System(error.into())
    }
}

/// Remounts if the mount options contain `remount`; `None` if not.
///
/// mount(8) passes the options of fstab(5), or those of the mount table if there is
/// no such line, or only the new ones if it was given SPEC and DIRECTORY. So an
/// option that is missing stays unchanged.
pub(crate) fn remount(arguments: &[OsString]) -> Option<Result<(), RemountFailure>> {
    // `settings` parses the same arguments and reports errors.
    let given = MountCli::try_parse_from(arguments).ok()?;
    let mut options = MountOptions::default();
    for list in &given.options {
        options.read(list, true, |_| false).ok()?;
    }
    options.remount.then(|| remount_as(&given))
}

fn remount_as(given: &MountCli) -> Result<(), RemountFailure> {
    // Find the mount, and compare source and execute permission with it.
    enter_namespace(given.namespace.as_ref())?;
    let tree = MountedTree::find(&given.directory)?;
    if given.spec != tree.source() {
        return Err(unchangeable(&format!("the source {}", tree.source())));
    }
    let options = changes(given, &tree)?;
    if let Some(no_exec) = options.no_exec
        && no_exec != tree.shows("noexec")
    {
        return Err(unchangeable(if no_exec { "noexec" } else { "exec" }));
    }
    let settings = match resolve(&options, &given.directory) {
        Ok(settings) => settings,
        Err(ParseExit::Usage(error)) => return Err(error.into()),
        Err(ParseExit::Help(_)) => return Ok(()),
    };
    // Every other option that is given must have the value it was mounted with.
    let mounted_with: Vec<&str> = tree.options().lines().collect();
    for (name, value) in settings.mount_options() {
        let mut given = options.words.iter().map(|word| option_name(word));
        let given = given.rfind(|option| belongs_to(option, name));
        if let Some(option) = given
            && !mounted_with.contains(&&*format!("{name}={value}"))
        {
            return Err(unchangeable(&option));
        }
    }
    if let Some(sync) = options.sync
        && !mounted_with.contains(&&*format!("sync={sync}"))
    {
        return Err(unchangeable(if sync { "sync" } else { "async" }));
    }
    // Write permission is what a remount may change, unless the volumes are unlocked.
    let read_only = options.read_only.unwrap_or_else(|| tree.shows("ro"));
    if !read_only && mounted_with.contains(&"read_only=true") {
        return Err(UsageError(
            "a sheepfs that was mounted read-only holds no locks and cannot become writable: \
             unmount it and mount it again"
                .into(),
        )
        .into());
    }
    if !given.fake {
        tree.remount(read_only)?;
    }
    Ok(())
}

/// The given options without those that the mount table shows already.
fn changes(given: &MountCli, tree: &MountedTree) -> Result<MountOptions, UsageError> {
    let lists = || given.options.iter().map(|list| list.to_string_lossy());
    // In the mount table `allow_other` is the kernel's option, which --allow-root
    // sets as well.
    let from_table = lists().any(|list| list.split(',').any(|word| word.starts_with("user_id=")));
    let skip = |option: &str| {
        tree.shows(option)
            && !["ro", "rw", "noexec"].contains(&option)
            && (from_table || option != "allow_other")
    };
    let mut options = MountOptions::default();
    for list in &given.options {
        options.read(list, given.sloppy, skip)?;
    }
    if options.words.iter().any(|word| option_name(word) == "port") {
        options
            .words
            .push(format!("--address={}", given.spec).into());
    }
    Ok(options)
}

/// `retry_for` of `--retry-for=5`.
fn option_name(word: &OsStr) -> String {
    let word = word.to_string_lossy();
    let name = word.trim_start_matches("--").split('=').next();
    name.unwrap_or_default().replace('-', "_")
}

/// Whether `option` influences the entry `name` of [`Settings::mount_options`].
fn belongs_to(option: &str, name: &str) -> bool {
    match name {
        "access" => option.starts_with("allow_"),
        "addresses" => option == "port",
        name => option == name,
    }
}

fn unchangeable(what: &str) -> RemountFailure {
    RemountFailure::Usage(UsageError(format!(
        "a remount can change only ro and rw, not {what}: unmount it and mount it again"
    )))
}

/// Enters the mount namespace of `file`. Works only while the process has one thread.
///
/// # Errors
/// When the file is no mount namespace, or the system refuses.
pub(crate) fn enter_namespace(file: Option<&PathBuf>) -> anyhow::Result<()> {
    let Some(path) = file else { return Ok(()) };
    File::open(path)
        .map_err(anyhow::Error::from)
        .and_then(|file| Ok(setns(file, CloneFlags::CLONE_NEWNS)?))
        .with_context(|| format!("cannot enter mount namespace {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use sheep_cli::cluster::Cluster;
    use sheepfs_fuse::Access;

    fn words(line: &str) -> Vec<OsString> {
        line.split_whitespace().map(OsString::from).collect()
    }

    fn resolved(line: &str) -> Settings {
        match settings(&words(line)) {
            Ok(settings) => settings,
            Err(stop) => panic!("{line}: {stop:?}"),
        }
    }

    fn error(line: &str) -> String {
        match settings(&words(line)) {
            Err(ParseExit::Usage(error)) => error.0,
            other => panic!("{line}: {other:?}"),
        }
    }

    #[test]
    fn mount_helper_is_recognised_by_name_or_arguments() {
        for (line, expected) in [
            ("/sbin/mount.sheepfs h /mnt", Some("mount.sheepfs")),
            ("mount.fuse.sheepfs h /mnt", Some("mount.fuse.sheepfs")),
            ("sheepfs h /mnt -o rw,dev,suid", Some("sheepfs")),
            ("sheepfs /mnt", None),
            ("sheepfs -k /mnt -o ro", None),
            ("sheepfs -o ro /mnt", None),
            ("sheepfs h /mnt", None),
        ] {
            assert_eq!(name(&words(line)).as_deref(), expected, "{line}");
        }
        assert_eq!(name(&[]), None);
    }

    #[test]
    fn mount_helper_reads_fstab_options() {
        let settings = resolved(
            "mount.sheepfs h1:7001,[::1] /mnt -s -n -v -o rw,noexec,allow_other,port=7002 \
             -o attach=a,umask=027,_netdev -t fuse.sheepfs",
        );
        let Cluster::Running(addresses) = &settings.cluster.cluster else {
            panic!("{:?}", settings.cluster.cluster);
        };
        let addresses: Vec<_> = addresses.iter().map(ToString::to_string).collect();
        assert_eq!(addresses, ["h1:7001", "[::1]:7002"]);
        assert_eq!(settings.mode, Mode::Background);
        assert_eq!(settings.mountpoint, Path::new("/mnt"));
        assert_eq!(settings.source.as_deref(), Some("h1:7001,[::1]"));
        assert_eq!((settings.access, settings.umask), (Access::All, 0o27));
        assert_eq!(settings.attach, [b"a"]);
        assert!(settings.no_exec && !settings.tree.read_only);
        assert!(resolved("mount.sheepfs h /mnt -o ro").tree.read_only);
        assert_eq!(resolved("mount.sheepfs h /mnt -fv").mode, Mode::DryRun);
        assert_eq!(
            resolved("mount.sheepfs h /mnt -N /proc/1/ns/mnt").namespace,
            Some("/proc/1/ns/mnt".into())
        );
    }

    #[test]
    fn mount_helper_usage_error_is_one_line() {
        for (line, expected) in [
            (
                "mount.sheepfs h /mnt -o bogus",
                "unknown mount option 'bogus'",
            ),
            (
                "mount.sheepfs h:0 /mnt",
                "--address: '0' is not a port (1 to 65535)",
            ),
            (
                "mount.sheepfs h /mnt -o port=x",
                "in the mount options: invalid value 'x' for '--port <PORT>': a port is a number from 1 to 65535",
            ),
            (
                "mount.sheepfs h /mnt -o attach",
                "in the mount options: a value is required for '--attach <NAME[@TAG]>' but none was supplied",
            ),
            (
                "mount.sheepfs h /mnt -o pagecache=1",
                "in the mount options: unexpected value '1' for '--pagecache' found; no more were expected",
            ),
            (
                "mount.sheepfs h",
                "the following required arguments were not provided: <DIRECTORY>",
            ),
        ] {
            assert_eq!(error(line), expected, "{line}");
        }
    }
}
