//! What a server serves: exports, by their names.

use std::convert::Infallible;
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use sheepfs_vfs::{BlockDevice, VolumeError};

use crate::protocol::handshake::OptionError;
use crate::protocol::reply::StatusExtent;

/// Why an export cannot be used. The text is for the client.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ExportError {
    /// There is none of that name.
    #[error("{0}")]
    Unknown(String),
    /// It exists, and somebody else has it.
    #[error("{0}")]
    InUse(String),
    /// It could not be found out whether it exists, or it could not be opened.
    #[error("{0}")]
    Failed(String),
}

impl ExportError {
    /// The error of the handshake.
    pub fn code(&self) -> OptionError {
        match self {
            Self::Unknown(_) | Self::Failed(_) => OptionError::Unknown,
            Self::InUse(_) => OptionError::Policy,
        }
    }
}

/// What clients may know of an export before they use it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Description {
    /// Its bytes.
    pub size: u64,
    /// Whether it can be written.
    pub is_writable: bool,
    /// Words about it for people, or none.
    pub text: String,
}

/// Which metadata contexts of an export are asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ContextQuery<'a> {
    /// All.
    All,
    /// Those whose names begin so.
    Prefix(&'a [u8]),
    /// The one of this name.
    Exact(&'a [u8]),
}

impl ContextQuery<'_> {
    /// Whether a context of that name is asked for.
    pub fn matches(&self, name: &[u8]) -> bool {
        match *self {
            Self::All => true,
            Self::Prefix(prefix) => name.starts_with(prefix),
            Self::Exact(exact) => name == exact,
        }
    }
}

/// A device in use by at least one client. It is given back by dropping it.
pub trait Export: Send + Sync + 'static {
    /// What holds its bytes.
    type Device: BlockDevice;
    /// A metadata context that was opened.
    type Context: Send + Sync;

    /// What holds its bytes.
    fn device(&self) -> &Arc<Self::Device>;

    /// Opens the metadata context of that name, other than `base:allocation`; `None`
    /// when there is none (any more).
    ///
    /// # Errors
    /// When that cannot be found out.
    fn open_context(
        &self,
        name: &[u8],
    ) -> impl Future<Output = Result<Option<Self::Context>, ExportError>> + Send;

    /// Notices what was done to a range elsewhere before this call, before its
    /// extents are looked at.
    ///
    /// # Errors
    /// When that cannot be found out.
    fn revalidate(&self, range: Range<u64>)
    -> impl Future<Output = Result<(), VolumeError>> + Send;

    /// The extents of a range in a context, at most `max`, from its start on without
    /// gaps; none past its end.
    ///
    /// # Errors
    /// When they cannot be found out.
    fn extents(
        &self,
        context: &Self::Context,
        range: Range<u64>,
        max: usize,
    ) -> impl Future<Output = Result<Vec<StatusExtent>, VolumeError>> + Send;
}

/// A set of exports.
pub trait Exports: Send + Sync + 'static {
    /// One of them.
    type Export: Export;

    /// Names, and words about each or none.
    ///
    /// # Errors
    /// When they cannot be found out.
    fn list(&self) -> impl Future<Output = Result<Vec<(Bytes, String)>, ExportError>> + Send;

    /// Describes the export of that name without using it.
    ///
    /// # Errors
    /// When there is none, or that cannot be found out.
    fn describe(
        &self,
        name: &[u8],
    ) -> impl Future<Output = Result<Description, ExportError>> + Send;

    /// The metadata contexts of an export besides `base:allocation`.
    ///
    /// # Errors
    /// When they cannot be found out.
    fn contexts(
        &self,
        name: &[u8],
        query: ContextQuery<'_>,
    ) -> impl Future<Output = Result<Vec<Bytes>, ExportError>> + Send;

    /// Begins to use the export of that name.
    ///
    /// # Errors
    /// When there is none, somebody else has it, or it cannot be opened.
    fn open(
        &self,
        name: &[u8],
    ) -> impl Future<Output = Result<Arc<Self::Export>, ExportError>> + Send;
}

/// A block device with the one context that every device has.
#[derive(Debug)]
pub struct DeviceExport<D>(Arc<D>);

impl<D: BlockDevice> Export for DeviceExport<D> {
    type Device = D;
    type Context = Infallible;

    fn device(&self) -> &Arc<D> {
        &self.0
    }

    async fn open_context(&self, _name: &[u8]) -> Result<Option<Infallible>, ExportError> {
        Ok(None)
    }

    async fn revalidate(&self, _range: Range<u64>) -> Result<(), VolumeError> {
        Ok(())
    }

    async fn extents(
        &self,
        context: &Infallible,
        _range: Range<u64>,
        _max: usize,
    ) -> Result<Vec<StatusExtent>, VolumeError> {
        match *context {}
    }
}

/// Block devices that are open all the time.
#[derive(Debug)]
pub struct DeviceExports<D>(Vec<(Bytes, Arc<DeviceExport<D>>)>);

impl<D: BlockDevice> DeviceExports<D> {
    /// Exports devices under names.
    pub fn new(devices: impl IntoIterator<Item = (Bytes, Arc<D>)>) -> Self {
        let devices = devices.into_iter();
        Self(
            devices
                .map(|(name, device)| (name, Arc::new(DeviceExport(device))))
                .collect(),
        )
    }

    fn find(&self, name: &[u8]) -> Result<&Arc<DeviceExport<D>>, ExportError> {
        let found = self.0.iter().find(|(known, _)| known == name);
        found.map(|(_, export)| export).ok_or_else(|| {
            ExportError::Unknown(format!("there is no export '{}'", name.escape_ascii()))
        })
    }
}

impl<D: BlockDevice> Exports for DeviceExports<D> {
    type Export = DeviceExport<D>;

    async fn list(&self) -> Result<Vec<(Bytes, String)>, ExportError> {
        let names = self.0.iter();
        Ok(names
            .map(|(name, _)| (name.clone(), String::new()))
            .collect())
    }

    async fn describe(&self, name: &[u8]) -> Result<Description, ExportError> {
        let device = &self.find(name)?.0;
        Ok(Description {
            size: device.size(),
            is_writable: device.is_writable(),
            text: String::new(),
        })
    }

    async fn contexts(
        &self,
        _name: &[u8],
        _query: ContextQuery<'_>,
    ) -> Result<Vec<Bytes>, ExportError> {
        Ok(Vec::new())
    }

    async fn open(&self, name: &[u8]) -> Result<Arc<DeviceExport<D>>, ExportError> {
        self.find(name).cloned()
    }
}
