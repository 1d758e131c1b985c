//! Conversions between the types of fuser and those of the tree.

use std::time::Duration;

use fuser::{FileAttr, FileHandle, FileType, FopenFlags, INodeNo, OpenAccMode, OpenFlags};
use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, OFlag};
use nix::unistd::Whence;
use sheepfs_vfs::{AllocateMode, Attributes, FileKind, HandleId, Ino, OpenMode, Opened, SeekTo};

use crate::init::MAX_REQUEST;

/// `st_blksize` of a volume: the largest request, as on NFS. `cat`, `cmp` and stdio
/// read in blocks of this size. Every read of a hole asks the cluster whether it
/// still is one, so that small blocks would take a round trip each.
const VOLUME_IO_SIZE: u32 = MAX_REQUEST;
/// `st_blksize` of everything else.
const TEXT_IO_SIZE: u32 = 4096;

/// The kernel counts `st_blocks` and nothing else in this unit; `statfs` has its own.
pub(crate) const STATFS_BLOCK_SIZE: u32 = 4096;

/// Owner, group and umask of all files of the mount.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ownership {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// Bits taken from every file's and directory's permissions.
    pub(crate) umask: u16,
}

impl Ownership {
    /// Attributes for stat(2).
    pub(crate) fn file_attr(&self, attributes: &Attributes) -> FileAttr {
        FileAttr {
            ino: INodeNo(attributes.ino.0),
            size: attributes.size,
            blocks: attributes.blocks,
            atime: attributes.modified,
            mtime: attributes.modified,
            ctime: attributes.modified,
            crtime: attributes.modified,
            kind: file_type(attributes.kind),
            perm: self.permissions(attributes),
            // For a directory, 1 means "not counted": a 2 would promise
            // find(1) that there are no directories inside.
            nlink: 1,
            uid: self.uid,
            gid: self.gid,
            rdev: 0,
            blksize: io_size(attributes.kind),
            flags: 0,
        }
    }

    /// Attributes in the reply to LOOKUP. The kernel uses its inode number in later
    /// requests for the file.
    pub(crate) fn entry_attr(&self, attributes: &Attributes) -> FileAttr {
        FileAttr {
            ino: INodeNo(attributes.node.0),
            ..self.file_attr(attributes)
        }
    }

    /// Whether chmod(2) and chown(2) to these values succeed. They do only if they
    /// change nothing, because a VDI stores neither owner nor mode. The kernel's vfat
    /// does the same; it lets `cp -p` by the owner succeed.
    pub(crate) fn allows_setattr(
        &self,
        attributes: &Attributes,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
    ) -> bool {
        const PERMISSION_BITS: u32 = 0o7777;
        mode.is_none_or(|mode| mode & PERMISSION_BITS == u32::from(self.permissions(attributes)))
            && uid.is_none_or(|uid| uid == self.uid)
            && gid.is_none_or(|gid| gid == self.gid)
    }

    fn permissions(&self, attributes: &Attributes) -> u16 {
        attributes.permissions & !self.umask
    }
}

/// Entry cache TTL of a name.
///
/// The entry of a directory is valid as long as its attributes. That of a file is
/// not cached: any process may detach a volume at any time, and a lookup is one
/// short request that does not leave this process.
pub(crate) fn entry_ttl(attributes: &Attributes) -> Duration {
    match attributes.kind {
        FileKind::Directory => attributes.ttl,
        FileKind::Text | FileKind::Volume => Duration::ZERO,
    }
}

pub(crate) fn ino(ino: INodeNo) -> Ino {
    Ino(ino.0)
}

pub(crate) fn handle(handle: FileHandle) -> HandleId {
    HandleId(handle.0)
}

pub(crate) fn errno(errno: Errno) -> fuser::Errno {
    fuser::Errno::from_i32(errno as i32)
}

pub(crate) fn file_type(kind: FileKind) -> FileType {
    match kind {
        FileKind::Directory => FileType::Directory,
        FileKind::Text | FileKind::Volume => FileType::RegularFile,
    }
}

/// `st_blksize`, in bytes.
fn io_size(kind: FileKind) -> u32 {
    match kind {
        FileKind::Volume => VOLUME_IO_SIZE,
        FileKind::Directory | FileKind::Text => TEXT_IO_SIZE,
    }
}

/// Access mode of open(2).
pub(crate) fn open_mode(flags: OpenFlags) -> OpenMode {
    let (read, write) = match flags.acc_mode() {
        OpenAccMode::O_RDONLY => (true, false),
        OpenAccMode::O_WRONLY => (false, true),
        OpenAccMode::O_RDWR => (true, true),
    };
    OpenMode { read, write }
}

/// Whether a write bypasses the page cache (`O_DIRECT`).
pub(crate) fn is_direct(flags: OpenFlags) -> bool {
    OFlag::from_bits_retain(flags.0).contains(OFlag::O_DIRECT)
}

/// Flags of an open file for the kernel.
///
/// Without `FOPEN_PARALLEL_DIRECT_WRITES` the kernel serialises writers of a file.
/// A cached file does not get `FOPEN_KEEP_CACHE`: each open drops the page cache,
/// so that changes by other clients are seen (close-to-open consistency).
pub(crate) fn open_flags(opened: Opened) -> FopenFlags {
    if opened.direct_io {
        FopenFlags::FOPEN_DIRECT_IO | FopenFlags::FOPEN_PARALLEL_DIRECT_WRITES
    } else {
        FopenFlags::empty()
    }
}

/// Mode of fallocate(2), and whether it may extend the file.
///
/// # Errors
/// EOPNOTSUPP for collapse, insert and unshare, and for unknown flags.
pub(crate) fn allocate_mode(mode: i32) -> Result<(AllocateMode, SizeChange), Errno> {
    let flags = FallocateFlags::from_bits(mode).ok_or(Errno::EOPNOTSUPP)?;
    let keep_size = FallocateFlags::FALLOC_FL_KEEP_SIZE;
    let size_change = if flags.contains(keep_size) {
        SizeChange::KeepSize
    } else {
        SizeChange::MayGrow
    };
    let what = flags.difference(keep_size);
    if what.is_empty() {
        Ok((AllocateMode::Allocate, size_change))
    } else if what == FallocateFlags::FALLOC_FL_PUNCH_HOLE {
        Ok((AllocateMode::PunchHole, size_change))
    } else if what == FallocateFlags::FALLOC_FL_ZERO_RANGE {
        Ok((AllocateMode::ZeroRange, size_change))
    } else {
        Err(Errno::EOPNOTSUPP)
    }
}

/// SEEK_DATA or SEEK_HOLE; the kernel handles the other values itself.
pub(crate) fn seek_to(whence: i32) -> Option<SeekTo> {
    const DATA: i32 = Whence::SeekData as i32;
    const HOLE: i32 = Whence::SeekHole as i32;
    match whence {
        DATA => Some(SeekTo::Data),
        HOLE => Some(SeekTo::Hole),
        _ => None,
    }
}

/// Whether fallocate(2) may extend the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SizeChange {
    /// `FALLOC_FL_KEEP_SIZE` was given.
    KeepSize,
    /// A range beyond the end extends the file.
    MayGrow,
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;

    const OWNER: Ownership = Ownership {
        uid: 107,
        gid: 108,
        umask: 0o027,
    };

    fn volume() -> Attributes {
        Attributes {
            ino: Ino(42),
            node: Ino(43),
            kind: FileKind::Volume,
            size: 1 << 40,
            blocks: 8192,
            permissions: 0o644,
            modified: SystemTime::UNIX_EPOCH,
            ttl: Duration::from_secs(1),
        }
    }

    #[test]
    fn stat_shows_mount_owner_and_applies_umask() {
        let shown = OWNER.file_attr(&volume());
        assert_eq!((shown.uid, shown.gid, shown.perm), (107, 108, 0o640));
        assert_eq!((shown.ino.0, shown.size, shown.blocks), (42, 1 << 40, 8192));
        assert_eq!(shown.kind, FileType::RegularFile);
        assert_eq!(OWNER.entry_attr(&volume()).ino, INodeNo(43));
    }

    #[test]
    fn setattr_of_owner_or_mode_must_change_nothing() {
        let regular = 0o100_000;
        let cases = [
            (Some(regular | 0o640), None, None, true),
            (Some(regular | 0o644), None, None, false),
            (Some(regular | 0o4640), None, None, false),
            (None, Some(107), Some(108), true),
            (None, Some(0), None, false),
            (None, None, Some(0), false),
            (None, None, None, true),
        ];
        for (mode, uid, gid, agreed) in cases {
            assert_eq!(
                OWNER.allows_setattr(&volume(), mode, uid, gid),
                agreed,
                "{mode:?} {uid:?} {gid:?}"
            );
        }
    }

    #[test]
    fn entry_ttl_is_zero_for_files() {
        assert_eq!(entry_ttl(&volume()), Duration::ZERO);
        let directory = Attributes {
            kind: FileKind::Directory,
            ..volume()
        };
        assert_eq!(entry_ttl(&directory), Duration::from_secs(1));
    }

    #[test]
    fn open_mode_follows_access_flags() {
        for (flags, read, write) in [
            (OpenAccMode::O_RDONLY, true, false),
            (OpenAccMode::O_WRONLY, false, true),
            (OpenAccMode::O_RDWR, true, true),
        ] {
            let mode = open_mode(OpenFlags(flags as i32));
            assert_eq!((mode.read, mode.write), (read, write), "{flags:?}");
        }
    }

    #[test]
    fn lseek_accepts_only_data_and_hole() {
        assert!(matches!(seek_to(3), Some(SeekTo::Data)));
        assert!(matches!(seek_to(4), Some(SeekTo::Hole)));
        assert!(seek_to(0).is_none() && seek_to(2).is_none() && seek_to(-1).is_none());
    }

    #[test]
    fn open_flags_of_uncached_file_allow_parallel_writes() {
        let flags = open_flags(Opened {
            handle: HandleId(1),
            direct_io: true,
        });
        assert!(flags.contains(FopenFlags::FOPEN_DIRECT_IO));
        assert!(flags.contains(FopenFlags::FOPEN_PARALLEL_DIRECT_WRITES));
        let flags = open_flags(Opened {
            handle: HandleId(1),
            direct_io: false,
        });
        assert!(flags.is_empty());
    }

    #[test]
    fn fallocate_modes_are_mapped_and_unknown_refused() {
        let known = |mode| {
            allocate_mode(mode).map(|(what, size_change)| (format!("{what:?}"), size_change))
        };
        assert_eq!(known(0), Ok(("Allocate".into(), SizeChange::MayGrow)));
        assert_eq!(known(1), Ok(("Allocate".into(), SizeChange::KeepSize)));
        assert_eq!(known(3), Ok(("PunchHole".into(), SizeChange::KeepSize)));
        assert_eq!(known(0x10), Ok(("ZeroRange".into(), SizeChange::MayGrow)));
        for refused in [0x08, 0x20, 0x40, 0x12, 0x4000_0000, -1] {
            assert_eq!(known(refused), Err(Errno::EOPNOTSUPP), "{refused:#x}");
        }
    }
}
