//! Locks of VDIs, on both stores.

use sheep_proto::limits::VDI_STATE_LEN;
use sheep_proto::vdi_state::{LockState, VdiState};
use sheep_proto::{ClusterFlags, Opcode, RequestBody, RequestFlags, ResultCode, VdiRequest, Vid};

use crate::client::{Client, Sheep, name_field};

fn lock(client: &mut Client, lock_type: u32) -> ResultCode {
    let body = RequestBody::Vdi(VdiRequest {
        lock_type: lock_type.into(),
        ..VdiRequest::default()
    });
    let name = name_field("demo");
    client
        .write_request(Opcode::LockVdi, RequestFlags::empty(), body, &name)
        .result()
}

fn release(client: &mut Client, vid: Vid, lock_type: u32) -> ResultCode {
    let body = RequestBody::Vdi(VdiRequest {
        base_vdi_id: vid.get().into(),
        lock_type: lock_type.into(),
        ..VdiRequest::default()
    });
    client.request(Opcode::ReleaseVdi, 0, body).result()
}

fn lock_state(client: &mut Client) -> LockState {
    let response = client.request(Opcode::GetVdiCopies, VDI_STATE_LEN, RequestBody::NONE);
    VdiState::parse_list(&response.payload).unwrap()[0].lock_state()
}

#[test]
fn lock_belongs_to_node_and_outlives_connection() {
    const NORMAL: u32 = 0;
    const SHARED: u32 = 1;
    for (_store, sheep) in Sheep::for_each_store() {
        let client = &mut sheep.connect();
        let vid = client.new_vdi("demo");
        assert_eq!(lock(client, NORMAL), ResultCode::Success);
        assert_eq!(
            lock(client, NORMAL),
            ResultCode::Success,
            "no locking, no locks"
        );
        assert_eq!(
            client.format(ClusterFlags::USE_LOCK, 1),
            ResultCode::Success
        );
        assert_eq!(client.new_vdi("demo"), vid);
        assert_eq!(lock(client, 7), ResultCode::VdiLocked);
        assert_eq!(lock_state(client), LockState::Unlocked);
        for (held, other, state) in [
            (NORMAL, SHARED, LockState::Locked),
            (SHARED, NORMAL, LockState::Shared),
        ] {
            assert_eq!(lock(&mut sheep.connect(), held), ResultCode::Success);
            assert_eq!(lock_state(client), state);
            assert_eq!(lock(client, held), ResultCode::VdiLocked);
            assert_eq!(lock(client, other), ResultCode::VdiLocked);
            assert_eq!(release(client, vid, other), ResultCode::Success);
            assert_eq!(lock_state(client), state, "the wrong type releases nothing");
            assert_eq!(release(client, vid, held), ResultCode::Success);
            assert_eq!(lock_state(client), LockState::Unlocked);
        }
    }
}
