//! The binaries under test, built when they are not there yet.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::Duration;

use anyhow::Context as _;

use crate::program::run_within;

/// A build from nothing on a small machine.
const BUILD_LIMIT: Duration = Duration::from_secs(1800);

/// Path of `sheepfs`, of the same profile as the running test.
///
/// # Errors
/// When it does not build.
pub fn sheepfs_binary() -> anyhow::Result<PathBuf> {
    Ok(built()?.join("sheepfs"))
}

/// Path of `sheep-embedded`, of the same profile as the running test.
///
/// # Errors
/// When it does not build.
pub fn sheep_embedded_binary() -> anyhow::Result<PathBuf> {
    Ok(built()?.join("sheep-embedded"))
}

/// Path of `sheep-nbd`, of the same profile as the running test.
///
/// # Errors
/// When it does not build.
pub fn sheep_nbd_binary() -> anyhow::Result<PathBuf> {
    Ok(built()?.join("sheep-nbd"))
}

/// Builds all of them once per process and returns the directory they are in.
///
/// Cargo builds no binary of one package for the tests of another, and
/// `cargo test` on a fresh clone must work, so this asks it to.
fn built() -> anyhow::Result<&'static Path> {
    static DIRECTORY: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    DIRECTORY
        .get_or_init(|| build().map_err(|error| format!("{error:#}")))
        .as_deref()
        .map_err(|error| anyhow::anyhow!("{error}"))
}

fn build() -> anyhow::Result<PathBuf> {
    // TARGET/PROFILE/xtask or TARGET/PROFILE/deps/volume-0123456789abcdef
    let running = env::current_exe().context("the path of the running program")?;
    let mut directory = running.parent().context("a program has a directory")?;
    if directory.ends_with("deps") {
        directory = directory.parent().context("deps has a parent")?;
    }
    let target = directory.parent().context("a profile has a parent")?;
    let profile = match directory.file_name().and_then(|name| name.to_str()) {
        Some("debug") => "dev",
        Some(name) => name,
        None => anyhow::bail!("{} is not a target directory", directory.display()),
    };
    run_within(
        BUILD_LIMIT,
        Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
            .args([
                "build",
                "--quiet",
                "--package=sheepfs",
                "--package=sheep-embedded",
                "--package=sheep-nbd",
            ])
            .arg(format!("--profile={profile}"))
            .arg("--target-dir")
            .arg(target)
            .current_dir(env!("CARGO_MANIFEST_DIR")),
    )?;
    Ok(directory.to_owned())
}
