//! Handles that truncate write the same bytes as to a plain file.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use futures_util::future::try_join_all;
use nix::errno::Errno;
use sheep_client::testing::{Fault, FaultTransport};
use sheep_client::unstable::Request;
use sheep_client::{Client, NewVdi};
use sheep_proto::{Opcode, ResultCode, VdiName};
use sheepfs_vfs::{AllocateMode, BlockDevice as _, FsError, HandleId, Ino, OpenMode, Tree};
use tokio::sync::oneshot;
use tokio::time::Instant;

use crate::model::{Kind, kinds};
use crate::support::{Cluster, MIB, attached, data_object, open, pattern, read_all, write_file};

const STEPS: usize = 60;
const OLD: u8 = b'x';

/// A volume full of old bytes, attached to a tree.
struct Truncated {
    tree: Arc<Tree>,
    ino: Ino,
    mode: OpenMode,
    name: VdiName,
}

impl Truncated {
    async fn start(cluster: &Cluster, client: Client, cached: bool, size: u64) -> Self {
        let kind = |new: &mut NewVdi| (new.size, new.object_shift) = (size, Some(20));
        Self::of_kind(cluster, client, cached, kind).await
    }

    async fn of_kind(
        cluster: &Cluster,
        client: Client,
        cached: bool,
        kind: impl FnOnce(&mut NewVdi),
    ) -> Self {
        let name = cluster.create_kind("truncated", kind).await;
        let volume = open(&cluster.client, &name).await;
        let len = usize::try_from(volume.size()).unwrap();
        if len > 0 {
            volume.write_at(0, pattern(OLD, len)).await.unwrap();
        }
        volume.close().await.unwrap();
        let (tree, ino, mode) = attached(client, &name, cached).await;
        Self {
            tree,
            ino,
            mode,
            name,
        }
    }

    async fn handle(&self) -> HandleId {
        self.tree
            .files()
            .open(self.ino, self.mode, Instant::now())
            .await
            .unwrap()
            .handle
    }

    async fn truncate(&self, handle: HandleId, size: u64) {
        let set = self.tree.set_size(self.ino, size, Some(handle));
        set.await.unwrap();
    }

    /// A handle as an open with `O_TRUNC` leaves it.
    async fn emptied(&self) -> HandleId {
        let handle = self.handle().await;
        self.truncate(handle, 0).await;
        handle
    }

    async fn write(&self, handle: HandleId, offset: u64, data: Bytes) -> Result<u32, FsError> {
        write_file(&self.tree, handle, offset, &data).await
    }

    async fn read(&self, handle: HandleId, offset: u64, len: u32) -> Bytes {
        let (done, read) = oneshot::channel();
        let done = Box::new(move |result: Result<Bytes, FsError>| drop(done.send(result)));
        self.tree.files().read(handle, offset, len, false, done);
        read.await.unwrap().unwrap()
    }

    /// Closes handles, and returns what another client reads.
    async fn finish(self, cluster: &Cluster, handles: &[HandleId]) -> Vec<u8> {
        for &handle in handles {
            self.tree.files().flush(handle).await.unwrap();
            self.tree.files().release(handle);
        }
        self.tree
            .attachments()
            .detach(self.name.as_bytes())
            .await
            .unwrap();
        read_all(&open(&cluster.client, &self.name).await).await
    }
}

/// A disk, and files at its beginning, one for each handle that has truncated.
struct Disk {
    bytes: Vec<u8>,
    files: Vec<Option<usize>>,
}

impl Disk {
    /// Changes the file of a handle, then copies it back to the disk.
    fn change(&mut self, handle: usize, change: impl FnOnce(&mut Vec<u8>)) {
        let len = self.files[handle].unwrap_or(self.bytes.len());
        let mut file = self.bytes[..len].to_vec();
        change(&mut file);
        let kept = self.bytes.get(file.len()..).unwrap_or_default().to_vec();
        if self.files[handle].is_some() || !kept.is_empty() {
            self.files[handle] = Some(file.len());
        }
        self.bytes = [file, kept].concat();
    }

    fn write(&mut self, handle: usize, start: usize, data: &[u8]) {
        self.change(handle, |file| {
            file.resize(file.len().max(start + data.len()), 0);
            file[start..start + data.len()].copy_from_slice(data);
        });
    }
}

/// Random calls through handles of which some truncate.
async fn compare_with_plain_file(cluster: &Cluster, (what, kind): Kind, cached: bool) {
    let seed = fastrand::u64(..);
    println!("{what}, cached: {cached}, seed {seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    let it = Truncated::of_kind(cluster, cluster.client.clone(), cached, kind).await;
    // One handle was opened with O_TRUNC, one truncates later, one never does.
    let handles = [it.emptied().await, it.handle().await, it.handle().await];
    let size = it.tree.attributes(it.ino).await.unwrap().size;
    let mut disk = Disk {
        bytes: vec![OLD; usize::try_from(size).unwrap()],
        files: vec![Some(0), None, None],
    };
    for step in 0..STEPS {
        let size = disk.bytes.len();
        let chosen = random.usize(..handles.len());
        let handle = handles[chosen];
        let start = random.usize(..=size);
        let len = random.usize(..=size - start).min(1 << random.u32(..21));
        let (offset, count) = (start as u64, len as u64);
        match random.u8(..20) {
            // A write inside the volume.
            0..10 => {
                let mut data = vec![0; len];
                random.fill(&mut data);
                if len > 0 {
                    disk.write(chosen, start, &data);
                }
                let written = it.write(handle, offset, data.into()).await.unwrap();
                assert_eq!(written as usize, len);
            }
            // Shrinks the file of the handle.
            10..13 if chosen < 2 => {
                it.truncate(handle, offset).await;
                disk.change(chosen, |file| file.resize(start, 0));
            }
            // Grows the volume.
            13 if chosen < 2 && size < 16 << 20 => {
                it.truncate(handle, size as u64 + count).await;
                disk.change(chosen, |file| file.resize(size + len, 0));
            }
            // Allocates or zeroes a range, which may extend the file of the handle.
            14..16 => {
                it.tree
                    .files()
                    .extend(handle, offset + count)
                    .await
                    .unwrap();
                let mode = [AllocateMode::Allocate, AllocateMode::ZeroRange][random.usize(..2)];
                let allocated = it.tree.files().allocate(handle, mode, offset, count);
                allocated.await.unwrap();
                disk.change(chosen, |file| file.resize(file.len().max(start + len), 0));
                if mode == AllocateMode::ZeroRange {
                    disk.bytes[start..start + len].fill(0);
                }
            }
            // Punches a hole.
            16 => {
                let punch = AllocateMode::PunchHole;
                let punched = it.tree.files().allocate(handle, punch, offset, count);
                punched.await.unwrap();
                disk.bytes[start..start + len].fill(0);
            }
            // A read.
            _ => {
                let found = it.read(handle, offset, u32::try_from(len).unwrap()).await;
                assert!(
                    found == disk.bytes[start..start + len],
                    "step {step}: {start}, {len}"
                );
            }
        }
    }
    // Another client reads the same bytes once all handles are closed.
    let found = it.finish(cluster, &handles).await;
    let wrong = (0..found.len()).find(|&at| found[at] != disk.bytes[at]);
    assert_eq!((wrong, found.len()), (None, disk.bytes.len()), "{what}");
}

#[tokio::test(flavor = "multi_thread")]
async fn truncated_handle_reads_as_plain_file() {
    let cluster = Cluster::start().await;
    for kind in kinds(&cluster) {
        for cached in [false, true] {
            compare_with_plain_file(&cluster, kind, cached).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn truncation_alone_changes_no_byte() {
    let cluster = Cluster::start().await;
    let size = 3 * MIB + 77;
    let it = Truncated::start(&cluster, cluster.client.clone(), false, size).await;
    let handle = it.emptied().await;
    it.write(handle, 0, "hello".into()).await.unwrap();
    // Past the volume's end nothing is written, and nothing discarded.
    for offset in [size, size + 1, 1 << 40] {
        let refused = it.write(handle, offset, "x".into()).await;
        assert_eq!(refused.unwrap_err().errno(), Errno::ENOSPC);
    }
    // By path, and through a handle that has not truncated.
    it.tree.set_size(it.ino, 0, None).await.unwrap();
    let other = it.handle().await;
    it.write(other, 2 * MIB, "other".into()).await.unwrap();

    let mut expected = vec![OLD; usize::try_from(size).unwrap()];
    expected[..5].copy_from_slice(b"hello");
    expected[2 << 20..(2 << 20) + 5].copy_from_slice(b"other");
    assert!(it.finish(&cluster, &[handle, other]).await == expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn truncated_handle_is_not_extended_by_mapped_pages() {
    let cluster = Cluster::start().await;
    for cached in [false, true] {
        let it = Truncated::start(&cluster, cluster.client.clone(), cached, 2 * MIB).await;
        let handle = it.emptied().await;
        let (done, written) = oneshot::channel();
        let done = Box::new(move |result: Result<u32, FsError>| drop(done.send(result)));
        let page = pattern(7, 4096);
        it.tree.files().write_mapped(handle, MIB, &page, done);
        written.await.unwrap().unwrap();
        it.write(handle, 0, "hello".into()).await.unwrap();
        let found = it.finish(&cluster, &[handle]).await;
        assert_eq!(found[..6], *b"hellox");
        assert_eq!(found[(1 << 20) - 1..=1 << 20], [OLD, 7]);
    }
}

/// Writes of zeros in place, which is how part of an object is discarded.
fn is_discard(request: &Request) -> bool {
    request.opcode() == Opcode::WriteObj
        && data_object(request).is_some()
        && request.payload().iter().all(|&byte| byte == 0)
        && !request.payload().is_empty()
}

#[tokio::test(flavor = "multi_thread")]
async fn truncated_handle_retries_failed_discard() {
    let cluster = Cluster::start().await;
    let failing = Arc::new(AtomicBool::new(true));
    let fails = Arc::clone(&failing);
    let client = cluster.client_through(|inner| {
        FaultTransport::new(inner, move |request| {
            let refused = is_discard(request) && fails.load(Ordering::SeqCst);
            refused.then_some(Fault::Refuse(ResultCode::Eio))
        })
    });
    let it = Truncated::start(&cluster, client.await, false, 2 * MIB).await;
    let handle = it.emptied().await;
    it.write(handle, 0, pattern(1, 100)).await.unwrap();
    for _ in 0..2 {
        let refused = it.write(handle, 5000, pattern(2, 100)).await;
        assert_eq!(refused.unwrap_err().errno(), Errno::EIO);
    }
    failing.store(false, Ordering::SeqCst);
    it.write(handle, 5000, pattern(2, 100)).await.unwrap();

    let found = it.finish(&cluster, &[handle]).await;
    let expected = [vec![1; 100], vec![0; 4900], vec![2; 100], vec![OLD; 100]];
    assert!(found.starts_with(&expected.concat()));
}

#[tokio::test(flavor = "multi_thread")]
async fn truncation_discard_delays_only_writes_past_end() {
    let cluster = Cluster::start().await;
    let (client, held, release) = cluster.client_held_at(is_discard).await;
    let it = Arc::new(Truncated::start(&cluster, client, false, 2 * MIB).await);
    let handle = it.emptied().await;
    it.write(handle, 0, pattern(1, 1000)).await.unwrap();
    let write = |offset, writer| {
        let it = Arc::clone(&it);
        tokio::spawn(async move { it.write(handle, offset, pattern(writer, 1000)).await })
    };
    let far = write(100_000, 2);
    held.notified().await;
    // In the gap that is being discarded, across its start, and past it.
    let waiting = [write(50_000, 3), write(500, 4), write(200_000, 5)];
    it.write(handle, 0, pattern(6, 1000)).await.unwrap();
    let other = it.handle().await;
    it.write(other, 300_000, pattern(7, 1000)).await.unwrap();
    tokio::task::yield_now().await;
    assert!(!far.is_finished() && waiting.iter().all(|write| !write.is_finished()));
    release.notify_one();
    for write in std::iter::once(far).chain(waiting) {
        write.await.unwrap().unwrap();
    }

    let it = Arc::into_inner(it).expect("all writers have ended");
    let found = it.finish(&cluster, &[handle, other]).await;
    let mut expected = vec![OLD; 2 << 20];
    expected[..201_000].fill(0);
    for (start, writer) in [
        (0, 6),
        (500, 4),
        (50_000, 3),
        (100_000, 2),
        (200_000, 5),
        (300_000, 7),
    ] {
        expected[start..start + 1000].fill(writer);
    }
    assert!(found == expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn truncated_handle_parallel_writers_lose_nothing() {
    const BLOCK: usize = 30_011;
    let cluster = Cluster::start().await;
    for cached in [false, true] {
        let seed = fastrand::u64(..);
        println!("cached: {cached}, seed {seed}");
        let mut random = fastrand::Rng::with_seed(seed);
        let it = Truncated::start(&cluster, cluster.client.clone(), cached, 9 * MIB + 5).await;
        let handle = it.emptied().await;
        let mut expected = vec![OLD; usize::try_from(9 * MIB + 5).unwrap()];
        let mut blocks: Vec<_> = (0..250).filter(|_| random.u8(..3) > 0).collect();
        let end = (blocks.last().unwrap() + 1) * BLOCK;
        expected[..end].fill(0);
        random.shuffle(&mut blocks);
        let writes = blocks.iter().map(|&block| {
            let writer = 1 + u8::try_from(block % 100).unwrap();
            expected[block * BLOCK..(block + 1) * BLOCK].fill(writer);
            it.write(handle, (block * BLOCK) as u64, pattern(writer, BLOCK))
        });
        try_join_all(writes).await.unwrap();
        assert!(it.finish(&cluster, &[handle]).await == expected, "{seed}");
    }
}
