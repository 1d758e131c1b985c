//! `cargo xtask tidy`: what the compiler does not check.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, bail};

use crate::step::root;
use crate::{dependencies, edges, man, modules, requirements, words};

/// Extensions of the files checked for tabs and trailing blanks.
const TEXT: [&str; 6] = ["rs", "toml", "md", "yml", "sh", "8"];

/// Prints everything it finds, then fails if that was anything.
pub(crate) fn run() -> anyhow::Result<()> {
    let mut found = edges::check()?;
    found.extend(dependencies::check()?);
    found.extend(modules::check()?);
    for path in source_files()? {
        let text =
            fs::read_to_string(root().join(&path)).with_context(|| path.display().to_string())?;
        found.extend(text_problems(&path, &text));
        found.extend(words::retired(&path, &text));
        if path.iter().any(|part| part == "tests") {
            found.extend(requirements::forbidden_programs(&path, &text));
        }
    }
    found.extend(man::stale()?);
    found.extend(man::badly_written()?);
    for problem in &found {
        eprintln!("tidy: {problem}");
    }
    if !found.is_empty() {
        bail!("tidy found {} problem(s)", found.len());
    }
    Ok(())
}

/// The text files that are in the repository or would be with the next commit.
fn source_files() -> anyhow::Result<Vec<PathBuf>> {
    let output = Command::new("git")
        .args([
            "ls-files",
            "--cached",
            "--others",
            "--exclude-standard",
            "-z",
        ])
        .current_dir(root())
        .output()
        .context("tidy needs git")?;
    if !output.status.success() {
        bail!("git ls-files: {}", String::from_utf8_lossy(&output.stderr));
    }
    let names = String::from_utf8(output.stdout).context("a file name that is not UTF-8")?;
    let mut files: Vec<PathBuf> = names.split_terminator('\0').map(PathBuf::from).collect();
    files.retain(|path| {
        let extension = path.extension().and_then(|extension| extension.to_str());
        // A file that is listed and not there was deleted since the last commit.
        extension.is_some_and(|extension| TEXT.contains(&extension)) && root().join(path).exists()
    });
    Ok(files)
}

/// The errors in the text of one file.
fn text_problems(path: &Path, text: &str) -> Vec<String> {
    let name = path.display();
    let mut found = Vec::new();
    let is_rust = path.extension().is_some_and(|extension| extension == "rs");
    if is_rust && !text.starts_with("//!") {
        found.push(format!(
            "{name}: the first line does not say what the file is for (`//!`)"
        ));
    }
    for (line, number) in text.lines().zip(1..) {
        if is_rust && line.contains('\t') {
            found.push(format!("{name}:{number}: a tab; write \\t"));
        }
        if line.ends_with([' ', '\t']) {
            found.push(format!("{name}:{number}: a trailing blank"));
        }
    }
    if !text.is_empty() && !text.ends_with('\n') {
        found.push(format!("{name}: no newline at the end"));
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problems(name: &str, text: &str) -> usize {
        text_problems(Path::new(name), text).len()
    }

    #[test]
    fn tidy_requires_module_doc() {
        assert_eq!(problems("a.rs", "//! Words.\n"), 0);
        assert_eq!(problems("a.rs", "use std::fs;\n"), 1);
        assert_eq!(problems("a.md", "Text.\n"), 0);
    }

    #[test]
    fn tidy_finds_tabs_and_trailing_blanks() {
        let found = text_problems(Path::new("a.rs"), "//! Words.\n\tx\ny \n");
        assert_eq!(found.len(), 2, "{found:?}");
        assert!(found[0].starts_with("a.rs:2:"), "{found:?}");
        assert!(found[1].starts_with("a.rs:3:"), "{found:?}");
    }

    #[test]
    fn tidy_requires_final_newline() {
        assert_eq!(problems("a.toml", "a = 1"), 1);
        assert_eq!(problems("a.toml", ""), 0);
    }
}
