//! From an opcode to its handler: the only place that looks at opcodes.

use std::sync::Arc;

use sheep_proto::{Opcode, ResultCode};
use tokio_util::sync::CancellationToken;

use crate::cluster::Cluster;
use crate::membership::Membership;
use crate::request::{Fate, HandlerResult, Reply, Request};
use crate::service::{
    AttributeService, CacheService, ClusterService, LockService, NodeService, VdiService,
};

/// The services, and what is too little for one.
pub(crate) struct Dispatcher {
    pub(crate) objects: CacheService,
    pub(crate) vdis: VdiService,
    pub(crate) locks: LockService,
    pub(crate) attributes: AttributeService,
    pub(crate) clusters: ClusterService,
    pub(crate) nodes: NodeService,
    pub(crate) members: Arc<Membership>,
    /// Cancelled when all nodes must stop.
    pub(crate) stop: CancellationToken,
}

impl Dispatcher {
    /// Runs an operation that the status check has let through.
    ///
    /// What a cluster of one node cannot be asked (peer operations, recovery,
    /// disks, tracing) and what 1.0 has dropped is answered with INVALID_PARMS.
    pub(crate) fn dispatch(
        &self,
        opcode: Opcode,
        request: &Request<'_>,
        cluster: Option<&Cluster>,
    ) -> HandlerResult {
        // The status check lets no request that needs them through without.
        let formatted = || cluster.ok_or(ResultCode::WaitForFormat);
        match opcode {
            // Objects.
            Opcode::ReadObj => self.objects.read(request),
            Opcode::WriteObj => self.objects.write(request, formatted()?),
            Opcode::CreateAndWriteObj => self.objects.create(request, formatted()?),
            Opcode::RemoveObj => self.objects.uncached.remove(request),
            Opcode::DiscardObj => self.objects.discard(request),
            Opcode::Exist => self.objects.uncached.exists(request),
            Opcode::OidsExist => self.objects.uncached.missing_oids(request),

            // VDIs, their locks and attributes.
            Opcode::NewVdi => {
                let flushed = self.objects.flush_base(request)?;
                if flushed.fate != Fate::Lives {
                    return Ok(flushed);
                }
                self.vdis.create(request, formatted()?)
            }
            Opcode::GetVdiInfo => self.objects.as_cached(request, self.vdis.info(request)?),
            Opcode::DelVdi => self.vdis.delete(request),
            Opcode::LockVdi => {
                let found = self.locks.lock(request, formatted()?)?;
                self.objects.as_cached(request, found)
            }
            Opcode::ReleaseVdi => {
                self.locks.release(request);
                self.objects.release(request)
            }
            Opcode::ReadVdis => self.vdis.used_vids(request),
            Opcode::ReadDelVdis => self.vdis.deleted_vids(request),
            Opcode::GetVdiCopies => self.locks.states(request),
            Opcode::GetVdiAttr => self.attributes.access(request),

            // The cluster.
            Opcode::GetClusterDefault => ClusterService::defaults(cluster),
            Opcode::StatCluster => self.clusters.status(request, cluster),
            Opcode::ClusterInfo => self.clusters.info(request, cluster),
            Opcode::GetStoreList => self.clusters.store_list(request),

            // This node.
            Opcode::GetNodeList => self.nodes.list(request),
            Opcode::StatSheep => self.nodes.space(),
            Opcode::StatRecovery => NodeService::recovery_state(request),
            Opcode::GetRecovery => self.clusters.recovery_throttle(request),
            Opcode::MdInfo => self.nodes.disks(request),
            Opcode::Stat => self.nodes.request_counters(request),
            Opcode::GetLogLevel => self.nodes.log_level(request),
            Opcode::SetLogLevel => self.nodes.set_log_level(request),
            Opcode::GetVnodes => self.nodes.vnodes(request),

            // The object cache.
            Opcode::FlushVdi => self.objects.flush(request),
            Opcode::FlushDelCache => self.objects.flush_and_delete(request),
            Opcode::DeleteCache => self.objects.delete(request),
            Opcode::CachePurge => self.objects.purge(request),
            Opcode::GetCacheInfo => self.objects.info(request),

            // Operations that end the node, or have no effect on a single one.
            Opcode::Shutdown => {
                tracing::info!("a client asked for a shutdown");
                self.stop.cancel();
                Ok(Reply::ok())
            }
            Opcode::KillNode => {
                tracing::info!("a client asked this node to end");
                request.origin.stop.cancel();
                Ok(Reply::ok())
            }
            Opcode::ForceRecover if cluster.is_some() => Err(ResultCode::ForceRecover),
            Opcode::EnableRecover => self.clusters.set_recovery_disabled(false),
            Opcode::DisableRecover => self.clusters.set_recovery_disabled(true),
            Opcode::SetRecovery => self.clusters.set_recovery_throttle(request),
            // The weight of the only node.
            Opcode::Reweight => Ok(Reply::ok()),
            Opcode::GetHash => self.objects.uncached.digest(request),
            Opcode::SetVnodes => Err(ResultCode::InvalidVnodesStrategy),

            // Peer operations of an older epoch: there are no peers, and clients do not
            // know the epoch.
            Opcode::CreateAndWritePeer
            | Opcode::ReadPeer
            | Opcode::WritePeer
            | Opcode::RemovePeer
                if request.header.epoch.get() < self.members.epoch() =>
            {
                Err(ResultCode::OldNodeVer)
            }
            Opcode::ReadPeer => self.objects.uncached.read_as_peer(request),

            // These need the whole server for themselves and never get here.
            Opcode::MakeFs
            | Opcode::AlterClusterCopy
            | Opcode::CreateAndWritePeer
            | Opcode::WritePeer
            | Opcode::RemovePeer
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
