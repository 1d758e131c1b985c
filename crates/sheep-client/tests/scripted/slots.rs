//! Slots of an index are not written twice without looking.

use sheep_client::{Client, ClientError};
use sheep_proto::inode::{SLOT_LEN, slot_offset};
use sheep_proto::{ObjectIndex, Opcode, ResultCode, Vid};
use tokio::task::JoinHandle;

use crate::peer::{Peer, Received, Script};
use crate::{connected, within};

const FIRST: ObjectIndex = ObjectIndex(3);

fn vid() -> Vid {
    Vid::new(0x76_d396).unwrap()
}

/// Sets slot 3 and clears slot 4 in a task of its own.
fn write(client: &Client) -> JoinHandle<Result<(), ClientError>> {
    let client = client.clone();
    tokio::spawn(async move {
        within(client.inode(vid()).write_slots(FIRST, &[Some(vid()), None])).await
    })
}

/// The two slots on the wire.
fn wire(first: u32) -> Vec<u8> {
    [first.to_le_bytes(), [0; 4]].concat()
}

async fn slot_request(peer: &mut Peer, opcode: Opcode) -> Received {
    let request = peer.request().await;
    assert_eq!(request.opcode(), opcode);
    assert_eq!(Some(request.offset()), slot_offset(FIRST));
    if opcode == Opcode::WriteObj {
        assert_eq!(request.payload, wire(vid().get()));
    } else {
        assert_eq!(request.header.data_length.get(), 2 * SLOT_LEN);
    }
    request
}

#[tokio::test]
async fn write_slots_that_took_effect_is_not_retried() {
    let (mut peer, client) = connected(Script::default(), 1).await;
    let caller = write(&client);
    let first = slot_request(&mut peer, Opcode::WriteObj).await;
    first.wire.close();
    let look = slot_request(&mut peer, Opcode::ReadObj).await;
    look.answer(&wire(vid().get())).await;
    caller.await.unwrap().unwrap();
    assert!(peer.arrived().is_none());
}

#[tokio::test]
async fn write_slots_without_effect_is_retried_after_disconnect() {
    let (mut peer, client) = connected(Script::default(), 1).await;
    let caller = write(&client);
    for _ in 0..2 {
        let lost = slot_request(&mut peer, Opcode::WriteObj).await;
        lost.wire.close();
        // The lost request may still be executed, so one query is not enough.
        for _ in 0..2 {
            let look = slot_request(&mut peer, Opcode::ReadObj).await;
            look.answer(&wire(7)).await;
        }
    }
    slot_request(&mut peer, Opcode::WriteObj)
        .await
        .answer(&[])
        .await;
    caller.await.unwrap().unwrap();
}

#[tokio::test]
async fn write_slots_executed_late_is_not_retried() {
    let (mut peer, client) = connected(Script::default(), 1).await;
    let caller = write(&client);
    let lost = slot_request(&mut peer, Opcode::WriteObj).await;
    lost.wire.close();
    for found in [7, vid().get()] {
        let look = slot_request(&mut peer, Opcode::ReadObj).await;
        look.answer(&wire(found)).await;
    }
    caller.await.unwrap().unwrap();
    assert!(peer.arrived().is_none());
}

#[tokio::test]
async fn write_slots_fails_after_many_disconnects() {
    let (mut peer, client) = connected(Script::default(), 1).await;
    let caller = write(&client);
    let refusing = async {
        loop {
            let request = peer.request().await;
            match request.opcode() {
                Opcode::WriteObj => request.wire.close(),
                _ => request.answer(&wire(0)).await,
            }
        }
    };
    tokio::select! {
        outcome = caller => {
            let error = outcome.unwrap().unwrap_err();
            assert!(matches!(error, ClientError::Lost { .. }), "{error}");
        }
        () = refusing => {}
    }
}

#[tokio::test]
async fn write_slots_waits_out_a_transient_refusal() {
    let (mut peer, client) = connected(Script::default(), 1).await;
    let caller = write(&client);
    let refused = slot_request(&mut peer, Opcode::WriteObj).await;
    refused.respond(ResultCode::Halt, &[]).await;
    let again = slot_request(&mut peer, Opcode::WriteObj).await;
    again.answer(&[]).await;
    caller.await.unwrap().unwrap();
}
