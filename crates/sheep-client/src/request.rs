//! A request before it has an id, and the response to it.

use std::any::Any;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use sheep_proto::generation::Probe;
use sheep_proto::header::{ClusterRequest, ObjectRequest, RequestBody, RequestHeader};
use sheep_proto::limits::{HEADER_LEN, MAX_PAYLOAD_LEN};
use sheep_proto::{
    Generation, Malformed, Oid, Opcode, RequestFlags, ResponseBody, ResponseHeader, ResultCode,
    VdiResponse, Vid,
};

use crate::error::{ClientError, OperationId};
use crate::session::Session;

/// Protocol version of a READ_OBJ. From 2 on, servers 0.5.3 to 0.7 trim zeros
/// from the response, which then looks like one that is too short (protocol 7.2).
const READ_PROTO_VER: u8 = 1;

/// After which failures the client sends a request again by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RetryPolicy {
    /// None: the request is not idempotent.
    Never,
    /// A transient refusal ([`Retry::Later`](sheep_proto::Retry::Later)), after a
    /// backoff. Not a disconnect, after which the request may have been executed.
    OnTransientError,
    /// A disconnect with the request in flight. A mutating request is not replayed
    /// when the client closed the connection because of a protocol violation: the
    /// sheep is alive and may still execute the first copy.
    OnDisconnect,
    /// Both.
    Always,
}

/// Stays alive until a request can no longer be executed, see
/// [`Request::with_token`].
pub type InFlightToken = Arc<dyn Any + Send + Sync>;

/// A request with its payload, before it has an id. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Request {
    opcode: Opcode,
    /// Another version byte than that of the sheep's generation.
    proto_ver: Option<u8>,
    flags: RequestFlags,
    body: RequestBody,
    payload: Bytes,
    max_response_len: u32,
    recv_buffer: BytesMut,
    retry_policy: RetryPolicy,
    timeout: Option<Duration>,
    response_timeout: Duration,
    session: Option<Session>,
    tokens: Vec<InFlightToken>,
}

impl Request {
    /// A request without payload in either direction, which is never retried.
    pub fn new(opcode: Opcode, body: RequestBody) -> Self {
        Self {
            opcode,
            proto_ver: None,
            flags: RequestFlags::empty(),
            body,
            payload: Bytes::new(),
            max_response_len: 0,
            recv_buffer: BytesMut::new(),
            retry_policy: RetryPolicy::Never,
            timeout: None,
            response_timeout: Duration::ZERO,
            session: None,
            tokens: Vec::new(),
        }
    }

    /// The request with `payload`, and the flag that announces it.
    ///
    /// # Panics
    /// When the payload is longer than [`MAX_PAYLOAD_LEN`].
    #[must_use]
    pub fn with_payload(mut self, payload: Bytes) -> Self {
        assert!(
            payload.len() <= MAX_PAYLOAD_LEN,
            "a payload of {} bytes",
            payload.len()
        );
        self.flags |= RequestFlags::WRITE;
        self.payload = payload;
        self
    }

    /// The request with a response payload of at most `max_response_len` bytes.
    #[must_use]
    pub fn with_max_response_len(mut self, max_response_len: u32) -> Self {
        self.max_response_len = max_response_len;
        self
    }

    /// The request with a buffer for the payload of its response, which is used
    /// when the whole payload fits. A clone has none.
    #[must_use]
    pub(crate) fn with_recv_buffer(mut self, recv_buffer: BytesMut) -> Self {
        self.recv_buffer = recv_buffer;
        self
    }

    /// The request with more flags.
    #[must_use]
    pub fn with_flags(mut self, flags: RequestFlags) -> Self {
        self.flags |= flags;
        self
    }

    /// The request with another retry policy.
    #[must_use]
    pub fn with_retry_policy(mut self, retry_policy: RetryPolicy) -> Self {
        self.retry_policy = retry_policy;
        self
    }

    /// The request with a timeout that is shorter than the configured one.
    #[must_use]
    pub fn with_timeout(mut self, timeout: Duration) -> Self {
        self.timeout = Some(timeout);
        self
    }

    /// The request with a longer wait for its response than the timeout allows, once
    /// it was sent: for what a sheep needs long for.
    #[must_use]
    pub(crate) fn with_response_timeout(mut self, response_timeout: Duration) -> Self {
        self.response_timeout = response_timeout;
        self
    }

    /// The request bound to a session: it is sent to that gateway, while the session
    /// lasts, and nowhere else. Once its connection ends it is not sent again.
    #[must_use]
    pub(crate) fn with_session(mut self, session: Session) -> Self {
        self.session = Some(session);
        self
    }

    /// The session that it is bound to.
    pub(crate) fn session(&self) -> Option<Session> {
        self.session
    }

    /// The request with one more token, which it pins until it can no longer be
    /// executed: until its response arrives, or its connection ends and it is not
    /// replayed, or it fails before it was sent. The token is released before the
    /// completion runs.
    ///
    /// A request that ended with [`ClientError::Unreachable`] may still be executed
    /// by an unresponsive gateway, so its tokens stay pinned. A clone of a request
    /// pins them, too.
    #[must_use]
    pub fn with_token(mut self, token: InFlightToken) -> Self {
        self.tokens.push(token);
        self
    }

    /// A question that tells the generation of a sheep, which may be sent to any.
    pub(crate) fn probe(probe: Probe) -> Self {
        let body = RequestBody::Cluster(ClusterRequest::default());
        let mut request = Self::new(Opcode::StatCluster, body);
        request.proto_ver = Some(probe.proto_ver);
        request.with_max_response_len(probe.max_response_len)
    }

    /// True for [`Request::probe`].
    pub(crate) fn is_probe(&self) -> bool {
        self.proto_ver.is_some()
    }

    /// Reads `len` bytes at byte `offset` of an object.
    pub fn read_object(oid: Oid, offset: u32, len: u32) -> Self {
        Self::object(Opcode::ReadObj, oid, offset).with_max_response_len(len)
    }

    /// Overwrites `data.len()` bytes at byte `offset` of an existing object.
    ///
    /// # Panics
    /// When `data` is longer than [`MAX_PAYLOAD_LEN`].
    pub fn write_object(oid: Oid, offset: u32, data: Bytes) -> Self {
        Self::object(Opcode::WriteObj, oid, offset).with_payload(data)
    }

    /// Makes an object anew with `data` at byte `offset` and the rest zero, or
    /// the rest from object `copy_from`.
    ///
    /// It replaces an existing object, so there must be no other create of the
    /// object and no write to it in flight. Under that condition it is idempotent
    /// and retried like a write.
    ///
    /// # Panics
    /// When `data` is longer than [`MAX_PAYLOAD_LEN`].
    pub fn create_object(oid: Oid, offset: u32, data: Bytes, copy_from: Option<Oid>) -> Self {
        let mut request = Self::object(Opcode::CreateAndWriteObj, oid, offset).with_payload(data);
        if let (Some(source), RequestBody::Object(body)) = (copy_from, &mut request.body) {
            body.cow_oid = source.raw().into();
            request.flags |= RequestFlags::COW;
        }
        request
    }

    /// Clears a data object's index entry and gives its space back.
    pub fn discard_object(oid: Oid) -> Self {
        Self::object(Opcode::DiscardObj, oid, 0)
    }

    /// Removes an object without touching any index.
    pub fn remove_object(oid: Oid) -> Self {
        Self::object(Opcode::RemoveObj, oid, 0)
    }

    fn object(opcode: Opcode, oid: Oid, offset: u32) -> Self {
        let body = ObjectRequest {
            oid: oid.raw().into(),
            offset: offset.into(),
            ..ObjectRequest::default()
        };
        Self::new(opcode, RequestBody::Object(body)).with_retry_policy(RetryPolicy::Always)
    }

    /// The request with all of `tokens`, see [`Request::with_token`].
    pub(crate) fn with_tokens(mut self, tokens: &[InFlightToken]) -> Self {
        self.tokens.extend_from_slice(tokens);
        self
    }

    /// Frees the buffers of a request that timed out: it is not sent again, and its
    /// response is dropped.
    pub(crate) fn release_buffers(&mut self) {
        self.payload = Bytes::new();
        self.recv_buffer = BytesMut::new();
    }

    /// The buffer for the payload of the response.
    pub(crate) fn take_recv_buffer(&mut self) -> BytesMut {
        std::mem::take(&mut self.recv_buffer)
    }

    /// True while the request pins a token.
    pub(crate) fn has_tokens(&self) -> bool {
        !self.tokens.is_empty()
    }

    /// Releases all tokens.
    pub(crate) fn release_tokens(&mut self) {
        self.tokens.clear();
    }

    /// The operation and its object, for messages.
    pub fn operation(&self) -> OperationId {
        let oid = match &self.body {
            RequestBody::Object(body) => Some(Oid::from_raw(body.oid.get())),
            _ => None,
        };
        OperationId {
            opcode: self.opcode,
            oid,
        }
    }

    /// The object of the request and where in it, for a request for an object.
    pub(crate) fn object_body(&self) -> Option<&ObjectRequest> {
        match &self.body {
            RequestBody::Object(body) => Some(body),
            _ => None,
        }
    }

    /// True for a create that copies nothing.
    pub(crate) fn is_create_without_source(&self) -> bool {
        self.opcode == Opcode::CreateAndWriteObj && !self.flags.contains(RequestFlags::COW)
    }

    /// True for an operation on one object.
    pub(crate) fn is_of_object(&self) -> bool {
        matches!(self.body, RequestBody::Object(_))
    }

    /// The operation.
    pub fn opcode(&self) -> Opcode {
        self.opcode
    }

    /// The payload to send.
    pub fn payload(&self) -> &Bytes {
        &self.payload
    }

    /// Most bytes of payload the response may have.
    pub fn max_response_len(&self) -> u32 {
        self.max_response_len
    }

    /// When it is retried.
    pub fn retry_policy(&self) -> RetryPolicy {
        self.retry_policy
    }

    /// Its timeout, unless the configured one is shorter.
    pub fn timeout(&self) -> Option<Duration> {
        self.timeout
    }

    /// How long to wait for its response at least.
    pub(crate) fn response_timeout(&self) -> Duration {
        self.response_timeout
    }

    /// The header for a sheep of `generation`; the id is 0.
    pub fn header(&self, generation: Generation) -> RequestHeader {
        let data_length = self.data_length();
        let mut header = RequestHeader::new(self.opcode, self.flags, data_length, self.body);
        header.proto_ver = match self.proto_ver {
            Some(proto_ver) => proto_ver,
            None if self.opcode == Opcode::ReadObj => READ_PROTO_VER,
            None => generation.proto_ver(self.opcode),
        };
        header
    }

    /// Bytes of the payload that is sent, or most bytes of the one that is received.
    fn data_length(&self) -> u32 {
        if self.flags.contains(RequestFlags::WRITE) {
            u32::try_from(self.payload.len()).expect("checked when the payload was set")
        } else {
            self.max_response_len
        }
    }

    /// Checks that the request may be sent to a sheep of `generation`: some requests
    /// kill old sheep, or make them leave their cluster.
    ///
    /// # Errors
    /// `Unsupported`.
    pub(crate) fn check(&self, generation: Generation) -> Result<(), ClientError> {
        generation
            .check(self.opcode, &self.body, self.data_length())
            .map_err(|source| ClientError::Unsupported {
                operation: self.operation(),
                source,
            })
    }

    /// Bytes on the wire, both ways.
    pub(crate) fn wire_len(&self) -> usize {
        2 * HEADER_LEN + self.payload.len() + self.max_response_len as usize
    }

    /// True when a late second execution can do harm.
    pub(crate) fn is_mutating(&self) -> bool {
        match self.opcode {
            Opcode::ReadObj
            | Opcode::GetVdiInfo
            | Opcode::ReadVdis
            | Opcode::GetClusterDefault
            | Opcode::GetNodeList
            | Opcode::StatSheep
            | Opcode::StatCluster
            | Opcode::StatRecovery
            | Opcode::GetVdiCopies
            | Opcode::ReadDelVdis
            | Opcode::ClusterInfo
            | Opcode::MdInfo
            | Opcode::GetCacheInfo
            | Opcode::Stat => false,
            Opcode::GetVdiAttr => self
                .flags
                .intersects(RequestFlags::CREAT | RequestFlags::DEL),
            _ => true,
        }
    }
}

/// The response to a request.
#[derive(Clone, Debug)]
pub struct Response {
    /// The operation that was requested.
    pub operation: OperationId,
    /// The header.
    pub header: ResponseHeader,
    /// The payload, never longer than the request allowed.
    pub payload: BytesMut,
}

impl Response {
    /// The response, unless it is a refusal.
    ///
    /// # Errors
    /// `Refused` with the result code.
    pub fn into_result(self) -> Result<Self, ClientError> {
        match self.header.result() {
            ResultCode::Success => Ok(self),
            code => Err(ClientError::Refused {
                operation: self.operation,
                code,
            }),
        }
    }

    /// The `len` bytes that an accepted READ_OBJ asked for.
    ///
    /// # Errors
    /// `Refused`, or `Malformed` when there are not exactly as many.
    pub fn object_bytes(self, len: u32) -> Result<BytesMut, ClientError> {
        let response = self.into_result()?;
        if response.payload.len() != len as usize {
            return Err(response.malformed("object", "not as many bytes as were asked for"));
        }
        Ok(response.payload)
    }

    /// The results of an accepted VDI operation.
    pub(crate) fn vdi(self) -> Result<VdiResponse, ClientError> {
        let response = self.into_result()?;
        match response.header.body() {
            ResponseBody::Vdi(body) => Ok(body),
            _ => Err(response.malformed("VDI response", "another operation's opcode")),
        }
    }

    /// The VID in an accepted VDI response.
    pub(crate) fn vid(self) -> Result<Vid, ClientError> {
        let operation = self.operation;
        let source = Malformed {
            what: "VDI response",
            why: "VID out of range",
        };
        Vid::new(self.vdi()?.vdi_id.get()).ok_or(ClientError::Malformed { operation, source })
    }

    /// The error for a payload that cannot be understood.
    pub(crate) fn bad_payload(&self, source: Malformed) -> ClientError {
        ClientError::Malformed {
            operation: self.operation,
            source,
        }
    }

    pub(crate) fn malformed(&self, what: &'static str, why: &'static str) -> ClientError {
        self.bad_payload(Malformed { what, why })
    }
}
