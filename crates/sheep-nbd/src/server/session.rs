//! The transmission phase: requests as calls of the device.
//!
//! Requests run concurrently, with replies in completion order. The task that reads
//! requests submits reads and writes, and the thread that completes one sends its reply.
//! Other requests are tasks of their own.

use std::future::ready;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock};

use bytes::Bytes;
use futures_util::{StreamExt as _, stream};
use sheepfs_vfs::{BlockDevice as _, Chain, VolumeError};
use tokio_util::sync::CancellationToken;

use super::budget::Charge;
use super::error_code::{error_code, past_end};
use super::reply_queue::ReplyQueue;
use crate::export::Export;
use crate::protocol::error::ErrorCode;
use crate::protocol::flags::{AllocationState, CommandFlags};
use crate::protocol::limits::{MAX_EXTENTS, MAX_PAYLOAD_LEN};
use crate::protocol::reply::{Frame, ReplyStyle, ReplyTo, StatusExtent};
use crate::protocol::request::{Command, HeaderStyle, RequestHeader, StatusPayload};

/// Bytes of zeros written, or of data read ahead, by one call of the device.
const STEP: u32 = 1 << 20;
/// Concurrent calls.
const PARALLEL_STEPS: usize = 4;
/// Shortest read that is checked for zeros.
const MIN_HOLE_LEN: usize = 512;

/// Error of a request with too much data.
pub(super) const TOO_LONG: (ErrorCode, &str) =
    (ErrorCode::Invalid, "the request is longer than 32 MiB");

/// A metadata context that the client has selected.
pub(super) enum Selected<C> {
    /// `base:allocation`, which every device has.
    Allocation,
    /// One of the export's own.
    Own(C),
}

/// A negotiated connection.
pub(super) struct Session<E: Export> {
    pub(super) export: Arc<E>,
    pub(super) style: ReplyStyle,
    /// The contexts by their ids.
    pub(super) contexts: Vec<Selected<E::Context>>,
    pub(super) replies: ReplyQueue,
    /// Ends requests of many steps early.
    pub(super) shutdown: CancellationToken,
}

/// Why a request of many steps ended early.
enum StepError {
    Device(VolumeError),
    /// The server shuts down, or nobody receives the reply.
    Stopped,
}

impl<E: Export> Session<E> {
    /// Header style of requests.
    pub(super) fn header_style(&self) -> HeaderStyle {
        match self.style {
            ReplyStyle::Simple | ReplyStyle::Structured => HeaderStyle::Compact,
            ReplyStyle::Extended => HeaderStyle::Extended,
        }
    }

    /// Checks the header of a request.
    pub(super) fn check(&self, request: &RequestHeader) -> Result<(), (ErrorCode, &'static str)> {
        let device = self.export.device();
        if matches!(request.command, Command::Unknown(_)) {
            return Err((ErrorCode::Invalid, "there is no such command"));
        }
        if request.flags.contains(CommandFlags::DF) && self.style == ReplyStyle::Simple {
            return Err((ErrorCode::Invalid, "DF is for structured replies"));
        }
        if request.has_wrong_flags(self.header_style()) {
            return Err((ErrorCode::Invalid, "the flags do not go with the command"));
        }
        if request.command.is_write() && !device.is_writable() {
            return Err((ErrorCode::Perm, "the export is read-only"));
        }
        let has_data = matches!(request.command, Command::Read | Command::Write);
        if has_data && request.len > u64::from(MAX_PAYLOAD_LEN) {
            return Err(TOO_LONG);
        }
        let has_status_payload = request.command == Command::BlockStatus
            && request.flags.contains(CommandFlags::PAYLOAD_LEN);
        match request.command {
            Command::Flush | Command::Disconnect => Ok(()),
            Command::BlockStatus if self.contexts.is_empty() => {
                Err((ErrorCode::Invalid, "no metadata context was selected"))
            }
            // Its length is in the payload.
            Command::BlockStatus if has_status_payload => Ok(()),
            command => self.check_range(command, request.offset, request.len),
        }
    }

    fn check_range(
        &self,
        command: Command,
        offset: u64,
        len: u64,
    ) -> Result<(), (ErrorCode, &'static str)> {
        if command == Command::BlockStatus && len == 0 {
            return Err((ErrorCode::Invalid, "the range is empty"));
        }
        let size = self.export.device().size();
        if offset.checked_add(len).is_some_and(|end| end <= size) {
            return Ok(());
        }
        Err((
            past_end(command),
            "the range goes past the end of the export",
        ))
    }

    /// Starts a request that passed [`Self::check`].
    pub(super) fn begin(self: &Arc<Self>, request: RequestHeader, payload: Bytes, charge: Charge) {
        let call = Call::new(self, &request, charge);
        match request.command {
            Command::Read => self.read(&request, call),
            Command::Write => self.write(&request, payload, call),
            _ => {
                tokio::spawn(async move { call.run(&request, &payload).await });
            }
        }
    }

    async fn discard(&self, range: Range<u64>) -> Result<(), VolumeError> {
        let len = range.end - range.start;
        self.export.device().discard(range.start, len).await
    }

    fn read(self: &Arc<Self>, request: &RequestHeader, call: Call<E>) {
        let len = u32::try_from(request.len).expect("at most 32 MiB");
        let device = self.export.device();
        let to = call.to;
        if len == 0 {
            return call.finish(to.no_content());
        }
        let pieces = match self.style {
            ReplyStyle::Structured | ReplyStyle::Extended
                if !request.flags.contains(CommandFlags::DF) =>
            {
                pieces(request.offset, len, device.object_size())
            }
            _ => vec![(request.offset, len)],
        };
        if let [(offset, len)] = pieces[..] {
            let style = self.style;
            return device.submit_read(offset, len, move |read| {
                match complete(read, offset, len) {
                    Ok(data) if style == ReplyStyle::Simple => call.finish(to.simple_data(data)),
                    Ok(data) => call.finish(content(to, offset, data, true)),
                    Err(error) => call.fail(&error),
                }
            });
        }
        let reply = Arc::new(ReadReply {
            left: AtomicUsize::new(pieces.len()),
            error: OnceLock::new(),
            call: Mutex::new(Some(call)),
        });
        for (offset, len) in pieces {
            let (session, reply) = (Arc::clone(self), Arc::clone(&reply));
            device.submit_read(offset, len, move |read| {
                match complete(read, offset, len) {
                    Ok(data) => session.replies.send(content(to, offset, data, false), None),
                    // The first error is reported.
                    Err(error) => drop(reply.error.set(error)),
                }
                reply.end_piece();
            });
        }
    }

    fn write(self: &Arc<Self>, request: &RequestHeader, data: Bytes, call: Call<E>) {
        let is_fua = request.flags.contains(CommandFlags::FUA);
        let len = data.len();
        if len == 0 {
            return call.end(Ok(()));
        }
        let runtime = tokio::runtime::Handle::current();
        let device = self.export.device();
        device.submit_write(request.offset, data, move |written| match written {
            // The device may have shrunk since the request was checked.
            Ok(written) if (written as usize) < len => {
                call.refuse(ErrorCode::NoSpace, "the export ends before that");
            }
            Ok(_) if is_fua => {
                runtime.spawn(async move {
                    let flushed = call.session.export.device().flush().await;
                    call.end(flushed);
                });
            }
            written => call.end(written.map(drop)),
        });
    }

    /// Writes zeros that stay allocated.
    async fn write_zeros(&self, range: Range<u64>) -> Result<(), StepError> {
        static ZEROS: [u8; STEP as usize] = [0; STEP as usize];
        self.in_steps(range, |offset, len| async move {
            let zeros = Bytes::from_static(&ZEROS[..len as usize]);
            match self.export.device().write_at(offset, zeros).await? {
                written if written == len => Ok(()),
                written => Err(VolumeError::EndOfDevice(offset + u64::from(written))),
            }
        })
        .await
    }

    /// Reads a range into the caches below, if any. The rest of a long one is ignored:
    /// nobody has to read ahead.
    async fn read_ahead(&self, range: Range<u64>) -> Result<(), StepError> {
        let end = range.end.min(range.start + u64::from(MAX_PAYLOAD_LEN));
        self.in_steps(range.start..end, |offset, len| async move {
            self.export.device().read_at(offset, len).await.map(drop)
        })
        .await
    }

    /// Runs `step` for all parts of a range, some at a time. No step starts after an
    /// error, at shutdown, or if nobody receives the reply. Returns when no step is
    /// in flight: a write that ends after the reply could overwrite a later one.
    async fn in_steps<F: Future<Output = Result<(), VolumeError>>>(
        &self,
        range: Range<u64>,
        step: impl Fn(u64, u32) -> F,
    ) -> Result<(), StepError> {
        let failed = OnceLock::new();
        let stopped = AtomicBool::new(false);
        let wanted = steps(range).take_while(|_| {
            let is_unwanted = self.shutdown.is_cancelled() || self.replies.is_broken();
            stopped.fetch_or(is_unwanted, Ordering::Relaxed);
            !is_unwanted && failed.get().is_none()
        });
        stream::iter(wanted)
            .map(|(offset, len)| step(offset, len))
            .buffer_unordered(PARALLEL_STEPS)
            .for_each(|ended| {
                if let Err(error) = ended {
                    // The first error is reported.
                    drop(failed.set(error));
                }
                ready(())
            })
            .await;
        match failed.into_inner() {
            Some(error) => Err(StepError::Device(error)),
            None if stopped.into_inner() => Err(StepError::Stopped),
            None => Ok(()),
        }
    }

    /// The part of a range that is whole objects, the last of which may be cut by the
    /// end of the device.
    fn whole_objects(&self, range: Range<u64>) -> Range<u64> {
        let device = self.export.device();
        let object_size = device.object_size();
        let end = match range.end == device.size() {
            true => range.end,
            false => range.end - range.end % object_size,
        };
        range.start.next_multiple_of(object_size).min(end)..end
    }

    /// Whether zeros in a range cost no writing: what lies in it of objects that it
    /// covers in part takes no space.
    async fn is_fast_zero(&self, range: Range<u64>) -> Result<bool, VolumeError> {
        let whole = self.whole_objects(range.clone());
        let edges = match whole.is_empty() {
            true => vec![range],
            false => vec![range.start..whole.start, whole.end..range.end],
        };
        for edge in edges.into_iter().filter(|edge| !edge.is_empty()) {
            let extent = self.export.device().block_status(edge.start).await?;
            if extent.allocated || extent.end < edge.end {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// The extents of one context in a range that is inside the device.
    async fn extents(
        &self,
        context: &Selected<E::Context>,
        range: Range<u64>,
        max: usize,
    ) -> Result<Vec<StatusExtent>, VolumeError> {
        match context {
            Selected::Allocation => self.allocation(range, max).await,
            Selected::Own(context) => self.export.extents(context, range, max).await,
        }
    }

    async fn allocation(
        &self,
        range: Range<u64>,
        max: usize,
    ) -> Result<Vec<StatusExtent>, VolumeError> {
        let mut extents = Vec::new();
        let mut at = range.start;
        while at < range.end && extents.len() < max {
            let found = self.export.device().block_status(at).await?;
            let end = found.end.min(range.end);
            let state = match found.allocated {
                true => AllocationState::empty(),
                false => AllocationState::HOLE | AllocationState::ZERO,
            };
            extents.push(StatusExtent {
                len: end - at,
                status: state.bits(),
            });
            at = end;
        }
        Ok(extents)
    }
}

/// A request in flight. If it is dropped without a reply, because its task panicked,
/// an error is sent, so that the client does not wait.
struct Call<E: Export> {
    session: Arc<Session<E>>,
    to: ReplyTo,
    command: Command,
    /// `None` after the reply.
    charge: Option<Charge>,
}

impl<E: Export> Call<E> {
    fn new(session: &Arc<Session<E>>, request: &RequestHeader, charge: Charge) -> Self {
        Self {
            session: Arc::clone(session),
            to: ReplyTo {
                style: session.style,
                cookie: request.cookie,
                offset: request.offset,
            },
            command: request.command,
            charge: Some(charge),
        }
    }

    /// Sends the last chunk of the reply.
    fn finish(mut self, last: Frame) {
        let charge = self.charge.take();
        self.session.replies.send(last, charge);
    }

    fn fail(self, error: &VolumeError) {
        let text = Chain(error).to_string();
        tracing::warn!("{:?} at byte {}: {text}", self.command, self.to.offset);
        let frame = self.to.error(error_code(self.command, error), &text);
        self.finish(frame);
    }

    fn fail_steps(self, error: &StepError) {
        match error {
            StepError::Device(error) => self.fail(error),
            StepError::Stopped => self.refuse(ErrorCode::Shutdown, "the server is shutting down"),
        }
    }

    fn end(self, outcome: Result<(), VolumeError>) {
        match outcome {
            Ok(()) => {
                let done = self.to.done();
                self.finish(done);
            }
            Err(error) => self.fail(&error),
        }
    }

    fn refuse(self, code: ErrorCode, why: &str) {
        let frame = self.to.error(code, why);
        self.finish(frame);
    }

    /// Runs a request that is neither a read nor a write.
    async fn run(self, request: &RequestHeader, payload: &[u8]) {
        let session = Arc::clone(&self.session);
        let range = request.offset..request.offset.saturating_add(request.len);
        match request.command {
            Command::Flush => self.end(session.export.device().flush().await),
            Command::Trim => {
                let whole = session.whole_objects(range);
                let discarded = match whole.is_empty() {
                    true => Ok(()),
                    false => session.discard(whole).await,
                };
                self.end_durably(request, discarded).await;
            }
            Command::WriteZeroes => self.write_zeroes(request, range).await,
            Command::Cache => match session.read_ahead(range).await {
                Ok(()) => self.end(Ok(())),
                Err(error) => self.fail_steps(&error),
            },
            Command::BlockStatus => self.block_status(request, payload).await,
            Command::Read | Command::Write | Command::Disconnect | Command::Unknown(_) => {
                self.refuse(ErrorCode::Invalid, "there is no such command");
            }
        }
    }

    /// Completes a change, with FUA after a flush.
    async fn end_durably(self, request: &RequestHeader, changed: Result<(), VolumeError>) {
        let outcome = match changed {
            Ok(()) if request.flags.contains(CommandFlags::FUA) => {
                self.session.export.device().flush().await
            }
            changed => changed,
        };
        self.end(outcome);
    }

    async fn write_zeroes(self, request: &RequestHeader, range: Range<u64>) {
        let session = Arc::clone(&self.session);
        let keeps_space = request.flags.contains(CommandFlags::NO_HOLE);
        if request.flags.contains(CommandFlags::FAST_ZERO) {
            let is_fast = match keeps_space {
                true => Ok(false),
                false => session.is_fast_zero(range.clone()).await,
            };
            match is_fast {
                Ok(true) => {}
                Ok(false) => {
                    return self.refuse(ErrorCode::NotSupported, "zeros have to be written here");
                }
                Err(error) => return self.fail(&error),
            }
        }
        let written = match keeps_space {
            true => session.write_zeros(range).await,
            false => session.discard(range).await.map_err(StepError::Device),
        };
        match written {
            Ok(()) => self.end_durably(request, Ok(())).await,
            Err(error) => self.fail_steps(&error),
        }
    }

    async fn block_status(self, request: &RequestHeader, payload: &[u8]) {
        let session = Arc::clone(&self.session);
        let (len, ids) = if request.flags.contains(CommandFlags::PAYLOAD_LEN) {
            let known = |id: &u32| (*id as usize) < session.contexts.len();
            match StatusPayload::parse(payload) {
                Some(payload)
                    if !payload.contexts.is_empty() && payload.contexts.iter().all(known) =>
                {
                    (payload.len, payload.contexts)
                }
                _ => {
                    return self.refuse(
                        ErrorCode::Invalid,
                        "the payload names no contexts of this connection",
                    );
                }
            }
        } else {
            (request.len, (0..).take(session.contexts.len()).collect())
        };
        if let Err((code, why)) = session.check_range(Command::BlockStatus, request.offset, len) {
            return self.refuse(code, why);
        }
        let range = request.offset..request.offset + len;
        let max = match request.flags.contains(CommandFlags::REQ_ONE) {
            true => 1,
            false => MAX_EXTENTS / ids.len().max(1),
        };
        let mut found = Vec::new();
        if let Err(error) = session.export.revalidate(range.clone()).await {
            return self.fail(&error);
        }
        // It may have found that the device has shrunk.
        if let Err((code, why)) = session.check_range(Command::BlockStatus, request.offset, len) {
            return self.refuse(code, why);
        }
        for &id in &ids {
            let context = &session.contexts[id as usize];
            match session.extents(context, range.clone(), max).await {
                Ok(extents) => found.push((id, extents)),
                Err(error) => return self.fail(&error),
            }
        }
        let Some((last, extents)) = found.pop() else {
            return self.refuse(ErrorCode::Invalid, "no metadata context was selected");
        };
        for (id, extents) in found {
            let frame = self.to.block_status(id, &extents, false);
            session.replies.send(frame, None);
        }
        let frame = self.to.block_status(last, &extents, true);
        self.finish(frame);
    }
}

impl<E: Export> Drop for Call<E> {
    fn drop(&mut self) {
        if let Some(charge) = self.charge.take() {
            tracing::error!("{:?} ended without a reply", self.command);
            let text = "internal error: the server dropped the request";
            let frame = self.to.error(ErrorCode::Io, text);
            self.session.replies.send(frame, Some(charge));
        }
    }
}

/// A read with one reply chunk for each piece.
struct ReadReply<E: Export> {
    /// Pieces in flight.
    left: AtomicUsize,
    /// The first error of a piece.
    error: OnceLock<VolumeError>,
    /// Taken by the last one.
    call: Mutex<Option<Call<E>>>,
}

impl<E: Export> ReadReply<E> {
    fn end_piece(&self) {
        if self.left.fetch_sub(1, Ordering::AcqRel) != 1 {
            return;
        }
        let call = self.call.lock().expect("taking it does not panic").take();
        let Some(call) = call else {
            return;
        };
        match self.error.get() {
            None => {
                let last = call.to.no_content();
                call.finish(last);
            }
            Some(error) => call.fail(error),
        }
    }
}

/// Turns a short read into an error: the device has shrunk.
fn complete(read: Result<Bytes, VolumeError>, offset: u64, len: u32) -> Result<Bytes, VolumeError> {
    match read {
        Ok(data) if data.len() < len as usize => {
            Err(VolumeError::EndOfDevice(offset + data.len() as u64))
        }
        read => read,
    }
}

/// A content chunk, a hole chunk if all bytes are zero.
fn content(to: ReplyTo, offset: u64, data: Bytes, is_last: bool) -> Frame {
    if data.len() >= MIN_HOLE_LEN && is_zero(&data) {
        let len = u32::try_from(data.len()).expect("at most 32 MiB");
        return to.hole(offset, len, is_last);
    }
    to.data(offset, data, is_last)
}

/// Whether all bytes are zero. Comparing the slice with itself, shifted by one, is one
/// memcmp(3).
fn is_zero(bytes: &[u8]) -> bool {
    match bytes {
        [] => true,
        [first, rest @ ..] => *first == 0 && bytes[..rest.len()] == *rest,
    }
}

/// A range cut at multiples of `object_size`.
fn pieces(offset: u64, len: u32, object_size: u64) -> Vec<(u64, u32)> {
    let end = offset + u64::from(len);
    let mut pieces = Vec::new();
    let mut at = offset;
    while at < end {
        let next = (at - at % object_size).saturating_add(object_size).min(end);
        pieces.push((at, u32::try_from(next - at).expect("at most 32 MiB")));
        at = next;
    }
    pieces
}

/// A range in steps.
fn steps(range: Range<u64>) -> impl Iterator<Item = (u64, u32)> {
    range.clone().step_by(STEP as usize).map(move |offset| {
        let len = (range.end - offset).min(u64::from(STEP));
        (offset, u32::try_from(len).expect("at most STEP"))
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn zero_detection_finds_any_other_byte(len in 0..3000usize, at in 0..3000usize) {
            let mut bytes = vec![0; len];
            prop_assert!(is_zero(&bytes));
            if let Some(byte) = bytes.get_mut(at) {
                *byte = 1;
                prop_assert!(!is_zero(&bytes));
            }
        }

        #[test]
        fn read_pieces_lie_within_one_object(offset in 0..1u64 << 40, len in 1..33u32 << 20, shift in 20..32u32) {
            let object_size = 1 << shift;
            let mut at = offset;
            for (start, piece) in pieces(offset, len, object_size) {
                prop_assert_eq!(start, at);
                at += u64::from(piece);
                prop_assert_eq!(start / object_size, (at - 1) / object_size);
            }
            prop_assert_eq!(at, offset + u64::from(len));
        }

        #[test]
        fn steps_cover_a_range(start in 0..1u64 << 40, len in 0..5u64 << 20) {
            let mut at = start;
            for (offset, step) in steps(start..start + len) {
                prop_assert_eq!(offset, at);
                at += u64::from(step);
            }
            prop_assert_eq!(at, start + len);
        }
    }
}
