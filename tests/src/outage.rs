//! How long servers stay away in tests of outages.

use std::env;
use std::time::Duration;

/// Seconds in `SHEEPFS_TEST_OUTAGE`, 3 by default; longer ones test timeouts as well.
#[must_use]
pub fn outage() -> Duration {
    let seconds = env::var("SHEEPFS_TEST_OUTAGE").ok();
    Duration::from_secs(seconds.and_then(|text| text.parse().ok()).unwrap_or(3))
}
