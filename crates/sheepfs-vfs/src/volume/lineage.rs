//! The VDIs that a volume descends from.

use sheep_client::{Client, ClientError};
use sheep_proto::Vid;

/// Longest chain of parents that is followed.
const MAX_DEPTH: usize = 4096;

/// A VDI, the snapshot it was made from, the one before that, and so on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lineage(Vec<Vid>);

impl Lineage {
    /// Follows the parents of `head`, one request for each.
    ///
    /// # Errors
    /// As [`Inode::header`](sheep_client::Inode::header).
    pub async fn load(client: &Client, head: Vid) -> Result<Self, ClientError> {
        let mut lineage = vec![head];
        let mut parent = client.inode(head).header().await?.parent();
        while let Some(vid) = parent.filter(|vid| !lineage.contains(vid)) {
            if lineage.len() == MAX_DEPTH {
                break;
            }
            lineage.push(vid);
            parent = match client.inode(vid).header().await {
                Ok(header) => header.parent(),
                // A deleted parent ends the chain.
                Err(error) if error.is_missing_object_or_vdi() => None,
                Err(error) => return Err(error),
            };
        }
        Ok(Self(lineage))
    }

    /// The youngest.
    pub fn head(&self) -> Vid {
        self.0[0]
    }

    /// 1 for the head, 2 for its parent, and so on. A VDI that is not among them is
    /// older than all of them.
    pub fn depth(&self, owner: Vid) -> u32 {
        let found = self.0.iter().position(|&vid| vid == owner);
        u32::try_from(found.unwrap_or(self.0.len()) + 1).unwrap_or(u32::MAX)
    }
}
