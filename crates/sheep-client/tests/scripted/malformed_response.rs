//! A response that violates the protocol closes its connection; requests are repeated on
//! another one.

use sheep_client::ClientError;
use sheep_client::unstable::Request;
use sheep_proto::{Opcode, ResponseHeader};
use zerocopy::IntoBytes;

use crate::peer::{Received, Script};
use crate::{connected, object, read, until, within};

/// The peer responds to a read with the bytes that `lie` returns, and closes the connection
/// after part of a frame. The read must get the right response elsewhere,
/// and a read on another connection must not notice.
async fn is_dropped_and_the_request_retried(name: &str, lie: impl Fn(&Received) -> Vec<u8>) {
    let (mut peer, client) = connected(Script::default(), 2).await;
    let first = read(&client, 1, 64);
    let lied_to = peer.request().await;
    // The least loaded connection is the other one now.
    let second = read(&client, 2, 64);
    let other = peer.request().await;
    assert_ne!(lied_to.wire.number, other.wire.number);

    lied_to.wire.send(&lie(&lied_to)).await;
    if name.starts_with("cut") {
        lied_to.wire.close();
    }
    let again = peer.request().await;
    assert_eq!(again.offset(), 1, "{name}: the request is sent again");
    assert_ne!(again.wire.number, lied_to.wire.number, "{name}");
    again.answer(&[1; 64]).await;
    other.answer(&[2; 64]).await;
    assert_eq!(first.await.unwrap().unwrap(), [1; 64][..], "{name}");
    assert_eq!(second.await.unwrap().unwrap(), [2; 64][..], "{name}");
    until(|| peer.open() == 2).await;
}

fn header(request: &Received, change: impl Fn(&mut ResponseHeader)) -> Vec<u8> {
    let mut header = request.success(64);
    change(&mut header);
    [header.as_bytes(), &[0xee; 64]].concat()
}

#[tokio::test]
async fn unknown_id_drops_the_connection() {
    is_dropped_and_the_request_retried("unknown id", |request| {
        header(request, |header| header.id = 0xdead_beef.into())
    })
    .await;
}

#[tokio::test]
async fn response_with_another_opcode_drops_the_connection() {
    is_dropped_and_the_request_retried("wrong opcode", |request| {
        header(request, |header| header.opcode = Opcode::WriteObj as u8)
    })
    .await;
}

#[tokio::test]
async fn response_that_is_too_long_drops_the_connection() {
    for len in [65, u32::MAX] {
        is_dropped_and_the_request_retried("oversize", |request| {
            header(request, |header| header.data_length = len.into())
        })
        .await;
    }
}

#[tokio::test]
async fn response_with_version_or_flag_drops_the_connection() {
    is_dropped_and_the_request_retried("version", |request| {
        header(request, |header| header.proto_ver = 2)
    })
    .await;
    is_dropped_and_the_request_retried("flags", |request| {
        header(request, |header| header.flags = 1.into())
    })
    .await;
}

#[tokio::test]
async fn garbage_drops_the_connection() {
    is_dropped_and_the_request_retried("garbage", |_| b"SSH-2.0-OpenSSH_9.2\r\n".repeat(8)).await;
}

#[tokio::test]
async fn second_response_to_a_request_drops_the_connection() {
    let (mut peer, client) = connected(Script::default(), 1).await;
    let caller = read(&client, 1, 64);
    let request = peer.request().await;
    request.answer(&[1; 64]).await;
    request.answer(&[2; 64]).await;
    assert_eq!(caller.await.unwrap().unwrap(), [1; 64][..]);
    let caller = read(&client, 2, 64);
    // It may have been sent before the client read the second response.
    let request = loop {
        let request = peer.request().await;
        if request.wire.number == 1 {
            break request;
        }
    };
    request.answer(&[3; 64]).await;
    assert_eq!(caller.await.unwrap().unwrap(), [3; 64][..]);
}

#[tokio::test]
async fn response_cut_anywhere_is_discarded() {
    for len in 0..48 + 64 {
        is_dropped_and_the_request_retried("cut", |request| {
            let mut frame = header(request, |_| ());
            frame.truncate(len);
            frame
        })
        .await;
    }
}

#[tokio::test]
async fn response_that_arrives_byte_by_byte_is_valid() {
    let (mut peer, client) = connected(Script::default(), 1).await;
    let callers = [read(&client, 1, 64), read(&client, 2, 64)];
    let requests = [peer.request().await, peer.request().await];
    for request in requests {
        let payload = [request.offset().to_le_bytes()[0]; 64];
        for byte in [request.success(64).as_bytes(), &payload].concat() {
            request.wire.send(&[byte]).await;
            tokio::task::yield_now().await;
        }
    }
    for (number, caller) in (1..).zip(callers) {
        assert_eq!(caller.await.unwrap().unwrap(), [number; 64][..]);
    }
}

#[tokio::test]
async fn retry_never_replays_mutating_request_after_protocol_violation() {
    let (mut peer, client) = connected(Script::default(), 1).await;
    for request in [
        Request::write_object(object(), 0, b"w"[..].into()),
        Request::create_object(object(), 0, b"c"[..].into(), None),
        Request::discard_object(object()),
        Request::remove_object(object()),
    ] {
        let opcode = request.opcode();
        let asking = client.clone();
        let caller = tokio::spawn(async move { within(asking.send(request)).await });
        let request = peer.request().await;
        let garbage = header(&request, |header| header.proto_ver = 2);
        request.wire.send(&garbage).await;
        let error = caller.await.unwrap().unwrap_err();
        assert!(matches!(error, ClientError::Lost { .. }), "{error}");
        // The next request is not a second copy.
        let next = read(&client, 0, 4);
        let request = peer.request().await;
        assert_eq!(request.opcode(), Opcode::ReadObj, "after {opcode}");
        request.answer(b"next").await;
        next.await.unwrap().unwrap();
    }
}
