//! Where dependencies come from and what their licences ask for.
//!
//! The part of `cargo deny` that needs no network, so that it runs everywhere;
//! `.cargo/deny.toml` has the same rules and more, for cargo-deny.

use std::collections::HashSet;

use anyhow::{Context as _, ensure};
use serde_json::Value;

use crate::step::{cargo, cargo_metadata};

/// Licences that go with MIT in one program.
const LICENCES: [&str; 8] = [
    "0BSD",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "ISC",
    "MIT",
    "Unicode-3.0",
    "Unlicense",
    "Zlib",
];
const REGISTRY: &str = "registry+https://github.com/rust-lang/crates.io-index";

/// Describes every dependency that must not be one.
pub(crate) fn check() -> anyhow::Result<Vec<String>> {
    let metadata = cargo_metadata(&["--locked"])?;
    let packages = metadata["packages"].as_array().context("no packages")?;
    let linked = linked(&metadata)?;
    let mut problems = Vec::new();
    for package in packages {
        if let Some(problem) = problem(package, linked.contains(text(&package["id"])))
            && is_built(package)?
        {
            problems.push(problem);
        }
    }
    Ok(problems)
}

/// Whether any build has the package. A weak feature (`name?/feature`) of a dependency
/// puts `name` into the lock file and the metadata, also if nothing enables it.
fn is_built(package: &Value) -> anyhow::Result<bool> {
    let (name, version) = (text(&package["name"]), text(&package["version"]));
    let tree = cargo(&["tree", "--locked", "--workspace", "--all-features"])
        .args(["--target=all", "--edges=all", "--invert"])
        .arg(format!("{name}@{version}"))
        .output()
        .context("cannot start cargo")?;
    ensure!(
        tree.status.success(),
        "cargo tree: {}",
        String::from_utf8_lossy(&tree.stderr)
    );
    Ok(!tree.stdout.is_empty())
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

/// The packages that are linked into a program of the workspace. A licence asks
/// nothing of others: a tool that only tests or benchmarks use may have any.
fn linked(metadata: &Value) -> anyhow::Result<HashSet<&str>> {
    let nodes = metadata["resolve"]["nodes"].as_array();
    let nodes = nodes.context("no dependency graph")?;
    let members = metadata["workspace_members"].as_array();
    let mut pending: Vec<_> = members.context("no members")?.iter().map(text).collect();
    let mut linked = HashSet::new();
    while let Some(id) = pending.pop() {
        if !linked.insert(id) {
            continue;
        }
        let node = nodes.iter().find(|node| text(&node["id"]) == id);
        let dependencies = node.and_then(|node| node["deps"].as_array());
        for dependency in dependencies.into_iter().flatten() {
            let kinds = dependency["dep_kinds"].as_array();
            let is_development = |kind: &Value| text(&kind["kind"]) == "dev";
            if !kinds.into_iter().flatten().all(is_development) {
                pending.push(text(&dependency["pkg"]));
            }
        }
    }
    Ok(linked)
}

fn problem(package: &Value, is_linked: bool) -> Option<String> {
    let name = &package["name"];
    match package["source"].as_str() {
        // A member of the workspace.
        None => return None,
        Some(REGISTRY) => {}
        Some(source) => return Some(format!("{name} comes from {source}")),
    }
    let licence = package["license"].as_str().unwrap_or("no licence");
    (is_linked && !goes_with_mit(licence))
        .then(|| format!("{name} has {licence}, which does not go with MIT"))
}

/// True when every part of an SPDX expression offers a licence of the list.
fn goes_with_mit(expression: &str) -> bool {
    expression.split(" AND ").all(|part| {
        let part = part.trim_start_matches('(').trim_end_matches(')');
        part.split(" OR ")
            .flat_map(|choice| choice.split('/'))
            .any(|choice| LICENCES.contains(&choice.trim()))
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn licence_expression_needs_one_allowed_alternative() {
        for fine in [
            "MIT",
            "MIT/Apache-2.0",
            "Apache-2.0 WITH LLVM-exception OR Apache-2.0 OR MIT",
            "(MIT OR Apache-2.0) AND Unicode-3.0",
        ] {
            assert!(goes_with_mit(fine), "{fine}");
        }
        for not in ["Apache-2.0", "GPL-2.0", "MIT AND GPL-3.0", "no licence"] {
            assert!(!goes_with_mit(not), "{not}");
        }
    }

    #[test]
    fn dependency_in_lock_file_alone_is_not_built() {
        let metadata = cargo_metadata(&["--locked"]).unwrap();
        let packages = metadata["packages"].as_array().unwrap();
        let is_built = |name: &str| {
            let found = packages.iter().find(|package| package["name"] == name);
            is_built(found.unwrap()).unwrap()
        };
        assert!(is_built("rustls"));
        // rustls-webpki has `ring?/alloc`.
        assert!(!is_built("ring"));
    }

    #[test]
    fn dependency_source_must_be_registry() {
        let package = |source: &str| json!({"name": "a", "license": "MIT", "source": source});
        assert_eq!(problem(&package(REGISTRY), true), None);
        assert!(problem(&package("git+https://example.org/a"), false).is_some());
    }

    #[test]
    fn licence_of_development_tool_may_be_any() {
        let normal = json!({"kind": null});
        let dev = json!({"kind": "dev"});
        let metadata = json!({
            "workspace_members": ["ours"],
            "resolve": {"nodes": [
                {"id": "ours", "deps": [
                    {"pkg": "library", "dep_kinds": [dev, normal]},
                    {"pkg": "tool", "dep_kinds": [dev]},
                ]},
                {"id": "library", "deps": [{"pkg": "below", "dep_kinds": [normal]}]},
                {"id": "tool", "deps": [{"pkg": "below tool", "dep_kinds": [normal]}]},
            ]},
        });
        let linked = linked(&metadata).unwrap();
        assert_eq!(linked, HashSet::from(["ours", "library", "below"]));
        let package = json!({"name": "a", "license": "Apache-2.0", "source": REGISTRY});
        assert_eq!(problem(&package, false), None);
        assert!(problem(&package, true).is_some());
    }
}
