//! Requests that time out do not take the pool down with them.

use std::sync::Arc;
use std::time::Duration;

use sheep_client::unstable::Request;
use sheep_client::{Client, ClientError};
use sheep_proto::Opcode;

use crate::peer::Script;
use crate::{connected, object, read, until, within};

/// The offset of requests to which the peer never responds.
const HANGS: u32 = 1 << 20;
/// More requests than may be in flight.
const MANY: usize = 1030;

/// Sends `count` requests to which the peer does not respond, until they time out.
async fn time_out(client: &Client, count: usize, request: &Request) {
    let request = request.clone().with_timeout(Duration::from_millis(100));
    let requests = (0..count).map(|_| within(client.send(request.clone())));
    for outcome in futures_util::future::join_all(requests).await {
        let error = outcome.unwrap_err();
        assert!(matches!(error, ClientError::Unreachable { .. }), "{error}");
    }
}

#[tokio::test]
async fn timed_out_requests_free_the_budget() {
    let (mut peer, client) = connected(Script::default(), 2).await;
    time_out(&client, MANY, &Request::read_object(object(), HANGS, 4)).await;
    let next = read(&client, 0, 4);
    let request = loop {
        let request = peer.request().await;
        if request.offset() != HANGS {
            break request;
        }
    };
    assert!(request.wire.number > 1, "the old connections are replaced");
    request.answer(b"next").await;
    assert_eq!(next.await.unwrap().unwrap(), &b"next"[..]);
    until(|| peer.open() == 2).await;
}

#[tokio::test]
async fn unresponsive_connection_stays_open_while_token_is_pinned() {
    let (mut peer, client) = connected(Script::default(), 1).await;
    let token = Arc::new(());
    let weak = Arc::downgrade(&token);
    let create = Request::create_object(object(), HANGS, b"c"[..].into(), None).with_token(token);
    time_out(&client, 1, &create).await;
    drop(create);
    time_out(&client, MANY / 2, &Request::read_object(object(), HANGS, 4)).await;
    until(|| peer.open() == 2).await;
    assert_eq!(weak.strong_count(), 1, "it may still run");
    let request = peer.request().await;
    assert_eq!(request.opcode(), Opcode::CreateAndWriteObj);
    request.answer(&[]).await;
    until(|| peer.open() == 1).await;
    assert_eq!(weak.strong_count(), 0);
}

#[tokio::test]
async fn timed_out_request_that_is_unsent_is_cancelled() {
    const WRITES: usize = 24;
    let script = Script {
        receive_buffer: Some(4096),
        ..Script::default()
    };
    let (mut peer, client) = connected(script, 1).await;
    peer.set_reading(false);
    let (mut weak, mut requests) = (Vec::new(), Vec::new());
    for number in 0..WRITES {
        let token = Arc::new(());
        weak.push(Arc::downgrade(&token));
        let data = vec![u8::try_from(number).unwrap(); 1 << 20];
        let request = Request::write_object(object(), 0, data.into())
            .with_token(token)
            .with_timeout(Duration::from_millis(100));
        requests.push(within(client.send(request)));
    }
    for outcome in futures_util::future::join_all(requests).await {
        outcome.unwrap_err();
    }
    let sent = weak.iter().filter(|weak| weak.strong_count() > 0).count();
    assert!(0 < sent && sent < WRITES, "{sent} writes are under way");
    peer.set_reading(true);
    for number in 0..sent {
        let request = peer.request().await;
        let expected = u8::try_from(number).unwrap();
        assert!(request.payload.iter().all(|&byte| byte == expected));
        request.answer(&[]).await;
    }
    until(|| weak.iter().all(|weak| weak.strong_count() == 0)).await;
    let next = read(&client, 0, 4);
    let request = peer.request().await;
    assert_eq!(request.opcode(), Opcode::ReadObj);
    request.answer(b"next").await;
    assert_eq!(next.await.unwrap().unwrap(), &b"next"[..]);
}
