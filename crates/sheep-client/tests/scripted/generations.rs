//! What is sent to sheep of each generation, and which sheep are not used.

use std::sync::atomic::Ordering;

use sheep_client::error::Chain;
use sheep_client::unstable::Request;
use sheep_client::{Client, ClientError, Generation};
use sheep_proto::header::RequestBody;
use sheep_proto::{Oid, Opcode, Vid};

use crate::peer::{Peer, Script};
use crate::{config, connected, object, within};

pub(crate) fn sheep(generation: Generation) -> Script {
    Script {
        proto_ver: generation.internal_proto_ver(),
        epoch_record_len: u32::try_from(generation.epoch_record_len(0)).unwrap(),
        ..Script::default()
    }
}

/// Answers what a client asks about the cluster before it sends anything else.
async fn describe(peer: &mut Peer, script: &Script) -> ! {
    loop {
        let request = peer.request().await;
        match request.opcode() {
            Opcode::StatCluster => request.answer(&[]).await,
            Opcode::GetNodeList => request.answer(&[]).await,
            other => panic!("{other} on version {}", script.proto_ver),
        }
    }
}

pub(crate) async fn connect_to(generation: Generation) -> (Peer, Result<Client, ClientError>) {
    connect(sheep(generation)).await
}

pub(crate) async fn connect(script: Script) -> (Peer, Result<Client, ClientError>) {
    let mut peer = Peer::start(script.clone()).await;
    let config = config(&peer, 1);
    let client = tokio::select! {
        client = within(Client::connect(config)) => client,
        _ = describe(&mut peer, &script) => unreachable!(),
    };
    (peer, client)
}

#[tokio::test]
async fn no_opcode_reaches_a_generation_that_lacks_it() {
    for generation in Generation::ALL {
        let (mut peer, client) = connect(sheep(generation)).await;
        let client = client.unwrap();
        assert_eq!(client.generation().await.unwrap(), generation);
        for &opcode in Opcode::ALL {
            // The peer answers this one by itself.
            if opcode == Opcode::ClusterInfo && generation.has_opcode(opcode) {
                continue;
            }
            let request = Request::new(opcode, RequestBody::NONE);
            let sending = client.send(request);
            if generation.has_opcode(opcode) {
                let (sent, received) = tokio::join!(within(sending), async {
                    let received = peer.request().await;
                    received.answer(&[]).await;
                    received
                });
                sent.unwrap();
                assert_eq!(received.opcode(), opcode);
                let version = match opcode {
                    Opcode::ReadObj => 1,
                    _ => generation.proto_ver(opcode),
                };
                assert_eq!(received.header.proto_ver, version, "{opcode}");
            } else {
                let refused = within(sending).await;
                assert!(
                    matches!(refused, Err(ClientError::Unsupported { .. })),
                    "{opcode} on {generation}: {refused:?}"
                );
                assert!(peer.arrived().is_none(), "{opcode} on {generation}");
            }
        }
    }
}

#[tokio::test]
async fn no_read_reaches_past_the_end_of_an_object() {
    let vid = Vid::new(7).unwrap();
    for (generation, len) in [
        (Generation::V0_7, 4_198_968),
        (Generation::V0_8, 4_198_976),
        (Generation::V0_9, 12_587_576),
        (Generation::V1_0, 12_587_576),
    ] {
        let (mut peer, client) = connect(sheep(generation)).await;
        let client = client.unwrap();
        let refused = within(client.objects().read(Oid::inode(vid), len - 4, 8)).await;
        assert!(matches!(refused, Err(ClientError::Unsupported { .. })));
        assert!(peer.arrived().is_none());
        let (read, ()) = tokio::join!(
            within(client.objects().read(Oid::inode(vid), len - 8, 8)),
            async { peer.request().await.answer(b"the last").await }
        );
        assert_eq!(read.unwrap(), &b"the last"[..]);
    }
}

#[tokio::test]
async fn generation_is_learned_again_when_the_cluster_is_formatted() {
    let script = sheep(Generation::V0_9);
    script.is_formatted.store(false, Ordering::SeqCst);
    let mut peer = Peer::start(script.clone()).await;
    let client = tokio::select! {
        client = within(Client::connect(config(&peer, 1))) => client.unwrap(),
        () = async { loop { peer.request().await.answer_unformatted().await } } => unreachable!(),
    };
    // All that 0.8 has is the same in 0.9.
    assert_eq!(client.generation().await.unwrap(), Generation::V0_8);
    script.is_formatted.store(true, Ordering::SeqCst);
    let reading = client.objects().read(object(), 0, 1);
    let (read, ()) = tokio::join!(within(reading), async {
        peer.request().await.answer(&[0]).await
    });
    read.unwrap();
    within(async {
        while client.generation().await.unwrap() != Generation::V0_9 {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

#[tokio::test]
async fn unknown_generation_is_refused_in_words() {
    for proto_ver in [7, 11] {
        let script = Script {
            proto_ver,
            ..Script::default()
        };
        let (_peer, client) = connect(script).await;
        let error = client.unwrap_err();
        let text = Chain(&error).to_string();
        assert!(
            text.ends_with("it refuses the versions of all of them"),
            "{text}"
        );
    }
}

#[tokio::test]
async fn failover_passes_over_a_gateway_of_another_generation() {
    let other = Peer::start(sheep(Generation::V0_9)).await;
    let (mut same, _) = connected(Script::default(), 1).await;
    let script = Script {
        nodes: vec![other.address, same.address],
        ..Script::default()
    };
    let (first, client) = connected(script, 1).await;
    first.stop().await;
    let vid = Vid::new(7).unwrap();
    let (read, answered_by) = tokio::join!(
        within(client.objects().read(Oid::inode(vid), 0, 8)),
        async {
            let request = same.request().await;
            request.answer(b"the same").await;
            same.address
        }
    );
    assert_eq!(read.unwrap(), &b"the same"[..]);
    assert_eq!(client.peer(), Some(answered_by));
    let switched = within(client.switch_gateway(other.address.into())).await;
    let text = Chain(&switched.unwrap_err()).to_string();
    assert!(
        text.contains("this is sheep 0.9 and the cluster is 1.0"),
        "{text}"
    );
}
