//! Exports, by name.

use std::convert::Infallible;
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use sheepfs_vfs::{BlockDevice, VolumeError};

use crate::protocol::handshake::OptionError;
use crate::protocol::reply::StatusExtent;

/// Why an export cannot be used; the text is sent to the client.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ExportError {
    /// There is no export of this name.
    #[error("{0}")]
    Unknown(String),
    /// Another client of the cluster holds its lock.
    #[error("{0}")]
    InUse(String),
    /// The lookup or the open failed.
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

/// Properties of an export.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Description {
    /// Size in bytes.
    pub size: u64,
    /// Whether it can be written.
    pub is_writable: bool,
    /// Description for users, may be empty.
    pub text: String,
}

/// A query for metadata contexts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ContextQuery<'a> {
    /// All contexts.
    All,
    /// Contexts with this prefix.
    Prefix(&'a [u8]),
    /// The context of this name.
    Exact(&'a [u8]),
}

impl ContextQuery<'_> {
    /// Whether a context of this name matches.
    pub fn matches(&self, name: &[u8]) -> bool {
        match *self {
            Self::All => true,
            Self::Prefix(prefix) => name.starts_with(prefix),
            Self::Exact(exact) => name == exact,
        }
    }
}

/// An export in use by one connection; dropping it releases the export.
pub trait Export: Send + Sync + 'static {
    /// The device that has the data.
    type Device: BlockDevice;
    /// An open metadata context.
    type Context: Send + Sync;

    /// The device that has the data.
    fn device(&self) -> &Arc<Self::Device>;

    /// Opens the metadata context of this name, other than `base:allocation`; `None` if
    /// it does not exist.
    ///
    /// # Errors
    /// If the lookup fails.
    fn open_context(
        &self,
        name: &[u8],
    ) -> impl Future<Output = Result<Option<Self::Context>, ExportError>> + Send;

    /// Revalidates the cached extents of a range, before a block status.
    ///
    /// # Errors
    /// The error of the device.
    fn revalidate(&self, range: Range<u64>)
    -> impl Future<Output = Result<(), VolumeError>> + Send;

    /// The first `max` extents of a range in a context, contiguous from its start, not
    /// past its end.
    ///
    /// # Errors
    /// The error of the device.
    fn extents(
        &self,
        context: &Self::Context,
        range: Range<u64>,
        max: usize,
    ) -> impl Future<Output = Result<Vec<StatusExtent>, VolumeError>> + Send;
}

/// A set of exports.
pub trait Exports: Send + Sync + 'static {
    /// An open export.
    type Export: Export;

    /// Names, each with its description, which may be empty.
    ///
    /// # Errors
    /// `Failed`.
    fn list(&self) -> impl Future<Output = Result<Vec<(Bytes, String)>, ExportError>> + Send;

    /// Describes the export of this name without opening it.
    ///
    /// # Errors
    /// `Unknown`, `Failed`.
    fn describe(
        &self,
        name: &[u8],
    ) -> impl Future<Output = Result<Description, ExportError>> + Send;

    /// The metadata contexts of an export that match a query, besides
    /// `base:allocation`.
    ///
    /// # Errors
    /// `Unknown`, `Failed`.
    fn contexts(
        &self,
        name: &[u8],
        queries: &[ContextQuery<'_>],
    ) -> impl Future<Output = Result<Vec<Bytes>, ExportError>> + Send;

    /// Opens the export of this name.
    ///
    /// # Errors
    /// `Unknown`, `InUse`, `Failed`.
    fn open(
        &self,
        name: &[u8],
    ) -> impl Future<Output = Result<Arc<Self::Export>, ExportError>> + Send;
}

/// A block device with only the context `base:allocation`.
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
        _queries: &[ContextQuery<'_>],
    ) -> Result<Vec<Bytes>, ExportError> {
        Ok(Vec::new())
    }

    async fn open(&self, name: &[u8]) -> Result<Arc<DeviceExport<D>>, ExportError> {
        self.find(name).cloned()
    }
}
