//! Opening files, and what is done with a handle.

use std::sync::Arc;

use bytes::Bytes;
use tokio::time::Instant;

use super::Tree;
use crate::attributes::{AllocateMode, OpenMode, Opened, SeekTo};
use crate::error::{Completion, FsError};
use crate::handle::{IoMode, OpenFile};
use crate::ino::{HandleId, Ino};
use crate::node::Node;
use crate::volume::{BlockDevice as _, Volume, VolumeError};

impl Tree {
    /// Opens a file. A report's text stays as it is for the handle, and is as new
    /// as `since`: the present, or when the caller, which has looked the file up
    /// on its way, began to do so.
    ///
    /// # Errors
    /// `Access` to write a report, `ReadOnly` to write a snapshot, `Cluster`
    /// when a report cannot be made, `Stale` for a volume whose VDI is gone.
    pub async fn open(&self, ino: Ino, mode: OpenMode, since: Instant) -> Result<Opened, FsError> {
        let node = self.node(ino)?;
        let io_mode = match &node {
            Node::Volume(volume) if self.settings().page_cache => {
                IoMode::Buffered(Arc::new(volume.writer()))
            }
            _ => IoMode::Direct,
        };
        let direct_io = matches!(io_mode, IoMode::Direct);
        let file = match node {
            Node::Directory(_) => return Err(FsError::IsDirectory),
            Node::Report(..) if mode.write => return Err(FsError::Access),
            Node::Report(..) => {
                let (text, changed) = self.reports.open(ino, since).await?;
                if changed && !self.tell_text(ino, &text).await {
                    self.reports.hide(ino);
                }
                OpenFile::Text(ino, text)
            }
            Node::Command(command) => OpenFile::Command(command),
            Node::Setting(setting) => OpenFile::Setting(setting, self.setting_text(setting)),
            Node::Volume(volume) => {
                if mode.write && !volume.is_writable() {
                    return Err(read_only(&volume));
                }
                volume.revalidate().await?;
                OpenFile::Volume(volume, io_mode)
            }
        };
        // Held so that the volume is not detached between look and entry.
        let attached = self.attached();
        if let OpenFile::Volume(volume, _) = &file {
            match attached.by_ino.get(&ino) {
                Some(now) if Arc::ptr_eq(now, volume) => {}
                // Another one was attached under the name meanwhile. The kernel
                // looks the path up again.
                Some(_) => return Err(VolumeError::Stale(volume.selector().to_string()).into()),
                None => return Err(FsError::NoEntry),
            }
        }
        Ok(Opened {
            handle: self.handles.insert(ino, file),
            direct_io,
        })
    }

    /// Reads up to `len` bytes at byte `offset` and runs `done` with them;
    /// fewer at the end of the file, none behind it. Does not block. What is read
    /// for the page cache is what every handle of the file has, or `Superseded`.
    pub fn read(
        &self,
        handle: HandleId,
        offset: u64,
        len: u32,
        for_page_cache: bool,
        done: Completion<Bytes>,
    ) {
        match self.handles.get(handle) {
            None => done(Err(FsError::BadHandle)),
            Some(OpenFile::Volume(volume, _)) => {
                volume.submit_read(offset, len, |read| done(read.map_err(FsError::from)));
            }
            // The next handle would find these bytes without asking.
            Some(OpenFile::Text(file, text))
                if for_page_cache
                    && !(self.reports.shows(file, &text) && self.handles.all_have(file, &text)) =>
            {
                done(Err(FsError::Superseded));
            }
            Some(OpenFile::Text(_, text)) => done(Ok(part(&text.bytes, offset, len))),
            Some(OpenFile::Setting(_, text)) => done(Ok(part(&text, offset, len))),
            Some(OpenFile::Command(_)) => done(Ok(Bytes::new())),
        }
    }

    /// Writes `data` at byte `offset` and runs `done` with the number of bytes
    /// taken. Does not block. A command file takes one line, at any offset. What
    /// is written to a cached volume may still be on its way then, unless the
    /// write is `direct`.
    pub fn write(
        self: &Arc<Self>,
        handle: HandleId,
        offset: u64,
        data: &[u8],
        direct: bool,
        done: Completion<u32>,
    ) {
        let file = match self.handles.get(handle) {
            None => return done(Err(FsError::BadHandle)),
            Some(OpenFile::Volume(volume, io_mode)) => {
                let done = |written: Result<_, VolumeError>| done(written.map_err(FsError::from));
                return match io_mode {
                    IoMode::Buffered(writer) if !direct => writer.submit_write(offset, data, done),
                    IoMode::Buffered(_) | IoMode::Direct => {
                        let data = Bytes::copy_from_slice(data);
                        volume.submit_write(offset, data, done);
                    }
                };
            }
            Some(OpenFile::Text(..)) => return done(Err(FsError::Access)),
            Some(file) => file,
        };
        let (tree, data) = (Arc::clone(self), data.to_vec());
        self.runtime.spawn(async move {
            let outcome = match file {
                OpenFile::Command(command) => tree.command(command, &data).await,
                OpenFile::Setting(setting, _) => tree.change_setting(setting, &data).await,
                OpenFile::Volume(..) | OpenFile::Text(..) => Err(FsError::BadHandle),
            };
            done(outcome.map(|()| u32::try_from(data.len()).unwrap_or(u32::MAX)));
        });
    }

    /// Waits until everything written before is as durable as the cluster makes it.
    ///
    /// # Errors
    /// `BadHandle`, and as [`Volume`]'s flush.
    pub async fn sync(&self, handle: HandleId) -> Result<(), FsError> {
        match self.handles.get(handle).ok_or(FsError::BadHandle)? {
            OpenFile::Volume(volume, io_mode) => io_mode.sync(&volume).await,
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
            OpenFile::Volume(volume, io_mode) => io_mode.flush(&volume).await,
            OpenFile::Text(..) | OpenFile::Command(_) | OpenFile::Setting(..) => Ok(()),
        }
    }

    /// Forgets a handle.
    pub fn release(&self, handle: HandleId) {
        self.handles.remove(handle);
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
        let volume = self.open_volume(handle)?;
        match mode {
            AllocateMode::Allocate if !volume.is_writable() => Err(read_only(&volume)),
            AllocateMode::Allocate if offset.saturating_add(len) > volume.size() => {
                Err(VolumeError::EndOfDevice(offset.saturating_add(len)).into())
            }
            // Space is taken when it is written, as the cluster does it.
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
        let volume = self.open_volume(handle)?;
        volume.flush_dirty().await;
        volume.refresh().await?;
        Ok(match to {
            SeekTo::Data => volume.seek_data(offset)?,
            SeekTo::Hole => volume.seek_hole(offset)?,
        })
    }

    fn open_volume(&self, handle: HandleId) -> Result<Arc<Volume>, FsError> {
        match self.handles.get(handle).ok_or(FsError::BadHandle)? {
            OpenFile::Volume(volume, _) => Ok(volume),
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
