//! Panics in tasks of the client, while the sheep is alive.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use sheep_client::error::{Chain, DisconnectReason};
use sheep_client::unstable::BoxFuture;
use sheep_client::unstable::{Completion, Request, Transport};
use sheep_client::{Client, ClientError, GatewayAddress};
use sheep_proto::{Generation, Opcode};

use crate::peer::Script;
use crate::{connected, object, read, within};

/// Panics for every request, without running its completion.
#[derive(Debug)]
struct Panics;

impl Transport for Panics {
    fn submit(&self, _request: Request, done: Completion) {
        tokio::spawn(async move {
            let _done = done;
            panic!("this is a test");
        });
    }

    fn submit_to(&self, _node: SocketAddr, request: Request, done: Completion) {
        self.submit(request, done);
    }

    fn address(&self) -> GatewayAddress {
        "sheep:7000".parse().unwrap()
    }

    fn generation(&self, _timeout: Duration) -> BoxFuture<'_, Result<Generation, ClientError>> {
        Box::pin(std::future::ready(Ok(Generation::V1_0)))
    }

    fn switch_gateway(&self, _address: GatewayAddress) -> BoxFuture<'_, Result<(), ClientError>> {
        Box::pin(async { Ok(()) })
    }
}

#[tokio::test]
async fn panic_is_not_reported_as_a_timeout() {
    let client = Client::with_transport(Arc::new(Panics));
    let error = within(client.objects().read(object(), 0, 8))
        .await
        .unwrap_err();
    assert!(matches!(error, ClientError::Panicked { .. }), "{error}");
    assert!(error.to_string().contains("panicked"), "{error}");
    assert_eq!(error.errno(), nix::errno::Errno::EIO);
}

#[tokio::test]
async fn panic_of_a_completion_never_replays_a_write() {
    let (mut peer, client) = connected(Script::default(), 1).await;
    client.submit(
        Request::read_object(object(), 1, 8),
        Box::new(|_outcome| panic!("this is a test")),
    );
    let panics = peer.request().await;
    let writer = client.clone();
    let write = tokio::spawn(async move {
        let write = writer.objects().write(object(), 0, b"w"[..].into());
        within(write).await
    });
    let reader = read(&client, 2, 8);
    let opcodes = [peer.request().await.opcode(), peer.request().await.opcode()];
    assert!(opcodes.contains(&Opcode::WriteObj) && opcodes.contains(&Opcode::ReadObj));

    panics.answer(&[0; 8]).await;
    let error = write.await.unwrap().unwrap_err();
    assert!(
        matches!(&error, ClientError::Lost { why, .. } if matches!(**why, DisconnectReason::Aborted)),
        "{}",
        Chain(&error)
    );
    // The sheep may still execute the write; the read can do no harm.
    let again = peer.request().await;
    assert_eq!((again.opcode(), again.offset()), (Opcode::ReadObj, 2));
    again.answer(b"answered").await;
    assert_eq!(reader.await.unwrap().unwrap(), &b"answered"[..]);
}
