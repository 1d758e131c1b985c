//! The releases of sheep that the tests run on.

use std::env;

/// Names them: `0.7`, `0.8`, `0.9` or `1.0`, which is the default.
pub const GENERATION_VARIABLE: &str = "SHEEPFS_TEST_GENERATION";
/// The default.
pub const NEWEST_GENERATION: &str = "1.0";

/// The releases of the cluster of the tests.
#[must_use]
pub fn generation() -> String {
    env::var(GENERATION_VARIABLE).unwrap_or_else(|_unset| NEWEST_GENERATION.to_owned())
}

/// Whether the cluster can have volumes with these options of `vdi/create`; tells it
/// otherwise.
#[must_use]
pub fn exists(options: &str) -> bool {
    let generation = generation();
    let is_as_they_say = |word: &str| match word.split_once('=') {
        Some(("object_size", size)) => size == "4M",
        Some(("copies", copies)) => generation != "0.7" || !copies.contains(':'),
        _ => word != "hyper" || generation == "0.9",
    };
    let exists = generation == NEWEST_GENERATION || options.split(' ').all(is_as_they_say);
    if !exists {
        println!("there is none on sheep {generation}: {options}");
    }
    exists
}

/// Options of `vdi/create` without an object size where there is only one.
pub(crate) fn supported_options(options: &str) -> String {
    let has_object_sizes = generation() == NEWEST_GENERATION;
    let is_kept = |word: &&str| has_object_sizes || !word.starts_with("object_size=");
    let kept: Vec<&str> = options.split(' ').filter(is_kept).collect();
    kept.join(" ")
}
