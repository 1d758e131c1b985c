//! The cluster of one node: what it says about itself, and what an
//! administrator may change without effect.

use std::sync::Arc;

use sheep_proto::cluster::{ClusterInfoHeader, EpochRecordHeader};
use sheep_proto::limits::CLUSTER_INFO_LEN;
use sheep_proto::statistics::RecoveryThrottle;
use sheep_proto::{ClusterFlags, Generation, ResponseBody, ResultCode};
use zerocopy::{FromBytes, FromZeros, IntoBytes};

use crate::cluster::Cluster;
use crate::membership::Membership;
use crate::node_record::{node_count, node_records};
use crate::recovery_settings::RecoverySettings;
use crate::request::{HandlerResult, Reply, Request};
use crate::store::Store;

/// The epoch of a format; its time is kept with the settings.
const FIRST_EPOCH: u32 = 1;

/// See the module.
pub(crate) struct ClusterService {
    store: Arc<dyn Store>,
    members: Arc<Membership>,
    recovery: RecoverySettings,
    generation: Generation,
}

impl ClusterService {
    pub(crate) fn new(
        store: Arc<dyn Store>,
        members: Arc<Membership>,
        generation: Generation,
    ) -> Self {
        Self {
            store,
            members,
            recovery: RecoverySettings::default(),
            generation,
        }
    }

    /// GET_CLUSTER_DEFAULT.
    pub(crate) fn defaults(cluster: Option<&Cluster>) -> HandlerResult {
        let body = cluster.map(Cluster::defaults).unwrap_or_default();
        Ok(Reply::body(ResponseBody::ClusterDefault(body)))
    }

    /// STAT_CLUSTER: the status as the result, and as many epochs as there is
    /// room for, newest first (protocol 8.3).
    pub(crate) fn status(&self, request: &Request<'_>, cluster: Option<&Cluster>) -> HandlerResult {
        let cluster = cluster.ok_or(ResultCode::WaitForFormat)?;
        let max_len = request.max_response_len().unwrap_or(0);
        let slots = if self.generation.sizes_epoch_records() {
            request.cluster_request().nodes_nr.get() as usize
        } else {
            self.generation.max_nodes()
        };
        if slots > max_len || self.generation.epoch_record_len(slots) > max_len {
            return Ok(Reply::ok());
        }
        let record_len = self.generation.epoch_record_len(slots);
        let mut payload = Vec::new();
        let mut record = cluster.newest_record();
        record.disable_recovery = self.recovery.is_disabled().into();
        for (number, epoch) in self.members.epochs().into_iter().take(max_len / record_len) {
            record.epoch = number.into();
            record.time = match number {
                FIRST_EPOCH => cluster.epoch_time().into(),
                _ => epoch.time.into(),
            };
            let mut nodes = Vec::new();
            if slots > 0 {
                if epoch.nodes.len() > slots {
                    return Err(ResultCode::BufferSmall);
                }
                record.nr_nodes = node_count(&epoch.nodes).into();
                let space = self.store.space()?;
                nodes = node_records(request, &epoch.nodes, space, self.generation);
            }
            self.generation
                .push_epoch(&record, &nodes, slots, &mut payload);
            if !self.generation.repeats_ctime() {
                record = EpochRecordHeader::new_zeroed();
            }
        }
        Ok(Reply::payload(payload))
    }

    /// CLUSTER_INFO (protocol 8.2).
    pub(crate) fn info(&self, request: &Request<'_>, cluster: Option<&Cluster>) -> HandlerResult {
        const RUNNING: u8 = 1;
        const WAITING: u8 = 2;
        let mut payload = Vec::with_capacity(CLUSTER_INFO_LEN);
        let mut info = cluster.map_or_else(ClusterInfoHeader::new_zeroed, Cluster::info);
        info.disable_recovery = self.recovery.is_disabled().into();
        if cluster.is_some() {
            let nodes = self.members.nodes();
            info.nr_nodes = u16::try_from(nodes.len()).unwrap_or(u16::MAX).into();
            info.epoch = self.members.epoch().into();
            info.status = RUNNING;
            payload.extend_from_slice(self.generation.cluster_info_bytes(info).as_bytes());
            for node in node_records(request, &nodes, self.store.space()?, self.generation) {
                self.generation.push_node(&node, &mut payload);
            }
        } else {
            // dog compares this with what it is about to send.
            info.flags = ClusterFlags::AUTO_VNODES.bits().into();
            info.status = WAITING;
            payload.extend_from_slice(self.generation.cluster_info_bytes(info).as_bytes());
        }
        payload.resize(CLUSTER_INFO_LEN, 0);
        request.reply_with(payload)
    }

    /// GET_STORE_LIST.
    pub(crate) fn store_list(&self, request: &Request<'_>) -> HandlerResult {
        request.reply_with(self.generation.store_list().to_vec())
    }

    /// ENABLE_RECOVER and DISABLE_RECOVER.
    pub(crate) fn set_recovery_disabled(&self, disabled: bool) -> HandlerResult {
        self.recovery.set_disabled(disabled);
        Ok(Reply::ok())
    }

    /// GET_RECOVERY.
    pub(crate) fn recovery_throttle(&self, request: &Request<'_>) -> HandlerResult {
        request.reply_with(self.recovery.throttle().as_bytes().to_vec())
    }

    /// SET_RECOVERY.
    pub(crate) fn set_recovery_throttle(&self, request: &Request<'_>) -> HandlerResult {
        let throttle = RecoveryThrottle::read_from_bytes(request.data()?)
            .map_err(|_size| ResultCode::InvalidParms)?;
        self.recovery.set_throttle(throttle);
        Ok(Reply::ok())
    }
}
