//! What the object cache of a sheep before 1.0 holds of one VDI: asking, writing it back,
//! dropping it.
//!
//! What an operation here, or a snapshot, writes back replaces newer data that another
//! client has written past the cache. So each request is sent to the gateway that was
//! asked what its cache holds, in the same [`Session`], and to no other when that is lost.

use std::time::Duration;

use bytes::Bytes;
use sheep_proto::cache_info::CacheInfo;
use sheep_proto::header::{ObjectRequest, RequestBody, VdiRequest};
use sheep_proto::limits::CACHE_INFO_LEN;
use sheep_proto::{ObjectIndex, Oid, Opcode, VdiName, Vid};

use crate::error::ClientError;
use crate::query::query;
use crate::request::{Request, RetryPolicy};
use crate::retry::VERIFIED_ATTEMPTS;
use crate::sender::Sender;
use crate::session::Session;

/// Longest wait for a sheep that writes the changed objects of a VDI back before it
/// answers.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(600);
/// The kind of lock that a release leaves alone when the VDI has a normal one.
const SHARED_LOCK: u32 = 1;

/// What the object caches of sheep before 1.0 hold of a VDI; see
/// [`Client::object_cache`](crate::Client::object_cache).
#[derive(Clone, Copy, Debug)]
pub struct ObjectCache<'a> {
    sender: &'a Sender,
    vid: Vid,
}

/// How many objects of a VDI a cache holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct CachedObjects {
    /// Those that were not written back.
    pub(crate) dirty: u32,
    pub(crate) total: u32,
}

impl<'a> ObjectCache<'a> {
    pub(crate) fn new(sender: &'a Sender, vid: Vid) -> Self {
        Self { sender, vid }
    }

    /// Makes the gateway's cache hold nothing of the VDI `name`, and returns the session
    /// in which that is so. `None` when the gateway has no such cache.
    ///
    /// # Errors
    /// `DirtyCache` when it holds changes that were not written back: a user has to flush or
    /// drop them. Otherwise those of [every request](ClientError#every-request).
    ///
    /// Source: `GET_CACHE_INFO` and `RELEASE_VDI` before 1.0.
    pub async fn drop_clean(self, name: &VdiName) -> Result<Option<Session>, ClientError> {
        if !self.sender.generation().await?.has_object_cache() {
            return Ok(None);
        }
        let mut attempts = 0;
        loop {
            attempts += 1;
            let session = self.sender.transport.session();
            let dropped = async {
                let Some(cached) = self.query(session).await? else {
                    return Ok(None);
                };
                if cached.dirty > 0 {
                    return Err(self.dirty_error(name.clone(), cached));
                }
                if cached.total > 0 {
                    self.release(session).await?;
                }
                Ok(Some(session))
            };
            match dropped.await {
                // Another gateway has another cache, which has to be asked.
                Err(error) if error.is_gateway_lost() && attempts < VERIFIED_ATTEMPTS => {}
                other => return other,
            }
        }
    }

    /// Writes back what the gateway's cache holds of the VDI, which is then as durable as
    /// a write past it. What was written to a VDI that has become a snapshot since is
    /// thrown away, and stays readable in the cache: see [`Self::accepts_writes`].
    ///
    /// # Errors
    /// `Lost` or `SessionEnded` when the gateway was lost, `Refused(InvalidParms)` when
    /// it has no cache any more: what was not flushed is lost. Otherwise those of [every
    /// request](ClientError#every-request).
    ///
    /// Source: `FLUSH_VDI`.
    pub async fn flush(self, session: Session) -> Result<(), ClientError> {
        let request = Request::new(Opcode::FlushVdi, self.inode())
            .with_retry_policy(RetryPolicy::OnTransientError)
            .with_response_timeout(FLUSH_TIMEOUT)
            .with_session(session);
        self.sender.send(request).await.map(drop)
    }

    /// Writes back and drops what the gateway's cache holds of the VDI, whose changes in
    /// there are the caller's. A lock stays.
    ///
    /// # Errors
    /// As [`Self::flush`].
    ///
    /// Source: `RELEASE_VDI` before 1.0.
    pub async fn release(self, session: Session) -> Result<(), ClientError> {
        let body = VdiRequest {
            base_vdi_id: self.vid.get().into(),
            lock_type: SHARED_LOCK.into(),
            ..VdiRequest::default()
        };
        let request = Request::new(Opcode::ReleaseVdi, RequestBody::Vdi(body))
            .with_response_timeout(FLUSH_TIMEOUT)
            .with_session(session);
        self.sender.send(request).await.map(drop)
    }

    /// Drops what the caches of all sheep that are up hold of the VDI, changes that were
    /// not written back too.
    ///
    /// # Errors
    /// Those of [every request](ClientError#every-request).
    ///
    /// Source: `DELETE_CACHE`.
    pub async fn delete(self) -> Result<(), ClientError> {
        if !self.sender.generation().await?.has_object_cache() {
            return Ok(());
        }
        let request =
            Request::new(Opcode::DeleteCache, self.inode()).with_retry_policy(RetryPolicy::Always);
        self.sender.send(request).await.map(drop)
    }

    /// Whether the gateway accepts writes to the VDI. If so after a [`Self::flush`],
    /// nothing of that was thrown away. `index` is of any object.
    ///
    /// # Errors
    /// As [`Self::flush`].
    pub async fn accepts_writes(
        self,
        session: Session,
        index: ObjectIndex,
    ) -> Result<bool, ClientError> {
        let oid = Oid::data(self.vid, index);
        let request = Request::write_object(oid, 0, Bytes::new()).with_session(session);
        match self.sender.send(request).await {
            Ok(_) => Ok(true),
            // The sheep looks for a snapshot first.
            Err(error) if error.is_missing_object() => Ok(true),
            Err(error) if error.is_read_only() => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// The session for a request that makes the gateway write the VDI back, now that its
    /// cache holds no changes. `None` when there are no caches.
    ///
    /// # Errors
    /// `DirtyCache`, otherwise those of [every request](ClientError#every-request).
    pub(crate) async fn checked_session(
        self,
        name: impl AsyncFnOnce() -> Result<VdiName, ClientError>,
    ) -> Result<Option<Session>, ClientError> {
        if !self.sender.generation().await?.has_object_cache() {
            return Ok(None);
        }
        let session = self.sender.transport.session();
        if let Some(cached) = self.query(session).await?
            && cached.dirty > 0
        {
            return Err(self.dirty_error(name().await?, cached));
        }
        Ok(Some(session))
    }

    /// What the gateway's cache holds; `None` when it has none.
    async fn query(self, session: Session) -> Result<Option<CachedObjects>, ClientError> {
        let request = query(Opcode::GetCacheInfo, CACHE_INFO_LEN).with_session(session);
        let response = self.sender.send(request).await?;
        let info =
            CacheInfo::parse(&response.payload).map_err(|source| response.bad_payload(source))?;
        if !info.is_enabled() {
            return Ok(None);
        }
        let cached = info.of(self.vid).map(|cached| CachedObjects {
            dirty: cached.dirty.get(),
            total: cached.total.get(),
        });
        Ok(Some(cached.unwrap_or_default()))
    }

    fn inode(self) -> RequestBody {
        RequestBody::Object(ObjectRequest {
            oid: Oid::inode(self.vid).raw().into(),
            ..ObjectRequest::default()
        })
    }

    fn dirty_error(self, name: VdiName, cached: CachedObjects) -> ClientError {
        ClientError::DirtyCache {
            name,
            dirty: cached.dirty,
        }
    }
}
