//! VDI locks, in a cluster formatted with locking.
//!
//! A lock belongs to a node: whoever locks a locked VDI is refused, whoever
//! releases it with the right type succeeds, and a closed connection releases
//! nothing (protocol 6.9). A restart forgets all locks.
//!
//! Nodes that share a lock are told when another one has changed the index: a
//! request with flag TGT through a node that has not read the index since is
//! refused until it does.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Mutex;

use sheep_proto::limits::{MAX_LOCK_PARTICIPANTS, VDI_STATE_LEN};
use sheep_proto::node::NodeRecord;
use sheep_proto::vdi_state::{NodeId, VdiState};
use sheep_proto::{ClusterFlags, ResultCode, Vid};
use zerocopy::{FromZeros, IntoBytes};

use crate::call::{Answer, Call, Outcome};
use crate::catalogue::Vdi;
use crate::poison::lock;
use crate::sheep::Sheep;
use crate::vdi::vdi_answer;

/// The two types of lock on the wire.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum LockType {
    Normal,
    Shared,
}

impl LockType {
    fn from_wire(raw: u32) -> Option<Self> {
        match raw {
            0 => Some(Self::Normal),
            1 => Some(Self::Shared),
            _ => None,
        }
    }
}

/// What a node that shares a lock knows of the index, as it travels.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Knowledge {
    /// It has changed the index last.
    Modified = 1,
    /// It has read what the other one changed.
    Shared = 2,
    /// Another one has changed it since.
    Invalidated = 3,
}

/// A lock that is held, by nodes under the addresses they listen on.
#[derive(Clone)]
enum Held {
    Normal(SocketAddr),
    Shared(Vec<(SocketAddr, Knowledge)>),
}

/// The locks that are held.
#[derive(Default)]
pub(crate) struct Locks(Mutex<HashMap<Vid, Held>>);

impl Locks {
    fn take(&self, vid: Vid, lock_type: LockType, node: SocketAddr) -> Result<(), ResultCode> {
        let mut locks = lock(&self.0);
        match (locks.get_mut(&vid), lock_type) {
            (None, LockType::Normal) => {
                locks.insert(vid, Held::Normal(node));
            }
            (None, LockType::Shared) => {
                locks.insert(vid, Held::Shared(vec![(node, Knowledge::Modified)]));
            }
            (Some(Held::Shared(nodes)), LockType::Shared)
                if nodes.len() < MAX_LOCK_PARTICIPANTS
                    && nodes.iter().all(|(other, _)| *other != node) =>
            {
                let is_modified = |(_, knowledge): &_| *knowledge == Knowledge::Modified;
                let knowledge = if nodes.iter().any(is_modified) {
                    Knowledge::Invalidated
                } else {
                    Knowledge::Shared
                };
                nodes.push((node, knowledge));
            }
            _ => return Err(ResultCode::VdiLocked),
        }
        Ok(())
    }

    fn release(&self, vid: Vid, lock_type: LockType, node: SocketAddr) {
        let mut locks = lock(&self.0);
        let is_free = match (locks.get_mut(&vid), lock_type) {
            (Some(Held::Normal(_anyone)), LockType::Normal) => true,
            (Some(Held::Shared(nodes)), LockType::Shared) => {
                nodes.retain(|(other, _)| *other != node);
                nodes.is_empty()
            }
            _ => false,
        };
        if is_free {
            locks.remove(&vid);
        }
    }

    /// A node has gone: it shares nothing any more, but its normal locks stay.
    pub(crate) fn leave(&self, node: SocketAddr) {
        lock(&self.0).retain(|_vid, held| match held {
            Held::Normal(_) => true,
            Held::Shared(nodes) => {
                nodes.retain(|(other, _)| *other != node);
                !nodes.is_empty()
            }
        });
    }

    fn held(&self, vid: Vid) -> Option<Held> {
        lock(&self.0).get(&vid).cloned()
    }

    pub(crate) fn forget(&self, vid: Vid) {
        lock(&self.0).remove(&vid);
    }

    pub(crate) fn clear(&self) {
        lock(&self.0).clear();
    }

    /// An index is written through a node: the others have to read it again.
    pub(crate) fn invalidate_others(&self, vid: Vid, node: SocketAddr) {
        let mut locks = lock(&self.0);
        let Some(Held::Shared(nodes)) = locks.get_mut(&vid) else {
            return;
        };
        if nodes.iter().all(|(other, _)| *other != node) {
            return;
        }
        for (other, knowledge) in nodes {
            *knowledge = if *other == node {
                Knowledge::Modified
            } else {
                Knowledge::Invalidated
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
        let Some(Held::Shared(nodes)) = locks.get_mut(&vid) else {
            return Ok(());
        };
        if !nodes.contains(&(node, Knowledge::Invalidated)) {
            return Ok(());
        }
        if !is_refresh {
            return Err(ResultCode::InodeInvalidated);
        }
        for (other, knowledge) in nodes {
            if *other == node || *knowledge == Knowledge::Modified {
                *knowledge = Knowledge::Shared;
            }
        }
        Ok(())
    }
}

impl Sheep {
    /// LOCK_VDI: a look-up, and a lock in a cluster that has locks.
    pub(crate) fn lock_vdi(&self, call: &Call<'_>) -> Outcome {
        let (name, tag) = call.name_and_tag()?;
        let request = call.vdi();
        let _serialised = lock(&self.vdi_operations);
        let vdi = self.vdis.find(&name, &tag, request.snapid.get())?;
        if call.formatted()?.flags().contains(ClusterFlags::USE_LOCK) {
            let lock_type =
                LockType::from_wire(request.lock_type.get()).ok_or(ResultCode::VdiLocked)?;
            self.locks.take(vdi.vid, lock_type, call.origin.node)?;
        }
        Ok(vdi_answer(&vdi))
    }

    /// RELEASE_VDI: succeeds whatever there was to release.
    pub(crate) fn release_vdi(&self, call: &Call<'_>) -> Outcome {
        let request = call.vdi();
        let _serialised = lock(&self.vdi_operations);
        if let (Some(vid), Some(lock_type)) = (
            Vid::new(request.base_vdi_id.get()),
            LockType::from_wire(request.lock_type.get()),
        ) {
            self.locks.release(vid, lock_type, call.origin.node);
        }
        Ok(Answer::done())
    }

    /// GET_VDI_COPIES: the state of every VDI, deleted ones included (protocol 8.6).
    pub(crate) fn vdi_states(&self, call: &Call<'_>) -> Outcome {
        let vdis = self.vdis.all();
        if vdis.len() * VDI_STATE_LEN > call.want()? {
            return Err(ResultCode::BufferSmall);
        }
        let mut payload = Vec::with_capacity(vdis.len() * VDI_STATE_LEN);
        for vdi in vdis {
            payload.extend_from_slice(self.vdi_state(call, &vdi).as_bytes());
        }
        call.answer_with(payload)
    }

    fn vdi_state(&self, call: &Call<'_>, vdi: &Vdi) -> VdiState {
        const UNLOCKED: u32 = 1;
        const LOCKED: u32 = 2;
        const SHARED: u32 = 3;
        let mut record = VdiState::new_zeroed();
        record.vid = vdi.vid.get().into();
        record.nr_copies = vdi.redundancy.nr_copies();
        record.copy_policy = vdi.redundancy.copy_policy();
        record.block_size_shift = vdi.shift;
        record.parent_vid = vdi.parent.map_or(0, Vid::get).into();
        {
            let state = vdi.read();
            record.snapshot = state.is_snapshot.into();
            record.deleted = state.name.is_none().into();
        }
        record.lock_state = match self.locks.held(vdi.vid) {
            None => UNLOCKED.into(),
            Some(Held::Normal(owner)) => {
                record.owner = node_id(call, owner);
                LOCKED.into()
            }
            Some(Held::Shared(nodes)) => {
                record.nr_participants = u32::try_from(nodes.len()).expect("at most 31").into();
                for (at, (node, knowledge)) in nodes.into_iter().enumerate() {
                    record.participants[at] = node_id(call, node);
                    record.participant_states[at] = (knowledge as u32).into();
                }
                SHARED.into()
            }
        };
        record
    }
}

fn node_id(call: &Call<'_>, node: SocketAddr) -> NodeId {
    let record = NodeRecord::new(call.reachable(node), 0, 0, 0);
    NodeId {
        addr: record.addr,
        port: record.port,
        io_addr: record.io_addr,
        io_port: record.io_port,
        pad: [0; 4],
    }
}
