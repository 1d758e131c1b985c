//! Mount options, as in `-o` of mount(8) and the fourth column of fstab(5).

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};

use sheep_cli::usage_error::UsageError;
use sheepfs_fuse::unescape;

/// Mount options that are options of the command line as well, with `_` for `-`.
pub(crate) const OURS: [&str; 15] = [
    "allow_none",
    "allow_other",
    "allow_root",
    "attach",
    "attach_all",
    "connections",
    "gid",
    "lock",
    "objectcache",
    "pagecache",
    "pidfile",
    "port",
    "retry_for",
    "uid",
    "umask",
];

/// Ignored options: those for mount(8), fsck or systemd, and those without effect,
/// because the tree has no devices, set-uid programs, symbolic links or access times.
pub(crate) const IGNORED: [&str; 37] = [
    "_netdev",
    "atime",
    "auto",
    "comment",
    "default_permissions",
    "defaults",
    "dev",
    "diratime",
    "group",
    "iversion",
    "lazytime",
    "loud",
    "mand",
    "noatime",
    "noauto",
    "nodev",
    "nodiratime",
    "nofail",
    "nogroup",
    "noiversion",
    "nolazytime",
    "nomand",
    "nonempty",
    "noowner",
    "norelatime",
    "nostrictatime",
    "nosuid",
    "nosymfollow",
    "nouser",
    "owner",
    "relatime",
    "silent",
    "strictatime",
    "suid",
    "symfollow",
    "user",
    "users",
];

/// Parsed mount options.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct MountOptions {
    /// Equivalent options of the command line.
    pub(crate) words: Vec<OsString>,
    /// `ro` or `rw`, when given.
    pub(crate) read_only: Option<bool>,
    /// `noexec` or `exec`, when given.
    pub(crate) no_exec: Option<bool>,
    /// `sync`, `dirsync` or `async`, when given.
    pub(crate) sync: Option<bool>,
    pub(crate) remount: bool,
}

impl MountOptions {
    /// Parses `list` in addition to earlier lists; the last of contradicting options
    /// wins. Unknown options are ignored with `sloppy`, and those for which `skip`
    /// returns true always.
    ///
    /// # Errors
    /// The first option that is unknown, or a quote that is not closed.
    pub(crate) fn read(
        &mut self,
        list: &OsStr,
        sloppy: bool,
        skip: impl Fn(&str) -> bool,
    ) -> Result<(), UsageError> {
        for option in split(list.as_bytes())? {
            if skip(&String::from_utf8_lossy(option)) {
                continue;
            }
            let (name, value) = match option.iter().position(|byte| *byte == b'=') {
                Some(at) => (&option[..at], Some(unquote(&option[at + 1..]))),
                None => (option, None),
            };
            let name = String::from_utf8_lossy(name);
            let canonical = name.replace('-', "_");
            match &*name {
                "ro" => self.read_only = Some(true),
                "rw" => self.read_only = Some(false),
                "noexec" => self.no_exec = Some(true),
                "exec" => self.no_exec = Some(false),
                "sync" | "dirsync" => self.sync = Some(true),
                "async" => self.sync = Some(false),
                "remount" => self.remount = true,
                _ if name.starts_with("x-") || name.starts_with("X-") => {}
                _ if OURS.contains(&&*canonical) => self.words.push(word(&canonical, value)),
                _ if IGNORED.contains(&&*name) || sloppy => {}
                _ => return Err(UsageError(format!("unknown mount option '{name}'"))),
            }
        }
        Ok(())
    }
}

/// Splits at commas outside of double quotes.
fn split(list: &[u8]) -> Result<Vec<&[u8]>, UsageError> {
    let mut quoted = false;
    let options: Vec<_> = list
        .split(|byte| {
            quoted ^= *byte == b'"';
            *byte == b',' && !quoted
        })
        .filter(|option| !option.is_empty())
        .collect();
    if quoted {
        return Err(UsageError(format!(
            "a double quote is not closed in the mount options: {}",
            String::from_utf8_lossy(list)
        )));
    }
    Ok(options)
}

/// A value without the quotes around it and with its escapes resolved.
fn unquote(value: &[u8]) -> OsString {
    let inner = value
        .strip_prefix(b"\"")
        .and_then(|rest| rest.strip_suffix(b"\""));
    OsString::from_vec(unescape(inner.unwrap_or(value)))
}

fn word(canonical: &str, value: Option<OsString>) -> OsString {
    let mut word = OsString::from(format!("--{}", canonical.replace('_', "-")));
    if let Some(value) = value {
        word.push("=");
        word.push(value);
    }
    word
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read(list: &str) -> Result<MountOptions, String> {
        let mut options = MountOptions::default();
        let outcome = options.read(OsStr::new(list), false, |_| false);
        outcome.map(|()| options).map_err(|error| error.0)
    }

    #[test]
    fn mount_options_become_command_line_options() {
        let options = read("allow_other,pagecache,attach=a,attach=b@c,retry-for=5,uid=kvm");
        let expected = "--allow-other --pagecache --attach=a --attach=b@c --retry-for=5 --uid=kvm";
        let expected: Vec<_> = expected.split(' ').map(OsString::from).collect();
        assert_eq!(options.unwrap().words, expected);
    }

    #[test]
    fn mount_options_quote_or_escape_commas_and_blanks() {
        let options = read(r#"attach="a,b c",attach=d\054e\040f,attach="g""#).unwrap();
        assert_eq!(
            options.words,
            ["--attach=a,b c", "--attach=d,e f", "--attach=g"]
        );
        assert_eq!(
            read("ro,attach=\"a,b").unwrap_err(),
            "a double quote is not closed in the mount options: ro,attach=\"a,b"
        );
    }

    #[test]
    fn mount_options_accept_names_not_utf8() {
        let mut options = MountOptions::default();
        let list = OsString::from_vec(b"attach=\xff".to_vec());
        options.read(&list, false, |_| false).unwrap();
        assert_eq!(options.words[0].as_bytes(), b"--attach=\xff");
    }

    #[test]
    fn mount_options_last_contradicting_one_wins() {
        assert_eq!(read("").unwrap().read_only, None);
        assert_eq!(read("ro").unwrap().read_only, Some(true));
        assert_eq!(read("ro,rw").unwrap().read_only, Some(false));
        assert_eq!(read("async,dirsync").unwrap().sync, Some(true));
        assert_eq!(read("sync,async").unwrap().sync, Some(false));
        assert_eq!(read("exec,noexec").unwrap().no_exec, Some(true));
        assert_eq!(read("users,noexec,exec").unwrap().no_exec, Some(false));
    }

    #[test]
    fn mount_options_of_other_programs_are_ignored() {
        let list = "_netdev,nofail,noauto,user=joe,x-systemd.automount,X-mount.mkdir=0755,\
                    comment=mine,nosuid,nodev,noatime,relatime,defaults,,";
        assert_eq!(read(list), Ok(MountOptions::default()));
        for name in IGNORED {
            assert_eq!(read(name), Ok(MountOptions::default()), "{name}");
        }
    }

    #[test]
    fn mount_options_unknown_are_refused_unless_sloppy() {
        assert_eq!(
            read("ro,colour=red").unwrap_err(),
            "unknown mount option 'colour'"
        );
        let mut options = MountOptions::default();
        options
            .read(OsStr::new("colour=red,ro"), true, |_| false)
            .unwrap();
        assert!(options.read_only == Some(true) && options.words.is_empty());
    }

    proptest! {
        /// Fuzzed as well; see `fuzz/`.
        #[test]
        fn mount_options_of_any_bytes_parse_or_fail(
            list in prop_oneof![
                any::<Vec<u8>>(),
                r#"([a-z_-]{1,12}(=("[^"]{0,5}"|[^,]{0,5}))?,){0,6}"#.prop_map(String::into_bytes),
            ],
            sloppy: bool,
        ) {
            let mut options = MountOptions::default();
            let read = options.read(OsStr::from_bytes(&list), sloppy, |_| false);
            prop_assert!(options.words.iter().all(|word| word.as_bytes().starts_with(b"--")));
            if let Err(error) = read {
                prop_assert!(!error.0.is_empty());
            }
        }
    }

    #[test]
    fn mount_options_are_all_in_manual_page() {
        let page = include_str!("../../../man/mount.sheepfs.8");
        for name in OURS.into_iter().chain(IGNORED) {
            assert!(page.contains(name), "{name} is not in mount.sheepfs(8)");
        }
    }
}
