//! The behaviour a one-node server must reproduce, point by point, on both stores.

use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;

use crate::client::{Client, OBJECT_LEN, Sheep, based_on, data_oid, name_field, object, sized};
use sheep_proto::cluster::parse_epoch_log;
use sheep_proto::limits::{CLUSTER_INFO_LEN, INODE_LEN, NODE_LIST_LEN};
use sheep_proto::{
    ClusterFlags, ClusterRequest, Oid, Opcode, RequestBody, RequestFlags, ResultCode, VdiRequest,
    Vid,
};

fn for_each_store(test: impl Fn(&mut Client)) {
    for (name, sheep) in Sheep::for_each_store() {
        println!("store: {name}");
        test(&mut sheep.connect());
        sheep.stop();
    }
}

#[test]
fn vid_follows_name_hash_and_is_never_reused() {
    for_each_store(|client| {
        let first = client.new_vdi("demo");
        assert_eq!(first.get(), 0x76_d396);
        let head = client.snapshot("demo", first, "one");
        assert_eq!(head.get(), 0x76_d397);
        assert_eq!(
            client.vdi_request(Opcode::DelVdi, "demo", "", 0).vid(),
            head
        );
        let again = client.new_vdi("demo");
        assert_eq!(again.get(), 0x76_d398);
        assert_eq!(client.header_of(again).snap_id.get(), 2);
        assert_eq!(
            client.vids(Opcode::ReadVdis),
            [0x76_d396, 0x76_d397, 0x76_d398]
        );
        assert_eq!(client.vids(Opcode::ReadDelVdis), [0x76_d397]);
    });
}

#[test]
fn inode_reads_and_writes_as_sparse_object() {
    for_each_store(|client| {
        let vid = client.new_vdi("demo");
        let inode = client.bytes(Oid::inode(vid), 0, INODE_LEN);
        assert_eq!(inode[..8], *b"demo\0\0\0\0");
        assert!(inode[572..].iter().all(|&byte| byte == 0));
        let size = (128u64 << 20).to_le_bytes();
        assert_eq!(
            client.write(Oid::inode(vid), 536, &size),
            ResultCode::Success
        );
        assert_eq!(client.header_of(vid).vdi_size.get(), 128 << 20);
        assert_eq!(
            client.write(Oid::inode(vid), 4_198_968, b"gref"),
            ResultCode::Success
        );
        assert_eq!(client.bytes(Oid::inode(vid), 4_198_966, 7), b"\0\0gref\0");
    });
}

#[test]
fn snapshot_survives_a_stale_header_write() {
    for_each_store(|client| {
        let vid = client.new_vdi("demo");
        let stale = client.bytes(Oid::inode(vid), 0, 4664);
        client.snapshot("demo", vid, "one");
        assert_eq!(
            client.write(Oid::inode(vid), 0, &stale),
            ResultCode::Success
        );
        assert!(client.header_of(vid).is_snapshot());
        assert_eq!(
            client.create(data_oid(vid, 0), 0, b"x"),
            ResultCode::ReadOnly
        );
    });
}

#[test]
fn snapshot_makes_only_data_read_only() {
    for_each_store(|client| {
        let old = client.new_vdi("demo");
        client.first_write(old, 0, b"old");
        let new = client.snapshot("demo", old, "one");
        assert_eq!(
            client.write(data_oid(old, 0), 0, b"x"),
            ResultCode::ReadOnly
        );
        assert_eq!(
            client.create(data_oid(old, 1), 0, b"x"),
            ResultCode::ReadOnly
        );
        assert_eq!(
            client.create(Oid::vm_state(old, 0), 0, b"ram"),
            ResultCode::Success
        );
        assert_eq!(
            client.write(Oid::inode(old), 256, &name_field("renamed")),
            ResultCode::Success
        );
        assert_eq!(
            client
                .vdi_request(Opcode::GetVdiInfo, "demo", "renamed", 0)
                .vid(),
            old
        );
        let (snapshot, head) = (client.header_of(old), client.header_of(new));
        assert!(snapshot.is_snapshot() && !head.is_snapshot());
        assert_eq!((snapshot.snap_id.get(), head.snap_id.get()), (1, 2));
        assert_eq!(head.parent(), Some(old));
        assert!(head.tag().is_empty());
        assert_eq!(client.slot(new, 0), Some(old));
        client.copy_on_write(new, old, 0, b"NEW");
        assert_eq!(client.bytes(data_oid(old, 0), 0, 3), b"old");
        assert_eq!(client.bytes(data_oid(new, 0), 0, 3), b"NEW");
    });
}

#[test]
fn reference_count_frees_object_with_last_referrer() {
    for_each_store(|client| {
        let first = client.new_vdi("demo");
        client.first_write(first, 0, b"a");
        let second = client.snapshot("demo", first, "one");
        let copy = client.clone_vdi("copy", first);
        client.copy_on_write(second, first, 0, b"b");
        assert_eq!(
            client.vdi_request(Opcode::DelVdi, "demo", "one", 0).vid(),
            first
        );
        assert_eq!(client.slot(copy, 0), Some(first));
        assert_eq!(client.bytes(data_oid(first, 0), 0, 1), b"a");
        assert_eq!(client.set_slot(copy, 0, None), ResultCode::Success);
        assert!(!client.exists(data_oid(first, 0)));
        assert!(client.exists(data_oid(second, 0)));
        assert_eq!(client.set_slot(second, 0, None), ResultCode::Success);
        assert!(!client.exists(data_oid(second, 0)));
    });
}

#[test]
fn reference_count_ignores_rewriting_an_inherited_entry() {
    for_each_store(|client| {
        let old = client.new_vdi("demo");
        client.first_write(old, 0, b"0");
        client.first_write(old, 1, b"1");
        let new = client.snapshot("demo", old, "one");
        assert_eq!(
            client.create(data_oid(new, 0), 0, b"x"),
            ResultCode::Success
        );
        let both = [new.get().to_le_bytes(), old.get().to_le_bytes()].concat();
        assert_eq!(
            client.write(Oid::inode(new), 4664, &both),
            ResultCode::Success
        );
        assert_eq!(client.set_slot(new, 1, None), ResultCode::Success);
        assert_eq!(client.bytes(data_oid(old, 1), 0, 1), b"1");
        assert_eq!(client.bytes(data_oid(old, 0), 0, 1), b"0");
    });
}

#[test]
fn object_create_replaces_and_copies_on_write() {
    for_each_store(|client| {
        let vid = client.new_vdi("demo");
        let oid = data_oid(vid, 0);
        assert_eq!(client.write(oid, 0, b"x"), ResultCode::NoObj);
        assert_eq!(client.read(oid, 0, 1).result(), ResultCode::NoObj);
        assert_eq!(client.create(oid, 100, b"first"), ResultCode::Success);
        assert_eq!(client.create(oid, 8000, b"second"), ResultCode::Success);
        let content = client.bytes(oid, 0, OBJECT_LEN);
        assert_eq!(content[8000..8006], *b"second");
        assert_eq!(content.iter().filter(|&&byte| byte != 0).count(), 6);
        let copy = data_oid(vid, 1);
        assert_eq!(
            client.create_from(copy, oid, 8003, b"!"),
            ResultCode::Success
        );
        assert_eq!(client.bytes(copy, 7999, 8), b"\0sec!nd\0");
        let absent = data_oid(vid, 9);
        assert_eq!(client.create_from(copy, absent, 0, b"x"), ResultCode::NoObj);
        let whole = vec![7; OBJECT_LEN];
        assert_eq!(
            client.create_from(copy, absent, 0, &whole),
            ResultCode::Success
        );
        assert_eq!(client.create(oid, 0, b""), ResultCode::Success);
        assert!(
            client
                .bytes(oid, 0, OBJECT_LEN)
                .iter()
                .all(|&byte| byte == 0)
        );
        assert_eq!(client.write(oid, 5, b""), ResultCode::Success);
    });
}

#[test]
fn read_returns_exactly_the_requested_length() {
    for_each_store(|client| {
        let vid = client.new_vdi("demo");
        let oid = data_oid(vid, 0);
        assert_eq!(client.create(oid, 4095, b"ab"), ResultCode::Success);
        for (offset, want) in [
            (0u32, 0usize),
            (4095, 1),
            (4094, 4),
            (0, OBJECT_LEN),
            (4_194_303, 1),
        ] {
            let response = client.read(oid, offset, want);
            assert_eq!(response.payload.len(), want);
            assert!(response.header.tail[4..].iter().all(|&byte| byte == 0));
        }
        assert_eq!(client.bytes(oid, 4094, 4), b"\0ab\0");
    });
}

#[test]
fn delete_erases_inode_and_frees_orphans() {
    for_each_store(|client| {
        let vid = client.new_vdi("demo");
        client.first_write(vid, 3, b"left");
        assert_eq!(
            client.create(data_oid(vid, 4), 0, b"never indexed"),
            ResultCode::Success
        );
        let before = client.header_of(vid);
        assert_eq!(client.vdi_request(Opcode::DelVdi, "demo", "", 0).vid(), vid);
        let after = client.header_of(vid);
        assert_eq!((after.name(), after.vdi_size.get()), (None, 0));
        assert_eq!(after.create_time, before.create_time);
        assert_eq!(after.vdi_id, before.vdi_id);
        let rest = client.bytes(Oid::inode(vid), 4664, INODE_LEN - 4664);
        assert!(rest.iter().all(|&byte| byte == 0));
        assert!(!client.exists(data_oid(vid, 3)));
        assert!(!client.exists(data_oid(vid, 4)));
        assert_eq!(
            client
                .vdi_request(Opcode::GetVdiInfo, "demo", "", 0)
                .result(),
            ResultCode::NoVdi
        );
        assert_eq!(
            client.vdi_request(Opcode::DelVdi, "demo", "", 0).result(),
            ResultCode::NoVdi
        );
        assert_eq!(client.create(data_oid(vid, 0), 0, b"x"), ResultCode::NoVdi);
        assert_eq!(client.set_slot(vid, 0, Some(vid)), ResultCode::NoVdi);
    });
}

#[test]
fn hypervolume_starts_empty_and_delete_frees_its_objects() {
    for_each_store(|client| {
        // A new hypervolume has an empty root: magic, version and depth, no entries.
        let request = VdiRequest {
            vdi_size: (16u64 << 40).into(),
            store_policy: 1,
            ..VdiRequest::default()
        };
        let vid = client.create_vdi("hyper", request).vid();
        assert_eq!(
            client.bytes(Oid::inode(vid), 4664, 8),
            b"\x74\x62\x01\0\0\0\0\0"
        );
        // A slot past the end of a flat index.
        let far = data_oid(vid, 3_000_000);
        assert_eq!(client.create(far, 0, b"x"), ResultCode::Success);
        let mut root = b"\x74\x62\x01\0\x01\0\0\0".to_vec();
        root.extend_from_slice(&3_000_000u32.to_le_bytes());
        root.extend_from_slice(&vid.get().to_le_bytes());
        assert_eq!(
            client.write(Oid::inode(vid), 4664, &root),
            ResultCode::Success
        );
        // A snapshot of it is not supported.
        assert_eq!(
            client
                .create_vdi(
                    "hyper",
                    VdiRequest {
                        store_policy: 1,
                        ..based_on(vid, 1)
                    }
                )
                .result(),
            ResultCode::NoSupport
        );
        // A discard clears the slot and removes the object.
        assert_eq!(client.discard(far), ResultCode::Success);
        assert!(!client.exists(far));
        assert_eq!(client.bytes(Oid::inode(vid), 4664 + 12, 4), [0; 4]);
        // The deletion of the VDI removes data objects and tree nodes.
        assert_eq!(client.create(far, 0, b"x"), ResultCode::Success);
        assert_eq!(
            client.create(Oid::btree_node(vid, 0), 0, b"node"),
            ResultCode::Success
        );
        assert_eq!(
            client.vdi_request(Opcode::DelVdi, "hyper", "", 0).vid(),
            vid
        );
        assert!(!client.exists(far));
        assert!(!client.exists(Oid::btree_node(vid, 0)));
    });
}

#[test]
fn discard_clears_entry_and_refuses_snapshots() {
    for_each_store(|client| {
        let old = client.new_vdi("demo");
        client.first_write(old, 0, b"kept");
        client.first_write(old, 1, b"gone");
        assert_eq!(client.discard(data_oid(old, 1)), ResultCode::Success);
        assert_eq!(client.discard(data_oid(old, 1)), ResultCode::Success);
        assert_eq!(client.slot(old, 1), None);
        assert!(!client.exists(data_oid(old, 1)));
        let new = client.snapshot("demo", old, "one");
        assert_eq!(client.discard(data_oid(old, 0)), ResultCode::ReadOnly);
        assert_eq!(client.discard(data_oid(new, 0)), ResultCode::Success);
        assert_eq!(client.slot(new, 0), None);
        assert_eq!(client.bytes(data_oid(old, 0), 0, 4), b"kept");
        assert_eq!(
            client.discard(data_oid(new, 1 << 20)),
            ResultCode::InvalidParms
        );
        let unknown = data_oid(Vid::new(0x999).unwrap(), 0);
        assert_eq!(client.discard(unknown), ResultCode::NoObj);
    });
}

#[test]
fn cluster_status_is_a_result_with_one_epoch() {
    let stat = |client: &mut Client, nodes: u32, want: usize| {
        let body = RequestBody::Cluster(ClusterRequest {
            nodes_nr: nodes.into(),
            ..ClusterRequest::default()
        });
        client.request(Opcode::StatCluster, want, body)
    };
    // Before the format: a status and no epoch.
    let sheep = Sheep::start(None, |config| config.format_if_new = false);
    let client = &mut sheep.connect();
    assert_eq!(stat(client, 0, 48).result(), ResultCode::WaitForFormat);
    assert_eq!(
        client.create_vdi("demo", sized()).result(),
        ResultCode::WaitForFormat
    );
    let nodes = client.request(Opcode::GetNodeList, NODE_LIST_LEN, RequestBody::NONE);
    assert_eq!((nodes.header.epoch.get(), nodes.payload.len()), (0, 80));
    let info = client.request(Opcode::ClusterInfo, CLUSTER_INFO_LEN, RequestBody::NONE);
    assert_eq!(
        info.payload[16], 4,
        "dog compares this flag before it formats"
    );
    // The format starts epoch 1.
    let auto = ClusterFlags::AUTO_VNODES;
    assert_eq!(
        client.format(auto | ClusterFlags::RECYCLE_VID, 1),
        ResultCode::NoSupport
    );
    assert_eq!(client.format(auto, 1), ResultCode::Success);
    let response = stat(client, 1, 4096);
    assert_eq!(
        (response.result(), response.header.epoch.get()),
        (ResultCode::Success, 1)
    );
    let epochs = parse_epoch_log(&response.payload, 1).unwrap();
    let [(epoch, [node])] = epochs[..] else {
        panic!("{epochs:?}");
    };
    assert_eq!(epoch.ctime.get() >> 32, 1_700_000_000);
    assert_eq!(node.address(), sheep.address());
    // A response without room for the epochs has only the header.
    assert_eq!(stat(client, 0, 48).payload.len(), 48);
    assert_eq!(stat(client, u32::MAX, 48).payload.len(), 0);
}

#[test]
fn node_list_never_advertises_wildcard_address() {
    let sheep = Sheep::start(None, |config| config.listen = "0.0.0.0:0".parse().unwrap());
    let address = (std::net::Ipv4Addr::LOCALHOST, sheep.address().port()).into();
    let client = &mut Client::connect(address);
    let response = client.request(Opcode::GetNodeList, NODE_LIST_LEN, RequestBody::NONE);
    let nodes = sheep_proto::node::NodeRecord::parse_list(&response.payload).unwrap();
    assert_eq!(nodes[0].address(), address);
}

#[test]
fn invalid_parameters_are_refused() {
    for_each_store(|client| {
        let invalid = ResultCode::InvalidParms;
        // Redundancy, object size, size and index type of a new VDI.
        let refused = [
            VdiRequest {
                copies: 2,
                copy_policy: 0x20,
                ..sized()
            },
            VdiRequest {
                copies: 32,
                ..sized()
            },
            VdiRequest {
                block_size_shift: 19,
                ..sized()
            },
            VdiRequest {
                block_size_shift: 32,
                ..sized()
            },
            VdiRequest {
                vdi_size: ((4u64 << 40) + 1).into(),
                ..sized()
            },
            VdiRequest {
                store_policy: 2,
                ..sized()
            },
        ];
        for request in refused {
            assert_eq!(
                client.create_vdi("demo", request).result(),
                invalid,
                "{request:?}"
            );
        }
        // Names: empty, or in a field of the wrong length.
        assert_eq!(client.create_vdi("", sized()).result(), invalid);
        let body = RequestBody::Vdi(sized());
        for name in [vec![b'x'; 256], vec![0; 255], vec![0; 257], vec![]] {
            let response = client.write_request(Opcode::NewVdi, RequestFlags::empty(), body, &name);
            assert_eq!(response.result(), invalid);
        }
        // Ranges past the end of an object, and objects past the end of the index.
        let vid = client.new_vdi("demo");
        let oid = data_oid(vid, 0);
        assert_eq!(client.create(oid, 4_194_303, b"ab"), invalid);
        assert_eq!(client.create(oid, 0, b"x"), ResultCode::Success);
        assert_eq!(client.write(oid, u32::MAX, b"x"), invalid);
        assert_eq!(client.read(oid, 4_194_303, 2).result(), invalid);
        assert_eq!(client.create(data_oid(vid, 1 << 20), 0, b"x"), invalid);
        // A slot with an invalid VID, and operations that no inode supports.
        assert_eq!(client.write(Oid::inode(vid), 4664, &[0xff; 4]), invalid);
        assert_eq!(client.create(Oid::inode(vid), 0, b"x"), invalid);
        assert_eq!(
            client
                .request(Opcode::RemoveObj, 0, object(Oid::inode(vid), 0))
                .result(),
            invalid
        );
        assert_eq!(
            client
                .read(Oid::from_raw(0xffff_0001_0000_0000), 0, 1)
                .result(),
            invalid
        );
        assert_eq!(
            client.request(Opcode::WriteObj, 8, object(oid, 0)).result(),
            invalid
        );
        // A clone of a head, and a snapshot with another object size.
        assert_eq!(client.clone_of_head(vid), invalid);
        let shifted = VdiRequest {
            block_size_shift: 23,
            ..based_on(vid, 1)
        };
        assert_eq!(client.create_vdi("demo", shifted).result(), invalid);
    });
}

impl Client {
    fn clone_of_head(&mut self, vid: Vid) -> ResultCode {
        self.create_vdi("copy", based_on(vid, 0)).result()
    }
}

#[test]
fn snapshot_loses_no_acknowledged_index_update() {
    const WRITERS: u32 = 4;
    const SNAP_CTIME: u32 = 520;
    for (_store, sheep) in Sheep::for_each_store() {
        let vid = sheep.connect().new_vdi("demo");
        // Writers add objects until the head is frozen. An update counts if it was
        // acknowledged before the snapshot.
        let written = AtomicU32::new(0);
        let acknowledged = thread::scope(|scope| {
            let writers: Vec<_> = (0..WRITERS)
                .map(|writer| {
                    let (mut client, written) = (sheep.connect(), &written);
                    scope.spawn(move || {
                        let mut acknowledged = Vec::new();
                        for index in (writer..).step_by(WRITERS as usize) {
                            let created = client.create(data_oid(vid, index), 0, b"x");
                            if created == ResultCode::ReadOnly {
                                return acknowledged;
                            }
                            assert_eq!(created, ResultCode::Success);
                            let set = client.set_slot(vid, index, Some(vid));
                            assert_eq!(set, ResultCode::Success);
                            written.fetch_add(1, Ordering::Relaxed);
                            if client.bytes(Oid::inode(vid), SNAP_CTIME, 8) == [0; 8] {
                                acknowledged.push(index);
                            }
                        }
                        unreachable!("the snapshot ends it");
                    })
                })
                .collect();
            // The snapshot is taken under load.
            while written.load(Ordering::Relaxed) < 100 {
                thread::yield_now();
            }
            sheep.connect().snapshot("demo", vid, "one");
            let writers = writers.into_iter();
            writers
                .flat_map(|writer| writer.join().unwrap())
                .collect::<Vec<_>>()
        });
        // Both the new head and the snapshot have every slot.
        assert!(acknowledged.len() >= 90);
        let mut client = sheep.connect();
        let head = client.vdi_request(Opcode::GetVdiInfo, "demo", "", 0).vid();
        for index in acknowledged {
            assert_eq!(client.slot(head, index), Some(vid));
            assert_eq!(client.slot(vid, index), Some(vid));
        }
    }
}
