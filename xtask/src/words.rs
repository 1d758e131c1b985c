//! Retired words: names that had several meanings, or hid a standard term.
//!
//! A word is found in identifiers of code, test names included, not in comments or
//! strings. Add a word here once no crate uses it any more.

use std::path::Path;

/// A retired word, in snake case, and the terms to use instead.
const RETIRED: [(&str, &str); 23] = [
    ("bring_over", "migrate"),
    ("carry_over", "reconcile"),
    ("dice", "rng"),
    ("doubted", "in_doubt"),
    ("everybody", "the component"),
    ("gives_up", "times_out"),
    ("insist", "retry_until_ok"),
    ("keep_alive", "in_flight_token, keepalive for TCP"),
    ("let_go", "release, uncharge"),
    ("look_at", "inspect, check"),
    ("losses", "errors"),
    ("made_ahead", "preallocated"),
    ("namer", "referrer"),
    ("nothing_there", "no_more_data"),
    ("outbox", "send_queue"),
    (
        "settle",
        "fence, drain, flush_dirty, await_reclaim, resolve_in_doubt",
    ),
    ("start_beside", "add_node"),
    ("under_way", "in_flight"),
    ("unsuitable", "a variant for the condition"),
    ("untangle", "repair"),
    ("which_version", "vdi_version"),
    ("whoever", "the component"),
    ("worn_out", "unresponsive"),
];

/// Describes every identifier of a Rust file with a retired word in it.
pub(crate) fn retired(path: &Path, text: &str) -> Vec<String> {
    if path.extension().is_none_or(|extension| extension != "rs") {
        return Vec::new();
    }
    let mut found = Vec::new();
    for (line, number) in text.lines().zip(1..) {
        for identifier in identifiers(line) {
            // Framed, so that a word only matches whole parts of the identifier.
            let snake = format!("_{}_", snake_case(identifier));
            for (word, instead) in RETIRED {
                if snake.contains(&format!("_{word}_")) {
                    let path = path.display();
                    found.push(format!(
                        "{path}:{number}: `{identifier}` has the retired word {word}: {instead}"
                    ));
                }
            }
        }
    }
    found
}

/// The identifiers of a line, without those of its strings and its comment.
fn identifiers(line: &str) -> impl Iterator<Item = &str> {
    let code = line.split("//").next().unwrap_or_default();
    // Every second part is inside a string.
    code.split('"')
        .step_by(2)
        .flat_map(|part| part.split(|c: char| !c.is_alphanumeric() && c != '_'))
        .filter(|word| !word.is_empty())
}

/// `SendQueue` and `SEND_QUEUE` as `send_queue`.
fn snake_case(identifier: &str) -> String {
    let mut snake = String::new();
    let mut after_lower = false;
    for c in identifier.chars() {
        if c.is_uppercase() && after_lower {
            snake.push('_');
        }
        after_lower = c.is_lowercase() || c.is_ascii_digit();
        snake.extend(c.to_lowercase());
    }
    snake
}

#[cfg(test)]
mod tests {
    use super::*;

    fn count(line: &str) -> usize {
        retired(Path::new("a.rs"), line).len()
    }

    #[test]
    fn words_are_found_in_identifiers_of_every_case() {
        assert_eq!(count("fn settle_all() {}"), 1);
        assert_eq!(count("struct KeepAlive;"), 1);
        assert_eq!(count("const SETTLE_TIME: u8 = 0;"), 1);
    }

    #[test]
    fn words_are_ignored_outside_of_identifiers() {
        assert_eq!(count("// settle"), 0);
        assert_eq!(count(&format!("let text = {:?};", "settle")), 0);
        assert_eq!(count("let settled = true;"), 0);
        assert!(retired(Path::new("a.md"), "settle").is_empty());
    }
}
