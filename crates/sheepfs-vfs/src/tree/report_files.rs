//! The reports as files: each text is a file of its own.
//!
//! A kernel keeps one length and one set of cached pages for a file, and
//! sendfile(2), splice(2) and mmap(2) go by them even where read(2) does not. So
//! a report with a new text is another file to the kernel, as if it had
//! been replaced with rename(2), while stat(2) shows the same number for all:
//!
//! ```text
//! lookup  cluster ──► text ──► its file: length, times
//! open    the text of the file that was looked up
//! ```
//!
//! A bind mount of the file of one text opens it without a lookup. It gets the
//! current text all the same, so this file has another text from then on, and the
//! kernel's cache of it is replaced.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use sheep_client::Client;
use tokio::time::Instant;

use super::outage::Outage;
use crate::error::FsError;
use crate::ino::Ino;
use crate::node::{FsNode, STATIC_ENTRIES};
use crate::poison;
use crate::report::{Found, ReportText, SingleFlight};

/// Largest age of the length that stat(2) shows without a lookup.
const STAT_AGE: Duration = Duration::from_secs(1);

/// The reports of a tree.
pub(super) struct ReportFiles {
    /// By the number that stat(2) shows.
    reports: HashMap<Ino, SingleFlight>,
    /// The text that the kernel caches of a file, by the file's own number.
    shown: Mutex<HashMap<Ino, Shown>>,
}

struct Shown {
    found: Found,
    answered: Instant,
}

impl ReportFiles {
    pub(super) fn new(client: &Client, outage: &Arc<Outage>) -> Self {
        let reports = STATIC_ENTRIES.iter().filter_map(|entry| match entry.node {
            FsNode::Report(report, format) => Some((entry.ino, report, format)),
            _ => None,
        });
        let shared = reports.map(|(ino, report, format)| {
            let (client, outage) = (client.clone(), Arc::clone(outage));
            let ask = move || {
                let (client, outage) = (client.clone(), Arc::clone(&outage));
                async move {
                    let query = report.render(format, &client);
                    outage.unless_offline(&client, query).await
                }
            };
            (ino, SingleFlight::new(ask))
        });
        Self {
            reports: shared.collect(),
            shown: Mutex::default(),
        }
    }

    /// The text of a report as of now, and the number of the file that has it.
    pub(super) async fn lookup(&self, report: Ino) -> Result<(Ino, Arc<ReportText>), FsError> {
        let found = self.since(report, Instant::now()).await?;
        let text = Arc::clone(&found.text);
        let file = report.of_text(text.number);
        self.show(file, found);
        Ok((file, text))
    }

    /// The text for stat(2): the cached one while the file is open or the text young,
    /// otherwise a new one.
    pub(super) async fn stat(&self, file: Ino, is_open: bool) -> Result<Arc<ReportText>, FsError> {
        match self.shown().get(&file) {
            Some(shown) if is_open || shown.answered.elapsed() < STAT_AGE => {
                return Ok(Arc::clone(&shown.found.text));
            }
            _ => {}
        }
        let now = Instant::now();
        let found = self
            .since(file.report(), now.checked_sub(STAT_AGE).unwrap_or(now))
            .await?;
        let text = Arc::clone(&found.text);
        self.show(file, found);
        Ok(text)
    }

    /// The text for a new handle of `file`, not older than `since`, and whether the
    /// kernel may have cached another text of the file.
    pub(super) async fn open(
        &self,
        file: Ino,
        since: Instant,
    ) -> Result<(Arc<ReportText>, bool), FsError> {
        match self.shown().get(&file) {
            Some(shown) if shown.found.asked > since => {
                return Ok((Arc::clone(&shown.found.text), false));
            }
            _ => {}
        }
        let found = self.since(file.report(), since).await?;
        let text = Arc::clone(&found.text);
        Ok((text, self.show(file, found)))
    }

    /// True if this is the text that the kernel caches of `file`.
    pub(super) fn shows(&self, file: Ino, text: &Arc<ReportText>) -> bool {
        let shown = self.shown();
        let shown = shown.get(&file);
        shown.is_some_and(|shown| Arc::ptr_eq(&shown.found.text, text))
    }

    /// Keeps the page cache of `file` from being filled: the kernel may have a wrong
    /// length of it.
    pub(super) fn hide(&self, file: Ino) {
        self.shown().remove(&file);
    }

    async fn since(&self, report: Ino, instant: Instant) -> Result<Found, FsError> {
        let found = self.reports[&report].since(instant).await;
        found.map_err(FsError::Cluster)
    }

    /// Records the text that the kernel caches of `file`; true if it was another.
    fn show(&self, file: Ino, found: Found) -> bool {
        let mut shown = self.shown();
        // Evict texts without a handle after a second: every program that looked such a
        // file up has had the time to open it.
        shown.retain(|_, known| {
            Arc::strong_count(&known.found.text) > 1 || known.answered.elapsed() < STAT_AGE
        });
        let text = Arc::clone(&found.text);
        let answered = Instant::now();
        let before = shown.insert(file, Shown { found, answered });
        before.is_none_or(|before| !Arc::ptr_eq(&before.found.text, &text))
    }

    fn shown(&self) -> MutexGuard<'_, HashMap<Ino, Shown>> {
        poison::lock(&self.shown)
    }
}
