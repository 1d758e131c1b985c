//! The calls on open files: open, read, write, flush, seek.

use std::sync::Arc;

use bytes::Bytes;
use tokio::runtime::Handle;
use tokio::time::Instant;

use super::handles::{Handles, OpenFile};
use super::kernel_cache::KernelCache;
use super::namespace::Namespace;
use super::open_volume::{IoMode, OpenVolume};
use super::report_files::ReportFiles;
use super::settings::Settings;
use super::volume_table::VolumeTable;
use crate::attributes::{AllocateMode, OpenMode, Opened, SeekTo};
use crate::command::CommandRunner;
use crate::error::FsError;
use crate::file_end::FileEnd;
use crate::ino::{HandleId, Ino};
use crate::node::FsNode;
use crate::volume::{BlockDevice as _, Volume, VolumeError};

/// The open files of a tree.
pub struct OpenFiles {
    pub(super) namespace: Arc<Namespace>,
    pub(super) volumes: Arc<VolumeTable>,
    pub(super) handles: Arc<Handles>,
    pub(super) reports: Arc<ReportFiles>,
    pub(super) settings: Arc<Settings>,
    pub(super) commands: Arc<CommandRunner>,
    pub(super) kernel: Arc<KernelCache>,
    /// Whether a write to a volume with page cache is on the cluster when it is
    /// acknowledged, as without.
    pub(super) write_through: bool,
    pub(super) runtime: Handle,
}

impl OpenFiles {
    /// Opens a file. A handle of a report keeps one text. The text is not older than
    /// `since`: the present, or the time at which the caller began to look the file up.
    ///
    /// # Errors
    /// `PermissionDenied` to write a report, `ReadOnly` to write a snapshot, `Cluster`
    /// when a report cannot be made, `Stale` for a volume of a deleted VDI.
    pub async fn open(&self, ino: Ino, mode: OpenMode, since: Instant) -> Result<Opened, FsError> {
        let node = self.namespace.node(ino)?;
        let page_cache = matches!(node, FsNode::Volume(_)) && self.settings.page_cache();
        // The error cursor of a buffered handle starts before the revalidation.
        let io_mode = match &node {
            FsNode::Volume(volume) if page_cache && !self.write_through => {
                IoMode::Buffered(volume.writer())
            }
            _ => IoMode::Direct,
        };
        let direct_io = !page_cache;
        // What the handle refers to, revalidated: a report text, a volume.
        let file = match node {
            FsNode::Directory(_) => return Err(FsError::IsDirectory),
            FsNode::Report(..) if mode.write => return Err(FsError::PermissionDenied),
            FsNode::Report(..) => {
                let (text, changed) = self.reports.open(ino, since).await?;
                if changed && !self.kernel.change_text(ino, &text).await {
                    self.reports.hide(ino);
                }
                OpenFile::Text(ino, text)
            }
            FsNode::Command(command) => OpenFile::Command(command),
            FsNode::Setting(setting) => OpenFile::Setting(setting, self.settings.text(setting)),
            FsNode::Volume(volume) => {
                if mode.write && !volume.is_writable() {
                    return Err(read_only(&volume));
                }
                volume.revalidate().await?;
                if !self.write_through {
                    self.settings.apply_object_cache(&volume).await;
                }
                OpenFile::Volume(Arc::new(OpenVolume {
                    ino,
                    volume,
                    io_mode,
                    kernel: Arc::clone(&self.kernel),
                    end: FileEnd::default(),
                }))
            }
        };
        let volume = match &file {
            OpenFile::Volume(open) => Some(Arc::clone(&open.volume)),
            OpenFile::Text(..) | OpenFile::Command(_) | OpenFile::Setting(..) => None,
        };
        // Insert the handle, for a volume under the lock of the volume table.
        let insert = || self.handles.insert(ino, file);
        let handle = match volume {
            // Since the lookup the volume may have been detached or replaced.
            Some(volume) => self.volumes.while_attached(ino, &volume, insert)?,
            None => insert(),
        };
        Ok(Opened { handle, direct_io })
    }

    /// Reads up to `len` bytes at byte `offset` and runs `completion` with them;
    /// fewer at the end of the file, none past it. Does not block, and `completion`
    /// must not, which may run on any thread. A read for the page
    /// cache fails with `Superseded` unless all handles of the file have the same text.
    pub fn read(
        &self,
        handle: HandleId,
        offset: u64,
        len: u32,
        for_page_cache: bool,
        completion: impl FnOnce(Result<Bytes, FsError>) + Send + 'static,
    ) {
        match self.handles.get(handle) {
            None => completion(Err(FsError::BadHandle)),
            Some(OpenFile::Volume(open)) => {
                open.volume
                    .submit_read(offset, len, |read| completion(read.map_err(FsError::from)));
            }
            // Cached pages would be served to the next handle without a query.
            Some(OpenFile::Text(file, text))
                if for_page_cache
                    && !(self.reports.shows(file, &text) && self.handles.all_have(file, &text)) =>
            {
                completion(Err(FsError::Superseded));
            }
            Some(OpenFile::Text(_, text)) => completion(Ok(part(&text.bytes, offset, len))),
            Some(OpenFile::Setting(_, text)) => completion(Ok(part(&text, offset, len))),
            Some(OpenFile::Command(_)) => completion(Ok(Bytes::new())),
        }
    }

    /// Writes `data` at byte `offset` and runs `completion` with the number of bytes
    /// taken. Does not block. A command file takes one line, at any offset. A write
    /// to a volume with page cache is buffered unless it is `direct`. A write past the
    /// end of a truncated handle first discards the gap between that end and `offset`.
    pub fn write(
        &self,
        handle: HandleId,
        offset: u64,
        data: &[u8],
        direct: bool,
        completion: impl FnOnce(Result<u32, FsError>) + Send + 'static,
    ) {
        let file = match self.handles.get(handle) {
            None => return completion(Err(FsError::BadHandle)),
            Some(OpenFile::Volume(open)) => {
                let range = offset..offset.saturating_add(data.len() as u64);
                if data.is_empty() || open.end.admit(&range) {
                    return open.write(offset, data, direct, completion);
                }
                let data = Bytes::copy_from_slice(data);
                self.runtime
                    .spawn(open.write_past_end(range, data, direct, completion));
                return;
            }
            Some(OpenFile::Text(..)) => return completion(Err(FsError::PermissionDenied)),
            Some(file) => file,
        };
        let (commands, settings) = (Arc::clone(&self.commands), Arc::clone(&self.settings));
        let data = data.to_vec();
        self.runtime.spawn(async move {
            let outcome = match file {
                OpenFile::Command(command) => commands.run(command, &data).await,
                OpenFile::Setting(setting, _) => settings.change(setting, &data).await,
                OpenFile::Volume(_) | OpenFile::Text(..) => Err(FsError::BadHandle),
            };
            completion(outcome.map(|()| u32::try_from(data.len()).unwrap_or(u32::MAX)));
        });
    }

    /// Writes pages that were changed through mmap(2), as [`Self::write`] does.
    /// The kernel picks any writable handle of the file, so the end that this handle
    /// has truncated to is ignored.
    pub fn write_mapped(
        &self,
        handle: HandleId,
        offset: u64,
        data: &[u8],
        completion: impl FnOnce(Result<u32, FsError>) + Send + 'static,
    ) {
        match self.handles.get(handle) {
            Some(OpenFile::Volume(open)) => open.write(offset, data, false, completion),
            Some(_) => completion(Err(FsError::Unsupported)),
            None => completion(Err(FsError::BadHandle)),
        }
    }

    /// Waits until everything written before is as durable as the cluster makes it.
    ///
    /// # Errors
    /// `BadHandle`, and as [`Volume`]'s flush.
    pub async fn sync(&self, handle: HandleId) -> Result<(), FsError> {
        match self.handles.get(handle).ok_or(FsError::BadHandle)? {
            OpenFile::Volume(open) => open.io_mode.sync(&open.volume).await,
            OpenFile::Text(..) | OpenFile::Command(_) | OpenFile::Setting(..) => Ok(()),
        }
    }

    /// Waits until everything written before is on the cluster, or no sheep is
    /// reachable, as close(2) does.
    ///
    /// # Errors
    /// `BadHandle`, and as [`Volume`]'s flush.
    pub async fn flush(&self, handle: HandleId) -> Result<(), FsError> {
        match self.handles.get(handle).ok_or(FsError::BadHandle)? {
            OpenFile::Volume(open) => open.io_mode.flush(&open.volume).await,
            OpenFile::Text(..) | OpenFile::Command(_) | OpenFile::Setting(..) => Ok(()),
        }
    }

    /// Releases a handle.
    pub fn release(&self, handle: HandleId) {
        self.handles.remove(handle);
    }

    /// Makes the file of a handle at least `len` bytes long, as fallocate(2) does
    /// without `FALLOC_FL_KEEP_SIZE`. The part by which a truncated file is extended
    /// reads as zeros.
    ///
    /// # Errors
    /// `Unsupported` on other files, and as [`Volume::set_size`] and
    /// [`Volume`]'s discard.
    pub async fn extend(&self, handle: HandleId, len: u64) -> Result<(), FsError> {
        self.open_volume(handle)?.extend(len).await
    }

    /// Allocates or zeroes a range of a volume.
    ///
    /// # Errors
    /// `Unsupported` on other files, `EndOfDevice` to allocate past the end, and
    /// as [`Volume`]'s discard.
    pub async fn allocate(
        &self,
        handle: HandleId,
        mode: AllocateMode,
        offset: u64,
        len: u64,
    ) -> Result<(), FsError> {
        let volume = &self.open_volume(handle)?.volume;
        match mode {
            AllocateMode::Allocate if !volume.is_writable() => Err(read_only(volume)),
            AllocateMode::Allocate if offset.saturating_add(len) > volume.size() => {
                Err(VolumeError::EndOfDevice(offset.saturating_add(len)).into())
            }
            // Objects are allocated by writes; this only checks the range.
            AllocateMode::Allocate => Ok(()),
            AllocateMode::PunchHole | AllocateMode::ZeroRange => {
                Ok(volume.discard(offset, len).await?)
            }
        }
    }

    /// Finds data or a hole in a volume, from byte `offset` on.
    ///
    /// # Errors
    /// `Unsupported` on other files, `NoMoreData`.
    pub async fn seek(&self, handle: HandleId, offset: u64, to: SeekTo) -> Result<u64, FsError> {
        let volume = &self.open_volume(handle)?.volume;
        volume.flush_dirty().await;
        volume.refresh().await?;
        Ok(match to {
            SeekTo::Data => volume.seek_data(offset)?,
            SeekTo::Hole => volume.seek_hole(offset)?,
        })
    }

    fn open_volume(&self, handle: HandleId) -> Result<Arc<OpenVolume>, FsError> {
        match self.handles.get(handle).ok_or(FsError::BadHandle)? {
            OpenFile::Volume(open) => Ok(open),
            OpenFile::Text(..) | OpenFile::Command(_) | OpenFile::Setting(..) => {
                Err(FsError::Unsupported)
            }
        }
    }
}

fn read_only(volume: &Volume) -> FsError {
    VolumeError::ReadOnly(volume.selector().to_string()).into()
}

/// Up to `len` bytes of a text at byte `offset`.
fn part(text: &Bytes, offset: u64, len: u32) -> Bytes {
    let start = usize::try_from(offset)
        .unwrap_or(usize::MAX)
        .min(text.len());
    let end = start.saturating_add(len as usize).min(text.len());
    text.slice(start..end)
}
