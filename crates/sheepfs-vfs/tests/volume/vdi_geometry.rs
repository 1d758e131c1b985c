//! Every size and every form of index that a VDI can have.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::join_all;
use sheep_client::unstable::{BoxFuture, Completion, Request, Response, Transport};
use sheep_client::{Client, ClientError, GatewayAddress, VdiSelector};
use sheep_proto::btree::{LEAF_MAX_ENTRIES, ROOT_WRITE_OFFSET};
use sheep_proto::inode::VDI_SIZE_OFFSET;
use sheep_proto::limits::{INODE_GREF_OFFSET, INODE_HEADER_LEN};
use sheep_proto::{
    ClusterFlags, Generation, ObjectIndex, ObjectKind, Oid, Opcode, RequestBody, ResultCode,
    VdiName, Vid,
};
use sheepfs_vfs::{BlockDevice as _, Volume, VolumeError, VolumeOptions};

use crate::support::{Cluster, MIB, formatted, open, open_snapshot, pattern, tag, unique_name};

const TIB: u64 = 1 << 40;
/// Bytes of an object of a hypervolume.
const HYPER_OBJECT: u64 = 4 * MIB;

async fn expect(volume: &Arc<Volume>, offset: u64, data: &[u8]) {
    let len = u32::try_from(data.len()).unwrap();
    let found = volume.read_at(offset, len).await.unwrap();
    assert!(found == data, "at {offset} of {:?}", volume.info());
}

#[tokio::test(flavor = "multi_thread")]
async fn geometry_every_object_size_reads_back() {
    // A C sheep takes all of an object from its disk for the first byte in it.
    let cluster = formatted(ClusterFlags::empty()).await;
    for shift in 20..=31 {
        let object = 1u64 << shift;
        let size = 4 * object + 3;
        let name = cluster
            .create_kind("size", |new| {
                (new.size, new.object_shift) = (size, Some(shift));
            })
            .await;
        let volume = open(&cluster.client, &name).await;
        for offset in [object - 5, 3 * object - 1, size - 3] {
            let data = pattern(shift, 10.min(usize::try_from(size - offset).unwrap()));
            let len = u32::try_from(data.len()).unwrap();
            assert_eq!(volume.write_at(offset, data).await.unwrap(), len);
        }
        cluster.snapshot(&name, "s").await;
        volume.write_at(3 * object, pattern(1, 2)).await.unwrap();

        let again = open(&cluster.client, &name).await;
        expect(&again, object - 6, &[&[0], &[shift; 10][..], &[0]].concat()).await;
        let head = [&[0, shift, 1, 1], &[shift; 7][..], &[0]].concat();
        expect(&again, 3 * object - 2, &head).await;
        expect(&again, size - 4, &[0, shift, shift, shift]).await;
        assert_eq!(again.allocated(), 5 * object);
        again.discard(object, 2 * object).await.unwrap();
        assert_eq!(again.allocated(), 3 * object);
        assert_eq!(again.seek_hole(0).unwrap(), object);
        assert_eq!(again.seek_data(object).unwrap(), 3 * object);
        let snapshot = open_snapshot(&cluster.client, &name, "s").await;
        let before = [&[0], &[shift; 10][..], &[0]].concat();
        expect(&snapshot, 3 * object - 2, &before).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn geometry_flat_index_reaches_last_slot() {
    let cluster = Cluster::start().await;
    let object = cluster.object_len();
    let limit = TIB * (object / MIB);
    let name = cluster.create("limit", limit - object - 1).await;
    let volume = open(&cluster.client, &name).await;
    volume
        .write_at(limit - object - 8, pattern(1, 7))
        .await
        .unwrap();
    volume.set_size(limit).await.unwrap();
    volume
        .write_at(limit - object - 1, pattern(2, 3))
        .await
        .unwrap();
    assert_eq!(volume.write_at(limit - 3, pattern(3, 9)).await.unwrap(), 3);
    assert!(matches!(
        volume.write_at(limit, pattern(4, 1)).await,
        Err(VolumeError::EndOfDevice(_))
    ));
    let refused = volume.set_size(limit + 1).await.unwrap_err();
    assert_eq!(refused.errno(), nix::errno::Errno::EFBIG, "{refused}");

    let again = open(&cluster.client, &name).await;
    assert_eq!(again.size(), limit);
    expect(
        &again,
        limit - object - 9,
        &[0, 1, 1, 1, 1, 1, 1, 1, 2, 2, 2, 0],
    )
    .await;
    expect(&again, limit - 4, &[0, 3, 3, 3]).await;
    assert_eq!(again.seek_data(0).unwrap(), limit - 2 * object);
    again.discard(limit - object, object).await.unwrap();
    expect(&again, limit - 4, &[0; 4]).await;
    assert_eq!(again.allocated(), object);
}

#[tokio::test(flavor = "multi_thread")]
async fn geometry_volume_of_zero_or_one_byte() {
    let cluster = Cluster::start().await;
    let name = cluster.create("nothing", 0).await;
    let volume = open(&cluster.client, &name).await;
    assert_eq!(volume.read_at(0, 10).await.unwrap().len(), 0);
    assert_eq!(volume.write_at(0, Bytes::new()).await.unwrap(), 0);
    assert!(matches!(
        volume.write_at(0, pattern(1, 1)).await,
        Err(VolumeError::EndOfDevice(0))
    ));
    assert!(volume.seek_data(0).is_err() && volume.seek_hole(0).is_err());
    volume.discard(0, MIB).await.unwrap();
    volume.flush().await.unwrap();
    volume.set_size(1).await.unwrap();
    assert_eq!(volume.write_at(0, pattern(7, 5)).await.unwrap(), 1);
    volume.close().await.unwrap();
    let volume = open(&cluster.client, &name).await;
    expect(&volume, 0, &[7]).await;
    volume.set_size(513).await.unwrap();
    expect(&volume, 0, &[&[7], &[0; 512][..]].concat()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn hypervolume_is_written_past_flat_index_limit() {
    let cluster = Cluster::start().await;
    let name = hypervolume(&cluster, "far").await;
    let volume = open(&cluster.client, &name).await;
    let far = [0, 5 * TIB + 77, 16 * TIB - 100, TIB, 4 * TIB - 50];
    let writes = far.map(|offset| volume.write_at(offset, pattern(7, 100)));
    for written in join_all(writes).await {
        assert_eq!(written.unwrap(), 100);
    }
    volume.discard(TIB, HYPER_OBJECT).await.unwrap();
    let again = open(&cluster.client, &name).await;
    for offset in far {
        let expected = if offset == TIB { 0 } else { 7 };
        expect(&again, offset, &[expected; 100]).await;
    }
    assert_eq!(
        again.seek_data(5 * TIB + HYPER_OBJECT).unwrap(),
        16 * TIB - HYPER_OBJECT
    );
    assert_eq!(again.allocated(), 5 * HYPER_OBJECT);
}

async fn hypervolume(cluster: &Cluster, stem: &str) -> VdiName {
    cluster
        .create_kind(stem, |new| {
            (new.size, new.hypervolume) = (16 * TIB, true);
        })
        .await
}

/// Fills the root of a hypervolume's index with the even numbers, but for
/// `room` slots. Their objects do not exist.
async fn nearly_fill_root(client: &Client, name: &VdiName, room: u32) -> Vid {
    let selector = VdiSelector::working(name.clone());
    let info = client.vdi(&selector).stat().await.unwrap();
    let slots: Vec<_> = (0..LEAF_MAX_ENTRIES - room)
        .map(|number| (ObjectIndex(2 * number), info.vid))
        .collect();
    let mut tree = client.index(&info).tree().await.unwrap();
    tree.commit(client.objects(), &slots, &[]).await.unwrap();
    info.vid
}

/// Depth of the tree and entries of its root.
async fn root(client: &Client, vid: Vid) -> (u8, u32) {
    let offset = ROOT_WRITE_OFFSET + 8;
    let header = client
        .objects()
        .read(Oid::inode(vid), offset, 8)
        .await
        .unwrap();
    let entries = header[4..8].try_into().expect("four bytes");
    (header[2], u32::from_le_bytes(entries))
}

/// Objects with odd numbers, all over a hypervolume.
fn odd_objects(count: u64) -> impl Iterator<Item = u64> {
    let last = 16 * TIB / HYPER_OBJECT;
    (0..count).map(move |number| ((number * 7_654_321) % last) | 1)
}

fn number(object: u64) -> Bytes {
    object.to_le_bytes().repeat(64).into()
}

#[tokio::test(flavor = "multi_thread")]
async fn hypervolume_index_grows_level_under_load() {
    const OBJECTS: u64 = 160;
    let cluster = Cluster::start().await;
    // A root with room for 40 slots, which 160 new objects split.
    let name = hypervolume(&cluster, "grow").await;
    let vid = nearly_fill_root(&cluster.client, &name, 40).await;
    let volume = open(&cluster.client, &name).await;
    assert_eq!(root(&cluster.client, vid).await.0, 1);

    // Sixteen writers, two for each object; each reads back what it has written.
    let mut writers = tokio::task::JoinSet::new();
    for writer in 0..16 {
        let volume = Arc::clone(&volume);
        writers.spawn(async move {
            let objects = odd_objects(OBJECTS).enumerate();
            for (turn, object) in objects.filter(|(turn, _)| turn % 8 == writer % 8) {
                let offset = object * HYPER_OBJECT + if writer < 8 { 0 } else { MIB };
                let written = volume.write_at(offset, number(object)).await;
                assert_eq!(written.unwrap(), 512, "object {object}, write {turn}");
                expect(&volume, offset, &number(object)).await;
                volume.write_at(offset + 512, number(object)).await.unwrap();
            }
        });
    }
    // The whole index is revalidated while the writers change it.
    let opening = tokio::spawn({
        let volume = Arc::clone(&volume);
        async move {
            for _ in 0..10 {
                volume.revalidate().await.unwrap();
            }
        }
    });
    while let Some(done) = writers.join_next().await {
        done.unwrap();
    }
    opening.await.unwrap();
    // The tree has grown by a level.
    let (depth, leaves) = root(&cluster.client, vid).await;
    assert_eq!(depth, 2);
    assert!(leaves >= 2);
    volume.flush().await.unwrap();

    // Both volumes read every write, and a discard clears its slot.
    let again = open(&cluster.client, &name).await;
    for object in odd_objects(OBJECTS) {
        for offset in [0, 512, MIB, MIB + 512] {
            let offset = object * HYPER_OBJECT + offset;
            expect(&volume, offset, &number(object)).await;
            expect(&again, offset, &number(object)).await;
        }
    }
    let slots = u64::from(LEAF_MAX_ENTRIES - 40) + OBJECTS;
    assert_eq!(again.allocated(), slots * HYPER_OBJECT);
    let gone = odd_objects(1).next().unwrap() * HYPER_OBJECT;
    volume.discard(gone, HYPER_OBJECT).await.unwrap();
    again.revalidate().await.unwrap();
    expect(&again, gone, &[0; 512]).await;
}

/// The C programs leave a wrong maximum for the lower half in the root when they split a
/// leaf, and then no longer find its slots.
#[tokio::test(flavor = "multi_thread")]
async fn hypervolume_repairs_tree_split_by_c_programs() {
    let cluster = Cluster::start().await;
    let client = &cluster.client;
    // A correct tree of two leaves.
    let name = hypervolume(&cluster, "defect").await;
    let vid = nearly_fill_root(client, &name, 1).await;
    let volume = open(client, &name).await;
    for object in odd_objects(4) {
        let written = volume.write_at(object * HYPER_OBJECT, number(object)).await;
        written.unwrap();
    }
    volume.close().await.unwrap();
    let (depth, leaves) = root(client, vid).await;
    assert_eq!(depth, 2);

    // Overwrites the maximum of the first leaf, as the C programs do.
    let len = 8 + 8 + 16 * leaves;
    let inode = Oid::inode(vid);
    let bytes = client.objects().read(inode, ROOT_WRITE_OFFSET, len);
    let mut bytes = bytes.await.unwrap().to_vec();
    bytes[16..20].fill(0);
    let write = client
        .objects()
        .write(inode, ROOT_WRITE_OFFSET, bytes.into());
    write.await.unwrap();

    // Lookups find all slots all the same.
    let volume = open(client, &name).await;
    for object in odd_objects(4) {
        expect(&volume, object * HYPER_OBJECT, &number(object)).await;
    }
    // The next commit repairs the root.
    for object in odd_objects(8) {
        let offset = object * HYPER_OBJECT + 512;
        volume.write_at(offset, number(object)).await.unwrap();
    }
    // The maximum in the root covers the leaf again.
    let fixed = client.objects().read(inode, ROOT_WRITE_OFFSET + 16, 4);
    assert_ne!(fixed.await.unwrap(), [0; 4][..]);
    let again = open(client, &name).await;
    for object in odd_objects(8) {
        let offset = object * HYPER_OBJECT + 512;
        expect(&again, offset, &number(object)).await;
    }
    for object in odd_objects(4) {
        expect(&again, object * HYPER_OBJECT, &number(object)).await;
    }
}

/// Rewrites inodes to the format before release 0.9: no object size, children in the
/// header, and only a counter after the index.
#[derive(Debug)]
struct OldReleaseTransport(Arc<dyn Transport>);

const CHILDREN: std::ops::Range<usize> = 568..INODE_HEADER_LEN;
const OBJECT_SHIFT_OFFSET: usize = 555;

impl Transport for OldReleaseTransport {
    fn submit(&self, request: Request, done: Completion) {
        let header = request.header(Generation::V1_0);
        let is_inode = request.operation().oid.and_then(Oid::kind) == Some(ObjectKind::Inode);
        let RequestBody::Object(body) = header.body() else {
            return self.0.submit(request, done);
        };
        if !is_inode || request.opcode() != Opcode::ReadObj {
            return self.0.submit(request, done);
        }
        let start = body.offset.get() as usize;
        let as_before = move |mut response: Response| {
            assert!(start + response.payload.len() <= INODE_GREF_OFFSET + 8);
            for (at, byte) in (start..).zip(&mut response.payload[..]) {
                if at == OBJECT_SHIFT_OFFSET {
                    *byte = 0;
                } else if CHILDREN.contains(&at) {
                    *byte = 0x5a;
                }
            }
            response
        };
        let done = Box::new(move |result: Result<Response, _>| done(result.map(as_before)));
        self.0.submit(request, done);
    }

    fn submit_to(&self, node: SocketAddr, request: Request, done: Completion) {
        self.0.submit_to(node, request, done);
    }

    fn address(&self) -> GatewayAddress {
        self.0.address()
    }

    fn generation(&self, timeout: Duration) -> BoxFuture<'_, Result<Generation, ClientError>> {
        self.0.generation(timeout)
    }

    fn switch_gateway(&self, address: GatewayAddress) -> BoxFuture<'_, Result<(), ClientError>> {
        self.0.switch_gateway(address)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn geometry_old_inode_has_4_mib_objects() {
    let cluster = Cluster::newest().await;
    let name = cluster
        .create_kind("before", |new| {
            (new.size, new.object_shift) = (4 * TIB, Some(22));
        })
        .await;
    let client = cluster.client_through(OldReleaseTransport).await;
    let volume = open(&client, &name).await;
    let border = 4 * MIB;
    volume.write_at(border - 5, pattern(1, 10)).await.unwrap();
    volume.write_at(4 * TIB - 10, pattern(2, 10)).await.unwrap();
    client
        .vdi(&VdiSelector::working(name.clone()))
        .snapshot(&tag("s"))
        .await
        .unwrap();
    let clone = unique_name("before-clone");
    let snapshot = VdiSelector::tag(name.clone(), tag("s"));
    client.vdi(&snapshot).clone_to(&clone).await.unwrap();
    volume.write_at(border, pattern(3, 10)).await.unwrap();
    volume.discard(4 * TIB - border, border).await.unwrap();

    // As a current release reads it.
    let volume = open(&cluster.client, &name).await;
    expect(&volume, border - 5, &[&[1; 5][..], &[3; 10], &[0]].concat()).await;
    assert_eq!(volume.allocated(), 2 * border);
    let clone = open(&cluster.client, &clone).await;
    assert_eq!(clone.info().object_shift, 22);
    expect(&clone, border - 5, &[&[1; 10][..], &[0]].concat()).await;
    expect(&clone, 4 * TIB - 10, &[2; 10]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn geometry_size_beyond_index_is_refused() {
    let cluster = formatted(ClusterFlags::empty()).await;
    let name = cluster.create("huge", 4 * MIB).await;
    let selector = VdiSelector::working(name);
    let vid = cluster.client.vdi(&selector).lookup().await.unwrap();
    let huge = Bytes::copy_from_slice(&(1u64 << 62).to_le_bytes());
    // A C sheep accepts the size; sheep-embedded refuses it.
    let options = VolumeOptions::default().with_lock(false);
    match cluster
        .client
        .objects()
        .write(Oid::inode(vid), VDI_SIZE_OFFSET, huge)
        .await
    {
        Ok(()) => {
            let refused = Volume::open(cluster.client.clone(), selector, options).await;
            assert!(matches!(refused, Err(VolumeError::TooLarge { .. })));
        }
        Err(error) => assert_eq!(error.code(), Some(ResultCode::InvalidParms)),
    }
}
