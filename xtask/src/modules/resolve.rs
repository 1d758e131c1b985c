//! From a path as written to the definition it leads to.
//!
//! As far as names go: types are not inferred, and of the names that a macro
//! makes those are known that stand in its input or body.

use super::source::Crate;

/// Longest chain of imports that is followed to a definition.
const MAX_IMPORTS: usize = 16;

/// Where a path leads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Target {
    Module(usize),
    /// An item, by its file and name.
    Item(usize, String),
    /// Another crate, the prelude, or a name inside a function.
    Outside,
}

/// Follows a path from a module, through imports, to the definition.
pub(super) fn resolve(source: &Crate, module: usize, path: &[String]) -> Target {
    follow(source, module, path, 0)
}

fn follow(source: &Crate, module: usize, path: &[String], imports: usize) -> Target {
    // An import with the name of its crate would lead to itself.
    if imports > MAX_IMPORTS {
        return Target::Outside;
    }
    let mut at = module;
    let mut is_inside = false;
    for (number, segment) in path.iter().enumerate() {
        let is_last = number + 1 == path.len();
        let target = match segment.as_str() {
            "crate" => Some(Target::Module(0)),
            "self" => Some(Target::Module(at)),
            "super" => source.modules[at].parent.map(Target::Module),
            name => look_up(source, at, name, is_last, imports),
        };
        match target {
            Some(Target::Module(next)) => (at, is_inside) = (next, true),
            Some(target) => return target,
            // Only a macro can have defined it.
            None if is_inside => return Target::Item(source.modules[at].file, segment.clone()),
            None => return Target::Outside,
        }
    }
    Target::Module(at)
}

/// What a name means in a module; `None` when the module does not know it.
fn look_up(source: &Crate, at: usize, name: &str, is_last: bool, imports: usize) -> Option<Target> {
    let module = &source.modules[at];
    let is_item = module.items.contains(name);
    let child = module.children.get(name);
    if let Some(&child) = child.filter(|_| !(is_last && is_item)) {
        return Some(Target::Module(child));
    }
    if is_item {
        return Some(Target::Item(module.file, name.to_owned()));
    }
    if let Some(path) = module.imports.get(name) {
        return Some(follow(source, at, path, imports + 1));
    }
    module
        .globs
        .iter()
        .find_map(|path| match follow(source, at, path, imports + 1) {
            Target::Module(glob) if imports < MAX_IMPORTS => {
                look_up(source, glob, name, is_last, imports + 1)
            }
            _ => None,
        })
}
