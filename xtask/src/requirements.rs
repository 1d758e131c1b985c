//! Requirements of the tests: the programs that `.ci/packages` lists, and privileges.
//! Missing ones are reported in one line, before anything runs.

use std::env;
use std::fs::File;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;

use anyhow::{Context as _, bail};
use nix::errno::Errno;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::unistd::geteuid;

/// A package in each line, then its programs; `.ci/run` reads it as well.
const PACKAGES: &str = include_str!("../../.ci/packages");
/// Where root's programs are, which `su` leaves out of PATH.
const SYSTEM_DIRECTORIES: [&str; 2] = ["/usr/sbin", "/sbin"];
/// File systems that the tests create on loop devices.
const FILE_SYSTEMS: [&str; 3] = ["ext4", "xfs", "btrfs"];

/// Looks for everything that the tests need.
///
/// # Errors
/// One line that names all that is missing, and the command that installs it.
pub(crate) fn check() -> anyhow::Result<()> {
    let path = env::var_os("PATH").context("there is no PATH")?;
    let path: Vec<PathBuf> = env::split_paths(&path).collect();
    let mut missing = missing_programs(PACKAGES, &path, &SYSTEM_DIRECTORIES.map(PathBuf::from));
    missing.needs.splice(0..0, missing_privileges()?);
    match missing.message() {
        Some(message) => bail!(message),
        None => Ok(()),
    }
}

/// Programs that a file of tests runs and must not: those of a crate run none,
/// so that `cargo test` needs none; others run what `.ci/packages` lists.
pub(crate) fn forbidden_programs(path: &Path, text: &str) -> Vec<String> {
    let of_a_crate = path.starts_with("crates");
    let listed = |program: &str| lines(PACKAGES).any(|(_, words)| words.contains(&program));
    let name = path.display();
    text.split("Command::new(\"")
        .skip(1)
        .filter_map(|rest| Some(rest.split_once('"')?.0))
        .filter(|program| !program.contains('/'))
        .filter(|program| of_a_crate || !listed(program))
        .map(|program| {
            if of_a_crate {
                format!("{name}: a test that runs `{program}` belongs in the package `tests`")
            } else {
                format!("{name}: `{program}` needs a line in .ci/packages")
            }
        })
        .collect()
}

/// Packages and the programs needed from them.
fn lines(list: &str) -> impl Iterator<Item = (&str, Vec<&str>)> {
    list.lines()
        .filter(|line| !line.starts_with('#'))
        .filter_map(|line| {
            let mut words = line.split_whitespace();
            Some((words.next()?, words.collect()))
        })
}

#[derive(Debug, Default)]
struct Missing {
    needs: Vec<String>,
    packages: Vec<String>,
}

impl Missing {
    /// None when nothing is missing.
    fn message(&self) -> Option<String> {
        if self.needs.is_empty() {
            return None;
        }
        let needs = self.needs.join(", ");
        let mut message = format!("the tests need what is missing here: {needs}");
        if !self.packages.is_empty() {
            let packages = self.packages.join(" ");
            message += &format!("; install programs with `apt-get install {packages}`");
        }
        Some(message + "; `cargo test` runs the tests that need none of this")
    }
}

/// Looks for the programs of `list` in the directories of `path`.
fn missing_programs(list: &str, path: &[PathBuf], system_directories: &[PathBuf]) -> Missing {
    let mut missing = Missing::default();
    for (package, words) in lines(list) {
        for word in words {
            let protocol = word.strip_suffix(':');
            let is_here = match protocol {
                Some(_) => qemu_img_knows(word),
                None => find(word, path).is_some(),
            };
            if is_here {
                continue;
            }
            if let Some(directory) = find(word, system_directories) {
                add(
                    &mut missing.needs,
                    format!("{} in PATH", directory.display()),
                );
                continue;
            }
            let need = protocol.map_or(word.to_owned(), |name| format!("qemu-img with {name}"));
            add(&mut missing.needs, need);
            add(&mut missing.packages, package.to_owned());
        }
    }
    missing
}

/// Adds `name`, once.
fn add(names: &mut Vec<String>, name: String) {
    if !names.contains(&name) {
        names.push(name);
    }
}

/// The first of `directories` that has an executable `program`.
fn find<'a>(program: &str, directories: &'a [PathBuf]) -> Option<&'a PathBuf> {
    directories.iter().find(|directory| {
        let metadata = directory.join(program).metadata();
        metadata.is_ok_and(|file| file.is_file() && file.permissions().mode() & 0o111 != 0)
    })
}

/// False as well when there is no qemu-img.
fn qemu_img_knows(protocol: &str) -> bool {
    let printed = Command::new("qemu-img").args(["info", protocol]).output();
    printed
        .is_ok_and(|printed| !String::from_utf8_lossy(&printed.stderr).contains("Unknown protocol"))
}

fn missing_privileges() -> anyhow::Result<Vec<String>> {
    if !geteuid().is_root() {
        // Without it nothing can be said about the others.
        return Ok(vec!["root".to_owned()]);
    }
    let mut missing = Vec::new();
    if !can_open("/dev/fuse") {
        missing.push("/dev/fuse".to_owned());
    }
    if !has_loop_devices()? {
        missing.push("loop devices".to_owned());
    }
    if TcpListener::bind("[::1]:0").is_err() {
        missing.push("the address ::1".to_owned());
    }
    // Namespaces are a thread's, and this one keeps its own.
    let tried = thread::spawn(missing_in_namespaces).join();
    missing.extend(tried.expect("the thread returns errors instead of panicking"));
    Ok(missing)
}

fn can_open(path: &str) -> bool {
    File::options().read(true).write(true).open(path).is_ok()
}

fn has_loop_devices() -> anyhow::Result<bool> {
    let printed = match Command::new("losetup").arg("--find").output() {
        Ok(output) => String::from_utf8(output.stdout)?,
        // It is one of the programs that are missing.
        Err(_) => return Ok(true),
    };
    Ok(can_open(printed.trim_end()))
}

/// Leaves this thread's namespaces, and mounts in new ones.
fn missing_in_namespaces() -> Vec<String> {
    let mut missing = Vec::new();
    if unshare(CloneFlags::CLONE_NEWNET).is_err() {
        missing.push("network namespaces".to_owned());
    }
    let directory = env::temp_dir();
    let mount_here = |kind| {
        mount(
            Some("none"),
            &directory,
            Some(kind),
            MsFlags::empty(),
            None::<&str>,
        )
    };
    let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
    let may_mount = unshare(CloneFlags::CLONE_NEWNS)
        .and_then(|()| mount(None::<&str>, "/", None::<&str>, private, None::<&str>))
        .and_then(|()| mount_here("tmpfs"));
    if may_mount.is_err() {
        missing.push("mounts and mount namespaces".to_owned());
        return missing;
    }
    for kind in FILE_SYSTEMS {
        // There is no such device, and the type is looked up first.
        if mount_here(kind) == Err(Errno::ENODEV) {
            missing.push(format!("a kernel with {kind}"));
        }
    }
    missing
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    /// A directory with an empty executable for each name.
    fn directory_with(programs: &[&str]) -> tempfile::TempDir {
        let directory = tempfile::tempdir().expect("the system has a temporary directory");
        for program in programs {
            let path = directory.path().join(program);
            fs::write(&path, "").expect("a new temporary directory is writable");
            fs::set_permissions(path, fs::Permissions::from_mode(0o755))
                .expect("the owner may change permissions");
        }
        directory
    }

    const LIST: &str = "# words\none  first second\nnone\ntwo third\n";

    fn message(on_path: &[&str], in_system_directory: &[&str]) -> Option<String> {
        let (path, system) = (directory_with(on_path), directory_with(in_system_directory));
        let found = missing_programs(LIST, &[path.path().to_owned()], &[system.path().to_owned()]);
        let directory = system.path().display().to_string();
        Some(found.message()?.replace(&directory, "DIR"))
    }

    #[test]
    fn missing_programs_are_one_line_and_one_command() {
        assert_eq!(
            message(&[], &[]).as_deref(),
            Some(
                "the tests need what is missing here: first, second, third; \
                 install programs with `apt-get install one two`; \
                 `cargo test` runs the tests that need none of this"
            )
        );
        assert_eq!(message(&["first", "second", "third"], &[]), None);
    }

    #[test]
    fn programs_outside_path_are_not_installed_again() {
        assert_eq!(
            message(&["third"], &["first", "second"]).as_deref(),
            Some(
                "the tests need what is missing here: DIR in PATH; \
                 `cargo test` runs the tests that need none of this"
            )
        );
    }

    #[test]
    fn requirements_reject_unlisted_programs() {
        let found = |path: &str, program: &str| {
            let text = format!("run(Command::new(\"{program}\").arg(path))?;");
            forbidden_programs(Path::new(path), &text)
        };
        assert_eq!(
            found("tests/a.rs", "no-such-program"),
            ["tests/a.rs: `no-such-program` needs a line in .ci/packages"]
        );
        assert!(found("tests/a.rs", "mkfs.ext4").is_empty());
        assert!(found("tests/a.rs", "/proc/self/exe").is_empty());
        assert_eq!(
            found("crates/a/tests/a.rs", "mkfs.ext4"),
            ["crates/a/tests/a.rs: a test that runs `mkfs.ext4` belongs in the package `tests`"]
        );
    }
}
