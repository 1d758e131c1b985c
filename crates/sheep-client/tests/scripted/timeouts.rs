//! Calls that got no answer do not take the pool down with them.

use std::sync::Arc;
use std::time::Duration;

use sheep_client::unstable::Request;
use sheep_client::{Client, ClientError};
use sheep_proto::Opcode;

use crate::peer::Script;
use crate::{connected, object, read, until, within};

/// The offset that the sheep never answers for.
const HANGS: u32 = 1 << 20;
/// More calls than may be in flight.
const MANY: usize = 1030;

/// Makes `count` calls that get no answer and waits for them to be given up.
async fn give_up(client: &Client, count: usize, request: &Request) {
    let request = request.clone().with_timeout(Duration::from_millis(100));
    let calls = (0..count).map(|_| within(client.send(request.clone())));
    for outcome in futures_util::future::join_all(calls).await {
        let error = outcome.unwrap_err();
        assert!(matches!(error, ClientError::Unreachable { .. }), "{error}");
    }
}

#[tokio::test]
async fn an_object_that_hangs_does_not_use_up_the_budget() {
    let (mut peer, client) = connected(Script::default(), 2).await;
    give_up(&client, MANY, &Request::read_object(object(), HANGS, 4)).await;
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
async fn a_worn_out_connection_lives_while_a_call_on_it_holds_something() {
    let (mut peer, client) = connected(Script::default(), 1).await;
    let held = Arc::new(());
    let seen = Arc::downgrade(&held);
    let create = Request::create_object(object(), HANGS, b"c"[..].into(), None).with_token(held);
    give_up(&client, 1, &create).await;
    drop(create);
    give_up(&client, MANY / 2, &Request::read_object(object(), HANGS, 4)).await;
    until(|| peer.open() == 2).await;
    assert_eq!(seen.strong_count(), 1, "it may still run");
    let request = peer.request().await;
    assert_eq!(request.opcode(), Opcode::CreateAndWriteObj);
    request.answer(&[]).await;
    until(|| peer.open() == 1).await;
    assert_eq!(seen.strong_count(), 0);
}

#[tokio::test]
async fn what_no_byte_was_sent_of_is_taken_back() {
    const WRITES: usize = 24;
    let script = Script {
        receive_buffer: Some(4096),
        ..Script::default()
    };
    let (mut peer, client) = connected(script, 1).await;
    peer.set_reading(false);
    let (mut seen, mut calls) = (Vec::new(), Vec::new());
    for number in 0..WRITES {
        let held = Arc::new(());
        seen.push(Arc::downgrade(&held));
        let data = vec![u8::try_from(number).unwrap(); 1 << 20];
        let request = Request::write_object(object(), 0, data.into())
            .with_token(held)
            .with_timeout(Duration::from_millis(100));
        calls.push(within(client.send(request)));
    }
    for outcome in futures_util::future::join_all(calls).await {
        outcome.unwrap_err();
    }
    let sent = seen.iter().filter(|seen| seen.strong_count() > 0).count();
    assert!(0 < sent && sent < WRITES, "{sent} writes are under way");
    peer.set_reading(true);
    for number in 0..sent {
        let request = peer.request().await;
        let expected = u8::try_from(number).unwrap();
        assert!(request.payload.iter().all(|&byte| byte == expected));
        request.answer(&[]).await;
    }
    until(|| seen.iter().all(|seen| seen.strong_count() == 0)).await;
    let next = read(&client, 0, 4);
    let request = peer.request().await;
    assert_eq!(request.opcode(), Opcode::ReadObj);
    request.answer(b"next").await;
    assert_eq!(next.await.unwrap().unwrap(), &b"next"[..]);
}
