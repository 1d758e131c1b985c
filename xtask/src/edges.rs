//! Allowed dependencies between the crates of the workspace: lower layers never
//! depend on higher ones.

use anyhow::Context as _;
use serde_json::Value;

use crate::step::cargo_metadata;

/// The members that a member's normal and build dependencies may name.
///
/// A member that is not listed may name none.
const MAY_USE: [(&str, &[&str]); 9] = [
    ("sheep-client", &["sheep-proto"]),
    ("sheepfs-vfs", &["sheep-client", "sheep-proto"]),
    ("sheepfs-fuse", &["sheepfs-vfs"]),
    (
        "sheep-cli",
        &[
            "sheepfs-vfs",
            "sheep-client",
            "sheep-proto",
            "sheep-embedded",
        ],
    ),
    (
        "sheepfs",
        &[
            "sheep-cli",
            "sheepfs-fuse",
            "sheepfs-vfs",
            "sheep-client",
            "sheep-proto",
            "sheep-embedded",
        ],
    ),
    (
        "sheep-nbd",
        &["sheep-cli", "sheepfs-vfs", "sheep-client", "sheep-embedded"],
    ),
    ("sheep-embedded", &["sheep-proto"]),
    ("tests", &["sheep-embedded"]),
    ("xtask", &["tests", "sheep-cli", "sheep-proto"]),
];

/// Crates from outside that only the named members may use outside of tests.
const ONLY_IN: [(&str, &[&str]); 4] = [
    ("fuser", &["sheepfs-fuse", "xtask"]),
    (
        "clap",
        &[
            "sheep-cli",
            "sheepfs",
            "sheep-nbd",
            "sheep-embedded",
            "xtask",
        ],
    ),
    (
        "anyhow",
        &[
            "sheep-cli",
            "sheepfs",
            "sheep-nbd",
            "sheep-embedded",
            "tests",
            "xtask",
        ],
    ),
    (
        "tokio",
        &[
            "sheep-client",
            "sheepfs-vfs",
            "sheepfs-fuse",
            "sheep-cli",
            "sheepfs",
            "sheep-embedded",
            "sheep-nbd",
        ],
    ),
];

/// Edges that not even a test may have: both ends would share one mistake.
const NEVER: [(&str, &str); 1] = [("sheep-embedded", "sheep-client")];

/// Describes every forbidden edge of the workspace.
pub(crate) fn check() -> anyhow::Result<Vec<String>> {
    let metadata = cargo_metadata(&["--no-deps"])?;
    forbidden(&metadata)
}

/// As [`check`], on the output of `cargo metadata --no-deps`.
fn forbidden(metadata: &Value) -> anyhow::Result<Vec<String>> {
    let packages = metadata["packages"].as_array().context("no packages")?;
    let members: Vec<&str> = packages
        .iter()
        .filter_map(|package| package["name"].as_str())
        .collect();
    let mut found = Vec::new();
    for package in packages {
        let from = package["name"]
            .as_str()
            .context("a package without a name")?;
        for dependency in package["dependencies"]
            .as_array()
            .context("no dependencies")?
        {
            let to = dependency["name"]
                .as_str()
                .context("a dependency without a name")?;
            let for_tests = dependency["kind"] == "dev";
            let allowed = if NEVER.contains(&(from, to)) {
                false
            } else if for_tests {
                true
            } else if members.contains(&to) {
                listed(&MAY_USE, from).is_some_and(|names| names.contains(&to))
            } else {
                listed(&ONLY_IN, to).is_none_or(|names| names.contains(&from))
            };
            if !allowed {
                found.push(format!("{from} must not depend on {to}"));
            }
        }
    }
    Ok(found)
}

fn listed<'a>(table: &[(&str, &'a [&'a str])], name: &str) -> Option<&'a [&'a str]> {
    table
        .iter()
        .find(|(key, _)| *key == name)
        .map(|(_, names)| *names)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn edge(from: &str, to: &str, kind: Option<&str>) -> Vec<String> {
        let metadata = json!({"packages": [
            {"name": from, "dependencies": [{"name": to, "kind": kind}]},
            {"name": to, "dependencies": []},
        ]});
        forbidden(&metadata).expect("the test builds complete metadata")
    }

    #[test]
    fn dependency_on_lower_crate_is_allowed() {
        assert!(edge("sheepfs-fuse", "sheepfs-vfs", None).is_empty());
        assert!(edge("sheepfs", "sheep-embedded", None).is_empty());
    }

    #[test]
    fn dependency_on_higher_crate_is_rejected() {
        assert_eq!(
            edge("sheep-client", "sheepfs-vfs", None),
            ["sheep-client must not depend on sheepfs-vfs"]
        );
        assert_eq!(edge("sheep-proto", "sheep-client", Some("build")).len(), 1);
    }

    #[test]
    fn frontends_may_not_depend_on_each_other() {
        assert!(edge("sheep-nbd", "sheepfs-vfs", None).is_empty());
        assert_eq!(edge("sheep-nbd", "sheepfs-fuse", None).len(), 1);
        assert_eq!(edge("sheepfs-vfs", "sheep-nbd", None).len(), 1);
    }

    #[test]
    fn dependency_of_unlisted_crate_is_rejected() {
        assert_eq!(edge("sheep-new", "sheepfs-vfs", None).len(), 1);
    }

    #[test]
    fn dependency_of_tests_is_listed_separately() {
        assert!(edge("sheep-client", "sheep-embedded", Some("dev")).is_empty());
        assert_eq!(edge("sheep-client", "sheep-embedded", None).len(), 1);
    }

    #[test]
    fn dependency_of_server_on_client_is_always_rejected() {
        assert_eq!(edge("sheep-embedded", "sheep-client", Some("dev")).len(), 1);
    }

    #[test]
    fn dependency_on_fuser_is_restricted() {
        let metadata = json!({"packages": [
            {"name": "sheepfs-vfs", "dependencies": [{"name": "fuser", "kind": null}]},
            {"name": "sheepfs-fuse", "dependencies": [{"name": "fuser", "kind": null}]},
        ]});
        assert_eq!(
            forbidden(&metadata).expect("the test builds complete metadata"),
            ["sheepfs-vfs must not depend on fuser"]
        );
    }
}
