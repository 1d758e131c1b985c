//! Which file of a crate uses which, and which files a type's methods are in.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::resolve::{Target, resolve};
use super::source::{Crate, File};

/// A type's inherent functions.
#[derive(Debug)]
pub(super) struct TypeImpls {
    pub(super) name: String,
    /// The file that defines the type, and those with an inherent `impl` of it.
    pub(super) files: BTreeSet<usize>,
    pub(super) functions: usize,
}

/// The files of a crate as a graph.
#[derive(Debug)]
pub(super) struct Graph {
    pub(super) files: Vec<File>,
    /// User and used, with the names that the user mentions.
    pub(super) edges: BTreeMap<(usize, usize), BTreeSet<String>>,
    pub(super) types: Vec<TypeImpls>,
}

impl Graph {
    pub(super) fn new(source: Crate) -> Self {
        let mut edges: BTreeMap<_, BTreeSet<_>> = BTreeMap::new();
        let mut types: BTreeMap<_, TypeImpls> = BTreeMap::new();
        for (id, module) in source.modules.iter().enumerate() {
            // An edge for each item of another file that the module uses.
            for path in &module.mentions {
                let (used, name) = match resolve(&source, id, path) {
                    Target::Item(file, name) => (file, name),
                    // Which of the names that a macro makes are used cannot be seen.
                    Target::Module(used)
                        if module.globs.contains(path)
                            && !source.modules[used].items.is_empty() =>
                    {
                        (source.modules[used].file, "*".to_owned())
                    }
                    Target::Module(_) | Target::Outside => continue,
                };
                if used != module.file {
                    edges.entry((module.file, used)).or_default().insert(name);
                }
            }
            // The files with `impl` blocks of a type, and its number of functions.
            for (path, functions) in &module.impls {
                let key = match resolve(&source, id, path) {
                    Target::Item(file, name) => (file, name),
                    // Defined by a macro next to its `impl`.
                    Target::Module(_) | Target::Outside => (module.file, path.join("::")),
                };
                let found = types.entry(key.clone()).or_insert_with(|| TypeImpls {
                    name: key.1,
                    files: BTreeSet::from([key.0]),
                    functions: 0,
                });
                found.files.insert(module.file);
                found.functions += functions;
            }
        }
        Self {
            files: source.files,
            edges,
            types: types.into_values().collect(),
        }
    }

    /// The sets of more than one file that all use each other, directly or not.
    pub(super) fn cycles(&self) -> Vec<BTreeSet<usize>> {
        let reachable: Vec<_> = (0..self.files.len())
            .map(|from| self.reachable(from))
            .collect();
        let mut found = BTreeSet::new();
        for from in 0..self.files.len() {
            if reachable[from].contains_key(&from) {
                let both_ways = |to: &usize| reachable[*to].contains_key(&from);
                let cycle: BTreeSet<_> =
                    reachable[from].keys().copied().filter(both_ways).collect();
                found.insert(cycle);
            }
        }
        found.into_iter().collect()
    }

    /// A shortest way from `from` back to it, both ends included.
    pub(super) fn round_trip(&self, from: usize) -> Vec<usize> {
        let came_from = self.reachable(from);
        let mut way = vec![from];
        let mut at = from;
        while let Some(&previous) = came_from.get(&at) {
            way.push(previous);
            at = previous;
            if at == from {
                break;
            }
        }
        way.reverse();
        way
    }

    /// The files that are used from `from` on, each with its user on a shortest way.
    fn reachable(&self, from: usize) -> BTreeMap<usize, usize> {
        let mut came_from = BTreeMap::new();
        let mut next = VecDeque::from([from]);
        while let Some(user) = next.pop_front() {
            for (&(_user, used), _names) in self.edges.range((user, 0)..(user + 1, 0)) {
                if let Entry::Vacant(entry) = came_from.entry(used) {
                    entry.insert(user);
                    next.push_back(used);
                }
            }
        }
        came_from
    }
}
