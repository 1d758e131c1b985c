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

use crate::error::{CallName, ClientError};

/// Version of a READ_OBJ: from 2 on, servers 0.5.3 to 0.7 cut zeros off the
/// answer, which then cannot be told from one that is too short (protocol 7.2).
const READ_PROTO_VER: u8 = 1;

/// What a gateway does by itself when a call fails in a way that may pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resend {
    /// Nothing: a second run would not do the same as the first.
    Never,
    /// Sends it again after a pause when the refusal is one that passes
    /// ([`Retry::Later`](sheep_proto::Retry::Later)), but not when it may have run.
    WhenRefused,
    /// Sends it again when the connection died with it in flight. A call that
    /// changes something is not when this side hung up on a sheep that answered
    /// nonsense: the first copy may still run there.
    WhenLost,
    /// Both.
    WhenLostOrRefused,
}

/// Something that lives until a request can no longer run, see [`Call::holding`].
pub type KeepAlive = Arc<dyn Any + Send + Sync>;

/// A request with its payload, before it has an id. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Call {
    opcode: Opcode,
    flags: RequestFlags,
    body: RequestBody,
    payload: Bytes,
    want: u32,
    room: BytesMut,
    resend: Resend,
    patience: Option<Duration>,
    held: Vec<KeepAlive>,
}

impl Call {
    /// A call without payload, that wants none back and is never resent.
    pub fn new(opcode: Opcode, body: RequestBody) -> Self {
        Self {
            opcode,
            flags: RequestFlags::empty(),
            body,
            payload: Bytes::new(),
            want: 0,
            room: BytesMut::new(),
            resend: Resend::Never,
            patience: None,
            held: Vec::new(),
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

    /// The call with a response payload of at most `want` bytes.
    #[must_use]
    pub fn wanting(mut self, want: u32) -> Self {
        self.want = want;
        self
    }

    /// The call with memory for the payload of its response, which is used when
    /// all of it fits. A clone has none.
    #[must_use]
    pub(crate) fn with_room(mut self, room: BytesMut) -> Self {
        self.room = room;
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
    pub fn with_resend(mut self, resend: Resend) -> Self {
        self.resend = resend;
        self
    }

    /// The call given up sooner than the configuration says, when no sheep answers.
    #[must_use]
    pub fn with_patience(mut self, patience: Duration) -> Self {
        self.patience = Some(patience);
        self
    }

    /// The call with something more that it keeps alive: until its answer has
    /// arrived, or its connection has ended and it is not sent again, or it was
    /// never sent. It is let go before the caller hears of that.
    ///
    /// A call that its caller hears is [`ClientError::Unreachable`] may still run
    /// at a silent gateway, and keeps holding. A clone of a call holds as well.
    #[must_use]
    pub fn holding(mut self, keep: KeepAlive) -> Self {
        self.held.push(keep);
        self
    }

    /// Reads `len` bytes at byte `offset` of an object.
    pub fn read_object(oid: Oid, offset: u32, len: u32) -> Self {
        Self::object(Opcode::ReadObj, oid, offset).wanting(len)
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
        let mut call = Self::object(Opcode::CreateAndWriteObj, oid, offset).with_payload(data);
        if let (Some(source), RequestBody::Object(body)) = (copy_from, &mut call.body) {
            body.cow_oid = source.raw().into();
            call.flags |= RequestFlags::COW;
        }
        call
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
        Self::new(opcode, RequestBody::Object(body)).with_resend(Resend::WhenLostOrRefused)
    }

    /// The call with all of `keep`, see [`Call::holding`].
    pub(crate) fn holding_all(mut self, keep: &[KeepAlive]) -> Self {
        self.held.extend_from_slice(keep);
        self
    }

    /// Gives the memory of a payload back that will not be sent again, and of
    /// one that nobody will look at.
    pub(crate) fn forget_payloads(&mut self) {
        self.payload = Bytes::new();
        self.room = BytesMut::new();
    }

    /// The memory for the payload of the response, for who receives it.
    pub(crate) fn take_room(&mut self) -> BytesMut {
        std::mem::take(&mut self.room)
    }

    /// True while it keeps something alive.
    pub(crate) fn is_holding(&self) -> bool {
        !self.held.is_empty()
    }

    /// Lets go of what it kept alive.
    pub(crate) fn let_go(&mut self) {
        self.held.clear();
    }

    /// How messages name it.
    pub fn name(&self) -> CallName {
        let oid = match &self.body {
            RequestBody::Object(body) => Some(Oid::from_raw(body.oid.get())),
            _ => None,
        };
        CallName {
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
    pub fn want(&self) -> u32 {
        self.want
    }

    /// The rule for resending.
    pub fn resend(&self) -> Resend {
        self.resend
    }

    /// How long to wait for a sheep, unless the configuration says less.
    pub fn patience(&self) -> Option<Duration> {
        self.patience
    }

    /// The header that goes with `id`.
    pub fn header(&self, id: u32) -> RequestHeader {
        let data_length = if self.flags.contains(RequestFlags::WRITE) {
            u32::try_from(self.payload.len()).expect("checked when the payload was set")
        } else {
            self.want
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
        2 * HEADER_LEN + self.payload.len() + self.want as usize
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
    pub call: CallName,
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
                call: self.call,
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
        let call = self.call;
        let source = Malformed {
            what: "VDI response",
            why: "VID out of range",
        };
        Vid::new(self.vdi()?.vdi_id.get()).ok_or(ClientError::Malformed { call, source })
    }

    /// The error for a payload that cannot be understood.
    pub(crate) fn bad_payload(&self, source: Malformed) -> ClientError {
        ClientError::Malformed {
            call: self.call,
            source,
        }
    }

    pub(crate) fn malformed(&self, what: &'static str, why: &'static str) -> ClientError {
        self.bad_payload(Malformed { what, why })
    }
}
