//! Answers find their callers.

use std::time::Duration;

use proptest::prelude::*;
use sheep_client::ClientError;
use sheep_proto::{ResultCode, Vid};
use zerocopy::IntoBytes;

use crate::peer::{Peer, Script};
use crate::{connected, object, read, within};

#[tokio::test]
async fn responses_in_any_order_reach_their_callers() {
    let (mut peer, client) = connected(Script::default(), 1).await;
    let callers: Vec<_> = (0..20u8).map(|n| read(&client, n.into(), 1)).collect();
    let mut requests = Vec::new();
    while requests.len() < callers.len() {
        requests.push(peer.request().await);
    }
    for request in requests.iter().rev() {
        request
            .answer(&[u8::try_from(request.offset()).unwrap()])
            .await;
    }
    for (n, caller) in (0u8..).zip(callers) {
        assert_eq!(caller.await.unwrap().unwrap(), [n][..]);
    }
}

#[tokio::test]
async fn payload_of_a_refusal_is_drained() {
    let (mut peer, client) = connected(Script::default(), 1).await;
    let refused = read(&client, 0, 4096);
    let request = peer.request().await;
    request.respond(ResultCode::NoObj, &[0xaa; 4096]).await;
    let error = refused.await.unwrap().unwrap_err();
    assert_eq!(error.code(), Some(ResultCode::NoObj));

    let next = read(&client, 0, 4);
    let request = peer.request().await;
    request.answer(b"next").await;
    assert_eq!(next.await.unwrap().unwrap(), &b"next"[..]);
    assert_eq!(request.wire.number, 0, "the connection stays");
}

#[tokio::test]
async fn late_response_never_reaches_the_next_request() {
    let (mut peer, client) = connected(Script::default(), 1).await;
    let gone = read(&client, 1, 4);
    let late = peer.request().await;
    gone.abort();
    assert!(gone.await.unwrap_err().is_cancelled());

    let next = read(&client, 2, 4);
    let request = peer.request().await;
    assert_ne!(request.header.id, late.header.id);
    late.answer(b"late").await;
    request.answer(b"next").await;
    assert_eq!(next.await.unwrap().unwrap(), &b"next"[..]);
    assert_eq!(peer.open(), 1, "the connection stays");
}

#[tokio::test]
async fn response_in_many_segments_is_one_response() {
    let (mut peer, client) = connected(Script::default(), 1).await;
    let caller = read(&client, 0, 3000);
    let request = peer.request().await;
    let payload: Vec<u8> = (0..=255).cycle().take(3000).collect();
    let frame = [request.success(3000).as_bytes(), &payload].concat();
    for piece in frame.chunks(7) {
        request.wire.send(piece).await;
        tokio::task::yield_now().await;
    }
    assert_eq!(caller.await.unwrap().unwrap(), payload);
}

#[tokio::test]
async fn short_response_is_an_error() {
    let (mut peer, client) = connected(Script::default(), 1).await;
    for len in [0, 1, 2047] {
        let caller = read(&client, 0, 2048);
        let request = peer.request().await;
        // So that no server cuts zeros off.
        assert_eq!(request.header.proto_ver, 1);
        request.answer(&vec![7; len]).await;
        let error = caller.await.unwrap().unwrap_err();
        assert!(matches!(error, ClientError::Malformed { .. }), "{error}");
    }
}

#[tokio::test]
async fn empty_response_does_not_make_a_working_vdi() {
    let (mut peer, client) = connected(Script::default(), 1).await;
    let vid = Vid::new(0x76_d396).unwrap();
    let asking = tokio::spawn(async move { within(client.inode(vid).is_snapshot()).await });
    peer.request().await.answer(&[]).await;
    let error = asking.await.unwrap().unwrap_err();
    assert!(matches!(error, ClientError::Malformed { .. }), "{error}");
}

/// Answers every request after a delay of its own, with the offset it names.
async fn answer_after_delays(mut peer: Peer, delays: Vec<u64>) {
    for delay in delays {
        let request = peer.request().await;
        tokio::spawn(async move {
            tokio::time::sleep(Duration::from_micros(delay)).await;
            let len = usize::try_from(request.header.data_length.get()).unwrap();
            let mut payload = vec![request.payload.len().to_le_bytes()[0]; len];
            if let Some(front) = payload.get_mut(..4) {
                front.copy_from_slice(&request.offset().to_le_bytes());
            }
            request.answer(&payload).await;
        });
    }
    // Kept until the client is dropped, so that its connections stay open.
    while peer.open() > 0 {
        tokio::task::yield_now().await;
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]

    #[test]
    fn many_concurrent_requests_get_their_own_responses(
        calls in prop::collection::vec((4u32..9000, 0u64..3000), 1..200),
        connections in 1usize..5,
    ) {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async {
            let (peer, client) = connected(Script::default(), connections).await;
            let delays = calls.iter().map(|&(_, delay)| delay).collect();
            let peer = tokio::spawn(answer_after_delays(peer, delays));
            let callers: Vec<_> = (0u32..)
                .zip(&calls)
                .map(|(number, &(len, _))| (number, len, read(&client, number, len)))
                .collect();
            for (number, len, caller) in callers {
                let bytes = caller.await.unwrap().unwrap();
                assert_eq!(bytes.len(), len as usize);
                assert_eq!(bytes[..4], number.to_le_bytes());
            }
            drop(client);
            within(peer).await.unwrap();
        });
    }
}

#[tokio::test]
async fn write_is_one_frame_with_its_payload() {
    let (mut peer, client) = connected(Script::default(), 1).await;
    let payload: Vec<u8> = (0..=255).cycle().take(70_000).collect();
    let write = client
        .objects()
        .write(object(), 512, payload.clone().into());
    let (written, ()) = tokio::join!(within(write), async {
        let request = peer.request().await;
        assert_eq!(request.payload, payload);
        assert_eq!(request.offset(), 512);
        request.answer(&[]).await;
    });
    written.unwrap();
}
