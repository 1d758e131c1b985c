//! Payloads as the typed values they stand for, and back.

use sheep_proto::attribute::Attribute;
use sheep_proto::btree::{self, Node, NodeHeader};
use sheep_proto::cluster::{ClusterInfoHeader, EpochRecordHeader, parse_epoch_log};
use sheep_proto::name::unpad;
use sheep_proto::node::NodeRecord;
use sheep_proto::statistics::{MdInfo, RecoveryState, RecoveryThrottle, RequestCounters};
use sheep_proto::vdi_state::{LockState, VdiState};
use sheep_proto::vid_bitmap::VidBitmap;
use sheep_proto::{
    InodeHeader, ObjectIndex, ObjectKind, Oid, Opcode, Redundancy, RequestBody, RequestHeader,
    ResponseHeader, ResultCode, SnapshotTag, VdiName, Vid,
};
use zerocopy::{FromBytes as _, IntoBytes as _};

/// The format of a payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    Nothing,
    Name,
    NameAndTag,
    BadLengthName,
    StoreName,
    StoreList,
    Attribute,
    InodeHeader,
    Tag,
    BtreeCounter,
    Slots,
    BtreeNode,
    Nodes,
    ClusterInfo,
    Epochs {
        nodes_nr: u32,
    },
    VidBitmap,
    VdiStates,
    Disks,
    Counters,
    Recovery,
    Throttle,
    SignedNumber,
    /// Volume data, ledgers, reference counts, and parts of structures.
    Bytes,
    /// Unspecified bytes in the payload of a refusal.
    Leftovers,
}

/// The format of the payload of `request`.
pub(crate) fn of_request(request: &RequestHeader, bytes: &[u8]) -> Kind {
    let opcode = Opcode::try_from(request.opcode).unwrap();
    match (opcode, bytes.len()) {
        (_, 0) => Kind::Nothing,
        (Opcode::NewVdi, 256) => Kind::Name,
        (Opcode::LockVdi | Opcode::GetVdiInfo | Opcode::DelVdi, 256) => Kind::Name,
        (Opcode::LockVdi | Opcode::GetVdiInfo | Opcode::DelVdi, 512) => Kind::NameAndTag,
        (Opcode::NewVdi | Opcode::GetVdiInfo, _) => Kind::BadLengthName,
        (Opcode::GetVdiAttr, _) => Kind::Attribute,
        (Opcode::MakeFs, _) => Kind::StoreName,
        (Opcode::SetLogLevel | Opcode::SetVnodes, 4) => Kind::SignedNumber,
        (Opcode::CreateAndWriteObj | Opcode::WriteObj, _) => of_object(request, bytes),
        _ => panic!("{opcode} carries a payload"),
    }
}

/// The format of the payload of the response to `request`.
pub(crate) fn of_response(
    request: &RequestHeader,
    response: &ResponseHeader,
    bytes: &[u8],
) -> Kind {
    let opcode = Opcode::try_from(response.opcode).unwrap();
    match opcode {
        _ if bytes.is_empty() => Kind::Nothing,
        Opcode::StatCluster => {
            let RequestBody::Cluster(body) = request.body() else {
                panic!("STAT_CLUSTER has cluster parameters");
            };
            Kind::Epochs {
                nodes_nr: body.nodes_nr.get(),
            }
        }
        _ if response.result() != ResultCode::Success => Kind::Leftovers,
        Opcode::ReadObj => of_object(request, bytes),
        Opcode::GetNodeList => Kind::Nodes,
        Opcode::ClusterInfo => Kind::ClusterInfo,
        Opcode::ReadVdis | Opcode::ReadDelVdis => Kind::VidBitmap,
        Opcode::GetVdiCopies => Kind::VdiStates,
        Opcode::GetStoreList => Kind::StoreList,
        Opcode::MdInfo => Kind::Disks,
        Opcode::Stat => Kind::Counters,
        Opcode::StatRecovery => Kind::Recovery,
        Opcode::GetRecovery => Kind::Throttle,
        Opcode::GetLogLevel | Opcode::GetVnodes => Kind::SignedNumber,
        _ => panic!("{opcode} answers with a payload"),
    }
}

fn of_object(request: &RequestHeader, bytes: &[u8]) -> Kind {
    let RequestBody::Object(body) = request.body() else {
        panic!("object I/O has object parameters");
    };
    let is_node = bytes.starts_with(&btree::MAGIC.to_le_bytes());
    match (
        Oid::from_raw(body.oid.get()).kind().unwrap(),
        body.offset.get(),
        bytes.len(),
    ) {
        (ObjectKind::Inode, 0, 4664..) => Kind::InodeHeader,
        (ObjectKind::Inode, 256, 256) => Kind::Tag,
        (ObjectKind::Inode, 568, 4) => Kind::BtreeCounter,
        (ObjectKind::Inode, 4664, _) | (ObjectKind::BtreeNode, 0, _) if is_node => Kind::BtreeNode,
        (ObjectKind::Inode, 4664..4_198_968, _) => Kind::Slots,
        (ObjectKind::Attribute, 0, _) => Kind::Attribute,
        _ => Kind::Bytes,
    }
}

/// Decodes a payload and encodes it again, field by field where there are fields.
pub(crate) fn encode_again(kind: Kind, bytes: &[u8]) -> Vec<u8> {
    // One arm for each format; payloads without fields are returned as they are.
    match kind {
        Kind::Nothing | Kind::Bytes | Kind::BadLengthName | Kind::Leftovers => bytes.to_vec(),
        Kind::Name => name(bytes).to_field().to_vec(),
        Kind::NameAndTag => {
            let (name_field, tag_field) = bytes.split_at(256);
            [name(name_field).to_field(), tag(tag_field).to_field()].concat()
        }
        Kind::StoreName => [unpad(bytes), &[0]].concat(),
        Kind::StoreList => [unpad(bytes), &[0]].concat(),
        Kind::Attribute => attribute(bytes),
        Kind::InodeHeader => inode(bytes),
        Kind::Tag => tag(bytes).to_field().to_vec(),
        Kind::BtreeCounter => number(bytes).to_le_bytes().to_vec(),
        Kind::Slots => slots(bytes),
        Kind::BtreeNode => btree_node(bytes),
        Kind::Nodes => nodes(NodeRecord::parse_list(bytes).unwrap()),
        Kind::ClusterInfo => {
            let (header, used) = ClusterInfoHeader::parse(bytes).unwrap();
            assert_eq!(usize::from(header.nr_nodes.get()), used.len());
            let mut again = [header.as_bytes(), &nodes(used)].concat();
            again.extend_from_slice(&bytes[again.len()..]);
            again
        }
        Kind::Epochs { nodes_nr } => epochs(bytes, nodes_nr),
        Kind::VidBitmap => {
            let mut again = VidBitmap::empty();
            let bitmap = VidBitmap::parse(bytes).unwrap();
            bitmap.iter().for_each(|vid| again.insert(vid));
            again.as_bytes().to_vec()
        }
        Kind::VdiStates => {
            let states = VdiState::parse_list(bytes).unwrap();
            for state in &states {
                let redundancy = Redundancy::from_wire(state.nr_copies, state.copy_policy);
                assert_eq!(redundancy.nr_copies(), state.nr_copies);
                assert!(!matches!(state.lock_state(), LockState::Other(_)));
            }
            states.as_bytes().to_vec()
        }
        Kind::Disks => MdInfo::parse(bytes).unwrap().as_bytes().to_vec(),
        Kind::Counters => RequestCounters::parse(bytes).unwrap().as_bytes().to_vec(),
        Kind::Recovery => RecoveryState::parse(bytes).unwrap().as_bytes().to_vec(),
        Kind::Throttle => RecoveryThrottle::read_from_bytes(bytes)
            .unwrap()
            .as_bytes()
            .to_vec(),
        Kind::SignedNumber => i32::from_le_bytes(bytes.try_into().unwrap())
            .to_le_bytes()
            .to_vec(),
    }
}

fn name(field: &[u8]) -> VdiName {
    VdiName::from_field(field.try_into().unwrap()).expect("a name")
}

fn tag(field: &[u8]) -> SnapshotTag {
    SnapshotTag::from_field(field.try_into().unwrap())
}

fn number(bytes: &[u8]) -> u32 {
    u32::from_le_bytes(bytes.try_into().unwrap())
}

fn attribute(bytes: &[u8]) -> Vec<u8> {
    let attribute = Attribute::parse(bytes).unwrap();
    let name = name(&attribute.name);
    let mut again = match attribute.key() {
        // Only the request made by hand in 08 has none; a client cannot make it.
        b"" => {
            assert!(Attribute::new(&name, b"", b"").is_err());
            let mut keyless = Attribute::new(&name, b"-", attribute.value()).unwrap();
            keyless.key = [0; 256];
            keyless
        }
        key => Attribute::new(&name, key, attribute.value()).unwrap(),
    };
    again.tag = SnapshotTag::from_field(&attribute.tag).to_field();
    again.ctime = attribute.ctime;
    again.snap_id = attribute.snap_id;
    again.as_bytes().to_vec()
}

fn inode(bytes: &[u8]) -> Vec<u8> {
    let (header, rest) = InodeHeader::ref_from_prefix(bytes).unwrap();
    let (index, reference_counts) = rest.split_at(rest.len().min(4_194_304));
    let index = match index {
        node if header.is_hypervolume() && header.name().is_some() && !node.is_empty() => {
            btree_node(node)
        }
        flat => slots(flat),
    };
    let mut again = InodeHeader::zeroed();
    again.name = header.name().map_or([0; 256], |name| name.to_field());
    again.tag = header.tag().to_field();
    again.create_time = header.create_time;
    again.snap_ctime = header.snap_ctime;
    again.vdi_size = header.vdi_size;
    again.copy_policy = header.redundancy().copy_policy();
    again.store_policy = u8::from(header.is_hypervolume());
    again.nr_copies = header.redundancy().nr_copies();
    again.block_size_shift = header
        .object_shift()
        .expect("a shift that a cluster accepts");
    again.snap_id = header.snap_id;
    again.vdi_id = header.vid().expect("an own VID").get().into();
    again.parent_vdi_id = header.parent().map_or(0, Vid::get).into();
    again.btree_counter = header.btree_counter;
    [again.as_bytes(), &index, reference_counts].concat()
}

fn slots(bytes: &[u8]) -> Vec<u8> {
    bytes
        .chunks_exact(4)
        .map(|slot| Vid::new(number(slot)))
        .flat_map(|slot| slot.map_or(0, Vid::get).to_le_bytes())
        .collect()
}

/// A node, or only its header as `vdi list` reads it with the inode.
fn btree_node(bytes: &[u8]) -> Vec<u8> {
    if bytes.len() == size_of::<NodeHeader>() {
        let header = NodeHeader::read_from_bytes(bytes).unwrap();
        assert_eq!(header.magic.get(), btree::MAGIC);
        return header.as_bytes().to_vec();
    }
    let (depth, count, mut again) = match Node::parse(bytes).unwrap() {
        Node::Leaf(leaf) => {
            let slots: Option<Vec<_>> = leaf
                .iter()
                .map(|entry| Some((ObjectIndex(entry.index.get()), Vid::new(entry.vid.get())?)))
                .collect();
            // A truncated capture shows the entries after the cut as holes.
            let again = slots.map_or(bytes[..8 + 8 * leaf.len()].to_vec(), |slots| {
                btree::encode_leaf(slots.into_iter())
            });
            (1, leaf.len(), again)
        }
        Node::Root(root) => (2, root.len(), [&bytes[..8], root.as_bytes()].concat()),
    };
    let header = NodeHeader {
        magic: btree::MAGIC.into(),
        depth: depth.into(),
        entries: u32::try_from(count).unwrap().into(),
    };
    again[..8].copy_from_slice(header.as_bytes());
    // The bytes after the last entry are garbage.
    again.extend_from_slice(&bytes[again.len()..]);
    again
}

fn nodes(records: &[NodeRecord]) -> Vec<u8> {
    records
        .iter()
        .flat_map(|node| {
            let mut again = NodeRecord::new(
                node.address(),
                node.nr_vnodes.get(),
                node.zone.get(),
                node.space.get(),
            );
            // The server's own pointers.
            again.links = node.links;
            again.as_bytes().to_vec()
        })
        .collect()
}

fn epochs(bytes: &[u8], nodes_nr: u32) -> Vec<u8> {
    let record_len = size_of::<EpochRecordHeader>() + 80 * usize::try_from(nodes_nr).unwrap();
    let mut again = Vec::new();
    for (record, (header, used)) in parse_epoch_log(bytes, nodes_nr).unwrap().iter().enumerate() {
        again.extend_from_slice(header.as_bytes());
        again.extend(nodes(used));
        // Slots that are not in use have old bytes.
        again.extend_from_slice(&bytes[again.len()..(record + 1) * record_len]);
    }
    again
}
