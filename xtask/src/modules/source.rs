//! What the modules of a crate define, import and mention, read with `syn`.
//!
//! A module is a file or an inline `mod`; tests are left out. Paths are kept
//! as written and resolved in [`super::graph`], when all modules are known.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use proc_macro2::{TokenStream, TokenTree};
use syn::visit::{self, Visit};
use syn::{Attribute, Ident, ImplItem, Item, ItemImpl, ItemMod, Meta, Type, UseTree, Visibility};

/// The segments of a path as written, `["super", "store", "Store"]`.
pub(super) type Segments = Vec<String>;

/// Keywords of the items that a macro can define.
const DEFINES: [&str; 8] = [
    "struct", "enum", "union", "trait", "type", "const", "static", "fn",
];

/// One crate: a library or a program.
#[derive(Debug, Default)]
pub(super) struct Crate {
    /// The root first.
    pub(super) modules: Vec<Module>,
    pub(super) files: Vec<File>,
}

/// One file of a crate.
#[derive(Debug)]
pub(super) struct File {
    /// Its module's path in the crate, or the stem of the root's file.
    pub(super) name: String,
    pub(super) path: PathBuf,
}

/// What one module contains, without its children.
#[derive(Debug, Default)]
pub(super) struct Module {
    /// Its path in the crate, empty for the root.
    name: String,
    /// Index into [`Crate::files`]; an inline module has its parent's.
    pub(super) file: usize,
    pub(super) parent: Option<usize>,
    pub(super) children: BTreeMap<String, usize>,
    /// Names of the items defined here.
    pub(super) items: BTreeSet<String>,
    /// Names that a `use` brings in, and where from.
    pub(super) imports: BTreeMap<String, Segments>,
    /// Modules whose names a `use ...::*` brings in.
    pub(super) globs: BTreeSet<Segments>,
    /// Paths that the code names, private `use` items included.
    pub(super) mentions: BTreeSet<Segments>,
    /// Inherent `impl` blocks: the type, and how many functions.
    pub(super) impls: Vec<(Segments, usize)>,
}

/// Reads the crate whose root file is `root`.
///
/// # Errors
/// When a file cannot be read or parsed, or a module has no file.
pub(super) fn read_crate(
    root: &Path,
    read: &dyn Fn(&Path) -> Option<String>,
) -> anyhow::Result<Crate> {
    let mut found = Crate::default();
    let stem = root.file_stem().context("a root file without a name")?;
    let file = File {
        name: stem.to_string_lossy().into_owned(),
        path: root.to_owned(),
    };
    let directory = root.parent().context("a root file without a directory")?;
    let text = read(root).with_context(|| format!("cannot read {}", root.display()))?;
    let mut pending = vec![Pending {
        parent: None,
        name: String::new(),
        file,
        text,
        directory: directory.to_owned(),
    }];
    while let Some(next) = pending.pop() {
        let path = next.file.path.clone();
        let parsed = syn::parse_file(&next.text).with_context(|| path.display().to_string())?;
        found.files.push(next.file);
        let module = found.add_module(next.parent, &next.name, found.files.len() - 1);
        let mut collector = Collector {
            found: &mut found,
            read,
            pending: &mut pending,
            module,
            directory: next.directory,
            failed: None,
        };
        collector.visit_file(&parsed);
        if let Some(error) = collector.failed {
            return Err(error);
        }
    }
    Ok(found)
}

impl Crate {
    fn add_module(&mut self, parent: Option<usize>, name: &str, file: usize) -> usize {
        let id = self.modules.len();
        let parent_name = parent.map_or("", |parent| &self.modules[parent].name);
        self.modules.push(Module {
            name: joined(parent_name, name),
            file,
            parent,
            ..Module::default()
        });
        if let Some(parent) = parent {
            self.modules[parent].children.insert(name.to_owned(), id);
        }
        id
    }
}

/// A file that is still to be parsed.
struct Pending {
    parent: Option<usize>,
    name: String,
    file: File,
    text: String,
    /// Where the files of its child modules are.
    directory: PathBuf,
}

/// Walks one file.
struct Collector<'a> {
    found: &'a mut Crate,
    read: &'a dyn Fn(&Path) -> Option<String>,
    pending: &'a mut Vec<Pending>,
    module: usize,
    directory: PathBuf,
    failed: Option<anyhow::Error>,
}

impl Collector<'_> {
    fn here(&mut self) -> &mut Module {
        &mut self.found.modules[self.module]
    }

    fn define(&mut self, name: &Ident) {
        self.here().items.insert(name.to_string());
    }

    fn inline_module(&mut self, item: &ItemMod, items: &[Item]) {
        let (outer, file) = (self.module, self.here().file);
        let name = item.ident.to_string();
        self.module = self.found.add_module(Some(outer), &name, file);
        self.directory.push(&name);
        items.iter().for_each(|item| self.visit_item(item));
        self.directory.pop();
        self.module = outer;
    }

    /// Finds the file of `mod name;`.
    fn file_module(&mut self, item: &ItemMod) -> anyhow::Result<()> {
        let name = item.ident.to_string();
        let parent = self.here().file;
        let parent_path = &self.found.files[parent].path;
        // Files, with the directories that the files of their children are in.
        let in_directory = self.directory.join(&name);
        let candidates = match path_attribute(&item.attrs) {
            Some(path) => {
                let path = parent_path.with_file_name(path);
                let directory = path.with_file_name("");
                vec![(path, directory)]
            }
            None => vec![
                (
                    self.directory.join(format!("{name}.rs")),
                    in_directory.clone(),
                ),
                (in_directory.join("mod.rs"), in_directory),
            ],
        };
        let (path, directory, text) = candidates
            .into_iter()
            .find_map(|(path, directory)| Some((path.clone(), directory, (self.read)(&path)?)))
            .with_context(|| format!("{}: no file for `mod {name};`", parent_path.display()))?;
        let file_name = joined(&self.found.modules[self.module].name, &name);
        self.pending.push(Pending {
            parent: Some(self.module),
            name,
            file: File {
                name: file_name,
                path,
            },
            text,
            directory,
        });
        Ok(())
    }

    /// Notes what one `use` item brings in; a private one is itself a mention.
    fn import(&mut self, prefix: &Segments, tree: &UseTree, is_private: bool) {
        let extended = |ident: &Ident| {
            let mut path = prefix.clone();
            // `use a::{self}` names `a`.
            if ident != "self" || path.is_empty() {
                path.push(ident.to_string());
            }
            path
        };
        let (path, name) = match tree {
            UseTree::Path(tree) => {
                return self.import(&extended(&tree.ident), &tree.tree, is_private);
            }
            UseTree::Group(group) => {
                for tree in &group.items {
                    self.import(prefix, tree, is_private);
                }
                return;
            }
            UseTree::Glob(_) => {
                self.here().globs.insert(prefix.clone());
                (prefix.clone(), None)
            }
            UseTree::Name(tree) => {
                let path = extended(&tree.ident);
                let name = path.last().cloned();
                (path, name)
            }
            UseTree::Rename(tree) => (extended(&tree.ident), Some(tree.rename.to_string())),
        };
        if let Some(name) = name.filter(|name| name != "_") {
            self.here().imports.insert(name, path.clone());
        }
        if is_private {
            self.here().mentions.insert(path);
        }
    }

    /// Finds paths, and with `defines` items, in the input of a macro.
    fn scan(&mut self, tokens: &TokenStream, defines: bool) {
        let tokens: Vec<TokenTree> = tokens.clone().into_iter().collect();
        // Tokens have no syntax tree; paths are found by their punctuation.
        let punct = |at: usize| match tokens.get(at) {
            Some(TokenTree::Punct(punct)) => Some(punct.as_char()),
            _ => None,
        };
        let mut at = 0;
        while at < tokens.len() {
            if let TokenTree::Group(group) = &tokens[at] {
                self.scan(&group.stream(), defines);
            }
            let TokenTree::Ident(first) = &tokens[at] else {
                at += 1;
                continue;
            };
            let before = |back: usize| at.checked_sub(back).and_then(punct);
            // A field or method, a lifetime, a macro's own variable, or an outside crate.
            let is_path = match before(1) {
                Some('.') => before(2) == Some('.'),
                Some('\'' | '$') => false,
                Some(':') => before(2) != Some(':'),
                _ => true,
            };
            // Joins `a::b::c`.
            let mut path = vec![first.to_string()];
            at += 1;
            while punct(at) == Some(':') && punct(at + 1) == Some(':') {
                let Some(TokenTree::Ident(next)) = tokens.get(at + 2) else {
                    break;
                };
                path.push(next.to_string());
                at += 3;
            }
            if !is_path {
                continue;
            }
            // `struct Name` and the like define an item; every other path is a use.
            if defines
                && let [keyword] = path.as_slice()
                && DEFINES.contains(&keyword.as_str())
                && let Some(TokenTree::Ident(name)) = tokens.get(at)
            {
                self.define(name);
            }
            self.here().mentions.insert(path);
        }
    }
}

impl<'ast> Visit<'ast> for Collector<'_> {
    fn visit_item(&mut self, item: &'ast Item) {
        let (attributes, name) = head(item);
        if attributes.iter().any(is_test) {
            return;
        }
        if let Some(name) = name {
            self.define(name);
        }
        if let Item::Macro(item) = item {
            self.scan(&item.mac.tokens, true);
        }
        visit::visit_item(self, item);
    }

    fn visit_item_mod(&mut self, item: &'ast ItemMod) {
        if let Some((_brace, items)) = &item.content {
            self.inline_module(item, items);
        } else if let Err(error) = self.file_module(item) {
            self.failed = Some(error);
        }
    }

    fn visit_item_use(&mut self, item: &'ast syn::ItemUse) {
        if item.leading_colon.is_none() {
            let is_private = matches!(item.vis, Visibility::Inherited);
            self.import(&Segments::new(), &item.tree, is_private);
        }
    }

    fn visit_item_impl(&mut self, item: &'ast ItemImpl) {
        if item.trait_.is_none()
            && let Type::Path(self_type) = &*item.self_ty
        {
            let functions = item.items.iter().filter(
                |item| matches!(item, ImplItem::Fn(function) if !function.attrs.iter().any(is_test)),
            );
            let functions = functions.count();
            let self_type = segments(&self_type.path);
            self.here().impls.push((self_type, functions));
        }
        visit::visit_item_impl(self, item);
    }

    fn visit_impl_item(&mut self, item: &'ast ImplItem) {
        let is_for_tests =
            matches!(item, ImplItem::Fn(function) if function.attrs.iter().any(is_test));
        if !is_for_tests {
            visit::visit_impl_item(self, item);
        }
    }

    fn visit_path(&mut self, path: &'ast syn::Path) {
        if path.leading_colon.is_none() {
            let path = segments(path);
            self.here().mentions.insert(path);
        }
        visit::visit_path(self, path);
    }

    fn visit_macro(&mut self, mac: &'ast syn::Macro) {
        self.visit_path(&mac.path);
        self.scan(&mac.tokens, false);
    }

    fn visit_attribute(&mut self, attribute: &'ast Attribute) {
        if let Meta::List(list) = &attribute.meta {
            self.scan(&list.tokens, false);
        }
    }

    /// `pub(super)` and `pub(in path)` use nothing.
    fn visit_visibility(&mut self, _visibility: &'ast Visibility) {}
}

/// The path of a module in another one.
fn joined(parent: &str, name: &str) -> String {
    if parent.is_empty() {
        name.to_owned()
    } else {
        format!("{parent}::{name}")
    }
}

fn segments(path: &syn::Path) -> Segments {
    path.segments
        .iter()
        .map(|segment| segment.ident.to_string())
        .collect()
}

/// The attributes of an item, and its name if it has one that others can use.
fn head(item: &Item) -> (&[Attribute], Option<&Ident>) {
    match item {
        Item::Const(item) => (&item.attrs, Some(&item.ident)),
        Item::Enum(item) => (&item.attrs, Some(&item.ident)),
        Item::Fn(item) => (&item.attrs, Some(&item.sig.ident)),
        Item::Impl(item) => (&item.attrs, None),
        Item::Macro(item) => (&item.attrs, item.ident.as_ref()),
        Item::Mod(item) => (&item.attrs, None),
        Item::Static(item) => (&item.attrs, Some(&item.ident)),
        Item::Struct(item) => (&item.attrs, Some(&item.ident)),
        Item::Trait(item) => (&item.attrs, Some(&item.ident)),
        Item::Type(item) => (&item.attrs, Some(&item.ident)),
        Item::Union(item) => (&item.attrs, Some(&item.ident)),
        Item::Use(item) => (&item.attrs, None),
        _ => (&[], None),
    }
}

/// The file named by `#[path = "..."]`.
fn path_attribute(attributes: &[Attribute]) -> Option<String> {
    attributes.iter().find_map(|attribute| {
        let Meta::NameValue(value) = &attribute.meta else {
            return None;
        };
        if let syn::Expr::Lit(literal) = &value.value
            && let syn::Lit::Str(path) = &literal.lit
            && value.path.is_ident("path")
        {
            return Some(path.value());
        }
        None
    })
}

/// True for `#[cfg(test)]` and `#[cfg(all(test, ...))]`.
fn is_test(attribute: &Attribute) -> bool {
    fn names_test(tokens: TokenStream) -> bool {
        let mut tokens = tokens.into_iter();
        while let Some(token) = tokens.next() {
            match token {
                TokenTree::Ident(ident) if ident == "test" => return true,
                TokenTree::Ident(ident) if ident == "all" => {
                    if let Some(TokenTree::Group(group)) = tokens.next()
                        && names_test(group.stream())
                    {
                        return true;
                    }
                }
                // `not(test)` and `any(test, ...)` are compiled elsewhere, too.
                TokenTree::Ident(_) => {
                    tokens.next();
                }
                _ => {}
            }
        }
        false
    }
    match &attribute.meta {
        Meta::List(list) if list.path.is_ident("cfg") => names_test(list.tokens.clone()),
        _ => false,
    }
}
