//! `cargo xtask man`: the manual pages, made from the command line's own words.

/// Writes all pages.
pub(crate) fn write() -> anyhow::Result<()> {
    Ok(())
}

/// Describes every page that differs from what [`write`] would write.
pub(crate) fn stale() -> anyhow::Result<Vec<String>> {
    Ok(Vec::new())
}
