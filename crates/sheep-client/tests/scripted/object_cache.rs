//! Sheep with an object cache: nothing of ours goes through it.

use bytes::Bytes;
use sheep_client::{Chain, Client, ClientError, Generation};
use sheep_proto::cache_info::CacheInfo;
use sheep_proto::header::{ObjectRequest, VdiRequest};
use sheep_proto::{Opcode, RequestFlags, VdiName, Vid};
use zerocopy::{FromZeros as _, IntoBytes as _};

use crate::generations::{connect, sheep};
use crate::peer::{Peer, Script};
use crate::{object, within};

const OLD: [Generation; 3] = [Generation::V0_7, Generation::V0_8, Generation::V0_9];

/// The answer of a sheep that caches objects of VDI `vid`.
fn cache_of(vid: Vid, dirty: u32) -> Vec<u8> {
    let mut info = CacheInfo::new_zeroed();
    (info.size, info.count) = (1.into(), 1.into());
    info.vdis[0].vid = vid.get().into();
    (info.vdis[0].dirty, info.vdis[0].total) = (dirty.into(), 9.into());
    info.as_bytes().to_vec()
}

fn vid() -> Vid {
    Vid::new(0x76_d396).unwrap()
}

async fn connected(generation: Generation) -> (Peer, Client) {
    let script = Script {
        cache_info: cache_of(vid(), 0),
        ..sheep(generation)
    };
    let (peer, client) = connect(script).await;
    (peer, client.unwrap())
}

#[tokio::test]
async fn cache_is_bypassed_by_reads_and_writes() {
    for generation in OLD {
        let (mut peer, client) = connected(generation).await;
        let (read, flags) = tokio::join!(within(client.objects().read(object(), 0, 1)), async {
            let request = peer.request().await;
            request.answer(&[7]).await;
            request.header.flags()
        });
        assert_eq!((&read.unwrap()[..], flags), (&[7][..], RequestFlags::COW));
        let data = Bytes::from_static(b"data");
        let write = client.objects().write(object(), 8, data);
        let (written, request) = tokio::join!(within(write), async {
            let request = peer.request().await;
            request.answer(&[]).await;
            request
        });
        written.unwrap();
        let flags = request.header.flags();
        assert_eq!(flags, RequestFlags::WRITE | RequestFlags::COW);
        assert_eq!((&request.payload[..], request.offset()), (&b"data"[..], 8));
    }
}

#[tokio::test]
async fn cache_is_bypassed_by_creates_of_whole_objects() {
    for generation in OLD {
        let (mut peer, client) = connected(generation).await;
        let data = Bytes::from_static(b"data");
        let create = client.objects().create(object(), 8, data, None);
        let (created, request) = tokio::join!(within(create), async {
            let request = peer.request().await;
            request.answer(&[]).await;
            request
        });
        created.unwrap();
        assert_eq!(request.opcode(), Opcode::CreateAndWriteObj);
        let flags = request.header.flags();
        assert_eq!(flags, RequestFlags::WRITE | RequestFlags::COW);
        let body = ObjectRequest::from(request.header.tail);
        assert_eq!((body.offset.get(), body.cow_oid), (0, body.oid));
        let mut whole = vec![0; 4 << 20];
        whole[8..12].copy_from_slice(b"data");
        assert!(request.payload == whole);
    }
}

#[tokio::test]
async fn cached_volume_is_dropped_unless_it_has_changes() {
    for generation in OLD {
        let (mut peer, client) = connected(generation).await;
        let name = VdiName::new("v").unwrap();
        let inode = client.inode(vid());
        let (dropped, body) = tokio::join!(within(inode.drop_from_cache(&name)), async {
            peer.request().await.answer(&cache_of(vid(), 0)).await;
            let request = peer.request().await;
            assert_eq!(request.opcode(), Opcode::ReleaseVdi);
            request.answer(&[]).await;
            VdiRequest::from(request.header.tail)
        });
        dropped.unwrap();
        // The lock stays.
        assert_eq!(
            (body.base_vdi_id.get(), body.lock_type.get()),
            (vid().get(), 1)
        );

        let (dropped, ()) = tokio::join!(within(inode.drop_from_cache(&name)), async {
            peer.request().await.answer(&cache_of(vid(), 3)).await;
        });
        let error = dropped.unwrap_err();
        assert!(matches!(error, ClientError::DirtyCache { dirty: 3, .. }));
        let text = Chain(&error).to_string();
        assert!(text.contains("dog vdi cache flush v"), "{text}");
        assert!(peer.arrived().is_none());
    }
}

#[tokio::test]
async fn sheep_since_1_0_get_no_flag_of_a_cache() {
    let (mut peer, client) = connected(Generation::V1_0).await;
    let (read, flags) = tokio::join!(within(client.objects().read(object(), 0, 1)), async {
        let request = peer.request().await;
        request.answer(&[7]).await;
        request.header.flags()
    });
    assert_eq!(
        (&read.unwrap()[..], flags),
        (&[7][..], RequestFlags::empty())
    );
    let name = VdiName::new("v").unwrap();
    within(client.inode(vid()).drop_from_cache(&name))
        .await
        .unwrap();
    assert!(peer.arrived().is_none());
}
