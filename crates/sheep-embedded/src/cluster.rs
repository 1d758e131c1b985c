//! The cluster of one node: its settings, MAKE_FS, and what it says about itself.

use std::time::{SystemTime, UNIX_EPOCH};

use sheep_proto::cluster::{ClusterInfoHeader, EpochRecordHeader};
use sheep_proto::inode::pack_time;
use sheep_proto::limits::{
    CLUSTER_INFO_LEN, DEFAULT_BLOCK_SIZE_SHIFT, EPOCH_RECORD_HEADER_LEN, INTERNAL_PROTO_VER,
    MAX_BLOCK_SIZE_SHIFT, MAX_COPIES, MIN_BLOCK_SIZE_SHIFT, NODE_RECORD_LEN, STORE_LIST_LEN,
};
use sheep_proto::name::unpad;
use sheep_proto::{
    ClusterDefaultResponse, ClusterFlags, Redundancy, ResponseBody, ResultCode, VdiRequest,
};
use zerocopy::little_endian::{U16, U64};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::call::{Answer, Call, Outcome};
use crate::node::node_count;
use crate::sheep::Sheep;

/// The epoch of a format; its time is kept with the settings.
const FIRST_EPOCH: u32 = 1;
/// Replicas when MAKE_FS does not say.
const DEFAULT_COPIES: u8 = 3;
/// Stores a client may ask for; they are all the same here.
const STORES: [&[u8]; 2] = [b"plain", b"tree"];
/// GET_STORE_LIST, as a sheep prints it.
const STORE_LIST: &[u8] = b"tree plain \0";
const _: () = assert!(STORE_LIST.len() <= STORE_LIST_LEN);

const MAGIC: [u8; 8] = *b"sheepcl1";

/// Settings chosen by MAKE_FS, in the form in which a store keeps them.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(crate) struct Cluster {
    magic: [u8; 8],
    /// Time of MAKE_FS as the client gave it, packed.
    ctime: U64,
    /// Time of MAKE_FS here, seconds since 1970.
    epoch_time: U64,
    flags: U16,
    copies: u8,
    copy_policy: u8,
    shift: u8,
    pad: [u8; 3],
    store: [u8; 16],
}

impl Cluster {
    /// The settings of a store that formats itself: one copy, 4 MiB objects.
    pub(crate) fn by_default() -> Self {
        let now = now();
        Self {
            magic: MAGIC,
            ctime: now.into(),
            epoch_time: (now >> 32).into(),
            flags: ClusterFlags::AUTO_VNODES.bits().into(),
            copies: 1,
            copy_policy: 0,
            shift: DEFAULT_BLOCK_SIZE_SHIFT,
            pad: [0; 3],
            store: store_field(STORES[0]),
        }
    }

    /// Reads the record a store kept; `None` when it is damaged.
    pub(crate) fn parse(record: &[u8]) -> Option<Self> {
        Self::read_from_bytes(record)
            .ok()
            .filter(|cluster| cluster.magic == MAGIC)
    }

    pub(crate) fn flags(&self) -> ClusterFlags {
        ClusterFlags::from_bits_retain(self.flags.get())
    }

    pub(crate) fn shift(&self) -> u8 {
        self.shift
    }

    /// The redundancy that a NEW_VDI asks for (protocol 4.3).
    pub(crate) fn redundancy_of(&self, request: &VdiRequest) -> Result<Redundancy, ResultCode> {
        if request.copies == 0 {
            Ok(Redundancy::from_wire(self.copies, self.copy_policy))
        } else {
            checked_redundancy(request.copies, request.copy_policy)
        }
    }

    /// The same cluster with another number of replicas by default.
    pub(crate) fn with_copies(&self, copies: u8) -> Result<Self, ResultCode> {
        checked_redundancy(copies, 0).map(|redundancy| Self {
            copies: redundancy.nr_copies(),
            copy_policy: 0,
            ..*self
        })
    }

    /// A strict cluster refuses to write what it cannot store as often as asked: one node has one zone.
    pub(crate) fn halts(&self, copies: u8) -> bool {
        self.flags().contains(ClusterFlags::STRICT) && copies > 1
    }

    /// What is known about the newest epoch; a sheep leaves most of it out of older ones.
    fn newest_record(&self) -> EpochRecordHeader {
        EpochRecordHeader {
            ctime: self.ctime,
            nr_copies: self.copies,
            copy_policy: self.copy_policy,
            flags: self.flags,
            store: self.store,
            ..EpochRecordHeader::new_zeroed()
        }
    }
}

fn store_field(name: &[u8]) -> [u8; 16] {
    let mut field = [0; 16];
    field[..name.len()].copy_from_slice(name);
    field
}

/// The time as inodes have it.
pub(crate) fn now() -> u64 {
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    let seconds = u32::try_from(now.as_secs()).unwrap_or(u32::MAX);
    pack_time(seconds, now.subsec_nanos())
}

/// An object size a cluster can have; 0 stands for `default`.
pub(crate) fn checked_shift(shift: u8, default: u8) -> Result<u8, ResultCode> {
    match shift {
        0 => Ok(default),
        MIN_BLOCK_SIZE_SHIFT..=MAX_BLOCK_SIZE_SHIFT => Ok(shift),
        _ => Err(ResultCode::InvalidParms),
    }
}

fn checked_redundancy(copies: u8, copy_policy: u8) -> Result<Redundancy, ResultCode> {
    let (strips, parity) = (copy_policy >> 4, copy_policy & 0x0f);
    let has_both = copy_policy == 0 || strips != 0 && parity != 0;
    let redundancy = Redundancy::from_wire(copies, copy_policy);
    if has_both && (1..=MAX_COPIES).contains(&redundancy.nr_copies()) {
        Ok(redundancy)
    } else {
        Err(ResultCode::InvalidParms)
    }
}

impl Sheep {
    /// MAKE_FS: wipes everything. VIDs are not recycled, so that flag is refused.
    pub(crate) fn make_fs(&self, call: &Call<'_>) -> Result<Cluster, ResultCode> {
        let request = call.cluster_request();
        let data = call.data()?;
        let store = unpad(data);
        if !STORES.contains(&store) {
            return Err(ResultCode::NoStore);
        }
        if request.flags().contains(ClusterFlags::RECYCLE_VID) {
            return Err(ResultCode::NoSupport);
        }
        let copies = match request.copies {
            0 => DEFAULT_COPIES,
            copies => copies,
        };
        let redundancy = checked_redundancy(copies, request.copy_policy)?;
        Ok(Cluster {
            magic: MAGIC,
            ctime: request.ctime,
            epoch_time: (now() >> 32).into(),
            flags: request.cluster_flags,
            copies: redundancy.nr_copies(),
            copy_policy: redundancy.copy_policy(),
            shift: checked_shift(request.block_size_shift, DEFAULT_BLOCK_SIZE_SHIFT)?,
            pad: [0; 3],
            store: store_field(store),
        })
    }

    /// GET_CLUSTER_DEFAULT.
    pub(crate) fn cluster_default(&self, call: &Call<'_>) -> Outcome {
        let mut body = ClusterDefaultResponse::default();
        if let Some(cluster) = call.cluster {
            body.copies = cluster.copies;
            body.copy_policy = cluster.copy_policy;
            body.block_size_shift = cluster.shift;
        }
        Ok(Answer::body(ResponseBody::ClusterDefault(body)))
    }

    /// STAT_CLUSTER: the status as the result, and as many epochs as there is
    /// room for, newest first (protocol 8.3).
    pub(crate) fn stat_cluster(&self, call: &Call<'_>) -> Outcome {
        let Some(cluster) = call.cluster else {
            return Err(ResultCode::WaitForFormat);
        };
        let slots = call.cluster_request().nodes_nr.get() as usize;
        let want = call.want().unwrap_or(0);
        let record_len = slots
            .checked_mul(NODE_RECORD_LEN)
            .and_then(|nodes| nodes.checked_add(EPOCH_RECORD_HEADER_LEN));
        let Some(record_len) = record_len.filter(|&len| len <= want) else {
            return Ok(Answer::done());
        };
        let mut payload = Vec::new();
        let mut record = cluster.newest_record();
        record.disable_recovery = self.settings.recovery_disabled();
        for (number, epoch) in self.members.epochs().into_iter().take(want / record_len) {
            record.epoch = number.into();
            record.time = match number {
                FIRST_EPOCH => cluster.epoch_time,
                _ => epoch.time.into(),
            };
            let end = payload.len() + record_len;
            if slots > 0 {
                if epoch.nodes.len() > slots {
                    return Err(ResultCode::BufferSmall);
                }
                record.nr_nodes = node_count(&epoch.nodes).into();
            }
            payload.extend_from_slice(record.as_bytes());
            if slots > 0 {
                payload.extend_from_slice(&self.node_records(call, &epoch.nodes)?);
            }
            payload.resize(end, 0);
            record = EpochRecordHeader::new_zeroed();
        }
        Ok(Answer::payload(payload))
    }

    /// CLUSTER_INFO (protocol 8.2).
    pub(crate) fn cluster_info(&self, call: &Call<'_>) -> Outcome {
        const RUNNING: u8 = 1;
        const WAITING: u8 = 2;
        let mut info = ClusterInfoHeader::new_zeroed();
        info.proto_ver = INTERNAL_PROTO_VER;
        info.disable_recovery = self.settings.recovery_disabled();
        // Before the format dog compares this with what it is about to send.
        info.flags = ClusterFlags::AUTO_VNODES.bits().into();
        info.status = WAITING;
        let mut payload = Vec::with_capacity(CLUSTER_INFO_LEN);
        if let Some(cluster) = call.cluster {
            let nodes = self.members.nodes();
            info.nr_nodes = u16::try_from(nodes.len()).unwrap_or(u16::MAX).into();
            info.epoch = self.members.epoch().into();
            info.ctime = cluster.ctime;
            info.flags = cluster.flags;
            info.nr_copies = cluster.copies;
            info.copy_policy = cluster.copy_policy;
            info.status = RUNNING;
            info.block_size_shift = cluster.shift;
            info.store = cluster.store;
            payload.extend_from_slice(info.as_bytes());
            payload.extend_from_slice(&self.node_records(call, &nodes)?);
        } else {
            payload.extend_from_slice(info.as_bytes());
        }
        payload.resize(CLUSTER_INFO_LEN, 0);
        call.answer_with(payload)
    }

    /// GET_STORE_LIST.
    pub(crate) fn store_list(&self, call: &Call<'_>) -> Outcome {
        call.answer_with(STORE_LIST.to_vec())
    }
}
