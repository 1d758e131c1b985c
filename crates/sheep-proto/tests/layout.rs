//! Size and field offsets of every wire structure, as the protocol's tables give them.
//!
//! The numbers are literals on purpose: they come from the protocol description,
//! not from the constants of the crate.

use std::mem::{align_of, offset_of, size_of};

use sheep_proto::attribute::Attribute;
use sheep_proto::btree::{LeafEntry, NodeHeader, RootEntry};
use sheep_proto::cluster::{ClusterInfoHeader, EpochRecordHeader};
use sheep_proto::node::NodeRecord;
use sheep_proto::statistics::{
    DiskRecord, MdInfo, RecoveryState, RecoveryThrottle, RequestCounters,
};
use sheep_proto::vdi_state::{NodeId, VdiState};
use sheep_proto::{
    CheckpointRequest, ClusterDefaultResponse, ClusterRequest, CoherenceRequest, ForwardRequest,
    HashResponse, InodeHeader, NodeResponse, ObjectIndex, ObjectRequest, ObjectResponse,
    ReferenceRequest, RequestHeader, ResponseHeader, VdiRequest, VdiResponse, VdiStateRequest,
    inode, limits,
};

/// Asserts the size of a structure, that it may lie anywhere, and where each field is.
///
/// `from` is the offset in a frame at which the structure starts: 16 for header tails,
/// since their tables count from the start of the header.
macro_rules! layout {
    ($type:ident, size $size:literal, from $from:literal, $($field:ident $offset:literal),+ $(,)?) => {
        let name = stringify!($type);
        assert_eq!(size_of::<$type>(), $size, "size of {name}");
        assert_eq!(align_of::<$type>(), 1, "alignment of {name}");
        $(assert_eq!(
            $from + offset_of!($type, $field),
            $offset,
            "offset of {name}.{}",
            stringify!($field),
        );)+
    };
}

#[test]
fn headers_match_section_1_2() {
    layout!(RequestHeader, size 48, from 0,
        proto_ver 0, opcode 1, flags 2, epoch 4, id 8, data_length 12, tail 16);
    layout!(ResponseHeader, size 48, from 0,
        proto_ver 0, opcode 1, flags 2, epoch 4, id 8, data_length 12, tail 16);
}

#[test]
fn object_tails_match_section_1_4() {
    layout!(ObjectRequest, size 32, from 16,
        oid 16, cow_oid 24, copies 32, copy_policy 33, ec_index 34, reserved 35, tgt_epoch 36,
        offset 40, pad 44);
    layout!(ObjectResponse, size 32, from 16, result 16, copies 20, offset 24);
    assert_eq!(ObjectResponse::OFFSET_FIELD, 24 - 16);
}

#[test]
fn vdi_tails_match_section_1_4() {
    layout!(VdiRequest, size 32, from 16,
        vdi_size 16, base_vdi_id 24, copies 28, copy_policy 29, store_policy 30,
        block_size_shift 31, snapid 32, lock_type 36);
    layout!(VdiResponse, size 32, from 16,
        result 16, reserved 20, vdi_id 24, attr_id 28, copies 32, block_size_shift 33, pad 34);
}

#[test]
fn cluster_tails_match_section_1_4() {
    layout!(ClusterRequest, size 32, from 16,
        oid 16, ctime 24, copies 32, copy_policy 33, cluster_flags 34, tag 36, nodes_nr 40,
        block_size_shift 44, reserved 45);
    layout!(ClusterDefaultResponse, size 32, from 16,
        result 16, copies 20, copy_policy 21, block_size_shift 22);
}

#[test]
fn other_tails_match_section_1_4() {
    layout!(VdiStateRequest, size 32, from 16,
        old_vid 16, new_vid 20, copies 24, set_bitmap 25, copy_policy 26, block_size_shift 27);
    layout!(ReferenceRequest, size 32, from 16, oid 16, generation 24, count 28);
    layout!(ForwardRequest, size 32, from 16, oid 16, addr 24, port 40);
    layout!(CoherenceRequest, size 32, from 16, vid 16, validate 20);
    layout!(CheckpointRequest, size 32, from 16, get 16, epoch 20, vid 24);
    layout!(NodeResponse, size 32, from 16,
        result 16, nr_nodes 20, store_size 32, store_free 40);
    layout!(HashResponse, size 32, from 16, result 16, digest 24, tail 44);
}

#[test]
fn inode_matches_section_4_1() {
    layout!(InodeHeader, size 4664, from 0,
        name 0, tag 256, create_time 512, snap_ctime 520, vm_clock_nsec 528, vdi_size 536,
        vm_state_size 544, copy_policy 552, store_policy 553, nr_copies 554,
        block_size_shift 555, snap_id 556, vdi_id 560, parent_vdi_id 564, btree_counter 568,
        unused 572);
    assert_eq!(inode::TAG_OFFSET, 256);
    assert_eq!(inode::SNAP_CTIME_OFFSET, 520);
    assert_eq!(inode::VDI_SIZE_OFFSET, 536);
    assert_eq!(inode::BTREE_COUNTER_OFFSET, 568);
    assert_eq!(inode::slot_offset(ObjectIndex(0)), Some(4664));
    assert_eq!(inode::slot_offset(ObjectIndex(1)), Some(4668));
    assert_eq!(limits::INODE_INDEX_LEN, 4_194_304);
    assert_eq!(limits::INODE_GREF_OFFSET, 4_198_968);
    assert_eq!(limits::INODE_LEN, 12_587_576);
}

#[test]
fn btree_nodes_match_section_4_6() {
    layout!(NodeHeader, size 8, from 0, magic 0, depth 2, entries 4);
    layout!(LeafEntry, size 8, from 0, index 0, vid 4);
    layout!(RootEntry, size 16, from 0, max_index 0, pad 4, oid 8);
    assert_eq!(limits::BTREE_NODE_LEN, 4_194_304);
}

#[test]
fn attributes_match_section_5_3() {
    layout!(Attribute, size 66_320, from 0,
        name 0, tag 256, ctime 512, snap_id 520, value_len 524, key 528, value 784);
}

#[test]
fn nodes_match_section_8_1() {
    layout!(NodeRecord, size 80, from 0,
        links 0, addr 24, port 40, io_addr 42, io_port 58, pad 60, nr_vnodes 64, pad2 66,
        zone 68, space 72);
    layout!(NodeId, size 40, from 24, addr 24, port 40, io_addr 42, io_port 58, pad 60);
    assert_eq!(limits::NODE_LIST_LEN, 491_520);
}

#[test]
fn cluster_info_matches_section_8_2() {
    layout!(ClusterInfoHeader, size 48, from 0,
        proto_ver 0, disable_recovery 1, nr_nodes 2, epoch 4, ctime 8, flags 16, nr_copies 18,
        copy_policy 19, status 20, block_size_shift 21, pad 22, store 25, pad2 41);
    assert_eq!(limits::CLUSTER_INFO_LEN, 491_568);
}

#[test]
fn epoch_records_match_section_8_3() {
    layout!(EpochRecordHeader, size 48, from 0,
        ctime 0, time 8, epoch 16, nr_nodes 20, disable_recovery 24, nr_copies 25,
        copy_policy 26, pad 27, flags 30, store 32);
}

#[test]
fn recovery_matches_sections_8_4_and_5_4() {
    layout!(RecoveryState, size 24, from 0, in_recovery 0, state 4, finished 8, total 16);
    layout!(RecoveryThrottle, size 24, from 0, max 0, interval 8, throttling 16);
}

#[test]
fn disks_and_counters_match_section_8_5() {
    layout!(DiskRecord, size 4120, from 0, index 0, free 8, used 16, path 24);
    layout!(MdInfo, size 263_688, from 0, disks 0, nr_disks 263_680);
    layout!(RequestCounters, size 120, from 0,
        gateway_active 0, peer_active 8, gateway_total 16, peer_total 24, gateway_rx_bytes 32,
        gateway_tx_bytes 40, peer_rx_bytes 48, peer_tx_bytes 56, gateway_removes 64,
        gateway_reads 72, gateway_writes 80, gateway_flushes 88, peer_removes 96,
        peer_reads 104, peer_writes 112);
}

#[test]
fn vdi_states_match_section_8_6() {
    layout!(VdiState, size 1428, from 0,
        vid 0, nr_copies 4, snapshot 5, deleted 6, copy_policy 7, block_size_shift 8,
        parent_vid 12, lock_state 16, owner 20, nr_participants 60, participant_states 64,
        participants 188);
}
