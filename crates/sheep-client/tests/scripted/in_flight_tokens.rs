//! What a call keeps alive lives for as long as the call may run.

use std::sync::{Arc, Weak};
use std::time::Duration;

use sheep_client::ClientError;
use sheep_client::unstable::Request;
use sheep_proto::ResultCode;

use crate::peer::Script;
use crate::{connected, object, until, within};

/// A write that holds something, and the way to see whether it still does.
fn holding_write() -> (Request, Weak<()>) {
    let held = Arc::new(());
    let seen = Arc::downgrade(&held);
    let request = Request::write_object(object(), 0, b"w"[..].into()).with_token(held);
    (request, seen)
}

fn is_held(seen: &Weak<()>) -> bool {
    seen.strong_count() > 0
}

#[tokio::test]
async fn it_is_let_go_before_the_caller_hears_the_answer() {
    let (mut peer, client) = connected(Script::default(), 1).await;
    for code in [ResultCode::Success, ResultCode::NoSpace] {
        let (request, seen) = holding_write();
        let (ended, outcome) = tokio::sync::oneshot::channel();
        let look = seen.clone();
        client.submit(
            request,
            Box::new(move |_outcome| ended.send(is_held(&look)).unwrap()),
        );
        let request = peer.request().await;
        assert!(is_held(&seen));
        request.respond(code, &[]).await;
        assert!(!within(outcome).await.unwrap());
    }
}

#[tokio::test]
async fn a_call_given_up_holds_until_its_late_answer() {
    let (mut peer, client) = connected(Script::default(), 1).await;
    let (request, seen) = holding_write();
    let request = request.with_timeout(Duration::from_millis(100));
    let error = within(client.send(request)).await.unwrap_err();
    assert!(matches!(error, ClientError::Unreachable { .. }), "{error}");
    assert!(is_held(&seen), "it may still run");
    peer.request().await.answer(&[]).await;
    until(|| !is_held(&seen)).await;
}

#[tokio::test]
async fn a_call_given_up_holds_until_its_connection_ends() {
    let (mut peer, client) = connected(Script::default(), 1).await;
    let (request, seen) = holding_write();
    let request = request.with_timeout(Duration::from_millis(100));
    within(client.send(request)).await.unwrap_err();
    assert!(is_held(&seen), "it may still run");
    peer.request().await.wire.close();
    until(|| !is_held(&seen)).await;
    assert!(peer.arrived().is_none(), "it is not sent again");
}

#[tokio::test]
async fn a_call_that_is_sent_again_holds_on() {
    let (mut peer, client) = connected(Script::default(), 1).await;
    let (request, seen) = holding_write();
    let caller = tokio::spawn(async move { within(client.send(request)).await });
    peer.request().await.wire.close();
    let again = peer.request().await;
    assert!(is_held(&seen));
    again.respond(ResultCode::Halt, &[]).await;
    let again = peer.request().await;
    assert!(is_held(&seen));
    again.answer(&[]).await;
    caller.await.unwrap().unwrap();
    assert!(!is_held(&seen));
}

#[tokio::test]
async fn a_caller_that_goes_away_leaves_it_held() {
    let (mut peer, client) = connected(Script::default(), 1).await;
    let (request, seen) = holding_write();
    let caller = tokio::spawn(async move { client.send(request).await });
    let request = peer.request().await;
    caller.abort();
    assert!(caller.await.unwrap_err().is_cancelled());
    assert!(is_held(&seen), "it may still run");
    request.answer(&[]).await;
    until(|| !is_held(&seen)).await;
}

#[tokio::test]
async fn a_call_that_was_never_sent_holds_nothing() {
    let (peer, client) = connected(Script::default(), 1).await;
    peer.stop().await;
    until(|| client.peer().is_none()).await;
    let (request, seen) = holding_write();
    let request = request.with_timeout(Duration::from_millis(100));
    let error = within(client.send(request)).await.unwrap_err();
    assert!(matches!(error, ClientError::Unreachable { .. }), "{error}");
    assert!(!is_held(&seen));
}
