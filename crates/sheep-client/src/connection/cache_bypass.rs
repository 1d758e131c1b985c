//! Keeps requests out of the object cache that a sheep before 1.0 may have.
//!
//! The cache is not coherent between gateways, and is used unless a request prevents
//! that: it serves old data, and writes back over newer data. One flag bypasses it on
//! every release, with and without a cache. A create without a source has no such flag:
//! it becomes one with a source that is overwritten as a whole, and never read. Without
//! that the sheep dies of a create of an object that is in its cache.
//!
//! Requests that say that they are for the cache go there, see
//! [`Objects::through_cache`](crate::Objects::through_cache).

use std::ops::Range;

use bytes::{Bytes, BytesMut};
use sheep_proto::header::{ObjectRequest, RequestHeader};
use sheep_proto::limits::{BTREE_NODE_LEN, DEFAULT_BLOCK_SIZE_SHIFT};
use sheep_proto::{ObjectKind, Oid, Opcode, RequestFlags};

use crate::request::Request;

/// Bytes of an object before 1.0.
const OBJECT_LEN: usize = 1 << DEFAULT_BLOCK_SIZE_SHIFT;

const _: () = assert!(OBJECT_LEN == BTREE_NODE_LEN);

/// The request as it bypasses the cache; `is_enabled` unless the sheep has none.
pub(super) fn bypass(
    mut header: RequestHeader,
    payload: Bytes,
    is_enabled: bool,
) -> (RequestHeader, Bytes) {
    let flags = header.flags();
    let is_cow = flags.contains(RequestFlags::COW);
    if flags.contains(RequestFlags::CACHE) {
        return (header, payload);
    }
    match Opcode::try_from(header.opcode) {
        Ok(Opcode::ReadObj | Opcode::WriteObj) => {
            header.flags = (flags | RequestFlags::COW).bits().into();
            (header, payload)
        }
        Ok(Opcode::CreateAndWriteObj) if is_enabled && !is_cow => whole_object(header, payload),
        _ => (header, payload),
    }
}

/// Bytes that [`bypass`] adds to the payload of a request; `is_enabled` unless the sheep
/// has no cache.
pub(super) fn fill_len(request: &Request, is_enabled: bool) -> usize {
    let len = request.payload().len();
    let range = request
        .object_body()
        .filter(|_| is_enabled && request.is_create_without_source())
        .and_then(|body| payload_range(body, len));
    range.map_or(0, |_range| OBJECT_LEN - len)
}

/// Where the payload of a create is in the whole object; `None` for an object that is
/// not sent whole.
fn payload_range(body: &ObjectRequest, len: usize) -> Option<Range<usize>> {
    let kind = Oid::from_raw(body.oid.get()).kind()?;
    let start = body.offset.get() as usize;
    let end = start.checked_add(len)?;
    let is_whole = matches!(kind, ObjectKind::Data | ObjectKind::BtreeNode) && end <= OBJECT_LEN;
    is_whole.then_some(start..end)
}

/// A create with all bytes of the object, those around the payload zero.
fn whole_object(mut header: RequestHeader, payload: Bytes) -> (RequestHeader, Bytes) {
    let mut body = ObjectRequest::from(header.tail);
    let Some(range) = payload_range(&body, payload.len()) else {
        return (header, payload);
    };
    let mut whole = BytesMut::zeroed(OBJECT_LEN);
    whole[range].copy_from_slice(&payload);
    body.cow_oid = body.oid;
    body.offset = 0.into();
    header.tail = body.into();
    header.flags = (header.flags() | RequestFlags::COW).bits().into();
    header.data_length = u32::try_from(OBJECT_LEN)
        .expect("an object has 4 MiB")
        .into();
    (header, whole.freeze())
}

#[cfg(test)]
mod tests {
    use sheep_proto::{Generation, ObjectIndex, Vid};

    use super::*;

    fn bypassed(request: &Request, is_enabled: bool) -> (RequestHeader, Bytes) {
        let header = request.header(Generation::V0_9);
        bypass(header, request.payload().clone(), is_enabled)
    }

    #[test]
    fn bypass_marks_reads_and_writes_whether_there_is_a_cache_or_not() {
        let oid = Oid::inode(Vid::new(7).unwrap());
        for is_enabled in [false, true] {
            for request in [
                Request::read_object(oid, 8, 16),
                Request::write_object(oid, 8, b"data"[..].into()),
                Request::write_object(oid, 0, Bytes::new()),
            ] {
                let before = request.header(Generation::V0_9);
                let (header, payload) = bypassed(&request, is_enabled);
                assert_eq!(header.flags(), before.flags() | RequestFlags::COW);
                assert_eq!((header.tail, &payload), (before.tail, request.payload()));
            }
        }
    }

    #[test]
    fn bypass_sends_a_created_object_whole_only_to_a_cache() {
        let oid = Oid::data(Vid::new(7).unwrap(), ObjectIndex(1));
        let create = Request::create_object(oid, 3, b"data"[..].into(), None);
        let (header, payload) = bypassed(&create, false);
        assert_eq!(
            (header.flags(), &payload[..]),
            (RequestFlags::WRITE, &b"data"[..])
        );

        let (header, payload) = bypassed(&create, true);
        let body = ObjectRequest::from(header.tail);
        assert_eq!(header.flags(), RequestFlags::WRITE | RequestFlags::COW);
        assert_eq!((body.oid.get(), body.offset.get()), (oid.raw(), 0));
        assert_eq!(header.data_length.get() as usize, payload.len());
        assert_eq!(payload.len(), OBJECT_LEN);
        let fill = fill_len(&create, true);
        assert_eq!(create.payload().len() + fill, payload.len());
        assert_eq!(&payload[..8], b"\0\0\0data\0");

        let copy = Request::create_object(oid, 3, b"data"[..].into(), Some(oid));
        let (header, payload) = bypassed(&copy, true);
        assert_eq!(header.tail, copy.header(Generation::V0_9).tail);
        assert_eq!(&payload[..], b"data");
        for (request, is_enabled) in [(&create, false), (&copy, true)] {
            assert_eq!(fill_len(request, is_enabled), 0);
        }
    }

    #[test]
    fn bypass_leaves_other_requests_alone() {
        let oid = Oid::data(Vid::new(7).unwrap(), ObjectIndex(1));
        for request in [
            Request::discard_object(oid),
            Request::remove_object(oid),
            Request::read_object(oid, 0, 8).with_flags(RequestFlags::CACHE),
        ] {
            let before = request.header(Generation::V0_9);
            assert_eq!(bypassed(&request, true), (before, Bytes::new()));
        }
    }
}
