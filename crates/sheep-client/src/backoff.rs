//! Pauses between attempts: short at first, longer while nothing helps.

use std::time::Duration;

const FIRST: Duration = Duration::from_millis(50);
const LONGEST: Duration = Duration::from_secs(2);

/// The pause after `failures` failed attempts in a row.
pub(crate) fn pause(failures: u32) -> Duration {
    FIRST.saturating_mul(1 << failures.min(10)).min(LONGEST)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn backoff_grows_up_to_a_limit() {
        assert_eq!(pause(0), FIRST);
        assert_eq!(pause(1), 2 * FIRST);
        assert_eq!(pause(u32::MAX), LONGEST);
    }
}
