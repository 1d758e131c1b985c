//! A token stays alive for as long as its request may be executed.

use std::sync::{Arc, Weak};
use std::time::Duration;

use sheep_client::ClientError;
use sheep_client::unstable::Request;
use sheep_proto::ResultCode;

use crate::peer::Script;
use crate::{connected, object, until, within};

/// A write that pins a token, and a way to see whether it still does.
fn write_with_token() -> (Request, Weak<()>) {
    let token = Arc::new(());
    let weak = Arc::downgrade(&token);
    let request = Request::write_object(object(), 0, b"w"[..].into()).with_token(token);
    (request, weak)
}

fn is_pinned(weak: &Weak<()>) -> bool {
    weak.strong_count() > 0
}

#[tokio::test]
async fn token_is_released_before_the_completion_runs() {
    let (mut peer, client) = connected(Script::default(), 1).await;
    for code in [ResultCode::Success, ResultCode::NoSpace] {
        let (request, weak) = write_with_token();
        let (ended, outcome) = tokio::sync::oneshot::channel();
        let observed = weak.clone();
        client.submit(
            request,
            Box::new(move |_outcome| ended.send(is_pinned(&observed)).unwrap()),
        );
        let request = peer.request().await;
        assert!(is_pinned(&weak));
        request.respond(code, &[]).await;
        assert!(!within(outcome).await.unwrap());
    }
}

#[tokio::test]
async fn token_of_timed_out_request_lives_until_response() {
    let (mut peer, client) = connected(Script::default(), 1).await;
    let (request, weak) = write_with_token();
    let request = request.with_timeout(Duration::from_millis(100));
    let error = within(client.send(request)).await.unwrap_err();
    assert!(matches!(error, ClientError::Unreachable { .. }), "{error}");
    assert!(is_pinned(&weak), "it may still run");
    peer.request().await.answer(&[]).await;
    until(|| !is_pinned(&weak)).await;
}

#[tokio::test]
async fn token_of_timed_out_request_lives_until_disconnect() {
    let (mut peer, client) = connected(Script::default(), 1).await;
    let (request, weak) = write_with_token();
    let request = request.with_timeout(Duration::from_millis(100));
    within(client.send(request)).await.unwrap_err();
    assert!(is_pinned(&weak), "it may still run");
    peer.request().await.wire.close();
    until(|| !is_pinned(&weak)).await;
    assert!(peer.arrived().is_none(), "it is not sent again");
}

#[tokio::test]
async fn token_stays_pinned_across_retries() {
    let (mut peer, client) = connected(Script::default(), 1).await;
    let (request, weak) = write_with_token();
    let caller = tokio::spawn(async move { within(client.send(request)).await });
    peer.request().await.wire.close();
    let again = peer.request().await;
    assert!(is_pinned(&weak));
    again.respond(ResultCode::Halt, &[]).await;
    let again = peer.request().await;
    assert!(is_pinned(&weak));
    again.answer(&[]).await;
    caller.await.unwrap().unwrap();
    assert!(!is_pinned(&weak));
}

#[tokio::test]
async fn token_stays_pinned_when_the_caller_is_dropped() {
    let (mut peer, client) = connected(Script::default(), 1).await;
    let (request, weak) = write_with_token();
    let caller = tokio::spawn(async move { client.send(request).await });
    let request = peer.request().await;
    caller.abort();
    assert!(caller.await.unwrap_err().is_cancelled());
    assert!(is_pinned(&weak), "it may still run");
    request.answer(&[]).await;
    until(|| !is_pinned(&weak)).await;
}

#[tokio::test]
async fn token_of_an_unsent_request_is_released() {
    let (peer, client) = connected(Script::default(), 1).await;
    peer.stop().await;
    until(|| client.peer().is_none()).await;
    let (request, weak) = write_with_token();
    let request = request.with_timeout(Duration::from_millis(100));
    let error = within(client.send(request)).await.unwrap_err();
    assert!(matches!(error, ClientError::Unreachable { .. }), "{error}");
    assert!(!is_pinned(&weak));
}
