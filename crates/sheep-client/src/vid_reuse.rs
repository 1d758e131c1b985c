//! Whether a new VDI would get the VID of a deleted snapshot that clones still need.
//!
//! Releases 0.7.0 to 0.8.1 give a new VDI the lowest VID in the run of its name whose
//! VDI was deleted. The objects of the new VDI then replace those that the clones of
//! the deleted one still read. The releases after them do not, but look the same.

use sheep_proto::hash::first_vid;
use sheep_proto::limits::VID_COUNT;
use sheep_proto::vid_bitmap::VidBitmap;
use sheep_proto::{Opcode, VdiName, Vid};

use crate::error::ClientError;
use crate::inode::Inode;
use crate::query::vid_bitmap;
use crate::sender::Sender;

/// Checks that a VDI can be made under `name`. The VDI `leaving` counts as deleted.
///
/// # Errors
/// `VidReuse`, otherwise as [`Inode::header`].
pub(crate) async fn check(
    sender: &Sender,
    name: &VdiName,
    leaving: Option<Vid>,
) -> Result<(), ClientError> {
    let used = vid_bitmap(sender, Opcode::ReadVdis).await?;
    // The server looks from the first free VID down, and stops at the name itself.
    let mut lowest_needed = false;
    for &vid in run_of(name, &used).iter().rev() {
        if Some(vid) == leaving {
            // A head has no clones.
            lowest_needed = false;
            continue;
        }
        let header = match Inode::new(sender, vid).header().await {
            Err(error) if error.is_missing_object() => continue,
            other => other?,
        };
        match header.name() {
            Some(found) if found == *name => break,
            Some(_) => {}
            None => lowest_needed = header.is_snapshot() && header.vdi_size.get() != 0,
        }
    }
    if lowest_needed {
        Err(ClientError::VidReuse(name.clone()))
    } else {
        Ok(())
    }
}

/// The VIDs in use from the hash of a name up to the first free one.
fn run_of<B: AsRef<[u8]>>(name: &VdiName, used: &VidBitmap<B>) -> Vec<Vid> {
    let first = first_vid(name.as_bytes()).get();
    let last = u32::try_from(VID_COUNT).expect("2^24");
    (first..last)
        .chain(1..first)
        .map_while(Vid::new)
        .take_while(|&vid| used.contains(vid))
        .collect()
}
