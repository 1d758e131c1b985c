//! `cargo xtask man`: the manual pages, made from the command lines' own words.

use std::fs;
use std::path::PathBuf;

use anyhow::Context as _;
use clap::{Command, CommandFactory as _};
use clap_mangen::Man;

use crate::root;

#[path = "../../crates/sheep-embedded/src/cli.rs"]
mod sheep_embedded;
#[path = "../../crates/sheepfs/src/cli.rs"]
mod sheepfs;

/// Writes all pages to `man/`.
pub(crate) fn write() -> anyhow::Result<()> {
    for page in pages() {
        let path = page.path();
        fs::write(&path, page.text()?).with_context(|| path.display().to_string())?;
    }
    Ok(())
}

/// Describes every page that differs from what [`write`] would write.
pub(crate) fn stale() -> anyhow::Result<Vec<String>> {
    let mut found = Vec::new();
    for page in pages() {
        let path = page.path();
        // A page that is not there is as stale as one with other words.
        if fs::read_to_string(&path).unwrap_or_default() != page.text()? {
            found.push(format!(
                "{} is stale; run `cargo xtask man`",
                path.display()
            ));
        }
    }
    Ok(found)
}

struct Page(Command);

fn pages() -> Vec<Page> {
    vec![
        Page(sheepfs::Cli::command()),
        Page(sheep_embedded::Cli::command()),
    ]
}

impl Page {
    fn path(&self) -> PathBuf {
        root().join(format!("man/{}.8", self.0.get_name()))
    }

    fn text(&self) -> anyhow::Result<String> {
        let mut text = Vec::new();
        Man::new(self.0.clone())
            .section("8")
            .manual("System Administration")
            .render(&mut text)?;
        // The renderer ends the synopsis with a blank, which tidy would find.
        let mut lines = String::from_utf8(text)?;
        lines = lines
            .lines()
            .map(|line| line.trim_end().to_owned() + "\n")
            .collect();
        Ok(lines)
    }
}
