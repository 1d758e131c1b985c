//! The values that each cell of a volume may have, given the acknowledged writes.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard};

/// Bytes of a cell.
pub(crate) const CELL: usize = 512;

/// A cell is written by one writer at a time; each write has a number of its own.
#[derive(Clone, Debug, Default)]
struct Cell {
    /// The acknowledged numbers, in order; 0 stands for a new volume.
    acknowledged: Vec<u64>,
    pending: Option<u64>,
    /// Writes that failed: they may have run, or may run at any time.
    unknown: BTreeSet<u64>,
}

/// The cells of a volume. Clones are the same one.
#[derive(Clone, Default)]
pub(crate) struct Checker(Arc<Mutex<Vec<Cell>>>);

/// A moment, after which certain values may no longer be read.
pub(crate) struct Since(Vec<(usize, Option<u64>)>);

impl Checker {
    pub(crate) fn new(cells: usize) -> Self {
        let cell = Cell {
            acknowledged: vec![0],
            ..Cell::default()
        };
        Self(Arc::new(Mutex::new(vec![cell; cells])))
    }

    fn cells(&self) -> MutexGuard<'_, Vec<Cell>> {
        self.0.lock().expect("a failed check ends the run")
    }

    pub(crate) fn begin(&self, cells: impl Iterator<Item = usize>, number: u64) {
        let mut all = self.cells();
        for cell in cells {
            let before = all[cell].pending.replace(number);
            assert!(before.is_none(), "two writers of one cell");
        }
    }

    pub(crate) fn end(&self, cells: impl Iterator<Item = usize>, acknowledged: bool) {
        let mut all = self.cells();
        for cell in cells {
            let cell = &mut all[cell];
            let number = cell.pending.take().expect("it was begun");
            if acknowledged {
                cell.acknowledged.push(number);
            } else {
                cell.unknown.insert(number);
            }
        }
    }

    /// The writer has crashed: the outcome of its writes is unknown.
    pub(crate) fn forget_pending(&self) {
        for cell in self.cells().iter_mut() {
            let pending = cell.pending.take();
            cell.unknown.extend(pending);
        }
    }

    pub(crate) fn now(&self) -> Since {
        let cells = self.cells();
        Since(
            cells
                .iter()
                .map(|cell| (cell.acknowledged.len(), cell.pending))
                .collect(),
        )
    }

    /// The same moment for a client that hears of discards of some cells only
    /// when the cluster has deleted the object: the value of a cell before the discard is
    /// allowed, too.
    pub(crate) fn before_discards(
        &self,
        Since(mut moments): Since,
        of: impl IntoIterator<Item = usize>,
    ) -> Since {
        let cells = self.cells();
        for cell in of {
            let count = &mut moments[cell].0;
            while *count > 1 && cells[cell].acknowledged[*count - 1] == 0 {
                *count -= 1;
            }
        }
        Since(moments)
    }

    /// Checks the value of a cell that was read from `since` on.
    pub(crate) fn check(&self, cell: usize, since: &Since, found: &[u8], where_: &str) {
        let numbers: BTreeSet<u64> = found
            .chunks_exact(8)
            .map(|number| u64::from_le_bytes(number.try_into().expect("eight bytes")))
            .collect();
        let all = self.cells();
        let (known, pending) = (&all[cell], since.0[cell].1);
        let allowed = |number: &u64| {
            known.acknowledged[since.0[cell].0 - 1..].contains(number)
                || known.pending == Some(*number)
                || pending == Some(*number)
                || known.unknown.contains(number)
        };
        // A cell that is being written may be torn.
        let whole = numbers.len() == 1
            || pending.is_some()
            || known.pending.is_some()
            || !known.unknown.is_empty()
            || known.acknowledged.len() > since.0[cell].0;
        assert!(
            whole && numbers.iter().all(allowed),
            "{where_}: cell {cell} holds {numbers:?}, known is {known:?} since {:?}",
            since.0[cell]
        );
    }
}
