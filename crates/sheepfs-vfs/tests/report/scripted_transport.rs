//! A transport with scripted responses: captured ones, or ones of a test.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::BytesMut;
use serde_json::Value;
use sheep_client::node::StoreSpace;
use sheep_client::unstable::{BoxFuture, Completion, Request, Response, Transport};
use sheep_client::{Client, ClientError, GatewayAddress, VdiInfo};
use sheep_proto::cluster::EpochRecordHeader;
use sheep_proto::header::{ClusterDefaultResponse, NodeResponse};
use sheep_proto::node::NodeRecord;
use sheep_proto::{
    Generation, Opcode, RequestBody, ResponseBody, ResponseHeader, ResultCode, VdiName, Vid,
};
use zerocopy::{FromBytes as _, IntoBytes as _};

const NODE_LEN: usize = 80;
const EPOCH_HEADER_LEN: usize = 48;
const BITMAP_LEN: usize = 2 << 20;
const INODE_HEADER_LEN: usize = 4664;

/// An epoch: its header and its nodes, as they travel.
#[derive(Debug)]
struct Epoch {
    header: Vec<u8>,
    nodes: Vec<u8>,
}

/// Answers questions about a cluster.
#[derive(Debug)]
pub(crate) struct Sheep {
    pub(crate) generation: Generation,
    pub(crate) status: ResultCode,
    /// Node records, one after the other.
    pub(crate) nodes: Vec<u8>,
    /// The stores of the nodes; a node without an entry does not respond.
    pub(crate) stores: HashMap<SocketAddr, Result<StoreSpace, ResultCode>>,
    /// Objects by id; those that are not here give `missing`.
    pub(crate) objects: HashMap<u64, Vec<u8>>,
    pub(crate) missing: ResultCode,
    used: Vec<u8>,
    deleted: Vec<u8>,
    epochs: Vec<Epoch>,
    in_flight: Arc<AtomicUsize>,
    most_in_flight: Arc<AtomicUsize>,
}

impl Sheep {
    /// The only sheep of a running cluster without VDIs or epochs.
    pub(crate) fn new() -> Self {
        Self {
            generation: Generation::V1_0,
            status: ResultCode::Success,
            nodes: node("127.0.0.1:7000"),
            stores: HashMap::new(),
            objects: HashMap::new(),
            missing: ResultCode::NoObj,
            used: vec![0; BITMAP_LEN],
            deleted: vec![0; BITMAP_LEN],
            epochs: Vec::new(),
            in_flight: Arc::default(),
            most_in_flight: Arc::default(),
        }
    }

    /// A sheep in the state that a capture's exchanges `first` to `last` show
    /// (sequence numbers of frames); `path` is relative to this package.
    pub(crate) fn captured(path: &str, first: u64, last: u64) -> Self {
        Self::captured_of(Generation::V1_0, path, first, last)
    }

    /// The same, of an older release.
    pub(crate) fn captured_of(generation: Generation, path: &str, first: u64, last: u64) -> Self {
        let mut sheep = Self::new();
        sheep.generation = generation;
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
        let text = std::fs::read_to_string(path).unwrap();
        let mut requests = HashMap::new();
        for line in text.lines() {
            let frame: Value = serde_json::from_str(line).unwrap();
            let Some(seq) = frame["seq"].as_u64() else {
                continue;
            };
            let header = unhex(frame["hdr"].as_str().unwrap());
            let key = (frame["conn"].as_u64(), u32_at(&header, 8));
            match frame["dir"].as_str() {
                Some("req") => {
                    requests.insert(key, header);
                }
                _ if (first..=last).contains(&seq) => {
                    sheep.learn(&requests[&key], &header, payload(&frame));
                }
                _ => {}
            }
        }
        sheep
    }

    fn learn(&mut self, request: &[u8], response: &[u8], payload: Vec<u8>) {
        let result = ResultCode::from(u32_at(response, 16));
        match Opcode::try_from(request[1]).unwrap() {
            Opcode::GetNodeList => self.nodes = payload,
            Opcode::ReadVdis => self.used = payload,
            Opcode::ReadDelVdis => self.deleted = payload,
            Opcode::StatCluster if result != ResultCode::BufferSmall => {
                self.status = result;
                let slots = u32_at(request, 40) as usize;
                // Without slots it is only asked for the number of epochs.
                let is_whole = slots > 0 || !self.generation.sizes_epoch_records();
                if is_whole && !payload.is_empty() || self.epochs.is_empty() {
                    self.epochs = epochs(self.generation, &payload, slots);
                }
            }
            Opcode::ReadObj if result == ResultCode::Success => {
                let oid = u64::from_le_bytes(request[16..24].try_into().unwrap());
                let offset = u32_at(request, 40) as usize;
                let object = self.objects.entry(oid).or_default();
                object.resize(object.len().max(offset + payload.len()), 0);
                object[offset..offset + payload.len()].copy_from_slice(&payload);
            }
            _ => {}
        }
    }

    /// Adds a VDI without objects.
    pub(crate) fn add_vdi(&mut self, vid: u32, name: &[u8], size: u64, shift: u8) {
        let mut inode = vec![0; INODE_HEADER_LEN];
        inode[..name.len()].copy_from_slice(name);
        inode[536..544].copy_from_slice(&size.to_le_bytes());
        inode[554..556].copy_from_slice(&[1, shift]);
        inode[556..560].copy_from_slice(&1u32.to_le_bytes());
        inode[560..564].copy_from_slice(&vid.to_le_bytes());
        let slots = usize::try_from(size.div_ceil(1 << shift)).unwrap();
        inode.resize(INODE_HEADER_LEN + 4 * slots, 0);
        self.objects.insert(inode_oid(vid), inode);
        self.mark_used(vid);
    }

    /// Sets a bit in the map of VIDs in use.
    pub(crate) fn mark_used(&mut self, vid: u32) {
        self.used[vid as usize / 8] |= 1 << (vid % 8);
    }

    /// The most requests that were in flight at the same time.
    pub(crate) fn most_in_flight(&self) -> Arc<AtomicUsize> {
        Arc::clone(&self.most_in_flight)
    }

    pub(crate) fn client(self) -> Client {
        Client::with_transport(Arc::new(self))
    }

    fn answer(&self, request: &Request) -> (ResponseBody, Vec<u8>) {
        let success = ResponseBody::result(ResultCode::Success);
        match (request.opcode(), request.header(Generation::V1_0).body()) {
            (Opcode::GetNodeList, _) => (success, self.nodes.clone()),
            (Opcode::ReadVdis, _) => (success, self.used.clone()),
            (Opcode::ReadDelVdis, _) => (success, self.deleted.clone()),
            (Opcode::GetClusterDefault, _) => {
                let body = ClusterDefaultResponse {
                    copies: 2,
                    block_size_shift: 22,
                    ..ClusterDefaultResponse::default()
                };
                (ResponseBody::ClusterDefault(body), Vec::new())
            }
            (Opcode::StatCluster, RequestBody::Cluster(body)) => {
                self.epoch_log(request.max_response_len(), body.nodes_nr.get() as usize)
            }
            (Opcode::ReadObj, RequestBody::Object(body)) => {
                let Some(object) = self.objects.get(&body.oid.get()) else {
                    return (ResponseBody::result(self.missing), Vec::new());
                };
                let (offset, len) = (
                    body.offset.get() as usize,
                    request.max_response_len() as usize,
                );
                // A capture has only the front of an object; the rest is zeros.
                let mut payload = object.get(offset..).unwrap_or_default().to_vec();
                payload.resize(len, 0);
                (success, payload)
            }
            (opcode, _) => panic!("{opcode} belongs to no report"),
        }
    }

    fn epoch_log(&self, want: u32, slots: usize) -> (ResponseBody, Vec<u8>) {
        if !self.generation.sizes_epoch_records() {
            return self.old_epoch_log(want);
        }
        let most = want as usize / (EPOCH_HEADER_LEN + slots * NODE_LEN);
        let mut payload = Vec::new();
        for epoch in self.epochs.iter().take(most) {
            let mut header = epoch.header.clone();
            if slots == 0 {
                header[20..24].fill(0);
            } else if epoch.nodes.len() > slots * NODE_LEN {
                return (ResponseBody::result(ResultCode::BufferSmall), Vec::new());
            }
            payload.extend(header);
            let end = payload.len() + slots * NODE_LEN;
            if slots > 0 {
                payload.extend(&epoch.nodes);
            }
            payload.resize(end, 0);
        }
        (ResponseBody::result(self.status), payload)
    }

    /// Records with all node slots, as many as fit.
    fn old_epoch_log(&self, want: u32) -> (ResponseBody, Vec<u8>) {
        let most = want as usize / self.generation.epoch_record_len(0);
        let mut payload = Vec::new();
        for epoch in self.epochs.iter().take(most) {
            let header = EpochRecordHeader::read_from_bytes(&epoch.header[..]).unwrap();
            let nodes = <[NodeRecord]>::ref_from_bytes(&epoch.nodes).unwrap();
            self.generation.push_epoch(&header, nodes, 0, &mut payload);
        }
        (ResponseBody::result(self.status), payload)
    }

    /// The epoch that response headers carry.
    fn epoch(&self) -> u32 {
        self.epochs
            .first()
            .map_or(0, |newest| u32_at(&newest.header, 16))
    }

    fn response(&self, request: &Request, body: ResponseBody, payload: Vec<u8>) -> Response {
        let len = u32::try_from(payload.len()).unwrap();
        Response {
            operation: request.operation(),
            header: ResponseHeader::answer(
                &request.header(Generation::V1_0),
                self.epoch(),
                len,
                body,
            ),
            payload: BytesMut::from(&payload[..]),
        }
    }
}

impl Transport for Sheep {
    /// Responds later, so that concurrent requests of a caller are counted.
    fn submit(&self, request: Request, done: Completion) {
        let (body, payload) = self.answer(&request);
        let response = self.response(&request, body, payload);
        let now = self.in_flight.fetch_add(1, Ordering::Relaxed) + 1;
        self.most_in_flight.fetch_max(now, Ordering::Relaxed);
        let in_flight = Arc::clone(&self.in_flight);
        tokio::spawn(async move {
            tokio::task::yield_now().await;
            in_flight.fetch_sub(1, Ordering::Relaxed);
            done(Ok(response));
        });
    }

    fn submit_to(&self, node: SocketAddr, request: Request, done: Completion) {
        assert_eq!(request.opcode(), Opcode::StatSheep);
        done(match self.stores.get(&node) {
            None => Err(ClientError::Connect {
                gateway: node.into(),
                source: std::io::ErrorKind::ConnectionRefused.into(),
            }),
            Some(Err(code)) => Ok(self.response(&request, ResponseBody::result(*code), Vec::new())),
            Some(Ok(space)) => {
                let body = NodeResponse {
                    store_size: space.total.into(),
                    store_free: space.free.into(),
                    ..NodeResponse::default()
                };
                Ok(self.response(&request, ResponseBody::Node(body), Vec::new()))
            }
        });
    }

    fn address(&self) -> GatewayAddress {
        address("127.0.0.1:7000").into()
    }

    fn generation(&self, _timeout: Duration) -> BoxFuture<'_, Result<Generation, ClientError>> {
        Box::pin(std::future::ready(Ok(self.generation)))
    }

    fn switch_gateway(&self, _address: GatewayAddress) -> BoxFuture<'_, Result<(), ClientError>> {
        panic!("no report moves a client")
    }
}

pub(crate) fn address(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

/// The record of a node with 128 vnodes in zone 1.
pub(crate) fn node(address: &str) -> Vec<u8> {
    let record = node_record(address, 128, 1);
    let mut bytes = vec![0; 24];
    bytes.extend(record.addr);
    bytes.extend(record.port.get().to_le_bytes());
    bytes.resize(64, 0);
    bytes.extend(record.nr_vnodes.get().to_le_bytes());
    bytes.extend([0; 2]);
    bytes.extend(record.zone.get().to_le_bytes());
    bytes.extend(record.space.get().to_le_bytes());
    bytes
}

pub(crate) fn node_record(text: &str, vnodes: u16, zone: u32) -> NodeRecord {
    NodeRecord::new(address(text), vnodes, zone, 0)
}

pub(crate) fn inode_oid(vid: u32) -> u64 {
    1 << 63 | u64::from(vid) << 32
}

/// A working VDI of one object.
pub(crate) fn vdi(vid: u32, name: &[u8]) -> VdiInfo {
    VdiInfo {
        vid: Vid::new(vid).unwrap(),
        name: VdiName::new(name).unwrap(),
        tag: sheep_proto::SnapshotTag::default(),
        snap_id: 1,
        size: 4 << 20,
        object_shift: 22,
        redundancy: sheep_proto::Redundancy::Replicated(1),
        hypervolume: false,
        create_time: 1_795_426_656 << 32 | 999_999_999,
        snap_ctime: 0,
        parent: None,
    }
}

/// The records of an epoch log with `slots` node slots in each.
fn epochs(generation: Generation, payload: &[u8], slots: usize) -> Vec<Epoch> {
    if !generation.sizes_epoch_records() {
        let log = generation.parse_epoch_log(payload, 0).unwrap();
        return log
            .into_iter()
            .map(|(header, nodes)| Epoch {
                header: header.as_bytes().to_vec(),
                nodes: nodes.as_bytes().to_vec(),
            })
            .collect();
    }
    payload
        .chunks_exact(EPOCH_HEADER_LEN + slots * NODE_LEN)
        .map(|record| {
            let (header, nodes) = record.split_at(EPOCH_HEADER_LEN);
            Epoch {
                header: header.to_vec(),
                nodes: nodes[..u32_at(header, 20) as usize * NODE_LEN].to_vec(),
            }
        })
        .collect()
}

fn payload(frame: &Value) -> Vec<u8> {
    let number = |value: &Value| usize::try_from(value.as_u64().unwrap()).unwrap();
    let mut bytes = vec![0; number(&frame["len"])];
    for piece in frame["seg"].as_array().into_iter().flatten() {
        let (offset, piece) = match piece.as_array().unwrap().as_slice() {
            [offset, literal] => (number(offset), unhex(literal.as_str().unwrap())),
            [offset, count, byte] => {
                let byte = unhex(byte.as_str().unwrap());
                (number(offset), byte.repeat(number(count)))
            }
            other => panic!("a piece of {} parts", other.len()),
        };
        bytes[offset..offset + piece.len()].copy_from_slice(&piece);
    }
    bytes
}

fn unhex(text: &str) -> Vec<u8> {
    (0..text.len())
        .step_by(2)
        .map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap())
        .collect()
}

fn u32_at(bytes: &[u8], offset: usize) -> u32 {
    u32::from_le_bytes(bytes[offset..offset + 4].try_into().unwrap())
}
