//! Tests that do not apply to older releases of sheep.

/// A test, the generations it does not apply to, and why.
struct Exception {
    test: &'static str,
    generations: &'static [&'static str],
    why: &'static str,
}

const NO_LOCKS: &str = "it has no locks";
const NO_HYPERVOLUMES: &str = "it has no hypervolumes that can be changed";

const EXCEPTIONS: &[Exception] = &[
    Exception {
        test: "lock_excludes_second_writer",
        generations: &["0.7", "0.8"],
        why: NO_LOCKS,
    },
    Exception {
        test: "lock_left_by_crash_is_broken_on_request",
        generations: &["0.7", "0.8"],
        why: NO_LOCKS,
    },
    Exception {
        test: "erasure_coded_data_survives_missing_node",
        generations: &["0.7"],
        why: "it has no erasure code",
    },
    Exception {
        test: "index_leaf_split_by_dog_is_repaired",
        generations: &["0.7", "0.8"],
        why: NO_HYPERVOLUMES,
    },
    Exception {
        test: "inode_bytes::inode_changes_only_in_the_fields_of_the_operation",
        generations: &["0.7", "0.8", "0.9"],
        why: "it looks at objects of 1 MiB, and before 0.9 the sheep have bytes of their own there",
    },
    Exception {
        test: "inode_bytes::inode_of_a_hypervolume_changes_only_in_its_tree",
        generations: &["0.7", "0.8"],
        why: NO_HYPERVOLUMES,
    },
    Exception {
        test: "vdi_geometry::hypervolume_is_written_past_flat_index_limit",
        generations: &["0.7", "0.8"],
        why: NO_HYPERVOLUMES,
    },
    Exception {
        test: "vdi_geometry::hypervolume_index_grows_level_under_load",
        generations: &["0.7", "0.8"],
        why: NO_HYPERVOLUMES,
    },
    Exception {
        test: "vdi_geometry::hypervolume_repairs_tree_split_by_c_programs",
        generations: &["0.7", "0.8"],
        why: NO_HYPERVOLUMES,
    },
    Exception {
        test: "geometry_hypervolume_index_grows_under_load",
        generations: &["0.7", "0.8"],
        why: NO_HYPERVOLUMES,
    },
    Exception {
        test: "dog_output_is_equal_on_embedded_sheep",
        generations: &["0.7", "0.8", "0.9"],
        why: "the commands are those of the dog of 1.0",
    },
];

/// The tests that do not apply to a generation, with the reason.
pub(super) fn of(generation: &str) -> impl Iterator<Item = (&'static str, &'static str)> {
    EXCEPTIONS
        .iter()
        .filter(move |exception| exception.generations.contains(&generation))
        .map(|exception| (exception.test, exception.why))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use super::*;
    use crate::step::root;

    /// The text of all source files in a directory and those below it.
    fn text_below(directory: &Path) -> String {
        let entries = fs::read_dir(directory).expect("the directory of tests");
        let paths = entries.map(|entry| entry.expect("a readable directory").path());
        let texts = paths.map(|path| {
            if path.is_dir() {
                text_below(&path)
            } else {
                fs::read_to_string(&path).unwrap_or_default()
            }
        });
        texts.collect()
    }

    #[test]
    fn exceptions_name_tests_that_exist() {
        let text = ["tests/tests", "crates/sheepfs-vfs/tests"]
            .map(|directory| text_below(&root().join(directory)))
            .concat();
        for Exception { test, .. } in EXCEPTIONS {
            let name = test.rsplit("::").next().expect("a path has an end");
            assert!(text.contains(name), "there is no test {test}");
        }
    }

    #[test]
    fn exceptions_spare_nothing_on_the_newest_releases() {
        assert_eq!(of(::tests::NEWEST_GENERATION).count(), 0);
        assert!(of("0.7").count() > of("0.9").count());
    }
}
