//! What operations change in an inode: single fields that are ours, and no other byte.
//!
//! Other clients, and the fork of Sheepdog of 2026, keep things of their own in the
//! header. A client that writes back what it has read undoes what they have done since.

use std::fmt::Write as _;
use std::ops::Range;
use std::slice;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use sheep_client::unstable::Request;
use sheep_client::{Client, VdiSelector};
use sheep_proto::btree::ROOT_WRITE_LEAD;
use sheep_proto::inode::{
    BTREE_COUNTER_OFFSET, SLOT_LEN, SNAP_CTIME_OFFSET, TAG_OFFSET, VDI_SIZE_OFFSET,
};
use sheep_proto::limits::{INODE_GREF_OFFSET, INODE_HEADER_LEN, NAME_FIELD_LEN};
use sheep_proto::{Generation, ObjectKind, Oid, Opcode, RequestBody, VdiName, Vid};
use sheepfs_vfs::{BlockDevice as _, Volume, VolumeOptions};

use crate::support::{Cluster, delay_until, pattern, tag, unique_name};

const MIB: u64 = 1 << 20;

/// What others may keep where nothing of ours is. The bit that marks an access list
/// of the fork is not set in it.
const OF_OTHERS: u8 = 0xa4;

const NAME: Range<usize> = 0..NAME_FIELD_LEN;
const TAG: Range<usize> = field(TAG_OFFSET, NAME_FIELD_LEN);
const SNAP_CTIME: Range<usize> = field(SNAP_CTIME_OFFSET, 8);
const SIZE: Range<usize> = field(VDI_SIZE_OFFSET, 8);
const BTREE_COUNTER: Range<usize> = field(BTREE_COUNTER_OFFSET, 4);
const INDEX: Range<usize> = INODE_HEADER_LEN..INODE_GREF_OFFSET;
/// Zeros in front of the root of a B-tree, which a server wants to be written with it.
const ROOT_LEAD: Range<usize> = INODE_HEADER_LEN - ROOT_WRITE_LEAD.len()..INODE_HEADER_LEN;

const fn field(offset: u32, len: usize) -> Range<usize> {
    offset as usize..offset as usize + len
}

const fn slot(index: usize) -> Range<usize> {
    let start = INODE_HEADER_LEN + index * SLOT_LEN as usize;
    start..start + SLOT_LEN as usize
}

/// Ranges of inodes that a client has written.
#[derive(Clone, Default)]
struct Written(Arc<Mutex<Vec<Range<usize>>>>);

impl Written {
    fn note(&self, request: &Request) {
        let is_inode =
            request.operation().oid.and_then(|oid| oid.kind()) == Some(ObjectKind::Inode);
        if let RequestBody::Object(body) = request.header(Generation::NEWEST).body()
            && is_inode
            && request.opcode() == Opcode::WriteObj
        {
            let start = body.offset.get() as usize;
            let end = start + request.payload().len();
            self.0.lock().unwrap().push(start..end);
        }
    }

    fn take(&self) -> Vec<Range<usize>> {
        std::mem::take(&mut *self.0.lock().unwrap())
    }
}

/// A VDI with bytes of others in its header, and a client whose writes are noted.
struct Observed {
    cluster: Cluster,
    client: Client,
    written: Written,
    name: VdiName,
    vid: Vid,
}

impl Observed {
    async fn start(hypervolume: bool) -> Self {
        let cluster = Cluster::start().await;
        let written = Written::default();
        let noted = written.clone();
        let client = cluster
            .client_through(|inner| {
                delay_until(inner, move |request| {
                    noted.note(request);
                    None
                })
            })
            .await;
        let name = cluster
            .create_kind("inode-bytes", |new| {
                new.size = 8 * MIB;
                new.object_shift = (!hypervolume).then_some(20);
                new.hypervolume = hypervolume;
            })
            .await;
        let vid = cluster
            .client
            .vdi(&VdiSelector::working(name.clone()))
            .lookup()
            .await
            .unwrap();
        let observed = Self {
            cluster,
            client,
            written,
            name,
            vid,
        };
        observed.fill(vid).await;
        observed
    }

    fn working(&self) -> VdiSelector {
        VdiSelector::working(self.name.clone())
    }

    /// Fills what is not ours in a header.
    async fn fill(&self, vid: Vid) {
        for range in [528..536, 544..552, BTREE_COUNTER.end..ROOT_LEAD.start] {
            let bytes = Bytes::from(vec![OF_OTHERS; range.len()]);
            let offset = u32::try_from(range.start).unwrap();
            self.cluster
                .client
                .objects()
                .write(Oid::inode(vid), offset, bytes)
                .await
                .unwrap();
        }
    }

    async fn inode(&self, vid: Vid) -> Bytes {
        let len = u32::try_from(INODE_GREF_OFFSET).unwrap();
        let inode = Oid::inode(vid);
        let inode = self.cluster.client.objects().read(inode, 0, len).await;
        inode.unwrap()
    }

    async fn open(&self) -> Arc<Volume> {
        let options = VolumeOptions::default();
        Volume::open(self.client.clone(), self.working(), options)
            .await
            .unwrap()
    }

    /// Checks that an operation changes, in the inode of `vid`, nothing outside `allowed`,
    /// and writes to inodes nothing outside `ours`.
    async fn check<T>(
        &self,
        what: &str,
        vid: Vid,
        allowed: &[Range<usize>],
        ours: &[Range<usize>],
        operation: impl Future<Output = T>,
    ) -> T {
        let before = self.inode(vid).await;
        self.written.take();
        let done = operation.await;
        let after = self.inode(vid).await;
        let mut wrong = String::new();
        for (at, (old, new)) in before.iter().zip(&after).enumerate() {
            if old != new && !allowed.iter().any(|range| range.contains(&at)) {
                writeln!(wrong, "byte {at} was {old:#x} and is {new:#x}").unwrap();
            }
        }
        assert!(wrong.is_empty(), "{what}:\n{wrong}");
        for written in self.written.take() {
            let is_ours = ours
                .iter()
                .any(|range| range.start <= written.start && written.end <= range.end);
            assert!(is_ours, "{what} writes bytes {written:?} of an inode");
        }
        done
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn inode_changes_only_in_the_fields_of_the_operation() {
    let observed = Observed::start(false).await;
    let vid = observed.vid;
    let volume = observed
        .check("attach", vid, &[], &[], observed.open())
        .await;
    let written = volume.write_at(0, pattern(1, 3 << 20));
    let run = slot(0).start..slot(2).end;
    let three = slice::from_ref(&run);
    observed
        .check("first write", vid, three, three, written)
        .await
        .unwrap();
    let again = volume.write_at(10, pattern(2, 3 << 19));
    observed
        .check("overwrite", vid, &[], &[], again)
        .await
        .unwrap();
    let punched = volume.discard(MIB, MIB);
    observed
        .check("punch", vid, &[slot(1)], &[slot(1)], punched)
        .await
        .unwrap();
    let grown = volume.set_size(9 * MIB);
    observed
        .check("resize", vid, &[SIZE], &[SIZE], grown)
        .await
        .unwrap();
    observed
        .check("flush", vid, &[], &[], volume.flush())
        .await
        .unwrap();
    let working = observed.working();
    let attributes = async {
        let vdi = observed.client.vdi(&working);
        vdi.set_attribute(b"key", b"value").await.unwrap();
        assert!(vdi.attribute(b"key").await.unwrap().is_some());
        vdi.remove_attribute(b"key").await.unwrap();
    };
    observed
        .check("attributes", vid, &[], &[], attributes)
        .await;
    observed
        .check("detach", vid, &[], &[], volume.close())
        .await
        .unwrap();
    let selector = observed.client.vdi(&working);
    let snapshot = tag("s");
    // The server marks it; the tag is ours.
    let head = observed
        .check(
            "snapshot",
            vid,
            &[TAG, SNAP_CTIME],
            &[TAG],
            selector.snapshot(&snapshot),
        )
        .await
        .unwrap();
    observed.fill(head).await;

    let old = VdiSelector::tag(observed.name.clone(), snapshot);
    let clone = unique_name("inode-clone");
    let cloned = observed.client.vdi(&old).clone_to(&clone);
    observed
        .check("clone", vid, &[], &[], cloned)
        .await
        .unwrap();
    let volume = observed.open().await;
    let copied = volume.write_at(0, pattern(3, 10));
    observed
        .check("copy on write", head, &[slot(0)], &[slot(0)], copied)
        .await
        .unwrap();
    observed
        .check(
            "punch of a snapshot's",
            vid,
            &[],
            &[slot(2)],
            volume.discard(2 * MIB, MIB),
        )
        .await
        .unwrap();
    volume.close().await.unwrap();
    // The server blanks name and size; the entries are ours.
    let rolled_back = observed.client.vdi(&old).rollback();
    observed
        .check(
            "rollback",
            head,
            &[NAME, SIZE, INDEX],
            &[INDEX],
            rolled_back,
        )
        .await
        .unwrap();
    let deleted = observed.client.vdi(&old).delete();
    observed
        .check("delete", vid, &[NAME, SIZE, INDEX], &[INDEX], deleted)
        .await
        .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn inode_of_a_hypervolume_changes_only_in_its_tree() {
    let observed = Observed::start(true).await;
    let vid = observed.vid;
    let volume = observed
        .check("attach", vid, &[], &[], observed.open())
        .await;
    let tree = [BTREE_COUNTER, INDEX];
    let ours = [BTREE_COUNTER, ROOT_LEAD.start..INDEX.end];
    let written = volume.write_at(0, pattern(1, 5 << 20));
    observed
        .check("first write", vid, &tree, &ours, written)
        .await
        .unwrap();
    let punched = volume.discard(0, 4 * MIB);
    observed
        .check("punch", vid, &tree, &ours, punched)
        .await
        .unwrap();
    observed
        .check("resize", vid, &[SIZE], &[SIZE], volume.set_size(9 * MIB))
        .await
        .unwrap();
    observed
        .check("detach", vid, &[], &[], volume.close())
        .await
        .unwrap();
}
