//! VDI locks, in a cluster formatted with locking.
//!
//! A lock belongs to the node, and there is one: whoever locks a locked VDI is
//! refused, whoever releases it with the right type succeeds, and a closed
//! connection releases nothing (protocol 6.9). A restart forgets all locks.

use std::collections::HashMap;
use std::sync::Mutex;

use sheep_proto::limits::VDI_STATE_LEN;
use sheep_proto::vdi_state::{NodeId, VdiState};
use sheep_proto::{ClusterFlags, ResultCode, Vid};
use zerocopy::{FromZeros, IntoBytes};

use crate::call::{Answer, Call, Outcome};
use crate::catalogue::Vdi;
use crate::sheep::Sheep;
use crate::sync::lock;
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

/// The locks that are held.
#[derive(Default)]
pub(crate) struct Locks(Mutex<HashMap<Vid, LockType>>);

impl Locks {
    fn take(&self, vid: Vid, lock_type: LockType) -> Result<(), ResultCode> {
        let mut held = lock(&self.0);
        if held.contains_key(&vid) {
            return Err(ResultCode::VdiLocked);
        }
        held.insert(vid, lock_type);
        Ok(())
    }

    fn release(&self, vid: Vid, lock_type: LockType) {
        let mut held = lock(&self.0);
        if held.get(&vid) == Some(&lock_type) {
            held.remove(&vid);
        }
    }

    fn held(&self, vid: Vid) -> Option<LockType> {
        lock(&self.0).get(&vid).copied()
    }

    pub(crate) fn forget(&self, vid: Vid) {
        lock(&self.0).remove(&vid);
    }

    pub(crate) fn clear(&self) {
        lock(&self.0).clear();
    }
}

impl Sheep {
    /// LOCK_VDI: a look-up, and a lock in a cluster that has locks.
    pub(crate) fn lock_vdi(&self, call: &Call<'_>) -> Outcome {
        let (name, tag) = call.name_and_tag()?;
        let request = call.vdi();
        let _serialised = lock(&self.vdi_operations);
        let vdi = self.find(&name, &tag, request.snapid.get())?;
        if call.formatted()?.flags().contains(ClusterFlags::USE_LOCK) {
            let lock_type =
                LockType::from_wire(request.lock_type.get()).ok_or(ResultCode::VdiLocked)?;
            self.locks.take(vdi.vid, lock_type)?;
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
            self.locks.release(vid, lock_type);
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
            payload.extend_from_slice(self.vdi_state(call, &vdi)?.as_bytes());
        }
        call.answer_with(payload)
    }

    fn vdi_state(&self, call: &Call<'_>, vdi: &Vdi) -> Result<VdiState, ResultCode> {
        const UNLOCKED: u32 = 1;
        const LOCKED: u32 = 2;
        const SHARED: u32 = 3;
        const MODIFIED: u32 = 1;
        let mut record = VdiState::new_zeroed();
        record.vid = vdi.vid.get().into();
        record.nr_copies = vdi.redundancy.nr_copies();
        record.copy_policy = vdi.redundancy.copy_policy();
        record.block_size_shift = vdi.shift;
        record.parent_vid = vdi.parent.map_or(0, Vid::get).into();
        {
            let state = vdi.shared();
            record.snapshot = state.is_snapshot.into();
            record.deleted = state.name.is_none().into();
        }
        record.lock_state = match self.locks.held(vdi.vid) {
            None => UNLOCKED.into(),
            Some(LockType::Normal) => {
                record.owner = self.node_id(call)?;
                LOCKED.into()
            }
            Some(LockType::Shared) => {
                record.nr_participants = 1.into();
                record.participant_states[0] = MODIFIED.into();
                record.participants[0] = self.node_id(call)?;
                SHARED.into()
            }
        };
        Ok(record)
    }

    fn node_id(&self, call: &Call<'_>) -> Result<NodeId, ResultCode> {
        let node = self.node(call)?;
        Ok(NodeId {
            addr: node.addr,
            port: node.port,
            io_addr: node.io_addr,
            io_port: node.io_port,
            pad: [0; 4],
        })
    }
}
