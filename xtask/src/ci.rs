//! `cargo xtask ci`: everything a change has to pass.

use crate::step::run_cargo;
use crate::{requirements, tidy};

/// Stops at the first thing that fails; the quick ones come first.
pub(crate) fn run() -> anyhow::Result<()> {
    requirements::check()?;
    run_cargo(&["fmt", "--all", "--check"], &[])?;
    tidy::run()?;
    let clippy = [
        "clippy",
        "--workspace",
        "--all-targets",
        "--locked",
        "--",
        "-D",
        "warnings",
    ];
    run_cargo(&clippy, &[])?;
    // Libraries only: a program's doc comments are its help text, not Markdown.
    let doc = [
        "doc",
        "--workspace",
        "--lib",
        "--no-deps",
        "--document-private-items",
        "--locked",
    ];
    run_cargo(&doc, &[("RUSTDOCFLAGS", "-D warnings")])?;
    run_cargo(&["test", "--workspace", "--locked"], &[])
}
