//! A sheep that is there but does not respond.

use std::time::Duration;

use sheep_client::unstable::Request;
use sheep_client::{Client, ClientConfig, ClientError};
use sheep_proto::Opcode;

use crate::peer::{Peer, Script};
use crate::{config, connected, object, read, until, within};

#[tokio::test]
async fn stalled_sheep_is_reported_after_the_timeout() {
    let mut peer = Peer::start(Script::default()).await;
    let mut config = config(&peer, 1);
    config.retry_for = Duration::from_millis(200);
    let client = within(Client::connect(config)).await.unwrap();
    let error = read(&client, 1, 4).await.unwrap().unwrap_err();
    assert!(matches!(error, ClientError::Unreachable { .. }), "{error}");
    let late = peer.request().await;
    assert!(peer.arrived().is_none(), "it was sent once");

    // The connection is kept, and the late response is discarded.
    let next = read(&client, 2, 4);
    let request = peer.request().await;
    assert_eq!(request.wire.number, 0);
    assert_ne!(request.header.id, late.header.id);
    late.answer(b"late").await;
    request.answer(b"next").await;
    assert_eq!(next.await.unwrap().unwrap(), &b"next"[..]);
}

#[tokio::test]
async fn stalled_gateway_is_not_failed_over() {
    let mut other = Peer::start(Script::default()).await;
    let script = Script {
        nodes: vec![other.address],
        ..Script::default()
    };
    let (mut gateway, client) = connected(script, 1).await;
    let request = Request::write_object(object(), 0, b"w"[..].into())
        .with_timeout(Duration::from_millis(200));
    let error = within(client.send(request)).await.unwrap_err();
    assert!(matches!(error, ClientError::Unreachable { .. }), "{error}");
    gateway.request().await;
    assert!(gateway.arrived().is_none());
    assert!(other.arrived().is_none());
    assert_eq!(other.open(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stalled_socket_keeps_frames_whole_and_in_order() {
    // Twice what the buffer of a sending socket grows to.
    const LARGE: u32 = 8;
    // All fit in the budget: a request that waits for permits comes later.
    const ALL: u32 = 600;
    let script = Script {
        receive_buffer: Some(4096),
        ..Script::default()
    };
    let (mut peer, client) = connected(script, 1).await;
    peer.set_reading(false);
    let payload = |number: u32| -> Vec<u8> {
        let len = if number < LARGE { 1 << 20 } else { 512 };
        (0u32..)
            .flat_map(|at| (at ^ number << 20).to_le_bytes())
            .take(len)
            .collect()
    };
    let (done, mut outcomes) = tokio::sync::mpsc::channel(ALL as usize);
    // From one thread at a time, so that they are sent in this order.
    let submit = {
        let client = client.clone();
        move |number| {
            let done = done.clone();
            client.submit(
                Request::write_object(object(), number, payload(number).into()),
                Box::new(move |outcome| done.try_send(outcome).unwrap()),
            );
        }
    };
    (0..LARGE).for_each(&submit);
    // A caller that is dropped while its frame is queued leaves the frame whole.
    let abandoned = tokio::spawn({
        let client = client.clone();
        async move { client.objects().read(object(), LARGE, 4).await }
    });
    tokio::task::yield_now().await;
    abandoned.abort();
    assert!(abandoned.await.unwrap_err().is_cancelled());

    // Now the socket has room every now and then, but others wait for it.
    peer.set_reading(true);
    let submitting = tokio::task::spawn_blocking(move || (LARGE + 1..ALL).for_each(submit));
    let mut next = 0;
    while next < ALL {
        let request = peer.request().await;
        if request.opcode() == Opcode::ReadObj {
            // The caller may have been too late to send it, or not.
            request.answer(b"late").await;
            continue;
        }
        next += u32::from(next == LARGE);
        assert_eq!(request.offset(), next);
        assert!(request.payload == payload(next), "payload {next}");
        request.answer(&[]).await;
        next += 1;
    }
    submitting.await.unwrap();
    for _ in 1..ALL {
        let outcome = within(outcomes.recv()).await.unwrap();
        outcome.unwrap().into_result().unwrap();
    }
}

#[tokio::test]
async fn retry_replays_the_queue_of_a_dead_connection() {
    const WRITES: u32 = 12;
    let script = Script {
        receive_buffer: Some(4096),
        ..Script::default()
    };
    let (mut peer, client) = connected(script, 1).await;
    // The peer stops reading while requests are queued, then closes the connection.
    let first = read(&client, WRITES, 4);
    let first_request = peer.request().await;
    peer.set_reading(false);
    let writes: Vec<_> = (0..WRITES)
        .map(|number| {
            let data = vec![number.to_le_bytes()[0]; 1 << 20];
            let write = Request::write_object(object(), number, data.into());
            let client = client.clone();
            tokio::spawn(async move { within(client.send(write)).await })
        })
        .collect();
    tokio::task::yield_now().await;
    first_request.wire.close();
    peer.set_reading(true);
    // The new connection gets every request, the unanswered read included.
    let mut seen = vec![0; WRITES as usize + 1];
    let answering = async {
        loop {
            let request = peer.request().await;
            // The old connection is gone: its requests get no response.
            let expected = request.offset().to_le_bytes()[0];
            assert!(request.payload.iter().all(|&byte| byte == expected));
            seen[request.offset() as usize] += 1;
            request
                .answer(if request.payload.is_empty() {
                    b"read"
                } else {
                    b""
                })
                .await;
        }
    };
    tokio::select! {
        () = async {
            for write in writes {
                write.await.unwrap().unwrap();
            }
            assert_eq!(first.await.unwrap().unwrap(), &b"read"[..]);
        } => {}
        () = answering => {}
    }
    assert!(seen.iter().all(|&times| times > 0), "{seen:?}");
}

#[tokio::test]
async fn connect_skips_a_listener_that_never_responds() {
    // Ten seconds, the timeout of the first query.
    let silent = Peer::start(Script {
        is_silent: true,
        ..Script::default()
    })
    .await;
    let sheep = Peer::start(Script::default()).await;
    let mut config = ClientConfig::new(silent.address.into());
    config.addresses = vec![silent.address.into(), sheep.address.into()];
    config.connections = 1;
    let _client = within(Client::connect(config)).await.unwrap();
    until(|| sheep.open() == 1 && silent.open() == 0).await;
}
