//! Requests that change nothing, and may be repeated.

use std::time::Duration;

use bytes::Bytes;
use sheep_proto::limits::VID_BITMAP_LEN;
use sheep_proto::vid_bitmap::VidBitmap;
use sheep_proto::{Opcode, RequestBody};

use crate::error::ClientError;
use crate::request::{Request, RetryPolicy};
use crate::sender::Sender;

/// Timeout of queries: a user who looks at a cluster that is down should see that
/// soon.
pub(crate) const QUERY_TIMEOUT: Duration = Duration::from_secs(5);

/// A query with a response of at most `len` bytes.
pub(crate) fn query(opcode: Opcode, len: usize) -> Request {
    Request::new(opcode, RequestBody::NONE)
        .with_max_response_len(u32::try_from(len).expect("the length is a constant below 4 GiB"))
        .with_retry_policy(RetryPolicy::Always)
        .with_timeout(QUERY_TIMEOUT)
}

/// The VIDs that READ_VDIS or READ_DEL_VDIS reports.
///
/// # Errors
/// Those of [every request](ClientError#every-request).
pub(crate) async fn vid_bitmap(
    sender: &Sender,
    opcode: Opcode,
) -> Result<VidBitmap<Bytes>, ClientError> {
    let request = query(opcode, VID_BITMAP_LEN);
    let operation = request.operation();
    let response = sender.send(request).await?;
    VidBitmap::parse(response.payload.freeze())
        .map_err(|source| ClientError::Malformed { operation, source })
}
