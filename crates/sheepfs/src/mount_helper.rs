//! Being called by mount(8): `mount.sheepfs SPEC DIRECTORY [-o OPTION]...`.
//!
//! mount.fuse3(8), which `mount -t fuse.sheepfs` runs where this program is not
//! installed as `mount.fuse.sheepfs`, calls `sheepfs SPEC DIRECTORY -o OPTIONS`.
//! As an ordinary command line that would have no meaning, so it has this one.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use clap::Parser as _;
use nix::sched::{CloneFlags, setns};

use crate::arguments::{self, Stop, UsageError};
use crate::cli::Cli;
use crate::mount_cli::MountCli;
use crate::mount_options::MountOptions;
use crate::settings::{Mode, Settings};

/// What the names begin with under which mount(8) runs a helper.
const PREFIX: &str = "mount.";

/// The name under which mount(8) or mount.fuse3(8) called this program.
pub(crate) fn name(arguments: &[OsString]) -> Option<String> {
    let name = Path::new(arguments.first()?).file_name()?.to_string_lossy();
    let is_word = |word: &OsStr| !word.to_string_lossy().starts_with('-');
    let by_mount_fuse = matches!(
        arguments,
        [_, spec, directory, option, _] if is_word(spec) && is_word(directory) && option == "-o"
    );
    (name.starts_with(PREFIX) || by_mount_fuse).then(|| name.into_owned())
}

/// Reads what mount(8) passes. The environment has no say: the same line of
/// fstab(5) is to mean the same whoever mounts it.
pub(crate) fn settings(arguments: &[OsString]) -> Result<Settings, Stop> {
    let given = MountCli::try_parse_from(arguments).map_err(arguments::stop)?;
    let mut options = MountOptions::default();
    for list in &given.options {
        options.read(list, given.sloppy).map_err(Stop::Wrong)?;
    }
    let mut words = vec![OsString::from("sheepfs")];
    words.append(&mut options.words);
    words.push(format!("--address={}", given.spec).into());
    words.extend(["--".into(), given.directory.into()]);
    let cli = Cli::try_parse_from(words).map_err(|error| match arguments::stop(error) {
        Stop::Wrong(UsageError(text)) => {
            Stop::Wrong(UsageError(format!("in the mount options: {text}")))
        }
        shown @ Stop::Shown(_) => shown,
    })?;
    let cli = Cli {
        read_only: options.read_only,
        ..cli
    };
    let settings = Settings::resolve(cli, |_| None).map_err(Stop::Wrong)?;
    Ok(Settings {
        mode: if given.fake {
            Mode::Check
        } else {
            settings.mode
        },
        // `mount -a` compares this with fstab(5) to see what is mounted.
        source: Some(given.spec),
        no_exec: options.no_exec,
        namespace: given.namespace,
        ..settings
    })
}

/// Goes where the mount is to be seen. Only a process with one thread can.
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
    use crate::settings::Cluster;
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
            Err(Stop::Wrong(error)) => error.0,
            other => panic!("{line}: {other:?}"),
        }
    }

    #[test]
    fn the_name_tells_who_calls() {
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
    fn a_line_of_fstab_says_where_how_and_what() {
        let settings = resolved(
            "mount.sheepfs h1:7001,[::1] /mnt -s -n -v -o rw,noexec,allow_other,port=7002 \
             -o attach=a,umask=027,_netdev -t fuse.sheepfs",
        );
        let Cluster::Running(addresses) = &settings.cluster else {
            panic!("{:?}", settings.cluster);
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
        assert_eq!(resolved("mount.sheepfs h /mnt -fv").mode, Mode::Check);
        assert_eq!(
            resolved("mount.sheepfs h /mnt -N /proc/1/ns/mnt").namespace,
            Some("/proc/1/ns/mnt".into())
        );
    }

    #[test]
    fn what_is_wrong_is_one_line() {
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
