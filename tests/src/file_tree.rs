//! Directory trees: made the same way each time, compared byte for byte.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, ensure};
use fastrand::Rng;

/// How large a tree is.
#[derive(Clone, Copy, Debug)]
pub struct TreeShape {
    /// Directories directly below the root.
    pub directories: usize,
    /// Files in each directory.
    pub files: usize,
    /// Upper limit of a file's length in bytes; most are far shorter.
    pub longest: usize,
}

/// Names that a careless program trips over.
const ODD_NAMES: [&[u8]; 8] = [
    b" leading and trailing ",
    b"new\nline",
    b"-rf",
    b"*?[a-z]",
    b"back\\slash'\"`$(x)",
    b"\xff\xfe not UTF-8",
    "日本語.txt".as_bytes(),
    &[b'n'; 255],
];

/// Fills the empty directory `root` with files, links and odd names.
///
/// # Errors
/// As the writes it makes.
pub fn make_tree(root: &Path, shape: TreeShape, random: &mut Rng) -> anyhow::Result<()> {
    for number in 0..shape.directories {
        let directory = root.join(format!("directory-{number:03}/nested"));
        fs::create_dir_all(&directory)?;
        for file in 0..shape.files {
            let limit = if file % 16 == 0 {
                shape.longest
            } else {
                9000.min(shape.longest)
            };
            let path = directory.join(format!("file-{file:04}"));
            write_file(&path, random.usize(..=limit), random)?;
        }
        symlink("../nested/file-0000", directory.join("link"))?;
        symlink("nowhere", directory.join("dangling link"))?;
        fs::hard_link(directory.join("file-0000"), directory.join("hard link"))?;
        fs::set_permissions(
            directory.join("file-0001"),
            PermissionsExt::from_mode(0o4711),
        )?;
    }
    let odd = root.join("odd names");
    fs::create_dir(&odd)?;
    for name in ODD_NAMES {
        write_file(&odd.join(OsStr::from_bytes(name)), 1000, random)?;
    }
    fs::create_dir(root.join("empty directory"))?;
    fs::write(root.join("empty file"), b"")?;
    Ok(())
}

fn write_file(path: &Path, len: usize, random: &mut Rng) -> anyhow::Result<()> {
    let mut bytes = vec![0; len];
    random.fill(&mut bytes);
    fs::write(path, bytes).with_context(|| format!("{path:?}"))
}

/// Fails unless both trees have the same names, kinds, modes and contents.
///
/// # Errors
/// Names the first difference.
pub fn assert_same_tree(expected: &Path, found: &Path) -> anyhow::Result<()> {
    let left = entries(expected)?;
    let right = entries(found)?;
    for name in left.keys() {
        ensure!(right.contains_key(name), "{name:?} is missing in {found:?}");
    }
    for (name, entry) in &right {
        let Some(other) = left.get(name) else {
            // mkfs.ext4 makes this one.
            ensure!(
                name.as_os_str() == "lost+found",
                "{name:?} is new in {found:?}"
            );
            continue;
        };
        ensure!(entry == other, "{name:?}: {other:?} became {entry:?}");
        if let Entry::File { .. } = entry {
            ensure!(
                fs::read(expected.join(name))? == fs::read(found.join(name))?,
                "the bytes of {name:?} differ"
            );
        }
    }
    Ok(())
}

#[derive(Debug, PartialEq, Eq)]
enum Entry {
    Directory { mode: u32 },
    File { mode: u32, len: u64, links: u64 },
    Link { target: PathBuf },
}

/// Everything below `root`, by its path relative to it.
fn entries(root: &Path) -> anyhow::Result<BTreeMap<PathBuf, Entry>> {
    let mut found = BTreeMap::new();
    let mut pending = vec![PathBuf::new()];
    while let Some(relative) = pending.pop() {
        let names: Vec<OsString> = fs::read_dir(root.join(&relative))
            .with_context(|| format!("{relative:?}"))?
            .map(|entry| Ok(entry?.file_name()))
            .collect::<std::io::Result<_>>()?;
        for name in names {
            let relative = relative.join(name);
            let path = root.join(&relative);
            let metadata = fs::symlink_metadata(&path)?;
            let mode = metadata.mode();
            let entry = if metadata.is_dir() {
                if relative.as_os_str() != "lost+found" {
                    pending.push(relative.clone());
                }
                Entry::Directory { mode }
            } else if metadata.is_symlink() {
                Entry::Link {
                    target: fs::read_link(&path)?,
                }
            } else {
                Entry::File {
                    mode,
                    len: metadata.len(),
                    links: metadata.nlink(),
                }
            };
            found.insert(relative, entry);
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use tempfile::TempDir;

    use super::*;

    const SMALL: TreeShape = TreeShape {
        directories: 2,
        files: 3,
        longest: 100,
    };

    fn two_trees() -> (TempDir, TempDir) {
        let trees = (TempDir::new().unwrap(), TempDir::new().unwrap());
        make_tree(trees.0.path(), SMALL, &mut Rng::with_seed(7)).unwrap();
        make_tree(trees.1.path(), SMALL, &mut Rng::with_seed(7)).unwrap();
        trees
    }

    #[test]
    fn file_tree_is_reproducible_from_seed() {
        let (left, right) = two_trees();
        assert_same_tree(left.path(), right.path()).unwrap();
    }

    #[test]
    fn file_tree_comparison_finds_changed_byte() {
        let (left, right) = two_trees();
        let path = right.path().join("odd names/-rf");
        let mut bytes = fs::read(&path).unwrap();
        bytes[500] ^= 1;
        fs::write(&path, bytes).unwrap();
        let error = assert_same_tree(left.path(), right.path()).unwrap_err();
        assert!(error.to_string().contains("the bytes of"), "{error}");
    }

    #[test]
    fn file_tree_comparison_finds_missing_file() {
        let (left, right) = two_trees();
        fs::remove_file(right.path().join("empty file")).unwrap();
        let error = assert_same_tree(left.path(), right.path()).unwrap_err();
        assert!(error.to_string().contains("is missing"), "{error}");
    }
}
