//! Replies for getxattr(2) and listxattr(2).
//!
//! With `FUSE_HANDLE_KILLPRIV_V2` the kernel does not request `security.capability`
//! before each write, so xattrs do not slow writers down.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;

use fuser::ReplyXattr;
use nix::errno::Errno;

use crate::dispatcher::ReplyError;

/// Prefix of the xattrs of a volume.
const OURS: &[u8] = b"user.sheepdog.";

/// Reply to getxattr(2) or listxattr(2).
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum XattrReply {
    /// Size query: the length of the data.
    Size(u32),
    /// The data.
    Data(Vec<u8>),
}

/// The value of one attribute.
///
/// # Errors
/// ENODATA when there is none of that name.
pub(crate) fn value(
    attributes: Vec<(String, Vec<u8>)>,
    name: &OsStr,
) -> Result<Vec<u8>, ReplyError> {
    attributes
        .into_iter()
        .find(|(known, _)| known.as_bytes() == name.as_bytes())
        .map(|(_, value)| value)
        .ok_or(ReplyError::Refused(Errno::ENODATA))
}

/// All names, each terminated by NUL.
pub(crate) fn names(attributes: &[(String, Vec<u8>)]) -> Vec<u8> {
    let names = attributes.iter().map(|(name, _)| name.as_bytes());
    names
        .flat_map(|name| [name, b"\0"])
        .flatten()
        .copied()
        .collect()
}

/// Reply for a caller with a buffer of `room` bytes; 0 is a size query.
///
/// # Errors
/// ERANGE when there is not enough room.
pub(crate) fn sized_reply(bytes: Vec<u8>, room: u32) -> Result<XattrReply, ReplyError> {
    let size = u32::try_from(bytes.len()).map_err(|_| ReplyError::Refused(Errno::E2BIG))?;
    match room {
        0 => Ok(XattrReply::Size(size)),
        _ if size <= room => Ok(XattrReply::Data(bytes)),
        _ => Err(ReplyError::Refused(Errno::ERANGE)),
    }
}

pub(crate) fn reply(reply: ReplyXattr, answer: XattrReply) {
    match answer {
        XattrReply::Size(size) => reply.size(size),
        XattrReply::Data(bytes) => reply.data(&bytes),
    }
}

/// Errno of setxattr(2) and removexattr(2): our xattrs are read-only, and a VDI
/// cannot store others.
pub(crate) fn refusal(name: &OsStr) -> Errno {
    if name.as_bytes().starts_with(OURS) {
        Errno::EPERM
    } else {
        Errno::EOPNOTSUPP
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attributes() -> Vec<(String, Vec<u8>)> {
        vec![
            ("user.sheepdog.vid".into(), b"76d396".to_vec()),
            ("user.sheepdog.tag".into(), Vec::new()),
        ]
    }

    fn errno<T: std::fmt::Debug>(outcome: Result<T, ReplyError>) -> Errno {
        match outcome {
            Err(ReplyError::Refused(errno)) => errno,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn xattr_size_query_then_value() {
        let bytes = || value(attributes(), OsStr::new("user.sheepdog.vid")).unwrap();
        assert_eq!(sized_reply(bytes(), 0).unwrap(), XattrReply::Size(6));
        assert_eq!(
            sized_reply(bytes(), 6).unwrap(),
            XattrReply::Data(b"76d396".to_vec())
        );
        assert_eq!(errno(sized_reply(bytes(), 5)), Errno::ERANGE);
    }

    #[test]
    fn xattr_empty_value_differs_from_missing_attribute() {
        let tag = value(attributes(), OsStr::new("user.sheepdog.tag")).unwrap();
        assert_eq!(sized_reply(tag, 100).unwrap(), XattrReply::Data(Vec::new()));
        for name in ["user.sheepdog.vi", "security.capability", ""] {
            assert_eq!(errno(value(attributes(), OsStr::new(name))), Errno::ENODATA);
        }
    }

    #[test]
    fn xattr_list_terminates_each_name_with_nul() {
        assert_eq!(
            names(&attributes()),
            b"user.sheepdog.vid\0user.sheepdog.tag\0"
        );
        assert_eq!(names(&[]), b"");
    }

    #[test]
    fn xattr_set_is_refused() {
        assert_eq!(refusal(OsStr::new("user.sheepdog.vid")), Errno::EPERM);
        assert_eq!(refusal(OsStr::new("user.comment")), Errno::EOPNOTSUPP);
    }
}
