//! Erasure-coded volumes in a cluster where one node learns of new VDIs late.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use sheep_client::{Client, ClientConfig, NewVdi, VdiSelector};
use sheep_embedded::{Config, Fault, Server, StoreKind};
use sheep_proto::{ObjectKind, Oid, Opcode, Redundancy, RequestBody, RequestHeader, ResultCode};
use sheepfs_vfs::BlockDevice as _;

use crate::support::{open, pattern, tag, unique_name};

const REDUNDANCY: Redundancy = Redundancy::Erasure { data: 2, parity: 1 };

/// Two nodes; the second one can be late.
struct Cluster {
    gateway: Server,
    other: Server,
    client: Client,
    /// Questions after which the second node knows the newest VDI.
    late: Arc<AtomicUsize>,
    /// Questions to the second node.
    asked: Arc<AtomicUsize>,
    /// Writes of data while the second node was late.
    early: Arc<AtomicUsize>,
}

impl Cluster {
    async fn start() -> Self {
        let gateway = Server::start(Config::new(StoreKind::Memory)).await.unwrap();
        let other = gateway.add_node("127.0.0.1:0".parse().unwrap());
        let other = other.await.unwrap();
        let late: Arc<AtomicUsize> = Arc::default();
        let asked: Arc<AtomicUsize> = Arc::default();
        let early: Arc<AtomicUsize> = Arc::default();
        let (left, questions) = (Arc::clone(&late), Arc::clone(&asked));
        other.inject(move |request| {
            if request.opcode != Opcode::GetVdiInfo as u8 {
                return None;
            }
            questions.fetch_add(1, Ordering::SeqCst);
            let less = left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| {
                left.checked_sub(1)
            });
            less.is_ok().then_some(Fault::Refuse(ResultCode::NoVdi))
        });
        let (left, writes) = (Arc::clone(&late), Arc::clone(&early));
        gateway.inject(move |request| {
            if is_data_write(request) && left.load(Ordering::SeqCst) > 0 {
                writes.fetch_add(1, Ordering::SeqCst);
            }
            None
        });
        let address = gateway.local_address().into();
        let client = Client::connect(ClientConfig::new(address)).await.unwrap();
        Self {
            gateway,
            other,
            client,
            late,
            asked,
            early,
        }
    }

    async fn create(&self, redundancy: Redundancy) -> sheep_proto::VdiName {
        let name = unique_name("late");
        let new = NewVdi::new(name.clone(), 8 << 20).with_redundancy(redundancy);
        self.client.cluster().create_vdi(&new).await.unwrap();
        name
    }
}

fn is_data_write(request: &RequestHeader) -> bool {
    let RequestBody::Object(body) = request.body() else {
        return false;
    };
    let writes = [Opcode::WriteObj as u8, Opcode::CreateAndWriteObj as u8];
    writes.contains(&request.opcode)
        && Oid::from_raw(body.oid.get()).kind() == Some(ObjectKind::Data)
}

#[tokio::test(flavor = "multi_thread")]
async fn erasure_code_write_waits_for_late_node() {
    let cluster = Cluster::start().await;
    let name = cluster.create(REDUNDANCY).await;
    cluster.late.store(3, Ordering::SeqCst);
    let volume = open(&cluster.client, &name).await;
    volume.write_at(0, pattern(1, 4096)).await.unwrap();
    assert_eq!(cluster.early.load(Ordering::SeqCst), 0);
    assert_eq!(cluster.late.load(Ordering::SeqCst), 0);
    volume.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn erasure_code_new_head_waits_for_late_node() {
    let cluster = Cluster::start().await;
    let name = cluster.create(REDUNDANCY).await;
    let volume = open(&cluster.client, &name).await;
    volume.write_at(0, pattern(1, 4096)).await.unwrap();
    let head = VdiSelector::working(name);
    cluster.client.vdi(&head).snapshot(&tag("s")).await.unwrap();
    cluster.late.store(3, Ordering::SeqCst);
    volume.write_at(0, pattern(2, 4096)).await.unwrap();
    assert_eq!(cluster.late.load(Ordering::SeqCst), 0);
    assert_eq!(volume.read_at(0, 4096).await.unwrap(), pattern(2, 4096));
    volume.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn erasure_code_write_ignores_unreachable_node() {
    let cluster = Cluster::start().await;
    let name = cluster.create(REDUNDANCY).await;
    // It stays in the list of nodes, and every connection to it breaks.
    cluster.other.inject(|_| Some(Fault::CutRequest));
    let volume = open(&cluster.client, &name).await;
    volume.write_at(0, pattern(1, 4096)).await.unwrap();
    volume.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn replicated_volume_asks_only_the_gateway() {
    let cluster = Cluster::start().await;
    let name = cluster.create(Redundancy::Replicated(2)).await;
    let volume = open(&cluster.client, &name).await;
    volume.write_at(0, pattern(1, 4096)).await.unwrap();
    volume.close().await.unwrap();
    assert_eq!(cluster.asked.load(Ordering::SeqCst), 0);
    drop(cluster.gateway);
}
