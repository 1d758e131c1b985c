//! VDI locks, in a cluster formatted with locking.
//!
//! A lock belongs to a node: a second lock of a VDI is refused, a release with the
//! right type succeeds from any node, and a closed connection releases nothing
//! (protocol 6.9). Locks are not persistent: a restart clears them.
//!
//! A shared lock keeps the index coherent: after one node has changed the index,
//! requests with flag TGT through the other nodes are refused until they have
//! read the index again.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Mutex;

use sheep_proto::limits::MAX_LOCK_PARTICIPANTS;
use sheep_proto::{ResultCode, Vid};

use crate::poison::lock;

/// The two types of lock on the wire.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum LockType {
    Normal,
    Shared,
}

impl LockType {
    pub(crate) fn from_wire(raw: u32) -> Option<Self> {
        match raw {
            0 => Some(Self::Normal),
            1 => Some(Self::Shared),
            _ => None,
        }
    }
}

/// Coherence state of the index at a node that shares a lock, as on the wire.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum CoherenceState {
    /// It has changed the index last.
    Modified = 1,
    /// It has read what the other one changed.
    Shared = 2,
    /// Another one has changed it since.
    Invalidated = 3,
}

/// A lock that is held, by nodes under the addresses they listen on.
#[derive(Clone)]
pub(crate) enum LockOwners {
    Normal(SocketAddr),
    Shared(Vec<(SocketAddr, CoherenceState)>),
}

/// The locks that are held.
#[derive(Default)]
pub(crate) struct Locks(Mutex<HashMap<Vid, LockOwners>>);

impl Locks {
    pub(crate) fn acquire(
        &self,
        vid: Vid,
        lock_type: LockType,
        node: SocketAddr,
    ) -> Result<(), ResultCode> {
        let mut locks = lock(&self.0);
        match (locks.get_mut(&vid), lock_type) {
            (None, LockType::Normal) => {
                locks.insert(vid, LockOwners::Normal(node));
            }
            (None, LockType::Shared) => {
                locks.insert(
                    vid,
                    LockOwners::Shared(vec![(node, CoherenceState::Modified)]),
                );
            }
            (Some(LockOwners::Shared(nodes)), LockType::Shared)
                if nodes.len() < MAX_LOCK_PARTICIPANTS
                    && nodes.iter().all(|(other, _)| *other != node) =>
            {
                let is_modified = |(_, state): &_| *state == CoherenceState::Modified;
                let state = if nodes.iter().any(is_modified) {
                    CoherenceState::Invalidated
                } else {
                    CoherenceState::Shared
                };
                nodes.push((node, state));
            }
            _ => return Err(ResultCode::VdiLocked),
        }
        Ok(())
    }

    pub(crate) fn release(&self, vid: Vid, lock_type: LockType, node: SocketAddr) {
        let mut locks = lock(&self.0);
        let is_free = match (locks.get_mut(&vid), lock_type) {
            (Some(LockOwners::Normal(_owner)), LockType::Normal) => true,
            (Some(LockOwners::Shared(nodes)), LockType::Shared) => {
                nodes.retain(|(other, _)| *other != node);
                nodes.is_empty()
            }
            _ => false,
        };
        if is_free {
            locks.remove(&vid);
        }
    }

    /// Removes a node that has left from shared locks; its normal locks stay.
    pub(crate) fn leave(&self, node: SocketAddr) {
        lock(&self.0).retain(|_vid, owners| match owners {
            LockOwners::Normal(_) => true,
            LockOwners::Shared(nodes) => {
                nodes.retain(|(other, _)| *other != node);
                !nodes.is_empty()
            }
        });
    }

    pub(crate) fn owners(&self, vid: Vid) -> Option<LockOwners> {
        lock(&self.0).get(&vid).cloned()
    }

    pub(crate) fn remove(&self, vid: Vid) {
        lock(&self.0).remove(&vid);
    }

    pub(crate) fn clear(&self) {
        lock(&self.0).clear();
    }

    /// An index is written through a node: the others have to read it again.
    pub(crate) fn invalidate_others(&self, vid: Vid, node: SocketAddr) {
        let mut locks = lock(&self.0);
        let Some(LockOwners::Shared(nodes)) = locks.get_mut(&vid) else {
            return;
        };
        if nodes.iter().all(|(other, _)| *other != node) {
            return;
        }
        for (other, state) in nodes {
            *state = if *other == node {
                CoherenceState::Modified
            } else {
                CoherenceState::Invalidated
            };
        }
    }

    /// Refuses a request that trusts an index another node has changed since,
    /// unless it is the one that reads the index again.
    ///
    /// # Errors
    /// `InodeInvalidated`.
    pub(crate) fn check(
        &self,
        vid: Vid,
        node: SocketAddr,
        is_refresh: bool,
    ) -> Result<(), ResultCode> {
        let mut locks = lock(&self.0);
        let Some(LockOwners::Shared(nodes)) = locks.get_mut(&vid) else {
            return Ok(());
        };
        if !nodes.contains(&(node, CoherenceState::Invalidated)) {
            return Ok(());
        }
        if !is_refresh {
            return Err(ResultCode::InodeInvalidated);
        }
        for (other, state) in nodes {
            if *other == node || *state == CoherenceState::Modified {
                *state = CoherenceState::Shared;
            }
        }
        Ok(())
    }
}
