//! The kernel's list of mounts, read without touching any mountpoint.

use std::ffi::OsString;
use std::fs;
use std::os::unix::ffi::OsStringExt as _;
use std::path::{Path, PathBuf};

use anyhow::Context as _;

/// True when something is mounted exactly at `path`.
///
/// # Errors
/// When `/proc` cannot be read.
pub fn is_mounted(path: &Path) -> anyhow::Result<bool> {
    Ok(mounts_below(path)?.iter().any(|mount| mount == path))
}

/// The mountpoints at and below `path`, the last mounted first.
///
/// # Errors
/// When `/proc` cannot be read.
pub fn mounts_below(path: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let table = fs::read("/proc/self/mountinfo").context("/proc/self/mountinfo")?;
    let mut mounts = mountpoints(&table);
    mounts.retain(|mount| mount.starts_with(path));
    mounts.reverse();
    Ok(mounts)
}

/// The fifth field of every line of a mountinfo table.
fn mountpoints(table: &[u8]) -> Vec<PathBuf> {
    table
        .split(|&byte| byte == b'\n')
        .filter_map(|line| line.split(|&byte| byte == b' ').nth(4))
        .map(|field| PathBuf::from(OsString::from_vec(unescape(field))))
        .collect()
}

/// Undoes the kernel's `\ooo` for blanks and backslashes.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut plain = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&first, tail)) = rest.split_first() {
        let octal = tail
            .get(..3)
            .and_then(|digits| std::str::from_utf8(digits).ok());
        match octal.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(byte) if first == b'\\' => {
                plain.push(byte);
                rest = &tail[3..];
            }
            _ => {
                plain.push(first);
                rest = tail;
            }
        }
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mount_table_unescapes_blank() {
        let table = b"36 35 98:0 / /mnt/two\\040words rw - fuse sheepfs rw\n";
        assert_eq!(mountpoints(table), [PathBuf::from("/mnt/two words")]);
    }

    #[test]
    fn mount_table_keeps_plain_digits() {
        let table = b"36 35 98:0 / /mnt/1040 rw - fuse sheepfs rw\n";
        assert_eq!(mountpoints(table), [PathBuf::from("/mnt/1040")]);
    }
}
