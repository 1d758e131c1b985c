//! The fault injection that tests of other crates use.

use std::io::Read;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use sheep_embedded::{Fault, faults};
use sheep_proto::cluster::parse_epoch_log;
use sheep_proto::limits::{HEADER_LEN, NODE_LIST_LEN};
use sheep_proto::node::NodeRecord;
use sheep_proto::{
    ClusterFlags, ClusterRequest, Oid, Opcode, RequestBody, RequestFlags, RequestHeader,
    ResponseBody, ResultCode, VdiRequest, Vid,
};
use zerocopy::FromBytes;

use crate::client::{Client, Sheep, data_oid, name_field, object};

/// A server with one VDI that has one object, which begins with `old`.
fn start_with_object() -> (Sheep, Client, Vid) {
    let sheep = Sheep::in_memory();
    let mut client = sheep.connect();
    let vid = client.new_vdi("demo");
    client.first_write(vid, 0, b"old");
    (sheep, client, vid)
}

fn write_header(vid: Vid) -> RequestHeader {
    let body = object(data_oid(vid, 0), 0);
    RequestHeader::new(Opcode::WriteObj, RequestFlags::WRITE, 3, body)
}

fn read_header(oid: Oid, want: u32) -> RequestHeader {
    RequestHeader::new(Opcode::ReadObj, RequestFlags::empty(), want, object(oid, 0))
}

/// The content of an object after a write of `new` over `old` with a fault.
fn write_with_fault(fault: Fault) -> (std::io::Result<ResultCode>, Vec<u8>) {
    let (sheep, mut client, vid) = start_with_object();
    sheep
        .server()
        .inject(faults::nth_request(Opcode::WriteObj, 0..1, fault));
    let response = client.try_call(write_header(vid), b"new");
    let found = sheep.connect().bytes(data_oid(vid, 0), 0, 3);
    (response.map(|response| response.result()), found)
}

#[test]
fn fault_refuse_does_not_run_the_request() {
    let (response, found) = write_with_fault(Fault::Refuse(ResultCode::Halt));
    assert_eq!(response.unwrap(), ResultCode::Halt);
    assert_eq!(found, b"old");
}

#[test]
fn fault_delay_still_runs_and_responds() {
    for fault in [Fault::Delay, Fault::DelayResponse] {
        let (response, found) = write_with_fault(fault(Duration::from_millis(5)));
        assert_eq!(response.unwrap(), ResultCode::Success);
        assert_eq!(found, b"new");
    }
}

#[test]
fn fault_cut_closes_before_or_after_execution() {
    let (response, found) = write_with_fault(Fault::CutRequest);
    assert!(response.is_err());
    assert_eq!(found, b"old");
    for len in [0, 20] {
        let (response, found) = write_with_fault(Fault::CutResponse(len));
        assert!(response.is_err());
        assert_eq!(found, b"new");
    }
}

#[test]
fn fault_cut_response_ends_at_given_length() {
    let (sheep, mut client, vid) = start_with_object();
    let cut = HEADER_LEN + 100;
    sheep.server().inject(faults::nth_request(
        Opcode::ReadObj,
        0..1,
        Fault::CutResponse(cut),
    ));
    client
        .send(read_header(data_oid(vid, 0), 4096), &[])
        .unwrap();
    let mut response = Vec::new();
    client.stream().read_to_end(&mut response).unwrap();
    assert_eq!(response.len(), cut);
}

#[test]
fn fault_drop_leaves_the_connection_usable() {
    for (fault, expected) in [(Fault::DropRequest, b"old"), (Fault::DropResponse, b"new")] {
        let (sheep, mut client, vid) = start_with_object();
        sheep
            .server()
            .inject(faults::nth_request(Opcode::WriteObj, 0..1, fault));
        client.send(write_header(vid), b"new").unwrap();
        // Nothing reports when a request without a response has been executed.
        while sheep.connect().bytes(data_oid(vid, 0), 0, 3) != expected {}
        assert_eq!(client.bytes(data_oid(vid, 0), 0, 3), expected);
    }
}

#[test]
fn fault_hold_ends_when_faults_are_cleared() {
    let (sheep, mut client, vid) = start_with_object();
    sheep
        .server()
        .inject(|request| (request.opcode == Opcode::WriteObj as u8).then_some(Fault::Hold));
    let held = client.send(write_header(vid), b"new").unwrap();
    assert_eq!(client.bytes(data_oid(vid, 0), 0, 3), b"old");
    sheep.server().clear_faults();
    assert_eq!(client.receive().unwrap().header.id.get(), held);
    assert_eq!(client.bytes(data_oid(vid, 0), 0, 3), b"new");
}

#[test]
fn fault_reorder_writes_after_the_next_response() {
    let (sheep, mut client, vid) = start_with_object();
    let seen = Arc::new(AtomicUsize::new(0));
    sheep.server().inject({
        let seen = Arc::clone(&seen);
        move |_| match seen.fetch_add(1, Ordering::SeqCst) {
            0 => Some(Fault::Hold),
            _ => Some(Fault::Reorder),
        }
    });
    let first = client.send(read_header(data_oid(vid, 0), 4), &[]);
    let second = client.send(read_header(data_oid(vid, 0), 4), &[]);
    while seen.load(Ordering::SeqCst) < 2 {
        thread::yield_now();
    }
    sheep.server().clear_faults();
    let order = [(); 2].map(|()| client.receive().unwrap().header.id.get());
    assert_eq!(order, [first.unwrap(), second.unwrap()]);
    // Alone, there is no other response to wait for.
    sheep.server().inject(|_| Some(Fault::Reorder));
    assert_eq!(client.bytes(data_oid(vid, 0), 0, 3), b"old");
}

#[test]
fn fault_wrong_id_matches_no_request() {
    let (sheep, mut client, vid) = start_with_object();
    sheep
        .server()
        .inject(faults::nth_request(Opcode::ReadObj, 1..2, Fault::WrongId));
    assert_eq!(client.bytes(data_oid(vid, 0), 0, 3), b"old");
    let id = client.send(read_header(data_oid(vid, 0), 4), &[]).unwrap();
    assert_eq!(client.receive().unwrap().header.id.get(), !id);
    assert_eq!(client.bytes(data_oid(vid, 0), 0, 3), b"old");
}

fn ports(client: &mut Client) -> Vec<u16> {
    let response = client.request(Opcode::GetNodeList, NODE_LIST_LEN, RequestBody::NONE);
    let ResponseBody::Node(body) = response.header.body() else {
        panic!("no node list in {response:?}");
    };
    let nodes = <[NodeRecord]>::ref_from_bytes(&response.payload).unwrap();
    assert_eq!(nodes.len(), body.nr_nodes.get() as usize);
    nodes.iter().map(|node| node.address().port()).collect()
}

#[test]
fn nodes_share_a_store_and_outlive_each_other() {
    let (first, mut client, vid) = start_with_object();
    let second = first.add_node();
    let third = second.add_node();
    let mut expected = [&first, &second, &third].map(|node| node.address().port());
    expected.sort_unstable();
    assert_eq!(ports(&mut client), expected);
    assert_eq!(ports(&mut second.connect()), expected);

    // Faults are of one node.
    first.server().inject(|_| Some(Fault::CutRequest));
    assert!(client.try_call(write_header(vid), b"new").is_err());
    let mut other = second.connect();
    assert_eq!(
        other.write(data_oid(vid, 0), 0, b"new"),
        ResultCode::Success
    );

    // The first node may leave first.
    first.kill();
    assert!(client.receive().is_err());
    assert_eq!(other.bytes(data_oid(vid, 0), 0, 3), b"new");
    assert_eq!(ports(&mut other).len(), 2);
    third.stop();
    assert_eq!(ports(&mut other), [second.address().port()]);

    // Every change was an epoch.
    let body = RequestBody::Cluster(ClusterRequest {
        nodes_nr: 3.into(),
        ..ClusterRequest::default()
    });
    let response = other.request(Opcode::StatCluster, 8 * (48 + 3 * 80), body);
    assert_eq!(response.header.epoch.get(), 5);
    let epochs = parse_epoch_log(&response.payload, 3).unwrap();
    let counts: Vec<_> = epochs.iter().map(|(_, nodes)| nodes.len()).collect();
    assert_eq!(counts, [1, 2, 3, 2, 1]);
}

#[test]
fn node_kill_drops_requests_and_frees_address() {
    let (first, _client, vid) = start_with_object();
    let second = first.add_node();
    second.server().inject(|_| Some(Fault::Hold));
    let mut client = second.connect();
    client.send(write_header(vid), b"new").unwrap();
    let address = second.address();
    second.kill();
    assert!(client.receive().is_err());
    let again = first.add_node_at(address);
    assert_eq!(again.connect().bytes(data_oid(vid, 0), 0, 3), b"old");
}

#[test]
fn lock_of_killed_node_stays_unless_shared() {
    let first = Sheep::start(None, |config| config.format_if_new = false);
    let second = first.add_node();
    let mut client = first.connect();
    let format = client.format(ClusterFlags::USE_LOCK, 1);
    assert_eq!(format, ResultCode::Success);
    client.new_vdi("shared");
    client.new_vdi("alone");
    let lock = |client: &mut Client, name, lock_type: u32| {
        let body = RequestBody::Vdi(VdiRequest {
            lock_type: lock_type.into(),
            ..VdiRequest::default()
        });
        let response = client.write_request(
            Opcode::LockVdi,
            RequestFlags::empty(),
            body,
            &name_field(name),
        );
        response.result()
    };
    let mut other = second.connect();
    assert_eq!(lock(&mut other, "shared", 1), ResultCode::Success);
    assert_eq!(lock(&mut other, "alone", 0), ResultCode::Success);
    assert_eq!(lock(&mut client, "shared", 0), ResultCode::VdiLocked);
    second.kill();
    assert_eq!(lock(&mut client, "shared", 0), ResultCode::Success);
    assert_eq!(lock(&mut client, "alone", 0), ResultCode::VdiLocked);
}
