//! Attributes: a key and a value attached to a VDI's name.

use std::mem::size_of;

use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::Malformed;
use crate::limits::{ATTRIBUTE_LEN, ATTRIBUTE_VALUE_MAX_LEN, NAME_FIELD_LEN, NAME_MAX_LEN};
use crate::name::{VdiName, unpad};

/// An attribute object, and the payload of GET_VDI_ATTR.
///
/// Source: protocol 5.3; `struct sheepdog_vdi_attr` in sheepdog's `include/internal_proto.h`.
#[derive(Clone, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Attribute {
    /// NUL-padded VDI name; empty when the attribute was deleted.
    pub name: [u8; NAME_FIELD_LEN],
    /// NUL-padded snapshot tag.
    pub tag: [u8; NAME_FIELD_LEN],
    /// Creation time.
    pub ctime: U64,
    /// Snapshot id, 0 for the working VDI.
    pub snap_id: U32,
    /// Bytes of `value` in use.
    pub value_len: U32,
    /// NUL-padded key.
    pub key: [u8; NAME_FIELD_LEN],
    /// The value, `value_len` bytes of it.
    pub value: [u8; ATTRIBUTE_VALUE_MAX_LEN],
}

const _: () = assert!(size_of::<Attribute>() == ATTRIBUTE_LEN);

const TOO_LONG: Malformed = Malformed::new("attribute", "the value is longer than 64 KiB");

impl Attribute {
    /// An attribute of the working VDI of `name`, boxed because it has 65 KiB.
    ///
    /// # Errors
    /// [`Malformed`] for a key that is empty, has more than 255 bytes or a NUL,
    /// and for a value of more than 65,536 bytes.
    pub fn new(name: &VdiName, key: &[u8], value: &[u8]) -> Result<Box<Self>, Malformed> {
        if key.is_empty() || key.len() > NAME_MAX_LEN || key.contains(&0) {
            return Err(Malformed::new(
                "attribute",
                "a key has 1 to 255 bytes and no NUL",
            ));
        }
        if value.len() > ATTRIBUTE_VALUE_MAX_LEN {
            return Err(TOO_LONG);
        }
        let mut attribute =
            Self::new_box_zeroed().map_err(|_| Malformed::new("attribute", "out of memory"))?;
        attribute.name = name.to_field();
        attribute.key[..key.len()].copy_from_slice(key);
        attribute.value_len = u32::try_from(value.len()).map_err(|_| TOO_LONG)?.into();
        attribute.value[..value.len()].copy_from_slice(value);
        Ok(attribute)
    }

    /// Reads an attribute object.
    ///
    /// # Errors
    /// [`Malformed`] unless it has exactly 66,320 bytes and the value fits.
    pub fn parse(bytes: &[u8]) -> Result<&Self, Malformed> {
        let attribute = Self::ref_from_bytes(bytes)
            .map_err(|_| Malformed::new("attribute", "it does not have 66,320 bytes"))?;
        if attribute.value_len.get() as usize > ATTRIBUTE_VALUE_MAX_LEN {
            return Err(Malformed::new(
                "attribute",
                "the value is longer than 64 KiB",
            ));
        }
        Ok(attribute)
    }

    /// The key without padding.
    pub fn key(&self) -> &[u8] {
        unpad(&self.key)
    }

    /// The bytes of the value in use.
    pub fn value(&self) -> &[u8] {
        let len = (self.value_len.get() as usize).min(ATTRIBUTE_VALUE_MAX_LEN);
        &self.value[..len]
    }
}
