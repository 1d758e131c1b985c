//! Lost connections and sheep, and the requests that are repeated after them.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use sheep_client::unstable::Request;
use sheep_client::{Client, ClientConfig, ClientError, NewVdi};
use sheep_proto::{Opcode, ResultCode, VdiName};

use crate::peer::{Peer, Script};
use crate::{config, connected, object, read, until, within};

/// Retry timeout of the tests that wait for its end.
const SHORT: Duration = Duration::from_millis(300);

fn listening_at(address: SocketAddr) -> Script {
    Script {
        address,
        ..Script::default()
    }
}

/// Responds to reads with a recognisable text while it is polled.
async fn answer_reads(peer: &mut Peer) -> ! {
    loop {
        peer.request().await.answer(b"answered").await;
    }
}

async fn is_answered(peer: &mut Peer, client: &Client) {
    tokio::select! {
        bytes = within(client.objects().read(object(), 0, 8)) => {
            assert_eq!(bytes.unwrap(), &b"answered"[..]);
        }
        _ = answer_reads(peer) => {}
    }
}

#[tokio::test]
async fn retry_replays_idempotent_requests_after_a_disconnect() {
    let (mut peer, client) = connected(Script::default(), 1).await;
    for request in [
        Request::read_object(object(), 0, 8),
        Request::write_object(object(), 0, b"w"[..].into()),
        Request::create_object(object(), 0, b"c"[..].into(), None),
        Request::discard_object(object()),
    ] {
        let opcode = request.opcode();
        let client = client.clone();
        let caller = tokio::spawn(async move { within(client.send(request)).await });
        let first = peer.request().await;
        first.wire.close();
        let again = peer.request().await;
        assert_eq!(again.opcode(), opcode);
        assert_eq!(again.payload, first.payload);
        assert_ne!(again.wire.number, first.wire.number);
        again.answer(&[]).await;
        caller.await.unwrap().unwrap();
    }
}

#[tokio::test]
async fn replay_waits_for_what_dead_gateway_has_forwarded() {
    let mut other = Peer::start(Script::default()).await;
    let nodes = vec![other.address];
    let script = Script {
        nodes,
        ..Script::default()
    };
    let (mut gateway, client) = connected(script, 1).await;
    let create = Request::create_object(object(), 0, b"c"[..].into(), None);
    let caller = tokio::spawn(async move { within(client.send(create)).await });
    gateway.request().await;
    let before = Instant::now();
    gateway.stop().await;
    // Another node may still have the first copy in its queue.
    let again = other.request().await;
    assert!(before.elapsed() >= Duration::from_secs(2));
    again.answer(&[]).await;
    caller.await.unwrap().unwrap();
}

#[tokio::test]
async fn retry_never_replays_create_vdi() {
    let (mut peer, client) = connected(Script::default(), 1).await;
    let name = VdiName::new("once").unwrap();
    let caller = {
        let client = client.clone();
        tokio::spawn(
            async move { within(client.cluster().create_vdi(&NewVdi::new(name, 1))).await },
        )
    };
    let request = peer.request().await;
    assert_eq!(request.opcode(), Opcode::GetClusterDefault);
    request.answer(&[]).await;
    let request = peer.request().await;
    assert_eq!(request.opcode(), Opcode::NewVdi);
    request.wire.close();
    assert!(matches!(
        caller.await.unwrap(),
        Err(ClientError::Lost { operation, .. }) if operation.opcode == Opcode::NewVdi
    ));
    // The next request is not a second NEW_VDI.
    is_answered(&mut peer, &client).await;
}

#[tokio::test]
async fn reconnect_to_a_restarted_sheep() {
    let (peer, client) = connected(Script::default(), 2).await;
    let address = peer.address;
    assert_eq!(client.peer(), Some(address));
    let caller = read(&client, 0, 8);
    peer.stop().await;
    until(|| client.peer().is_none()).await;
    let mut peer = Peer::start(listening_at(address)).await;
    is_answered(&mut peer, &client).await;
    tokio::select! {
        bytes = caller => assert_eq!(bytes.unwrap().unwrap(), &b"answered"[..]),
        _ = answer_reads(&mut peer) => {}
    }
    until(|| peer.open() == 2).await;
    assert_eq!(client.peer(), Some(address));
}

#[tokio::test]
async fn failover_to_the_second_address() {
    let dead = Peer::start(Script::default()).await.stop().await;
    let mut alive = Peer::start(Script::default()).await;
    let mut config = ClientConfig::new(dead.into());
    config.addresses = vec![dead.into(), alive.address.into()];
    let client = within(Client::connect(config)).await.unwrap();
    is_answered(&mut alive, &client).await;
    assert_eq!(client.address(), dead.into(), "what was given is shown");
}

#[tokio::test]
async fn failover_to_a_node_of_the_list() {
    let mut other = Peer::start(Script::default()).await;
    let (mut gateway, client) = connected(
        Script {
            nodes: vec![other.address],
            ..Script::default()
        },
        3,
    )
    .await;
    let caller = read(&client, 0, 8);
    gateway.request().await;
    gateway.stop().await;
    let again = other.request().await;
    again.answer(b"answered").await;
    assert_eq!(caller.await.unwrap().unwrap(), &b"answered"[..]);
    until(|| other.open() == 3).await;
}

#[tokio::test]
async fn failover_prefers_the_configured_address() {
    let other = Peer::start(Script::default()).await;
    let first = Peer::start(Script::default()).await;
    let address = first.address;
    let gateway = Peer::start(Script {
        nodes: vec![other.address],
        ..Script::default()
    })
    .await;
    let mut config = ClientConfig::new(address.into());
    config.addresses = vec![address.into(), gateway.address.into()];
    config.connections = 1;
    first.stop().await;
    let client = within(Client::connect(config)).await.unwrap();
    let mut first = Peer::start(listening_at(address)).await;
    gateway.stop().await;
    is_answered(&mut first, &client).await;
    assert_eq!(other.open(), 0);
}

#[tokio::test]
async fn failover_rejects_a_sheep_of_another_cluster() {
    let stranger = Peer::start(Script {
        ctime: 8,
        ..Script::default()
    })
    .await;
    let gateway = Peer::start(Script {
        nodes: vec![stranger.address],
        ..Script::default()
    })
    .await;
    let mut config = config(&gateway, 1);
    config.retry_for = SHORT;
    let client = within(Client::connect(config)).await.unwrap();
    gateway.stop().await;
    let mut stranger = stranger;
    let answer = within(client.objects().read(object(), 0, 8)).await;
    assert!(
        matches!(answer, Err(ClientError::Unreachable { .. })),
        "{answer:?}"
    );
    assert!(stranger.arrived().is_none());
}

#[tokio::test]
async fn requests_fail_while_unreachable_and_succeed_after_reconnect() {
    let peer = Peer::start(Script::default()).await;
    let address = peer.address;
    let mut config = config(&peer, 2);
    config.retry_for = SHORT;
    let client = within(Client::connect(config)).await.unwrap();
    peer.stop().await;
    for _ in 0..5 {
        let error = within(client.objects().read(object(), 0, 8))
            .await
            .unwrap_err();
        assert!(matches!(error, ClientError::Unreachable { .. }), "{error}");
        assert_eq!(error.errno(), nix::errno::Errno::EHOSTUNREACH);
    }
    let mut peer = Peer::start(listening_at(address)).await;
    until(|| peer.open() > 0).await;
    within(async {
        tokio::select! {
            () = async { while client.objects().read(object(), 0, 8).await.is_err() {} } => {}
            _ = answer_reads(&mut peer) => {}
        }
    })
    .await;
}

#[tokio::test]
async fn connect_without_a_sheep_fails_immediately() {
    let dead = Peer::start(Script::default()).await.stop().await;
    let error = within(Client::connect(ClientConfig::new(dead.into())))
        .await
        .unwrap_err();
    assert!(matches!(error, ClientError::Connect { .. }), "{error}");
    assert!(error.to_string().contains(&dead.to_string()), "{error}");
}

#[tokio::test]
async fn retry_waits_out_a_transient_refusal() {
    let (mut peer, client) = connected(Script::default(), 1).await;
    let caller = read(&client, 0, 8);
    for code in [
        ResultCode::Halt,
        ResultCode::WaitForJoin,
        ResultCode::NetworkError,
    ] {
        peer.request().await.respond(code, &[]).await;
    }
    peer.request().await.answer(b"answered").await;
    assert_eq!(caller.await.unwrap().unwrap(), &b"answered"[..]);
}

#[tokio::test]
async fn retry_of_lasting_refusal_ends_with_timeout() {
    let peer = Peer::start(Script::default()).await;
    let mut config = config(&peer, 1);
    config.retry_for = SHORT;
    let client = within(Client::connect(config)).await.unwrap();
    let asked = Arc::new(AtomicUsize::new(0));
    let refusing = tokio::spawn({
        let asked = Arc::clone(&asked);
        let mut peer = peer;
        async move {
            loop {
                peer.request().await.respond(ResultCode::Halt, &[]).await;
                asked.fetch_add(1, Ordering::SeqCst);
            }
        }
    });
    let write = client.objects().write(object(), 0, b"w"[..].into());
    let error = within(write).await.unwrap_err();
    assert_eq!(error.code(), Some(ResultCode::Halt));
    assert!(asked.load(Ordering::SeqCst) > 1);
    refusing.abort();
}

#[tokio::test]
async fn permanent_refusal_is_not_retried() {
    let (mut peer, client) = connected(Script::default(), 1).await;
    for code in [ResultCode::NoObj, ResultCode::ReadOnly, ResultCode::NoSpace] {
        let caller = read(&client, 0, 8);
        peer.request().await.respond(code, &[]).await;
        assert_eq!(caller.await.unwrap().unwrap_err().code(), Some(code));
    }
}

#[tokio::test]
async fn switch_gateway_that_fails_keeps_the_old_one() {
    let (mut old, client) = connected(Script::default(), 2).await;
    let dead = Peer::start(Script::default()).await.stop().await;
    let error = within(client.switch_gateway(dead.into()))
        .await
        .unwrap_err();
    assert!(matches!(error, ClientError::Connect { .. }), "{error}");
    assert_eq!(client.address(), old.address.into());
    is_answered(&mut old, &client).await;
}

#[tokio::test]
async fn switch_gateway_lets_requests_in_flight_finish() {
    let (mut old, client) = connected(Script::default(), 2).await;
    // The user has switched to another cluster.
    let mut new = Peer::start(Script {
        ctime: 8,
        ..Script::default()
    })
    .await;
    let caller = read(&client, 1, 8);
    let request = old.request().await;
    within(client.switch_gateway(new.address.into()))
        .await
        .unwrap();
    assert_eq!(client.address(), new.address.into());
    is_answered(&mut new, &client).await;
    until(|| new.open() == 2).await;

    assert!(old.open() > 0, "the request is still there");
    request.answer(b"finished").await;
    assert_eq!(caller.await.unwrap().unwrap(), &b"finished"[..]);
    until(|| old.open() == 0).await;
}

#[tokio::test]
async fn dropped_client_closes_connections_and_ends_requests() {
    let (mut peer, client) = connected(Script::default(), 4).await;
    let (ended, mut outcomes) = tokio::sync::mpsc::channel(2);
    let submit = |request| {
        let ended = ended.clone();
        client.submit(
            request,
            Box::new(move |outcome| ended.try_send(outcome).unwrap()),
        );
    };
    submit(Request::read_object(object(), 0, 8));
    peer.request().await;
    drop(client);
    let outcome = within(outcomes.recv()).await.unwrap();
    assert!(
        matches!(outcome, Err(ClientError::Lost { .. })),
        "{outcome:?}"
    );
    until(|| peer.open() == 0).await;
}

#[tokio::test]
async fn dropped_client_ends_requests_while_unreachable() {
    let (peer, client) = connected(Script::default(), 1).await;
    let (ended, outcome) = tokio::sync::oneshot::channel();
    peer.stop().await;
    client.submit(
        Request::read_object(object(), 0, 8),
        Box::new(move |outcome| ended.send(outcome.map(drop)).unwrap()),
    );
    drop(client);
    within(outcome).await.unwrap().unwrap_err();
}

#[tokio::test]
async fn node_query_goes_to_its_own_address() {
    let (gateway, client) = connected(Script::default(), 1).await;
    let mut node = Peer::start(Script::default()).await;
    let address = node.address;
    let asking = client.node(address).store_space();
    let (answer, ()) = tokio::join!(within(asking), async {
        let request = node.request().await;
        assert_eq!(request.opcode(), Opcode::StatSheep);
        request.answer(&[]).await;
    });
    answer.unwrap();
    until(|| node.open() == 0).await;
    node.stop().await;
    let error = within(client.node(address).store_space())
        .await
        .unwrap_err();
    assert!(matches!(error, ClientError::Connect { .. }), "{error}");
    gateway.stop().await;
}
