//! Every result code as the response to every operation, and the error of the caller.

use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

use nix::errno::Errno;
use sheep_client::{Client, ClientError, NewVdi, VdiSelector};
use sheep_proto::{ObjectIndex, Oid, Opcode, ResultCode, VdiName, Vid};

use crate::peer::{Peer, Received, Script};
use crate::{config, object, within};

/// Whether a refusal is transient, so that the request is retried.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Asked {
    Once,
    Again,
}
use Asked::{Again, Once};

/// From section 2 of the protocol reference, the code on the wire, its errno, and
/// whether the same request is worth repeating; not from the code under test.
const CODES: [(u32, Errno, Asked); 57] = [
    (0x01, Errno::EIO, Once),
    (0x02, Errno::ENOENT, Once),
    (0x03, Errno::EIO, Once),
    (0x04, Errno::EEXIST, Once),
    (0x05, Errno::EINVAL, Once),
    (0x06, Errno::EIO, Again),
    (0x07, Errno::EBUSY, Once),
    (0x08, Errno::ENOENT, Once),
    (0x09, Errno::ENOENT, Once),
    (0x0a, Errno::EIO, Again),
    (0x0b, Errno::EIO, Again),
    (0x0c, Errno::ENOENT, Once),
    (0x0d, Errno::EIO, Again),
    (0x0e, Errno::ENOENT, Once),
    (0x0f, Errno::EIO, Again),
    (0x10, Errno::ENOLCK, Once),
    (0x11, Errno::EIO, Again),
    (0x12, Errno::ENOMEM, Again),
    (0x13, Errno::ENOSPC, Once),
    (0x14, Errno::EPROTO, Once),
    (0x15, Errno::ENOSPC, Once),
    (0x16, Errno::ENODEV, Once),
    (0x17, Errno::EIO, Again),
    (0x18, Errno::EIO, Once),
    (0x19, Errno::EIO, Again),
    (0x1a, Errno::EROFS, Once),
    (0x1b, Errno::EIO, Once),
    (0x1c, Errno::EIO, Again),
    (0x1d, Errno::EIO, Once),
    (0x1e, Errno::EACCES, Once),
    (0x81, Errno::EIO, Once),
    (0x82, Errno::EIO, Once),
    (0x83, Errno::ENODEV, Once),
    (0x84, Errno::EIO, Once),
    (0x85, Errno::EIO, Once),
    (0x86, Errno::EIO, Again),
    (0x87, Errno::EIO, Once),
    (0x88, Errno::EIO, Once),
    (0x89, Errno::EINVAL, Once),
    (0x8a, Errno::EINVAL, Once),
    (0x8b, Errno::EOPNOTSUPP, Once),
    (0x8c, Errno::EBUSY, Again),
    (0x8d, Errno::EIO, Again),
    (0x8e, Errno::EEXIST, Once),
    (0x8f, Errno::EIO, Again),
    (0x90, Errno::EIO, Again),
    (0x91, Errno::EIO, Again),
    (0x92, Errno::ENOTEMPTY, Once),
    (0x93, Errno::EIO, Once),
    (0x94, Errno::EIO, Once),
    (0x95, Errno::EIO, Again),
    (0x97, Errno::EINVAL, Once),
    (0x98, Errno::EINVAL, Once),
    (0x99, Errno::EIO, Once),
    // Codes that no release knows.
    (0x1f, Errno::EIO, Once),
    (0x9a, Errno::EIO, Once),
    (u32::MAX, Errno::EIO, Once),
];

#[test]
fn error_mapping_table_has_every_code() {
    for &code in ResultCode::ALL {
        let raw = u32::from(code);
        assert!(
            code == ResultCode::Success || CODES.iter().any(|&(known, ..)| known == raw),
            "{code}"
        );
    }
}

type Outcome = Result<(), ClientError>;
type Ask = fn(Client) -> Pin<Box<dyn Future<Output = Outcome> + Send>>;

fn name() -> VdiName {
    VdiName::new("disk").unwrap()
}

fn vid() -> Vid {
    Vid::new(7).unwrap()
}

/// Runs `ask`, whose last request has `opcode`, once for each code. Requests before
/// that one succeed. A payload in a refusal makes no difference.
async fn every_code(opcode: Opcode, repeated: bool, ask: Ask) {
    let mut peer = Peer::start(Script::default()).await;
    let mut config = config(&peer, 1);
    config.retry_for = Duration::from_secs(20);
    let client = within(Client::connect(config)).await.unwrap();
    for (code, errno, asked) in CODES {
        let what = format!("{opcode}, code {code:#x}");
        let caller = tokio::spawn(within_outcome(ask(client.clone())));
        let request = expect(&mut peer, opcode).await;
        let code = ResultCode::from(code);
        let want = match request.payload.is_empty() {
            true => usize::try_from(request.header.data_length.get()).unwrap(),
            false => 0,
        };
        request.respond(code, &vec![0xee; want.min(4096)]).await;
        if asked == Again && repeated {
            let again = expect(&mut peer, opcode).await;
            assert_eq!(again.payload, request.payload, "{what}");
            assert_eq!(again.header.tail, request.header.tail, "{what}");
            // A refusal that stays ends it.
            again.respond(ResultCode::Unknown, &[]).await;
            let error = caller.await.unwrap().unwrap_err();
            assert_eq!(error.code(), Some(ResultCode::Unknown), "{what}: {error}");
            continue;
        }
        let error = caller.await.unwrap().unwrap_err();
        assert_eq!(error.code(), Some(code), "{what}: {error}");
        assert_eq!(error.errno(), errno, "{what}: {error}");
        assert!(
            error.to_string().contains(&opcode.to_string()),
            "{what}: {error}"
        );
        assert!(peer.arrived().is_none(), "{what} is asked again");
    }
    assert_eq!(peer.open(), 1, "a refusal ends no connection");
}

async fn within_outcome(ask: Pin<Box<dyn Future<Output = Outcome> + Send>>) -> Outcome {
    within(ask).await
}

/// The next request with `opcode`; those before it succeed.
async fn expect(peer: &mut Peer, opcode: Opcode) -> Received {
    loop {
        let request = peer.request().await;
        if request.opcode() == opcode {
            return request;
        }
        let want = match request.payload.is_empty() {
            true => usize::try_from(request.header.data_length.get()).unwrap(),
            false => 0,
        };
        request.answer(&vec![0; want]).await;
    }
}

/// One test per operation, so that they wait side by side.
macro_rules! operations {
    ($($test:ident: $opcode:ident, $repeated:literal, $ask:expr;)+) => {
        $(#[tokio::test]
        async fn $test() {
            every_code(Opcode::$opcode, $repeated, |client| {
                let ask: fn(Client) -> _ = $ask;
                Box::pin(ask(client))
            })
            .await;
        })+
    };
}

operations! {
    read_reports_every_refusal: ReadObj, true,
        |client| async move { client.objects().read(object(), 0, 64).await.map(drop) };
    write_reports_every_refusal: WriteObj, true,
        |client| async move { client.objects().write(object(), 0, b"w"[..].into()).await };
    create_reports_every_refusal: CreateAndWriteObj, true,
        |client| async move {
            let parent = Oid::data(vid(), ObjectIndex(0));
            client.objects().create(object(), 0, b"c"[..].into(), Some(parent)).await
        };
    remove_reports_every_refusal: RemoveObj, true,
        |client| async move { client.objects().remove(object()).await };
    discard_reports_every_refusal: DiscardObj, true,
        |client| async move { client.objects().discard(object()).await };
    write_slots_reports_every_refusal: WriteObj, true,
        |client| async move {
            client.inode(vid()).write_slots(ObjectIndex(1), &[Some(vid())]).await
        };
    lookup_reports_every_refusal: GetVdiInfo, true,
        |client| async move { client.vdi(&VdiSelector::working(name())).lookup().await.map(drop) };
    lock_reports_every_refusal: LockVdi, true,
        |client| async move { client.vdi(&VdiSelector::working(name())).lock().await.map(drop) };
    unlock_reports_every_refusal: ReleaseVdi, false,
        |client| async move { client.inode(vid()).unlock().await };
    create_vdi_reports_every_refusal: NewVdi, false,
        |client| async move {
            client.cluster().create_vdi(&NewVdi::new(name(), 1)).await.map(drop)
        };
    query_reports_every_refusal: GetClusterDefault, true,
        |client| async move { client.cluster().defaults().await.map(drop) };
}
