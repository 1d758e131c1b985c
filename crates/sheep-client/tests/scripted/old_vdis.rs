//! VDIs in clusters of each generation: what creating, cloning, deleting and locking
//! them sends, and what is refused.

use std::collections::HashMap;
use std::pin::pin;
use std::time::Duration;

use sheep_client::cluster::LockSupport;
use sheep_client::config::DEFAULT_RETRY_FOR;
use sheep_client::{Chain, Client, ClientError, Generation, NewVdi, SnapshotTag, VdiSelector};
use sheep_proto::hash::first_vid;
use sheep_proto::header::VdiRequest;
use sheep_proto::vid_bitmap::VidBitmap;
use sheep_proto::{InodeHeader, Opcode, Redundancy, ResultCode, VdiName, Vid};
use zerocopy::IntoBytes as _;

use crate::generations::{connect_with, sheep};
use crate::peer::{Peer, Received};
use crate::{object, within};

/// The VID that NEW_VDI makes.
const NEW: u32 = 0x12_3456;

/// A sheep whose VDIs are the given inodes.
struct Vdis {
    peer: Peer,
    client: Client,
    inodes: HashMap<u32, InodeHeader>,
    /// What it was sent, without reads.
    changes: Vec<Received>,
}

impl Vdis {
    async fn new(generation: Generation) -> Self {
        Self::with_timeout(generation, DEFAULT_RETRY_FOR).await
    }

    async fn with_timeout(generation: Generation, timeout: Duration) -> Self {
        let (peer, client) = connect_with(sheep(generation), |config| {
            config.retry_for = timeout;
        })
        .await;
        Self {
            peer,
            client: client.unwrap(),
            inodes: HashMap::new(),
            changes: Vec::new(),
        }
    }

    /// Adds a VDI at a distance from the hash of `run`; one without a name was deleted.
    fn add(&mut self, run: &str, distance: u32, name: &str) -> &mut InodeHeader {
        let vid = first_vid(run.as_bytes()).get() + distance;
        let mut header = InodeHeader::zeroed();
        header.name[..name.len()].copy_from_slice(name.as_bytes());
        header.vdi_id = vid.into();
        header.vdi_size = (16 << 20).into();
        (header.nr_copies, header.block_size_shift) = (2, 22);
        self.inodes.entry(vid).or_insert(header)
    }

    async fn run<T>(&mut self, operation: impl AsyncFnOnce(&Client) -> T) -> T {
        let Self {
            peer,
            client,
            inodes,
            changes,
        } = self;
        let answering = async {
            loop {
                let request = peer.request().await;
                answer(inodes, &request).await;
                let opcode = request.opcode();
                if !matches!(
                    opcode,
                    Opcode::ReadObj | Opcode::ReadVdis | Opcode::GetVdiInfo
                ) {
                    changes.push(request);
                }
            }
        };
        tokio::select! {
            result = within(operation(client)) => result,
            () = answering => unreachable!("it answers for ever"),
        }
    }

    fn changes(&mut self) -> Vec<(Opcode, VdiRequest)> {
        let changes = self.changes.drain(..);
        changes
            .map(|request| (request.opcode(), VdiRequest::from(request.header.tail)))
            .collect()
    }
}

async fn answer(inodes: &HashMap<u32, InodeHeader>, request: &Received) {
    match request.opcode() {
        Opcode::ReadVdis => {
            let mut used = VidBitmap::empty();
            for vid in inodes.keys() {
                used.insert(Vid::new(*vid).unwrap());
            }
            request.answer(used.as_bytes()).await;
        }
        Opcode::GetVdiInfo => {
            let asked = |field: &[u8], len: usize| request.payload[..len] == *field;
            let has_tag = request.payload[256] != 0;
            let found = inodes.values().find(|inode| {
                asked(&inode.name, 256)
                    && inode.is_snapshot() == has_tag
                    && (!has_tag || inode.tag[..] == request.payload[256..])
            });
            match found {
                Some(inode) => request.answer_vid(inode.vdi_id.get()).await,
                None if has_tag => request.respond(ResultCode::NoTag, &[]).await,
                None => request.respond(ResultCode::NoVdi, &[]).await,
            }
        }
        Opcode::ReadObj => {
            let len = request.header.data_length.get() as usize;
            let vid = u32::try_from(request.oid().raw() >> 32 & 0xff_ffff).unwrap();
            let mut inode = inodes[&vid].as_bytes().to_vec();
            // An index whose first object exists.
            inode.extend_from_slice(&vid.to_le_bytes());
            let start = request.offset() as usize;
            inode.resize(inode.len().max(start + len), 0);
            request.answer(&inode[start..start + len]).await;
        }
        Opcode::NewVdi | Opcode::LockVdi => request.answer_vid(NEW).await,
        Opcode::GetClusterDefault
        | Opcode::WriteObj
        | Opcode::DeleteCache
        | Opcode::DelVdi
        | Opcode::ReleaseVdi => {
            request.answer(&[]).await;
        }
        other => panic!("{other} has no business here"),
    }
}

fn name(name: &str) -> VdiName {
    VdiName::new(name).unwrap()
}

fn snapshot_of(vdi: &str) -> VdiSelector {
    VdiSelector::tag(name(vdi), SnapshotTag::new("t").unwrap())
}

fn text<T: std::fmt::Debug>(result: Result<T, ClientError>) -> String {
    Chain(&result.unwrap_err()).to_string()
}

#[tokio::test]
async fn create_before_1_0_sends_no_object_size() {
    for generation in Generation::ALL {
        let mut sheep = Vdis::new(generation).await;
        let new = NewVdi::new(name("v"), 1 << 30).with_redundancy(Redundancy::Replicated(3));
        sheep
            .run(async |client| client.cluster().create_vdi(&new).await)
            .await
            .unwrap();
        let (opcode, body) = sheep.changes().pop().unwrap();
        assert_eq!((opcode, body.copies), (Opcode::NewVdi, 3));
        let shift = if generation == Generation::V1_0 {
            22
        } else {
            0
        };
        assert_eq!(body.block_size_shift, shift, "{generation}");
    }
}

#[tokio::test]
async fn create_refuses_what_a_generation_cannot_store() {
    let new = || NewVdi::new(name("v"), 1 << 30);
    let erasure = Redundancy::Erasure { data: 2, parity: 1 };
    for (generation, new, expected) in [
        (
            Generation::V0_7,
            new().with_redundancy(Redundancy::Replicated(9)),
            "sheep 0.7 stores at most 8 copies",
        ),
        (
            Generation::V0_7,
            new().with_redundancy(erasure),
            "sheep 0.7 has no erasure code",
        ),
        (
            Generation::V0_7,
            new().with_hypervolume(),
            "sheep 0.7 has no hypervolumes",
        ),
        (
            Generation::V0_8,
            new().with_hypervolume(),
            "the hypervolumes of sheep 0.8 can only be read",
        ),
        (
            Generation::V0_9,
            new().with_object_shift(23),
            "sheep 0.9 has only objects of 4 MiB",
        ),
    ] {
        let mut sheep = Vdis::new(generation).await;
        let refused = sheep.run(async |client| client.cluster().create_vdi(&new).await);
        assert_eq!(text(refused.await), expected);
        assert_eq!(sheep.changes(), []);
    }
}

#[tokio::test]
async fn clone_before_1_0_sends_no_object_size() {
    for generation in Generation::ALL {
        let mut sheep = Vdis::new(generation).await;
        let base = sheep.add("v", 0, "v");
        (base.snap_ctime, base.tag[0]) = (1.into(), b't');
        sheep
            .run(async |client| client.vdi(&snapshot_of("v")).clone_to(&name("c")).await)
            .await
            .unwrap();
        let (_, body) = sheep.changes().pop().unwrap();
        let shift = if generation == Generation::V1_0 {
            22
        } else {
            0
        };
        assert_eq!((body.copies, body.block_size_shift), (2, shift));
    }
}

#[tokio::test]
async fn delete_before_0_9_leaves_the_index_to_the_sheep() {
    for generation in Generation::ALL {
        let mut sheep = Vdis::new(generation).await;
        sheep.add("v", 0, "v");
        let selector = VdiSelector::working(name("v"));
        sheep
            .run(async |client| client.vdi(&selector).delete().await)
            .await
            .unwrap();
        let opcodes: Vec<_> = sheep.changes().iter().map(|(opcode, _)| *opcode).collect();
        match generation {
            // As dog does, first: nothing is written back to objects that are gone, or under
            // a VID that is used again.
            Generation::V0_7 | Generation::V0_8 => {
                assert_eq!(opcodes, [Opcode::DeleteCache, Opcode::DelVdi]);
            }
            Generation::V0_9 => assert_eq!(
                opcodes,
                [Opcode::DeleteCache, Opcode::WriteObj, Opcode::DelVdi]
            ),
            Generation::V1_0 => assert_eq!(opcodes, [Opcode::WriteObj, Opcode::DelVdi]),
        }
    }
}

#[tokio::test]
async fn delete_outwaits_other_requests_where_the_sheep_removes_objects() {
    for generation in Generation::ALL {
        let mut sheep = Vdis::with_timeout(generation, Duration::from_millis(300)).await;
        sheep.add("v", 0, "v");
        let selector = VdiSelector::working(name("v"));
        let Vdis {
            peer,
            client,
            inodes,
            ..
        } = &mut sheep;
        let handle = client.vdi(&selector);
        let mut deleting = pin!(within(handle.delete()));
        let arriving = async {
            loop {
                let request = peer.request().await;
                if request.opcode() == Opcode::DelVdi {
                    return request;
                }
                answer(inodes, &request).await;
            }
        };
        let request = tokio::select! {
            _ = &mut deleting => panic!("it is not answered"),
            request = arriving => request,
        };
        if !matches!(generation, Generation::V0_7 | Generation::V0_8) {
            let unanswered = deleting.await;
            assert!(matches!(unanswered, Err(ClientError::Unreachable { .. })));
            continue;
        }
        let objects = client.objects();
        let timed_out = tokio::select! {
            read = within(objects.read(object(), 0, 1)) => read,
            deleted = &mut deleting => panic!("it has ended with {deleted:?}"),
        };
        assert!(matches!(timed_out, Err(ClientError::Unreachable { .. })));
        request.answer(&[]).await;
        deleting.await.unwrap();
    }
}

/// A deleted snapshot at the hash of "v", and a deleted head behind it.
fn leave_deleted(sheep: &mut Vdis) {
    sheep.add("v", 0, "").snap_ctime = 1.into();
    sheep.add("v", 1, "");
}

#[tokio::test]
async fn create_refuses_the_vid_of_a_deleted_snapshot() {
    for generation in Generation::ALL {
        let mut sheep = Vdis::new(generation).await;
        leave_deleted(&mut sheep);
        let new = NewVdi::new(name("v"), 1 << 30);
        let created = sheep
            .run(async |client| client.cluster().create_vdi(&new).await)
            .await;
        if matches!(generation, Generation::V0_7 | Generation::V0_8) {
            assert!(matches!(created, Err(ClientError::VidReuse(_))));
            assert_eq!(sheep.changes(), []);
        } else {
            created.unwrap();
        }
    }
}

#[tokio::test]
async fn create_takes_the_vid_of_what_nothing_needs() {
    for (deleted_size, is_snapshot) in [(0, true), (16 << 20, false)] {
        let mut sheep = Vdis::new(Generation::V0_7).await;
        let deleted = sheep.add("v", 0, "");
        deleted.vdi_size = deleted_size.into();
        deleted.snap_ctime = u64::from(is_snapshot).into();
        let new = NewVdi::new(name("v"), 1 << 30);
        sheep
            .run(async |client| client.cluster().create_vdi(&new).await)
            .await
            .unwrap();
    }
}

#[tokio::test]
async fn rollback_refuses_the_vid_of_a_deleted_snapshot_and_keeps_the_head() {
    let mut sheep = Vdis::new(Generation::V0_8).await;
    // A snapshot that was deleted, one that is rolled back to under another name's
    // hash, and the head.
    sheep.add("v", 0, "").snap_ctime = 1.into();
    let base = sheep.add("other", 0, "v");
    (base.snap_ctime, base.tag[0]) = (1.into(), b't');
    sheep.add("v", 1, "v");
    let rolled_back = sheep
        .run(async |client| client.vdi(&snapshot_of("v")).rollback().await)
        .await;
    assert!(matches!(rolled_back, Err(ClientError::VidReuse(_))));
    assert_eq!(sheep.changes(), []);
}

#[tokio::test]
async fn clone_of_a_snapshot_without_room_for_children_is_not_sent() {
    for generation in Generation::ALL {
        let mut sheep = Vdis::new(generation).await;
        let base = sheep.add("v", 0, "v");
        base.as_mut_bytes()[568..].fill(1);
        (base.snap_ctime, base.tag[0]) = (1.into(), b't');
        let cloned = sheep
            .run(async |client| client.vdi(&snapshot_of("v")).clone_to(&name("c")).await)
            .await;
        if matches!(generation, Generation::V0_7 | Generation::V0_8) {
            assert!(matches!(cloned, Err(ClientError::TooManyChildren(_))));
            assert_eq!(sheep.changes(), []);
        } else {
            cloned.unwrap();
        }
    }
}

#[tokio::test]
async fn lock_before_0_9_is_refused() {
    for generation in [Generation::V0_7, Generation::V0_8] {
        let mut sheep = Vdis::new(generation).await;
        sheep.add("v", 0, "v");
        let selector = VdiSelector::working(name("v"));
        let locked = sheep.run(async |client| client.vdi(&selector).lock().await);
        assert_eq!(
            text(locked.await),
            format!("sheep {generation} has no locks")
        );
        let support = sheep.run(async |client| client.cluster().lock_support().await);
        assert_eq!(support.await.unwrap(), LockSupport::No);
        assert_eq!(sheep.changes(), []);
    }
}
