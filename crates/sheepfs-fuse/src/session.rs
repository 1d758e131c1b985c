//! Life cycle of a mount: options, event-loop threads, unmounting.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::thread;

use fuser::{BackgroundSession, Config, MountOption, SessionACL};
use nix::errno::Errno;
use nix::mount::{MntFlags, umount2};
use nix::unistd::{getegid, geteuid};
use sheepfs_vfs::Tree;
use tokio::runtime::Handle;
use tokio::sync::watch;

use crate::adapter::Adapter;
use crate::convert::Ownership;
use crate::dispatcher::Dispatcher;
use crate::init::MAX_REQUEST;
use crate::invalidate::Invalidator;
use crate::mountpoint::{self, MountpointError, check_mountpoint};
use crate::prefault::EventLoops;

const DEVICE: &str = "/dev/fuse";
const HELPER: &str = "fusermount3";
/// Settings of the helper, such as `user_allow_other`.
const HELPER_SETTINGS: &str = "/etc/fuse.conf";

/// Threads that read requests. Each has a 16 MiB buffer, of which it touches
/// as much as the largest request so far; two saturate any sheep we have met.
const EVENT_LOOPS: usize = 2;
/// Read-ahead of a cached volume: four requests at a time, so that the wire is
/// busy while a reader consumes. The kernel's own default is 128 KiB.
const READ_AHEAD_KIB: u32 = 4096;

/// Users other than the mounting user that may access the mount.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Root if the mounting user may grant that, otherwise none.
    Default,
    /// None, not even root.
    Owner,
    /// Root.
    Root,
    /// All users, as far as file permissions allow.
    All,
}

/// How and where to mount.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct MountConfig {
    /// An existing directory.
    pub mountpoint: PathBuf,
    /// Name in the mount table, such as `sheepfs:127.0.0.1:7000`.
    pub source: String,
    /// Users that may access the mount.
    pub access: Access,
    /// Mount without write permission.
    pub read_only: bool,
    /// Let nothing in the tree be executed.
    pub no_exec: bool,
    /// Owner of all files.
    pub uid: u32,
    /// Group of all files.
    pub gid: u32,
    /// Permission bits that no file has.
    pub umask: u16,
}

impl MountConfig {
    /// A writable mount. Its files belong to the user and group of this process.
    pub fn new(mountpoint: PathBuf, source: String) -> Self {
        Self {
            mountpoint,
            source,
            access: Access::Default,
            read_only: false,
            no_exec: false,
            uid: geteuid().as_raw(),
            gid: getegid().as_raw(),
            umask: 0,
        }
    }
}

/// Why mounting or unmounting failed. Each is one line that says what to do.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MountError {
    /// The mountpoint cannot be used.
    #[error(transparent)]
    Mountpoint(#[from] MountpointError),
    /// The kernel has no FUSE.
    #[error(
        "there is no {DEVICE}: load the kernel module with `modprobe fuse`, or give the container the device"
    )]
    NoDevice,
    /// The device is there, but not for this user.
    #[error("cannot open {DEVICE}: {}", .0.desc())]
    Device(Errno),
    /// A user other than root may not share the mount.
    #[error(
        "only root may let other users in: mount as root, leave --allow-root and --allow-other out, \
         or have root put `user_allow_other` into {HELPER_SETTINGS}"
    )]
    SharingNotAllowed,
    /// An ordinary user needs the setuid helper, and there is none.
    #[error(
        "cannot run {HELPER}, which users other than root need to mount: install the fuse3 package"
    )]
    NoHelper,
    /// The kernel or the helper refused.
    #[error("cannot mount on {}: {reason}", mountpoint.display())]
    Refused {
        /// Where.
        mountpoint: PathBuf,
        /// Message of the kernel or the helper.
        reason: String,
    },
    /// The mount is still there.
    #[error("cannot unmount {}: {reason}", mountpoint.display())]
    NotUnmounted {
        /// Where.
        mountpoint: PathBuf,
        /// Message of the kernel or the helper.
        reason: String,
    },
    /// The connection to the kernel broke for no reason we know.
    #[error("the connection to the kernel broke: {0}")]
    Session(String),
}

/// Mounts `tree`; it is served when this returns. `runtime` runs requests that wait.
///
/// The kernel's page cache of a volume is write-through; dirty data is buffered by
/// the volume itself. The kernel's write-back cache (`FUSE_WRITEBACK_CACHE`) is not
/// enabled, because it assumes that a write extends a file: `dd` would never get
/// ENOSPC from a full volume, `cp` only after it has reported success, and the kernel
/// would ignore changes of the size of reports and of volumes resized by others.
///
/// # Errors
/// As [`MountError`] says; nothing stays mounted.
pub fn mount(tree: Arc<Tree>, runtime: Handle, config: MountConfig) -> Result<Mount, MountError> {
    // Check the mountpoint, the device and the permission to share.
    let (mountpoint, access) = prepare(&config.mountpoint, config.access)?;
    let dispatcher = Dispatcher::new(runtime);
    let (ended_sender, ended) = watch::channel(None);
    let event_loops = Arc::<EventLoops>::default();
    let adapter = Adapter::new(
        Arc::clone(&tree),
        dispatcher.clone(),
        Ownership {
            uid: config.uid,
            gid: config.gid,
            umask: config.umask,
        },
        Arc::clone(&event_loops),
    );
    // Mount and start the event loops: from here on requests are served.
    let session = fuser::Session::new(adapter, &mountpoint, &options(&config, access))
        .and_then(fuser::Session::spawn)
        .map_err(|error| mount_error(&mountpoint, &error))?;
    // Connect the tree to the kernel's caches.
    let invalidator = Invalidator::start(session.notifier())
        .map_err(|error| MountError::Session(error.to_string()))?;
    let posting = invalidator.clone();
    tree.set_invalidator(Box::new(move |invalidation| {
        let told = posting.post(invalidation);
        Box::pin(async move { drop(told.await) })
    }));

    // Remember the device number, which tells this mount from a later one.
    let device = mountpoint::mounted_at(&mountpoint).map(|mounted| mounted.device);
    if let Some(device) = &device {
        set_read_ahead(device);
    }
    // Prefault the event loops. A read-only mount has no writes that could deadlock
    // and no file to write to.
    if !config.read_only
        && let Err(error) = event_loops.prefault(EVENT_LOOPS, &mountpoint, MAX_REQUEST as usize)
    {
        tracing::debug!("event loops get their memory when they need it: {error}");
    }
    // Report the end of the session from a thread that joins the event loops.
    thread::Builder::new()
        .name("fuse-end".into())
        .spawn(move || {
            let result = join_session(session);
            invalidator.close();
            ended_sender.send_replace(Some(result));
        })
        .map_err(|error| MountError::Session(error.to_string()))?;
    Ok(Mount {
        mountpoint,
        device,
        ended,
        dispatcher,
    })
}

/// Checks the preconditions of [`mount`] that need no tree.
///
/// # Errors
/// As [`MountError`] says.
pub fn check_mountable(mountpoint: &Path, access: Access) -> Result<(), MountError> {
    prepare(mountpoint, access).map(drop)
}

fn prepare(mountpoint: &Path, access: Access) -> Result<(PathBuf, SessionACL), MountError> {
    let mountpoint = check_mountpoint(mountpoint)?;
    check_device()?;
    Ok((mountpoint, session_acl(access)?))
}

/// A mounted tree. Dropping it changes nothing; see [`Mount::unmount`].
#[derive(Debug)]
pub struct Mount {
    mountpoint: PathBuf,
    /// `MAJOR:MINOR`, to tell our mount from one that took its place.
    device: Option<String>,
    ended: watch::Receiver<Option<Result<(), String>>>,
    dispatcher: Dispatcher,
}

impl Mount {
    /// Where it is mounted, without symbolic links.
    pub fn mountpoint(&self) -> &Path {
        &self.mountpoint
    }

    /// Returns when the tree has been unmounted, by this process or another, and the
    /// last file in it is closed.
    ///
    /// # Errors
    /// `Session` when the event loops ended for another reason.
    pub async fn ended(&self) -> Result<(), MountError> {
        let mut ended = self.ended.clone();
        match ended.wait_for(Option::is_some).await.as_deref() {
            Ok(Some(Err(reason))) => Err(MountError::Session(reason.clone())),
            Ok(_) => Ok(()),
            Err(_) => Err(MountError::Session("its thread died".into())),
        }
    }

    /// Unmounts the tree, lazily if files are open; those stay usable until this
    /// process ends. Does nothing if the tree has been unmounted already.
    ///
    /// # Errors
    /// `NotUnmounted` if a lazy unmount fails as well.
    pub async fn unmount(&self) -> Result<(), MountError> {
        let (mountpoint, device) = (self.mountpoint.clone(), self.device.clone());
        let work = move || {
            let there = mountpoint::mounted_at(&mountpoint).map(|mounted| mounted.device);
            if there.is_none() || there != device {
                return Ok(());
            }
            unmount_or_detach(&mountpoint)
        };
        match self.dispatcher.runtime().spawn_blocking(work).await {
            Ok(result) => result,
            Err(error) => Err(MountError::Session(error.to_string())),
        }
    }

    /// Refuses new requests and waits for those in flight. Only files that were open
    /// at [`Self::unmount`] can still cause requests.
    pub async fn close(&self) {
        self.dispatcher.close().await;
    }
}

fn options(config: &MountConfig, access: SessionACL) -> Config {
    let mut options = Config::default();
    options.mount_options = vec![
        MountOption::FSName(if geteuid().is_root() {
            config.source.clone()
        } else {
            escape_for_helper(&config.source)
        }),
        // As a plain string it reaches the kernel too when root mounts without
        // the helper; as `Subtype` fuser would keep it to itself.
        MountOption::CUSTOM("subtype=sheepfs".into()),
        MountOption::DefaultPermissions,
        MountOption::NoDev,
        MountOption::NoSuid,
        MountOption::NoAtime,
    ];
    if config.read_only {
        options.mount_options.push(MountOption::RO);
    }
    if config.no_exec {
        options.mount_options.push(MountOption::NoExec);
    }
    options.acl = access;
    options.n_threads = Some(EVENT_LOOPS);
    options.clone_fd = true;
    options
}

/// The helper gets all options in one list, where a comma ends an option.
fn escape_for_helper(text: &str) -> String {
    text.replace('\\', "\\\\").replace(',', "\\,")
}

/// Opening the device has no effect until it is given to mount(2).
fn check_device() -> Result<(), MountError> {
    match fs::OpenOptions::new().read(true).write(true).open(DEVICE) {
        Ok(_) => Ok(()),
        Err(error) => match error.raw_os_error().map(Errno::from_raw) {
            Some(Errno::ENOENT | Errno::ENODEV | Errno::ENXIO) => Err(MountError::NoDevice),
            other => Err(MountError::Device(other.unwrap_or(Errno::EIO))),
        },
    }
}

/// Maps `access` to fuser's session ACL for the present user.
///
/// The kernel knows only "owner" and "all users". For `Root` fuser mounts for all
/// users and refuses the requests of others.
fn session_acl(access: Access) -> Result<SessionACL, MountError> {
    let may_share = geteuid().is_root()
        || fs::read_to_string(HELPER_SETTINGS).is_ok_and(|text| allows_sharing(&text));
    match access {
        Access::Owner => Ok(SessionACL::Owner),
        Access::Default if may_share => Ok(SessionACL::RootAndOwner),
        Access::Default => Ok(SessionACL::Owner),
        _ if !may_share => Err(MountError::SharingNotAllowed),
        Access::Root => Ok(SessionACL::RootAndOwner),
        Access::All => Ok(SessionACL::All),
    }
}

fn allows_sharing(settings: &str) -> bool {
    settings
        .lines()
        .any(|line| line.trim() == "user_allow_other")
}

fn mount_error(mountpoint: &Path, error: &io::Error) -> MountError {
    if error.kind() == io::ErrorKind::NotFound {
        return MountError::NoHelper;
    }
    // The helper's text comes with its name and a line break.
    let text = error.to_string();
    let reason = text.trim().trim_start_matches("fusermount3: ");
    MountError::Refused {
        mountpoint: mountpoint.into(),
        reason: reason.replace('\n', "; "),
    }
}

/// Sets the read-ahead of the backing device (bdi). Needs root; failure only costs speed.
fn set_read_ahead(device: &str) {
    let path = format!("/sys/class/bdi/{device}/read_ahead_kb");
    if let Err(error) = fs::write(&path, READ_AHEAD_KIB.to_string()) {
        tracing::debug!("read-ahead stays as it is, {path}: {error}");
    }
}

/// Joins the event loops.
///
/// Dropping the session would unmount by path, and that path may already be the
/// mountpoint of the next sheepfs. So the session is forgotten after its thread has
/// been taken out; only a closed connection leaks.
fn join_session(mut session: BackgroundSession) -> Result<(), String> {
    let placeholder = thread::spawn(|| Ok(()));
    let event_loops = std::mem::replace(&mut session.guard, placeholder);
    std::mem::forget(session);
    match event_loops.join() {
        Ok(result) => result.map_err(|error| error.to_string()),
        Err(_) => Err("an event loop panicked".into()),
    }
}

/// Unmounts; if files are in use, flushes dirty pages and unmounts lazily.
fn unmount_or_detach(mountpoint: &Path) -> Result<(), MountError> {
    let Err(busy) = unmount_now(mountpoint, MntFlags::empty(), "-u") else {
        return Ok(());
    };
    tracing::warn!(
        "{} is in use ({busy}): detaching it; files that are still open can be used a little longer",
        mountpoint.display()
    );
    flush_pages(mountpoint);
    unmount_now(mountpoint, MntFlags::MNT_DETACH, "-uz").map_err(|reason| {
        MountError::NotUnmounted {
            mountpoint: mountpoint.into(),
            reason,
        }
    })
}

/// Calls umount2(2) as root, otherwise the helper.
fn unmount_now(mountpoint: &Path, flags: MntFlags, helper_flag: &str) -> Result<(), String> {
    match umount2(mountpoint, flags | MntFlags::UMOUNT_NOFOLLOW) {
        Ok(()) => Ok(()),
        Err(Errno::EPERM) => {
            let output = Command::new(HELPER)
                .arg(helper_flag)
                .arg("--")
                .arg(mountpoint)
                .stdin(Stdio::null())
                .output()
                .map_err(|error| format!("cannot run {HELPER}: {error}"))?;
            if output.status.success() {
                Ok(())
            } else {
                Err(String::from_utf8_lossy(&output.stderr)
                    .trim()
                    .replace('\n', "; "))
            }
        }
        Err(errno) => Err(errno.desc().into()),
    }
}

/// Writes back pages that were dirtied through mmap(2), because the kernel does not
/// write those of a lazily unmounted file system before this process ends.
fn flush_pages(mountpoint: &Path) {
    let flushed = fs::File::open(mountpoint)
        .and_then(|directory| nix::unistd::syncfs(&directory).map_err(io::Error::from));
    if let Err(error) = flushed {
        tracing::warn!("cached writes may be lost: {error}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fuse_conf_needs_user_allow_other_line() {
        assert!(allows_sharing("mount_max = 10\n user_allow_other \n"));
        assert!(!allows_sharing("#user_allow_other\n"));
        assert!(!allows_sharing("# user_allow_other may be put here\n"));
        assert!(!allows_sharing(""));
    }

    #[test]
    fn mount_options_name_source_and_restrictions() {
        let config = MountConfig {
            read_only: true,
            no_exec: true,
            ..MountConfig::new("/mnt".into(), "sheepfs:[::1]:7000".into())
        };
        let options = options(&config, SessionACL::All).mount_options;
        assert!(options.contains(&MountOption::FSName("sheepfs:[::1]:7000".into())));
        assert!(options.contains(&MountOption::RO));
        assert!(options.contains(&MountOption::NoExec));
        assert!(options.contains(&MountOption::DefaultPermissions));
    }

    #[test]
    fn mount_source_escapes_commas_for_helper() {
        assert_eq!(escape_for_helper("h1:7000,h2"), "h1:7000\\,h2");
        assert_eq!(escape_for_helper("a\\b"), "a\\\\b");
    }

    #[test]
    fn mount_error_of_helper_is_one_line() {
        let said = io::Error::other("fusermount3: mount failed: Operation not permitted\n");
        assert_eq!(
            mount_error(Path::new("/mnt"), &said).to_string(),
            "cannot mount on /mnt: mount failed: Operation not permitted"
        );
    }
}
