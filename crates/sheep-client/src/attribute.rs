//! Attributes: keys and values attached to a VDI's name.

use bytes::Bytes;
use sheep_proto::attribute::Attribute;
use sheep_proto::header::{RequestBody, VdiRequest};
use sheep_proto::limits::ATTRIBUTE_LEN;
use sheep_proto::{Malformed, Oid, Opcode, RequestFlags, VdiName, Vid};
use zerocopy::IntoBytes;

use crate::call::{Call, Resend};
use crate::client::Client;
use crate::error::ClientError;

impl Client {
    /// The value of an attribute; `None` when there is none with this key.
    ///
    /// # Errors
    /// `Refused(NoVdi)` for an unknown VDI, otherwise as [`Client::call`].
    ///
    /// Source: `GET_VDI_ATTR`, protocol 5.3.
    pub async fn attribute(
        &self,
        name: &VdiName,
        key: &[u8],
    ) -> Result<Option<Bytes>, ClientError> {
        let call = attribute_call(name, key, &[], RequestFlags::empty())?
            .with_resend(Resend::WhenLostOrRefused);
        let found = match self.call(call).await {
            Err(error) if error.is_missing_object() => return Ok(None),
            other => other?,
        };
        let name = found.call;
        let malformed = |source| ClientError::Malformed { call: name, source };
        let body = found.vdi()?;
        let vid = Vid::new(body.vdi_id.get()).ok_or_else(|| {
            malformed(Malformed {
                what: "VDI response",
                why: "VID out of range",
            })
        })?;
        let oid = Oid::attribute(vid, body.attr_id.get());
        let len = u32::try_from(ATTRIBUTE_LEN).expect("66,320");
        let object = match self.read_object(oid, 0, len).await {
            // Removed between the two questions.
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
    /// 255 bytes or a value of more than 65,536, otherwise as [`Client::call`].
    ///
    /// Source: `GET_VDI_ATTR`, protocol 5.3.
    pub async fn set_attribute(
        &self,
        name: &VdiName,
        key: &[u8],
        value: &[u8],
    ) -> Result<(), ClientError> {
        let call = attribute_call(name, key, value, RequestFlags::CREAT)?;
        self.call(call).await.map(drop)
    }

    /// Removes an attribute.
    ///
    /// # Errors
    /// `Refused(NoObj)` when there is none, otherwise as [`Client::set_attribute`].
    ///
    /// Source: `GET_VDI_ATTR`, protocol 5.3.
    pub async fn remove_attribute(&self, name: &VdiName, key: &[u8]) -> Result<(), ClientError> {
        let call = attribute_call(name, key, &[], RequestFlags::DEL)?;
        self.call(call).await.map(drop)
    }
}

fn attribute_call(
    name: &VdiName,
    key: &[u8],
    value: &[u8],
    flags: RequestFlags,
) -> Result<Call, ClientError> {
    let call = Call::new(Opcode::GetVdiAttr, RequestBody::Vdi(VdiRequest::default()));
    let attribute = Attribute::new(name, key, value).map_err(ClientError::Attribute)?;
    Ok(call
        .with_payload(Bytes::copy_from_slice(attribute.as_bytes()))
        .with_flags(flags))
}
