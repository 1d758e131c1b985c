//! Making, changing and deleting VDIs.

use bytes::Bytes;
use sheep_proto::header::{RequestBody, VdiRequest};
use sheep_proto::inode::{STORE_POLICY_HYPERVOLUME, TAG_OFFSET, VDI_SIZE_OFFSET};
use sheep_proto::limits::{DEFAULT_BLOCK_SIZE_SHIFT, FLAT_INDEX_SLOTS};
use sheep_proto::{InodeHeader, ObjectIndex, Oid, Opcode, ResultCode, SnapshotTag, VdiName, Vid};

use crate::call::Call;
use crate::client::Client;
use crate::error::{Chain, ClientError};
use crate::lookup::selector_call;
use crate::vdi::{NewVdi, VdiSelector, WhichVersion, check_redundancy, check_size};

/// Slots in use cleared by one request while a VDI is deleted: a server does
/// work for each of them before it answers.
const USED_PER_CLEAR: usize = 128;
/// Slots that such a request may span, with the unused ones in between.
const SPAN_PER_CLEAR: u32 = 16 << 10;
/// How often a change of the working VDI is tried while others take snapshots.
const SNAPSHOT_RACES: u32 = 5;

impl Client {
    /// Makes an empty VDI.
    ///
    /// Not sent again when the connection is lost: look for the name then.
    ///
    /// # Errors
    /// `Refused(VdiExist)` when the name is in use, `TooLarge`,
    /// `ObjectSize`, `HypervolumeObjectSize` and `Redundancy` for what no cluster can
    /// hold, otherwise as [`Client::call`].
    ///
    /// Source: `NEW_VDI`, protocol 5.2 and 6.2.
    pub async fn create_vdi(&self, new: &NewVdi) -> Result<Vid, ClientError> {
        if let Some(redundancy) = new.redundancy {
            check_redundancy(redundancy)?;
        }
        let default = match self.cluster_default().await?.object_shift {
            // Not formatted; the sheep says so itself.
            0 => DEFAULT_BLOCK_SIZE_SHIFT,
            shift => shift,
        };
        let shift = new.checked_shift(default)?;
        let body = VdiRequest {
            vdi_size: new.size.into(),
            copies: new.redundancy.map_or(0, sheep_proto::Redundancy::nr_copies),
            copy_policy: new
                .redundancy
                .map_or(0, sheep_proto::Redundancy::copy_policy),
            store_policy: if new.hypervolume {
                STORE_POLICY_HYPERVOLUME
            } else {
                0
            },
            block_size_shift: shift,
            ..VdiRequest::default()
        };
        self.new_vdi(&new.name, body).await
    }

    /// Freezes the working VDI of `name` under `tag` and returns the VID of the
    /// new working VDI.
    ///
    /// # Errors
    /// `Refused(VdiExist)` when the tag is in use, `NoTag` for an empty tag,
    /// `HypervolumeSnapshot`, `ConcurrentSnapshot`, otherwise as [`Client::find`].
    ///
    /// Source: protocol 6.3.
    pub async fn snapshot(&self, name: &VdiName, tag: &SnapshotTag) -> Result<Vid, ClientError> {
        if tag.is_empty() {
            return Err(ClientError::NoTag);
        }
        self.check_tag_is_free(name, tag).await?;
        let base = self.find(&VdiSelector::working(name.clone())).await?;
        let header = self.read_header(base).await?;
        if header.is_hypervolume() {
            return Err(ClientError::HypervolumeSnapshot(name.clone()));
        }
        if self.is_snapshot(base).await? {
            // Its tag is another's.
            return Err(ClientError::ConcurrentSnapshot(name.clone()));
        }
        self.write_tag(base, tag).await?;
        if self.is_snapshot(base).await? {
            // From a snapshot as base the sheep would make a working VDI without
            // anything written since.
            return Err(ClientError::ConcurrentSnapshot(name.clone()));
        }
        let body = VdiRequest {
            snapid: 1.into(),
            ..based_on(base, &header)
        };
        let snapshot = self.new_vdi(name, body).await;
        if let Err(error @ ClientError::Refused { .. }) = snapshot {
            // The VDI stays a working one, which has no tag.
            if let Err(undo) = self.write_tag(base, &SnapshotTag::default()).await {
                tracing::warn!(
                    "VDI {name} keeps the tag {tag} of a failed snapshot: {}",
                    Chain(&undo)
                );
            }
            return Err(error);
        }
        snapshot
    }

    /// Makes the working VDI `new_name` with the content of a snapshot.
    ///
    /// # Errors
    /// `Refused(VdiExist)` when the name is in use, `NotSnapshot` when `base` is
    /// a working VDI, otherwise as [`Client::find`].
    ///
    /// Source: protocol 6.5.
    pub async fn clone_vdi(
        &self,
        base: &VdiSelector,
        new_name: &VdiName,
    ) -> Result<Vid, ClientError> {
        if base.which == WhichVersion::Working {
            // Later writes to it would show through in the clone.
            return Err(ClientError::NotSnapshot(base.name.clone()));
        }
        let base = self.find(base).await?;
        let header = self.read_header(base).await?;
        self.new_vdi(new_name, based_on(base, &header)).await
    }

    /// Makes the content of a snapshot the working VDI again; what was written
    /// since the last snapshot is lost.
    ///
    /// Deletes the working VDI, then clones the snapshot under its name. When
    /// it fails in between, the name has no working VDI, and doing it again
    /// finishes the work.
    ///
    /// # Errors
    /// As [`Client::clone_vdi`] and [`Client::delete`].
    ///
    /// Source: protocol 6.5.
    pub async fn rollback(&self, snapshot: &VdiSelector) -> Result<Vid, ClientError> {
        if snapshot.which == WhichVersion::Working {
            return Err(ClientError::NotSnapshot(snapshot.name.clone()));
        }
        let base = self.find(snapshot).await?;
        let header = self.read_header(base).await?;
        match self
            .delete(&VdiSelector::working(snapshot.name.clone()))
            .await
        {
            Err(error) if error.is_missing_vdi() => {}
            other => other?,
        }
        self.new_vdi(&snapshot.name, based_on(base, &header)).await
    }

    /// Grows the working VDI of `name` to `size` bytes.
    ///
    /// # Errors
    /// `Shrink` for a smaller size than it has, `TooLarge`, `ConcurrentSnapshot`, otherwise as
    /// [`Client::find`].
    ///
    /// Source: protocol 6.6; only the size is written, never the whole header,
    /// which would undo what others change in it.
    pub async fn resize(&self, name: &VdiName, size: u64) -> Result<(), ClientError> {
        let selector = VdiSelector::working(name.clone());
        for _ in 0..SNAPSHOT_RACES {
            let vdi = self.find_info(&selector).await?;
            if size < vdi.size {
                return Err(ClientError::Shrink {
                    size: vdi.size,
                    requested: size,
                });
            }
            check_size(size, vdi.max_size())?;
            let bytes = Bytes::copy_from_slice(&size.to_le_bytes());
            self.write_object(Oid::inode(vdi.vid), VDI_SIZE_OFFSET, bytes)
                .await?;
            // A snapshot taken meanwhile may have copied the old size to the new head.
            if !self.is_snapshot(vdi.vid).await? {
                return Ok(());
            }
        }
        Err(ClientError::ConcurrentSnapshot(name.clone()))
    }

    /// Deletes a VDI, working or snapshot, and gives the space of the objects
    /// back that no other VDI shares.
    ///
    /// The index is cleared first: a server deletes only what is empty. When it
    /// fails in between, doing it again finishes the work.
    ///
    /// # Errors
    /// `ConcurrentSnapshot`, otherwise as [`Client::find`].
    ///
    /// Source: protocol 6.7.
    pub async fn delete(&self, selector: &VdiSelector) -> Result<(), ClientError> {
        for _ in 0..SNAPSHOT_RACES {
            let vdi = self.find_info(selector).await?;
            let of_working = selector.which == WhichVersion::Working;
            if of_working && self.is_snapshot(vdi.vid).await? {
                continue;
            }
            if !vdi.hypervolume {
                self.clear_index(vdi.vid).await?;
            }
            let exactly = match selector.which {
                WhichVersion::Working => selector.clone(),
                // By number, so that another snapshot with the same tag is not meant.
                WhichVersion::Tag(_) | WhichVersion::SnapId(_) => {
                    VdiSelector::snap_id(vdi.name, vdi.snap_id)
                }
            };
            // A snapshot taken meanwhile made another working VDI, with a full index.
            if self.find(&exactly).await? == vdi.vid {
                let call = selector_call(Opcode::DelVdi, &exactly, VdiRequest::default());
                return self.call(call).await.map(drop);
            }
        }
        Err(ClientError::ConcurrentSnapshot(selector.name.clone()))
    }

    /// Sets every slot in use to 0, also those past the end of the volume.
    ///
    /// Slots that are not in use go along: they are 0 before and after.
    async fn clear_index(&self, vid: Vid) -> Result<(), ClientError> {
        let mut used = Vec::new();
        self.for_each_flat_slot(vid, FLAT_INDEX_SLOTS, |index, _owner| used.push(index.0))
            .await?;
        let mut rest = &used[..];
        while let Some(&first) = rest.first() {
            let near = rest.partition_point(|&index| index - first < SPAN_PER_CLEAR);
            let (batch, behind) = rest.split_at(near.min(USED_PER_CLEAR));
            let last = batch.last().expect("the first is near itself");
            let none = vec![None; (last - first) as usize + 1];
            self.write_slots(vid, ObjectIndex(first), &none).await?;
            rest = behind;
        }
        Ok(())
    }

    async fn check_tag_is_free(
        &self,
        name: &VdiName,
        tag: &SnapshotTag,
    ) -> Result<(), ClientError> {
        let selector = VdiSelector::tag(name.clone(), tag.clone());
        let call = selector_call(Opcode::GetVdiInfo, &selector, VdiRequest::default()).name();
        match self.find(&selector).await {
            Ok(_) => Err(ClientError::Refused {
                call,
                code: ResultCode::VdiExist,
            }),
            Err(error) if error.code() == Some(ResultCode::NoTag) => Ok(()),
            Err(error) => Err(error),
        }
    }

    async fn write_tag(&self, vid: Vid, tag: &SnapshotTag) -> Result<(), ClientError> {
        let field = Bytes::copy_from_slice(&tag.to_field());
        self.write_object(Oid::inode(vid), TAG_OFFSET, field).await
    }

    async fn new_vdi(&self, name: &VdiName, body: VdiRequest) -> Result<Vid, ClientError> {
        let field = Bytes::copy_from_slice(&name.to_field());
        let call = Call::new(Opcode::NewVdi, RequestBody::Vdi(body)).with_payload(field);
        self.call(call).await?.vid()
    }
}

/// A request for a VDI like `header`'s, which a server does not copy by itself
/// (protocol trap 8).
fn based_on(base: Vid, header: &InodeHeader) -> VdiRequest {
    VdiRequest {
        vdi_size: header.vdi_size,
        base_vdi_id: base.get().into(),
        copies: header.nr_copies,
        copy_policy: header.copy_policy,
        store_policy: header.store_policy,
        block_size_shift: header.block_size_shift,
        ..VdiRequest::default()
    }
}
