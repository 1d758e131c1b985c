//! Which module may use which inside a crate.
//!
//! The module graph has the files of a crate as its nodes. A file uses another
//! one when its code names something that the other one defines: in a `use`,
//! in a path, or inside a macro. Names are followed through re-exports to the
//! definition, so
//!
//! * a parent that only declares and re-exports its children does not use
//!   them, and `crate::Name` is a use of the file that defines `Name`;
//! * a parent whose own code names something of a child uses the child, and a
//!   child that names `super::Item` uses the parent: both together are a cycle;
//! * `#[cfg(test)]` code uses nothing.
//!
//! A method call names no file. That it hides no use is why a type's inherent
//! functions have to be in the file that defines the type.

use std::cmp::Reverse;
use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use anyhow::Context as _;
use serde_json::Value;

use crate::step::{cargo_metadata, root};

mod graph;
mod layers;
mod resolve;
mod source;

use graph::{Graph, TypeImpls};

/// Types that [`print`] names for their size.
const LARGEST: usize = 3;

/// Describes every cycle of modules, every type with inherent `impl` blocks
/// outside of its file, and every use of a higher layer.
pub(crate) fn check() -> anyhow::Result<Vec<String>> {
    let root = root();
    let mut found = Vec::new();
    for member in members()? {
        for graph in &member.graphs {
            let problems = [cycle_problems(graph), type_problems(graph)].concat();
            let named = |problem| format!("{}: {problem}", member.name);
            found.extend(problems.into_iter().map(named));
            for folder in &layers::FOLDERS {
                found.extend(folder.problems(&root, graph));
            }
        }
    }
    Ok(found)
}

/// Prints the measures of every crate's module graph.
pub(crate) fn print() -> anyhow::Result<()> {
    for member in members()? {
        for graph in &member.graphs {
            println!("{}", describe(&member.name, graph));
        }
    }
    Ok(())
}

/// A member of the workspace with its library and programs.
struct Member {
    name: String,
    graphs: Vec<Graph>,
}

fn members() -> anyhow::Result<Vec<Member>> {
    let metadata = cargo_metadata(&["--no-deps"])?;
    let packages = metadata["packages"].as_array().context("no packages")?;
    packages.iter().map(read_member).collect()
}

fn read_member(package: &Value) -> anyhow::Result<Member> {
    let name = package["name"]
        .as_str()
        .context("a package without a name")?;
    let targets = package["targets"].as_array().context("no targets")?;
    let mut graphs = Vec::new();
    for target in targets {
        let kinds = target["kind"].as_array().context("a target of no kind")?;
        if kinds.iter().any(|kind| kind == "lib" || kind == "bin") {
            let path = target["src_path"].as_str().context("no root file")?;
            graphs.push(read_graph(path, &|path| fs::read_to_string(path).ok())?);
        }
    }
    Ok(Member {
        name: name.to_owned(),
        graphs,
    })
}

fn read_graph(root: &str, read: &dyn Fn(&Path) -> Option<String>) -> anyhow::Result<Graph> {
    Ok(Graph::new(source::read_crate(Path::new(root), read)?))
}

fn cycle_problems(graph: &Graph) -> Vec<String> {
    let describe = |cycle: BTreeSet<usize>| {
        let first = *cycle.first()?;
        let way = graph.round_trip(first);
        let steps: Vec<_> = way
            .windows(2)
            .map(|step| {
                let names = &graph.edges[&(step[0], step[1])];
                let names: Vec<_> = names.iter().map(String::as_str).collect();
                let [user, used] = [step[0], step[1]].map(|at| &graph.files[at].name);
                format!("{user} uses {} of {used}", names.join(", "))
            })
            .collect();
        let members = names(graph, &cycle);
        Some(format!(
            "{} modules use each other ({members}): {}",
            cycle.len(),
            steps.join("; ")
        ))
    };
    graph.cycles().into_iter().filter_map(describe).collect()
}

fn type_problems(graph: &Graph) -> Vec<String> {
    let scattered = graph.types.iter().filter(|found| found.files.len() > 1);
    scattered
        .map(|found| {
            format!(
                "{} and its inherent `impl` blocks are in {} files: {}",
                found.name,
                found.files.len(),
                names(graph, &found.files)
            )
        })
        .collect()
}

/// The measures of one graph, as text.
fn describe(member: &str, graph: &Graph) -> String {
    let (root, edges) = (&graph.files[0].name, graph.edges.len());
    let mut lines = vec![format!(
        "{member} ({root}.rs): {} modules, {edges} edges",
        graph.files.len()
    )];
    for cycle in graph.cycles() {
        let members = names(graph, &cycle);
        lines.push(format!("  cycle of {}: {members}", cycle.len()));
    }
    for found in graph.types.iter().filter(|found| found.files.len() > 1) {
        let files = names(graph, &found.files);
        lines.push(format!(
            "  {} in {} files: {files}",
            found.name,
            found.files.len()
        ));
    }
    let mut largest: Vec<&TypeImpls> = graph.types.iter().collect();
    largest.sort_by_key(|found| Reverse(found.functions));
    let largest: Vec<_> = largest
        .iter()
        .take(LARGEST)
        .map(|found| format!("{} {}", found.name, found.functions))
        .collect();
    lines.push(format!("  most functions: {}", largest.join(", ")));
    lines.join("\n")
}

fn names(graph: &Graph, files: &BTreeSet<usize>) -> String {
    let mut names: Vec<_> = files.iter().map(|&at| &*graph.files[at].name).collect();
    names.sort_unstable();
    names.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The graph of a crate whose files are given by path and text.
    fn graph(files: &[(&str, &str)]) -> Graph {
        let read = |path: &Path| {
            let found = files.iter().find(|(name, _text)| Path::new(name) == path);
            found.map(|(_name, text)| (*text).to_owned())
        };
        read_graph(files[0].0, &read).expect("the test passes the files of a whole crate")
    }

    /// User and used of each edge.
    fn edges(files: &[(&str, &str)]) -> Vec<String> {
        let graph = graph(files);
        let name = |at: usize| graph.files[at].name.clone();
        let edges = graph.edges.keys();
        edges
            .map(|&(user, used)| format!("{} > {}", name(user), name(used)))
            .collect()
    }

    #[test]
    fn module_cycle_is_reported() {
        let root = ("src/lib.rs", "mod a; mod b; mod c;");
        let (a, c) = (
            ("src/a.rs", "use crate::b::B; pub struct A(B);"),
            ("src/c.rs", "pub struct C;"),
        );
        let broken = graph(&[root, a, c, ("src/b.rs", "pub struct B(Box<crate::a::A>);")]);
        assert_eq!(
            cycle_problems(&broken),
            ["2 modules use each other (a, b): b uses A of a; a uses B of b"]
        );
        let fixed = graph(&[root, a, c, ("src/b.rs", "pub struct B(super::c::C);")]);
        assert!(cycle_problems(&fixed).is_empty());
    }

    #[test]
    fn module_cycle_of_parent_needs_both_uses() {
        let root = ("src/lib.rs", "mod volume;");
        let child = (
            "src/volume/read.rs",
            "use super::Volume; pub fn read(_: &Volume) {}",
        );
        let user = "mod read; pub struct Volume; fn all(v: &Volume) { read::read(v) }";
        assert_eq!(
            cycle_problems(&graph(&[root, ("src/volume.rs", user), child])).len(),
            1
        );
        let exporter = "mod read; pub use read::read; pub struct Volume;";
        assert!(cycle_problems(&graph(&[root, ("src/volume.rs", exporter), child])).is_empty());
    }

    #[test]
    fn module_cycle_through_test_is_ignored() {
        let files = [
            ("src/lib.rs", "mod a; mod b;"),
            (
                "src/a.rs",
                "pub struct A; #[cfg(test)] mod tests { use crate::b::B; }",
            ),
            ("src/b.rs", "use crate::a::A; pub struct B(A);"),
        ];
        assert!(cycle_problems(&graph(&files)).is_empty());
        let compiled = files[1].1.replace("cfg(test)", "cfg(not(test))");
        let broken = [files[0], ("src/a.rs", &compiled), files[2]];
        assert_eq!(cycle_problems(&graph(&broken)).len(), 1);
    }

    #[test]
    fn module_check_finds_methods_in_other_file() {
        let root = ("src/lib.rs", "mod a; mod b;");
        let a = ("src/a.rs", "pub struct A; impl A { fn one(&self) {} }");
        let broken = graph(&[
            root,
            a,
            ("src/b.rs", "use crate::a::A; impl A { fn two(&self) {} }"),
        ]);
        assert_eq!(
            type_problems(&broken),
            ["A and its inherent `impl` blocks are in 2 files: a, b"]
        );
        let of_trait = "use crate::a::A; impl Drop for A { fn drop(&mut self) {} }";
        let of_test = "#[cfg(test)] mod tests { use crate::a::A; impl A { fn two(&self) {} } }";
        for fine in [of_trait, of_test] {
            assert!(
                type_problems(&graph(&[root, a, ("src/b.rs", fine)])).is_empty(),
                "{fine}"
            );
        }
    }

    #[test]
    fn layer_must_not_use_higher_layer() {
        let folder = layers::Folder {
            path: "src/volume",
            layers: &[&["extent"], &["io"]],
            below: &["error"],
        };
        let problems = |files: &[(&str, &str)]| folder.problems(Path::new(""), &graph(files));
        let root = ("src/lib.rs", "mod error; mod tree; mod volume;");
        let rest = [
            ("src/error.rs", "pub struct E;"),
            (
                "src/tree.rs",
                "use crate::volume::io::Io; pub struct Tree(Io);",
            ),
            ("src/volume.rs", "pub mod extent; pub mod io;"),
        ];
        let io = (
            "src/volume/io.rs",
            "use super::extent::Extent; use crate::error::E; pub struct Io(E, Extent);",
        );
        let with = |io, extent| [&[root, io, ("src/volume/extent.rs", extent)], &rest[..]].concat();
        assert!(problems(&with(io, "pub struct Extent;")).is_empty());
        let upwards = "use super::io::Io; pub struct Extent(Box<Io>);";
        assert_eq!(
            problems(&with(io, upwards)),
            ["volume::extent uses Io of volume::io, which is above it"]
        );
        let out = "use crate::tree::Tree; pub struct Extent(Box<Tree>);";
        assert_eq!(
            problems(&with(io, out)),
            ["volume::extent uses Tree of tree, which is above it"]
        );
        let unlisted = ("src/volume.rs", "pub mod extent; pub mod io; mod more;");
        let mut files = with(io, "pub struct Extent;");
        files.extend([unlisted, ("src/volume/more.rs", "")]);
        files.retain(|file| *file != rest[2]);
        assert_eq!(problems(&files), ["volume::more has no layer"]);
    }

    #[test]
    fn module_path_resolves_through_imports() {
        let names = [
            "use crate::store::Store;",
            "use crate::Store;",
            "use crate as me; fn f(_: me::Store) {}",
            "use super::*; fn f(_: Store) {}",
            "use super::store::{self as kept}; fn f(_: kept::directory::Store) {}",
            "fn f() { println!(\"{}\", crate::Store::NAME) }",
            "#[derive(Debug)] #[error(\"{}\", crate::Store::NAME)] struct E;",
            "mod inner { fn f(_: super::super::Store) {} }",
        ];
        for text in names {
            let found = edges(&[
                ("src/lib.rs", "mod a; mod store; pub use store::Store;"),
                ("src/store.rs", "mod directory; pub use directory::Store;"),
                ("src/store/directory.rs", "pub struct Store;"),
                ("src/a.rs", text),
            ]);
            assert_eq!(found, ["a > store::directory"], "{text}");
        }
    }

    #[test]
    fn module_use_ignores_similar_names() {
        let names = [
            "pub(in crate::a) fn f(store: u8) -> u8 { store }",
            "use std::fmt::Debug as Store;",
            "use ::store::Store;",
            "fn f() { g!(x.store, 'store, $store::A) }",
            "use crate::store as kept;",
        ];
        for text in names {
            let found = edges(&[
                ("src/main.rs", "mod a; mod store;"),
                ("src/store.rs", "pub struct Store;"),
                ("src/a.rs", text),
            ]);
            assert!(found.is_empty(), "{text}: {found:?}");
        }
    }

    #[test]
    fn module_file_is_found_like_compiler() {
        let found = edges(&[
            (
                "src/bin/p.rs",
                "#[path = \"../q/r.rs\"] mod cli; mod b; mod c { mod d; }",
            ),
            ("src/bin/../q/r.rs", "mod e;"),
            ("src/bin/../q/e.rs", "use crate::b::f::F;"),
            ("src/bin/b/mod.rs", "pub mod f;"),
            ("src/bin/b/f.rs", "pub struct F;"),
            ("src/bin/c/d.rs", "use crate::b::f::F;"),
        ]);
        assert_eq!(found, ["c::d > b::f", "cli::e > b::f"]);
    }
}
