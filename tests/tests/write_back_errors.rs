//! Errors of write-back with page cache, as programs get them: each open file reports
//! each error once, by fsync(2), close(2) or msync(2).

use std::fs::File;
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use nix::errno::Errno;
use nix::unistd::close;
use tests::{Mounted, TestCluster, errno, open, wait_until};

/// Longest wait for a write-back to fail, and for a sheep to be found again.
const LIMIT: Duration = Duration::from_secs(30);

/// A mount with page cache and a short retry timeout, and a volume.
fn start() -> anyhow::Result<(TestCluster, Mounted, PathBuf)> {
    let cluster = TestCluster::start_own()?;
    let mounted = Mounted::start(&cluster, &["--pagecache", "--retry-for", "1"])?;
    let path = mounted.create("v", "8M object_size=1M")?;
    let file = open(&path)?;
    file.write_all_at(&[1; 4096], 0)?;
    file.sync_all()?;
    Ok((cluster, mounted, path))
}

/// Writes through `file`, and returns when the write-back has failed and the sheep is
/// there again.
fn lose_write(cluster: &mut TestCluster, mounted: &Mounted, file: &File) -> anyhow::Result<()> {
    cluster.own_sheep()?.kill()?;
    file.write_all_at(&[2; 4096], 0)
        .context("a buffered write succeeds")?;
    wait_until("the write-back has failed", LIMIT, || {
        Ok(mounted.log().contains("its data is lost"))
    })?;
    start_again(cluster, mounted)
}

fn start_again(cluster: &mut TestCluster, mounted: &Mounted) -> anyhow::Result<()> {
    cluster.own_sheep()?.start_again()?;
    wait_until("the sheep is in use again", LIMIT, || {
        Ok(mounted.report("vdi/list").is_ok())
    })
}

#[test]
fn write_back_error_reaches_each_fsync_once() -> anyhow::Result<()> {
    let (mut cluster, mounted, path) = start()?;
    let (writer, other) = (open(&path)?, open(&path)?);
    lose_write(&mut cluster, &mounted, &writer)?;
    // The first handle that syncs does not take the error from the other.
    for (file, name) in [(&other, "other"), (&writer, "writer")] {
        ensure!(errno(file.sync_all()) == Some(Errno::EIO), "{name}");
        file.sync_all().with_context(|| format!("{name}, again"))?;
    }
    open(&path)?.sync_all().context("opened after the error")?;
    writer.write_all_at(&[3; 4096], 0)?;
    writer.sync_all()?;
    mounted.stop()
}

#[test]
fn write_back_error_reaches_close_until_fsync() -> anyhow::Result<()> {
    let (mut cluster, mounted, path) = start()?;
    let (writer, synced) = (open(&path)?, open(&path)?);
    lose_write(&mut cluster, &mounted, &writer)?;
    // A close in a child of the writer must not take the error from the writer.
    let inherited = OwnedFd::from(writer.try_clone()?);
    ensure!(close(inherited) == Err(Errno::EIO), "inherited");
    ensure!(close(OwnedFd::from(writer)) == Err(Errno::EIO), "writer");
    ensure!(errno(synced.sync_all()) == Some(Errno::EIO));
    close(OwnedFd::from(synced)).context("after fsync")?;
    mounted.stop()
}

/// Changes a mapped page for each line of its input and prints the result of msync(2).
const MAPPED_WRITER: &str = "
import mmap, os, sys
pages = mmap.mmap(os.open(sys.argv[1], os.O_RDWR), 4096)
for number, line in enumerate(sys.stdin):
    pages[0] = 10 + number
    try:
        pages.flush()
        print('ok', flush=True)
    except OSError as error:
        print(error.errno, flush=True)
";

#[test]
fn write_back_error_reaches_msync() -> anyhow::Result<()> {
    let (mut cluster, mounted, path) = start()?;
    let mut python = Command::new("python3")
        .args(["-c", MAPPED_WRITER])
        .arg(&path)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    let mut input = python.stdin.take().context("stdin is a pipe")?;
    let mut output = BufReader::new(python.stdout.take().context("stdout is a pipe")?).lines();
    let mut msync = || -> anyhow::Result<String> {
        input.write_all(b"\n")?;
        Ok(output.next().context("the writer has ended")??)
    };
    ensure!(msync()? == "ok");
    cluster.own_sheep()?.kill()?;
    let refused = msync()?;
    ensure!(refused == (Errno::EIO as i32).to_string(), "{refused}");
    start_again(&mut cluster, &mounted)?;
    let recovered = msync()?;
    ensure!(recovered == "ok", "{recovered}");
    drop(input);
    ensure!(python.wait()?.success());
    mounted.stop()
}
