//! The state of the server, and how it comes back after a start.
//!
//! Locks are taken in this order, and a request takes only what it needs:
//! `cluster` (shared; who changes it takes it alone) · `vdi_operations` (one VDI
//! operation at a time) · the states of VDIs, see [`crate::catalogue::Vdi`] · the
//! locks inside [`Catalogue`], [`References`] and the store, each for a
//! moment. Locking two states needs `vdi_operations`.

use std::sync::atomic::AtomicI32;
use std::sync::{Mutex, RwLock};

use sheep_proto::limits::{INTERNAL_PROTO_VER, PUBLIC_PROTO_VER};
use sheep_proto::{Opcode, RequestHeader, ResponseHeader, ResultCode};
use tokio_util::sync::CancellationToken;
use zerocopy::IntoBytes;

use crate::administration::Settings;
use crate::call::{Answer, Call, Origin, Outcome};
use crate::catalogue::Catalogue;
use crate::cluster::Cluster;
use crate::counters::Counters;
use crate::lock::Locks;
use crate::membership::Membership;
use crate::payload::Payload;
use crate::poison::{read, write};
use crate::references::References;
use crate::store::{Store, StoreError};

/// Log level of a fresh sheep: information.
const INITIAL_LOG_LEVEL: i32 = 6;

/// Why a store's content cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The store failed.
    #[error("cannot read the store")]
    Store(#[from] StoreError),
    /// The cluster's settings are damaged.
    #[error("the store's cluster record is damaged")]
    DamagedRecord,
    /// An inode is damaged.
    #[error("the inode of VDI {0} is damaged")]
    DamagedInode(sheep_proto::Vid),
}

/// See the module.
pub(crate) struct Sheep {
    pub(crate) store: Box<dyn Store>,
    pub(crate) cluster: RwLock<Option<Cluster>>,
    pub(crate) vdi_operations: Mutex<()>,
    pub(crate) vdis: Catalogue,
    pub(crate) references: References,
    pub(crate) locks: Locks,
    pub(crate) counters: Counters,
    pub(crate) log_level: AtomicI32,
    pub(crate) settings: Settings,
    pub(crate) members: Membership,
    /// Cancelled when all nodes must stop.
    pub(crate) stop: CancellationToken,
}

impl Sheep {
    /// Takes a store into service: formats it if it is new and that is wanted,
    /// else reads what is in it and completes what a crash interrupted.
    pub(crate) fn load(store: Box<dyn Store>, format_if_new: bool) -> Result<Self, LoadError> {
        let cluster = match store.cluster_record()? {
            Some(record) => Some(Cluster::parse(&record).ok_or(LoadError::DamagedRecord)?),
            None if format_if_new => {
                let cluster = Cluster::by_default();
                store.format(cluster.as_bytes())?;
                Some(cluster)
            }
            None => None,
        };
        let formatted = cluster.is_some();
        let sheep = Self {
            store,
            cluster: RwLock::new(cluster),
            vdi_operations: Mutex::default(),
            vdis: Catalogue::default(),
            references: References::default(),
            locks: Locks::default(),
            counters: Counters::default(),
            log_level: AtomicI32::new(INITIAL_LOG_LEVEL),
            settings: Settings::default(),
            members: Membership::default(),
            stop: CancellationToken::new(),
        };
        if formatted {
            sheep.load_vdis()?;
        }
        Ok(sheep)
    }

    /// The epoch in every answer, 0 before a format.
    pub(crate) fn epoch(&self) -> u32 {
        if read(&self.cluster).is_some() {
            self.members.epoch()
        } else {
            0
        }
    }

    /// Answers one request; blocks as long as the store does.
    pub(crate) fn answer(
        &self,
        header: &RequestHeader,
        payload: &[u8],
        origin: &Origin,
    ) -> (ResponseHeader, Payload) {
        let _counted = self.counters.begin(header);
        let (formatted, outcome) = self.gate(header, payload, origin);
        let Answer { body, payload } = outcome.unwrap_or_else(Answer::code);
        let epoch = if formatted { self.members.epoch() } else { 0 };
        let len = u32::try_from(payload.len()).expect("no answer is longer than a frame may be");
        (ResponseHeader::answer(header, epoch, len, body), payload)
    }

    /// Version, opcode and status, in this order (protocol 1.6 and 1.10); then the operation.
    fn gate(&self, header: &RequestHeader, payload: &[u8], origin: &Origin) -> (bool, Outcome) {
        let opcode = check_version(header).and_then(|()| {
            Opcode::try_from(header.opcode).map_err(|_unknown| ResultCode::InvalidParms)
        });
        if let Ok(opcode @ (Opcode::MakeFs | Opcode::AlterClusterCopy)) = opcode {
            return self.change_cluster(opcode, header, payload, origin);
        }
        let cluster = read(&self.cluster);
        let call = Call {
            header,
            payload,
            origin,
            cluster: cluster.as_ref(),
        };
        let outcome = opcode.and_then(|opcode| {
            if cluster.is_none() && !opcode.is_forced() {
                Err(ResultCode::WaitForFormat)
            } else {
                self.dispatch(opcode, &call)
            }
        });
        (cluster.is_some(), outcome)
    }

    /// MAKE_FS and ALTER_CLUSTER_COPY, with no other request running.
    fn change_cluster(
        &self,
        opcode: Opcode,
        header: &RequestHeader,
        payload: &[u8],
        origin: &Origin,
    ) -> (bool, Outcome) {
        let mut current = write(&self.cluster);
        let call = Call {
            header,
            payload,
            origin,
            cluster: current.as_ref(),
        };
        let outcome = if opcode == Opcode::MakeFs {
            self.make_fs(&call)
                .and_then(|cluster| self.format(&mut current, cluster))
        } else {
            self.alter_cluster_copy(&call).and_then(|cluster| {
                self.store.save_record(cluster.as_bytes())?;
                *current = Some(cluster);
                Ok(Answer::done())
            })
        };
        (current.is_some(), outcome)
    }

    fn format(&self, current: &mut Option<Cluster>, cluster: Cluster) -> Outcome {
        // Whatever happens now, nothing of the old cluster may be served.
        *current = None;
        self.vdis.clear();
        self.references.clear();
        self.locks.clear();
        self.members.restart();
        self.store.format(cluster.as_bytes())?;
        *current = Some(cluster);
        tracing::info!("formatted");
        Ok(Answer::done())
    }
}

fn check_version(header: &RequestHeader) -> Result<(), ResultCode> {
    const FIRST_INTERNAL: u8 = 0x80;
    let accepted = if header.opcode < FIRST_INTERNAL {
        header.proto_ver <= PUBLIC_PROTO_VER
    } else {
        header.proto_ver == INTERNAL_PROTO_VER
    };
    if accepted {
        Ok(())
    } else {
        Err(ResultCode::VerMismatch)
    }
}
