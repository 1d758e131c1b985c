//! What is sent to sheep of each generation, and which sheep are not used.

use std::fmt;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};

use sheep_client::error::Chain;
use sheep_client::unstable::Request;
use sheep_client::{Client, ClientConfig, ClientError, Generation};
use sheep_proto::header::RequestBody;
use sheep_proto::{Oid, Opcode, Vid};
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Metadata, Subscriber, span};

use crate::peer::{Peer, Script};
use crate::{config, connected, object, until, within};

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

pub(crate) async fn connect(script: Script) -> (Peer, Result<Client, ClientError>) {
    connect_with(script, |_config| ()).await
}

pub(crate) async fn connect_with(
    script: Script,
    change: impl FnOnce(&mut ClientConfig),
) -> (Peer, Result<Client, ClientError>) {
    let mut peer = Peer::start(script.clone()).await;
    let mut config = config(&peer, 1);
    change(&mut config);
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

/// Keeps the text of all warnings.
#[derive(Clone, Default)]
struct Warnings(Arc<Mutex<Vec<String>>>);

impl Warnings {
    fn count(&self, text: &str) -> usize {
        let all = self.0.lock().unwrap();
        all.iter().filter(|warning| warning.contains(text)).count()
    }
}

impl Visit for Warnings {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        if field.name() == "message" {
            self.0.lock().unwrap().push(format!("{value:?}"));
        }
    }
}

impl Subscriber for Warnings {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        *metadata.level() <= Level::WARN
    }
    fn event(&self, event: &Event<'_>) {
        event.record(&mut self.clone());
    }
    fn new_span(&self, _span: &span::Attributes<'_>) -> span::Id {
        span::Id::from_u64(1)
    }
    fn record(&self, _span: &span::Id, _values: &span::Record<'_>) {}
    fn record_follows_from(&self, _span: &span::Id, _follows: &span::Id) {}
    fn enter(&self, _span: &span::Id) {}
    fn exit(&self, _span: &span::Id) {}
}

#[tokio::test]
async fn failover_warns_once_of_each_gateway_that_is_not_used() {
    const UNKNOWN: &str = "it refuses the versions of all of them";
    const OTHER: &str = "this is sheep 0.9 and the cluster is 1.0";
    let unknown = Peer::start(Script {
        proto_ver: 11,
        ..Script::default()
    })
    .await;
    let other = Peer::start(sheep(Generation::V0_9)).await;
    let script = Script {
        nodes: vec![unknown.address, other.address],
        ..Script::default()
    };
    let (first, client) = connected(script.clone(), 1).await;
    let warnings = Warnings::default();
    let _logging = tracing::subscriber::set_default(warnings.clone());
    let address = first.stop().await;
    // Several rounds, in which both are tried again.
    until(|| unknown.accepted() >= 3 && other.accepted() >= 3).await;
    let mut again = Peer::start(Script { address, ..script }).await;
    let (read, ()) = tokio::join!(within(client.objects().read(object(), 0, 1)), async {
        again.request().await.answer(&[7]).await
    });
    read.unwrap();
    assert_eq!((warnings.count(UNKNOWN), warnings.count(OTHER)), (1, 1));
}

#[tokio::test]
async fn query_of_a_member_of_another_generation_is_refused() {
    let mut other = Peer::start(sheep(Generation::V0_9)).await;
    let (_peer, client) = connected(Script::default(), 1).await;
    let asked = within(client.node(other.address).store_space()).await;
    let text = Chain(&asked.unwrap_err()).to_string();
    assert!(
        text.contains("this is sheep 0.9 and the cluster is 1.0"),
        "{text}"
    );
    assert!(other.arrived().is_none(), "nothing but its generation");
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
