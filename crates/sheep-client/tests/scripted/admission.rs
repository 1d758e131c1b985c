//! How much is in flight at the same time.

use std::time::Duration;

use sheep_client::unstable::Request;
use sheep_client::{Client, Generation};
use sheep_proto::cache_info::CacheInfo;
use sheep_proto::{ObjectIndex, Oid, Vid};
use zerocopy::{FromZeros as _, IntoBytes as _};

use crate::generations::{connect, sheep};
use crate::peer::{Peer, Received, Script};
use crate::{connected, object, until};

/// Submits `count` reads of `len` bytes and returns the requests that arrive
/// before the response to the first of them.
async fn in_flight_at_once(
    peer: &mut Peer,
    client: &Client,
    count: u32,
    len: u32,
    expected: usize,
) -> Vec<Received> {
    for number in 0..count {
        client.submit(
            Request::read_object(object(), number, len),
            Box::new(|outcome| {
                outcome.unwrap();
            }),
        );
    }
    let mut arrived = Vec::new();
    until(|| {
        arrived.extend(peer.arrived());
        arrived.len() == expected
    })
    .await;
    arrived
}

#[tokio::test]
async fn admission_bounds_the_number_of_requests_in_flight() {
    let (mut peer, client) = connected(Script::default(), 2).await;
    let arrived = in_flight_at_once(&mut peer, &client, 1100, 1, 1024).await;
    // A 1025th request by now would ignore the budget; it is admitted after a response.
    assert!(peer.arrived().is_none());
    arrived[0].answer(&[0]).await;
    peer.request().await;
    assert!(peer.arrived().is_none());
    for request in &arrived[1..] {
        request.answer(&[0]).await;
    }
    for _ in 1025..1100 {
        peer.request().await.answer(&[0]).await;
    }
}

#[tokio::test]
async fn admission_bounds_the_bytes_in_flight() {
    let (mut peer, client) = connected(Script::default(), 2).await;
    let arrived = in_flight_at_once(&mut peer, &client, 20, 8 << 20, 7).await;
    assert!(peer.arrived().is_none());
    arrived[0].answer(&[0]).await;
    peer.request().await;
    assert!(peer.arrived().is_none());
}

#[tokio::test]
async fn admission_counts_objects_that_a_cache_needs_whole() {
    for (has_cache, at_once) in [(true, 15), (false, 20)] {
        let mut cache = CacheInfo::new_zeroed();
        cache.size = u64::from(has_cache).into();
        let script = Script {
            cache_info: cache.as_bytes().to_vec(),
            ..sheep(Generation::V0_9)
        };
        let (mut peer, client) = connect(script).await;
        let client = client.unwrap();
        for number in 0..20 {
            let oid = Oid::data(Vid::new(7).unwrap(), ObjectIndex(number));
            let create = Request::create_object(oid, 0, b"data"[..].into(), None);
            client.submit(create, Box::new(|outcome| drop(outcome.unwrap())));
        }
        let mut arrived = Vec::new();
        until(|| {
            arrived.extend(peer.arrived());
            arrived.len() == at_once
        })
        .await;
        let len = if has_cache { 4 << 20 } else { 4 };
        assert!(arrived.iter().all(|request| request.payload.len() == len));
        if has_cache {
            // One more, which takes a while to arrive, would ignore the budget.
            let more = tokio::time::timeout(Duration::from_millis(300), peer.request()).await;
            assert!(more.is_err());
            arrived[0].answer(&[]).await;
            peer.request().await;
        }
    }
}

#[tokio::test]
async fn admission_of_request_above_budget_is_exclusive() {
    let (mut peer, client) = connected(Script::default(), 2).await;
    let arrived = in_flight_at_once(&mut peer, &client, 2, 64 << 20, 1).await;
    assert!(peer.arrived().is_none());
    arrived[0].answer(&[0]).await;
    peer.request().await;
}
