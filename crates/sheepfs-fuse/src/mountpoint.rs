//! Checks of the mountpoint, and the mount table.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStringExt as _;
use std::path::{Path, PathBuf};

use nix::errno::Errno;

const MOUNT_TABLE: &str = "/proc/self/mountinfo";

/// Why nothing can be mounted on a path.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MountpointError {
    /// No such directory.
    #[error("mountpoint {} does not exist: make it with `mkdir -p`", .0.display())]
    Missing(PathBuf),
    /// There is a file of that name.
    #[error("mountpoint {} is not a directory", .0.display())]
    NotADirectory(PathBuf),
    /// Something is mounted there.
    #[error("{} is a mount point already: {source_name} (type {kind}) is mounted there", path.display())]
    AlreadyMounted {
        /// The mountpoint.
        path: PathBuf,
        /// What the mount table names as the source, such as `/dev/sda1`.
        source_name: String,
        /// Type of the file system, such as `ext4` or `fuse.sheepfs`.
        kind: String,
    },
    /// A stale FUSE mount: the process that served it has ended.
    #[error(
        "the process that served {source_name} at {} is gone, its mount is still there: \
         remove it with `umount -l {}` (or `fusermount3 -u {}`)",
        path.display(), path.display(), path.display()
    )]
    StaleMount {
        /// The mountpoint.
        path: PathBuf,
        /// What the mount table names as the source.
        source_name: String,
    },
    /// The path cannot be examined.
    #[error("cannot use mountpoint {}: {}", .0.display(), .1.desc())]
    Unusable(PathBuf, Errno),
}

/// Checks that a file system can be mounted on `path`, and gives its name
/// without symbolic links. A directory that is not empty is fine.
///
/// # Errors
/// As [`MountpointError`] says; nothing has been changed.
pub(crate) fn check_mountpoint(path: &Path) -> Result<PathBuf, MountpointError> {
    // A stale FUSE mount fails every request, but its path still resolves as long as
    // only the last component is the mountpoint. So the mount table comes first.
    let real = match fs::canonicalize(path) {
        Ok(real) => real,
        Err(error) => return Err(unusable(path, &error)),
    };
    if let Some(mounted) = mounted_at(&real) {
        return Err(if mounted.kind.starts_with("fuse") && is_stale(&real) {
            MountpointError::StaleMount {
                path: real,
                source_name: mounted.source,
            }
        } else {
            MountpointError::AlreadyMounted {
                path: real,
                source_name: mounted.source,
                kind: mounted.kind,
            }
        });
    }
    match fs::metadata(&real) {
        Ok(metadata) if metadata.is_dir() => Ok(real),
        Ok(_) => Err(MountpointError::NotADirectory(path.into())),
        Err(error) => Err(unusable(path, &error)),
    }
}

/// Reads the directory, because the kernel may return attributes from its cache.
fn is_stale(path: &Path) -> bool {
    fs::read_dir(path).is_err_and(|error| error.raw_os_error() == Some(Errno::ENOTCONN as i32))
}

fn unusable(path: &Path, error: &io::Error) -> MountpointError {
    match error.raw_os_error().map(Errno::from_raw) {
        Some(Errno::ENOENT) => MountpointError::Missing(path.into()),
        Some(Errno::ENOTDIR) => MountpointError::NotADirectory(path.into()),
        Some(Errno::ENOTCONN) => MountpointError::StaleMount {
            path: path.into(),
            source_name: "a FUSE file system".into(),
        },
        other => MountpointError::Unusable(path.into(), other.unwrap_or(Errno::EIO)),
    }
}

/// One line of the mount table.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Mounted {
    /// Number of the file system, `MAJOR:MINOR`; nothing else that is mounted
    /// has it.
    pub(crate) device: String,
    pub(crate) kind: String,
    pub(crate) source: String,
    /// Options of this mountpoint, such as `nosuid`.
    pub(crate) flags: Vec<String>,
    /// Options of the file system, such as `user_id=0`.
    pub(crate) options: Vec<String>,
}

/// The topmost mount on `path`.
pub(crate) fn mounted_at(path: &Path) -> Option<Mounted> {
    // Without /proc there is no table to ask; mount(2) still refuses what it must.
    let table = fs::read(MOUNT_TABLE).unwrap_or_default();
    find(&table, path)
}

/// The last line for `path`: later mounts lie on top of earlier ones.
fn find(table: &[u8], path: &Path) -> Option<Mounted> {
    table
        .split(|byte| *byte == b'\n')
        .filter_map(parse)
        .rfind(|(mountpoint, _)| mountpoint == path)
        .map(|(_, mounted)| mounted)
}

/// `36 35 98:0 /root /mountpoint options [optional]... - type source options`
///
/// Source: `Documentation/filesystems/proc.rst` of Linux, section 3.5.
fn parse(line: &[u8]) -> Option<(PathBuf, Mounted)> {
    let mut fields = line.split(|byte| *byte == b' ');
    let device = fields.nth(2)?;
    let mountpoint = fields.nth(1)?;
    let flags = fields.next()?;
    let mut fields = fields.skip_while(|field| *field != b"-").skip(1);
    let (kind, source) = (fields.next()?, fields.next()?);
    let options = fields.next()?;
    let text = |field: &[u8]| String::from_utf8_lossy(&unescape(field)).into_owned();
    let list = |field: &[u8]| field.split(|byte| *byte == b',').map(text).collect();
    Some((
        OsString::from_vec(unescape(mountpoint)).into(),
        Mounted {
            device: text(device),
            kind: text(kind),
            source: text(source),
            flags: list(flags),
            options: list(options),
        },
    ))
}

/// Decodes octal escapes such as `\040`, as used in mount tables and fstab(5).
pub fn unescape(field: &[u8]) -> Vec<u8> {
    let mut plain = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&first, after)) = rest.split_first() {
        let octal = (first == b'\\')
            .then(|| after.get(..3))
            .flatten()
            .and_then(|digits| std::str::from_utf8(digits).ok())
            .and_then(|digits| u8::from_str_radix(digits, 8).ok());
        if let Some(byte) = octal {
            plain.push(byte);
            rest = &after[3..];
        } else {
            plain.push(first);
            rest = after;
        }
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &[u8] = b"\
22 1 0:20 / / rw,relatime shared:1 - ext4 /dev/vda rw\n\
40 22 0:51 / /mnt/a\\040b rw - tmpfs none rw\n\
41 22 0:52 / /mnt/x rw,nosuid,nodev shared:7 master:3 - fuse.sheepfs sheepfs:[::1]:7000 rw,user_id=0\n\
42 22 0:53 / /mnt/x rw - tmpfs over\\134it rw\n";

    #[test]
    fn mount_table_lookup_finds_topmost_mount() {
        let found = find(TABLE, Path::new("/mnt/x")).expect("TABLE has a line for /mnt/x");
        assert_eq!(found.kind, "tmpfs");
        assert_eq!(found.source, "over\\it");
        assert_eq!(found.device, "0:53");
        assert_eq!(
            (found.flags, found.options),
            (vec!["rw".into()], vec!["rw".into()])
        );
    }

    #[test]
    fn mount_table_lookup_unescapes_names() {
        assert!(find(TABLE, Path::new("/mnt/a b")).is_some());
        assert_eq!(find(TABLE, Path::new("/mnt")), None);
        assert_eq!(find(b"", Path::new("/")), None);
        assert_eq!(find(b"1 2 3\n\n- - - -\n", Path::new("/")), None);
    }

    #[test]
    fn unescape_keeps_incomplete_octal_sequence() {
        assert_eq!(unescape(b"a\\04"), b"a\\04");
        assert_eq!(unescape(b"\\999\\"), b"\\999\\");
        assert_eq!(unescape(b"\\777"), b"\\777");
    }

    #[test]
    fn mountpoint_errors_name_path_and_remedy() {
        let directory = tempfile::tempdir().unwrap();
        let missing = directory.path().join("missing");
        let file = directory.path().join("file");
        fs::write(&file, "").unwrap();

        let text = |path: &Path| check_mountpoint(path).unwrap_err().to_string();
        assert_eq!(
            text(&missing),
            format!(
                "mountpoint {} does not exist: make it with `mkdir -p`",
                missing.display()
            )
        );
        assert_eq!(
            text(&file),
            format!("mountpoint {} is not a directory", file.display())
        );
        assert_eq!(
            text(&file.join("below")),
            format!(
                "mountpoint {} is not a directory",
                file.join("below").display()
            )
        );
        assert!(text(Path::new("/proc")).starts_with("/proc is a mount point already: "));
    }

    #[test]
    fn mountpoint_may_be_nonempty_or_symlink() {
        let directory = tempfile::tempdir().unwrap();
        let real = directory.path().join("real");
        fs::create_dir(&real).unwrap();
        fs::write(real.join("content"), "").unwrap();
        let link = directory.path().join("link");
        std::os::unix::fs::symlink(&real, &link).unwrap();
        assert_eq!(
            check_mountpoint(&link).unwrap(),
            fs::canonicalize(&real).unwrap()
        );
    }
}
