//! `cargo xtask fuzz`: every fuzz target for a while, one after the other.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context as _, bail, ensure};
use clap::Args;

use crate::step::{cargo, root, run_cargo};

mod seeds;

/// Crates with a `fuzz` directory, which is a workspace of its own.
const CRATES: [&str; 5] = [
    "sheep-proto",
    "sheep-embedded",
    "sheep-nbd",
    "sheepfs-vfs",
    "sheepfs",
];

/// What to run, and for how long.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Only the targets with this in their name
    target: Option<String>,
    /// Seconds for each target
    #[arg(long, default_value_t = 60)]
    seconds: u32,
}

/// Every target starts with the captured frames and its corpus of earlier runs. Stops at
/// the first failure; cargo-fuzz prints how to run its input again. Needs cargo-fuzz, and a
/// compiler with `-Z` flags: `RUSTC_BOOTSTRAP` enables them for every toolchain.
pub(crate) fn run(options: &Options) -> anyhow::Result<()> {
    let found = cargo(&["fuzz", "--version"]).output();
    ensure!(
        found.is_ok_and(|answer| answer.status.success()),
        "fuzzing needs `cargo install cargo-fuzz`"
    );
    let mut ran = false;
    for name in CRATES {
        let directory = format!("crates/{name}/fuzz");
        for target in targets(&directory)? {
            if !target.contains(options.target.as_deref().unwrap_or("")) {
                continue;
            }
            ran = true;
            let corpus = root().join(&directory).join("corpus").join(&target);
            seeds::write(&target, &corpus)?;
            let limit = format!("-max_total_time={}", options.seconds);
            let arguments = [
                "fuzz",
                "run",
                "--fuzz-dir",
                &directory,
                &target,
                "--",
                &limit,
            ];
            run_cargo(&arguments, &[("RUSTC_BOOTSTRAP", "1")])?;
        }
    }
    ensure!(ran, "no fuzz target has that in its name");
    Ok(())
}

/// The targets of a fuzz workspace: its files with `fuzz_target!`.
fn targets(directory: &str) -> anyhow::Result<Vec<String>> {
    let directory: PathBuf = root().join(directory).join("fuzz_targets");
    let mut found = Vec::new();
    for entry in fs::read_dir(&directory).with_context(|| directory.display().to_string())? {
        let path = entry?.path();
        if fs::read_to_string(&path)?.contains("fuzz_target!") {
            let name = path.file_stem().and_then(|name| name.to_str());
            found.push(name.context("a target's name is text")?.to_owned());
        }
    }
    if found.is_empty() {
        bail!("no targets in {}", directory.display());
    }
    found.sort();
    Ok(found)
}
