//! Reading, writing, creating, discarding and removing objects.

use bytes::Bytes;
use sheep_proto::{ObjectIndex, Oid, ResultCode, Vid};

use crate::{MIB, for_each_backend, refusal, tag, working};

fn zeros(len: usize) -> Bytes {
    vec![0; len].into()
}

#[tokio::test]
async fn object_reads_zeros_where_never_written() {
    for_each_backend(async |fixture| {
        let client = &fixture.client;
        let (_name, vid) = fixture.volume("v", 16 * MIB).await;
        let oid = Oid::data(vid, ObjectIndex(2));
        client
            .objects()
            .create(oid, 5, Bytes::from_static(b"made"), None)
            .await
            .unwrap();
        let bytes = client.objects().read(oid, 0, 4 << 20).await.unwrap();
        assert_eq!(bytes[..10], *b"\0\0\0\0\0made\0");
        assert_eq!(bytes[10..], zeros((4 << 20) - 10));
        client
            .objects()
            .write(oid, 7, Bytes::from_static(b"written"))
            .await
            .unwrap();
        assert_eq!(
            client.objects().read(oid, 4, 12).await.unwrap(),
            &b"\0mawritten\0\0"[..]
        );
        // The last byte, and nothing past it.
        let last = (4 << 20) - 1;
        client
            .objects()
            .write(oid, last, Bytes::from_static(b"!"))
            .await
            .unwrap();
        assert_eq!(
            client.objects().read(oid, last, 1).await.unwrap(),
            &b"!"[..]
        );
    })
    .await;
}

#[tokio::test]
async fn split_io_in_parallel_keeps_its_bytes() {
    for_each_backend(async |fixture| {
        let (_name, vid) = fixture.volume("v", 16 * MIB).await;
        let pattern = |number: u32| -> Bytes {
            (0u32..1 << 20)
                .flat_map(|at| (at ^ number << 24).to_le_bytes())
                .collect()
        };
        let parts = (0..4).map(|number| {
            let oid = Oid::data(vid, ObjectIndex(number));
            let client = &fixture.client;
            async move {
                client
                    .objects()
                    .create(oid, 0, pattern(number), None)
                    .await
                    .unwrap();
                let bytes = client.objects().read(oid, 0, 4 << 20).await.unwrap();
                assert!(bytes == pattern(number), "object {number}");
            }
        });
        futures_util::future::join_all(parts).await;
    })
    .await;
}

#[tokio::test]
async fn object_create_replaces_existing_object() {
    for_each_backend(async |fixture| {
        let client = &fixture.client;
        let (_name, vid) = fixture.volume("v", 16 * MIB).await;
        let oid = Oid::data(vid, ObjectIndex(0));
        for (offset, data) in [(0, &b"first"[..]), (2, b"x")] {
            let data = Bytes::from_static(data);
            client
                .objects()
                .create(oid, offset, data, None)
                .await
                .unwrap();
        }
        assert_eq!(
            client.objects().read(oid, 0, 5).await.unwrap(),
            &b"\0\0x\0\0"[..]
        );
    })
    .await;
}

#[tokio::test]
async fn object_absent_is_an_error_for_every_operation() {
    for_each_backend(async |fixture| {
        let client = &fixture.client;
        let (_name, vid) = fixture.volume("v", 16 * MIB).await;
        let oid = Oid::data(vid, ObjectIndex(1));
        let absent = ResultCode::NoObj;
        assert_eq!(refusal(client.objects().read(oid, 0, 512).await), absent);
        assert_eq!(
            refusal(client.objects().write(oid, 0, zeros(512)).await),
            absent
        );
        assert_eq!(refusal(client.objects().remove(oid).await), absent);
        let source = Some(Oid::data(vid, ObjectIndex(3)));
        assert_eq!(
            refusal(client.objects().create(oid, 0, zeros(512), source).await),
            absent
        );
    })
    .await;
}

#[tokio::test]
async fn object_remove_makes_it_absent() {
    for_each_backend(async |fixture| {
        let client = &fixture.client;
        let (_name, vid) = fixture.volume("v", 16 * MIB).await;
        let oid = Oid::data(vid, ObjectIndex(0));
        client
            .objects()
            .create(oid, 0, zeros(1), None)
            .await
            .unwrap();
        client.objects().remove(oid).await.unwrap();
        assert_eq!(
            refusal(client.objects().read(oid, 0, 1).await),
            ResultCode::NoObj
        );
    })
    .await;
}

#[tokio::test]
async fn copy_on_write_takes_the_rest_from_source() {
    for_each_backend(async |fixture| {
        let client = &fixture.client;
        let (name, old) = fixture.volume("v", 16 * MIB).await;
        fixture.write(old, 0, b"old content").await;
        let new = client
            .vdi(&working(&name))
            .snapshot(&tag("s"))
            .await
            .unwrap();
        let (source, copy) = (
            Oid::data(old, ObjectIndex(0)),
            Oid::data(new, ObjectIndex(0)),
        );
        client
            .objects()
            .create(copy, 0, Bytes::from_static(b"NEW"), Some(source))
            .await
            .unwrap();
        client
            .inode(new)
            .write_slots(ObjectIndex(0), &[Some(new)])
            .await
            .unwrap();
        assert_eq!(fixture.read(new, 0, 11).await, &b"NEW content"[..]);
        assert_eq!(fixture.read(old, 0, 11).await, &b"old content"[..]);
    })
    .await;
}

#[tokio::test]
async fn snapshot_data_objects_are_read_only() {
    for_each_backend(async |fixture| {
        let client = &fixture.client;
        let (name, old) = fixture.volume("v", 16 * MIB).await;
        fixture.write(old, 0, b"kept").await;
        client
            .vdi(&working(&name))
            .snapshot(&tag("s"))
            .await
            .unwrap();
        let (there, absent) = (
            Oid::data(old, ObjectIndex(0)),
            Oid::data(old, ObjectIndex(1)),
        );
        assert_eq!(
            refusal(client.objects().write(there, 0, zeros(4)).await),
            ResultCode::ReadOnly
        );
        assert_eq!(
            refusal(client.objects().create(absent, 0, zeros(4), None).await),
            ResultCode::ReadOnly
        );
        assert_eq!(fixture.read(old, 0, 4).await, &b"kept"[..]);
    })
    .await;
}

#[tokio::test]
async fn discard_clears_the_slot_and_is_idempotent() {
    for_each_backend(async |fixture| {
        let client = &fixture.client;
        let (_name, vid) = fixture.volume("v", 16 * MIB).await;
        fixture.write(vid, 3, b"data").await;
        let oid = Oid::data(vid, ObjectIndex(3));
        client.objects().discard(oid).await.unwrap();
        let slots = client
            .inode(vid)
            .read_slots(ObjectIndex(0), 4)
            .await
            .unwrap();
        assert_eq!(slots, [None; 4]);
        assert_eq!(
            refusal(client.objects().read(oid, 0, 4).await),
            ResultCode::NoObj
        );
        client.objects().discard(oid).await.unwrap();

        let absent = Oid::data(Vid::new(0x12_3456).unwrap(), ObjectIndex(0));
        assert_eq!(
            refusal(client.objects().discard(absent).await),
            ResultCode::NoObj
        );
    })
    .await;
}
