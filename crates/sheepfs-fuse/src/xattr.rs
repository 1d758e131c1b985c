//! Extended attributes as getxattr(2) and listxattr(2) want them.
//!
//! They cost no writer anything: with `FUSE_HANDLE_KILLPRIV_V2` the kernel does
//! not ask for `security.capability` before each write.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;

use fuser::ReplyXattr;
use nix::errno::Errno;

use crate::answer::Failure;

/// What a volume's attributes begin with.
const OURS: &[u8] = b"user.sheepdog.";

/// What getxattr(2) and listxattr(2) are answered with.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    /// The caller asked only how much room it needs.
    Size(u32),
    /// There is room.
    Data(Vec<u8>),
}

/// The value of one attribute.
///
/// # Errors
/// ENODATA when there is none of that name.
pub(crate) fn value(attributes: Vec<(String, Vec<u8>)>, name: &OsStr) -> Result<Vec<u8>, Failure> {
    attributes
        .into_iter()
        .find(|(known, _)| known.as_bytes() == name.as_bytes())
        .map(|(_, value)| value)
        .ok_or(Failure::Refused(Errno::ENODATA))
}

/// All names, each with a NUL behind it.
pub(crate) fn names(attributes: &[(String, Vec<u8>)]) -> Vec<u8> {
    let names = attributes.iter().map(|(name, _)| name.as_bytes());
    names
        .flat_map(|name| [name, b"\0"])
        .flatten()
        .copied()
        .collect()
}

/// What to answer a caller that has room for `room` bytes, 0 meaning that it
/// wants to know how much it needs.
///
/// # Errors
/// ERANGE when there is not enough room.
pub(crate) fn answer(bytes: Vec<u8>, room: u32) -> Result<Answer, Failure> {
    let size = u32::try_from(bytes.len()).map_err(|_| Failure::Refused(Errno::E2BIG))?;
    match room {
        0 => Ok(Answer::Size(size)),
        _ if size <= room => Ok(Answer::Data(bytes)),
        _ => Err(Failure::Refused(Errno::ERANGE)),
    }
}

pub(crate) fn reply(reply: ReplyXattr, answer: Answer) {
    match answer {
        Answer::Size(size) => reply.size(size),
        Answer::Data(bytes) => reply.data(&bytes),
    }
}

/// Why an attribute is neither set nor removed: a VDI has no room for any, and
/// those that are shown are facts.
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

    fn facts() -> Vec<(String, Vec<u8>)> {
        vec![
            ("user.sheepdog.vid".into(), b"76d396".to_vec()),
            ("user.sheepdog.tag".into(), Vec::new()),
        ]
    }

    fn errno<T: std::fmt::Debug>(outcome: Result<T, Failure>) -> Errno {
        match outcome {
            Err(Failure::Refused(errno)) => errno,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_caller_learns_the_size_then_gets_the_bytes() {
        let bytes = || value(facts(), OsStr::new("user.sheepdog.vid")).unwrap();
        assert_eq!(answer(bytes(), 0).unwrap(), Answer::Size(6));
        assert_eq!(
            answer(bytes(), 6).unwrap(),
            Answer::Data(b"76d396".to_vec())
        );
        assert_eq!(errno(answer(bytes(), 5)), Errno::ERANGE);
    }

    #[test]
    fn an_empty_value_is_a_value_and_no_attribute_is_none() {
        let tag = value(facts(), OsStr::new("user.sheepdog.tag")).unwrap();
        assert_eq!(answer(tag, 100).unwrap(), Answer::Data(Vec::new()));
        for name in ["user.sheepdog.vi", "security.capability", ""] {
            assert_eq!(errno(value(facts(), OsStr::new(name))), Errno::ENODATA);
        }
    }

    #[test]
    fn names_are_listed_with_a_nul_behind_each() {
        assert_eq!(names(&facts()), b"user.sheepdog.vid\0user.sheepdog.tag\0");
        assert_eq!(names(&[]), b"");
    }

    #[test]
    fn facts_cannot_be_changed_and_others_are_not_kept() {
        assert_eq!(refusal(OsStr::new("user.sheepdog.vid")), Errno::EPERM);
        assert_eq!(refusal(OsStr::new("user.comment")), Errno::EOPNOTSUPP);
    }
}
