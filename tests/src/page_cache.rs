//! Reading a file without read(2): zero-copy calls and mmap(2), which the kernel
//! serves from its page cache.

use std::fs::File;
use std::io::{Read as _, Seek as _};
use std::process::Command;

use anyhow::Context as _;
use nix::fcntl::{SpliceFFlags, splice};
use nix::sys::sendfile::sendfile;

use crate::program::run;

/// Bytes per call.
const ROUND: usize = 1 << 20;

/// The whole file by sendfile(2), as `busybox cat` reads it.
///
/// # Errors
/// The system's.
pub fn read_by_sendfile(file: &File) -> anyhow::Result<Vec<u8>> {
    let mut copy = tempfile::tempfile()?;
    let mut offset = 0;
    while sendfile(&copy, file, Some(&mut offset), ROUND).context("sendfile")? > 0 {}
    copy.rewind()?;
    let mut bytes = Vec::new();
    copy.read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// The whole file by splice(2) through a pipe.
///
/// # Errors
/// The system's.
pub fn read_by_splice(file: &File) -> anyhow::Result<Vec<u8>> {
    let (reader, writer) = std::io::pipe()?;
    let (mut bytes, mut offset) = (Vec::new(), 0);
    loop {
        let flags = SpliceFFlags::empty();
        let len = splice(file, Some(&mut offset), &writer, None, ROUND, flags).context("splice")?;
        if len == 0 {
            return Ok(bytes);
        }
        let start = bytes.len();
        bytes.resize(start + len, 0);
        (&reader).read_exact(&mut bytes[start..])?;
    }
}

/// The first bytes of a file through mmap(2), as `xfs_io` dumps them.
///
/// # Errors
/// When `xfs_io` is missing or fails.
pub fn read_by_mmap(path: &std::path::Path, len: usize) -> anyhow::Result<Vec<u8>> {
    let dump = run(Command::new("xfs_io")
        .args(["-r", "-c", "mmap -r 0 4096"])
        .args(["-c", &format!("mread -v 0 {len}")])
        .arg(path))?;
    // "00000000:  61 62 0a  ab."
    let dump = String::from_utf8(dump)?;
    let mut bytes = Vec::new();
    for line in dump.lines() {
        let fields = line.split_once(":  ").map(|(_, fields)| fields);
        let hex = fields.and_then(|fields| fields.split("  ").next());
        for byte in hex.unwrap_or_default().split(' ') {
            bytes.push(u8::from_str_radix(byte, 16).with_context(|| dump.clone())?);
        }
    }
    Ok(bytes)
}
