//! The server's state that all nodes share, and the checks before a request runs.
//!
//! Locks are taken in this order, each kind by one type:
//!
//! 1. the cluster's settings, here: shared while a request runs, and exclusively
//!    to change them. Handlers are given the settings and cannot lock them.
//! 2. [`VdiOperation`](crate::catalogue::VdiOperation): one at a time
//! 3. the content of an object cache
//! 4. the state of a [`Vdi`](crate::catalogue::Vdi); that of a second one only
//!    within a `VdiOperation`
//! 5. the locks inside the other types, which are private to them and held for a
//!    moment

use std::net::SocketAddr;
use std::sync::{Arc, RwLock};

use sheep_proto::limits::PUBLIC_PROTO_VER;
use sheep_proto::{Opcode, RequestHeader, ResponseHeader, ResultCode};
use tokio_util::sync::CancellationToken;
use zerocopy::IntoBytes;

use crate::catalogue::Catalogue;
use crate::cluster::Cluster;
use crate::counters::Counters;
use crate::dispatch::Dispatcher;
use crate::lock::Locks;
use crate::membership::Membership;
use crate::object_cache::ObjectCache;
use crate::payload::Payload;
use crate::poison::{read, write};
use crate::recovery::{LoadError, Loaded};
use crate::references::References;
use crate::release::Release;
use crate::request::{Fate, HandlerResult, Origin, Reply, Request};
use crate::service::{
    AttributeService, CacheService, ClusterService, LockService, NodeService, ObjectService,
    VdiService,
};
use crate::store::{Store, StoreError};

/// Why some sheep end on an opcode.
const ABSENT_OPCODE: &str = "an operation that it does not have";

/// See the module.
pub(crate) struct Sheep {
    /// `None` until the store is formatted.
    cluster: RwLock<Option<Cluster>>,
    store: Arc<dyn Store>,
    vdis: Arc<Catalogue>,
    references: Arc<References>,
    locks: Arc<Locks>,
    members: Arc<Membership>,
    counters: Arc<Counters>,
    dispatcher: Dispatcher,
    release: Release,
    /// That of the first node.
    cache: Option<Arc<ObjectCache>>,
    stop: CancellationToken,
}

impl Sheep {
    /// Takes a store into service, see [`Loaded::load`].
    pub(crate) fn load(
        store: Arc<dyn Store>,
        cache: Option<Arc<dyn Store>>,
        release: Release,
        format_if_new: bool,
    ) -> Result<Self, LoadError> {
        let generation = release.generation;
        // State that survives a restart, read from the store.
        let Loaded {
            store,
            cluster,
            vdis,
            references,
            inodes,
            reclaimer,
            families,
        } = Loaded::load(store, release, format_if_new)?;
        // State that ends with this process, but for the cache of a directory.
        let locks: Arc<Locks> = Arc::default();
        let members: Arc<Membership> = Arc::default();
        let counters: Arc<Counters> = Arc::default();
        let cache = cache.map(ObjectCache::load).transpose()?.map(Arc::new);
        let stop = CancellationToken::new();
        // Each service gets only the state that its operations need.
        let objects = ObjectService {
            store: Arc::clone(&store),
            vdis: Arc::clone(&vdis),
            inodes: Arc::clone(&inodes),
            locks: Arc::clone(&locks),
            members: Arc::clone(&members),
            release,
        };
        let dispatcher = Dispatcher {
            objects: CacheService {
                uncached: objects,
                cache: cache.clone(),
            },
            attributes: AttributeService {
                store: Arc::clone(&store),
                vdis: Arc::clone(&vdis),
                inodes: Arc::clone(&inodes),
            },
            vdis: VdiService {
                vdis: Arc::clone(&vdis),
                inodes,
                reclaimer,
                families,
                locks: Arc::clone(&locks),
                release,
            },
            locks: LockService {
                vdis: Arc::clone(&vdis),
                locks: Arc::clone(&locks),
                release,
            },
            clusters: ClusterService::new(Arc::clone(&store), Arc::clone(&members), generation),
            nodes: NodeService::new(
                Arc::clone(&store),
                Arc::clone(&members),
                Arc::clone(&counters),
                generation,
            ),
            members: Arc::clone(&members),
            stop: stop.clone(),
        };
        Ok(Self {
            cluster: RwLock::new(cluster),
            store,
            vdis,
            references,
            locks,
            members,
            counters,
            dispatcher,
            release,
            cache,
            stop,
        })
    }

    /// Adds a node; returns what stops it, alone or with all others.
    pub(crate) fn join(&self, node: SocketAddr) -> CancellationToken {
        self.members.join(node);
        if let Some(cache) = &self.cache {
            cache.note_start(node);
        }
        self.stop.child_token()
    }

    /// Removes a node.
    pub(crate) fn leave(&self, node: SocketAddr) {
        self.members.leave(node);
        self.locks.leave(node);
        if let Some(cache) = &self.cache {
            cache.note_end(node);
        }
    }

    /// The epoch in every answer, 0 before a format.
    pub(crate) fn epoch(&self) -> u32 {
        if read(&self.cluster).is_some() {
            self.members.epoch()
        } else {
            0
        }
    }

    /// True when no request waits for a disk, or ends the node.
    pub(crate) fn runs_inline(&self) -> bool {
        self.store.is_memory() && !self.release.is_mortal()
    }

    /// How the log and the user are told of a node that has ended because of `reason`.
    pub(crate) fn obituary(&self, reason: &str) -> String {
        format!(
            "ended, as sheep {} does, by {reason}",
            self.release.generation
        )
    }

    /// Makes everything durable.
    pub(crate) fn sync_all(&self) -> Result<(), StoreError> {
        self.store.sync_all()
    }

    /// Answers one request, and says what it does besides; blocks as long as the store does.
    pub(crate) fn handle(
        &self,
        header: &RequestHeader,
        payload: &[u8],
        origin: &Origin,
    ) -> (ResponseHeader, Payload, Fate) {
        let _counted = self.counters.begin(header);
        let request = Request {
            header,
            payload,
            origin,
        };
        let (formatted, result) = self.run(&request);
        let Reply {
            body,
            payload,
            fate,
        } = result.unwrap_or_else(Reply::error);
        let epoch = if formatted { self.members.epoch() } else { 0 };
        let len =
            u32::try_from(payload.len()).expect("a response is at most MAX_PAYLOAD_LEN bytes");
        (
            ResponseHeader::answer(header, epoch, len, body),
            payload,
            fate,
        )
    }

    /// Checks version, opcode and status, in this order (protocol 1.6 and 1.10),
    /// and runs the operation. Also returns whether the cluster is formatted then.
    fn run(&self, request: &Request<'_>) -> (bool, HandlerResult) {
        let raw = request.header.opcode;
        if self.release.dies_of_opcode_in_any_version(raw) {
            return (false, Ok(Reply::death(ABSENT_OPCODE)));
        }
        if let Err(code) = self.check_version(request.header) {
            let mut reply = Reply::error(code);
            if self.release.dies_of_version() {
                reply.fate = Fate::DiesAfterAnswer("a version of another generation");
            }
            return (read(&self.cluster).is_some(), Ok(reply));
        }
        let opcode = match Opcode::try_from(raw) {
            Ok(opcode) if self.release.serves(opcode) => opcode,
            _absent if self.release.dies_of_opcode(raw) => {
                return (false, Ok(Reply::death(ABSENT_OPCODE)));
            }
            _absent => {
                return (read(&self.cluster).is_some(), Err(ResultCode::InvalidParms));
            }
        };
        if let Some(reason) = self.release.death_by(opcode, request.header) {
            return (false, Ok(Reply::death(reason)));
        }
        if matches!(opcode, Opcode::MakeFs | Opcode::AlterClusterCopy) {
            return self.change_cluster(opcode, request);
        }
        let cluster = read(&self.cluster);
        let result = if cluster.is_none() && !opcode.is_forced() {
            Err(ResultCode::WaitForFormat)
        } else if self.is_halted() && opcode.is_public() && !opcode.is_forced() {
            Err(match opcode {
                Opcode::NewVdi => ResultCode::VdiWrite,
                _needs_a_node => ResultCode::Halt,
            })
        } else {
            self.dispatcher.dispatch(opcode, request, cluster.as_ref())
        };
        (cluster.is_some(), result)
    }

    /// True when every node has left because of a read past the end of an object.
    fn is_halted(&self) -> bool {
        self.release.generation.leaves_after_reading_past_end() && self.members.is_empty()
    }

    /// MAKE_FS and ALTER_CLUSTER_COPY, with no other request running.
    fn change_cluster(&self, opcode: Opcode, request: &Request<'_>) -> (bool, HandlerResult) {
        let mut current = write(&self.cluster);
        let result = if opcode == Opcode::MakeFs {
            let generation = self.release.generation;
            Cluster::from_make_fs(request, generation)
                .and_then(|cluster| self.format(&mut current, cluster))
        } else {
            Cluster::altered(current.as_ref(), &request.cluster_request()).and_then(|cluster| {
                self.store.save_record(cluster.as_bytes())?;
                *current = Some(cluster);
                Ok(Reply::ok())
            })
        };
        (current.is_some(), result)
    }

    fn format(&self, current: &mut Option<Cluster>, cluster: Cluster) -> HandlerResult {
        // Whatever happens now, nothing of the old cluster may be served.
        *current = None;
        self.vdis.clear();
        self.references.clear();
        self.locks.clear();
        self.members.reset();
        if let Some(cache) = &self.cache {
            cache.lock().clear(None);
        }
        self.store.format(cluster.as_bytes())?;
        *current = Some(cluster);
        tracing::info!("formatted");
        Ok(Reply::ok())
    }

    fn check_version(&self, header: &RequestHeader) -> Result<(), ResultCode> {
        const FIRST_INTERNAL: u8 = 0x80;
        let accepted = if header.opcode < FIRST_INTERNAL {
            header.proto_ver <= PUBLIC_PROTO_VER
        } else {
            header.proto_ver == self.release.generation.internal_proto_ver()
        };
        if accepted {
            Ok(())
        } else {
            Err(ResultCode::VerMismatch)
        }
    }
}
