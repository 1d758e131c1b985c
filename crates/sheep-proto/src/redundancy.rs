//! How often, or in how many strips, an object is stored.
//!
//! Source: protocol 4.3.

use std::fmt;
use std::str::FromStr;

use crate::limits::MAX_COPIES;

/// The redundancy of a VDI or of a cluster's new VDIs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Redundancy {
    /// This many full replicas.
    Replicated(u8),
    /// Erasure coded.
    Erasure {
        /// Data strips per stripe.
        data: u8,
        /// Parity strips per stripe.
        parity: u8,
    },
}

impl Redundancy {
    /// Reads the `nr_copies` and `copy_policy` bytes of an inode or response.
    ///
    /// The bytes are taken at their word: damaged ones can give no copies, no
    /// data strips or no parity strips.
    pub const fn from_wire(nr_copies: u8, copy_policy: u8) -> Self {
        if copy_policy == 0 {
            Self::Replicated(nr_copies)
        } else {
            Self::Erasure {
                data: (copy_policy >> 4) * 2,
                parity: copy_policy & 0x0f,
            }
        }
    }

    /// The `nr_copies` byte: replicas, or data and parity strips together.
    pub const fn nr_copies(self) -> u8 {
        match self {
            Self::Replicated(copies) => copies,
            Self::Erasure { data, parity } => data.saturating_add(parity),
        }
    }

    /// The `copy_policy` byte.
    pub const fn copy_policy(self) -> u8 {
        match self {
            Self::Replicated(_) => 0,
            Self::Erasure { data, parity } => ((data / 2) << 4) | parity,
        }
    }
}

/// Prints as dog does: `2`, or `4:2`.
impl fmt::Display for Redundancy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Replicated(copies) => write!(f, "{copies}"),
            Self::Erasure { data, parity } => write!(f, "{data}:{parity}"),
        }
    }
}

/// Text that names no redundancy a cluster accepts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("copies are 1 to 31, or D:P with D one of 2, 4, 8, 16 and P 1 to 15")]
pub struct BadRedundancy;

impl FromStr for Redundancy {
    type Err = BadRedundancy;

    fn from_str(text: &str) -> Result<Self, BadRedundancy> {
        let number = |text: &str| text.parse::<u8>().map_err(|_| BadRedundancy);
        match text.split_once(':') {
            None => match number(text)? {
                copies @ 1..=MAX_COPIES => Ok(Self::Replicated(copies)),
                _ => Err(BadRedundancy),
            },
            Some((data, parity)) => match (number(data)?, number(parity)?) {
                (data @ (2 | 4 | 8 | 16), parity @ 1..=15) => Ok(Self::Erasure { data, parity }),
                _ => Err(BadRedundancy),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn policies_have_the_documented_bytes() {
        for (text, policy, copies) in [
            ("2:1", 0x11, 3),
            ("4:2", 0x22, 6),
            ("4:1", 0x21, 5),
            ("8:4", 0x44, 12),
            ("16:15", 0x8f, 31),
            ("3", 0, 3),
        ] {
            let redundancy: Redundancy = text.parse().unwrap();
            assert_eq!(redundancy.copy_policy(), policy);
            assert_eq!(redundancy.nr_copies(), copies);
            assert_eq!(Redundancy::from_wire(copies, policy), redundancy);
            assert_eq!(redundancy.to_string(), text);
        }
    }

    #[test]
    fn redundancy_invalid_does_not_parse() {
        for text in ["", "0", "32", "3:1", "4:0", "4:16", "18:1", "4:", ":2", "x"] {
            assert_eq!(text.parse::<Redundancy>(), Err(BadRedundancy), "{text}");
        }
    }
}
