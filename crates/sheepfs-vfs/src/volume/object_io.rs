//! One request on the objects of one VID. Nothing here retries, and nothing knows
//! which VID is the head.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use sheep_client::unstable::{InFlightToken, Request};
use sheep_client::{Client, ClientError};
use sheep_proto::limits::DEFAULT_BLOCK_SIZE_SHIFT;
use sheep_proto::{ObjectIndex, Oid, Vid};

use super::extent::Extent;
use super::object_lock::ObjectLockGuard;

/// Whether a VID takes writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Probe {
    /// It is a head.
    Writable,
    /// It is a snapshot, or is becoming one.
    Frozen,
    /// It takes writes, and has no such object.
    NoObject,
}

/// Requests on data objects.
#[derive(Clone, Debug)]
pub(super) struct ObjectIo {
    client: Client,
}

impl ObjectIo {
    pub(super) fn new(client: Client) -> Self {
        Self { client }
    }

    /// Reads an extent of an object of `owner` and runs `completion` in the reader task.
    pub(super) fn submit_read(
        &self,
        owner: Vid,
        extent: Extent,
        completion: impl FnOnce(Result<Bytes, ClientError>) + Send + 'static,
    ) {
        let oid = Oid::data(owner, extent.index);
        self.client
            .objects()
            .submit_read(oid, extent.offset, extent.len, completion);
    }

    pub(super) async fn read(&self, owner: Vid, extent: Extent) -> Result<Bytes, ClientError> {
        let oid = Oid::data(owner, extent.index);
        self.client
            .objects()
            .read(oid, extent.offset, extent.len)
            .await
    }

    /// Overwrites an extent of an object of `vid` and runs `completion` in the reader
    /// task.
    pub(super) fn submit_write(
        &self,
        vid: Vid,
        extent: Extent,
        data: Bytes,
        completion: impl FnOnce(Result<(), ClientError>) + Send + 'static,
    ) {
        let oid = Oid::data(vid, extent.index);
        self.client
            .objects()
            .submit_write(oid, extent.offset, data, completion);
    }

    pub(super) async fn write(
        &self,
        vid: Vid,
        extent: Extent,
        data: Bytes,
    ) -> Result<(), ClientError> {
        let oid = Oid::data(vid, extent.index);
        self.client.objects().write(oid, extent.offset, data).await
    }

    /// Creates an object of `vid`, as a copy-up of the object of `source` if there is one,
    /// and writes to it. Before 0.8 the object is read here instead of there, past caches
    /// that may be old. Returns when the request cannot be executed any more. After
    /// `Unreachable` it still can; then the request itself pins `lock`.
    pub(super) async fn create(
        &self,
        vid: Vid,
        source: Option<Vid>,
        extent: Extent,
        data: Bytes,
        lock: &Arc<ObjectLockGuard>,
    ) -> Result<(), ClientError> {
        let (source, extent, data) = match source {
            Some(owner) if self.client.generation().await?.copies_through_caches() => {
                let (whole, data) = self.merged(owner, extent, data).await?;
                (None, whole, data)
            }
            source => (source, extent, data),
        };
        let source = source.map(|owner| Oid::data(owner, extent.index));
        let oid = Oid::data(vid, extent.index);
        let request = Request::create_object(oid, extent.offset, data, source);
        let created = self
            .client
            .send(request.with_token(Arc::clone(lock) as InFlightToken))
            .await;
        if matches!(created, Err(ClientError::Lost { .. })) {
            // Executed late, it would overwrite data of the lock's next holder.
            self.client.fence().await;
        }
        created.map(drop)
    }

    /// An object of `owner` as a whole, with `data` in `extent`.
    async fn merged(
        &self,
        owner: Vid,
        extent: Extent,
        data: Bytes,
    ) -> Result<(Extent, Bytes), ClientError> {
        let whole = Extent {
            offset: 0,
            len: 1 << DEFAULT_BLOCK_SIZE_SHIFT,
            ..extent
        };
        let mut object = BytesMut::from(self.read(owner, whole).await?);
        let start = extent.offset as usize;
        object[start..start + data.len()].copy_from_slice(&data);
        Ok((whole, object.freeze()))
    }

    /// Copies object `index` from `from` to `to`.
    pub(super) async fn copy(
        &self,
        from: Vid,
        to: Vid,
        index: ObjectIndex,
        lock: &Arc<ObjectLockGuard>,
    ) -> Result<(), ClientError> {
        let nothing = Extent {
            index,
            offset: 0,
            len: 0,
        };
        self.create(to, Some(from), nothing, Bytes::new(), lock)
            .await
    }

    pub(super) async fn exists(&self, vid: Vid, index: ObjectIndex) -> Result<bool, ClientError> {
        match self
            .client
            .objects()
            .read(Oid::data(vid, index), 0, 1)
            .await
        {
            Ok(_) => Ok(true),
            Err(error) if error.is_missing_object() => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Probes with an empty write whether `vid` takes writes.
    ///
    /// The server refuses writes from before it reads the inode for a snapshot, but sets
    /// `snap_ctime` only when it writes the inode back (protocol 7.4). So after a
    /// successful probe, every later snapshot has all earlier index entries.
    pub(super) async fn probe(&self, vid: Vid, index: ObjectIndex) -> Result<Probe, ClientError> {
        let nothing = Extent {
            index,
            offset: 0,
            len: 0,
        };
        match self.write(vid, nothing, Bytes::new()).await {
            Ok(()) => Ok(Probe::Writable),
            Err(error) if error.is_read_only() => Ok(Probe::Frozen),
            // The server checks for a snapshot before it looks for the object.
            Err(error) if error.is_missing_object() => Ok(Probe::NoObject),
            Err(error) => Err(error),
        }
    }
}

/// Zeros without memory of their own, up to a mebibyte.
pub(super) fn zeros(len: u32) -> Bytes {
    static ZEROS: [u8; 1 << 20] = [0; 1 << 20];
    match ZEROS.get(..len as usize) {
        Some(zeros) => Bytes::from_static(zeros),
        None => Bytes::from(vec![0; len as usize]),
    }
}
