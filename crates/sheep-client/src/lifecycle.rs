//! Making, changing and deleting VDIs.

use bytes::Bytes;
use sheep_proto::header::{RequestBody, VdiRequest};
use sheep_proto::inode::{STORE_POLICY_HYPERVOLUME, TAG_OFFSET, VDI_SIZE_OFFSET};
use sheep_proto::{InodeHeader, ObjectIndex, Oid, Opcode, ResultCode, SnapshotTag, VdiName, Vid};

use crate::call::Call;
use crate::client::Client;
use crate::error::ClientError;
use crate::lookup::selector_call;
use crate::vdi::{NewVdi, VdiInfo, VdiSelector, WhichVersion, check_size};

/// Slots cleared by one request while a VDI is deleted: a server does work for
/// each of them before it answers.
const SLOTS_PER_CLEAR: u32 = 128;
/// How often a change of the working VDI is tried while others take snapshots.
const SNAPSHOT_RACES: u32 = 5;

impl Client {
    /// Makes an empty VDI.
    ///
    /// Not sent again when the connection is lost: look for the name then.
    ///
    /// # Errors
    /// `Refused(VdiExist)` when the name is in use, `TooLarge` and `Unsuitable`
    /// for what no index can name, otherwise as [`Client::call`].
    ///
    /// Source: `NEW_VDI`, protocol 5.2 and 6.2.
    pub async fn create_vdi(&self, new: &NewVdi) -> Result<Vid, ClientError> {
        let shift = new.checked_shift(self.cluster_default().await?.object_shift)?;
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
    /// `Refused(VdiExist)` when the tag is in use, `Unsuitable` for an empty
    /// tag or a hypervolume, otherwise as [`Client::find`].
    ///
    /// Source: protocol 6.3.
    pub async fn snapshot(&self, name: &VdiName, tag: &SnapshotTag) -> Result<Vid, ClientError> {
        if tag.is_empty() {
            return Err(ClientError::Unsuitable("a snapshot needs a tag"));
        }
        self.check_tag_is_free(name, tag).await?;
        let base = self.find(&VdiSelector::working(name.clone())).await?;
        let header = self.read_header(base).await?;
        if header.is_hypervolume() {
            return Err(ClientError::Unsuitable(
                "a hypervolume cannot have snapshots",
            ));
        }
        self.write_tag(base, tag).await?;
        let body = VdiRequest {
            snapid: 1.into(),
            ..based_on(base, &header)
        };
        let snapshot = self.new_vdi(name, body).await;
        if let Err(ClientError::Refused { .. }) = &snapshot {
            // The VDI stays a working one, which has no tag.
            self.write_tag(base, &SnapshotTag::default()).await?;
        }
        snapshot
    }

    /// Makes the working VDI `new_name` with the content of a snapshot.
    ///
    /// # Errors
    /// `Refused(VdiExist)` when the name is in use, `Unsuitable` when `base` is
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
            return Err(ClientError::Unsuitable("only a snapshot can be cloned"));
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
            return Err(ClientError::Unsuitable(
                "only a snapshot can be rolled back to",
            ));
        }
        let base = self.find(snapshot).await?;
        let header = self.read_header(base).await?;
        match self
            .delete(&VdiSelector::working(snapshot.name.clone()))
            .await
        {
            Err(error) if error.code() == Some(ResultCode::NoVdi) => {}
            other => other?,
        }
        self.new_vdi(&snapshot.name, based_on(base, &header)).await
    }

    /// Grows the working VDI of `name` to `size` bytes.
    ///
    /// # Errors
    /// `Unsuitable` for a smaller size than it has, `TooLarge`, otherwise as
    /// [`Client::find`].
    ///
    /// Source: protocol 6.6; only the size is written, never the whole header,
    /// which would undo what others change in it.
    pub async fn resize(&self, name: &VdiName, size: u64) -> Result<(), ClientError> {
        let selector = VdiSelector::working(name.clone());
        for _ in 0..SNAPSHOT_RACES {
            let vdi = self.find_info(&selector).await?;
            if size < vdi.size {
                return Err(ClientError::Unsuitable("a VDI can only grow"));
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
        Err(ClientError::Unsuitable(
            "snapshots were taken faster than the size could be changed",
        ))
    }

    /// Deletes a VDI, working or snapshot, and gives the space of the objects
    /// back that no other VDI shares.
    ///
    /// The index is cleared first: a server deletes only what is empty.
    ///
    /// # Errors
    /// As [`Client::find`].
    ///
    /// Source: protocol 6.7.
    pub async fn delete(&self, selector: &VdiSelector) -> Result<(), ClientError> {
        let vdi = self.find_info(selector).await?;
        if !vdi.hypervolume {
            self.clear_index(&vdi).await?;
        }
        let which = match selector.which {
            WhichVersion::Working => WhichVersion::Working,
            // By number, so that another snapshot with the same tag is not meant.
            WhichVersion::Tag(_) | WhichVersion::SnapId(_) => WhichVersion::SnapId(vdi.snap_id),
        };
        let selector = VdiSelector {
            name: selector.name.clone(),
            which,
        };
        self.call(selector_call(
            Opcode::DelVdi,
            &selector,
            VdiRequest::default(),
        ))
        .await
        .map(drop)
    }

    /// Sets every slot in use to 0, a bounded number with each request.
    async fn clear_index(&self, vdi: &VdiInfo) -> Result<(), ClientError> {
        let mut used = Vec::new();
        self.for_each_slot(vdi, |index, _owner| used.push(index.0))
            .await?;
        let close = |a: &u32, b: &u32| b - a == 1;
        for run in used.chunk_by(close) {
            for piece in run.chunks(SLOTS_PER_CLEAR as usize) {
                let none = vec![None; piece.len()];
                self.write_slots(vdi.vid, ObjectIndex(piece[0]), &none)
                    .await?;
            }
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
