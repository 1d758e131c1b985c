//! Prefaulting: touching memory before it is needed.
//!
//! A page fault can make the kernel reclaim memory and wait for dirty pages of a
//! file system on one of our own volumes, which is a deadlock. An I/O flusher
//! (`PR_SET_IO_FLUSHER`) never waits there. For a process without that privilege
//! the memory that requests need is prefaulted:
//!
//! | memory | touched by |
//! |---|---|
//! | the buffers that event loops read requests into | [`EventLoops::prefault`], which makes a write of the largest size for each |
//! | the stack and the heap of an event loop | that write, on its arrival |
//! | the stack and the heap of a worker | [`prefault_thread`], which the worker calls |
//!
//! Prefaulting also keeps the OOM killer away in a cgroup with a memory limit, where
//! an I/O flusher cannot wait for reclaim.

use std::collections::HashSet;
use std::ffi::OsString;
use std::hint::black_box;
use std::io::{self, Write as _};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{self, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard};
use std::thread::{self, ThreadId};

use rustix::fs::CWD;
use rustix::mount::{OpenTreeFlags, open_tree};

use crate::poison;

/// A file that is always there and can be written.
const WRITABLE_FILE: &str = "vdi/mount";
/// Writes per event loop until one is likely to have reached each.
const TRIES: usize = 8;
/// Bytes of heap that an event loop needs for the payloads of a few large requests.
const EVENT_LOOP_HEAP: usize = 4 << 20;
/// Bytes of stack that no request's handling exceeds.
const STACK: usize = 128 << 10;
/// Blocks up to this size stay in the heap when they are freed, and twice as
/// much free memory stays at its end.
const LARGEST_KEPT_BLOCK: usize = 8 << 20;

/// Touches the calling thread's stack, and `heap` bytes that its allocations
/// will come from.
pub fn prefault_thread(heap: usize) {
    // glibc's malloc maps larger blocks one by one and unmaps them when they are
    // freed. What is larger is learnt from the first such block that is freed:
    // "dynamic mmap threshold" in mallopt(3).
    drop(black_box(Vec::<u8>::with_capacity(LARGEST_KEPT_BLOCK)));
    drop(black_box(vec![1_u8; heap]));
    prefault_stack(1);
}

#[inline(never)]
fn prefault_stack(fill: u8) {
    black_box([fill; STACK]);
}

/// The operand that names the file to write to, for dd(1).
fn output(path: &Path) -> OsString {
    let mut operand = OsString::from("of=");
    operand.push(path);
    operand
}

/// The tree at `mountpoint` mounted once more, at no place, as long as the
/// descriptor is open. A file that is open in it does not make the mountpoint busy.
///
/// # Errors
/// Where the system grants no such thing: to users other than root, and before
/// Linux 5.2.
fn detached_mount(mountpoint: &Path) -> io::Result<OwnedFd> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    Ok(open_tree(CWD, mountpoint, flags)?)
}

/// The threads that read requests from the kernel.
#[derive(Debug, Default)]
pub(crate) struct EventLoops {
    /// The process that writes for [`Self::prefault`]; 0 is none.
    writer: AtomicU32,
    prefaulted: Mutex<HashSet<ThreadId>>,
}

impl EventLoops {
    /// Has each of `count` event loops read a request of `max_request` bytes.
    ///
    /// Another process makes the writes. If a thread of this process did and the
    /// process was killed, the thread would wait for a reply for ever: the connection
    /// breaks only when the last thread of the process has ended.
    ///
    /// # Errors
    /// When there is no dd(1), or it cannot write.
    pub(crate) fn prefault(
        &self,
        count: usize,
        mountpoint: &Path,
        max_request: usize,
    ) -> io::Result<()> {
        // Otherwise umount(8) right after the mount would fail.
        let detached = detached_mount(mountpoint);
        let root = match &detached {
            Ok(mount) => PathBuf::from(format!("/proc/{}/fd/{}", process::id(), mount.as_raw_fd())),
            Err(error) => {
                tracing::debug!("the mountpoint is busy for a moment: no detached mount: {error}");
                mountpoint.to_owned()
            }
        };
        let mut writer = Command::new("dd")
            .arg(output(&root.join(WRITABLE_FILE)))
            .arg(format!("bs={max_request}"))
            .args(["conv=notrunc", "iflag=fullblock"])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        self.writer.store(writer.id(), Ordering::SeqCst);
        // The kernel wakes the event loop that has been idle for longest.
        let request = vec![0; max_request];
        let written = writer.stdin.take().map_or(Ok(()), |mut input| {
            (0..TRIES * count)
                .take_while(|_| self.prefaulted().len() < count)
                .try_for_each(|_| input.write_all(&request))
        });
        let ended = writer.wait();
        self.writer.store(0, Ordering::SeqCst);
        written?;
        match ended? {
            status if status.success() => Ok(()),
            status => Err(io::Error::other(format!("dd: {status}"))),
        }
    }

    /// Handles a write of [`Self::prefault`] on the event loop's thread; false if
    /// another process than its writer made it.
    pub(crate) fn take_write(&self, pid: u32) -> bool {
        if pid == 0 || self.writer.load(Ordering::Relaxed) != pid {
            return false;
        }
        prefault_thread(EVENT_LOOP_HEAP);
        self.prefaulted().insert(thread::current().id());
        true
    }

    fn prefaulted(&self) -> MutexGuard<'_, HashSet<ThreadId>> {
        poison::lock(&self.prefaulted)
    }
}
