//! Which releases of sheep this server is like.

use sheep_proto::generation::Locking;
use sheep_proto::{Generation, Opcode, RequestHeader};

/// A generation, as its worst release or as its last one.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Release {
    pub(crate) generation: Generation,
    pub(crate) is_worst: bool,
}

impl Release {
    pub(crate) fn serves(self, opcode: Opcode) -> bool {
        self.generation.has_opcode(opcode) || !self.is_worst && self.generation.gains_opcode(opcode)
    }

    /// True when a new VDI may get the VID of a deleted one.
    pub(crate) fn reuses_vids(self) -> bool {
        if self.is_worst {
            self.generation.reuses_vids()
        } else {
            self.generation.keeps_reusing_vids()
        }
    }

    pub(crate) fn frees_child_slots(self) -> bool {
        !self.is_worst && self.generation.frees_child_slots()
    }

    pub(crate) fn dies_of_version(self) -> bool {
        self.is_worst && self.generation.dies_of_version()
    }

    pub(crate) fn dies_of_opcode(self, raw: u8) -> bool {
        self.is_worst && self.generation.dies_of_opcode(raw)
    }

    pub(crate) fn dies_of_opcode_in_any_version(self, raw: u8) -> bool {
        self.is_worst && self.generation.dies_of_opcode_in_any_version(raw)
    }

    /// True when VDIs are locked in a cluster that was, or was not, formatted with locking.
    pub(crate) fn locks(self, is_formatted_with_locking: bool) -> bool {
        match self.generation.locking() {
            Locking::Never => false,
            Locking::Maybe => is_formatted_with_locking || self.is_worst,
            Locking::AsFormatted => is_formatted_with_locking,
        }
    }

    /// True for a server with the faults of a generation. The newest one is served
    /// without: it answers with a code where a sheep ends.
    pub(crate) fn is_mortal(self) -> bool {
        self.generation != Generation::NEWEST
    }

    /// Why a request of which only the header matters ends such a sheep.
    pub(crate) fn death_by(self, opcode: Opcode, header: &RequestHeader) -> Option<&'static str> {
        use sheep_proto::limits::{CACHE_INFO_LEN, CLUSTER_INFO_LEN, MD_INFO_LEN};
        use sheep_proto::statistics::{RecoveryState, RequestCounters};
        if !self.is_mortal() {
            return None;
        }
        let room = header.data_length.get() as usize;
        let is_small = |needed: usize| room < needed;
        match opcode {
            Opcode::StatRecovery if is_small(size_of::<RecoveryState>()) => {
                Some("a recovery state that does not fit into the buffer")
            }
            Opcode::Stat if is_small(size_of::<RequestCounters>()) => {
                Some("counters that do not fit into the buffer")
            }
            Opcode::GetLogLevel if is_small(size_of::<i32>()) => {
                Some("a log level that does not fit into the buffer")
            }
            Opcode::MdInfo if room != MD_INFO_LEN => Some("an MD_INFO of another length"),
            Opcode::GetCacheInfo if room != CACHE_INFO_LEN => {
                Some("a GET_CACHE_INFO of another length")
            }
            Opcode::ClusterInfo if is_small(CLUSTER_INFO_LEN) => {
                Some("a CLUSTER_INFO that does not fit into the buffer")
            }
            Opcode::NewVdi if self.generation.has_erasure_code() && !has_parity(header) => {
                Some("an erasure code without parity")
            }
            _ => None,
        }
    }
}

/// False for a NEW_VDI that asks for an erasure code without parity strips.
fn has_parity(header: &RequestHeader) -> bool {
    let policy = sheep_proto::VdiRequest::from(header.tail).copy_policy;
    policy == 0 || policy & 0x0f != 0
}
