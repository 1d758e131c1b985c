//! A VDI's facts as extended attributes.

use sheep_proto::Redundancy;
use sheep_proto::inode::packed_seconds;

use super::Volume;

/// What every name starts with.
const PREFIX: &str = "user.sheepdog.";

impl Volume {
    /// The facts as names and values: numbers in decimal, VIDs in hexadecimal
    /// as dog prints them, sizes in bytes, times in seconds since 1970.
    pub fn facts(&self) -> Vec<(String, Vec<u8>)> {
        let info = self.info();
        let policy = match info.redundancy {
            Redundancy::Replicated(_) => "replicated".to_owned(),
            erasure @ Redundancy::Erasure { .. } => erasure.to_string(),
        };
        let mut facts = vec![
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
            facts.push(("tag", info.tag.as_bytes().to_vec()));
        }
        if let Some(parent) = info.parent {
            facts.push(("parent", parent.to_string().into_bytes()));
        }
        facts
            .into_iter()
            .map(|(name, value)| (format!("{PREFIX}{name}"), value))
            .collect()
    }
}
