//! Sizes as dog prints them: `4.0 MB`, `16 TB`.

const MEBIBYTE: f64 = 1_048_576.0;
const UNITS: [&str; 7] = ["MB", "GB", "TB", "PB", "EB", "ZB", "YB"];

/// `bytes` in the largest unit that leaves at least 1, but no smaller than MB;
/// one decimal below 10, none from 10 on.
///
/// Rounding comes after the choice of unit and decimals, and goes to even on a
/// tie, as the C library's: 1023.9 MiB are `1024 MB`, 9.999 MiB are `10.0 MB`.
///
/// Source: protocol 9.1.
#[expect(
    clippy::cast_precision_loss,
    reason = "dog converts to a double as well"
)]
pub(super) fn human_size(bytes: u64) -> String {
    let mut value = bytes as f64 / MEBIBYTE;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    let decimals = if value >= 10.0 { 0 } else { 1 };
    format!("{value:.decimals$} {}", UNITS[unit])
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn human_size_matches_documented_texts() {
        for (bytes, text) in [
            (0, "0.0 MB"),
            (1, "0.0 MB"),
            (513, "0.0 MB"),
            (4_194_304, "4.0 MB"),
            (10_484_736, "10.0 MB"),
            (16_777_216, "16 MB"),
            (1_072_693_248, "1023 MB"),
            (1_073_741_824, "1.0 GB"),
            (1_572_864_000, "1.5 GB"),
            (17_592_186_044_416, "16 TB"),
        ] {
            assert_eq!(human_size(bytes), text, "{bytes}");
        }
    }

    /// The texts were printed by C's `%.0f` and `%.1f`.
    #[test]
    fn human_size_ties_go_to_even() {
        for (bytes, text) in [
            (MIB / 4, "0.2 MB"),
            (MIB / 4 + 1, "0.3 MB"),
            (3 * MIB / 4, "0.8 MB"),
            (5 * MIB / 4, "1.2 MB"),
            (7 * MIB / 4, "1.8 MB"),
            (9 * MIB / 4, "2.2 MB"),
            (37 * MIB / 4, "9.2 MB"),
            (39 * MIB / 4, "9.8 MB"),
            (21 * MIB / 2, "10 MB"),
            (21 * MIB / 2 + 1, "11 MB"),
            (23 * MIB / 2, "12 MB"),
            (25 * MIB / 2, "12 MB"),
            (2047 * MIB / 2, "1024 MB"),
            (1024 * MIB - 1, "1024 MB"),
            (1280 * MIB, "1.2 GB"),
            (u64::MAX, "16 EB"),
            // Rounded to a double before anything else.
            ((1 << 60) - 1, "1.0 EB"),
        ] {
            assert_eq!(human_size(bytes), text, "{bytes}");
        }
    }
}
