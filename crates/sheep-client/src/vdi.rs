//! A VDI by its name: looking it up, locking it, changing it, its attributes.
//!
//! Locks exist only in clusters formatted with locking; elsewhere locking is a
//! lookup and unlocking does nothing. A lock belongs to the sheep that took it,
//! not to a connection: it survives a crash of the client, and any client can
//! release it (protocol 6.9).

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use sheep_proto::attribute::Attribute;
use sheep_proto::generation::{Locking, Unsupported};
use sheep_proto::header::{RequestBody, VdiRequest};
use sheep_proto::inode::VDI_SIZE_OFFSET;
use sheep_proto::limits::ATTRIBUTE_LEN;
use sheep_proto::{
    Generation, InodeHeader, Malformed, Oid, Opcode, RequestFlags, ResultCode, SnapshotTag,
    VdiName, Vid,
};
use zerocopy::IntoBytes;

use crate::error::{Chain, ClientError};
use crate::inode::Inode;
use crate::object::Objects;
use crate::object_cache::ObjectCache;
use crate::request::{Request, RetryPolicy};
use crate::retry::VERIFIED_ATTEMPTS;
use crate::sender::Sender;
use crate::session::Session;
use crate::vdi_info::{VdiInfo, VdiSelector, VdiVersion, check_size};
use crate::vid_reuse;

/// Longest wait for a server that removes the objects before it answers: a millisecond
/// each, and a VDI of 4 TiB has a million.
const DELETE_TIMEOUT: Duration = Duration::from_secs(3600);
/// How often a change of the working VDI is tried while others take snapshots.
const SNAPSHOT_RETRIES: u32 = 5;

/// A VDI, or a snapshot of it, by its name; see [`Client::vdi`](crate::Client::vdi).
///
/// ```
/// use sheep_client::{Client, ClientConfig, NewVdi, SnapshotTag, VdiName, VdiSelector};
/// # use sheep_embedded::{Config, Server, StoreKind};
/// # tokio::runtime::Runtime::new()?.block_on(async {
/// # let server = Server::start(Config::new(StoreKind::Memory)).await?;
/// # let address = server.local_address();
/// # let client = Client::connect(ClientConfig::new(address.into())).await?;
/// let name = VdiName::new("disk0")?;
/// client.cluster().create_vdi(&NewVdi::new(name.clone(), 1 << 30)).await?;
/// let disk = VdiSelector::working(name.clone());
/// client.vdi(&disk).snapshot(&SnapshotTag::new("before")?).await?;
/// client.vdi(&disk).resize(2 << 30).await?;
/// let before = VdiSelector::tag(name, SnapshotTag::new("before")?);
/// assert_eq!(client.vdi(&before).stat().await?.size, 1 << 30);
/// assert_eq!(client.vdi(&disk).stat().await?.size, 2 << 30);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// # })?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Copy, Debug)]
pub struct Vdi<'a> {
    sender: &'a Sender,
    selector: &'a VdiSelector,
}

impl<'a> Vdi<'a> {
    pub(crate) fn new(sender: &'a Sender, selector: &'a VdiSelector) -> Self {
        Self { sender, selector }
    }

    /// Finds a VDI.
    ///
    /// # Errors
    /// `Refused(NoVdi)` for an unknown name, or one that has no working VDI;
    /// `Refused(NoTag)` for an unknown snapshot; otherwise those of [every
    /// request](ClientError#every-request).
    ///
    /// Source: `GET_VDI_INFO`, protocol 5.2.
    pub async fn lookup(self) -> Result<Vid, ClientError> {
        self.sender.send(lookup_request(self.selector)).await?.vid()
    }

    /// Finds a VDI and reads its facts.
    ///
    /// # Errors
    /// As [`Vdi::lookup`] and [`Inode::stat`].
    pub async fn stat(self) -> Result<VdiInfo, ClientError> {
        let vid = self.lookup().await?;
        let info = Inode::new(self.sender, vid).stat().await?;
        info.ok_or_else(|| ClientError::Refused {
            // Deleted between the two requests.
            operation: lookup_request(self.selector).operation(),
            code: ResultCode::NoVdi,
        })
    }

    /// Finds a VDI and locks it for this client's sheep alone.
    ///
    /// Not retried after a disconnect: the lock may have been taken.
    ///
    /// # Errors
    /// `Refused(VdiLocked)` when any sheep holds it, this one included;
    /// `Impossible` before 0.9; otherwise as [`Vdi::lookup`].
    ///
    /// Source: `LOCK_VDI`, protocol 5.2 and 6.9.
    pub async fn lock(self) -> Result<Vid, ClientError> {
        // A sheep that has just joined refuses until it knows all locks.
        let generation = self.sender.generation().await?;
        if generation.locking() == Locking::Never {
            return Err(Unsupported::Lock(generation).into());
        }
        let request = selector_request(Opcode::LockVdi, self.selector, VdiRequest::default())
            .with_retry_policy(RetryPolicy::OnTransientError);
        self.sender.send(request).await?.vid()
    }

    /// Freezes the working VDI under `tag` and returns the VID of the
    /// new working VDI.
    ///
    /// # Errors
    /// `Refused(VdiExist)` when the tag is in use, `NoTag` for an empty tag,
    /// `HypervolumeSnapshot`, `ConcurrentSnapshot`, `DirtyCache` when the gateway's object
    /// cache holds changes, otherwise as [`Vdi::lookup`].
    ///
    /// Source: protocol 6.3.
    pub async fn snapshot(self, tag: &SnapshotTag) -> Result<Vid, ClientError> {
        let name = self.working_name()?;
        if tag.is_empty() {
            return Err(ClientError::NoTag);
        }
        self.check_tag_is_free(name, tag).await?;
        let base = self.lookup().await?;
        let inode = Inode::new(self.sender, base);
        let header = inode.header().await?;
        if header.is_hypervolume() {
            return Err(ClientError::HypervolumeSnapshot(name.clone()));
        }
        let generation = self.sender.generation().await?;
        let based_on = based_on(generation, name, base, &header)?;
        if inode.is_snapshot().await? {
            // Its tag is another's.
            return Err(ClientError::ConcurrentSnapshot(name.clone()));
        }
        inode.write_tag(tag).await?;
        if inode.is_snapshot().await? {
            // From a snapshot as base the sheep would make a working VDI without
            // anything written since.
            return Err(ClientError::ConcurrentSnapshot(name.clone()));
        }
        let body = VdiRequest {
            snapid: 1.into(),
            ..based_on
        };
        let snapshot = self.freeze(name, base, body).await;
        if let Err(error @ (ClientError::Refused { .. } | ClientError::TooManyChildren(_))) =
            snapshot
        {
            // The VDI stays a working one, which has no tag.
            if let Err(undo) = inode.write_tag(&SnapshotTag::default()).await {
                tracing::warn!(
                    "VDI {name} keeps the tag {tag} of a failed snapshot: {}",
                    Chain(&undo)
                );
            }
            return Err(error);
        }
        snapshot
    }

    /// Sends the NEW_VDI of a snapshot, before which the sheep writes back what its cache
    /// holds of the base.
    async fn freeze(self, name: &VdiName, base: Vid, body: VdiRequest) -> Result<Vid, ClientError> {
        let cache = ObjectCache::new(self.sender, base);
        let mut attempts = 0;
        loop {
            attempts += 1;
            let session = cache.checked_session(async || Ok(name.clone())).await?;
            match new_vdi(self.sender, name, body, session).await {
                Err(ClientError::SessionEnded { .. }) if attempts < VERIFIED_ATTEMPTS => {}
                other => return other,
            }
        }
    }

    /// Makes the working VDI `new_name` with the content of a snapshot.
    ///
    /// # Errors
    /// `Refused(VdiExist)` when the name is in use, `NotSnapshot` for a
    /// working VDI, `VidReuse`, `TooManyChildren`, otherwise as [`Vdi::lookup`].
    ///
    /// Source: protocol 6.5.
    pub async fn clone_to(self, new_name: &VdiName) -> Result<Vid, ClientError> {
        // Later writes to a working VDI would show through in the clone.
        self.check_is_snapshot()?;
        let base = self.lookup().await?;
        let header = Inode::new(self.sender, base).header().await?;
        let generation = self.sender.generation().await?;
        let based_on = based_on(generation, &self.selector.name, base, &header)?;
        new_vdi(self.sender, new_name, based_on, None).await
    }

    /// Makes the content of a snapshot the working VDI again; what was written
    /// since the last snapshot is lost.
    ///
    /// Deletes the working VDI, then clones the snapshot under its name. When
    /// it fails in between, the name has no working VDI, and doing it again
    /// finishes the work.
    ///
    /// # Errors
    /// As [`Vdi::clone_to`] and [`Vdi::delete`].
    ///
    /// Source: protocol 6.5.
    pub async fn rollback(self) -> Result<Vid, ClientError> {
        self.check_is_snapshot()?;
        let base = self.lookup().await?;
        let header = Inode::new(self.sender, base).header().await?;
        let name = &self.selector.name;
        let generation = self.sender.generation().await?;
        let based_on = based_on(generation, name, base, &header)?;
        let head = VdiSelector::working(name.clone());
        let head = Vdi::new(self.sender, &head);
        if generation.reuses_vids() {
            // Before the head is deleted, and as if it were.
            let leaving = match head.lookup().await {
                Ok(vid) => Some(vid),
                Err(error) if error.is_missing_vdi() => None,
                Err(error) => return Err(error),
            };
            vid_reuse::check(self.sender, name, leaving).await?;
        }
        match head.delete().await {
            Err(error) if error.is_missing_vdi() => {}
            other => other?,
        }
        new_vdi(self.sender, name, based_on, None).await
    }

    /// Grows the working VDI to `size` bytes.
    ///
    /// # Errors
    /// `Shrink` for a smaller size than it has, `TooLarge`, `ConcurrentSnapshot`, otherwise as
    /// [`Vdi::lookup`].
    ///
    /// Source: protocol 6.6; only the size is written, never the whole header,
    /// which would undo what others change in it.
    pub async fn resize(self, size: u64) -> Result<(), ClientError> {
        let name = self.working_name()?;
        for _ in 0..SNAPSHOT_RETRIES {
            let vdi = self.stat().await?;
            if size < vdi.size {
                return Err(ClientError::Shrink {
                    size: vdi.size,
                    requested: size,
                });
            }
            check_size(size, vdi.max_size())?;
            let bytes = Bytes::copy_from_slice(&size.to_le_bytes());
            Objects::new(self.sender)
                .write(Oid::inode(vdi.vid), VDI_SIZE_OFFSET, bytes)
                .await?;
            // A concurrent snapshot may have copied the old size to the new head.
            if !Inode::new(self.sender, vdi.vid).is_snapshot().await? {
                return Ok(());
            }
        }
        Err(ClientError::ConcurrentSnapshot(name.clone()))
    }

    /// Deletes a VDI, working or snapshot, and gives the space of the objects
    /// back that no other VDI shares.
    ///
    /// The index is cleared first: a server deletes only what is empty. When it
    /// fails in between, doing it again finishes the work. Servers before 0.9 remove
    /// the objects themselves, and only those that the index names; they take minutes
    /// for a large volume.
    ///
    /// # Errors
    /// `ConcurrentSnapshot`, otherwise as [`Vdi::lookup`].
    ///
    /// Source: protocol 6.7.
    pub async fn delete(self) -> Result<(), ClientError> {
        let selector = self.selector;
        for _ in 0..SNAPSHOT_RETRIES {
            let vdi = self.stat().await?;
            // Certain now, because the sheep has answered a request for a VDI.
            let deletes_objects = self.sender.generation().await?.deletes_objects();
            let inode = Inode::new(self.sender, vdi.vid);
            let of_working = selector.version == VdiVersion::Working;
            if of_working && inode.is_snapshot().await? {
                continue;
            }
            // As `dog` does it: nothing of it may be written back later, to objects that
            // are gone or to those of another VDI that was given the VID.
            ObjectCache::new(self.sender, vdi.vid).delete().await?;
            if !vdi.hypervolume && !deletes_objects {
                inode.clear_slots().await?;
            }
            let exactly = match selector.version {
                VdiVersion::Working => selector.clone(),
                // By number, so that another snapshot with the same tag is not meant.
                VdiVersion::Tag(_) | VdiVersion::SnapId(_) => {
                    VdiSelector::snap_id(vdi.name, vdi.snap_id)
                }
            };
            // A concurrent snapshot made another working VDI, with a full index.
            if Vdi::new(self.sender, &exactly).lookup().await? == vdi.vid {
                let mut request = selector_request(Opcode::DelVdi, &exactly, VdiRequest::default());
                if deletes_objects {
                    request = request.with_response_timeout(DELETE_TIMEOUT);
                }
                return self.sender.send(request).await.map(drop);
            }
        }
        Err(ClientError::ConcurrentSnapshot(selector.name.clone()))
    }

    /// The value of an attribute; `None` when there is none with this key.
    ///
    /// # Errors
    /// `Refused(NoVdi)` for an unknown VDI, otherwise those of [every
    /// request](ClientError#every-request).
    ///
    /// Source: `GET_VDI_ATTR`, protocol 5.3.
    pub async fn attribute(self, key: &[u8]) -> Result<Option<Bytes>, ClientError> {
        let name = self.working_name()?;
        let request = attribute_request(name, key, &[], RequestFlags::empty())?
            .with_retry_policy(RetryPolicy::Always);
        let found = match self.sender.send(request).await {
            Err(error) if error.is_missing_object() => return Ok(None),
            other => other?,
        };
        let operation = found.operation;
        let malformed = |source| ClientError::Malformed { operation, source };
        let body = found.vdi()?;
        let vid = Vid::new(body.vdi_id.get()).ok_or_else(|| {
            malformed(Malformed {
                what: "VDI response",
                why: "VID out of range",
            })
        })?;
        let oid = Oid::attribute(vid, body.attr_id.get());
        let len = u32::try_from(ATTRIBUTE_LEN).expect("an attribute record has 66,320 bytes");
        let object = match Objects::new(self.sender).read(oid, 0, len).await {
            // Removed between the two requests.
            Err(error) if error.is_missing_object() => return Ok(None),
            other => other?,
        };
        let attribute = Attribute::parse(&object).map_err(malformed)?;
        Ok(Some(object.slice_ref(attribute.value())))
    }

    /// Sets an attribute, whether it exists or not.
    ///
    /// # Errors
    /// `Refused(NoVdi)` for an unknown VDI, `Attribute` for a key of more than
    /// 255 bytes or a value of more than 65,536, otherwise those of [every
    /// request](ClientError#every-request).
    ///
    /// Source: `GET_VDI_ATTR`, protocol 5.3.
    pub async fn set_attribute(self, key: &[u8], value: &[u8]) -> Result<(), ClientError> {
        let name = self.working_name()?;
        let request = attribute_request(name, key, value, RequestFlags::CREAT)?;
        self.sender.send(request).await.map(drop)
    }

    /// Removes an attribute.
    ///
    /// # Errors
    /// `Refused(NoObj)` when there is none, otherwise as [`Vdi::set_attribute`].
    ///
    /// Source: `GET_VDI_ATTR`, protocol 5.3.
    pub async fn remove_attribute(self, key: &[u8]) -> Result<(), ClientError> {
        let name = self.working_name()?;
        let request = attribute_request(name, key, &[], RequestFlags::DEL)?;
        self.sender.send(request).await.map(drop)
    }

    /// The name, for what only a working VDI can do.
    fn working_name(self) -> Result<&'a VdiName, ClientError> {
        match self.selector.version {
            VdiVersion::Working => Ok(&self.selector.name),
            VdiVersion::Tag(_) | VdiVersion::SnapId(_) => {
                Err(ClientError::NotWorking(self.selector.name.clone()))
            }
        }
    }

    fn check_is_snapshot(self) -> Result<(), ClientError> {
        match self.selector.version {
            VdiVersion::Working => Err(ClientError::NotSnapshot(self.selector.name.clone())),
            VdiVersion::Tag(_) | VdiVersion::SnapId(_) => Ok(()),
        }
    }

    async fn check_tag_is_free(self, name: &VdiName, tag: &SnapshotTag) -> Result<(), ClientError> {
        let selector = VdiSelector::tag(name.clone(), tag.clone());
        match Vdi::new(self.sender, &selector).lookup().await {
            Ok(_) => Err(ClientError::Refused {
                operation: lookup_request(&selector).operation(),
                code: ResultCode::VdiExist,
            }),
            Err(error) if error.code() == Some(ResultCode::NoTag) => Ok(()),
            Err(error) => Err(error),
        }
    }
}

/// A request that names a VDI: name and tag as 512 bytes, snapshot id in the header.
///
/// The short form of 256 bytes crashes some servers (protocol 1.9).
pub(crate) fn selector_request(
    opcode: Opcode,
    selector: &VdiSelector,
    body: VdiRequest,
) -> Request {
    let mut payload = BytesMut::with_capacity(512);
    payload.extend_from_slice(&selector.name.to_field());
    let (tag, snap_id) = match &selector.version {
        VdiVersion::Working => ([0; 256], 0),
        VdiVersion::Tag(tag) => (tag.to_field(), 0),
        VdiVersion::SnapId(id) => ([0; 256], *id),
    };
    payload.extend_from_slice(&tag);
    let body = VdiRequest {
        snapid: snap_id.into(),
        ..body
    };
    Request::new(opcode, RequestBody::Vdi(body)).with_payload(payload.freeze())
}

pub(crate) fn lookup_request(selector: &VdiSelector) -> Request {
    selector_request(Opcode::GetVdiInfo, selector, VdiRequest::default())
        .with_retry_policy(RetryPolicy::Always)
}

/// Sends NEW_VDI, which creates, snapshots and clones; in a session if it has to be that
/// gateway.
pub(crate) async fn new_vdi(
    sender: &Sender,
    name: &VdiName,
    body: VdiRequest,
    session: Option<Session>,
) -> Result<Vid, ClientError> {
    let generation = sender.generation().await?;
    if generation.reuses_vids() && body.snapid.get() == 0 {
        vid_reuse::check(sender, name, None).await?;
    }
    let field = Bytes::copy_from_slice(&name.to_field());
    let mut request = Request::new(Opcode::NewVdi, RequestBody::Vdi(body)).with_payload(field);
    if let Some(session) = session {
        request = request.with_session(session);
    }
    match sender.send(request).await {
        Err(ClientError::Refused {
            code: ResultCode::NoBaseVdi | ResultCode::FullVdi,
            ..
        }) if generation.has_child_slots() && body.base_vdi_id.get() != 0 => {
            Err(ClientError::TooManyChildren(name.clone()))
        }
        other => other?.vid(),
    }
}

fn attribute_request(
    name: &VdiName,
    key: &[u8],
    value: &[u8],
    flags: RequestFlags,
) -> Result<Request, ClientError> {
    let request = Request::new(Opcode::GetVdiAttr, RequestBody::Vdi(VdiRequest::default()));
    let attribute = Attribute::new(name, key, value).map_err(ClientError::Attribute)?;
    Ok(request
        .with_payload(Bytes::copy_from_slice(attribute.as_bytes()))
        .with_flags(flags))
}

/// A request for a VDI like `header`'s, which a server does not copy by itself
/// (protocol trap 8).
///
/// # Errors
/// `TooManyChildren`.
fn based_on(
    generation: Generation,
    name: &VdiName,
    base: Vid,
    header: &InodeHeader,
) -> Result<VdiRequest, ClientError> {
    if !generation.has_room_for_child(header) {
        return Err(ClientError::TooManyChildren(name.clone()));
    }
    Ok(VdiRequest {
        vdi_size: header.vdi_size,
        base_vdi_id: base.get().into(),
        copies: header.nr_copies,
        copy_policy: header.copy_policy,
        store_policy: header.store_policy,
        block_size_shift: if generation.has_object_sizes() {
            header.block_size_shift
        } else {
            0
        },
        ..VdiRequest::default()
    })
}
