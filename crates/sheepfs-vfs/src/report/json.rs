//! Common parts of the JSON reports.
//!
//! Sizes are bytes, times are seconds since 1970, VIDs are numbers, with the
//! hexadecimal form beside them. A name or tag is a string. If it is not UTF-8,
//! the string has U+FFFD for each invalid sequence, and a second field, with `_hex`
//! appended to its name, has all bytes.

use std::borrow::Cow;

use serde::Serialize;

/// Writes a document, with a newline at its end.
pub(super) fn document(facts: &impl Serialize) -> Vec<u8> {
    let mut bytes =
        serde_json::to_vec_pretty(facts).expect("reports have string keys and cannot fail");
    bytes.push(b'\n');
    bytes
}

/// Bytes as text, for a field that is always there.
pub(super) fn text(bytes: &[u8]) -> Cow<'_, str> {
    String::from_utf8_lossy(bytes)
}

/// Bytes in hexadecimal, for a field beside a [`text`] that is not exact.
pub(super) fn hex_unless_text(bytes: &[u8]) -> Option<String> {
    match str::from_utf8(bytes) {
        Ok(_) => None,
        Err(_) => Some(bytes.iter().map(|byte| format!("{byte:02x}")).collect()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_keeps_non_utf_8_bytes() {
        assert_eq!(text(b"a\xffb"), "a\u{fffd}b");
        assert_eq!(hex_unless_text(b"a\xffb").as_deref(), Some("61ff62"));
        assert_eq!(hex_unless_text("日本".as_bytes()), None);
    }
}
