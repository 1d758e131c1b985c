//! One request on its way to its handler, and the reply on its way back.

use std::net::SocketAddr;

use sheep_proto::limits::{MAX_PAYLOAD_LEN, NAME_FIELD_LEN};
use sheep_proto::{
    ClusterRequest, ObjectRequest, RequestFlags, RequestHeader, ResponseBody, ResultCode,
    SnapshotTag, VdiName, VdiRequest,
};
use tokio_util::sync::CancellationToken;

use crate::payload::Payload;

/// The connection a request came on.
pub(crate) struct Origin {
    /// Where the client reached its node.
    pub(crate) address: SocketAddr,
    /// Where that node listens, perhaps on all addresses.
    pub(crate) node: SocketAddr,
    /// Stops that node.
    pub(crate) stop: CancellationToken,
}

/// A request, and where it came from.
pub(crate) struct Request<'a> {
    pub(crate) header: &'a RequestHeader,
    pub(crate) payload: &'a [u8],
    pub(crate) origin: &'a Origin,
}

/// What a handler returns: a reply, or the code of a refusal.
pub(crate) type HandlerResult = Result<Reply, ResultCode>;

/// A response without its frame.
#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) body: ResponseBody,
    pub(crate) payload: Payload,
    pub(crate) fate: Fate,
}

/// What a request does besides being answered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Fate {
    /// Nothing.
    #[default]
    Lives,
    /// The node ends without an answer, because of this.
    Dies(&'static str),
    /// There is never an answer.
    Hangs,
    /// The node ends when it has answered, because of this.
    DiesAfterAnswer(&'static str),
}

impl Reply {
    /// Success, and nothing else to say.
    pub(crate) fn ok() -> Self {
        Self::body(ResponseBody::result(ResultCode::Success))
    }

    /// A refusal.
    pub(crate) fn error(code: ResultCode) -> Self {
        Self::body(ResponseBody::result(code))
    }

    /// Success with a payload.
    pub(crate) fn payload(payload: impl Into<Payload>) -> Self {
        Self {
            payload: payload.into(),
            ..Self::ok()
        }
    }

    /// Success with a body.
    pub(crate) fn body(body: ResponseBody) -> Self {
        Self {
            body,
            payload: Payload::default(),
            fate: Fate::default(),
        }
    }

    /// No answer: the node ends, because of this.
    pub(crate) fn death(reason: &'static str) -> Self {
        Self {
            fate: Fate::Dies(reason),
            ..Self::error(ResultCode::SystemError)
        }
    }
}

impl Request<'_> {
    pub(crate) fn flags(&self) -> RequestFlags {
        self.header.flags()
    }

    pub(crate) fn object(&self) -> ObjectRequest {
        self.header.tail.into()
    }

    pub(crate) fn vdi(&self) -> VdiRequest {
        self.header.tail.into()
    }

    pub(crate) fn cluster_request(&self) -> ClusterRequest {
        self.header.tail.into()
    }

    /// An address of `node` that this client can use: for one that listens on
    /// all addresses, that under which the client reached its own.
    pub(crate) fn reachable(&self, mut node: SocketAddr) -> SocketAddr {
        if node.ip().is_unspecified() {
            node.set_ip(self.origin.address.ip());
        }
        node
    }

    /// Bytes of payload that the client is ready to receive.
    ///
    /// # Errors
    /// `InvalidParms` when there are none because the request carries a payload,
    /// or when there are more than a frame may have.
    pub(crate) fn max_response_len(&self) -> Result<usize, ResultCode> {
        let len = self.header.data_length.get() as usize;
        if self.flags().contains(RequestFlags::WRITE) || len > MAX_PAYLOAD_LEN {
            return Err(ResultCode::InvalidParms);
        }
        Ok(len)
    }

    /// Success with `payload`, if the client has room for it.
    ///
    /// # Errors
    /// `InvalidParms` when its buffer is too small.
    pub(crate) fn reply_with(&self, payload: Vec<u8>) -> HandlerResult {
        if payload.len() <= self.max_response_len()? {
            Ok(Reply::payload(payload))
        } else {
            Err(ResultCode::InvalidParms)
        }
    }

    /// The payload of a request that must have one.
    pub(crate) fn data(&self) -> Result<&[u8], ResultCode> {
        if self.flags().contains(RequestFlags::WRITE) {
            Ok(self.payload)
        } else {
            Err(ResultCode::InvalidParms)
        }
    }

    /// The payload of exactly one name.
    pub(crate) fn name(&self) -> Result<VdiName, ResultCode> {
        let field: &[u8; NAME_FIELD_LEN] = self
            .data()?
            .try_into()
            .map_err(|_| ResultCode::InvalidParms)?;
        name_in(field)
    }

    /// The payload of a name, with or without a tag behind it.
    pub(crate) fn name_and_tag(&self) -> Result<(VdiName, SnapshotTag), ResultCode> {
        let data = self.data()?;
        let (name, tag) = data
            .split_first_chunk::<NAME_FIELD_LEN>()
            .ok_or(ResultCode::InvalidParms)?;
        let tag = match tag {
            [] => SnapshotTag::default(),
            tag => SnapshotTag::from_field(tag.try_into().map_err(|_| ResultCode::InvalidParms)?),
        };
        Ok((name_in(name)?, tag))
    }
}

/// A name that can be found again: neither empty nor 256 bytes long.
pub(crate) fn name_in(field: &[u8; NAME_FIELD_LEN]) -> Result<VdiName, ResultCode> {
    if !field.contains(&0) {
        return Err(ResultCode::InvalidParms);
    }
    VdiName::from_field(field).ok_or(ResultCode::InvalidParms)
}
