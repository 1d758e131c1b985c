//! File handles, by which NFS servers know files. Python has the system calls
//! through its C library; no safe Rust crate does.

use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, bail};
use nix::errno::Errno;

use crate::program::{output, run};
use crate::wait::EVENT_LIMIT;

/// `name_to_handle_at PATH` prints a handle, `open_by_handle_at MOUNTPOINT HANDLE`
/// the start of its file; a refused open ends with the errno as exit status.
const HELPER: &str = r"
import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)
class Handle(ctypes.Structure):
    _fields_ = [('bytes', ctypes.c_uint), ('type', ctypes.c_int), ('data', ctypes.c_ubyte * 128)]
what, path = sys.argv[1:3]
if what == 'name_to_handle_at':
    handle, mount = Handle(bytes=128), ctypes.c_int()
    if libc.name_to_handle_at(-100, os.fsencode(path), ctypes.byref(handle), ctypes.byref(mount), 0):
        raise OSError(ctypes.get_errno(), what)
    print(bytes(handle).hex())
else:
    handle = Handle.from_buffer_copy(bytes.fromhex(sys.argv[3]))
    file = libc.open_by_handle_at(os.open(path, os.O_RDONLY), ctypes.byref(handle), os.O_RDONLY)
    if file < 0:
        sys.exit(ctypes.get_errno())
    try:
        sys.stdout.buffer.write(os.read(file, 4096))
    except IsADirectoryError:
        print('\n'.join(sorted(os.listdir(file))))
";

/// A handle of a file, which does not keep the file in any cache.
#[derive(Clone, Debug)]
pub struct FileHandle(String);

impl FileHandle {
    /// The handle of the file at `path`.
    ///
    /// # Errors
    /// When there is no `python3`, or the file system has no handles.
    pub fn of(path: &Path) -> anyhow::Result<Self> {
        let printed = run(helper().arg("name_to_handle_at").arg(path))?;
        Ok(Self(String::from_utf8(printed)?.trim().to_owned()))
    }

    /// Opens the file, which is below `mountpoint`, and reads its first bytes, or
    /// the names in a directory; an errno when the open is refused.
    ///
    /// # Errors
    /// When there is no `python3`, or the file cannot be read.
    pub fn read(&self, mountpoint: &Path) -> anyhow::Result<Result<Vec<u8>, Errno>> {
        let finished = output(
            EVENT_LIMIT,
            helper()
                .arg("open_by_handle_at")
                .arg(mountpoint)
                .arg(&self.0),
        )?;
        match finished.status.code().context("it was killed")? {
            0 => Ok(Ok(finished.stdout)),
            _ if !finished.stderr.is_empty() => bail!("{}", finished.stderr),
            errno => Ok(Err(Errno::from_raw(errno))),
        }
    }
}

fn helper() -> Command {
    let mut python = Command::new("python3");
    python.args(["-c", HELPER]);
    python
}
