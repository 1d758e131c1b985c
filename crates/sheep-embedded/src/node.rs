//! What the nodes say about themselves.

use std::net::SocketAddr;
use std::sync::atomic::Ordering;

use sheep_proto::limits::{MD_INFO_LEN, NODE_RECORD_LEN};
use sheep_proto::node::NodeRecord;
use sheep_proto::statistics::{MdInfo, RecoveryState};
use sheep_proto::{NodeResponse, ResponseBody, ResultCode};
use zerocopy::{FromZeros, IntoBytes};

use crate::call::{Answer, Call, Outcome};
use crate::sheep::Sheep;
use crate::store::Space;

/// Points on the placement ring; the number a sheep has by default.
const VNODES: u16 = 128;
/// Highest log level: debug.
const MAX_LOG_LEVEL: i32 = 7;

/// How many nodes there are, as it travels.
pub(crate) fn node_count(nodes: &[SocketAddr]) -> u32 {
    u32::try_from(nodes.len()).expect("each node is a listener of this process")
}

fn record(address: SocketAddr, space: Space) -> NodeRecord {
    let mut record = NodeRecord::new(address, VNODES, 0, space.size);
    // As a sheep that was given no zone: the end of its address.
    let [.., a, b, c, d] = record.addr;
    record.zone = u32::from_le_bytes([a, b, c, d]).into();
    record
}

impl Sheep {
    /// The records of some nodes, each under an address that this client can use.
    pub(crate) fn node_records(
        &self,
        call: &Call<'_>,
        nodes: &[SocketAddr],
    ) -> Result<Vec<u8>, ResultCode> {
        let space = self.store.space()?;
        let mut records = Vec::with_capacity(nodes.len() * NODE_RECORD_LEN);
        for &node in nodes {
            records.extend_from_slice(record(call.reachable(node), space).as_bytes());
        }
        Ok(records)
    }

    /// GET_NODE_LIST.
    pub(crate) fn node_list(&self, call: &Call<'_>) -> Outcome {
        let nodes = self.members.nodes();
        let mut answer = call.answer_with(self.node_records(call, &nodes)?)?;
        answer.body = ResponseBody::Node(NodeResponse {
            nr_nodes: node_count(&nodes).into(),
            ..NodeResponse::default()
        });
        Ok(answer)
    }

    /// STAT_SHEEP.
    pub(crate) fn stat_sheep(&self) -> Outcome {
        let space = self.store.space()?;
        Ok(Answer::body(ResponseBody::Node(NodeResponse {
            store_size: space.size.into(),
            store_free: space.free.into(),
            ..NodeResponse::default()
        })))
    }

    /// STAT_RECOVERY: there is never any.
    pub(crate) fn recovery_state(&self, call: &Call<'_>) -> Outcome {
        call.answer_with(RecoveryState::default().as_bytes().to_vec())
    }

    /// MD_INFO: one disk, the store.
    pub(crate) fn disks(&self, call: &Call<'_>) -> Outcome {
        if call.want()? != MD_INFO_LEN {
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
        Ok(Answer::payload(info.as_bytes().to_vec()))
    }

    /// STAT.
    pub(crate) fn request_counters(&self, call: &Call<'_>) -> Outcome {
        let counters = self.counters.snapshot();
        call.answer_with(counters.as_bytes().to_vec())
    }

    /// GET_LOGLEVEL.
    pub(crate) fn get_log_level(&self, call: &Call<'_>) -> Outcome {
        let level = self.log_level.load(Ordering::Relaxed);
        call.answer_with(level.to_le_bytes().to_vec())
    }

    /// SET_LOGLEVEL: remembered for GET_LOGLEVEL; the program's own log has its own filter.
    pub(crate) fn set_log_level(&self, call: &Call<'_>) -> Outcome {
        let level = call
            .data()?
            .try_into()
            .map_err(|_| ResultCode::InvalidParms)?;
        let level = i32::from_le_bytes(level);
        if !(0..=MAX_LOG_LEVEL).contains(&level) {
            return Err(ResultCode::InvalidParms);
        }
        self.log_level.store(level, Ordering::Relaxed);
        Ok(Answer::done())
    }

    /// GET_VNODES.
    pub(crate) fn vnodes(&self, call: &Call<'_>) -> Outcome {
        call.answer_with(i32::from(VNODES).to_le_bytes().to_vec())
    }
}
