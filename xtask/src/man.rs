//! `cargo xtask man`: manual pages and shell completions, made from the command
//! lines' own words.
//!
//! A page is a template with prose in it (mdoc(7)), where [`OPTIONS`] stands for
//! what `--help` says of the options; `mdoc.rs` writes that part.

use std::env;
use std::fs;
use std::path::PathBuf;
use std::process::Command as Program;

use anyhow::Context as _;
use clap::{Command, CommandFactory as _};
use clap_complete::{Shell, generate};

use crate::step::root;

#[path = "../../crates/sheepfs/src/mount_cli.rs"]
mod mount_sheepfs;
#[path = "../../crates/sheep-embedded/src/cli.rs"]
mod sheep_embedded;
#[path = "../../crates/sheep-nbd/src/cli.rs"]
mod sheep_nbd;
#[path = "../../crates/sheepfs/src/cli.rs"]
mod sheepfs;

mod mdoc;

/// The line of a template that the options replace.
const OPTIONS: &str = "@OPTIONS@\n";
/// Where completions are, and under which names shells look for them.
const COMPLETIONS: &str = "crates/sheepfs/completions";

/// A file that is made, not written.
struct Made {
    path: PathBuf,
    text: String,
}

/// Writes all of them.
pub(crate) fn write() -> anyhow::Result<()> {
    for made in all()? {
        if let Some(directory) = made.path.parent() {
            fs::create_dir_all(directory).with_context(|| directory.display().to_string())?;
        }
        fs::write(&made.path, &made.text).with_context(|| made.path.display().to_string())?;
    }
    Ok(())
}

/// Describes every file that differs from what [`write`] would write.
pub(crate) fn stale() -> anyhow::Result<Vec<String>> {
    let mut found = Vec::new();
    for made in all()? {
        // A file that is not there is as stale as one with other words.
        if fs::read_to_string(&made.path).unwrap_or_default() != made.text {
            found.push(format!(
                "{} is stale; run `cargo xtask man`",
                made.path.display()
            ));
        }
    }
    Ok(found)
}

/// What mandoc(1) has against the pages. Without mandoc nothing is checked,
/// which CI does not accept.
pub(crate) fn badly_written() -> anyhow::Result<Vec<String>> {
    let pages = pages()?.into_iter().map(|page| page.path);
    let output = Program::new("mandoc")
        .args(["-T", "lint", "-W", "warning"])
        .args(pages)
        .current_dir(root())
        .output();
    match output {
        Ok(output) => {
            let lines = String::from_utf8_lossy(&output.stdout).into_owned();
            Ok(lines.lines().map(str::to_owned).collect())
        }
        Err(error) if env::var_os("CI").is_none() => {
            eprintln!("tidy: the manual pages are not checked: mandoc: {error}");
            Ok(Vec::new())
        }
        Err(error) => Err(error).context("mandoc checks the manual pages"),
    }
}

fn all() -> anyhow::Result<Vec<Made>> {
    let mut all = pages()?;
    all.extend(completions()?);
    Ok(all)
}

fn pages() -> anyhow::Result<Vec<Made>> {
    let page = |command: &Command, template: &str| {
        let path = root().join(format!("man/{}.8", command.get_name()));
        let text = template.replacen(OPTIONS, &mdoc::options(command), 1);
        anyhow::ensure!(text != template, "{} has no {OPTIONS}", path.display());
        Ok(Made { path, text })
    };
    let embedded = sheep_embedded::Cli::command();
    let plain = mdoc::plain_page(&embedded, OPTIONS);
    Ok(vec![
        page(
            &sheepfs::Cli::command(),
            include_str!("../../crates/sheepfs/src/man/sheepfs.8.in"),
        )?,
        page(
            &mount_sheepfs::MountCli::command(),
            include_str!("../../crates/sheepfs/src/man/mount.sheepfs.8.in"),
        )?,
        page(
            &sheep_nbd::Cli::command(),
            include_str!("../../crates/sheep-nbd/src/man/sheep-nbd.8.in"),
        )?,
        page(&embedded, &plain)?,
    ])
}

fn completions() -> anyhow::Result<Vec<Made>> {
    let names = [
        (Shell::Bash, "sheepfs"),
        (Shell::Zsh, "_sheepfs"),
        (Shell::Fish, "sheepfs.fish"),
    ];
    let made = names.map(|(shell, name)| {
        let mut text = Vec::new();
        generate(shell, &mut sheepfs::Cli::command(), "sheepfs", &mut text);
        Ok(Made {
            path: root().join(COMPLETIONS).join(name),
            text: String::from_utf8(text)?,
        })
    });
    made.into_iter().collect()
}
