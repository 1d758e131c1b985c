//! Every result code as the response to every kind of request of a volume: the errno of
//! read(2) and write(2), and that no data is lost.

use std::sync::{Arc, Mutex};

use nix::errno::Errno;
use sheep_client::testing::{Fault, FaultTransport};
use sheep_client::unstable::Request;
use sheep_proto::{Opcode, ResultCode};

use crate::support::{Cluster, data_object, is_index_update, open, pattern};
use sheepfs_vfs::BlockDevice as _;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Read,
    Overwrite,
    Create,
    IndexUpdate,
}

fn kind(request: &Request) -> Option<Kind> {
    let data = data_object(request).is_some();
    match request.opcode() {
        Opcode::ReadObj if data => Some(Kind::Read),
        // Without a payload it is a probe.
        Opcode::WriteObj if data && !request.payload().is_empty() => Some(Kind::Overwrite),
        Opcode::CreateAndWriteObj => Some(Kind::Create),
        _ => is_index_update(request).then_some(Kind::IndexUpdate),
    }
}

/// The errno of an operation with a request that is refused for good.
fn seen(code: ResultCode) -> Errno {
    match u32::from(code) {
        // Out of space, or of VDI numbers.
        0x13 | 0x15 => Errno::ENOSPC,
        0x12 => Errno::ENOMEM,
        _ => Errno::EIO,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn error_mapping_refusal_fails_once_and_loses_nothing() {
    let cluster = Arc::new(Cluster::start().await);
    let codes = ResultCode::ALL
        .iter()
        .copied()
        .filter(|&code| code != ResultCode::Success)
        .chain([ResultCode::Other(0x1c), ResultCode::Other(u32::MAX)]);
    // Concurrently, as a volume waits long for an object that was created without a commit.
    let mut all = tokio::task::JoinSet::new();
    for code in codes {
        all.spawn(refuse_everything(Arc::clone(&cluster), code));
    }
    while let Some(done) = all.join_next().await {
        done.unwrap();
    }
}

async fn refuse_everything(cluster: Arc<Cluster>, code: ResultCode) {
    let object = cluster.object_len();
    let name = cluster.create("codes", 2 * object).await;
    let refuse: Arc<Mutex<Option<Kind>>> = Arc::default();
    let plan = Arc::clone(&refuse);
    let client = cluster
        .client_through(|inner| {
            FaultTransport::new(inner, move |request| {
                let refused = (*plan.lock().unwrap())?;
                (kind(request) == Some(refused)).then_some(Fault::Refuse(code))
            })
        })
        .await;
    let volume = open(&client, &name).await;
    volume.write_at(0, pattern(1, 1000)).await.unwrap();
    for kind in [Kind::Read, Kind::Overwrite, Kind::Create, Kind::IndexUpdate] {
        *refuse.lock().unwrap() = Some(kind);
        let outcome = match kind {
            Kind::Read => volume.read_at(0, 1000).await.map(drop),
            Kind::Overwrite => volume.write_at(500, pattern(2, 10)).await.map(drop),
            Kind::Create | Kind::IndexUpdate => {
                volume.write_at(object, pattern(3, 10)).await.map(drop)
            }
        };
        *refuse.lock().unwrap() = None;
        let error = outcome.unwrap_err();
        assert_eq!(error.errno(), seen(code), "{kind:?}, {code}: {error}");
        let volume = std::str::from_utf8(name.as_bytes()).unwrap();
        assert!(error.to_string().contains(volume), "{error}");
    }
    assert_eq!(volume.read_at(0, 1000).await.unwrap(), pattern(1, 1000));
    volume.write_at(object + 5, pattern(4, 10)).await.unwrap();
    assert_eq!(
        volume.read_at(object + 5, 10).await.unwrap(),
        pattern(4, 10)
    );
    volume.close().await.unwrap();
    let again = open(&cluster.client, &name).await;
    assert_eq!(again.read_at(0, 1000).await.unwrap(), pattern(1, 1000));
}
