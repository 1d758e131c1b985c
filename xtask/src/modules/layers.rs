//! The layers of folders that have some: a file uses its own layer and those below.

use std::collections::BTreeSet;
use std::path::Path;

use super::graph::Graph;

/// A folder whose files are in layers.
pub(super) struct Folder<'a> {
    /// From the workspace's root.
    pub(super) path: &'a str,
    /// Files by name without `.rs`, the lowest layer first. What is in a folder
    /// below has the layer of that folder's name.
    pub(super) layers: &'a [&'a [&'a str]],
    /// Modules outside of the folder that its files may use.
    pub(super) below: &'a [&'a str],
}

/// Every folder with layers.
pub(super) const FOLDERS: [Folder<'_>; 1] = [Folder {
    path: "crates/sheepfs-vfs/src/volume",
    layers: &[
        &[
            "block_device",
            "dirty_buffer",
            "error",
            "extent",
            "extent_map",
            "flush_tracker",
            "memory_device",
            "object_map",
            "sequential",
        ],
        &["index_commit", "lineage", "object_io", "object_lock"],
        &[
            "data_io",
            "follow",
            "head",
            "head_state",
            "reclaim",
            "recovery",
            "revalidate",
            "slot_query",
        ],
        &["allocate", "deallocate", "io"],
        &["device"],
        &["preallocate"],
        &["write_back"],
        &["stack"],
    ],
    below: &["poison"],
}];

impl Folder<'_> {
    /// Describes every use of a higher layer or of something above the folder,
    /// and every file without a layer.
    ///
    /// `root` is the workspace's. Empty for a crate that does not have the folder.
    pub(super) fn problems(&self, root: &Path, graph: &Graph) -> Vec<String> {
        let mut found = BTreeSet::new();
        let folder = root.join(self.path);
        let layers: Vec<Place> = graph
            .files
            .iter()
            .map(|file| match file.path.strip_prefix(&folder) {
                Ok(path) => self.layer(path).map_or(Place::Unlisted, Place::Layer),
                Err(_elsewhere) if self.below.contains(&file.name.as_str()) => Place::Below,
                Err(_elsewhere) => Place::Above,
            })
            .collect();
        for (place, file) in layers.iter().zip(&graph.files) {
            if *place == Place::Unlisted {
                found.insert(format!("{} has no layer", file.name));
            }
        }
        for (&(user, used), names) in &graph.edges {
            let is_upwards = match (layers[user], layers[used]) {
                (Place::Layer(user), Place::Layer(used)) => used > user,
                (Place::Layer(_), Place::Above) => true,
                _ => false,
            };
            if is_upwards {
                let names: Vec<_> = names.iter().map(String::as_str).collect();
                found.insert(format!(
                    "{} uses {} of {}, which is above it",
                    graph.files[user].name,
                    names.join(", "),
                    graph.files[used].name
                ));
            }
        }
        found.into_iter().collect()
    }

    /// The layer of a file, by its path in the folder.
    fn layer(&self, path: &Path) -> Option<usize> {
        let name = path.iter().next()?.to_str()?;
        let name = name.strip_suffix(".rs").unwrap_or(name);
        self.layers.iter().position(|layer| layer.contains(&name))
    }
}

/// Where a file of the crate is, seen from the folder.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    Layer(usize),
    Unlisted,
    Below,
    Above,
}
