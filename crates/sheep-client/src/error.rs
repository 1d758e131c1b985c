//! What can go wrong with a request, and the errno of each failure.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use nix::errno::Errno;
use sheep_proto::decoder::BadFrame;
use sheep_proto::name::BadName;
use sheep_proto::{Malformed, Oid, Opcode, Redundancy, ResultCode, Unsupported, VdiName, Vid};

use crate::address::GatewayAddress;

/// Names a request in messages: its opcode, and its object when it has one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OperationId {
    /// The operation.
    pub opcode: Opcode,
    /// The object it is about.
    pub oid: Option<Oid>,
}

impl fmt::Display for OperationId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.oid {
            Some(oid) => write!(f, "{} of object {oid}", self.opcode),
            None => write!(f, "{}", self.opcode),
        }
    }
}

/// Why a connection ended.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DisconnectReason {
    /// The sheep closed it.
    #[error("the sheep closed the connection")]
    Closed,
    /// The network failed.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// The sheep sent a header no sheep sends.
    #[error(transparent)]
    BadFrame(#[from] BadFrame),
    /// The sheep responded to a request that was not made.
    #[error("a response has id {id} and opcode {opcode:#04x}, and no such request is in flight")]
    UnknownId {
        /// Id of the response.
        id: u32,
        /// Opcode of the response.
        opcode: u8,
    },
    /// This program closed it: it no longer needs it, or the reader task panicked,
    /// or the runtime shut down.
    #[error("this program closed the connection, or the task that reads from it panicked")]
    Aborted,
}

impl DisconnectReason {
    /// True when the client closed the connection to a sheep that is alive and may
    /// still execute what it was sent.
    pub(crate) fn closed_by_client(&self) -> bool {
        match self {
            Self::BadFrame(_) | Self::UnknownId { .. } | Self::Aborted => true,
            Self::Closed | Self::Io(_) => false,
        }
    }

    /// True when the sheep violated the protocol.
    pub(crate) fn is_protocol_violation(&self) -> bool {
        matches!(self, Self::BadFrame(_) | Self::UnknownId { .. })
    }
}

/// Why a request to a cluster failed.
///
/// The text does not repeat the text of `source()`; [`Chain`] shows both.
///
/// # Every request
///
/// Every request can end with `Refused` and the result code of the sheep, with
/// `Malformed` after a response that violates the protocol, and with `Lost`,
/// `Unreachable`, `Closed` or `Panicked` without a response. The client returns
/// the other variants by itself, before or between requests.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ClientError {
    /// No connection could be made; nothing was sent.
    #[error("cannot connect to sheep {gateway}")]
    Connect {
        /// Where it was tried.
        gateway: GatewayAddress,
        /// What the system said.
        source: io::Error,
    },
    /// The timeout is over without a response. A request that was sent to an
    /// unresponsive sheep may still be executed.
    #[error("no sheep has answered for {} s, last tried {gateway}", waited.as_secs())]
    Unreachable {
        /// The address tried last.
        gateway: GatewayAddress,
        /// Time without a response, or since the last sheep was lost.
        waited: Duration,
    },
    /// The connection ended with the request in flight, which may have been executed.
    #[error("lost sheep {gateway} during {operation}")]
    Lost {
        /// The request in flight.
        operation: OperationId,
        /// The sheep it was sent to.
        gateway: SocketAddr,
        /// Why the connection ended.
        #[source]
        why: Arc<DisconnectReason>,
    },
    /// The request was not sent: it was for a gateway that was lost.
    #[error("{operation} was not sent: the sheep that it was for was lost")]
    SessionEnded {
        /// The request.
        operation: OperationId,
    },
    /// The client was closed before the request was sent.
    #[error("the connections to the cluster were closed")]
    Closed,
    /// A task of this program panicked, or its runtime shut down, before it had a
    /// result. The operation may have been executed.
    #[error("the task that should {task} panicked, or its runtime has shut down")]
    Panicked {
        /// What the task was to do, as an infinitive: "complete a request".
        task: &'static str,
    },
    /// The sheep refused the request.
    #[error("{operation} was refused: {code}")]
    Refused {
        /// The request refused.
        operation: OperationId,
        /// The reason given.
        code: ResultCode,
    },
    /// The request was not sent: sheep of this generation cannot execute it, or would
    /// be damaged by it.
    #[error("{operation} was not sent")]
    Unsupported {
        /// The request.
        operation: OperationId,
        /// Why it was not sent.
        source: Unsupported,
    },
    /// Something that the sheep of the cluster do not have.
    #[error(transparent)]
    Impossible(#[from] Unsupported),
    /// A sheep of this generation may give a new VDI the VID of a deleted snapshot.
    #[error(
        "{0} cannot be made: this sheep may reuse the id of a deleted snapshot that clones \
         still need; choose another name"
    )]
    VidReuse(VdiName),
    /// The object cache of a sheep before 1.0 holds changes of the VDI that were not
    /// written back.
    #[error(
        "the object cache of the sheep holds {dirty} changed objects of {name}, not written back: \
         `dog vdi cache flush {name}` keeps them, `dog vdi cache delete {name}` drops them"
    )]
    DirtyCache {
        /// The VDI.
        name: VdiName,
        /// Objects not written back.
        dirty: u32,
    },
    /// A VDI that was the base of as many others as its inode can list.
    #[error(
        "nothing can be made from {0}: sheep before 0.9 allow 1,024 snapshots and clones of one, \
         deleted ones included"
    )]
    TooManyChildren(VdiName),
    /// The sheep sent a response that is none to this request.
    #[error("{operation} got an unusable answer")]
    Malformed {
        /// The request.
        operation: OperationId,
        /// What is wrong.
        source: Malformed,
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
    /// A size smaller than the one that the VDI has.
    #[error("a VDI can only grow: it has {size} bytes, and {requested} are fewer")]
    Shrink {
        /// Bytes it has.
        size: u64,
        /// Bytes asked for.
        requested: u64,
    },
    /// An object size that no VDI can have.
    #[error("objects of 2^{shift} bytes are impossible: they have 1 MiB to 2 GiB")]
    ObjectSize {
        /// The size asked for, as a power of two.
        shift: u8,
    },
    /// An object size that a hypervolume cannot have.
    #[error("objects of 2^{shift} bytes are impossible: those of a hypervolume have 4 MiB")]
    HypervolumeObjectSize {
        /// The size asked for, as a power of two.
        shift: u8,
    },
    /// A redundancy that no cluster can hold.
    #[error(
        "redundancy {0} is impossible: copies are 1 to 31, \
         or 2, 4, 8 or 16 data and 1 to 15 parity strips"
    )]
    Redundancy(Redundancy),
    /// A key or value that an attribute cannot have.
    #[error("the cluster cannot hold such an attribute")]
    Attribute(#[source] Malformed),
    /// A slot past the end of a flat index.
    #[error("slot {0} is past the end of the index, which has 1,048,576")]
    SlotOutOfRange(u64),
    /// The index of a hypervolume has no room for more objects.
    #[error("the index of VDI {0} is full")]
    IndexFull(Vid),
    /// An operation on the tree of a VDI that is not a hypervolume.
    #[error("VDI {0} is not a hypervolume: its index is not a tree")]
    NotHypervolume(Vid),
    /// A snapshot of a hypervolume.
    #[error("{0} is a hypervolume, which cannot have snapshots")]
    HypervolumeSnapshot(VdiName),
    /// A snapshot without a tag.
    #[error("a snapshot needs a tag")]
    NoTag,
    /// An operation on snapshots, for a working VDI.
    #[error("{0} is not a snapshot: only a snapshot can be cloned, or rolled back to")]
    NotSnapshot(VdiName),
    /// An operation on working VDIs, for a snapshot.
    #[error("{0} is a snapshot, which cannot change")]
    NotWorking(VdiName),
    /// A node has not learned of a new VDI in time. It would store objects of an
    /// erasure-coded VDI wrongly.
    #[error("node {node} does not know VDI {vid} yet: try again when it has caught up, or stop it")]
    UnknownToNode {
        /// The VDI.
        vid: Vid,
        /// The node.
        node: SocketAddr,
    },
    /// Another client took snapshots at the same time; a retry may succeed.
    #[error("someone else is taking snapshots of {0}")]
    ConcurrentSnapshot(VdiName),
}

/// Shows an error with everything that caused it, in one line: `what: why: why`.
///
/// ```
/// use sheep_client::error::Chain;
///
/// let error = "0".parse::<std::num::NonZeroU8>().unwrap_err();
/// assert_eq!(Chain(&error).to_string(), error.to_string());
/// ```
#[derive(Clone, Copy, Debug)]
pub struct Chain<'a>(pub &'a (dyn std::error::Error + 'a));

impl fmt::Display for Chain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)?;
        let mut cause = self.0.source();
        while let Some(error) = cause {
            write!(f, ": {error}")?;
            cause = error.source();
        }
        Ok(())
    }
}

impl ClientError {
    /// The result code of a refusal.
    pub fn code(&self) -> Option<ResultCode> {
        match self {
            Self::Refused { code, .. } => Some(*code),
            _ => None,
        }
    }

    /// True when no response came within the timeout; the request may still be
    /// executed.
    pub fn is_timeout(&self) -> bool {
        matches!(self, Self::Unreachable { .. })
    }

    /// True when the gateway was lost that the request was sent to, or was for.
    pub fn is_gateway_lost(&self) -> bool {
        matches!(self, Self::Lost { .. } | Self::SessionEnded { .. })
    }

    /// True when the VDI is a snapshot, which takes no writes.
    pub fn is_read_only(&self) -> bool {
        self.code() == Some(ResultCode::ReadOnly)
    }

    /// True when what the cluster stores, or sends, violates the protocol.
    pub fn is_malformed(&self) -> bool {
        matches!(self, Self::Malformed { .. })
    }

    /// True when there is no such object.
    pub fn is_missing_object(&self) -> bool {
        self.code() == Some(ResultCode::NoObj)
    }

    /// True when there is no such object, or no VDI that it could belong to.
    pub fn is_missing_object_or_vdi(&self) -> bool {
        matches!(self.code(), Some(ResultCode::NoObj | ResultCode::NoVdi))
    }

    /// True when there is no such VDI: none of that name, or no working one.
    pub fn is_missing_vdi(&self) -> bool {
        self.code() == Some(ResultCode::NoVdi)
    }

    /// True when a selector names no VDI: there is no such name or no such version.
    pub fn is_missing_version(&self) -> bool {
        matches!(self.code(), Some(ResultCode::NoVdi | ResultCode::NoTag))
    }

    /// True when the VDI is locked.
    pub fn is_locked(&self) -> bool {
        self.code() == Some(ResultCode::VdiLocked)
    }

    /// True when the cluster has yet to be formatted or to gather its nodes.
    pub fn is_not_ready(&self) -> bool {
        let waiting = [ResultCode::WaitForFormat, ResultCode::WaitForJoin];
        self.code().is_some_and(|code| waiting.contains(&code))
    }

    /// The errno a file system call reports for it.
    pub fn errno(&self) -> Errno {
        match self {
            Self::Connect { .. } | Self::Unreachable { .. } | Self::Closed => Errno::EHOSTUNREACH,
            Self::Lost { .. }
            | Self::SessionEnded { .. }
            | Self::Malformed { .. }
            | Self::Panicked { .. } => Errno::EIO,
            Self::Refused { code, .. } => errno_of(*code),
            Self::BadName(BadName::TooLong(_)) => Errno::ENAMETOOLONG,
            Self::TooLarge { .. } => Errno::EFBIG,
            Self::Attribute(_) => Errno::E2BIG,
            Self::IndexFull(_) => Errno::ENOSPC,
            Self::HypervolumeSnapshot(_) | Self::Unsupported { .. } | Self::Impossible(_) => {
                Errno::EOPNOTSUPP
            }
            Self::VidReuse(_) => Errno::EPERM,
            Self::TooManyChildren(_) => Errno::EMLINK,
            Self::ConcurrentSnapshot(_) | Self::UnknownToNode { .. } | Self::DirtyCache { .. } => {
                Errno::EBUSY
            }
            Self::BadName(_)
            | Self::Shrink { .. }
            | Self::ObjectSize { .. }
            | Self::HypervolumeObjectSize { .. }
            | Self::Redundancy(_)
            | Self::SlotOutOfRange(_)
            | Self::NotHypervolume(_)
            | Self::NoTag
            | Self::NotSnapshot(_)
            | Self::NotWorking(_) => Errno::EINVAL,
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
        Code::Denied => Errno::EACCES,
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
        | Code::OldIncomplete
        | Code::OldCollectingCinfo
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
    fn error_chain_gives_each_reason_once() {
        let operation = OperationId {
            opcode: Opcode::ReadObj,
            oid: None,
        };
        let (what, why) = ("object", "wrong");
        let gateway = SocketAddr::from(([127, 0, 0, 1], 7000));
        let timed_out = || io::Error::from(io::ErrorKind::TimedOut);
        let errors = [
            (
                ClientError::Connect {
                    gateway: "[::1]:7000".parse().unwrap(),
                    source: timed_out(),
                },
                "cannot connect to sheep [::1]:7000: timed out",
            ),
            (
                ClientError::Malformed {
                    operation,
                    source: Malformed { what, why },
                },
                "READ_OBJ got an unusable answer: malformed object: wrong",
            ),
            (
                ClientError::Lost {
                    operation,
                    gateway,
                    why: Arc::new(DisconnectReason::Io(timed_out())),
                },
                "lost sheep 127.0.0.1:7000 during READ_OBJ: timed out",
            ),
        ];
        for (error, expected) in errors {
            assert!(error.source().is_some());
            assert_eq!(Chain(&error).to_string(), expected);
        }
    }

    #[test]
    fn error_of_each_kind_has_its_own_errno() {
        let name = || VdiName::new("v").unwrap();
        let vid = Vid::new(7).unwrap();
        for (error, errno) in [
            (ClientError::ConcurrentSnapshot(name()), Errno::EBUSY),
            (ClientError::IndexFull(vid), Errno::ENOSPC),
            (ClientError::HypervolumeSnapshot(name()), Errno::EOPNOTSUPP),
            (ClientError::NotSnapshot(name()), Errno::EINVAL),
            (ClientError::Panicked { task: "test" }, Errno::EIO),
        ] {
            assert_eq!(error.errno(), errno, "{error}");
        }
    }
}
