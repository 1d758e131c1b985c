//! The transport that injects faults does just that.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use sheep_client::testing::{Fault, FaultTransport};
use sheep_client::unstable::Pool;
use sheep_client::{Client, ClientConfig, ClientError, NewVdi};
use sheep_embedded::{Config, Server, StoreKind};
use sheep_proto::{ObjectIndex, Oid, Opcode, ResultCode, VdiName};

use crate::refusal;

/// The outcome of a write of `new` over `old` with a fault, and the bytes afterwards.
async fn write_with(fault: Fault) -> (Result<(), ClientError>, Bytes) {
    let server = Server::start(Config::new(StoreKind::Memory)).await.unwrap();
    let config = ClientConfig::new(server.local_address().into());
    let pool = Arc::new(Pool::connect(config).await.unwrap());
    let armed = Arc::new(AtomicBool::new(false));
    let mut fault = Some(fault);
    let faulty = FaultTransport::new(pool, {
        let armed = Arc::clone(&armed);
        move |request| {
            let hit = request.opcode() == Opcode::WriteObj && armed.load(Ordering::SeqCst);
            if hit { fault.take() } else { None }
        }
    });
    let client = Client::with_transport(Arc::new(faulty));
    let new = NewVdi::new(VdiName::new("v").unwrap(), 4 << 20);
    let vid = client.cluster().create_vdi(&new).await.unwrap();
    let oid = Oid::data(vid, ObjectIndex(0));
    let old = Bytes::from_static(b"old");
    client.objects().create(oid, 0, old, None).await.unwrap();
    armed.store(true, Ordering::SeqCst);
    let result = client
        .objects()
        .write(oid, 0, Bytes::from_static(b"new"))
        .await;
    (result, client.objects().read(oid, 0, 3).await.unwrap())
}

#[tokio::test]
async fn fault_transport_follows_its_plan() {
    let (result, found) = write_with(Fault::LoseBefore).await;
    assert!(matches!(result, Err(ClientError::Lost { .. })));
    assert_eq!(found, &b"old"[..]);

    let (result, found) = write_with(Fault::LoseAfter).await;
    assert!(matches!(result, Err(ClientError::Lost { .. })));
    assert_eq!(found, &b"new"[..]);

    let (result, found) = write_with(Fault::Refuse(ResultCode::Halt)).await;
    assert_eq!(refusal(result), ResultCode::Halt);
    assert_eq!(found, &b"old"[..]);

    for delay in [Fault::Delay, Fault::DelayResponse] {
        let (result, found) = write_with(delay(Duration::from_millis(5))).await;
        result.unwrap();
        assert_eq!(found, &b"new"[..]);
    }
}
