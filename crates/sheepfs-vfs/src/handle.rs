//! Open files.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, RwLock};

use bytes::Bytes;

use crate::error::FsError;
use crate::file_end::FileEnd;
use crate::ino::{HandleId, Ino};
use crate::node::{Command, Setting};
use crate::report::ReportText;
use crate::volume::{BlockDevice as _, Volume, VolumeError, VolumeWriter};

/// What a handle leads to.
#[derive(Clone, Debug)]
pub(crate) enum OpenFile {
    /// A report as it was when it was opened, and its file.
    Text(Ino, Arc<ReportText>),
    Command(Command),
    /// A setting, and its text when it was opened.
    Setting(Setting, Bytes),
    Volume(Arc<OpenVolume>),
}

/// A volume, and what its handle knows besides.
#[derive(Debug)]
pub(crate) struct OpenVolume {
    pub(crate) ino: Ino,
    pub(crate) volume: Arc<Volume>,
    pub(crate) io_mode: IoMode,
    pub(crate) end: FileEnd,
}

impl OpenVolume {
    /// Writes to the volume, through its write-back cache if the handle is buffered
    /// and the write not `direct`.
    pub(crate) fn write(
        &self,
        offset: u64,
        data: &[u8],
        direct: bool,
        done: impl FnOnce(Result<u32, FsError>) + Send + 'static,
    ) {
        let done = |written: Result<_, VolumeError>| done(written.map_err(FsError::from));
        match &self.io_mode {
            IoMode::Buffered(writer) if !direct => writer.submit_write(offset, data, done),
            IoMode::Buffered(_) | IoMode::Direct => {
                let data = Bytes::copy_from_slice(data);
                self.volume.submit_write(offset, data, done);
            }
        }
    }
}

/// How a handle writes.
#[derive(Clone, Debug)]
pub(crate) enum IoMode {
    /// What is acknowledged is on the cluster.
    Direct,
    /// Through the kernel's page cache and the volume's write-back cache: what is
    /// acknowledged is on the cluster after the next flush or sync. The writer
    /// knows which errors of write-back this handle has reported.
    Buffered(Arc<VolumeWriter>),
}

impl IoMode {
    /// Waits until what was written is on the cluster and nothing is in flight, or
    /// no sheep is reachable.
    ///
    /// # Errors
    /// Those of write-back, until a sync has reported them.
    pub(crate) async fn flush(&self, volume: &Volume) -> Result<(), FsError> {
        volume.flush_unless_offline().await;
        match self {
            Self::Direct => Ok(()),
            Self::Buffered(writer) => Ok(writer.check()?),
        }
    }

    /// Waits until what was written is as durable as the cluster makes it.
    ///
    /// # Errors
    /// Those of write-back, each once, and as [`Volume`]'s flush.
    pub(crate) async fn sync(&self, volume: &Arc<Volume>) -> Result<(), FsError> {
        match self {
            Self::Direct => Ok(volume.flush().await?),
            Self::Buffered(writer) => Ok(writer.sync().await?),
        }
    }
}

/// All open files of a tree.
#[derive(Debug, Default)]
pub(crate) struct Handles {
    next: AtomicU64,
    open: RwLock<HashMap<u64, (Ino, OpenFile)>>,
}

impl Handles {
    pub(crate) fn insert(&self, ino: Ino, file: OpenFile) -> HandleId {
        let handle = self.next.fetch_add(1, Ordering::Relaxed);
        self.open
            .write()
            .expect("no one panics with the handles")
            .insert(handle, (ino, file));
        HandleId(handle)
    }

    pub(crate) fn get(&self, handle: HandleId) -> Option<OpenFile> {
        let open = self.open.read().expect("no one panics with the handles");
        open.get(&handle.0).map(|(_, file)| file.clone())
    }

    pub(crate) fn remove(&self, handle: HandleId) {
        self.open
            .write()
            .expect("no one panics with the handles")
            .remove(&handle.0);
    }

    /// Whether all handles of `file` have this text.
    pub(crate) fn all_have(&self, file: Ino, text: &Arc<ReportText>) -> bool {
        let open = self.open.read().expect("no one panics with the handles");
        open.values().all(|(_, other)| match other {
            OpenFile::Text(of, other) => *of != file || Arc::ptr_eq(other, text),
            OpenFile::Command(_) | OpenFile::Setting(..) | OpenFile::Volume(..) => true,
        })
    }

    /// Whether any handle leads to `ino`.
    pub(crate) fn is_open(&self, ino: Ino) -> bool {
        let open = self.open.read().expect("no one panics with the handles");
        open.values().any(|(of, _)| *of == ino)
    }
}
