//! Finding VDIs and reading what their inodes say.

use bytes::{Bytes, BytesMut};
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use sheep_proto::header::{RequestBody, VdiRequest};
use sheep_proto::inode::SNAP_CTIME_OFFSET;
use sheep_proto::limits::{INODE_HEADER_LEN, VID_BITMAP_LEN};
use sheep_proto::vid_bitmap::VidBitmap;
use sheep_proto::{InodeHeader, Malformed, Oid, Opcode, ResultCode, VdiName, Vid};
use zerocopy::FromBytes;

use crate::call::{Call, Resend, Response};
use crate::client::Client;
use crate::cluster::QUERY_PATIENCE;
use crate::error::{Chain, ClientError};
use crate::vdi::{VdiInfo, VdiSelector, WhichVersion};

/// Inodes read at once while listing.
const LIST_PARALLEL: usize = 32;

/// A call that names a VDI: name and tag as 512 bytes, snapshot id in the header.
///
/// The short form of 256 bytes crashes some servers (protocol 1.9).
pub(crate) fn selector_call(opcode: Opcode, selector: &VdiSelector, body: VdiRequest) -> Call {
    let mut payload = BytesMut::with_capacity(512);
    payload.extend_from_slice(&selector.name.to_field());
    let (tag, snap_id) = match &selector.which {
        WhichVersion::Working => ([0; 256], 0),
        WhichVersion::Tag(tag) => (tag.to_field(), 0),
        WhichVersion::SnapId(id) => ([0; 256], *id),
    };
    payload.extend_from_slice(&tag);
    let body = VdiRequest {
        snapid: snap_id.into(),
        ..body
    };
    Call::new(opcode, RequestBody::Vdi(body)).with_payload(payload.freeze())
}

impl Response {
    /// The VID in an accepted VDI response.
    pub(crate) fn vid(self) -> Result<Vid, ClientError> {
        let call = self.call;
        let source = Malformed {
            what: "VDI response",
            why: "VID out of range",
        };
        Vid::new(self.vdi()?.vdi_id.get()).ok_or(ClientError::Malformed { call, source })
    }
}

impl Client {
    /// Finds a VDI.
    ///
    /// # Errors
    /// `Refused(NoVdi)` for an unknown name, or one that has no working VDI;
    /// `Refused(NoTag)` for an unknown snapshot; otherwise as [`Client::call`].
    ///
    /// Source: `GET_VDI_INFO`, protocol 5.2.
    pub async fn find(&self, selector: &VdiSelector) -> Result<Vid, ClientError> {
        let call = selector_call(Opcode::GetVdiInfo, selector, VdiRequest::default())
            .with_resend(Resend::WhenLostOrRefused);
        self.call(call).await?.vid()
    }

    /// The facts of a VDI; `None` when it was deleted.
    ///
    /// # Errors
    /// `Refused(NoObj)` when there never was such a VDI, `Malformed` for an
    /// inode no cluster writes, otherwise as [`Client::call`].
    pub async fn info(&self, vid: Vid) -> Result<Option<VdiInfo>, ClientError> {
        let header = self.read_header(vid).await?;
        VdiInfo::from_header(vid, &header).map_err(|source| inode_error(vid, source))
    }

    /// Finds a VDI and reads its facts.
    ///
    /// # Errors
    /// As [`Client::find`] and [`Client::info`].
    pub async fn find_info(&self, selector: &VdiSelector) -> Result<VdiInfo, ClientError> {
        let vid = self.find(selector).await?;
        self.info(vid).await?.ok_or_else(|| ClientError::Refused {
            // Deleted between the two questions.
            call: selector_call(Opcode::GetVdiInfo, selector, VdiRequest::default()).name(),
            code: ResultCode::NoVdi,
        })
    }

    /// The first 4,664 bytes of an inode.
    ///
    /// # Errors
    /// `Refused(NoObj)` when there never was such a VDI, otherwise as [`Client::call`].
    pub async fn read_header(&self, vid: Vid) -> Result<Box<InodeHeader>, ClientError> {
        let len = u32::try_from(INODE_HEADER_LEN).expect("4,664");
        let bytes = self.read_object(Oid::inode(vid), 0, len).await?;
        Ok(Box::new(
            InodeHeader::read_from_bytes(&bytes).expect("as long as was asked for"),
        ))
    }

    /// True once the VDI has become a snapshot: the cheapest question about it.
    ///
    /// # Errors
    /// As [`Client::read_object`].
    ///
    /// Source: protocol 6.8.
    pub async fn is_snapshot(&self, vid: Vid) -> Result<bool, ClientError> {
        let bytes = self
            .read_object(Oid::inode(vid), SNAP_CTIME_OFFSET, 8)
            .await?;
        Ok(bytes.iter().any(|&byte| byte != 0))
    }

    /// The VIDs of all VDIs that were not deleted, in ascending order.
    ///
    /// # Errors
    /// As [`Client::call`].
    ///
    /// Source: `READ_VDIS` and `READ_DEL_VDIS`, protocol 5.2.
    pub async fn vids(&self) -> Result<Vec<Vid>, ClientError> {
        let (used, deleted) = tokio::try_join!(
            self.bitmap(Opcode::ReadVdis),
            self.bitmap(Opcode::ReadDelVdis)
        )?;
        Ok(used.iter().filter(|&vid| !deleted.contains(vid)).collect())
    }

    /// The facts of all VDIs in ascending order of VID.
    ///
    /// A VDI that was deleted meanwhile, or whose inode is lost or damaged, is
    /// left out, the latter with a warning in the log.
    ///
    /// # Errors
    /// As [`Client::call`].
    pub async fn vdis(&self) -> Result<Vec<VdiInfo>, ClientError> {
        stream::iter(self.vids().await?)
            .map(|vid| async move {
                match self.info(vid).await {
                    Ok(info) => Ok(info),
                    Err(error) if error.is_missing_object() || error.is_malformed() => {
                        tracing::warn!("skipped VDI {vid}: {}", Chain(&error));
                        Ok(None)
                    }
                    Err(error) => Err(error),
                }
            })
            .buffered(LIST_PARALLEL)
            .try_filter_map(|info| async move { Ok(info) })
            .try_collect()
            .await
    }

    /// The names with a working VDI.
    ///
    /// # Errors
    /// As [`Client::call`].
    pub async fn working_names(&self) -> Result<Vec<VdiName>, ClientError> {
        let vdis = self.vdis().await?;
        Ok(vdis
            .into_iter()
            .filter(|vdi| !vdi.is_snapshot())
            .map(|vdi| vdi.name)
            .collect())
    }

    async fn bitmap(&self, opcode: Opcode) -> Result<VidBitmap<Bytes>, ClientError> {
        let want = u32::try_from(VID_BITMAP_LEN).expect("2 MiB");
        let call = Call::new(opcode, RequestBody::NONE)
            .wanting(want)
            .with_resend(Resend::WhenLostOrRefused)
            .with_patience(QUERY_PATIENCE);
        let name = call.name();
        let response = self.call(call).await?;
        VidBitmap::parse(response.payload.freeze())
            .map_err(|source| ClientError::Malformed { call: name, source })
    }
}

/// The error for an inode no cluster writes.
pub(crate) fn inode_error(vid: Vid, source: Malformed) -> ClientError {
    ClientError::Malformed {
        call: Call::read_object(Oid::inode(vid), 0, 0).name(),
        source,
    }
}
