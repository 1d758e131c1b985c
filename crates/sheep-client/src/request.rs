//! A request before it has an id, and the response to it.

use std::any::Any;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use sheep_proto::header::{ObjectRequest, RequestBody, RequestHeader};
use sheep_proto::limits::{HEADER_LEN, MAX_PAYLOAD_LEN};
use sheep_proto::{
    Malformed, Oid, Opcode, RequestFlags, ResponseBody, ResponseHeader, ResultCode, VdiResponse,
    Vid,
};

use crate::error::{ClientError, OperationId};

/// Version of a READ_OBJ: from 2 on, servers 0.5.3 to 0.7 cut zeros off the
/// answer, which then cannot be told from one that is too short (protocol 7.2).
const READ_PROTO_VER: u8 = 1;

/// What a gateway does by itself when a call fails in a way that may pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RetryPolicy {
    /// Nothing: a second run would not do the same as the first.
    Never,
    /// Sends it again after a pause when the refusal is one that passes
    /// ([`Retry::Later`](sheep_proto::Retry::Later)), but not when it may have run.
    OnTransientError,
    /// Sends it again when the connection died with it in flight. A call that
    /// changes something is not when this side hung up on a sheep that answered
    /// nonsense: the first copy may still run there.
    OnDisconnect,
    /// Both.
    Always,
}

/// Something that lives until a request can no longer run, see [`Request::with_token`].
pub type InFlightToken = Arc<dyn Any + Send + Sync>;

/// A request with its payload, before it has an id. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Request {
    opcode: Opcode,
    flags: RequestFlags,
    body: RequestBody,
    payload: Bytes,
    max_response_len: u32,
    recv_buffer: BytesMut,
    retry_policy: RetryPolicy,
    timeout: Option<Duration>,
    tokens: Vec<InFlightToken>,
}

impl Request {
    /// A call without payload, that wants none back and is never resent.
    pub fn new(opcode: Opcode, body: RequestBody) -> Self {
        Self {
            opcode,
            flags: RequestFlags::empty(),
            body,
            payload: Bytes::new(),
            max_response_len: 0,
            recv_buffer: BytesMut::new(),
            retry_policy: RetryPolicy::Never,
            timeout: None,
            tokens: Vec::new(),
        }
    }

    /// The call with `payload`, and the flag that says so.
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

    /// The call with a response payload of at most `max_response_len` bytes.
    #[must_use]
    pub fn with_max_response_len(mut self, max_response_len: u32) -> Self {
        self.max_response_len = max_response_len;
        self
    }

    /// The call with memory for the payload of its response, which is used when
    /// all of it fits. A clone has none.
    #[must_use]
    pub(crate) fn with_recv_buffer(mut self, recv_buffer: BytesMut) -> Self {
        self.recv_buffer = recv_buffer;
        self
    }

    /// The call with more flags.
    #[must_use]
    pub fn with_flags(mut self, flags: RequestFlags) -> Self {
        self.flags |= flags;
        self
    }

    /// The call with another rule for resending.
    #[must_use]
    pub fn with_retry_policy(mut self, retry_policy: RetryPolicy) -> Self {
        self.retry_policy = retry_policy;
        self
    }

    /// The call given up sooner than the configuration says, when no sheep answers.
    #[must_use]
    pub fn with_timeout(mut self, timeout: Duration) -> Self {
        self.timeout = Some(timeout);
        self
    }

    /// The call with something more that it keeps alive: until its answer has
    /// arrived, or its connection has ended and it is not sent again, or it was
    /// never sent. It is let go before the caller hears of that.
    ///
    /// A call that its caller hears is [`ClientError::Unreachable`] may still run
    /// at a silent gateway, and keeps holding. A clone of a call holds as well.
    #[must_use]
    pub fn with_token(mut self, token: InFlightToken) -> Self {
        self.tokens.push(token);
        self
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
    /// Whatever was there is gone, so the caller must be the only one who
    /// creates this object, and nobody may write to it meanwhile. Under that
    /// condition it may run twice, and it is resent like a write.
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

    /// The call with all of `tokens`, see [`Request::with_token`].
    pub(crate) fn with_tokens(mut self, tokens: &[InFlightToken]) -> Self {
        self.tokens.extend_from_slice(tokens);
        self
    }

    /// Gives the memory of a payload back that will not be sent again, and of
    /// one that nobody will look at.
    pub(crate) fn release_buffers(&mut self) {
        self.payload = Bytes::new();
        self.recv_buffer = BytesMut::new();
    }

    /// The memory for the payload of the response, for who receives it.
    pub(crate) fn take_recv_buffer(&mut self) -> BytesMut {
        std::mem::take(&mut self.recv_buffer)
    }

    /// True while it keeps something alive.
    pub(crate) fn has_tokens(&self) -> bool {
        !self.tokens.is_empty()
    }

    /// Lets go of what it kept alive.
    pub(crate) fn release_tokens(&mut self) {
        self.tokens.clear();
    }

    /// How messages name it.
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

    /// The rule for resending.
    pub fn retry_policy(&self) -> RetryPolicy {
        self.retry_policy
    }

    /// How long to wait for a sheep, unless the configuration says less.
    pub fn timeout(&self) -> Option<Duration> {
        self.timeout
    }

    /// The header that goes with `id`.
    pub fn header(&self, id: u32) -> RequestHeader {
        let data_length = if self.flags.contains(RequestFlags::WRITE) {
            u32::try_from(self.payload.len()).expect("checked when the payload was set")
        } else {
            self.max_response_len
        };
        let mut header = RequestHeader::new(self.opcode, self.flags, data_length, self.body);
        if self.opcode == Opcode::ReadObj {
            header.proto_ver = READ_PROTO_VER;
        }
        header.id = id.into();
        header
    }

    /// Bytes on the wire, both ways.
    pub(crate) fn wire_len(&self) -> usize {
        2 * HEADER_LEN + self.payload.len() + self.max_response_len as usize
    }

    /// True unless a late second execution can do no harm.
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
            | Opcode::Stat => false,
            Opcode::GetVdiAttr => self
                .flags
                .intersects(RequestFlags::CREAT | RequestFlags::DEL),
            _ => true,
        }
    }
}

/// What a sheep answered.
#[derive(Clone, Debug)]
pub struct Response {
    /// The call answered.
    pub operation: OperationId,
    /// The header.
    pub header: ResponseHeader,
    /// The payload, never more than the call wanted.
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
