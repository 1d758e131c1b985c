//! Times as dog prints them: in the time zone of this process.

use jiff::Timestamp;
use jiff::tz::TimeZone;

/// `seconds` since 1970 in `zone`, in a form as of strftime(3).
///
/// A number that stands for no year up to 9999, which no cluster writes, is
/// printed as it is.
pub(super) fn local_time(form: &str, seconds: u64, zone: &TimeZone) -> String {
    match i64::try_from(seconds).map(Timestamp::from_second) {
        Ok(Ok(time)) => time
            .to_zoned_datetime(zone.clone())
            .strftime(form)
            .to_string(),
        _ => seconds.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CTIME: &str = "%a %b %e %H:%M:%S %Y";

    #[test]
    fn local_time_follows_zone_and_summer_time() {
        let zone = TimeZone::posix("CET-1CEST,M3.5.0,M10.5.0/3").unwrap();
        assert_eq!(
            local_time(CTIME, 1_795_426_656, &zone),
            "Mon Nov 23 10:37:36 2026"
        );
        assert_eq!(
            local_time("%Y-%m-%d %H:%M", 1_783_000_000, &zone),
            "2026-07-02 15:46"
        );
    }

    #[test]
    fn local_time_pads_day_with_blank() {
        assert_eq!(
            local_time(CTIME, 0, &TimeZone::UTC),
            "Thu Jan  1 00:00:00 1970"
        );
    }

    #[test]
    fn local_time_out_of_range_is_a_number() {
        assert_eq!(
            local_time(CTIME, u64::MAX, &TimeZone::UTC),
            "18446744073709551615"
        );
    }
}
