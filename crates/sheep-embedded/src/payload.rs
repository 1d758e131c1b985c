//! The payload of an answer: bytes of its own, or pages it shares with the store.

use std::ops::Range;
use std::sync::Arc;

/// A page of bytes, copied on write while it is shared.
pub(crate) type Page = Arc<Vec<u8>>;

/// Backs every [`Part::Zeros`].
static ZEROS: [u8; 64 << 10] = [0; 64 << 10];

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Payload {
    parts: Vec<Part>,
    len: usize,
}

#[derive(Debug)]
enum Part {
    Own(Vec<u8>),
    Shared(Page, Range<usize>),
    /// At most as many as [`ZEROS`] has.
    Zeros(usize),
}

impl Part {
    fn bytes(&self) -> &[u8] {
        match self {
            Self::Own(bytes) => bytes,
            Self::Shared(page, range) => &page[range.clone()],
            Self::Zeros(len) => &ZEROS[..*len],
        }
    }
}

impl Payload {
    /// Nothing yet, with room for some parts.
    pub(crate) fn with_capacity(parts: usize) -> Self {
        Self {
            parts: Vec::with_capacity(parts),
            len: 0,
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Appends a range of a page.
    pub(crate) fn push(&mut self, page: Page, range: Range<usize>) {
        self.len += range.len();
        self.parts.push(Part::Shared(page, range));
    }

    /// Appends zeros.
    pub(crate) fn push_zeros(&mut self, count: usize) {
        self.len += count;
        let mut left = count;
        while left > 0 {
            let now = left.min(ZEROS.len());
            self.parts.push(Part::Zeros(now));
            left -= now;
        }
    }

    /// The bytes, as slices that are not empty.
    pub(crate) fn slices(&self) -> impl Iterator<Item = &[u8]> {
        self.parts.iter().map(Part::bytes)
    }
}

impl From<Vec<u8>> for Payload {
    fn from(bytes: Vec<u8>) -> Self {
        if bytes.is_empty() {
            return Self::default();
        }
        Self {
            len: bytes.len(),
            parts: vec![Part::Own(bytes)],
        }
    }
}
