//! How a sheep says whether it did what was asked.

/// What a client may do after a refusal.
///
/// Source: the *client action* column of protocol section 2. Where it leaves a
/// choice: `WAIT_FOR_FORMAT` is [`Never`](Self::Never), because waiting for a
/// format of the cluster is a decision for the calling program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Retry {
    /// Asking again gives the same answer.
    Never,
    /// The condition passes: ask the same again after a pause, up to a limit.
    Later,
    /// The client's picture of the VDI is out of date: reload it, then ask again.
    AfterReload,
}

/// Declares every result code once: value, wire name, retry rule and meaning.
macro_rules! result_codes {
    ($($variant:ident = $value:literal, $name:literal, $retry:ident, $text:literal;)+) => {
        /// The result of a request, the first four bytes of every response body.
        ///
        /// Source: protocol section 2.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum ResultCode {
            $(#[doc = concat!("`", $name, "`: ", $text, ".")] $variant,)+
            /// A code this crate does not know.
            Other(u32),
        }

        impl ResultCode {
            /// Every known code, in ascending order of value.
            pub const ALL: &[Self] = &[$(Self::$variant),+];

            /// The name the protocol's documents and traces use.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$variant => $name,)+
                    Self::Other(_) => "unknown",
                }
            }

            /// What the code says, in words for a person.
            pub const fn meaning(self) -> &'static str {
                match self {
                    $(Self::$variant => $text,)+
                    Self::Other(_) => "a result this client does not know",
                }
            }

            /// Whether asking again can help.
            pub const fn retry(self) -> Retry {
                match self {
                    $(Self::$variant => Retry::$retry,)+
                    Self::Other(_) => Retry::Never,
                }
            }
        }

        impl From<u32> for ResultCode {
            fn from(raw: u32) -> Self {
                match raw {
                    $($value => Self::$variant,)+
                    other => Self::Other(other),
                }
            }
        }

        impl From<ResultCode> for u32 {
            fn from(code: ResultCode) -> Self {
                match code {
                    $(ResultCode::$variant => $value,)+
                    ResultCode::Other(raw) => raw,
                }
            }
        }
    };
}

result_codes! {
    Success = 0x00, "SUCCESS", Never, "done";
    Unknown = 0x01, "UNKNOWN", Never, "unknown error";
    NoObj = 0x02, "NO_OBJ", AfterReload, "no such object";
    Eio = 0x03, "EIO", Never, "disk error on every replica";
    VdiExist = 0x04, "VDI_EXIST", Never, "the name is in use";
    InvalidParms = 0x05, "INVALID_PARMS", Never, "invalid parameters";
    SystemError = 0x06, "SYSTEM_ERROR", Later, "system error, or too few zones for the erasure code";
    VdiLocked = 0x07, "VDI_LOCKED", Never, "the VDI is locked by someone else";
    NoVdi = 0x08, "NO_VDI", Never, "no such VDI";
    NoBaseVdi = 0x09, "NO_BASE_VDI", Never, "no such base VDI";
    VdiRead = 0x0a, "VDI_READ", Later, "cannot read the VDI's inode";
    VdiWrite = 0x0b, "VDI_WRITE", Later, "cannot write the VDI's inode";
    BaseVdiRead = 0x0c, "BASE_VDI_READ", Never, "cannot read the base VDI's inode";
    BaseVdiWrite = 0x0d, "BASE_VDI_WRITE", Later, "cannot write the base VDI's inode";
    NoTag = 0x0e, "NO_TAG", Never, "no such snapshot";
    Startup = 0x0f, "STARTUP", Later, "the sheep is starting";
    VdiNotLocked = 0x10, "VDI_NOT_LOCKED", Never, "the VDI is not locked";
    Shutdown = 0x11, "SHUTDOWN", Later, "the sheep is shutting down";
    NoMem = 0x12, "NO_MEM", Later, "the sheep is out of memory";
    FullVdi = 0x13, "FULL_VDI", Never, "no VID or attribute is left";
    VerMismatch = 0x14, "VER_MISMATCH", Never, "the sheep speaks another protocol version";
    NoSpace = 0x15, "NO_SPACE", Never, "the cluster is out of space";
    WaitForFormat = 0x16, "WAIT_FOR_FORMAT", Never, "the cluster is not formatted";
    WaitForJoin = 0x17, "WAIT_FOR_JOIN", Later, "the cluster waits for other nodes to join";
    JoinFailed = 0x18, "JOIN_FAILED", Never, "the sheep could not join the cluster";
    Halt = 0x19, "HALT", Later, "the cluster has fewer zones than copies and has halted writes";
    ReadOnly = 0x1a, "READONLY", AfterReload, "the object belongs to a snapshot";
    OldIncomplete = 0x1b, "INCOMPLETE", Never, "incomplete";
    OldCollectingCinfo = 0x1c, "COLLECTING_CINFO", Later, "the sheep has just joined and is collecting cluster information";
    InodeInvalidated = 0x1d, "INODE_INVALIDATED", AfterReload, "another node changed the shared VDI's index";
    Denied = 0x1e, "DENIED", Never, "an access list forbids it";
    OldNodeVer = 0x81, "OLD_NODE_VER", Never, "the request's epoch is old";
    NewNodeVer = 0x82, "NEW_NODE_VER", Never, "the request's epoch is ahead of the sheep's";
    NotFormatted = 0x83, "NOT_FORMATTED", Never, "the cluster is not formatted";
    InvalidCtime = 0x84, "INVALID_CTIME", Never, "the creation times of the cluster differ";
    InvalidEpoch = 0x85, "INVALID_EPOCH", Never, "invalid epoch";
    NetworkError = 0x86, "NETWORK_ERROR", Later, "the gateway lost a peer";
    NoCache = 0x87, "NO_CACHE", Never, "no cache";
    BufferSmall = 0x88, "BUFFER_SMALL", Never, "the buffer is too small";
    ForceRecover = 0x89, "FORCE_RECOVER", Never, "the cluster cannot be recovered by force now";
    NoStore = 0x8a, "NO_STORE", Never, "no such object store";
    NoSupport = 0x8b, "NO_SUPPORT", Never, "not supported";
    NodeInRecovery = 0x8c, "NODE_IN_RECOVERY", Later, "the node is recovering";
    Killed = 0x8d, "KILLED", Later, "the sheep was killed";
    OidExist = 0x8e, "OID_EXIST", Never, "the object exists";
    Again = 0x8f, "AGAIN", Later, "not ready yet";
    StaleObj = 0x90, "STALE_OBJ", Later, "the object is being recovered";
    ClusterError = 0x91, "CLUSTER_ERROR", Later, "the cluster driver failed";
    VdiNotEmpty = 0x92, "VDI_NOT_EMPTY", Never, "the VDI is not empty";
    NotFound = 0x93, "NOT_FOUND", Never, "not found";
    Incomplete = 0x94, "INCOMPLETE", Never, "incomplete";
    CollectingCinfo = 0x95, "COLLECTING_CINFO", Later, "the sheep has just joined and is collecting cluster information";
    GatewayMode = 0x97, "GATEWAY_MODE", Never, "the sheep is a gateway and stores nothing";
    InvalidVnodesStrategy = 0x98, "INVALID_VNODES_STRATEGY", Never, "the cluster computes its vnodes itself";
    NoCheckpointEntry = 0x99, "NO_CHECKPOINT_ENTRY", Never, "no such checkpoint";
}

impl std::fmt::Display for ResultCode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Other(raw) => write!(f, "unknown result {raw:#x}"),
            known => write!(f, "{} ({})", known.meaning(), known.name()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn result_code_round_trips() {
        for &code in ResultCode::ALL {
            assert_eq!(ResultCode::from(u32::from(code)), code);
        }
        assert_eq!(ResultCode::from(0x77), ResultCode::Other(0x77));
        assert_eq!(u32::from(ResultCode::Other(0x77)), 0x77);
    }
}
