//! An image file to copy from and to.

use std::fs;
use std::path::Path;

use crate::model::seeded;

/// Writes an image of 32 MiB with data at both ends and a hole between.
///
/// # Errors
/// When it cannot be written.
pub fn make_image(path: &Path) -> anyhow::Result<()> {
    let mut bytes = vec![0; 32 << 20];
    let mut random = seeded();
    random.fill(&mut bytes[..3_000_000]);
    random.fill(&mut bytes[30_000_000..]);
    fs::write(path, bytes)?;
    Ok(())
}
