//! Negotiation of limits and capabilities in the first request, INIT.

use fuser::{InitFlags, KernelConfig};

/// Bytes per READ and WRITE: the most the kernel grants by default.
pub(crate) const MAX_REQUEST: u32 = 1 << 20;
/// Limit on background requests in flight: asynchronous direct I/O, read-ahead,
/// write-back. (Synchronous requests are not counted.) At 1 MiB each this also
/// bounds our memory.
const MAX_BACKGROUND: u16 = 256;

/// Sets limits and requests the capabilities we use.
pub(crate) fn negotiate(config: &mut KernelConfig) {
    // Both are far below fuser's own limits.
    let _previous = config.set_max_write(MAX_REQUEST);
    let _previous = config.set_max_background(MAX_BACKGROUND);
    let wanted = [
        // Asynchronous direct I/O on one file is executed in parallel.
        InitFlags::FUSE_ASYNC_DIO,
        // Lookups in one directory do not wait for each other.
        InitFlags::FUSE_PARALLEL_DIROPS,
        // mmap(2) of an uncached volume, which qemu-img and databases want.
        InitFlags::FUSE_DIRECT_IO_ALLOW_MMAP,
        // Resolve a file handle (NFS, open_by_handle_at(2)) after its inode was
        // evicted: ino and generation never change during a mount.
        InitFlags::FUSE_EXPORT_SUPPORT,
        // There are no set-uid bits; saves a GETXATTR request before each write.
        InitFlags::FUSE_HANDLE_KILLPRIV_V2,
    ];
    for flag in wanted {
        if config.add_capabilities(flag).is_err() {
            tracing::info!("this kernel does not offer {flag:?}; going on without");
        }
    }
}
