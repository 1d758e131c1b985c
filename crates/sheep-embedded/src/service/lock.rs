//! LOCK_VDI, RELEASE_VDI and GET_VDI_COPIES.

use std::sync::Arc;

use sheep_proto::vdi_state::VdiState;
use sheep_proto::{ClusterFlags, ResultCode, Vid};
use zerocopy::FromZeros;

use super::vdi::vdi_reply;
use crate::catalogue::{Catalogue, Vdi};
use crate::cluster::Cluster;
use crate::lock::{LockOwners, LockType, Locks};
use crate::node_record::node_id;
use crate::release::Release;
use crate::request::{HandlerResult, Reply, Request};

/// See the module.
pub(crate) struct LockService {
    pub(crate) vdis: Arc<Catalogue>,
    pub(crate) locks: Arc<Locks>,
    pub(crate) release: Release,
}

impl LockService {
    /// LOCK_VDI: a look-up, and a lock in a cluster that has locks.
    pub(crate) fn lock(&self, request: &Request<'_>, cluster: &Cluster) -> HandlerResult {
        let (name, tag) = request.name_and_tag()?;
        let wanted = request.vdi();
        let operation = self.vdis.begin_operation();
        let vdi = operation.lookup(&name, &tag, wanted.snapid.get())?;
        let flag = cluster.flags().contains(ClusterFlags::USE_LOCK);
        if self.release.locks(flag) {
            let lock_type =
                LockType::from_wire(wanted.lock_type.get()).ok_or(ResultCode::VdiLocked)?;
            self.locks
                .acquire(vdi.vid, lock_type, request.origin.node)?;
        }
        Ok(vdi_reply(&vdi, self.release.generation))
    }

    /// RELEASE_VDI: succeeds whatever there was to release.
    pub(crate) fn release(&self, request: &Request<'_>) {
        let wanted = request.vdi();
        let _operation = self.vdis.begin_operation();
        if let (Some(vid), Some(lock_type)) = (
            Vid::new(wanted.base_vdi_id.get()),
            LockType::from_wire(wanted.lock_type.get()),
        ) {
            self.locks.release(vid, lock_type, request.origin.node);
        }
    }

    /// GET_VDI_COPIES: the state of every VDI, deleted ones included (protocol 8.6).
    pub(crate) fn states(&self, request: &Request<'_>) -> HandlerResult {
        let generation = self.release.generation;
        let vdis = self.vdis.all();
        let len = vdis.len() * generation.vdi_state_len();
        if len > request.max_response_len()? {
            if !generation.checks_vdi_state_buffer() {
                return Ok(Reply::death("VDI states that do not fit into the buffer"));
            }
            return Err(ResultCode::BufferSmall);
        }
        let mut payload = Vec::with_capacity(len);
        for vdi in vdis {
            let state = self.state_of(request, &vdi);
            generation.push_vdi_state(&state, &mut payload);
        }
        request.reply_with(payload)
    }

    fn state_of(&self, request: &Request<'_>, vdi: &Vdi) -> VdiState {
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
        record.lock_state = match self.locks.owners(vdi.vid) {
            None => UNLOCKED.into(),
            Some(LockOwners::Normal(owner)) => {
                record.owner = node_id(request, owner);
                LOCKED.into()
            }
            Some(LockOwners::Shared(nodes)) => {
                record.nr_participants = u32::try_from(nodes.len())
                    .expect("a lock has at most 31 participants")
                    .into();
                for (at, (node, state)) in nodes.into_iter().enumerate() {
                    record.participants[at] = node_id(request, node);
                    record.participant_states[at] = (state as u32).into();
                }
                SHARED.into()
            }
        };
        record
    }
}
