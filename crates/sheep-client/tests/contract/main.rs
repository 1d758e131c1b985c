//! The contract of a cluster, checked on `sheep-embedded` and, when
//! `SHEEPFS_TEST_SHEEP` names one as HOST:PORT, on a real cluster as well.
//!
//! Names are unique, so the tests can share a cluster with others and with
//! themselves. They leave their VDIs on a real cluster.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on says where")]

mod attributes;
mod cluster;
mod fault_transport;
mod index;
mod lifecycle;
mod objects;
mod tree;

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use sheep_client::{Client, ClientConfig, ClientError, NewVdi, VdiSelector};
use sheep_embedded::{Config, Server, StoreKind};
use sheep_proto::{ObjectIndex, Oid, ResultCode, SnapshotTag, VdiName, Vid};

const MIB: u64 = 1 << 20;

/// A cluster, and unique names on it.
struct Fixture {
    client: Client,
    prefix: String,
}

impl Fixture {
    async fn connect(config: ClientConfig) -> Self {
        static COUNTER: AtomicU32 = AtomicU32::new(0);
        let now = SystemTime::UNIX_EPOCH.elapsed().unwrap().as_micros();
        let number = COUNTER.fetch_add(1, Ordering::Relaxed);
        Self {
            client: Client::connect(config).await.unwrap(),
            prefix: format!("contract-{now:x}-{number}"),
        }
    }

    fn name(&self, of: &str) -> VdiName {
        VdiName::new(format!("{}-{of}", self.prefix)).unwrap()
    }

    /// A new VDI of `size` bytes.
    async fn volume(&self, of: &str, size: u64) -> (VdiName, Vid) {
        let name = self.name(of);
        let vid = self
            .client
            .cluster()
            .create_vdi(&NewVdi::new(name.clone(), size))
            .await
            .unwrap();
        (name, vid)
    }

    /// Makes data object `index` with `data` in front, and its slot.
    async fn write(&self, vid: Vid, index: u32, data: &'static [u8]) {
        let oid = Oid::data(vid, ObjectIndex(index));
        let data = Bytes::from_static(data);
        self.client
            .objects()
            .create(oid, 0, data, None)
            .await
            .unwrap();
        self.client
            .inode(vid)
            .write_slots(ObjectIndex(index), &[Some(vid)])
            .await
            .unwrap();
    }

    /// The first `len` bytes of data object `index` as `vid` sees it.
    async fn read(&self, vid: Vid, index: u32, len: u32) -> Bytes {
        let index = ObjectIndex(index);
        let owner = self.client.inode(vid).read_slots(index, 1).await.unwrap()[0];
        let oid = Oid::data(owner.expect("the object is there"), index);
        self.client.objects().read(oid, 0, len).await.unwrap()
    }
}

/// Runs `case` on an embedded sheep of its own, then on the real cluster if there is one.
async fn for_each_backend(case: impl AsyncFn(&Fixture)) {
    embedded(|_config| (), &case).await;
    match std::env::var("SHEEPFS_TEST_SHEEP") {
        Ok(address) => {
            let config = ClientConfig::new(address.parse().unwrap());
            let fixture = Fixture::connect(config).await;
            within(case(&fixture)).await;
        }
        Err(_unset) => eprintln!("SHEEPFS_TEST_SHEEP is not set: tested on embedded alone"),
    }
}

/// Runs `case` on an embedded sheep with its own settings.
async fn embedded(change: impl FnOnce(&mut Config), case: impl AsyncFn(&Fixture)) {
    let mut config = Config::new(StoreKind::Memory);
    change(&mut config);
    let server = Server::start(config).await.unwrap();
    let fixture = Fixture::connect(ClientConfig::new(server.local_address().into())).await;
    within(case(&fixture)).await;
    drop(fixture);
    server.shutdown().await.unwrap();
}

async fn within<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(60), future)
        .await
        .expect("this ends within a minute")
}

fn tag(text: &str) -> SnapshotTag {
    SnapshotTag::new(text).unwrap()
}

fn tagged(name: &VdiName, text: &str) -> VdiSelector {
    VdiSelector::tag(name.clone(), tag(text))
}

fn working(name: &VdiName) -> VdiSelector {
    VdiSelector::working(name.clone())
}

/// The result code of a refusal.
#[track_caller]
fn refusal<T: std::fmt::Debug>(result: Result<T, ClientError>) -> ResultCode {
    result
        .expect_err("this is refused")
        .code()
        .expect("the sheep refuses it")
}

/// Asserts that the client refuses by itself, with an error of this kind.
macro_rules! assert_refused {
    ($result:expr, $kind:pat) => {{
        let result = $result;
        assert!(matches!(result, Err($kind)), "{result:?}");
    }};
}
pub(crate) use assert_refused;
