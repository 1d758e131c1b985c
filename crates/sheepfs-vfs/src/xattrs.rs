//! Extended attributes of a volume: the header of its VDI.

use sheep_client::VdiInfo;
use sheep_proto::Redundancy;
use sheep_proto::inode::packed_seconds;

/// What every name starts with.
const PREFIX: &str = "user.sheepdog.";

/// Names and values: numbers in decimal, VIDs in hexadecimal as dog prints them,
/// sizes in bytes, times in seconds since 1970.
pub(crate) fn xattrs(info: &VdiInfo) -> Vec<(String, Vec<u8>)> {
    let policy = match info.redundancy {
        Redundancy::Replicated(_) => "replicated".to_owned(),
        erasure @ Redundancy::Erasure { .. } => erasure.to_string(),
    };
    let mut xattrs = vec![
        ("vid", info.vid.to_string().into_bytes()),
        ("snap_id", info.snap_id.to_string().into_bytes()),
        (
            "copies",
            info.redundancy.nr_copies().to_string().into_bytes(),
        ),
        ("policy", policy.into_bytes()),
        ("object_size", info.object_size().to_string().into_bytes()),
        (
            "create_time",
            packed_seconds(info.create_time).to_string().into_bytes(),
        ),
    ];
    if info.is_snapshot() {
        xattrs.push(("tag", info.tag.as_bytes().to_vec()));
    }
    if let Some(parent) = info.parent {
        xattrs.push(("parent", parent.to_string().into_bytes()));
    }
    xattrs
        .into_iter()
        .map(|(name, value)| (format!("{PREFIX}{name}"), value))
        .collect()
}
