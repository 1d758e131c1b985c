//! Objects as sparse files of a directory.
//!
//! ```text
//! lock                              held while a server uses the directory
//! cluster                           settings of the formatted cluster
//! objects/76d396/0076d39600000003   one file per object, in a directory per VID
//! cache/                            the same once more, for an object cache
//! new/                              objects being made
//! old/                              objects of a cluster formatted away
//! ```
//!
//! What survives a crash. A new object is written in `new`, made durable, then
//! renamed to its place, and the directory made durable: it is there whole or
//! not at all. An overwrite is durable when [`Store::sync`] has returned; the
//! server answers after that. Nothing else changes a file. A new object
//! replaces the old one by the same rename. Formatting removes `cluster` first
//! and writes it last, so a crash in between leaves an unformatted store; the
//! rest of `objects` waits in `old` and goes at the next start, like `new`.
//!
//! Without sync the same steps run, but nothing waits for the disk: a killed
//! process still loses nothing, a power cut may.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::ops::Range;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use nix::sys::statvfs::statvfs;
use nix::unistd::{Whence, lseek, syncfs};
use sheep_proto::{Oid, Vid};

use super::{NewObject, Space, Store, StoreError};

/// Bytes copied at a time.
const COPY_LEN: usize = 1 << 20;

/// Why a directory cannot be used as a store.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// Another server uses it.
    #[error("{} is in use by another server", .0.display())]
    InUse(PathBuf),
    /// The file system refused.
    #[error("cannot use the directory {}", path.display())]
    Unusable {
        /// The directory.
        path: PathBuf,
        /// What the file system said.
        #[source]
        source: io::Error,
    },
}

/// See the module.
pub(crate) struct DirectoryStore {
    root: PathBuf,
    path_bytes: Vec<u8>,
    sync: bool,
    next_new: AtomicU64,
    _lock: Flock<File>,
}

impl DirectoryStore {
    /// Takes the directory over, making it when it is missing, and removes what a crash left.
    ///
    /// # Errors
    /// [`OpenError::InUse`] while another server has it, [`OpenError::Unusable`] otherwise.
    pub(crate) fn open(root: &Path, sync: bool) -> Result<Self, OpenError> {
        let unusable = |source| OpenError::Unusable {
            path: root.to_path_buf(),
            source,
        };
        fs::create_dir_all(root).map_err(unusable)?;
        let root = fs::canonicalize(root).map_err(unusable)?;
        let lock = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(root.join("lock"))
            .map_err(unusable)?;
        let lock = match Flock::lock(lock, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => lock,
            Err((_file, Errno::EWOULDBLOCK)) => return Err(OpenError::InUse(root)),
            Err((_file, errno)) => return Err(unusable(errno.into())),
        };
        let store = Self {
            path_bytes: root.clone().into_os_string().into_vec(),
            root,
            sync,
            next_new: AtomicU64::new(0),
            _lock: lock,
        };
        store.prepare().map_err(unusable)?;
        Ok(store)
    }

    fn prepare(&self) -> io::Result<()> {
        for leftover in ["new", "old"] {
            remove_tree(&self.root.join(leftover))?;
        }
        for needed in ["new", "objects"] {
            match fs::create_dir(self.root.join(needed)) {
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
                _made_or_there => {}
            }
        }
        self.sync_directory(&self.root)
    }

    fn directory_of(&self, oid: Oid) -> PathBuf {
        let vid = oid.vid().map_or(0, Vid::get);
        self.root.join("objects").join(format!("{vid:06x}"))
    }

    fn path_of(&self, oid: Oid) -> PathBuf {
        self.directory_of(oid).join(oid.to_string())
    }

    fn open_object(&self, oid: Oid) -> io::Result<File> {
        File::open(self.path_of(oid))
    }

    fn open_object_for_writing(&self, oid: Oid) -> io::Result<File> {
        OpenOptions::new().write(true).open(self.path_of(oid))
    }

    fn sync_directory(&self, path: &Path) -> io::Result<()> {
        if self.sync {
            File::open(path)?.sync_all()?;
        }
        Ok(())
    }

    fn sync_file(&self, file: &File) -> io::Result<()> {
        if self.sync {
            file.sync_data()?;
        }
        Ok(())
    }

    /// A unique path in `new`.
    fn new_path(&self) -> PathBuf {
        let number = self.next_new.fetch_add(1, Ordering::Relaxed);
        self.root.join("new").join(number.to_string())
    }

    fn fill(&self, path: &Path, object: NewObject<'_>) -> io::Result<()> {
        let file = OpenOptions::new().write(true).create_new(true).open(path)?;
        file.set_len(object.len)?;
        if let Some(source) = object.source {
            copy_extents(&self.open_object(source)?, &file, object.len)?;
        }
        for &(offset, data) in object.writes {
            file.write_all_at(data, offset)?;
        }
        self.sync_file(&file)
    }

    /// Renames a finished file to its object's place.
    fn rename_into_place(&self, new: &Path, oid: Oid) -> io::Result<()> {
        let directory = self.directory_of(oid);
        let path = self.path_of(oid);
        match fs::rename(new, &path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                match fs::create_dir(&directory) {
                    Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                        return Err(error);
                    }
                    _made_or_there => {}
                }
                self.sync_directory(&self.root.join("objects"))?;
                fs::rename(new, &path)?;
            }
            other => other?,
        }
        self.sync_directory(&directory)
    }
}

fn remove_tree(path: &Path) -> io::Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _removed => Ok(()),
    }
}

/// `lseek` with 64 bits; `None` past the last data.
fn seek(file: &File, offset: u64, whence: Whence) -> io::Result<Option<u64>> {
    let offset = i64::try_from(offset).map_err(io::Error::other)?;
    match lseek(file, offset, whence) {
        Ok(found) => Ok(u64::try_from(found).ok()),
        Err(Errno::ENXIO) => Ok(None),
        Err(errno) => Err(errno.into()),
    }
}

/// The parts of a file that are not holes, within `range`.
fn extents(file: &File, range: Range<u64>) -> io::Result<Vec<Range<u64>>> {
    let mut found = Vec::new();
    let mut at = range.start;
    while at < range.end {
        let Some(start) = seek(file, at, Whence::SeekData)? else {
            break;
        };
        let end = seek(file, start, Whence::SeekHole)?.unwrap_or(range.end);
        if start < range.end {
            found.push(start..end.min(range.end));
        }
        at = end;
    }
    Ok(found)
}

fn copy_extents(from: &File, to: &File, len: u64) -> io::Result<()> {
    let mut buffer = vec![0; COPY_LEN];
    for extent in extents(from, 0..len)? {
        let mut at = extent.start;
        while at < extent.end {
            let want = usize::try_from(extent.end - at).map_or(COPY_LEN, |left| left.min(COPY_LEN));
            let now = read_fully(from, at, &mut buffer[..want])?;
            if now == 0 {
                break;
            }
            to.write_all_at(&buffer[..now], at)?;
            at += now as u64;
        }
    }
    Ok(())
}

/// Reads until the buffer is full or the file ends; returns how much there was.
fn read_fully(file: &File, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
    let mut done = 0;
    while done < buffer.len() {
        match file.read_at(&mut buffer[done..], offset + done as u64) {
            Ok(0) => break,
            Ok(now) => done += now,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(done)
}

/// Names of a directory that are hexadecimal numbers of `digits` digits.
fn hex_names(path: &Path, digits: usize) -> io::Result<Vec<u64>> {
    let mut numbers = Vec::new();
    for entry in fs::read_dir(path)? {
        let name = entry?.file_name();
        let text = str::from_utf8(name.as_bytes()).unwrap_or_default();
        if text.len() == digits
            && let Ok(number) = u64::from_str_radix(text, 16)
        {
            numbers.push(number);
        }
    }
    Ok(numbers)
}

impl Store for DirectoryStore {
    fn read(&self, oid: Oid, offset: u64, buffer: &mut [u8]) -> Result<(), StoreError> {
        let done = read_fully(&self.open_object(oid)?, offset, buffer)?;
        buffer[done..].fill(0);
        Ok(())
    }

    fn write(&self, oid: Oid, offset: u64, data: &[u8]) -> Result<(), StoreError> {
        Ok(self
            .open_object_for_writing(oid)?
            .write_all_at(data, offset)?)
    }

    fn sync(&self, oid: Oid) -> Result<(), StoreError> {
        if !self.sync {
            return Ok(());
        }
        match self.open_object(oid) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            file => Ok(self.sync_file(&file?)?),
        }
    }

    fn create(&self, oid: Oid, object: NewObject<'_>) -> Result<(), StoreError> {
        let path = self.new_path();
        let made = self
            .fill(&path, object)
            .and_then(|()| self.rename_into_place(&path, oid));
        if made.is_err()
            && let Err(error) = fs::remove_file(&path)
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!("cannot remove {}: {error}", path.display());
        }
        Ok(made?)
    }

    fn remove(&self, oid: Oid) -> Result<(), StoreError> {
        Ok(fs::remove_file(self.path_of(oid))?)
    }

    fn exists(&self, oid: Oid) -> Result<bool, StoreError> {
        Ok(self.path_of(oid).try_exists()?)
    }

    fn clear_from(&self, oid: Oid, offset: u64) -> Result<(), StoreError> {
        let file = self.open_object_for_writing(oid)?;
        let len = file.metadata()?.len();
        file.set_len(len.min(offset))?;
        file.set_len(len)?;
        Ok(self.sync_file(&file)?)
    }

    fn extents(&self, oid: Oid, range: Range<u64>) -> Result<Vec<Range<u64>>, StoreError> {
        Ok(extents(&self.open_object(oid)?, range)?)
    }

    fn vids(&self) -> Result<Vec<Vid>, StoreError> {
        let mut vids: Vec<_> = hex_names(&self.root.join("objects"), 6)?
            .into_iter()
            .filter_map(|number| Vid::new(u32::try_from(number).ok()?))
            .collect();
        vids.sort_unstable();
        Ok(vids)
    }

    fn objects_of(&self, vid: Vid) -> Result<Vec<Oid>, StoreError> {
        let directory = self.directory_of(Oid::inode(vid));
        Ok(hex_names(&directory, 16)?
            .into_iter()
            .map(Oid::from_raw)
            .collect())
    }

    fn cluster_record(&self) -> Result<Option<Vec<u8>>, StoreError> {
        match fs::read(self.root.join("cluster")) {
            Ok(record) => Ok(Some(record)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    fn save_record(&self, record: &[u8]) -> Result<(), StoreError> {
        let new = self.new_path();
        fs::write(&new, record)?;
        self.sync_file(&File::open(&new)?)?;
        fs::rename(&new, self.root.join("cluster"))?;
        Ok(self.sync_directory(&self.root)?)
    }

    fn format(&self, record: &[u8]) -> Result<(), StoreError> {
        let cluster = self.root.join("cluster");
        match fs::remove_file(&cluster) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error.into()),
            _removed => self.sync_directory(&self.root)?,
        }
        let old = self.root.join("old");
        remove_tree(&old)?;
        fs::rename(self.root.join("objects"), &old)?;
        fs::create_dir(self.root.join("objects"))?;
        self.sync_directory(&self.root)?;
        remove_tree(&old)?;
        self.save_record(record)
    }

    fn space(&self) -> Result<Space, StoreError> {
        let stat = statvfs(&self.root).map_err(io::Error::from)?;
        let bytes = |fragments: u64| fragments.saturating_mul(stat.fragment_size());
        Ok(Space {
            size: bytes(stat.blocks()),
            free: bytes(stat.blocks_available()),
        })
    }

    fn path(&self) -> &[u8] {
        &self.path_bytes
    }

    fn sync_all(&self) -> Result<(), StoreError> {
        syncfs(File::open(&self.root)?).map_err(io::Error::from)?;
        Ok(())
    }
}
