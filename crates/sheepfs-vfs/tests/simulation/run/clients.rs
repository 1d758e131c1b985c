//! The clients: writers, readers, discards.

use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use sheepfs_vfs::{BlockDevice as _, Volume};

use super::{HEAD_AGE, OBJECTS, OTHER_HOST, Simulation, WRITERS, is_lost};
use crate::checker::CELL;
use crate::layout::{BEFORE, PER_BORDER, object_of};

/// What each of them does before it ends.
const STEPS: usize = 12;

impl Simulation {
    pub(super) async fn write_often(self: Arc<Self>, volume: Arc<Volume>, writer: usize) {
        // The first of them crosses the border.
        let own = [[1, 2], [3, 4], [5, 6], [0, 7]][writer];
        for _ in 0..STEPS {
            tokio::time::sleep(self.rng.pause(Duration::from_secs(2))).await;
            // The first writer's cells in the others are the streamer's.
            let objects = if writer == 0 {
                OBJECTS
            } else {
                self.layout.objects - OTHER_HOST
            };
            let object = self.rng.up_to(objects - 1);
            if self.rng.one_in(20) {
                self.free(&volume, object).await;
                continue;
            }
            let cells = if writer == 3 {
                let cell = own[self.rng.up_to(1)];
                cell..=cell
            } else {
                let first = self.rng.up_to(1);
                own[first]..=own[first + self.rng.up_to(1 - first)]
            };
            let number = match self.rng.one_in(15) {
                true => 0,
                false => self.next_number(),
            };
            self.write_cells(&volume, object, cells, number).await;
            if self.rng.one_in(10) {
                volume.flush().await.unwrap();
                self.rng.note(("synced", writer));
            }
        }
        self.rng.note(("ended", writer));
    }

    /// Goes through the last objects twice, one after the other.
    pub(super) async fn write_on_and_on(self: Arc<Self>, volume: Arc<Volume>) {
        let all = self.layout.objects - OTHER_HOST;
        let once = OBJECTS..all;
        for object in once.clone().chain(once) {
            tokio::time::sleep(self.rng.pause(Duration::from_millis(500))).await;
            // At the border or across it.
            let first = BEFORE - self.rng.up_to(1);
            let number = self.next_number();
            self.write_cells(&volume, object, first..=BEFORE, number)
                .await;
            if self.rng.one_in(10) {
                let near = object - 1 + self.rng.up_to(3);
                self.free(&volume, near.min(all - 1)).await;
            }
        }
        self.rng.note(("ended", WRITERS));
    }

    /// Writes a number to some cells around the beginning of an object; 0 is a hole.
    async fn write_cells(
        &self,
        volume: &Arc<Volume>,
        object: usize,
        cells: RangeInclusive<usize>,
        number: u64,
    ) {
        let cells = *cells.start() + object * PER_BORDER..*cells.end() + 1 + object * PER_BORDER;
        let mut shared = vec![self.objects[object].read().await];
        if let Some(before) = object.checked_sub(1) {
            shared.push(self.objects[before].read().await);
        }
        self.rng.note(("writes", &cells, number));
        self.checker.begin(cells.clone(), number);
        let began = tokio::time::Instant::now();
        let len = cells.len() * CELL;
        let outcome = if number == 0 {
            volume
                .discard(self.layout.offset(cells.start), len as u64)
                .await
        } else {
            let data = Bytes::from(number.to_le_bytes().repeat(len / 8));
            volume
                .write_at(self.layout.offset(cells.start), data)
                .await
                .map(|written| assert_eq!(written as usize, len))
        };
        self.rng
            .note(("written", &cells, number, format!("{outcome:?}")));
        self.checker.end(cells, outcome.is_ok());
        self.count(|totals| {
            totals.writes += 1;
            totals.failed += u64::from(outcome.is_err());
            totals.longest = totals.longest.max(began.elapsed());
        });
    }

    /// Frees a whole object.
    async fn free(&self, volume: &Arc<Volume>, object: usize) {
        let _alone = self.objects[object].write().await;
        let first = object * PER_BORDER + if object == 0 { 0 } else { BEFORE };
        let cells = first..((object + 1) * PER_BORDER + BEFORE).min(self.layout.cells());
        self.checker.begin(cells.clone(), 0);
        let (start, len) = (self.layout.start(object), self.layout.object_size());
        self.freeing.lock().unwrap().insert(object);
        let outcome = volume.discard(start, len).await;
        self.freeing.lock().unwrap().remove(&object);
        self.rng.note(("freed", object, format!("{outcome:?}")));
        self.checker.end(cells, outcome.is_ok());
    }

    pub(super) async fn read_often(self: Arc<Self>, volume: Arc<Volume>) {
        for _ in 0..STEPS {
            tokio::time::sleep(self.rng.pause(Duration::from_secs(2))).await;
            let cell = self.rng.up_to(self.layout.cells() - 1);
            let elsewhere = object_of(cell) == self.layout.objects - 1;
            self.read_and_check(&volume, cell, elsewhere, "a read")
                .await;
        }
    }

    /// Reads on another host the writes of both hosts.
    pub(super) async fn read_elsewhere(self: Arc<Self>, volume: Arc<Volume>) {
        for _ in 0..2 * STEPS {
            tokio::time::sleep(self.rng.pause(Duration::from_secs(2))).await;
            let cell = self.rng.up_to(self.layout.cells() - 1);
            let elsewhere = object_of(cell) != self.layout.objects - 1;
            self.read_and_check(&volume, cell, elsewhere, "a read on another host")
                .await;
        }
    }

    /// Reads a cell, that another client writes when it is from `elsewhere`.
    async fn read_and_check(&self, volume: &Arc<Volume>, cell: usize, elsewhere: bool, what: &str) {
        let mut since = self.checker.now();
        if elsewhere {
            since = self.checker.before_discards(since, [cell]);
            if self.snapshots {
                tokio::time::sleep(HEAD_AGE).await;
            }
        }
        let found = match self.try_read_cell(volume, cell).await {
            // A snapshot that races with a discard writes back slots of deleted
            // objects, until the discarding client clears them again.
            Err(error) if elsewhere && is_lost(&error) && self.may_be_gone(object_of(cell)) => {
                return;
            }
            found => found.unwrap(),
        };
        self.rng.note((what, cell, &found[..8]));
        self.checker.check(cell, &since, &found, what);
        self.count(|totals| totals.reads += 1);
    }

    /// Writes on another host to an object without writers here.
    pub(super) async fn write_elsewhere(self: Arc<Self>, volume: Arc<Volume>) {
        let object = self.layout.objects - 1;
        for _ in 0..STEPS {
            tokio::time::sleep(self.rng.pause(Duration::from_secs(2))).await;
            if self.rng.one_in(5) {
                self.free(&volume, object).await;
                continue;
            }
            let cell = BEFORE + self.rng.up_to(PER_BORDER - BEFORE - 1);
            let number = self.next_number();
            self.write_cells(&volume, object, cell..=cell, number).await;
        }
        volume.flush().await.unwrap();
        self.rng.note("the other host ended");
    }
}
