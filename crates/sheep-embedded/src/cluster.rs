//! The settings of the cluster, which MAKE_FS chooses and a store keeps.

use sheep_proto::cluster::{ClusterInfoHeader, EpochRecordHeader};
use sheep_proto::limits::{
    DEFAULT_BLOCK_SIZE_SHIFT, MAX_BLOCK_SIZE_SHIFT, MAX_COPIES, MIN_BLOCK_SIZE_SHIFT,
};
use sheep_proto::name::unpad;
use sheep_proto::{
    ClusterDefaultResponse, ClusterFlags, ClusterRequest, Generation, Redundancy, ResultCode,
    VdiRequest,
};
use zerocopy::little_endian::{U16, U64};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::clock::now;
use crate::request::Request;

/// Replicas when MAKE_FS does not say.
const DEFAULT_COPIES: u8 = 3;
/// Stores a client may ask for; they are all the same here.
const STORES: [&[u8]; 2] = [b"plain", b"tree"];

const MAGIC: [u8; 8] = *b"sheepcl1";

/// The settings, in the form in which a store keeps them.
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
    /// The generation's name; zeros for the newest one.
    generation: [u8; 3],
    store: [u8; 16],
}

impl Cluster {
    /// The settings of a store that formats itself: one copy, 4 MiB objects.
    pub(crate) fn default_config(generation: Generation) -> Self {
        let now = now();
        Self {
            magic: MAGIC,
            ctime: now.into(),
            epoch_time: (now >> 32).into(),
            flags: ClusterFlags::AUTO_VNODES.bits().into(),
            copies: 1,
            copy_policy: 0,
            shift: DEFAULT_BLOCK_SIZE_SHIFT,
            generation: generation_field(generation),
            store: store_field(STORES[0]),
        }
    }

    /// The settings that a MAKE_FS asks for. VIDs are not recycled, so that flag is refused.
    pub(crate) fn from_make_fs(
        request: &Request<'_>,
        generation: Generation,
    ) -> Result<Self, ResultCode> {
        let store = unpad(request.data()?);
        let request = request.cluster_request();
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
        Ok(Self {
            magic: MAGIC,
            ctime: request.ctime,
            epoch_time: (now() >> 32).into(),
            flags: request.cluster_flags,
            copies: redundancy.nr_copies(),
            copy_policy: redundancy.copy_policy(),
            shift: checked_shift(
                generation,
                request.block_size_shift,
                DEFAULT_BLOCK_SIZE_SHIFT,
            )?,
            generation: generation_field(generation),
            store: store_field(store),
        })
    }

    /// The settings after an ALTER_CLUSTER_COPY: another number of replicas for
    /// VDIs that do not say.
    pub(crate) fn altered(
        current: Option<&Self>,
        request: &ClusterRequest,
    ) -> Result<Self, ResultCode> {
        if request.copy_policy != 0 {
            return Err(ResultCode::InvalidParms);
        }
        let current = current.ok_or(ResultCode::WaitForFormat)?;
        checked_redundancy(request.copies, 0).map(|redundancy| Self {
            copies: redundancy.nr_copies(),
            copy_policy: 0,
            ..*current
        })
    }

    /// Reads the record a store kept; `None` when it is damaged.
    pub(crate) fn parse(record: &[u8]) -> Option<Self> {
        Self::read_from_bytes(record)
            .ok()
            .filter(|cluster| cluster.magic == MAGIC)
    }

    /// The generation that has formatted the store; `None` for one that is unknown here.
    pub(crate) fn generation(&self) -> Option<Generation> {
        Generation::ALL
            .into_iter()
            .find(|&generation| generation_field(generation) == self.generation)
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

    /// A strict cluster refuses to write what it cannot store as often as asked: one node has one zone.
    pub(crate) fn requires_halt(&self, copies: u8) -> bool {
        self.flags().contains(ClusterFlags::STRICT) && copies > 1
    }

    /// What is known about the newest epoch; a sheep leaves most of it out of older ones.
    pub(crate) fn newest_record(&self) -> EpochRecordHeader {
        EpochRecordHeader {
            ctime: self.ctime,
            nr_copies: self.copies,
            copy_policy: self.copy_policy,
            flags: self.flags,
            store: self.store,
            ..EpochRecordHeader::new_zeroed()
        }
    }

    /// Time of the first epoch, seconds since 1970.
    pub(crate) fn epoch_time(&self) -> u64 {
        self.epoch_time.get()
    }

    /// What GET_CLUSTER_DEFAULT answers.
    pub(crate) fn defaults(&self) -> ClusterDefaultResponse {
        ClusterDefaultResponse {
            copies: self.copies,
            copy_policy: self.copy_policy,
            block_size_shift: self.shift,
            ..ClusterDefaultResponse::default()
        }
    }

    /// The settings' part of CLUSTER_INFO.
    pub(crate) fn info(&self) -> ClusterInfoHeader {
        ClusterInfoHeader {
            ctime: self.ctime,
            flags: self.flags,
            nr_copies: self.copies,
            copy_policy: self.copy_policy,
            block_size_shift: self.shift,
            store: self.store,
            ..ClusterInfoHeader::new_zeroed()
        }
    }
}

fn store_field(name: &[u8]) -> [u8; 16] {
    let mut field = [0; 16];
    field[..name.len()].copy_from_slice(name);
    field
}

fn generation_field(generation: Generation) -> [u8; 3] {
    let mut field = [0; 3];
    if generation != Generation::NEWEST {
        field.copy_from_slice(generation.to_string().as_bytes());
    }
    field
}

/// An object size a cluster of this generation can have; 0 stands for `default`. Older
/// ones ignore what they are asked for.
pub(crate) fn checked_shift(
    generation: Generation,
    shift: u8,
    default: u8,
) -> Result<u8, ResultCode> {
    match shift {
        _ if !generation.has_object_sizes() => Ok(DEFAULT_BLOCK_SIZE_SHIFT),
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
