//! The index of a VDI: which VID owns each data object.

use bytes::{BufMut as _, BytesMut};
use sheep_proto::inode::{SLOT_LEN, slot_offset};
use sheep_proto::limits::FLAT_INDEX_SLOTS;
use sheep_proto::{Malformed, ObjectIndex, Oid, Vid};

use crate::call::{Call, KeepAlive, Resend};
use crate::client::Client;
use crate::error::{Chain, ClientError};
use crate::lookup::inode_error;
use crate::vdi::VdiInfo;

/// Bytes of an index read in one request: 32 of them for a volume of 4 TiB,
/// and little memory for each of many that are attached at once.
pub(crate) const PIECE_LEN: u32 = 128 << 10;
/// How often slots are written when each time the connection is lost.
const SLOT_WRITES: u32 = 5;

impl Client {
    /// Calls `visit` with every slot of a VDI's index that names an owner, in
    /// ascending order of object number, up to the end of the volume.
    ///
    /// Reads only the part of the index that the volume's size needs, 128 KiB
    /// at a time. The tree of a hypervolume is read whole first
    /// ([`Client::read_tree`]).
    ///
    /// # Errors
    /// `Malformed` for an index no cluster writes, otherwise as [`Client::read_object`].
    ///
    /// Source: protocol 4.1 and 4.6.
    pub async fn for_each_slot(
        &self,
        vdi: &VdiInfo,
        mut visit: impl FnMut(ObjectIndex, Vid),
    ) -> Result<(), ClientError> {
        if vdi.hypervolume {
            let tree = self.read_tree(vdi).await?;
            tree.slots().for_each(|(index, owner)| visit(index, owner));
            return Ok(());
        }
        let count = vdi.object_count().min(u64::from(FLAT_INDEX_SLOTS));
        let count = u32::try_from(count).expect("at most 2^20");
        self.for_each_flat_slot(vdi.vid, count, visit).await
    }

    /// The same for the first `count` slots of a flat index.
    pub(crate) async fn for_each_flat_slot(
        &self,
        vid: Vid,
        count: u32,
        mut visit: impl FnMut(ObjectIndex, Vid),
    ) -> Result<(), ClientError> {
        let mut first = 0;
        while first < count {
            let slots = (count - first).min(PIECE_LEN / SLOT_LEN);
            let found = self.read_slots(vid, ObjectIndex(first), slots).await?;
            for (index, owner) in (first..).zip(found) {
                if let Some(owner) = owner {
                    visit(ObjectIndex(index), owner);
                }
            }
            first += slots;
        }
        Ok(())
    }

    /// Reads `count` slots of a flat index from object `first` on.
    ///
    /// # Errors
    /// `SlotOutOfRange` past the end of an index, `Malformed` for an owner that is
    /// no VID, otherwise as [`Client::read_object`].
    pub async fn read_slots(
        &self,
        vid: Vid,
        first: ObjectIndex,
        count: u32,
    ) -> Result<Vec<Option<Vid>>, ClientError> {
        let offset = slots_offset(first, count)?;
        let bytes = self
            .read_object(Oid::inode(vid), offset, count * SLOT_LEN)
            .await?;
        parse_slots(vid, &bytes)
    }

    /// Reads slots as [`Client::read_slots`] does and runs `done` with them where
    /// the answer is read. Does not block.
    pub fn submit_slots(
        &self,
        vid: Vid,
        first: ObjectIndex,
        count: u32,
        done: impl FnOnce(Result<Vec<Option<Vid>>, ClientError>) + Send + 'static,
    ) {
        let offset = match slots_offset(first, count) {
            Ok(offset) => offset,
            Err(error) => return done(Err(error)),
        };
        self.submit_read(Oid::inode(vid), offset, count * SLOT_LEN, move |read| {
            done(read.and_then(|bytes| parse_slots(vid, &bytes)));
        });
    }

    /// Writes the slots of a run of objects from `first` on.
    ///
    /// Write only slots that change: a server takes one that keeps an
    /// ancestor's VID for a new reference and loses count (protocol 4.5). And
    /// write a slot only after its object was created (protocol 7.4). Never for
    /// a hypervolume, see [`Client::insert_tree_slots`].
    ///
    /// When the connection is lost, the slots are read, and written again if
    /// they are not as they should be.
    ///
    /// # Errors
    /// `SlotOutOfRange` past the end of an index, `Lost` when that happens again and
    /// again, otherwise as [`Client::write_object`] and [`Client::read_slots`].
    pub async fn write_slots(
        &self,
        vid: Vid,
        first: ObjectIndex,
        owners: &[Option<Vid>],
    ) -> Result<(), ClientError> {
        self.write_slots_holding(vid, first, owners, &[]).await
    }

    /// The same, with what every request made for it keeps alive
    /// ([`Call::holding`]).
    ///
    /// # Errors
    /// As [`Client::write_slots`].
    pub async fn write_slots_holding(
        &self,
        vid: Vid,
        first: ObjectIndex,
        owners: &[Option<Vid>],
        keep: &[KeepAlive],
    ) -> Result<(), ClientError> {
        let count = u32::try_from(owners.len()).unwrap_or(u32::MAX);
        let offset = slots_offset(first, count)?;
        let mut bytes = BytesMut::with_capacity(owners.len() * SLOT_LEN as usize);
        for owner in owners {
            bytes.put_u32_le(owner.map_or(0, Vid::get));
        }
        // Not blindly again: of two copies that both find the old owner, each
        // takes a reference of it away.
        let call = Call::write_object(Oid::inode(vid), offset, bytes.freeze())
            .with_resend(Resend::WhenRefused)
            .holding_all(keep);
        let mut writes = 0;
        loop {
            let lost = match self.call(call.clone()).await {
                Err(error @ ClientError::Lost { .. }) => error,
                other => return other.map(drop),
            };
            tracing::debug!("were the slots written? {}", Chain(&lost));
            if self.read_slots(vid, first, count).await? == owners {
                return Ok(());
            }
            // A sheep answers, and what it was sent before has to come to its
            // end: it would run on top of the next copy.
            self.settle().await;
            if self.read_slots(vid, first, count).await? == owners {
                return Ok(());
            }
            writes += 1;
            if writes == SLOT_WRITES {
                return Err(lost);
            }
        }
    }

    /// The slot of one object, asked anew; for when a cached one led nowhere.
    ///
    /// # Errors
    /// As [`Client::for_each_slot`].
    pub async fn slot(
        &self,
        vdi: &VdiInfo,
        index: ObjectIndex,
    ) -> Result<Option<Vid>, ClientError> {
        if !vdi.hypervolume {
            return Ok(self.read_slots(vdi.vid, index, 1).await?[0]);
        }
        Ok(self.read_tree(vdi).await?.slot(index))
    }
}

fn parse_slots(vid: Vid, bytes: &[u8]) -> Result<Vec<Option<Vid>>, ClientError> {
    bytes
        .chunks_exact(SLOT_LEN as usize)
        .map(|slot| {
            let raw = u32::from_le_bytes(slot.try_into().expect("four bytes"));
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
