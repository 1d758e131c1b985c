//! From an opcode to its handler: the only place that looks at opcodes.

use sheep_proto::{Opcode, ResultCode};

use crate::call::{Answer, Call, Outcome};
use crate::sheep::Sheep;

impl Sheep {
    /// Runs an operation that the status gate has let through.
    ///
    /// What a cluster of one node cannot be asked (peer operations, recovery,
    /// disks, tracing) and what 1.0 has dropped is answered with INVALID_PARMS.
    pub(crate) fn dispatch(&self, opcode: Opcode, call: &Call<'_>) -> Outcome {
        match opcode {
            Opcode::ReadObj => self.read_object(call),
            Opcode::WriteObj => self.write_object(call),
            Opcode::CreateAndWriteObj => self.create_object(call),
            Opcode::RemoveObj => self.remove_object(call),
            Opcode::DiscardObj => self.discard_object(call),
            Opcode::Exist => self.object_exists(call),
            Opcode::OidsExist => self.missing_objects(call),

            Opcode::NewVdi => self.new_vdi(call),
            Opcode::GetVdiInfo => self.vdi_info(call),
            Opcode::DelVdi => self.delete_vdi(call),
            Opcode::LockVdi => self.lock_vdi(call),
            Opcode::ReleaseVdi => self.release_vdi(call),
            Opcode::ReadVdis => self.used_vids(call),
            Opcode::ReadDelVdis => self.deleted_vids(call),
            Opcode::GetVdiCopies => self.vdi_states(call),
            Opcode::GetVdiAttr => self.attribute(call),

            Opcode::GetClusterDefault => self.cluster_default(call),
            Opcode::StatCluster => self.stat_cluster(call),
            Opcode::ClusterInfo => self.cluster_info(call),
            Opcode::GetStoreList => self.store_list(call),

            Opcode::GetNodeList => self.node_list(call),
            Opcode::StatSheep => self.stat_sheep(),
            Opcode::StatRecovery => self.recovery_state(call),
            Opcode::GetRecovery => self.recovery_throttle(call),
            Opcode::MdInfo => self.disks(call),
            Opcode::Stat => self.request_counters(call),
            Opcode::GetLogLevel => self.get_log_level(call),
            Opcode::SetLogLevel => self.set_log_level(call),
            Opcode::GetVnodes => self.vnodes(call),

            Opcode::FlushDelCache | Opcode::DeleteCache => Ok(Answer::done()),
            Opcode::Shutdown => {
                tracing::info!("a client asked for a shutdown");
                self.stop.cancel();
                Ok(Answer::done())
            }
            Opcode::KillNode => {
                tracing::info!("a client asked this node to end");
                call.origin.stop.cancel();
                Ok(Answer::done())
            }
            Opcode::ForceRecover if call.cluster.is_some() => Err(ResultCode::ForceRecover),
            Opcode::EnableRecover => self.disable_recovery(false),
            Opcode::DisableRecover => self.disable_recovery(true),
            Opcode::SetRecovery => self.set_recovery_throttle(call),
            // The weight of the only node.
            Opcode::Reweight => Ok(Answer::done()),
            Opcode::GetHash => self.object_digest(call),
            Opcode::SetVnodes => Err(ResultCode::InvalidVnodesStrategy),

            // There are no peers, and clients do not know the epoch.
            Opcode::CreateAndWritePeer
            | Opcode::ReadPeer
            | Opcode::WritePeer
            | Opcode::RemovePeer
                if call.header.epoch.get() < self.members.epoch() =>
            {
                Err(ResultCode::OldNodeVer)
            }

            // These need the whole server for themselves and never get here.
            Opcode::MakeFs
            | Opcode::AlterClusterCopy
            | Opcode::CreateAndWritePeer
            | Opcode::ReadPeer
            | Opcode::WritePeer
            | Opcode::RemovePeer
            | Opcode::FlushVdi
            | Opcode::ForceRecover
            | Opcode::Snapshot
            | Opcode::Restore
            | Opcode::GetSnapFile
            | Opcode::Cleanup
            | Opcode::TraceStatus
            | Opcode::TraceReadBuf
            | Opcode::NotifyVdiDel
            | Opcode::TraceEnable
            | Opcode::TraceDisable
            | Opcode::GetObjList
            | Opcode::GetEpoch
            | Opcode::SetCacheSize
            | Opcode::CompleteRecovery
            | Opcode::FlushNodes
            | Opcode::FlushPeer
            | Opcode::NotifyVdiAdd
            | Opcode::MdPlug
            | Opcode::MdUnplug
            | Opcode::GetCacheInfo
            | Opcode::CachePurge
            | Opcode::NfsCreate
            | Opcode::NfsDelete
            | Opcode::AlterVdiCopy
            | Opcode::DecrefObj
            | Opcode::DecrefPeer
            | Opcode::PreventInodeUpdate
            | Opcode::AllowInodeUpdate
            | Opcode::RepairReplica
            | Opcode::VdiStateCheckpoint
            | Opcode::InodeCoherence => Err(ResultCode::InvalidParms),
        }
    }
}
