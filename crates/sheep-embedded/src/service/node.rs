//! What the nodes say about themselves.

use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering};

use sheep_proto::limits::MD_INFO_LEN;
use sheep_proto::statistics::{MdInfo, RecoveryState};
use sheep_proto::{Generation, NodeResponse, ResponseBody, ResultCode};
use zerocopy::{FromZeros, IntoBytes};

use crate::counters::Counters;
use crate::membership::Membership;
use crate::node_record::{node_count, node_records};
use crate::request::{HandlerResult, Reply, Request};
use crate::store::Store;

/// Highest log level: debug.
const MAX_LOG_LEVEL: i32 = 7;
/// Log level of a fresh sheep: information.
const INITIAL_LOG_LEVEL: i32 = 6;

/// See the module.
pub(crate) struct NodeService {
    store: Arc<dyn Store>,
    members: Arc<Membership>,
    counters: Arc<Counters>,
    log_level: AtomicI32,
    generation: Generation,
}

impl NodeService {
    pub(crate) fn new(
        store: Arc<dyn Store>,
        members: Arc<Membership>,
        counters: Arc<Counters>,
        generation: Generation,
    ) -> Self {
        Self {
            store,
            members,
            counters,
            log_level: AtomicI32::new(INITIAL_LOG_LEVEL),
            generation,
        }
    }

    /// GET_NODE_LIST.
    pub(crate) fn list(&self, request: &Request<'_>) -> HandlerResult {
        let nodes = self.members.nodes();
        let mut records = Vec::with_capacity(nodes.len() * self.generation.node_record_len());
        for node in node_records(request, &nodes, self.store.space()?, self.generation) {
            self.generation.push_node(&node, &mut records);
        }
        // Only the newest one is served without this fault.
        let ends = self.generation != Generation::NEWEST;
        if ends && records.len() > request.max_response_len()? {
            return Ok(Reply::death(
                "a node list that does not fit into the buffer",
            ));
        }
        let mut reply = request.reply_with(records)?;
        reply.body = ResponseBody::Node(NodeResponse {
            nr_nodes: node_count(&nodes).into(),
            ..NodeResponse::default()
        });
        Ok(reply)
    }

    /// STAT_SHEEP.
    pub(crate) fn space(&self) -> HandlerResult {
        let space = self.store.space()?;
        Ok(Reply::body(ResponseBody::Node(NodeResponse {
            store_size: space.size.into(),
            store_free: space.free.into(),
            ..NodeResponse::default()
        })))
    }

    /// STAT_RECOVERY: there is never any.
    pub(crate) fn recovery_state(request: &Request<'_>) -> HandlerResult {
        request.reply_with(RecoveryState::default().as_bytes().to_vec())
    }

    /// MD_INFO: one disk, the store.
    pub(crate) fn disks(&self, request: &Request<'_>) -> HandlerResult {
        if request.max_response_len()? != MD_INFO_LEN {
            return Err(ResultCode::InvalidParms);
        }
        let space = self.store.space()?;
        let mut info = MdInfo::new_box_zeroed().map_err(|_no_memory| ResultCode::NoMem)?;
        info.nr_disks = 1.into();
        let disk = &mut info.disks[0];
        disk.free = space.free.into();
        disk.used = (space.size - space.free.min(space.size)).into();
        let path = self.store.path();
        let len = path.len().min(disk.path.len() - 1);
        disk.path[..len].copy_from_slice(&path[..len]);
        Ok(Reply::payload(info.as_bytes().to_vec()))
    }

    /// STAT.
    pub(crate) fn request_counters(&self, request: &Request<'_>) -> HandlerResult {
        let counters = self.counters.snapshot();
        request.reply_with(counters.as_bytes().to_vec())
    }

    /// GET_LOGLEVEL.
    pub(crate) fn log_level(&self, request: &Request<'_>) -> HandlerResult {
        let level = self.log_level.load(Ordering::Relaxed);
        request.reply_with(level.to_le_bytes().to_vec())
    }

    /// SET_LOGLEVEL: remembered for GET_LOGLEVEL; the program's own log has its own filter.
    pub(crate) fn set_log_level(&self, request: &Request<'_>) -> HandlerResult {
        let level = request
            .data()?
            .try_into()
            .map_err(|_| ResultCode::InvalidParms)?;
        let level = i32::from_le_bytes(level);
        if !(0..=MAX_LOG_LEVEL).contains(&level) {
            return Err(ResultCode::InvalidParms);
        }
        self.log_level.store(level, Ordering::Relaxed);
        Ok(Reply::ok())
    }

    /// GET_VNODES.
    pub(crate) fn vnodes(&self, request: &Request<'_>) -> HandlerResult {
        request.reply_with(
            i32::from(self.generation.default_vnodes())
                .to_le_bytes()
                .to_vec(),
        )
    }
}
