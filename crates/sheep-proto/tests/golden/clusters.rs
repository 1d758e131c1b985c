//! Nodes, epochs, locks, formatting and refusals in the captures.

use std::net::SocketAddr;

use sheep_proto::cluster::{ClusterInfoHeader, parse_epoch_log};
use sheep_proto::name::unpad;
use sheep_proto::node::NodeRecord;
use sheep_proto::statistics::{MdInfo, RequestCounters};
use sheep_proto::vdi_state::{LockState, VdiState};
use sheep_proto::vid_bitmap::VidBitmap;
use sheep_proto::{
    ClusterFlags, Opcode, Redundancy, RequestBody, ResponseBody, ResultCode, Vid, inode,
};

use crate::capture::{self, Direction};

fn address(port: u16) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], port))
}

fn result(capture: &str, seq: u64) -> ResultCode {
    capture::frame(capture, seq).response().result()
}

/// Epochs and numbers of their nodes in the response `seq`.
fn epochs(capture: &str, seq: u64, nodes_nr: u32) -> Vec<(u32, usize)> {
    let bytes = capture::frame(capture, seq).payload.bytes();
    parse_epoch_log(&bytes, nodes_nr)
        .unwrap()
        .iter()
        .map(|(header, nodes)| (header.epoch.get(), nodes.len()))
        .collect()
}

#[test]
fn node_list_is_in_order_of_addresses() {
    let frame = capture::frame("03-", 2);
    let ResponseBody::Node(body) = frame.response().body() else {
        panic!("a node answer");
    };
    assert_eq!(body.nr_nodes.get(), 3);
    let bytes = frame.payload.bytes();
    let nodes = NodeRecord::parse_list(&bytes).unwrap();
    let found: Vec<_> = nodes
        .iter()
        .map(|node| (node.address(), node.nr_vnodes.get(), node.zone.get()))
        .collect();
    assert_eq!(
        found,
        [
            (address(7120), 128, 0),
            (address(7121), 128, 1),
            (address(7122), 128, 2),
        ]
    );
}

#[test]
fn store_is_described_by_its_sheep() {
    let ResponseBody::Node(body) = capture::frame("03-", 34).response().body() else {
        panic!("a node answer");
    };
    let free = 0x13_0d14_5000;
    assert_eq!(body.store_size.get(), 0x13_0dd4_c000);
    assert_eq!(body.store_free.get(), free);

    let bytes = capture::frame("03-", 36).payload.bytes();
    let [disk] = MdInfo::parse(&bytes).unwrap().disks() else {
        panic!("one disk");
    };
    assert_eq!((disk.index.get(), disk.free.get()), (0, free));
    assert_eq!(disk.used.get(), 0xc0_7000);
    assert!(disk.path().starts_with(b"/srv/sheep"));

    let bytes = capture::frame("03-", 38).payload.bytes();
    let counters = RequestCounters::parse(&bytes).unwrap();
    assert_eq!(counters.gateway_total.get(), 0x2e);
    assert_eq!(counters.peer_total.get(), 0x16);
    assert_eq!(capture::frame("03-", 46).payload.bytes(), b"tree plain \0");
}

#[test]
fn vdi_states_are_sorted() {
    let bytes = capture::frame("03-", 44).payload.bytes();
    let found: Vec<_> = VdiState::parse_list(&bytes)
        .unwrap()
        .iter()
        .map(|state| {
            let redundancy = Redundancy::from_wire(state.nr_copies, state.copy_policy);
            (
                state.vid.get(),
                redundancy.to_string(),
                state.parent_vid.get(),
                state.snapshot,
            )
        })
        .collect();
    assert_eq!(
        found,
        [
            (0x39_33f9, "2:1".to_owned(), 0, 1),
            (0x39_33fa, "2:1".to_owned(), 0x39_33f9, 0),
            (0xab_fe96, "2".to_owned(), 0, 0),
            (0xb2_2c52, "4:1".to_owned(), 0, 0),
        ]
    );
    let bytes = capture::frame("03-", 102).payload.bytes();
    let used: Vec<_> = VidBitmap::parse(bytes)
        .unwrap()
        .iter()
        .map(Vid::get)
        .collect();
    assert_eq!(used, [0x39_33f9, 0x39_33fa, 0xab_fe96, 0xb2_2c52]);
}

#[test]
fn epochs_come_newest_first() {
    assert_eq!(epochs("03-", 26, 3), [(1, 3)]);
    assert_eq!(epochs("03-", 68, 4), [(2, 2), (1, 3)]);
    assert_eq!(epochs("03-", 78, 3), [(3, 3), (2, 2), (1, 3)]);
    assert_eq!(epochs("03-", 60, 0), [(2, 0)]);
    assert_eq!(epochs("03-", 140, 3), [(3, 3)]);

    let bytes = capture::frame("03-", 78).payload.bytes();
    let log = parse_epoch_log(&bytes, 3).unwrap();
    let (newest, nodes) = log[0];
    assert_eq!(newest.store(), b"plain");
    assert_eq!(newest.redundancy().to_string(), "2:1");
    assert_eq!(newest.flags(), ClusterFlags::AUTO_VNODES);
    assert_eq!(inode::packed_seconds(newest.ctime.get()), 0x6b04_0b60);
    assert_eq!(newest.time.get(), 0x6b04_0b63);
    assert_eq!(nodes[2].address(), address(7122));
    assert_eq!(log[1].0.store(), b"");
}

#[test]
fn buffer_too_small_gets_partial_payload() {
    assert_eq!(result("03-", 66), ResultCode::BufferSmall);
    assert_eq!(epochs("03-", 66, 2), [(2, 2)]);
    assert_eq!(result("13-", 28), ResultCode::BufferSmall);
    assert_eq!(capture::frame("13-", 28).payload.len, 0);
}

#[test]
fn cluster_waiting_for_members_responds_with_payload() {
    assert_eq!(result("13-", 2), ResultCode::WaitForJoin);
    assert_eq!(epochs("13-", 2, 3), [(3, 3), (2, 2), (1, 3)]);
    for refused in [10, 12, 14, 16, 20, 22] {
        assert_eq!(result("13-", refused), ResultCode::WaitForJoin);
        let opcode = Opcode::try_from(capture::frame("13-", refused).header[1]).unwrap();
        assert!(!opcode.is_forced(), "{opcode}");
    }
    for answered in [4, 6, 8, 18] {
        assert_eq!(result("13-", answered), ResultCode::Success);
        let opcode = Opcode::try_from(capture::frame("13-", answered).header[1]).unwrap();
        assert!(opcode.is_forced(), "{opcode}");
    }
    let bytes = capture::frame("13-", 8).payload.bytes();
    let (header, nodes) = ClusterInfoHeader::parse(&bytes).unwrap();
    assert_eq!((header.status, header.epoch.get(), nodes.len()), (2, 3, 3));
}

#[test]
fn cluster_info_describes_a_running_cluster() {
    let bytes = capture::frame("02-", 6).payload.bytes();
    let (header, nodes) = ClusterInfoHeader::parse(&bytes).unwrap();
    assert_eq!((header.proto_ver, header.status), (0x0a, 1));
    assert_eq!((header.epoch.get(), header.block_size_shift), (1, 22));
    assert_eq!(header.redundancy(), Redundancy::Replicated(1));
    assert_eq!(header.flags(), ClusterFlags::AUTO_VNODES);
    assert_eq!(header.store(), b"plain");
    assert_eq!(nodes.len(), 1);
    assert_eq!(nodes[0].address(), address(7100));
}

#[test]
fn lock_states_name_owner_and_participants() {
    let state = |seq| {
        let bytes = capture::frame("07a-", seq).payload.bytes();
        VdiState::parse_list(&bytes).unwrap()[0]
    };
    let locked = state(8);
    assert_eq!(locked.lock_state(), LockState::Locked);
    assert_eq!(locked.owner.addr[12..], [127, 0, 0, 1]);
    assert_eq!(locked.owner.port.get(), 7110);
    assert_eq!(state(10).lock_state(), LockState::Unlocked);
    let shared = state(26);
    assert_eq!(shared.lock_state(), LockState::Shared);
    assert_eq!(shared.nr_participants.get(), 2);
    let states = shared.participant_states.map(u32::from);
    assert_eq!(states[..3], [1, 3, 0]);
    assert_eq!(shared.participants[0].port.get(), 7110);
    assert_eq!(shared.participants[1].port.get(), 7111);

    assert_eq!(result("07a-", 6), ResultCode::VdiLocked);
    assert_eq!(result("07a-", 34), ResultCode::InodeInvalidated);
}

#[test]
fn response_order_is_resolved_by_id() {
    let order: Vec<u32> = capture::all_frames()
        .into_iter()
        .filter(|frame| frame.capture.starts_with("12-"))
        .filter(|frame| frame.direction == Direction::Response)
        .map(|frame| frame.response().id.get())
        .collect();
    assert_eq!(order, [1, 104, 106, 105, 103, 102, 101]);
}

#[test]
fn refusals_have_the_documented_codes() {
    for (seq, expected) in [
        (4, ResultCode::VdiExist),
        (6, ResultCode::NoVdi),
        (8, ResultCode::NoTag),
        (12, ResultCode::InvalidParms),
        (20, ResultCode::BaseVdiRead),
        (26, ResultCode::ReadOnly),
        (32, ResultCode::NoObj),
        (38, ResultCode::VerMismatch),
        (72, ResultCode::BufferSmall),
        (74, ResultCode::NoStore),
        (76, ResultCode::ForceRecover),
        (84, ResultCode::InvalidVnodesStrategy),
        (92, ResultCode::OldNodeVer),
    ] {
        assert_eq!(result("08-", seq), expected, "frame {seq}");
    }
    let ResponseBody::Hash(body) = capture::frame("08-", 90).response().body() else {
        panic!("a digest");
    };
    assert_eq!(body.digest[..4], [0xce, 0xb2, 0xfc, 0x20]);
    assert_eq!(body.digest[16..], [0x4b, 0xa9, 0x46, 0x71]);
}

#[test]
fn cluster_in_strict_mode_halts_writes() {
    let format = capture::frame("16-", 1);
    let RequestBody::Cluster(body) = format.request().body() else {
        panic!("cluster parameters");
    };
    assert_eq!(
        body.flags(),
        ClusterFlags::STRICT | ClusterFlags::AUTO_VNODES
    );
    assert_eq!((body.copies, body.block_size_shift), (2, 23));
    assert_eq!(inode::packed_seconds(body.ctime.get()), 0x6b04_0ab8);
    assert_eq!(unpad(&format.payload.bytes()), b"plain");
    let ResponseBody::ClusterDefault(body) = capture::frame("16-", 4).response().body() else {
        panic!("the cluster's defaults");
    };
    assert_eq!(
        (body.copies, body.copy_policy, body.block_size_shift),
        (2, 0, 23)
    );
    assert_eq!(result("16-", 6), ResultCode::VdiWrite);
    assert_eq!(result("16-", 12), ResultCode::Halt);
    assert_eq!(result("16-", 14), ResultCode::Halt);
    assert_eq!(result("16-", 32), ResultCode::Success);
}
