//! Clients that break the rules lose their connection, and disturb nobody.

use std::pin::pin;
use std::time::Duration;

use sheep_nbd::DeviceExports;
use sheepfs_vfs::BlockDevice as _;
use sheepfs_vfs::volume::MemoryDevice;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};

use super::TestServer;
use super::device::{TestDevice, byte_at};
use super::raw_client::*;

fn server() -> TestServer<DeviceExports<TestDevice>> {
    TestServer::start([("disk", TestDevice::new(64 << 20))])
}

#[tokio::test]
async fn garbage_closes_only_its_own_connection() {
    let server = server();
    let mut honest = server.simple().await;

    let mut client = RawClient::greeted(&server.socket).await;
    client.send(&0xffu32.to_be_bytes()).await;
    assert!(client.is_closed().await, "flags that were not offered");

    let mut client = server.connect().await;
    client.send(b"GET / HTTP/1.1\r\n\r\n").await;
    assert!(client.is_closed().await, "no option");

    let mut client = server.connect().await;
    client.send(b"IHAVEOPT\0\0\0\x07\xff\xff\xff\xff").await;
    assert!(client.is_closed().await, "an option of 4 GiB");

    let mut client = server.simple().await;
    client.send(&[0x41; 28]).await;
    assert!(client.is_closed().await, "no request");

    let mut client = server.simple().await;
    client.request((WRITE, 0), 1, 0, u32::MAX, b"").await;
    assert!(client.is_closed().await, "a payload of 4 GiB");

    // A compact request where extended ones were negotiated.
    let mut client = server.connect().await;
    client.extended().await;
    client.go("disk").await;
    client.request((READ, 0), 1, 0, 512, b"\0\0\0\0").await;
    assert!(client.is_closed().await, "the wrong style");

    assert_eq!(honest.read(0, 512).await, [1; 512]);
}

#[tokio::test]
async fn handshake_with_too_many_options_is_closed() {
    let server = server();
    let mut client = server.connect().await;
    for _ in 0..1024 {
        assert_eq!(client.outcome(99, b"").await, ERR_UNSUP);
    }
    assert!(client.is_closed().await);
}

#[tokio::test]
async fn disconnect_inside_message_disturbs_no_other_client() {
    let server = server();
    let mut honest = server.simple().await;
    for len in [0, 3, 27] {
        let mut client = server.simple().await;
        let request = [&0x2560_9513u32.to_be_bytes()[..], &[0; 24]].concat();
        client.send(&request[..len]).await;
        client.0.shutdown().await.unwrap();
        assert!(client.is_closed().await);
    }
    let mut client = server.simple().await;
    client.request((WRITE, 0), 1, 0, 4096, b"only this").await;
    drop(client);
    // Half a payload is not written.
    assert_eq!(honest.read(0, 512).await, [1; 512]);
}

#[tokio::test]
async fn unread_replies_do_not_block_other_clients() {
    let server = server();
    let mut silent = Vec::new();
    for _ in 0..10 {
        let mut client = server.simple().await;
        // 128 MiB each, of which 64 MiB may be in flight.
        for cookie in 0..4 {
            client.request((READ, 0), cookie, 0, 32 << 20, b"").await;
        }
        silent.push(client);
    }
    let mut honest = server.simple().await;
    for offset in (0..64 << 20).step_by(1 << 20) {
        assert_eq!(honest.read(offset, 512).await, [byte_at(offset); 512]);
    }
    // They may still read them.
    let mut client = silent.remove(0);
    let reply = client.reply().await;
    assert_eq!(reply.error, 0);
    assert_eq!(client.receive(512).await, [1; 512]);
}

#[tokio::test(start_paused = true)]
async fn read_waits_until_slow_readers_are_dropped() {
    let bytes = vec![1; 32 << 20];
    let server = TestServer::start([("disk", MemoryDevice::new(bytes))]);
    let mut slow = JoinSet::new();
    for _ in 0..10 {
        let mut client = server.simple().await;
        // 64 MiB each, 512 MiB in all.
        for cookie in 0..4 {
            client.request((READ, 0), cookie, 0, 32 << 20, b"").await;
        }
        // Never a minute without progress, but a day for all of it.
        slow.spawn(async move {
            while client
                .0
                .read(&mut [0; 1 << 16])
                .await
                .is_ok_and(|len| len > 0)
            {
                tokio::time::sleep(Duration::from_secs(5)).await;
            }
        });
    }
    let mut honest = server.simple().await;
    let begun = Instant::now();
    // More than the reserve of a connection.
    honest.request((READ, 0), 1, 0, 2 << 20, b"").await;
    let mut reply = [0; 16];
    let answered = timeout(Duration::from_secs(300), honest.0.read_exact(&mut reply));
    assert_eq!(answered.await.unwrap().unwrap(), reply.len());
    assert_eq!(reply[4..8], [0; 4], "no error");
    assert_eq!(honest.receive(2 << 20).await, vec![1; 2 << 20]);
    let waited = begun.elapsed();
    assert!(waited > Duration::from_secs(30), "nobody was in the way");
}

#[tokio::test]
async fn unread_replies_are_freed_when_client_disconnects() {
    let device = TestDevice::new(1 << 20);
    let server = TestServer::start([("disk", device.clone())]);
    let held = device.hold(4096);
    let mut client = server.simple().await;
    client.request((READ, 0), 1, 4096, 512, b"").await;
    client.request((READ, 0), 2, 0, 512, b"").await;
    assert_eq!(client.reply().await.cookie, 2);
    drop(client);
    held.notify_one();
    server.server.shut_down();
    server.server.drained().await;
}

#[tokio::test]
async fn disconnect_without_reading_waits_for_requests_in_flight() {
    let device = TestDevice::new(1 << 20);
    let server = TestServer::start([("disk", device.clone())]);
    let (early, late) = (device.hold(4096), device.hold(8192));
    let mut client = server.simple().await;
    client.request((WRITE, 0), 1, 4096, 2, b"ab").await;
    client.request((WRITE, 0), 2, 8192, 2, b"cd").await;
    // The first has been taken once this is answered, and so have the others.
    assert_eq!(client.error_of((FLUSH, 0), 0, 0, b"").await, 0);
    drop(client);
    server.server.shut_down();
    let mut drained = pin!(server.server.drained());
    // Its reply fails: the client is gone.
    early.notify_one();
    let wait = timeout(Duration::from_millis(300), &mut drained).await;
    assert!(wait.is_err(), "a write is in flight");
    late.notify_one();
    drained.await;
    assert_eq!(device.read_at(8192, 2).await.unwrap(), "cd");
}

#[tokio::test(start_paused = true)]
async fn handshake_without_end_is_closed() {
    let server = server();
    let mut client = server.connect().await;
    let begun = Instant::now();
    let ended = async {
        loop {
            client.option(99, b"").await;
            client.option_reply(99).await;
            tokio::time::sleep(Duration::from_secs(50)).await;
            if client.0.try_read(&mut [0]).is_ok() {
                return;
            }
        }
    };
    timeout(Duration::from_secs(600), ended).await.unwrap();
    assert!(begun.elapsed() >= Duration::from_secs(100));
}
