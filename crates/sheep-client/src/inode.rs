//! A VDI by its number: its header, its lock, and the slots of a flat index.

use bytes::{BufMut as _, Bytes, BytesMut};
use sheep_proto::generation::{Locking, Unsupported};
use sheep_proto::header::{RequestBody, VdiRequest};
use sheep_proto::inode::{SLOT_LEN, SNAP_CTIME_OFFSET, TAG_OFFSET, slot_offset};
use sheep_proto::limits::{FLAT_INDEX_SLOTS, INODE_HEADER_LEN};
use sheep_proto::{InodeHeader, Malformed, ObjectIndex, Oid, Opcode, SnapshotTag, VdiName, Vid};
use zerocopy::FromBytes;

use crate::error::ClientError;
use crate::object::Objects;
use crate::object_cache::ObjectCache;
use crate::request::{InFlightToken, Request, RetryPolicy};
use crate::retry::VERIFIED_ATTEMPTS;
use crate::sender::Sender;
use crate::vdi_info::VdiInfo;

/// Bytes of an index read in one request: 32 requests for a volume of 4 TiB, and
/// little memory for each of many volumes that are attached at the same time.
pub(crate) const INDEX_READ_LEN: u32 = 128 << 10;
/// Slots in use cleared by one request while a VDI is deleted: a server does
/// work for each of them before it responds.
const USED_PER_CLEAR: usize = 128;
/// Slots that such a request may span, with the unused ones in between.
const SPAN_PER_CLEAR: u32 = 16 << 10;

/// A VDI by its number; see [`Client::inode`](crate::Client::inode).
///
/// ```
/// use sheep_client::{Client, ClientConfig, NewVdi, ObjectIndex, VdiName};
/// # use sheep_embedded::{Config, Server, StoreKind};
/// # tokio::runtime::Runtime::new()?.block_on(async {
/// # let server = Server::start(Config::new(StoreKind::Memory)).await?;
/// # let address = server.local_address();
/// # let client = Client::connect(ClientConfig::new(address.into())).await?;
/// let new = NewVdi::new(VdiName::new("v")?, 4 << 20);
/// let vid = client.cluster().create_vdi(&new).await?;
/// let info = client.inode(vid).stat().await?.expect("it was not deleted");
/// assert_eq!(info.name, new.name);
/// assert!(!client.inode(vid).is_snapshot().await?);
/// assert_eq!(client.inode(vid).read_slots(ObjectIndex(0), 1).await?, [None]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// # })?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Copy, Debug)]
pub struct Inode<'a> {
    sender: &'a Sender,
    vid: Vid,
}

impl<'a> Inode<'a> {
    pub(crate) fn new(sender: &'a Sender, vid: Vid) -> Self {
        Self { sender, vid }
    }

    /// The facts of a VDI; `None` when it was deleted, or is an access list.
    ///
    /// # Errors
    /// `Refused(NoObj)` when there never was such a VDI, `Malformed` for an
    /// inode no cluster writes, otherwise those of [every
    /// request](ClientError#every-request).
    pub async fn stat(self) -> Result<Option<VdiInfo>, ClientError> {
        let header = self.header().await?;
        let generation = self.sender.generation().await?;
        VdiInfo::from_header(self.vid, &header, generation)
            .map_err(|source| inode_error(self.vid, source))
    }

    /// The first 4,664 bytes of an inode.
    ///
    /// # Errors
    /// `Refused(NoObj)` when there never was such a VDI, otherwise those of
    /// [every request](ClientError#every-request).
    pub async fn header(self) -> Result<Box<InodeHeader>, ClientError> {
        let len = u32::try_from(INODE_HEADER_LEN).expect("an inode header has 4,664 bytes");
        let bytes = self.read(0, len).await?;
        Ok(Box::new(
            InodeHeader::read_from_bytes(&bytes)
                .expect("a read returns as many bytes as were requested"),
        ))
    }

    /// True once the VDI has become a snapshot: the cheapest query about it.
    ///
    /// # Errors
    /// As [`Objects::read`].
    ///
    /// Source: protocol 6.8.
    pub async fn is_snapshot(self) -> Result<bool, ClientError> {
        let bytes = self.read(SNAP_CTIME_OFFSET, 8).await?;
        Ok(bytes.iter().any(|&byte| byte != 0))
    }

    /// Releases the lock, whichever node holds it. Succeeds also without a lock.
    ///
    /// # Errors
    /// `Impossible` before 0.9, `DirtyCache` when the gateway's object cache holds changes,
    /// otherwise those of [every request](ClientError#every-request).
    ///
    /// Source: `RELEASE_VDI`, protocol 5.2 and 6.9.
    pub async fn unlock(self) -> Result<(), ClientError> {
        let generation = self.sender.generation().await?;
        if generation.locking() == Locking::Never {
            return Err(Unsupported::Lock(generation).into());
        }
        let body = VdiRequest {
            base_vdi_id: self.vid.get().into(),
            ..VdiRequest::default()
        };
        let request = Request::new(Opcode::ReleaseVdi, RequestBody::Vdi(body))
            .with_retry_policy(RetryPolicy::OnDisconnect);
        let cache = ObjectCache::new(self.sender, self.vid);
        let mut attempts = 0;
        loop {
            attempts += 1;
            let unlocked = async {
                // It also writes back what the gateway's cache holds.
                let session = cache.checked_session(async || self.name().await).await?;
                let request = match session {
                    Some(session) => request.clone().with_session(session),
                    None => request.clone(),
                };
                self.sender.send(request).await.map(drop)
            };
            match unlocked.await {
                Err(error) if error.is_gateway_lost() && attempts < VERIFIED_ATTEMPTS => {}
                other => return other,
            }
        }
    }

    /// Reads `count` slots of a flat index from object `first` on.
    ///
    /// # Errors
    /// `SlotOutOfRange` past the end of an index, `Malformed` for an owner that is
    /// no VID, otherwise as [`Objects::read`].
    pub async fn read_slots(
        self,
        first: ObjectIndex,
        count: u32,
    ) -> Result<Vec<Option<Vid>>, ClientError> {
        let offset = slots_offset(first, count)?;
        let bytes = self.read(offset, count * SLOT_LEN).await?;
        parse_slots(self.vid, &bytes)
    }

    /// Reads slots as [`Inode::read_slots`] does and runs `on_complete` with them where
    /// the response is read. Does not block.
    pub fn submit_read_slots(
        self,
        first: ObjectIndex,
        count: u32,
        on_complete: impl FnOnce(Result<Vec<Option<Vid>>, ClientError>) + Send + 'static,
    ) {
        let vid = self.vid;
        let offset = match slots_offset(first, count) {
            Ok(offset) => offset,
            Err(error) => return on_complete(Err(error)),
        };
        let objects = Objects::new(self.sender);
        objects.submit_read(Oid::inode(vid), offset, count * SLOT_LEN, move |read| {
            on_complete(read.and_then(|bytes| parse_slots(vid, &bytes)));
        });
    }

    /// Writes the slots of a run of objects from `first` on.
    ///
    /// Write only slots that change: a server takes one that keeps an
    /// ancestor's VID for a new reference and loses count (protocol 4.5). And
    /// write a slot only after its object was created (protocol 7.4). Never for
    /// a hypervolume, whose index is a tree.
    ///
    /// When the connection is lost, the slots are read, and written again if
    /// they are not as they should be.
    ///
    /// # Errors
    /// `SlotOutOfRange` past the end of an index, `Lost` when that happens again and
    /// again, otherwise as [`Objects::write`] and [`Inode::read_slots`].
    pub async fn write_slots(
        self,
        first: ObjectIndex,
        owners: &[Option<Vid>],
    ) -> Result<(), ClientError> {
        self.write_slots_with_tokens(first, owners, &[]).await
    }

    /// The same, with tokens that every request for it pins
    /// ([`Request::with_token`]).
    ///
    /// # Errors
    /// As [`Inode::write_slots`].
    #[doc(hidden)]
    pub async fn write_slots_with_tokens(
        self,
        first: ObjectIndex,
        owners: &[Option<Vid>],
        tokens: &[InFlightToken],
    ) -> Result<(), ClientError> {
        let count = u32::try_from(owners.len()).unwrap_or(u32::MAX);
        let offset = slots_offset(first, count)?;
        let mut bytes = BytesMut::with_capacity(owners.len() * SLOT_LEN as usize);
        for owner in owners {
            bytes.put_u32_le(owner.map_or(0, Vid::get));
        }
        // Not replayed blindly: of two copies that both find the old owner, each
        // drops a reference to it.
        let request = Request::write_object(Oid::inode(self.vid), offset, bytes.freeze())
            .with_retry_policy(RetryPolicy::OnTransientError)
            .with_tokens(tokens);
        let is_written = || async { Ok(self.read_slots(first, count).await? == owners) };
        self.sender.send_verified(request, is_written).await
    }

    /// Calls `visit` with every slot that names an owner, of the first `count` of
    /// a flat index.
    pub(crate) async fn for_each_flat_slot(
        self,
        count: u32,
        mut visit: impl FnMut(ObjectIndex, Vid),
    ) -> Result<(), ClientError> {
        let mut first = 0;
        while first < count {
            let slots = (count - first).min(INDEX_READ_LEN / SLOT_LEN);
            let found = self.read_slots(ObjectIndex(first), slots).await?;
            for (index, owner) in (first..).zip(found) {
                if let Some(owner) = owner {
                    visit(ObjectIndex(index), owner);
                }
            }
            first += slots;
        }
        Ok(())
    }

    /// Sets every slot in use to 0, also those past the end of the volume.
    ///
    /// Slots that are not in use go along: they are 0 before and after.
    pub(crate) async fn clear_slots(self) -> Result<(), ClientError> {
        let mut used = Vec::new();
        self.for_each_flat_slot(FLAT_INDEX_SLOTS, |index, _owner| used.push(index.0))
            .await?;
        let mut rest = &used[..];
        while let Some(&first) = rest.first() {
            let near = rest.partition_point(|&index| index - first < SPAN_PER_CLEAR);
            let (batch, behind) = rest.split_at(near.min(USED_PER_CLEAR));
            let last = batch.last().expect("a batch has at least one slot");
            let none = vec![None; (last - first) as usize + 1];
            self.write_slots(ObjectIndex(first), &none).await?;
            rest = behind;
        }
        Ok(())
    }

    pub(crate) async fn write_tag(self, tag: &SnapshotTag) -> Result<(), ClientError> {
        let field = Bytes::copy_from_slice(&tag.to_field());
        Objects::new(self.sender)
            .write(Oid::inode(self.vid), TAG_OFFSET, field)
            .await
    }

    async fn name(self) -> Result<VdiName, ClientError> {
        let name = self.stat().await?.map(|info| info.name);
        name.ok_or_else(|| {
            inode_error(
                self.vid,
                Malformed {
                    what: "inode",
                    why: "the VDI was deleted",
                },
            )
        })
    }

    async fn read(self, offset: u32, len: u32) -> Result<Bytes, ClientError> {
        Objects::new(self.sender)
            .read(Oid::inode(self.vid), offset, len)
            .await
    }
}

fn parse_slots(vid: Vid, bytes: &[u8]) -> Result<Vec<Option<Vid>>, ClientError> {
    bytes
        .chunks_exact(SLOT_LEN as usize)
        .map(|slot| {
            let raw = u32::from_le_bytes(slot.try_into().expect("a slot has four bytes"));
            match Vid::new(raw) {
                None if raw != 0 => Err(bad_index(vid, "an owner that is no VID")),
                owner => Ok(owner),
            }
        })
        .collect()
}

/// Offset of a run of slots in the inode object.
fn slots_offset(first: ObjectIndex, count: u32) -> Result<u32, ClientError> {
    let last = u64::from(first.0) + u64::from(count.saturating_sub(1));
    let offset_of = |slot: u64| slot_offset(ObjectIndex(u32::try_from(slot).ok()?));
    match (offset_of(first.0.into()), offset_of(last)) {
        (Some(offset), Some(_)) => Ok(offset),
        _ => Err(ClientError::SlotOutOfRange(last)),
    }
}

fn bad_index(vid: Vid, why: &'static str) -> ClientError {
    inode_error(vid, Malformed { what: "index", why })
}

/// The error for an inode no cluster writes.
pub(crate) fn inode_error(vid: Vid, source: Malformed) -> ClientError {
    ClientError::Malformed {
        operation: Request::read_object(Oid::inode(vid), 0, 0).operation(),
        source,
    }
}
