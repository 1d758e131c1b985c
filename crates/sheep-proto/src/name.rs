//! Names and tags: up to 255 bytes in a field of 256, NUL padded.
//!
//! Bytes are bytes: UTF-8 is not required, and a slash is legal on the wire.
//! Source: protocol 4.1 and trap 17.

use std::fmt;

use crate::limits::{NAME_FIELD_LEN, NAME_MAX_LEN};

/// Why bytes cannot be a name or tag.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BadName {
    /// An empty name looks like a deleted VDI.
    #[error("a VDI name cannot be empty")]
    Empty,
    /// A longer one is stored cut off and cannot be found again.
    #[error("a name or tag has at most {NAME_MAX_LEN} bytes, this one has {0}")]
    TooLong(usize),
    /// Names are C strings.
    #[error("a name or tag cannot contain a NUL byte")]
    Nul,
}

fn check(bytes: &[u8]) -> Result<(), BadName> {
    if bytes.len() > NAME_MAX_LEN {
        Err(BadName::TooLong(bytes.len()))
    } else if bytes.contains(&0) {
        Err(BadName::Nul)
    } else {
        Ok(())
    }
}

fn pad(bytes: &[u8]) -> [u8; NAME_FIELD_LEN] {
    let mut field = [0; NAME_FIELD_LEN];
    field[..bytes.len()].copy_from_slice(bytes);
    field
}

/// The bytes of a NUL-padded field before its first NUL, which is never behind its last byte.
///
/// The last byte of a field belongs to the terminator: the server cuts what is
/// longer when it stores it.
pub fn unpad(field: &[u8]) -> &[u8] {
    let text = field.split_last().map_or(field, |(_terminator, text)| text);
    text.split(|&byte| byte == 0).next().unwrap_or_default()
}

/// The name of a VDI: 1 to 255 bytes without NUL.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct VdiName(Box<[u8]>);

impl VdiName {
    /// Checks `bytes` and takes them as a name.
    ///
    /// # Errors
    /// [`BadName`] says what is wrong.
    pub fn new(bytes: impl AsRef<[u8]>) -> Result<Self, BadName> {
        let bytes = bytes.as_ref();
        if bytes.is_empty() {
            return Err(BadName::Empty);
        }
        check(bytes)?;
        Ok(Self(bytes.into()))
    }

    /// The name in a wire field, or `None` when the field is empty (a deleted VDI).
    pub fn from_field(field: &[u8; NAME_FIELD_LEN]) -> Option<Self> {
        Self::new(unpad(field)).ok()
    }

    /// The name as a wire field.
    pub fn to_field(&self) -> [u8; NAME_FIELD_LEN] {
        pad(&self.0)
    }

    /// The bytes without padding.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

/// The tag of a snapshot: 0 to 255 bytes without NUL.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct SnapshotTag(Box<[u8]>);

impl SnapshotTag {
    /// Checks `bytes` and takes them as a tag.
    ///
    /// # Errors
    /// [`BadName`] says what is wrong.
    pub fn new(bytes: impl AsRef<[u8]>) -> Result<Self, BadName> {
        check(bytes.as_ref())?;
        Ok(Self(bytes.as_ref().into()))
    }

    /// The tag in a wire field.
    pub fn from_field(field: &[u8; NAME_FIELD_LEN]) -> Self {
        Self(unpad(field).into())
    }

    /// The tag as a wire field.
    pub fn to_field(&self) -> [u8; NAME_FIELD_LEN] {
        pad(&self.0)
    }

    /// The bytes without padding.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// True for the tag of a working VDI, and of a snapshot nobody named.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// True for control characters, for Unicode's line and paragraph separators, and
/// for its marks that turn the direction of the text that follows.
fn changes_the_line(char: char) -> bool {
    char.is_control() || matches!(char, '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// Implements the formats that names and tags share.
macro_rules! format_like_text {
    ($name:ident) => {
        /// Escapes what is not text or would change the rest of the line, so that
        /// a name cannot forge a log line.
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                for chunk in self.0.utf8_chunks() {
                    for char in chunk.valid().chars() {
                        if changes_the_line(char) {
                            write!(f, "{}", char.escape_default())?;
                        } else {
                            write!(f, "{char}")?;
                        }
                    }
                    write!(f, "{}", chunk.invalid().escape_ascii())?;
                }
                Ok(())
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}({self})", stringify!($name))
            }
        }
    };
}

format_like_text!(VdiName);
format_like_text!(SnapshotTag);

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn name_that_is_not_stored_whole_is_refused() {
        assert_eq!(VdiName::new(b""), Err(BadName::Empty));
        assert_eq!(VdiName::new([b'x'; 256]), Err(BadName::TooLong(256)));
        assert_eq!(VdiName::new(b"a\0b"), Err(BadName::Nul));
        assert!(VdiName::new([b'x'; 255]).is_ok());
        assert_eq!(VdiName::from_field(&[0; 256]), None);
    }

    #[test]
    fn name_field_without_nul_is_truncated() {
        assert_eq!(
            VdiName::from_field(&[b'x'; 256]).unwrap().as_bytes().len(),
            255
        );
    }

    #[test]
    fn name_field_ends_at_first_nul() {
        let mut path = [0; 4096];
        path[..300].fill(b'p');
        assert_eq!(unpad(&path).len(), 300);
        assert_eq!(unpad(b"plain\0 stale"), b"plain");
        assert_eq!(unpad(b""), b"");
    }

    #[test]
    fn name_cannot_forge_log_line() {
        let name = VdiName::new(b"a\n\xffb").unwrap();
        assert_eq!(name.to_string(), "a\\n\\xffb");
        let name = VdiName::new("a\u{2028}b\u{202e}日本").unwrap();
        assert_eq!(name.to_string(), "a\\u{2028}b\\u{202e}日本");
    }

    proptest! {
        #[test]
        fn names_survive_their_field(bytes in prop::collection::vec(1u8.., 1..=255)) {
            let name = VdiName::new(&bytes).unwrap();
            prop_assert_eq!(VdiName::from_field(&name.to_field()).unwrap(), name);
        }
    }
}
