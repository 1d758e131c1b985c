//! What one sheep says of itself: disks, request counters, recovery.

use std::mem::size_of;

use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::Malformed;
use crate::limits::{MD_INFO_LEN, MD_MAX_DISKS, RECOVERY_STATE_LEN, STAT_LEN};
use crate::name::unpad;

/// One disk of a sheep.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct DiskRecord {
    /// Number of the disk; signed in C, never negative.
    pub index: U32,
    /// Padding.
    pub pad: U32,
    /// Free bytes.
    pub free: U64,
    /// Used bytes.
    pub used: U64,
    /// NUL-padded path.
    pub path: [u8; 4096],
}

impl DiskRecord {
    /// The path without padding.
    pub fn path(&self) -> &[u8] {
        unpad(&self.path)
    }
}

/// The answer to MD_INFO.
///
/// Source: protocol 8.5; `struct sd_md_info` in sheepdog's `include/internal_proto.h`.
#[derive(Clone, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct MdInfo {
    /// The disks, the first `nr_disks` of them.
    pub disks: [DiskRecord; MD_MAX_DISKS],
    /// Records in use; signed in C, and a negative number is refused as too many.
    pub nr_disks: U32,
    /// Padding.
    pub pad: U32,
}

const _: () = assert!(size_of::<MdInfo>() == MD_INFO_LEN);

impl MdInfo {
    /// Reads a MD_INFO payload.
    ///
    /// # Errors
    /// [`Malformed`] unless it has exactly its length and at most 64 disks.
    pub fn parse(payload: &[u8]) -> Result<&Self, Malformed> {
        let info = Self::ref_from_bytes(payload)
            .map_err(|_| Malformed::new("disk information", "it does not have 263,688 bytes"))?;
        if info.nr_disks.get() as usize > MD_MAX_DISKS {
            return Err(Malformed::new(
                "disk information",
                "it has more than 64 disks",
            ));
        }
        Ok(info)
    }

    /// The disks in use.
    pub fn disks(&self) -> &[DiskRecord] {
        let count = (self.nr_disks.get() as usize).min(MD_MAX_DISKS);
        &self.disks[..count]
    }
}

/// Request counters of a sheep since it started.
///
/// Source: protocol 8.5; `struct sd_stat` in sheepdog's `include/internal_proto.h`.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    FromBytes,
    IntoBytes,
    Immutable,
    KnownLayout,
    Unaligned,
)]
#[repr(C)]
pub struct RequestCounters {
    /// Client requests that are running now.
    pub gateway_active: U64,
    /// Requests of other sheep that are running now.
    pub peer_active: U64,
    /// Client requests so far.
    pub gateway_total: U64,
    /// Requests of other sheep so far.
    pub peer_total: U64,
    /// Payload bytes received from clients.
    pub gateway_rx_bytes: U64,
    /// Payload bytes sent to clients.
    pub gateway_tx_bytes: U64,
    /// Payload bytes received from other sheep.
    pub peer_rx_bytes: U64,
    /// Payload bytes sent to other sheep.
    pub peer_tx_bytes: U64,
    /// Objects that clients removed.
    pub gateway_removes: U64,
    /// Reads by clients.
    pub gateway_reads: U64,
    /// Creates and writes by clients.
    pub gateway_writes: U64,
    /// Flushes by clients.
    pub gateway_flushes: U64,
    /// Replicas that other sheep removed here.
    pub peer_removes: U64,
    /// Reads of replicas by other sheep.
    pub peer_reads: U64,
    /// Creates and writes of replicas by other sheep.
    pub peer_writes: U64,
}

const _: () = assert!(size_of::<RequestCounters>() == STAT_LEN);

impl RequestCounters {
    /// Reads a STAT payload.
    ///
    /// # Errors
    /// [`Malformed`] unless it has exactly 120 bytes.
    pub fn parse(payload: &[u8]) -> Result<Self, Malformed> {
        Self::read_from_bytes(payload)
            .map_err(|_| Malformed::new("request counters", "they do not have 120 bytes"))
    }
}

/// Progress of recovery on a sheep; all 0 when idle.
///
/// Source: protocol 8.4; `struct recovery_state` in sheepdog's `include/internal_proto.h`.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    FromBytes,
    IntoBytes,
    Immutable,
    KnownLayout,
    Unaligned,
)]
#[repr(C)]
pub struct RecoveryState {
    /// 1 while recovering.
    pub in_recovery: u8,
    /// Padding.
    pub pad: [u8; 3],
    /// 0 preparing the list, 1 recovering objects, 2 notifying.
    pub state: U32,
    /// Objects done.
    pub finished: U64,
    /// Objects in all.
    pub total: U64,
}

const _: () = assert!(size_of::<RecoveryState>() == RECOVERY_STATE_LEN);

impl RecoveryState {
    /// Reads a STAT_RECOVERY payload.
    ///
    /// # Errors
    /// [`Malformed`] when it has less than 24 bytes.
    pub fn parse(payload: &[u8]) -> Result<Self, Malformed> {
        Self::read_from_prefix(payload)
            .map(|(state, _rest)| state)
            .map_err(|_| Malformed::new("recovery state", "it has less than 24 bytes"))
    }
}

/// Recovery throttling (GET_RECOVERY, SET_RECOVERY).
///
/// Source: protocol 5.4; `struct recovery_throttling` in sheepdog's `include/internal_proto.h`.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    FromBytes,
    IntoBytes,
    Immutable,
    KnownLayout,
    Unaligned,
)]
#[repr(C)]
pub struct RecoveryThrottle {
    /// Objects per interval.
    pub max: U32,
    /// Padding.
    pub pad: U32,
    /// Milliseconds between bursts.
    pub interval: U64,
    /// 1 when throttling is on.
    pub throttling: u8,
    /// Padding.
    pub pad2: [u8; 7],
}

const _: () = assert!(size_of::<RecoveryThrottle>() == 24);
