//! Requests of every kind, at every border.

use std::convert::Infallible;
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use sheep_nbd::export::{ContextQuery, Description, Export, ExportError, Exports};
use sheep_nbd::protocol::reply::StatusExtent;
use sheepfs_vfs::VolumeError;

use super::TestServer;
use super::device::{OBJECT_SIZE, TestDevice, byte_at};
use super::raw_client::*;

const MIB: u64 = 1 << 20;
const LEN: usize = 1 << 20;

fn expected(offset: u64, len: u64) -> Vec<u8> {
    (offset..offset + len).map(byte_at).collect()
}

#[tokio::test]
async fn read_and_write_have_any_alignment() {
    let server = TestServer::start([("disk", TestDevice::new(3 << 20))]);
    let mut client = server.simple().await;
    for (offset, len) in [
        (0, 1),
        (511, 2),
        (1, 4095),
        (MIB - 1, 2),
        (MIB - 7, MIB + 9),
    ] {
        let len32 = u32::try_from(len).unwrap();
        assert_eq!(client.read(offset, len32).await, expected(offset, len));
        let data: Vec<u8> = (0..len).map(|at| u8::try_from(at % 7).unwrap()).collect();
        assert_eq!(client.error_of((WRITE, 0), offset, len32, &data).await, 0);
        assert_eq!(client.read(offset, len32).await, data);
        let old = expected(offset, len);
        assert_eq!(client.error_of((WRITE, 0), offset, len32, &old).await, 0);
    }
    assert_eq!(client.read(0, 3 << 20).await, expected(0, 3 << 20));
    assert!(client.read(5, 0).await.is_empty());
    assert_eq!(client.error_of((WRITE, 0), 5, 0, b"").await, 0);
}

#[tokio::test]
async fn payload_limit_is_exactly_32_mib() {
    let server = TestServer::start([("disk", TestDevice::new(40 << 20))]);
    let mut client = server.simple().await;
    let max = 32u32 << 20;
    assert_eq!(client.read(MIB, max).await, expected(MIB, u64::from(max)));
    let data = vec![9; max as usize + 1];
    assert_eq!(client.error_of((WRITE, 0), 3, max, &data[1..]).await, 0);
    assert_eq!(client.error_of((READ, 0), 0, max + 1, b"").await, EINVAL);
    assert_eq!(client.error_of((WRITE, 0), 0, max + 1, &data).await, EINVAL);
    assert_eq!(client.read(0, 4).await, [1, 1, 1, 9]);
}

#[tokio::test]
async fn request_past_end_fails_with_specified_error() {
    let server = TestServer::start([("disk", TestDevice::new(5000))]);
    let mut client = server.structured().await;
    let data = [7; 2];
    for (command, error) in [
        (READ, EINVAL),
        (WRITE, ENOSPC),
        (WRITE_ZEROES, ENOSPC),
        (TRIM, EINVAL),
        (CACHE, EINVAL),
        (BLOCK_STATUS, EINVAL),
    ] {
        let payload = if command == WRITE { &data[..] } else { b"" };
        for offset in [4999, 5000, u64::MAX - 1, u64::MAX] {
            let found = client.error_of((command, 0), offset, 2, payload).await;
            assert_eq!(found, error, "command {command} at {offset}");
        }
    }
    assert_eq!(client.error_of((BLOCK_STATUS, 0), 0, 0, b"").await, EINVAL);
    assert_eq!(
        client.read_chunks(0, 4990, 10).await.bytes,
        expected(4990, 10)
    );
}

#[tokio::test]
async fn request_past_end_of_shrunk_device_fails_alike() {
    let device = TestDevice::new(5000);
    device.claim_size(8000);
    let server = TestServer::start([("disk", device)]);
    let mut client = server.simple().await;
    assert_eq!(client.error_of((READ, 0), 4999, 2, b"").await, EINVAL);
    assert_eq!(client.error_of((WRITE, 0), 4999, 2, b"ab").await, ENOSPC);
    let zeros = (WRITE_ZEROES, NO_HOLE);
    assert_eq!(client.error_of(zeros, 4999, 2, b"").await, ENOSPC);
}

/// A device that a revalidation finds shrunk to 5000 bytes.
struct Shrinking(Arc<TestDevice>);

impl Export for Shrinking {
    type Device = TestDevice;
    type Context = Infallible;

    fn device(&self) -> &Arc<TestDevice> {
        &self.0
    }

    async fn open_context(&self, _name: &[u8]) -> Result<Option<Infallible>, ExportError> {
        Ok(None)
    }

    async fn revalidate(&self, _range: Range<u64>) -> Result<(), VolumeError> {
        self.0.claim_size(5000);
        Ok(())
    }

    async fn extents(
        &self,
        context: &Infallible,
        _range: Range<u64>,
        _max: usize,
    ) -> Result<Vec<StatusExtent>, VolumeError> {
        match *context {}
    }
}

impl Exports for Shrinking {
    type Export = Self;

    async fn list(&self) -> Result<Vec<(Bytes, String)>, ExportError> {
        Ok(Vec::new())
    }

    async fn describe(&self, _name: &[u8]) -> Result<Description, ExportError> {
        Ok(Description {
            size: 8000,
            is_writable: true,
            text: String::new(),
        })
    }

    async fn contexts(
        &self,
        _name: &[u8],
        _queries: &[ContextQuery<'_>],
    ) -> Result<Vec<Bytes>, ExportError> {
        Ok(Vec::new())
    }

    async fn open(&self, _name: &[u8]) -> Result<Arc<Self>, ExportError> {
        Ok(Arc::new(Self(Arc::clone(&self.0))))
    }
}

#[tokio::test]
async fn block_status_past_end_of_shrunk_device_is_invalid() {
    let server = TestServer::with_exports(Shrinking(TestDevice::new(8000)));
    let mut client = server.structured().await;
    assert_eq!(
        client.error_of((BLOCK_STATUS, 0), 6000, 9, b"").await,
        EINVAL
    );
    assert_eq!(client.extents(0, 4000, 9).await, [(9, 0)]);
}

#[tokio::test]
async fn zeros_end_early_at_shutdown() {
    let device = TestDevice::new(64 << 20);
    let server = TestServer::start([("disk", device.clone())]);
    let mut client = server.simple().await;
    let held: Vec<_> = (0..4).map(|step| device.hold(step * MIB)).collect();
    client
        .request((WRITE_ZEROES, NO_HOLE), 1, 0, 64 << 20, b"")
        .await;
    // It has begun once all four steps are held up.
    while device.writes() < 4 {
        tokio::task::yield_now().await;
    }
    server.server.shut_down();
    held.iter().for_each(|step| step.notify_one());
    assert_eq!(client.reply().await.error, ESHUTDOWN);
    assert_eq!(device.writes(), 4);
    server.server.drained().await;
}

#[tokio::test]
async fn command_or_flag_unknown_is_refused_as_invalid() {
    let server = TestServer::start([("disk", TestDevice::new(5000))]);
    let mut client = server.simple().await;
    for command in [8, 9, 0x1234] {
        assert_eq!(client.error_of((command, 0), 0, 1, b"").await, EINVAL);
    }
    for (command, flags) in [
        (READ, NO_HOLE),
        (READ, DF),
        (FLUSH, REQ_ONE),
        (TRIM, 1 << 15),
    ] {
        assert_eq!(client.error_of((command, flags), 0, 1, b"").await, EINVAL);
    }
    assert_eq!(
        client.error_of((WRITE, PAYLOAD_LEN), 0, 2, b"ab").await,
        EINVAL
    );
    assert_eq!(client.read(0, 2).await, [1, 1]);
}

#[tokio::test]
async fn read_only_export_refuses_every_change() {
    use sheepfs_vfs::volume::MemoryDevice;
    let server = TestServer::start([("disk", MemoryDevice::read_only(vec![5; 4096]))]);
    let mut client = server.connect().await;
    let (_, flags) = client.go("disk").await;
    assert_eq!(flags, 0b101_0000_0111, "READ_ONLY, and nothing that writes");
    for (command, payload) in [(WRITE, &b"ab"[..]), (TRIM, b""), (WRITE_ZEROES, b"")] {
        assert_eq!(client.error_of((command, 0), 0, 2, payload).await, EPERM);
    }
    assert_eq!(client.error_of((FLUSH, 0), 0, 0, b"").await, 0);
    assert_eq!(client.read(0, 2).await, [5, 5]);
}

#[tokio::test]
async fn structured_read_sends_hole_chunks() {
    let server = TestServer::start([("disk", TestDevice::with_holes(4 << 20, &[1, 2]))]);
    let mut client = server.structured().await;
    let read = client.read_chunks(0, 1000, 3 << 20).await;
    assert_eq!((read.data, read.holes), (2, 2));
    assert_eq!(read.bytes[..LEN - 1000], expected(1000, MIB - 1000));
    let hole = LEN - 1000..3 * LEN - 1000;
    assert!(read.bytes[hole].iter().all(|&byte| byte == 0));
    assert_eq!(read.bytes[3 * LEN - 1000..], expected(3 * MIB, 1000));

    let whole = client.read_chunks(DF, 0, 4 << 20).await;
    assert_eq!((whole.data, whole.holes), (1, 0));
    let hole = client.read_chunks(DF, MIB, 4096).await;
    assert_eq!((hole.data, hole.holes), (0, 1));
}

#[tokio::test]
async fn block_status_has_extents_of_range() {
    let server = TestServer::start([("disk", TestDevice::with_holes(4 << 20, &[1, 2]))]);
    let mut client = server.structured().await;
    let mib = 1 << 20;
    assert_eq!(
        client.extents(0, 0, 4 * mib).await,
        [(mib, 0), (mib, 3), (mib, 3), (mib, 0)]
    );
    assert_eq!(client.extents(0, 10, 20).await, [(20, 0)]);
    assert_eq!(
        client.extents(REQ_ONE, MIB + 1, 2 * mib).await,
        [(mib - 1, 3)]
    );
}

#[tokio::test]
async fn fua_and_flush_reach_device_before_reply() {
    let device = TestDevice::new(1 << 20);
    let server = TestServer::start([("disk", device.clone())]);
    let mut first = server.simple().await;
    let mut second = server.simple().await;
    assert_eq!(first.error_of((WRITE, 0), 0, 2, b"ab").await, 0);
    assert_eq!(device.flushes(), 0);
    assert_eq!(second.error_of((FLUSH, 0), 0, 0, b"").await, 0);
    assert_eq!(device.flushes(), 1, "a flush covers all connections");
    assert_eq!(first.error_of((WRITE, FUA), 0, 2, b"ab").await, 0);
    assert_eq!(first.error_of((WRITE_ZEROES, FUA), 0, 2, b"").await, 0);
    assert_eq!(first.error_of((TRIM, FUA), 0, 2, b"").await, 0);
    assert_eq!(device.flushes(), 4);
    // Accepted everywhere, and without a meaning where nothing is written.
    assert_eq!(first.error_of((CACHE, FUA), 0, 2, b"").await, 0);
    assert_eq!(first.error_of((READ, FUA), 0, 2, b"").await, 0);
}

#[tokio::test]
async fn fua_and_flush_survive_crash_of_device() {
    let device = TestDevice::new(2 << 20);
    let server = TestServer::start([("disk", device.clone())]);
    let mut first = server.simple().await;
    let mut second = server.simple().await;
    assert_eq!(first.error_of((WRITE, 0), 0, 2, b"ab").await, 0);
    assert_eq!(second.error_of((FLUSH, 0), 0, 0, b"").await, 0);
    assert_eq!(first.error_of((WRITE, 0), 0, 1, b"x").await, 0);
    device.crash().await;
    assert_eq!(first.read(0, 2).await, *b"ab", "flushed, and not flushed");

    let mib = 1 << 20;
    for (command, payload, found) in [
        (WRITE, &b"cd"[..], *b"cd"),
        (WRITE_ZEROES, b"", [0; 2]),
        (WRITE, b"ef", *b"ef"),
    ] {
        assert_eq!(first.error_of((command, FUA), 0, 2, payload).await, 0);
        device.crash().await;
        assert_eq!(second.read(0, 2).await, found);
    }
    assert_eq!(first.error_of((TRIM, FUA), 0, mib, b"").await, 0);
    device.crash().await;
    assert_eq!(second.read(0, 2).await, [0; 2]);
}

#[tokio::test]
async fn write_zeroes_and_trim_deallocate_unless_no_hole() {
    let device = TestDevice::with_holes(5 << 20, &[3]);
    let server = TestServer::start([("disk", device.clone())]);
    let mut client = server.simple().await;
    let mib = 1u32 << 20;
    assert_eq!(
        client.error_of((WRITE_ZEROES, NO_HOLE), 5, mib, b"").await,
        0
    );
    assert!(device.discards().is_empty());
    assert_eq!(
        client.read(4, mib + 2).await[1..=mib as usize],
        vec![0; mib as usize]
    );
    assert_eq!(client.error_of((WRITE_ZEROES, 0), 5, mib, b"").await, 0);
    assert_eq!(client.error_of((TRIM, 0), 5, 2 * mib, b"").await, 0);
    // What is no whole object stays as it is.
    assert_eq!(client.error_of((TRIM, 0), 5, mib, b"").await, 0);
    assert_eq!(device.discards(), [(5, u64::from(mib)), (MIB, MIB)]);
}

#[tokio::test]
async fn zeros_written_in_part_leave_nothing_in_flight() {
    let device = TestDevice::new(16 << 20);
    let server = TestServer::start([("disk", device.clone())]);
    let mut client = server.simple().await;
    let (held, last) = (device.hold(0), device.hold(2 * MIB));
    device.fail_write(MIB);
    client
        .request((WRITE_ZEROES, NO_HOLE), 1, 0, 16 << 20, b"")
        .await;
    // A reply now would let the client write what a late zero then overwrites.
    client.request((FLUSH, 0), 2, 0, 0, b"").await;
    assert_eq!(client.reply().await.cookie, 2);
    held.notify_one();
    client.request((FLUSH, 0), 3, 0, 0, b"").await;
    assert_eq!(client.reply().await.cookie, 3);
    last.notify_one();
    let reply = client.reply().await;
    assert_eq!((reply.cookie, reply.error), (1, EIO));
    assert!(device.writes() <= 8, "no more zeros after an error");
    assert_eq!(client.error_of((WRITE, 0), 0, 2, b"ab").await, 0);
    assert_eq!(client.read(0, 3).await, *b"ab\0");
}

#[tokio::test]
async fn fast_zero_is_refused_if_slow() {
    let device = TestDevice::with_holes((4 << 20) + 9, &[2]);
    let server = TestServer::start([("disk", device.clone())]);
    let mut client = server.simple().await;
    let mib = 1u32 << 20;
    for (flags, offset, len, error) in [
        (FAST_ZERO, 0, mib, 0),
        (FAST_ZERO, 1, mib, ENOTSUP),
        (FAST_ZERO, 0, mib + 1, ENOTSUP),
        (FAST_ZERO | NO_HOLE, 0, mib, ENOTSUP),
        // Its other half is a hole.
        (FAST_ZERO, MIB, mib + 5, 0),
        (FAST_ZERO, 2 * MIB + 5, 10, 0),
        // The last object ends with the device.
        (FAST_ZERO, 4 * MIB, 9, 0),
    ] {
        let found = client
            .error_of((WRITE_ZEROES, flags), offset, len, b"")
            .await;
        assert_eq!(found, error, "{len} at {offset}");
    }
    assert_eq!(OBJECT_SIZE, MIB);
}

#[tokio::test]
async fn replies_come_in_completion_order() {
    let device = TestDevice::new(1 << 20);
    let server = TestServer::start([("disk", device.clone())]);
    let mut client = server.simple().await;
    let held = device.hold(4096);
    for cookie in 0..64 {
        client
            .request((READ, 0), cookie, 4096 + 512 * cookie, 512, b"")
            .await;
    }
    for _ in 1..64 {
        let reply = client.reply().await;
        let offset = 4096 + 512 * reply.cookie;
        assert_eq!(client.receive(512).await, [byte_at(offset); 512]);
        assert_ne!(reply.cookie, 0);
    }
    held.notify_one();
    assert_eq!(client.reply().await.cookie, 0);
}

#[tokio::test]
async fn disconnect_waits_for_requests_in_flight() {
    let device = TestDevice::new(1 << 20);
    let server = TestServer::start([("disk", device.clone())]);
    let mut client = server.simple().await;
    let held = device.hold(0);
    client.request((READ, 0), 1, 0, 512, b"").await;
    client.request((DISCONNECT, 0), 2, 0, 0, b"").await;
    held.notify_one();
    assert_eq!(client.reply().await.cookie, 1);
    assert_eq!(client.receive(512).await, [1; 512]);
    assert!(client.is_closed().await);
}

#[tokio::test]
async fn shutdown_drains_requests_and_closes_connections() {
    let device = TestDevice::new(1 << 20);
    let server = TestServer::start([("disk", device.clone())]);
    let mut undecided = server.connect().await;
    let mut idle = server.simple().await;
    let mut busy = server.simple().await;
    let held = device.hold(0);
    busy.request((READ, 0), 1, 0, 512, b"").await;
    busy.request((READ, 0), 2, 512, 512, b"").await;
    assert_eq!(busy.reply().await.cookie, 2);
    busy.receive(512).await;
    server.server.shut_down();
    assert!(undecided.is_closed().await && idle.is_closed().await);
    held.notify_one();
    assert_eq!(busy.reply().await.cookie, 1);
    assert_eq!(busy.receive(512).await, [1; 512]);
    assert!(busy.is_closed().await);
    server.server.drained().await;
}

#[tokio::test]
async fn extended_headers_carry_every_command() {
    let server = TestServer::start([("disk", TestDevice::with_holes(4 << 20, &[1]))]);
    let mut client = server.connect().await;
    client.extended().await;
    client.select("disk", &["base:allocation"]).await;
    let (_, flags) = client.go("disk").await;
    assert_ne!(flags & 1 << 12, 0, "BLOCK_STATUS_PAYLOAD");

    client
        .extended_request((WRITE, PAYLOAD_LEN), 1, 7, 2, b"ab")
        .await;
    let reply = client.reply().await;
    assert_eq!((reply.kind, reply.error), (Some(0), 0));
    // Without the flag there is no payload, which a write cannot do without.
    client.extended_request((WRITE, 0), 2, 7, 2, b"").await;
    assert_eq!(client.reply().await.error, EINVAL);
    // A payload where none belongs is skipped.
    client
        .extended_request((READ, PAYLOAD_LEN), 3, 7, 2, b"xy")
        .await;
    assert_eq!(client.reply().await.error, EINVAL);
    client.extended_request((READ, 0), 4, 7, 2, b"").await;
    let reply = client.reply().await;
    assert_eq!((reply.kind, &reply.payload[8..]), (Some(1), &b"ab"[..]));
    client.extended_request((FLUSH, 0), 5, 0, 0, b"").await;
    assert_eq!(client.reply().await.kind, Some(0));
    client.extended_request((READ, 0), 6, 0, 1 << 40, b"").await;
    assert_eq!(client.reply().await.error, EINVAL);

    client
        .extended_request((BLOCK_STATUS, 0), 7, 0, 2 << 20, b"")
        .await;
    let reply = client.reply().await;
    let numbers: Vec<u64> = reply.payload[8..]
        .chunks_exact(8)
        .map(|bytes| u64::from_be_bytes(bytes.try_into().unwrap()))
        .collect();
    assert_eq!(
        (reply.kind, &numbers[..]),
        (Some(6), &[1 << 20, 0, 1 << 20, 3][..])
    );
    assert_eq!(reply.payload[..8], [0, 0, 0, 0, 0, 0, 0, 2]);

    let payload = |ids: &[u32]| {
        let mut bytes = (1u64 << 20).to_be_bytes().to_vec();
        ids.iter().for_each(|id| bytes.extend(id.to_be_bytes()));
        bytes
    };
    for (ids, error) in [
        (&[0][..], 0),
        (&[1], EINVAL),
        (&[0, 0], EINVAL),
        (&[], EINVAL),
    ] {
        let bytes = payload(ids);
        let len = bytes.len() as u64;
        client
            .extended_request((BLOCK_STATUS, PAYLOAD_LEN), 8, 0, len, &bytes)
            .await;
        assert_eq!(client.reply().await.error, error, "{ids:?}");
    }
    // Longer than any list of contexts.
    let long = vec![0; 4096];
    client
        .extended_request((BLOCK_STATUS, PAYLOAD_LEN), 9, 0, 4096, &long)
        .await;
    assert_eq!(client.reply().await.error, EINVAL);
}
