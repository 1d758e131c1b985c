//! The state after a restart, and the space of a store.

use sheep_proto::limits::CLUSTER_INFO_LEN;
use sheep_proto::{Opcode, RequestBody, ResultCode};

use crate::client::{Sheep, data_oid};

#[test]
fn restart_keeps_everything_acknowledged() {
    let sheep = Sheep::in_directory();
    let mut client = sheep.connect();
    let old = client.new_vdi("demo");
    client.first_write(old, 0, b"old");
    let new = client.snapshot("demo", old, "one");
    client.copy_on_write(new, old, 0, b"new");
    client.new_vdi("gone");
    client.vdi_request(Opcode::DelVdi, "gone", "", 0).vid();
    let info = client.request(Opcode::ClusterInfo, CLUSTER_INFO_LEN, RequestBody::NONE);
    let (used, deleted) = (
        client.vids(Opcode::ReadVdis),
        client.vids(Opcode::ReadDelVdis),
    );
    drop(client);
    let sheep = sheep.restart();
    let mut client = sheep.connect();
    assert_eq!(client.vids(Opcode::ReadVdis), used);
    assert_eq!(client.vids(Opcode::ReadDelVdis), deleted);
    assert_eq!(
        client
            .vdi_request(Opcode::GetVdiInfo, "demo", "one", 0)
            .vid(),
        old
    );
    assert_eq!(
        client.vdi_request(Opcode::GetVdiInfo, "demo", "", 0).vid(),
        new
    );
    assert_eq!(client.bytes(data_oid(old, 0), 0, 3), b"old");
    assert_eq!(client.bytes(data_oid(new, 0), 0, 3), b"new");
    assert_eq!(
        client.write(data_oid(old, 0), 0, b"x"),
        ResultCode::ReadOnly
    );
    let again = client.request(Opcode::ClusterInfo, CLUSTER_INFO_LEN, RequestBody::NONE);
    assert_eq!(again.payload[..48], info.payload[..48]);
}

#[test]
fn restart_recounts_references() {
    let sheep = Sheep::in_directory();
    let mut client = sheep.connect();
    let old = client.new_vdi("demo");
    client.first_write(old, 0, b"0");
    client.first_write(old, 900_000, b"far");
    let new = client.snapshot("demo", old, "one");
    drop(client);
    let sheep = sheep.restart();
    let mut client = sheep.connect();
    assert_eq!(client.set_slot(new, 0, None), ResultCode::Success);
    assert_eq!(client.bytes(data_oid(old, 0), 0, 1), b"0");
    assert_eq!(
        client.vdi_request(Opcode::DelVdi, "demo", "one", 0).vid(),
        old
    );
    assert!(!client.exists(data_oid(old, 0)));
    assert_eq!(client.bytes(data_oid(old, 900_000), 0, 3), b"far");
    assert_eq!(client.vdi_request(Opcode::DelVdi, "demo", "", 0).vid(), new);
    assert!(!client.exists(data_oid(old, 900_000)));
}

#[test]
fn full_store_refuses_writes_and_recovers() {
    let sheep = Sheep::start(None, |config| config.memory_limit = 1 << 20);
    let client = &mut sheep.connect();
    let vid = client.new_vdi("demo");
    let big = vec![1; 2 << 20];
    assert_eq!(
        client.create(data_oid(vid, 0), 0, &big),
        ResultCode::NoSpace
    );
    assert!(!client.exists(data_oid(vid, 0)));
    client.first_write(vid, 0, b"small");
    assert_eq!(client.write(data_oid(vid, 0), 0, &big), ResultCode::NoSpace);
    assert_eq!(client.discard(data_oid(vid, 0)), ResultCode::Success);
    assert_eq!(
        client.create(data_oid(vid, 0), 0, &big[..900_000]),
        ResultCode::Success
    );
}

#[test]
fn directory_in_use_is_refused() {
    let sheep = Sheep::in_directory();
    let config = sheep_embedded::Config::new(sheep_embedded::StoreKind::Directory(
        sheep.path().to_path_buf(),
    ));
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let error = runtime
        .block_on(sheep_embedded::Server::start(config))
        .unwrap_err();
    assert!(
        error.to_string().ends_with("is in use by another server"),
        "{error}"
    );
}
