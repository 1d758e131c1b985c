//! What a sheep knows of a VDI in memory, locks included (GET_VDI_COPIES).

use std::mem::size_of;

use zerocopy::little_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::Malformed;
use crate::limits::{MAX_LOCK_PARTICIPANTS, VDI_STATE_LEN};

/// A node's identity: address, port, I/O address, I/O port and padding.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(C)]
pub struct NodeId {
    /// As in [`NodeRecord`](crate::node::NodeRecord).
    pub addr: [u8; 16],
    /// TCP port.
    pub port: U16,
    /// Separate address for I/O between sheep.
    pub io_addr: [u8; 16],
    /// Port to go with it.
    pub io_port: U16,
    /// Padding.
    pub pad: [u8; 4],
}

/// Lock state of a VDI.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LockState {
    /// Nobody holds it.
    Unlocked,
    /// One node holds it alone.
    Locked,
    /// Several nodes hold it together.
    Shared,
    /// A value this crate does not know.
    Other(u32),
}

/// One VDI, 1,428 bytes.
///
/// Source: protocol 8.6; `struct vdi_state` in sheepdog's `include/internal_proto.h`.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(C)]
pub struct VdiState {
    /// The VDI.
    pub vid: U32,
    /// Replicas or strips.
    pub nr_copies: u8,
    /// 1 for a snapshot.
    pub snapshot: u8,
    /// 1 for a deleted VDI.
    pub deleted: u8,
    /// Raw copy policy.
    pub copy_policy: u8,
    /// Object size as a power of two.
    pub block_size_shift: u8,
    /// Padding.
    pub pad: [u8; 3],
    /// VID of the VDI this one was made from.
    pub parent_vid: U32,
    /// Raw lock state, see [`VdiState::lock_state`].
    pub lock_state: U32,
    /// Node that holds the lock.
    pub owner: NodeId,
    /// Nodes that share the lock.
    pub nr_participants: U32,
    /// Coherence state of each participant: 1 modified, 2 shared, 3 invalidated.
    pub participant_states: [U32; MAX_LOCK_PARTICIPANTS],
    /// The participants.
    pub participants: [NodeId; MAX_LOCK_PARTICIPANTS],
}

const _: () = assert!(size_of::<VdiState>() == VDI_STATE_LEN);

impl VdiState {
    /// The lock state.
    pub fn lock_state(&self) -> LockState {
        match self.lock_state.get() {
            1 => LockState::Unlocked,
            2 => LockState::Locked,
            3 => LockState::Shared,
            other => LockState::Other(other),
        }
    }

    /// The records of a GET_VDI_COPIES payload.
    ///
    /// # Errors
    /// [`Malformed`] when a record is cut off.
    pub fn parse_list(payload: &[u8]) -> Result<&[Self], Malformed> {
        <[Self]>::ref_from_bytes(payload)
            .map_err(|_| Malformed::new("VDI states", "a record is cut off"))
    }
}
