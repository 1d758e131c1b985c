//! What can go wrong with a call, and the errno each failure stands for.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use nix::errno::Errno;
use sheep_proto::decoder::BadFrame;
use sheep_proto::name::BadName;
use sheep_proto::{Malformed, Oid, Opcode, ResultCode};

use crate::address::GatewayAddress;

/// Names a call in messages: its operation, and its object when it has one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CallName {
    /// The operation.
    pub opcode: Opcode,
    /// The object it is about.
    pub oid: Option<Oid>,
}

impl fmt::Display for CallName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.oid {
            Some(oid) => write!(f, "{} of object {oid}", self.opcode),
            None => write!(f, "{}", self.opcode),
        }
    }
}

/// Why a connection was given up.
#[derive(Debug, thiserror::Error)]
pub enum Hangup {
    /// The sheep closed it.
    #[error("the sheep closed the connection")]
    Closed,
    /// The network failed.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// The sheep sent a header no sheep sends.
    #[error("{0}")]
    BadFrame(#[from] BadFrame),
    /// The sheep answered a request that was not made.
    #[error("a response has id {id} and opcode {opcode:#04x}, and no such request is in flight")]
    UnknownId {
        /// Id of the response.
        id: u32,
        /// Opcode of the response.
        opcode: u8,
    },
}

impl Hangup {
    /// True when it was this side that hung up, on a sheep that still lives and
    /// may still run what it was sent.
    pub(crate) fn is_ours(&self) -> bool {
        matches!(self, Self::BadFrame(_) | Self::UnknownId { .. })
    }
}

/// Why a call to a cluster failed.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// No connection could be made; nothing was sent.
    #[error("cannot connect to sheep {gateway}: {source}")]
    Connect {
        /// Where it was tried.
        gateway: GatewayAddress,
        /// What the system said. In the message already, thus no `source()`,
        /// which `r#` keeps it from being.
        r#source: io::Error,
    },
    /// No sheep has answered for as long as the configuration allows. A call
    /// that was sent to a silent one may still run.
    #[error("no sheep has answered for {} s, last tried {gateway}", waited.as_secs())]
    Unreachable {
        /// The address tried last.
        gateway: GatewayAddress,
        /// Time without an answer, or since the last sheep was lost.
        waited: Duration,
    },
    /// The connection died with the request in flight; it may have run.
    #[error("lost sheep {gateway} during {call}: {why}")]
    Lost {
        /// The call in flight.
        call: CallName,
        /// The sheep it was sent to.
        gateway: SocketAddr,
        /// Why the connection was given up.
        why: Arc<Hangup>,
    },
    /// The sheep answered, and the answer is no.
    #[error("{call} was refused: {code}")]
    Refused {
        /// The call refused.
        call: CallName,
        /// The reason given.
        code: ResultCode,
    },
    /// The sheep answered with a payload that is not what the call asked for.
    #[error("{call} was answered with a {source}")]
    Malformed {
        /// The call answered.
        call: CallName,
        /// What is wrong; in the message already as well.
        r#source: Malformed,
    },
    /// A name or tag that a cluster cannot hold.
    #[error(transparent)]
    BadName(#[from] BadName),
    /// A size that the index of the VDI cannot name.
    #[error("{size} bytes are more than the {limit} such a VDI can have")]
    TooLarge {
        /// Bytes asked for.
        size: u64,
        /// Bytes possible.
        limit: u64,
    },
    /// What was asked cannot be done with this VDI; nothing was sent.
    #[error("{0}")]
    Unsuitable(&'static str),
}

impl ClientError {
    /// The refusal's code, when the sheep answered and said no.
    pub fn code(&self) -> Option<ResultCode> {
        match self {
            Self::Refused { code, .. } => Some(*code),
            _ => None,
        }
    }

    /// The errno a file system call reports for it.
    pub fn errno(&self) -> Errno {
        match self {
            Self::Connect { .. } | Self::Unreachable { .. } => Errno::EHOSTUNREACH,
            Self::Lost { .. } | Self::Malformed { .. } => Errno::EIO,
            Self::Refused { code, .. } => errno_of(*code),
            Self::BadName(BadName::TooLong(_)) => Errno::ENAMETOOLONG,
            Self::BadName(BadName::Empty | BadName::Nul) | Self::Unsuitable(_) => Errno::EINVAL,
            Self::TooLarge { .. } => Errno::EFBIG,
        }
    }
}

/// The errno of a refusal; source: the *errno* column of protocol section 2.
fn errno_of(code: ResultCode) -> Errno {
    use ResultCode as Code;
    match code {
        Code::NoObj | Code::NoVdi | Code::NoBaseVdi | Code::BaseVdiRead | Code::NoTag => {
            Errno::ENOENT
        }
        Code::VdiExist | Code::OidExist => Errno::EEXIST,
        Code::InvalidParms
        | Code::ForceRecover
        | Code::NoStore
        | Code::GatewayMode
        | Code::InvalidVnodesStrategy => Errno::EINVAL,
        Code::VdiLocked | Code::NodeInRecovery => Errno::EBUSY,
        Code::VdiNotLocked => Errno::ENOLCK,
        Code::NoMem => Errno::ENOMEM,
        Code::FullVdi | Code::NoSpace => Errno::ENOSPC,
        Code::VerMismatch => Errno::EPROTO,
        Code::WaitForFormat | Code::NotFormatted => Errno::ENODEV,
        Code::ReadOnly => Errno::EROFS,
        Code::NoSupport => Errno::EOPNOTSUPP,
        Code::VdiNotEmpty => Errno::ENOTEMPTY,
        Code::Success
        | Code::Unknown
        | Code::Eio
        | Code::SystemError
        | Code::VdiRead
        | Code::VdiWrite
        | Code::BaseVdiWrite
        | Code::Startup
        | Code::Shutdown
        | Code::WaitForJoin
        | Code::JoinFailed
        | Code::Halt
        | Code::InodeInvalidated
        | Code::OldNodeVer
        | Code::NewNodeVer
        | Code::InvalidCtime
        | Code::InvalidEpoch
        | Code::NetworkError
        | Code::NoCache
        | Code::BufferSmall
        | Code::Killed
        | Code::Again
        | Code::StaleObj
        | Code::ClusterError
        | Code::NotFound
        | Code::Incomplete
        | Code::CollectingCinfo
        | Code::NoCheckpointEntry
        | Code::Other(_) => Errno::EIO,
    }
}

#[cfg(test)]
mod tests {
    use std::error::Error as _;

    use super::*;

    #[test]
    fn a_reason_is_said_once() {
        let connect = ClientError::Connect {
            gateway: "[::1]:7000".parse().unwrap(),
            source: io::ErrorKind::TimedOut.into(),
        };
        assert_eq!(
            connect.to_string(),
            "cannot connect to sheep [::1]:7000: timed out"
        );
        assert!(connect.source().is_none());
        let call = CallName {
            opcode: Opcode::ReadObj,
            oid: None,
        };
        let (what, why) = ("object", "wrong");
        let malformed = ClientError::Malformed {
            call,
            source: Malformed { what, why },
        };
        assert!(malformed.to_string().contains("wrong"));
        assert!(malformed.source().is_none());
    }
}
