//! Positions of the cells of a volume: around the borders between its objects.

use sheep_proto::limits::DEFAULT_BLOCK_SIZE_SHIFT;

use crate::checker::CELL;

/// Cells around each border between two objects: two before it, six after it.
pub(crate) const PER_BORDER: usize = 8;
/// Those before it.
pub(crate) const BEFORE: usize = 2;

/// The objects of a volume.
#[derive(Clone, Copy)]
pub(crate) struct Layout {
    pub(crate) objects: usize,
    pub(crate) hypervolume: bool,
    /// Whether the cluster has only objects of the default size.
    pub(crate) default_objects: bool,
}

impl Layout {
    pub(crate) fn cells(&self) -> usize {
        self.objects * PER_BORDER
    }

    /// Bytes of each object.
    pub(crate) fn object_size(&self) -> u64 {
        1 << if self.hypervolume || self.default_objects {
            DEFAULT_BLOCK_SIZE_SHIFT
        } else {
            20
        }
    }

    pub(crate) fn size(&self) -> u64 {
        self.start(self.objects)
    }

    /// Where an object begins.
    pub(crate) fn start(&self, object: usize) -> u64 {
        object as u64 * self.object_size()
    }

    /// The offset of a cell. Those of the first border are in the middle of the
    /// first object, as there is nothing before it.
    pub(crate) fn offset(&self, cell: usize) -> u64 {
        let (border, cell) = (cell / PER_BORDER, cell % PER_BORDER);
        let start = match border {
            0 => self.object_size() / 2,
            _ => self.start(border) - (BEFORE * CELL) as u64,
        };
        start + (cell * CELL) as u64
    }
}

/// The object that a cell is in.
pub(crate) fn object_of(cell: usize) -> usize {
    match (cell / PER_BORDER, cell % PER_BORDER) {
        (border, cell) if cell < BEFORE => border.saturating_sub(1),
        (border, _) => border,
    }
}
