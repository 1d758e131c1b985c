//! Parser of command lines.
//!
//! Nothing written to a command file ever reaches a shell. A name may have any
//! byte but NUL and, where arguments follow it, a space.

mod run;

pub(crate) use run::CommandRunner;

use sheep_client::{ClientError, NewVdi};
use sheep_proto::limits::{MAX_BLOCK_SIZE_SHIFT, MIN_BLOCK_SIZE_SHIFT};
use sheep_proto::name::BadName;
use sheep_proto::{Redundancy, VdiName};

use crate::error::FsError;

/// Bytes of a refused line shown in its error.
const MAX_SHOWN_LEN: usize = 80;
/// Longest line: two names of 255 bytes and some words.
const MAX_LINE: usize = 1024;

/// A new VDI, and whether to preallocate all its objects.
#[derive(Clone, Debug)]
pub(crate) struct CreateLine {
    pub(crate) new: NewVdi,
    pub(crate) preallocate: bool,
}

impl From<BadName> for FsError {
    fn from(error: BadName) -> Self {
        ClientError::from(error).into()
    }
}

pub(crate) fn invalid(text: impl Into<String>) -> FsError {
    FsError::Invalid(text.into())
}

/// The error of a write to `file`.
pub(crate) fn refused(file: &'static str, data: &[u8], source: FsError) -> FsError {
    let line = data.strip_suffix(b"\n").unwrap_or(data);
    let line = line[..line.len().min(MAX_SHOWN_LEN)]
        .escape_ascii()
        .to_string();
    FsError::Command {
        file,
        line,
        source: Box::new(source),
    }
}

/// The one line of a write, without its newline.
pub(crate) fn line(data: &[u8]) -> Result<&[u8], FsError> {
    let line = data.strip_suffix(b"\n").unwrap_or(data);
    if line.len() > MAX_LINE {
        return Err(invalid("the line is too long"));
    }
    if line.is_empty() {
        return Err(invalid("the line is empty"));
    }
    Ok(line)
}

/// The two words of a line.
pub(crate) fn split_two_words<'a>(
    line: &'a [u8],
    usage: &str,
) -> Result<(&'a [u8], &'a [u8]), FsError> {
    let mut words = words(line);
    match (words.next(), words.next(), words.next()) {
        (Some(first), Some(second), None) => Ok((first, second)),
        _ => Err(invalid(format!("expected {usage}"))),
    }
}

fn words(line: &[u8]) -> impl Iterator<Item = &[u8]> {
    line.split(u8::is_ascii_whitespace)
        .filter(|word| !word.is_empty())
}

/// `NAME SIZE [copies=N|D:P] [object_size=SIZE] [hyper] [prealloc]`.
pub(crate) fn create(line: &[u8]) -> Result<CreateLine, FsError> {
    const USAGE: &str = "NAME SIZE [copies=N|D:P] [object_size=SIZE] [hyper] [prealloc]";
    let mut words = words(line);
    let (Some(name), Some(bytes)) = (words.next(), words.next()) else {
        return Err(invalid(format!("expected {USAGE}")));
    };
    let mut new = NewVdi::new(VdiName::new(name)?, size(bytes)?);
    let mut preallocate = false;
    for word in words {
        let word = text(word)?;
        match word.split_once('=') {
            Some(("copies", value)) => {
                let redundancy: Redundancy = value
                    .parse()
                    .map_err(|error| invalid(format!("'{word}': {error}")))?;
                new.redundancy = Some(redundancy);
            }
            Some(("object_size", value)) => new.object_shift = Some(object_shift(value)?),
            None if word == "hyper" => new.hypervolume = true,
            None if word == "prealloc" => preallocate = true,
            _ => return Err(invalid(format!("'{word}' is not known; expected {USAGE}"))),
        }
    }
    Ok(CreateLine { new, preallocate })
}

fn text(word: &[u8]) -> Result<&str, FsError> {
    std::str::from_utf8(word).map_err(|_| invalid(format!("'{}' is not text", word.escape_ascii())))
}

/// Bytes, with a suffix K, M, G, T or P for powers of 1,024.
pub(crate) fn size(word: &[u8]) -> Result<u64, FsError> {
    let word = text(word)?;
    let wrong = || {
        invalid(format!(
            "'{word}' is not a size, such as 512M, 10G or a number of bytes"
        ))
    };
    let (number, shift) = match word.char_indices().next_back() {
        Some((at, unit)) if !unit.is_ascii_digit() => {
            let shift = match unit.to_ascii_uppercase() {
                'K' => 10,
                'M' => 20,
                'G' => 30,
                'T' => 40,
                'P' => 50,
                _ => return Err(wrong()),
            };
            (&word[..at], shift)
        }
        _ => (word, 0),
    };
    if !number.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(wrong());
    }
    let number: u64 = number.parse().map_err(|_| wrong())?;
    number.checked_mul(1 << shift).ok_or_else(wrong)
}

fn object_shift(value: &str) -> Result<u8, FsError> {
    let bytes = size(value.as_bytes())?;
    (MIN_BLOCK_SIZE_SHIFT..=MAX_BLOCK_SIZE_SHIFT)
        .find(|&shift| 1u64 << shift == bytes)
        .ok_or_else(|| invalid(format!("'{value}': an object has 1M to 2G, a power of two")))
}

/// A whole number, of which 0 is off and any other is on.
///
/// As the original takes it with `%d` of scanf(3): blanks and a sign may stand
/// before the number, and what follows it is not looked at.
pub(crate) fn switch(line: &[u8]) -> Result<bool, FsError> {
    let blank = |byte: &u8| matches!(byte, b' ' | b'\t'..=b'\r');
    let start = line.iter().position(|byte| !blank(byte));
    let number = &line[start.unwrap_or(line.len())..];
    let digits = match number {
        [b'+' | b'-', digits @ ..] => digits,
        digits => digits,
    };
    let end = digits.iter().position(|byte| !byte.is_ascii_digit());
    let digits = &digits[..end.unwrap_or(digits.len())];
    if digits.is_empty() {
        return Err(invalid(
            "expected a whole number: 0 is off, any other is on",
        ));
    }
    Ok(digits.iter().any(|&digit| digit != b'0'))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn command_create_line_is_parsed() {
        let CreateLine { new, preallocate } =
            create(b"disk0 10G copies=4:2 object_size=8M prealloc").unwrap();
        assert_eq!(new.name, VdiName::new("disk0").unwrap());
        assert_eq!((new.size, new.object_shift), (10 << 30, Some(23)));
        assert_eq!(
            new.redundancy,
            Some(Redundancy::Erasure { data: 4, parity: 2 })
        );
        assert!(preallocate && !new.hypervolume);
        assert!(create(b"big 16T hyper").unwrap().new.hypervolume);
    }

    #[test]
    fn command_error_names_wrong_word() {
        for (line, word) in [
            ("a", "expected NAME SIZE"),
            ("a b", "'b' is not a size"),
            ("a 1X", "'1X' is not a size"),
            ("a -1", "'-1' is not a size"),
            ("a 99999999999P", "'99999999999P' is not a size"),
            ("a 1G copies=0", "'copies=0'"),
            ("a 1G object_size=3M", "'3M'"),
            ("a 1G colour=red", "'colour=red' is not known"),
        ] {
            let error = create(line.as_bytes()).unwrap_err().to_string();
            assert!(error.contains(word), "{line}: {error}");
        }
    }

    #[test]
    fn command_line_ends_at_one_newline() {
        assert_eq!(line(b"demo\n").unwrap(), b"demo");
        assert_eq!(line(b"demo").unwrap(), b"demo");
        assert!(line(b"\n").is_err());
        assert!(line(&[b'x'; 2000]).is_err());
    }

    #[test]
    fn command_switch_is_off_at_zero_only() {
        for off in ["0", "-0", "+00", " 0", "0x1", "0.5", "\t\n\x0b\x0c\r0"] {
            assert!(!switch(off.as_bytes()).unwrap(), "{off:?}");
        }
        for on in [
            "1",
            "2",
            "-1",
            "+1",
            "01",
            " 1",
            "1 \r",
            "1 0",
            "4294967296",
        ] {
            assert!(switch(on.as_bytes()).unwrap(), "{on:?}");
        }
        for neither in ["", " ", "yes", "on", "-", "+-1", "- 1", "x1", "\x001"] {
            assert!(switch(neither.as_bytes()).is_err(), "{neither:?}");
        }
    }

    proptest! {
        #[test]
        fn command_no_line_panics(data: Vec<u8>) {
            if let Ok(line) = line(&data) {
                let _ = (create(line), split_two_words(line, "A B"), switch(line));
            }
        }
    }
}
