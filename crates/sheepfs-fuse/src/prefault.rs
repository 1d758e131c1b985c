//! Touching memory before it is needed.
//!
//! A page fault of ours can make the kernel reclaim memory, and wait there for
//! dirty pages of a file system on one of our own volumes to be written back:
//! for ourselves. A process that may declare itself an I/O flusher is spared
//! that wait. For the others the way of a request is laid out in advance:
//!
//! | memory | touched by |
//! |---|---|
//! | the buffers that event loops read requests into | [`EventLoops::prefault`], which makes a write of the largest size for each |
//! | the stack and the heap of an event loop | that write, on its arrival |
//! | the stack and the heap of a worker | [`prefault_thread`], which the worker calls |
//!
//! This is also what keeps a process whose memory is limited from being killed
//! where it may not wait.

use std::collections::HashSet;
use std::fs::OpenOptions;
use std::hint::black_box;
use std::io::{self, Write as _};
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread::{self, ThreadId};

use nix::unistd::gettid;

/// A file that is always there and can be written.
const WRITABLE_FILE: &str = "vdi/mount";
/// Writes per event loop until one is likely to have reached each.
const TRIES: usize = 8;
/// Alignment that lets one request carry as many bytes as it can.
const PAGE: usize = 4096;
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

/// The threads that read requests from the kernel.
#[derive(Debug, Default)]
pub(crate) struct EventLoops {
    /// The thread that writes for [`Self::prefault`]; 0 is none.
    writer: AtomicU32,
    prefaulted: Mutex<HashSet<ThreadId>>,
}

impl EventLoops {
    /// Has each of `count` event loops read a request of `max_request` bytes.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub(crate) fn prefault(
        &self,
        count: usize,
        mountpoint: &Path,
        max_request: usize,
    ) -> io::Result<()> {
        let buffer = vec![0; PAGE + max_request];
        let aligned = buffer.as_ptr().align_offset(PAGE);
        let request = &buffer[aligned..][..max_request];
        let mut file = OpenOptions::new()
            .write(true)
            .open(mountpoint.join(WRITABLE_FILE))?;
        self.writer
            .store(gettid().as_raw().unsigned_abs(), Ordering::SeqCst);
        // The kernel wakes the loop that has waited longest.
        let written = (0..TRIES * count)
            .take_while(|_| self.prefaulted().len() < count)
            .try_for_each(|_| file.write(request).map(drop));
        self.writer.store(0, Ordering::SeqCst);
        written
    }

    /// Takes a write that [`Self::prefault`] makes, on the event loop's thread;
    /// false when `pid` made another.
    pub(crate) fn take_write(&self, pid: u32) -> bool {
        if pid == 0 || self.writer.load(Ordering::Relaxed) != pid {
            return false;
        }
        prefault_thread(EVENT_LOOP_HEAP);
        self.prefaulted().insert(thread::current().id());
        true
    }

    fn prefaulted(&self) -> std::sync::MutexGuard<'_, HashSet<ThreadId>> {
        self.prefaulted
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}
