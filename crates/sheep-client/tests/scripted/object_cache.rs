//! Sheep with an object cache: nothing of ours goes through it, unless it is told so.

use bytes::Bytes;
use sheep_client::{Chain, Client, ClientError, Generation};
use sheep_proto::cache_info::CacheInfo;
use sheep_proto::header::{ObjectRequest, VdiRequest};
use sheep_proto::{InodeHeader, Opcode, RequestFlags, VdiName, Vid};
use zerocopy::{FromZeros as _, IntoBytes as _};

use crate::generations::{connect, sheep};
use crate::peer::{Peer, Received, Script};
use crate::{config, object, within};

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

/// Answers a question for the cache, and returns a request that releases a VDI from it.
async fn release_after(peer: &mut Peer, info: &[u8]) -> Received {
    let request = peer.request().await;
    assert_eq!(request.opcode(), Opcode::GetCacheInfo);
    request.answer(info).await;
    let request = peer.request().await;
    assert_eq!(request.opcode(), Opcode::ReleaseVdi);
    request
}

#[tokio::test]
async fn cached_volume_is_dropped_unless_it_has_changes() {
    for generation in OLD {
        let (mut peer, client) = connected(generation).await;
        let name = VdiName::new("v").unwrap();
        let cache = client.object_cache(vid());
        let (dropped, body) = tokio::join!(within(cache.drop_clean(&name)), async {
            let request = release_after(&mut peer, &cache_of(vid(), 0)).await;
            request.answer(&[]).await;
            VdiRequest::from(request.header.tail)
        });
        assert_eq!(dropped.unwrap(), Some(client.session()));
        // The lock stays.
        assert_eq!(
            (body.base_vdi_id.get(), body.lock_type.get()),
            (vid().get(), 1)
        );

        let (dropped, ()) = tokio::join!(within(cache.drop_clean(&name)), async {
            peer.request().await.answer(&cache_of(vid(), 3)).await;
        });
        let error = dropped.unwrap_err();
        assert!(matches!(error, ClientError::DirtyCache { dirty: 3, .. }));
        let text = Chain(&error).to_string();
        assert!(text.contains("dog vdi cache flush v"), "{text}");
        assert!(peer.arrived().is_none());
    }
}

/// Two gateways of a cluster, and a client of the first.
async fn two_gateways(generation: Generation) -> (Peer, Peer, Client) {
    let second = Peer::start(sheep(generation)).await;
    let first = Script {
        cache_info: cache_of(vid(), 0),
        ..sheep(generation)
    };
    let mut first_peer = Peer::start(first).await;
    let mut config = config(&first_peer, 1);
    config.addresses.push(second.address.into());
    let client = tokio::select! {
        client = within(Client::connect(config)) => client.unwrap(),
        () = describe(&mut first_peer) => unreachable!(),
    };
    (first_peer, second, client)
}

/// Answers what a client asks about the cluster.
async fn describe(peer: &mut Peer) {
    loop {
        let request = peer.request().await;
        assert!(matches!(
            request.opcode(),
            Opcode::StatCluster | Opcode::GetNodeList
        ));
        request.answer(&[]).await;
    }
}

/// The next request that is not about the cluster.
async fn next_request(peer: &mut Peer) -> Received {
    loop {
        let request = peer.request().await;
        match request.opcode() {
            Opcode::StatCluster | Opcode::GetNodeList => request.answer(&[]).await,
            _ => return request,
        }
    }
}

#[tokio::test]
async fn gateway_is_asked_itself_before_its_cache_is_dropped() {
    for generation in OLD {
        let (mut first, mut second, client) = two_gateways(generation).await;
        let name = VdiName::new("v").unwrap();
        let cache = client.object_cache(vid());
        let (dropped, ()) = tokio::join!(within(cache.drop_clean(&name)), async {
            let release = release_after(&mut first, &cache_of(vid(), 0)).await;
            drop(release);
            first.stop().await;
            // The second has changes, which a release would write back.
            let request = next_request(&mut second).await;
            assert_eq!(request.opcode(), Opcode::GetCacheInfo);
            request.answer(&cache_of(vid(), 2)).await;
        });
        assert!(matches!(
            dropped.unwrap_err(),
            ClientError::DirtyCache { dirty: 2, .. }
        ));
        assert!(second.arrived().is_none());
    }
}

#[tokio::test]
async fn request_through_cache_goes_to_no_other_gateway() {
    for generation in OLD {
        let (mut first, mut second, client) = two_gateways(generation).await;
        let session = client.session();
        let cached = client.objects().through_cache(session);
        let data = Bytes::from_static(b"data");
        let (written, flags) = tokio::join!(within(cached.write(object(), 8, data)), async {
            let request = first.request().await;
            request.answer(&[]).await;
            request.header.flags()
        });
        written.unwrap();
        assert_eq!(flags, RequestFlags::WRITE | RequestFlags::CACHE);
        let (read, flags) = tokio::join!(within(cached.read(object(), 8, 1)), async {
            let request = first.request().await;
            request.answer(b"d").await;
            request.header.flags()
        });
        read.unwrap();
        assert_eq!(flags, RequestFlags::CACHE);

        // In flight, and from then on.
        let (lost, _) = tokio::join!(within(cached.read(object(), 8, 1)), async {
            first.request().await;
            first.stop().await
        });
        assert!(matches!(lost, Err(ClientError::Lost { .. })));
        let (read, ()) = tokio::join!(within(client.objects().read(object(), 8, 1)), async {
            let request = next_request(&mut second).await;
            assert_eq!(request.opcode(), Opcode::ReadObj);
            request.answer(b"d").await;
        });
        read.unwrap();
        assert_ne!(client.session(), session);
        let over = within(cached.read(object(), 8, 1)).await;
        assert!(matches!(over, Err(ClientError::SessionEnded { .. })));
        let flushed = within(client.object_cache(vid()).flush(session)).await;
        assert!(matches!(flushed, Err(ClientError::SessionEnded { .. })));
        assert!(second.arrived().is_none());
    }
}

/// One of them may have ended with its sheep, and the others not be found closed yet.
#[tokio::test]
async fn session_ends_with_first_of_its_connections() {
    let script = sheep(Generation::V0_9);
    let mut peer = Peer::start(script).await;
    let client = tokio::select! {
        client = within(Client::connect(config(&peer, 3))) => client.unwrap(),
        () = describe(&mut peer) => unreachable!(),
    };
    within(async {
        while peer.open() < 3 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    let session = client.session();
    let (read, ()) = tokio::join!(within(client.objects().read(object(), 0, 1)), async {
        let request = peer.request().await;
        request.answer(&[7]).await;
        request.wire.close();
    });
    read.unwrap();
    within(async {
        while client.session() == session {
            tokio::task::yield_now().await;
        }
    })
    .await;
    let cached = client.objects().through_cache(session);
    let over = within(cached.read(object(), 8, 1)).await;
    assert!(matches!(over, Err(ClientError::SessionEnded { .. })));
}

#[tokio::test]
async fn lock_is_not_released_while_others_changes_are_cached() {
    let (mut peer, client) = connected(Generation::V0_9).await;
    let (unlocked, ()) = tokio::join!(within(client.inode(vid()).unlock()), async {
        let request = peer.request().await;
        assert_eq!(request.opcode(), Opcode::GetCacheInfo);
        request.answer(&cache_of(vid(), 1)).await;
        let request = peer.request().await;
        assert_eq!(request.opcode(), Opcode::ReadObj);
        let mut header = InodeHeader::new_zeroed();
        header.name[0] = b'v';
        (header.nr_copies, header.block_size_shift) = (1, 22);
        request.answer(header.as_bytes()).await;
    });
    let error = unlocked.unwrap_err();
    assert!(matches!(error, ClientError::DirtyCache { dirty: 1, .. }));
    assert!(peer.arrived().is_none());

    let (unlocked, body) = tokio::join!(within(client.inode(vid()).unlock()), async {
        let request = release_after(&mut peer, &cache_of(vid(), 0)).await;
        request.answer(&[]).await;
        VdiRequest::from(request.header.tail)
    });
    unlocked.unwrap();
    assert_eq!(
        (body.base_vdi_id.get(), body.lock_type.get()),
        (vid().get(), 0)
    );
}

/// A sheep of a cluster that waits does not say whether it has a cache.
#[tokio::test]
async fn cache_is_asked_for_again_before_first_object() {
    for generation in OLD {
        let script = Script {
            cache_info: Vec::new(),
            ..sheep(generation)
        };
        let (mut peer, client) = connect(script).await;
        let client = client.unwrap();
        let data = Bytes::from_static(b"data");
        let create = client.objects().create(object(), 8, data, None);
        let (created, payload) = tokio::join!(within(create), async {
            let request = peer.request().await;
            assert_eq!(request.opcode(), Opcode::GetCacheInfo, "{generation}");
            request.answer(CacheInfo::new_zeroed().as_bytes()).await;
            let request = peer.request().await;
            request.answer(&[]).await;
            request.payload
        });
        created.unwrap();
        // As for a sheep without a cache.
        assert_eq!(&payload[..], b"data");
        let (read, ()) = tokio::join!(within(client.objects().read(object(), 8, 1)), async {
            let request = peer.request().await;
            assert_eq!(request.opcode(), Opcode::ReadObj);
            request.answer(b"d").await;
        });
        read.unwrap();
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
    let dropped = within(client.object_cache(vid()).drop_clean(&name)).await;
    assert_eq!(dropped.unwrap(), None);
    within(client.object_cache(vid()).delete()).await.unwrap();
    assert!(peer.arrived().is_none());
}
