//! What a sheep knows of a VDI in memory, locks included (GET_VDI_COPIES).

use std::mem::size_of;

use zerocopy::little_endian::{U16, U32};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::Malformed;
use crate::id::Vid;
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
    /// The fork of 2026 has the same version bytes and four more bytes in each record,
    /// which are left out here. The length of the payload tells which it is, and where
    /// both lengths divide it, what the records say.
    ///
    /// # Errors
    /// [`Malformed`] when a record is cut off.
    pub fn parse_list(payload: &[u8]) -> Result<Vec<Self>, Malformed> {
        let own = <[Self]>::ref_from_bytes(payload).map(<[Self]>::to_vec);
        let forked = || {
            <[ForkedState]>::ref_from_bytes(payload)
                .map(|records| records.iter().map(Self::from).collect::<Vec<_>>())
        };
        let is_plausible = |records: &Vec<Self>| records.iter().all(Self::is_plausible);
        match own {
            Ok(own) if is_plausible(&own) => Ok(own),
            Ok(own) => Ok(forked().ok().filter(is_plausible).unwrap_or(own)),
            Err(_) => forked().map_err(|_| Malformed::new("VDI states", "a record is cut off")),
        }
    }

    /// False for bytes that no sheep writes at these places.
    fn is_plausible(&self) -> bool {
        Vid::new(self.vid.get()).is_some()
            && self.snapshot <= 1
            && self.deleted <= 1
            && !matches!(self.lock_state(), LockState::Other(_))
            && self.nr_participants.get() as usize <= MAX_LOCK_PARTICIPANTS
    }
}

/// A record of the fork of 2026, 1,432 bytes: it has a word about access lists in
/// front of the lock.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct ForkedState {
    before: [u8; ACL_OFFSET],
    acl: U32,
    after: [u8; VDI_STATE_LEN - ACL_OFFSET],
}

/// Where the records of the fork have more.
const ACL_OFFSET: usize = std::mem::offset_of!(VdiState, lock_state);

impl From<&ForkedState> for VdiState {
    fn from(forked: &ForkedState) -> Self {
        let mut state = Self::new_zeroed();
        let (before, after) = state.as_mut_bytes().split_at_mut(ACL_OFFSET);
        before.copy_from_slice(&forked.before);
        after.copy_from_slice(&forked.after);
        state
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FORKED_LEN: usize = 1432;

    /// A record of a working VDI that a node has locked.
    fn state(vid: u32) -> VdiState {
        let mut state = VdiState::new_zeroed();
        state.vid = vid.into();
        state.nr_copies = 3;
        state.lock_state = 2.into();
        state.owner.port = 7000.into();
        state.participants[30].port = 7001.into();
        state
    }

    fn forked(state: &VdiState) -> Vec<u8> {
        let (before, after) = state.as_bytes().split_at(16);
        [before, &[1, 0, 0, 0], after].concat()
    }

    #[test]
    fn states_of_both_sheepdogs_are_read() {
        for count in [0, 1, 2, 7] {
            let states: Vec<_> = (1..=count).map(state).collect();
            let own: Vec<u8> = states
                .iter()
                .flat_map(|state| state.as_bytes().to_vec())
                .collect();
            let others: Vec<u8> = states.iter().flat_map(forked).collect();
            assert_eq!(others.len(), states.len() * FORKED_LEN);
            assert_eq!(VdiState::parse_list(&own).unwrap(), states);
            assert_eq!(VdiState::parse_list(&others).unwrap(), states);
            assert!(count == 0 || VdiState::parse_list(&own[1..]).is_err());
            assert!(count == 0 || VdiState::parse_list(&others[1..]).is_err());
        }
    }

    #[test]
    fn states_tell_their_length_where_both_divide_the_payload() {
        let len = VDI_STATE_LEN * FORKED_LEN / 4;
        let own: Vec<_> = (1..).take(len / VDI_STATE_LEN).map(state).collect();
        let others: Vec<_> = (1..).take(len / FORKED_LEN).map(state).collect();
        let own_bytes: Vec<u8> = own
            .iter()
            .flat_map(|state| state.as_bytes().to_vec())
            .collect();
        let other_bytes: Vec<u8> = others.iter().flat_map(forked).collect();
        assert_eq!((own_bytes.len(), other_bytes.len()), (len, len));
        assert_eq!(VdiState::parse_list(&own_bytes).unwrap(), own);
        assert_eq!(VdiState::parse_list(&other_bytes).unwrap(), others);
    }
}
