//! One short method per kernel request.
//!
//! This file decides what does not depend on the tree:
//!
//! * Names cannot be made, moved or removed: EPERM. Attaching, creating and
//!   deleting volumes have files of their own under `vdi/`.
//! * Owner and mode cannot change (EPERM); setting them to what they are
//!   succeeds, so that `cp -p` by the owner does. Setting times succeeds and is
//!   not kept: `touch`, `rsync --times` and the kernel after mmap(2) all do it,
//!   and nothing is lost, because a volume's time is when it was made until this
//!   mount writes to it.
//! * `close(2)` flushes the dirty data of a cached volume, unless no sheep is
//!   reachable. Without the page cache an acknowledged write is on the cluster.
//! * ENOSYS makes the kernel use its own fallback and send no further requests of
//!   that kind: access, copying within the mount, polling.

use std::ffi::OsStr;
use std::hash::{BuildHasher as _, RandomState};
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

use bytes::Bytes;
use fuser::{
    AccessFlags, BsdFileFlags, CopyFileRangeFlags, FileHandle, FileType, Filesystem, FopenFlags,
    Generation, INodeNo, IoctlFlags, KernelConfig, LockOwner, OpenFlags, PollEvents, PollFlags,
    PollNotifier, RenameFlags, ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory, ReplyEmpty,
    ReplyEntry, ReplyIoctl, ReplyLseek, ReplyOpen, ReplyPoll, ReplyStatfs, ReplyWrite, ReplyXattr,
    Request, TimeOrNow, WriteFlags,
};
use nix::errno::Errno;
use sheepfs_vfs::{Entry, Ino, Tree};
use tokio::time::Instant;

use crate::convert::{self, Ownership, SizeChange};
use crate::directory::OpenDirectories;
use crate::dispatcher::{Dispatcher, ReplyError, RequestInfo, finish, reply_errno};
use crate::init;
use crate::lookups::Lookups;
use crate::prefault::EventLoops;
use crate::truncating_open::TruncatingOpens;
use crate::xattr;

/// The kernel creates the root with this generation. A lookup of `..` must return
/// the same one, or the kernel takes the root for a stale inode.
const ROOT_GENERATION: Generation = Generation(0);
/// Longest name in a directory, for `statfs`; a VDI's name and tag are shorter.
const NAME_MAX: u32 = 255;

/// Maps kernel requests to calls of the tree.
pub(crate) struct Adapter {
    tree: Arc<Tree>,
    dispatcher: Dispatcher,
    owner: Ownership,
    directories: OpenDirectories,
    lookups: Arc<Lookups>,
    truncating_opens: Arc<TruncatingOpens>,
    /// Differs from mount to mount: an ino is never reused within one, but the
    /// next mount starts from the beginning, and a file handle from this one must
    /// not resolve to another volume there.
    generation: Generation,
    event_loops: Arc<EventLoops>,
}

impl Adapter {
    pub(crate) fn new(
        tree: Arc<Tree>,
        dispatcher: Dispatcher,
        owner: Ownership,
        event_loops: Arc<EventLoops>,
    ) -> Self {
        Self {
            tree,
            dispatcher,
            owner,
            directories: OpenDirectories::default(),
            lookups: Arc::default(),
            truncating_opens: Arc::default(),
            generation: random_generation(),
            event_loops,
        }
    }
}

/// The kernel keeps 32 bits of a generation.
fn random_generation() -> Generation {
    Generation(RandomState::new().hash_one(()) & u64::from(u32::MAX))
}

fn info(operation: &'static str, request: &Request, ino: INodeNo) -> RequestInfo {
    range_info(operation, request, ino, 0, 0)
}

fn range_info(
    operation: &'static str,
    request: &Request,
    ino: INodeNo,
    offset: u64,
    len: u64,
) -> RequestInfo {
    RequestInfo {
        operation,
        request: request.unique().0,
        pid: request.pid(),
        ino: ino.0,
        offset,
        len,
    }
}

impl Filesystem for Adapter {
    fn init(&mut self, _request: &Request, config: &mut KernelConfig) -> io::Result<()> {
        init::negotiate(config);
        Ok(())
    }

    fn lookup(&self, request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let info = info("lookup", request, parent);
        let (tree, owner, name) = (Arc::clone(&self.tree), self.owner, name.as_bytes().to_vec());
        let (lookups, opens) = (
            Arc::clone(&self.lookups),
            Arc::clone(&self.truncating_opens),
        );
        let (thread, started) = (request.pid(), Instant::now());
        let generation = self.generation;
        let work = async move { Ok(tree.lookup(convert::ino(parent), &name).await?) };
        self.dispatcher
            .run(info, reply, work, move |reply, attributes| {
                opens.on_lookup(thread, INodeNo(attributes.ino.0));
                let entry_ttl = convert::entry_ttl(&attributes);
                let attr = owner.entry_attr(&attributes);
                if attributes.node != attributes.ino {
                    lookups.record(thread, attr.ino, started);
                }
                let generation = match attributes.node {
                    Ino::ROOT => ROOT_GENERATION,
                    _ => generation,
                };
                reply.entry_with_ttls(&attributes.ttl, &entry_ttl, &attr, generation);
            });
    }

    fn getattr(&self, request: &Request, ino: INodeNo, _fh: Option<FileHandle>, reply: ReplyAttr) {
        let info = info("getattr", request, ino);
        let (tree, owner) = (Arc::clone(&self.tree), self.owner);
        let work = async move { Ok(tree.attributes(convert::ino(ino)).await?) };
        self.dispatcher
            .run(info, reply, work, move |reply, attributes| {
                reply.attr(&attributes.ttl, &owner.file_attr(&attributes));
            });
    }

    fn setattr(
        &self,
        request: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        _atime: Option<TimeOrNow>,
        _mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        fh: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let info = range_info("setattr", request, ino, 0, size.unwrap_or(0));
        let (tree, owner) = (Arc::clone(&self.tree), self.owner);
        // A truncation without a handle may be the second half of an open with O_TRUNC.
        let handle = match (fh, size) {
            (None, Some(0)) => self.truncating_opens.take_truncating(request.pid(), ino),
            _ => fh,
        };
        let work = async move {
            let ino = convert::ino(ino);
            let attributes = tree.attributes(ino).await?;
            // Times are accepted and ignored; mode and owner must be what they are.
            if !owner.allows_setattr(&attributes, mode, uid, gid) {
                return Err(ReplyError::Refused(Errno::EPERM));
            }
            match size {
                Some(size) => Ok(tree
                    .set_size(ino, size, handle.map(convert::handle))
                    .await?),
                None => Ok(attributes),
            }
        };
        self.dispatcher
            .run(info, reply, work, move |reply, attributes| {
                reply.attr(&attributes.ttl, &owner.file_attr(&attributes));
            });
    }

    fn open(&self, request: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        let info = info("open", request, ino);
        let mode = convert::open_mode(flags);
        let tree = Arc::clone(&self.tree);
        let since = self.lookups.opened_since(request.pid(), ino);
        let work = async move { Ok(tree.files().open(convert::ino(ino), mode, since).await?) };
        let (opens, thread) = (Arc::clone(&self.truncating_opens), request.pid());
        self.dispatcher
            .run(info, reply, work, move |reply, opened| {
                let handle = FileHandle(opened.handle.0);
                if mode.write {
                    opens.on_open(thread, ino, handle);
                }
                reply.opened(handle, convert::open_flags(opened));
            });
    }

    fn read(
        &self,
        request: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let info = range_info("read", request, ino, offset, size.into());
        let on_success = |reply: ReplyData, data: Bytes| reply.data(&data);
        // The kernel sets the lock owner for read(2), not for filling its page cache.
        let for_page_cache = lock_owner.is_none();
        let completion = self.dispatcher.completion(info, reply, on_success);
        let Some(completion) = completion else {
            return;
        };
        let _runtime = self.dispatcher.runtime().enter();
        let handle = convert::handle(fh);
        let files = self.tree.files();
        files.read(handle, offset, size, for_page_cache, completion);
    }

    /// The tree copies the payload once, because fuser reuses its buffer as soon as
    /// this returns.
    fn write(
        &self,
        request: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        data: &[u8],
        write_flags: WriteFlags,
        flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        if self.event_loops.take_write(request.pid()) {
            return reply.written(data.len().try_into().unwrap_or(u32::MAX));
        }
        let info = range_info("write", request, ino, offset, data.len() as u64);
        let completion = self.dispatcher.completion(info, reply, ReplyWrite::written);
        let Some(completion) = completion else {
            return;
        };
        let _runtime = self.dispatcher.runtime().enter();
        let handle = convert::handle(fh);
        let files = self.tree.files();
        if write_flags.contains(WriteFlags::FUSE_WRITE_CACHE) {
            return files.write_mapped(handle, offset, data, completion);
        }
        self.truncating_opens.on_use(fh);
        let direct = convert::is_direct(flags);
        files.write(handle, offset, data, direct, completion);
    }

    fn flush(
        &self,
        request: &Request,
        ino: INodeNo,
        fh: FileHandle,
        _lock_owner: LockOwner,
        reply: ReplyEmpty,
    ) {
        let info = info("flush", request, ino);
        let tree = Arc::clone(&self.tree);
        let work = async move { Ok(tree.files().flush(convert::handle(fh)).await?) };
        self.dispatcher
            .run(info, reply, work, |reply, ()| reply.ok());
    }

    fn release(
        &self,
        _request: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        let _inside = self.dispatcher.runtime().enter();
        self.truncating_opens.on_use(fh);
        self.tree.files().release(convert::handle(fh));
        reply.ok();
    }

    fn fsync(
        &self,
        request: &Request,
        ino: INodeNo,
        fh: FileHandle,
        _datasync: bool,
        reply: ReplyEmpty,
    ) {
        let info = info("fsync", request, ino);
        let tree = Arc::clone(&self.tree);
        let work = async move { Ok(tree.files().sync(convert::handle(fh)).await?) };
        self.dispatcher
            .run(info, reply, work, |reply, ()| reply.ok());
    }

    fn opendir(&self, _request: &Request, _ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        reply.opened(self.directories.open(), FopenFlags::empty());
    }

    fn readdir(
        &self,
        request: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        reply: ReplyDirectory,
    ) {
        let info = range_info("readdir", request, ino, offset, 0);
        let listing = if offset == 0 {
            let entries = self.tree.readdir(convert::ino(ino));
            entries.map(|entries| self.directories.restart(fh, entries))
        } else {
            Ok(self.directories.listing(fh))
        };
        finish(
            info,
            reply,
            listing.map_err(ReplyError::Tree),
            |mut reply, listing| {
                fill(&mut reply, ino, offset, &listing);
                reply.ok();
            },
        );
    }

    fn releasedir(
        &self,
        _request: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        _flags: OpenFlags,
        reply: ReplyEmpty,
    ) {
        self.directories.close(fh);
        reply.ok();
    }

    /// Directories have no data of their own to sync.
    fn fsyncdir(
        &self,
        _request: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _datasync: bool,
        reply: ReplyEmpty,
    ) {
        reply.ok();
    }

    fn statfs(&self, request: &Request, ino: INodeNo, reply: ReplyStatfs) {
        let info = info("statfs", request, ino);
        let tree = Arc::clone(&self.tree);
        let work = async move { Ok(tree.statfs().await?) };
        self.dispatcher.run(info, reply, work, |reply, capacity| {
            let block = u64::from(convert::STATFS_BLOCK_SIZE);
            let (total, free) = (capacity.total / block, capacity.free / block);
            let size = convert::STATFS_BLOCK_SIZE;
            reply.statfs(total, free, free, 0, 0, size, NAME_MAX, size);
        });
    }

    fn fallocate(
        &self,
        request: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        let info = range_info("fallocate", request, ino, offset, length);
        let (what, size_change) = match convert::allocate_mode(mode) {
            Ok(known) => known,
            Err(errno) => return reply_errno(info, reply, errno),
        };
        let tree = Arc::clone(&self.tree);
        let work = async move {
            let handle = convert::handle(fh);
            if size_change == SizeChange::MayGrow {
                tree.files()
                    .extend(handle, offset.saturating_add(length))
                    .await?;
            }
            Ok(tree.files().allocate(handle, what, offset, length).await?)
        };
        self.dispatcher
            .run(info, reply, work, |reply, ()| reply.ok());
    }

    fn create(
        &self,
        request: &Request,
        parent: INodeNo,
        _name: &OsStr,
        _mode: u32,
        _umask: u32,
        _flags: i32,
        reply: ReplyCreate,
    ) {
        reply_errno(info("create", request, parent), reply, Errno::EPERM);
    }

    fn mknod(
        &self,
        request: &Request,
        parent: INodeNo,
        _name: &OsStr,
        _mode: u32,
        _umask: u32,
        _rdev: u32,
        reply: ReplyEntry,
    ) {
        reply_errno(info("mknod", request, parent), reply, Errno::EPERM);
    }

    fn mkdir(
        &self,
        request: &Request,
        parent: INodeNo,
        _name: &OsStr,
        _mode: u32,
        _umask: u32,
        reply: ReplyEntry,
    ) {
        reply_errno(info("mkdir", request, parent), reply, Errno::EPERM);
    }

    fn symlink(
        &self,
        request: &Request,
        parent: INodeNo,
        _link_name: &OsStr,
        _target: &Path,
        reply: ReplyEntry,
    ) {
        reply_errno(info("symlink", request, parent), reply, Errno::EPERM);
    }

    fn link(
        &self,
        request: &Request,
        ino: INodeNo,
        _newparent: INodeNo,
        _newname: &OsStr,
        reply: ReplyEntry,
    ) {
        reply_errno(info("link", request, ino), reply, Errno::EPERM);
    }

    fn rename(
        &self,
        request: &Request,
        parent: INodeNo,
        _name: &OsStr,
        _newparent: INodeNo,
        _newname: &OsStr,
        _flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        reply_errno(info("rename", request, parent), reply, Errno::EPERM);
    }

    fn unlink(&self, request: &Request, parent: INodeNo, _name: &OsStr, reply: ReplyEmpty) {
        reply_errno(info("unlink", request, parent), reply, Errno::EPERM);
    }

    fn rmdir(&self, request: &Request, parent: INodeNo, _name: &OsStr, reply: ReplyEmpty) {
        reply_errno(info("rmdir", request, parent), reply, Errno::EPERM);
    }

    /// There are no symbolic links.
    fn readlink(&self, request: &Request, ino: INodeNo, reply: ReplyData) {
        reply_errno(info("readlink", request, ino), reply, Errno::EINVAL);
    }

    /// The kernel checks permissions itself (`default_permissions`).
    fn access(&self, request: &Request, ino: INodeNo, _mask: AccessFlags, reply: ReplyEmpty) {
        reply_errno(info("access", request, ino), reply, Errno::ENOSYS);
    }

    fn getxattr(
        &self,
        request: &Request,
        ino: INodeNo,
        name: &OsStr,
        size: u32,
        reply: ReplyXattr,
    ) {
        let info = range_info("getxattr", request, ino, 0, size.into());
        let attributes = self.tree.list_xattrs(convert::ino(ino));
        let value = attributes
            .map_err(ReplyError::Tree)
            .and_then(|attributes| xattr::value(attributes, name));
        let sized_reply = value.and_then(|value| xattr::sized_reply(value, size));
        finish(info, reply, sized_reply, xattr::reply);
    }

    fn listxattr(&self, request: &Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        let info = range_info("listxattr", request, ino, 0, size.into());
        let attributes = self.tree.list_xattrs(convert::ino(ino));
        let sized_reply = attributes
            .map_err(ReplyError::Tree)
            .and_then(|attributes| xattr::sized_reply(xattr::names(&attributes), size));
        finish(info, reply, sized_reply, xattr::reply);
    }

    fn setxattr(
        &self,
        request: &Request,
        ino: INodeNo,
        name: &OsStr,
        _value: &[u8],
        _flags: i32,
        _position: u32,
        reply: ReplyEmpty,
    ) {
        reply_errno(info("setxattr", request, ino), reply, xattr::refusal(name));
    }

    fn removexattr(&self, request: &Request, ino: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let errno = xattr::refusal(name);
        reply_errno(info("removexattr", request, ino), reply, errno);
    }

    fn lseek(
        &self,
        request: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: i64,
        whence: i32,
        reply: ReplyLseek,
    ) {
        let info = range_info("lseek", request, ino, offset.unsigned_abs(), 0);
        let (to, offset) = match (convert::seek_to(whence), u64::try_from(offset)) {
            (Some(to), Ok(offset)) => (to, offset),
            (None, _) => return reply_errno(info, reply, Errno::EINVAL),
            // A negative offset is outside of the file, as lseek(2) says.
            (_, Err(_)) => return reply_errno(info, reply, Errno::ENXIO),
        };
        let tree = Arc::clone(&self.tree);
        let work = async move {
            let found = tree.files().seek(convert::handle(fh), offset, to).await?;
            i64::try_from(found).map_err(|_| ReplyError::Refused(Errno::EOVERFLOW))
        };
        self.dispatcher.run(info, reply, work, ReplyLseek::offset);
    }

    fn copy_file_range(
        &self,
        request: &Request,
        ino_in: INodeNo,
        _fh_in: FileHandle,
        _offset_in: u64,
        _ino_out: INodeNo,
        _fh_out: FileHandle,
        _offset_out: u64,
        _len: u64,
        _flags: CopyFileRangeFlags,
        reply: ReplyWrite,
    ) {
        reply_errno(
            info("copy_file_range", request, ino_in),
            reply,
            Errno::ENOSYS,
        );
    }

    /// isatty(3) calls this on any file.
    fn ioctl(
        &self,
        request: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        _flags: IoctlFlags,
        _cmd: u32,
        _in_data: &[u8],
        _out_size: u32,
        reply: ReplyIoctl,
    ) {
        reply_errno(info("ioctl", request, ino), reply, Errno::ENOTTY);
    }

    fn poll(
        &self,
        request: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        _notifier: PollNotifier,
        _events: PollEvents,
        _flags: PollFlags,
        reply: ReplyPoll,
    ) {
        reply_errno(info("poll", request, ino), reply, Errno::ENOSYS);
    }
}

/// Adds entries from number `offset` on until the reply is full. `.` and `..`
/// are entries 0 and 1; the kernel knows itself where `..` leads.
fn fill(reply: &mut ReplyDirectory, ino: INodeNo, offset: u64, listing: &[Entry]) {
    let dots = [".", ".."].map(|name| (ino, FileType::Directory, OsStr::new(name)));
    let entries = listing.iter().map(|entry| {
        let name = OsStr::from_bytes(&entry.name);
        (INodeNo(entry.ino.0), convert::file_type(entry.kind), name)
    });
    let skipped = usize::try_from(offset).unwrap_or(usize::MAX);
    let rest = dots.into_iter().chain(entries).zip(1..).skip(skipped);
    for ((ino, kind, name), next) in rest {
        if reply.add(ino, next, kind, name) {
            break;
        }
    }
}
