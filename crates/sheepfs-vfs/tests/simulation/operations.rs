//! The operations of a simulated sheep, step by step.

use std::sync::atomic::Ordering;
use std::time::Duration;

use sheep_proto::generation::Reclaim;
use sheep_proto::header::{ClusterDefaultResponse, ObjectRequest, VdiRequest, VdiResponse};
use sheep_proto::inode::{STORE_POLICY_HYPERVOLUME, slot_offset};
use sheep_proto::limits::{CACHE_INFO_LEN, DEFAULT_BLOCK_SIZE_SHIFT};
use sheep_proto::name::unpad;
use sheep_proto::{
    ObjectIndex, ObjectKind, Oid, Opcode, RequestBody, RequestFlags, RequestHeader, ResponseBody,
    ResultCode, Vid,
};
use tokio_util::sync::CancellationToken;

use crate::checker::CELL;
use crate::cluster::Cluster;
use crate::store::{Dropped, Object, Store};

/// Longest time between the end of an index write and that of the objects it freed.
const RECLAIM_TIME: Duration = Duration::from_secs(2);

/// The most that one write covers.
const MOST_CELLS: usize = 2;

/// A response.
pub(crate) struct Answer {
    pub(crate) code: ResultCode,
    pub(crate) body: Option<ResponseBody>,
    pub(crate) payload: Vec<u8>,
}

type Outcome = Result<Answer, ResultCode>;

fn done() -> Outcome {
    Ok(Answer {
        code: ResultCode::Success,
        body: None,
        payload: Vec::new(),
    })
}

fn payload_of(payload: Vec<u8>) -> Outcome {
    Ok(Answer {
        code: ResultCode::Success,
        body: None,
        payload,
    })
}

fn vdi(vid: Vid) -> Outcome {
    let body = VdiResponse {
        vdi_id: vid.get().into(),
        copies: 1,
        ..VdiResponse::default()
    };
    Ok(Answer {
        code: ResultCode::Success,
        body: Some(ResponseBody::Vdi(body)),
        payload: Vec::new(),
    })
}

impl Cluster {
    /// Runs a request; `None` when its sheep died before the response.
    pub(crate) async fn run(
        &self,
        number: usize,
        process: &CancellationToken,
        header: &RequestHeader,
        payload: &[u8],
    ) -> Option<Answer> {
        let opcode = Opcode::try_from(header.opcode).expect("a client sends operations that exist");
        let generation = self.shared().generation;
        assert!(
            generation.has_opcode(opcode),
            "{opcode} is sent to {generation}"
        );
        self.shared()
            .rng
            .note((number, opcode as u8, header.id.get(), header.tail));
        // Object requests die with the process; their effect may be partial.
        let outcome = match header.body() {
            RequestBody::Object(body) => {
                let work = self.object(number, process, opcode, header, body, payload);
                match process.run_until_cancelled(work).await {
                    Some(outcome) => outcome,
                    None => {
                        self.half_done(opcode, body, payload);
                        return None;
                    }
                }
            }
            // A cluster operation runs to its end even if its sheep dies.
            RequestBody::Vdi(body) => self.vdi_operation(number, opcode, body, payload).await,
            RequestBody::Cluster(_) if header.proto_ver != generation.internal_proto_ver() => {
                Err(ResultCode::VerMismatch)
            }
            RequestBody::Cluster(body) if opcode == Opcode::StatCluster => {
                let slots = usize::try_from(body.nodes_nr.get()).expect("few nodes");
                let room = usize::try_from(header.data_length.get()).expect("32 bits");
                payload_of(self.epoch(slots, room))
            }
            // The requests about the cluster that a client sends at its start.
            _ => match opcode {
                Opcode::ClusterInfo => payload_of(self.membership()),
                Opcode::GetNodeList => payload_of(self.node_list()),
                Opcode::GetCacheInfo => payload_of(vec![0; CACHE_INFO_LEN]),
                Opcode::ReadVdis => payload_of(self.shared().store().used_vids()),
                Opcode::GetClusterDefault => {
                    let body = ClusterDefaultResponse {
                        copies: 1,
                        block_size_shift: 20,
                        ..ClusterDefaultResponse::default()
                    };
                    Ok(Answer {
                        code: ResultCode::Success,
                        body: Some(ResponseBody::ClusterDefault(body)),
                        payload: Vec::new(),
                    })
                }
                _ => Err(ResultCode::InvalidParms),
            },
        };
        // Both the request and its result are part of the trace of the run.
        let answer = outcome.unwrap_or_else(|code| Answer {
            code,
            body: None,
            payload: Vec::new(),
        });
        self.shared()
            .rng
            .note((number, header.id.get(), answer.code.to_string()));
        Some(answer)
    }

    async fn object(
        &self,
        number: usize,
        process: &CancellationToken,
        opcode: Opcode,
        header: &RequestHeader,
        body: ObjectRequest,
        payload: &[u8],
    ) -> Outcome {
        let shared = self.shared();
        let oid = Oid::from_raw(body.oid.get());
        let offset = body.offset.get() as usize;
        // The request has arrived, but a stopped sheep executes it later.
        shared.pause().await;
        self.awake(number).await;
        match opcode {
            Opcode::ReadObj => {
                let payload =
                    shared
                        .store()
                        .read(oid, offset, header.data_length.get() as usize)?;
                Ok(Answer {
                    code: ResultCode::Success,
                    body: None,
                    payload,
                })
            }
            Opcode::WriteObj if oid.kind() == Some(ObjectKind::Inode) => {
                self.write_inode(process, oid, offset, payload).await
            }
            Opcode::WriteObj => {
                shared.store().may_write(oid)?;
                // Another sheep may take a snapshot between the check and the write.
                shared.pause().await;
                self.awake(number).await;
                shared.store().write(oid, offset, payload)?;
                done()
            }
            Opcode::CreateAndWriteObj => {
                shared.store().may_write(oid)?;
                // Copy-up reads the base object first; other sheep run before the new one is
                // stored.
                let mut object = match header.flags().contains(RequestFlags::COW) {
                    true => shared.store().copy(Oid::from_raw(body.cow_oid.get()))?,
                    false => Object::default(),
                };
                shared.pause().await;
                self.awake(number).await;
                object.write(offset, payload);
                // A preallocation writes more than any write of the test.
                let is_ahead = payload.len() > MOST_CELLS * CELL;
                shared
                    .preallocated
                    .fetch_add(u64::from(is_ahead), Ordering::Relaxed);
                shared.store().put(oid, object);
                done()
            }
            Opcode::DiscardObj => self.discard(number, oid).await,
            _ => Err(ResultCode::InvalidParms),
        }
    }

    async fn write_inode(
        &self,
        process: &CancellationToken,
        oid: Oid,
        offset: usize,
        data: &[u8],
    ) -> Outcome {
        let shared = self.shared();
        let Some(slots) = Store::slots_written(offset, data.len()) else {
            shared.store().write(oid, offset, data)?;
            return done();
        };
        let before = shared.store().before(oid, slots)?;
        shared.pause().await;
        let reclaim = shared.generation.reclaim();
        let dropped = shared
            .store()
            .write_slots(oid, offset, data, &before, reclaim)?;
        for reference in dropped {
            if reclaim == Reclaim::BeforeAnswer {
                shared.pause().await;
                self.drop_reference(reference);
                continue;
            }
            let cluster = self.clone();
            let wait = shared.rng.pause(RECLAIM_TIME);
            let drop = async move {
                tokio::time::sleep(wait).await;
                cluster.drop_reference(reference);
            };
            tokio::spawn(process.clone().run_until_cancelled_owned(drop));
        }
        done()
    }

    /// Clears a slot, then removes its object.
    async fn discard(&self, number: usize, oid: Oid) -> Outcome {
        let shared = self.shared();
        let vid = oid.vid().ok_or(ResultCode::InvalidParms)?;
        let index = ObjectIndex(oid.number());
        // Volumes that are no hypervolumes are discarded this way only by some.
        if shared.generation.reclaim() == Reclaim::Never {
            if shared.store().object(Oid::inode(vid))?.owner(index.0) == 0 {
                return done();
            }
            shared.pause().await;
            self.awake(number).await;
            let offset = slot_offset(index).ok_or(ResultCode::InvalidParms)?;
            shared
                .store()
                .write(Oid::inode(vid), offset as usize, &[0; 4])?;
        } else {
            let read = shared.store().read_slot(vid, index)?;
            let Some(slot) = read else {
                return done();
            };
            shared.pause().await;
            self.awake(number).await;
            shared.store().clear_slot(slot)?;
        }
        shared.pause().await;
        self.awake(number).await;
        shared.store().remove(oid);
        done()
    }

    fn drop_reference(&self, reference: Dropped) {
        let removed = self.shared().store().drop_reference(reference);
        self.shared()
            .rng
            .note(("dropped", reference.0.raw(), removed));
    }

    /// The partial effect of a request when its sheep dies.
    fn half_done(&self, opcode: Opcode, body: ObjectRequest, payload: &[u8]) {
        let shared = self.shared();
        let oid = Oid::from_raw(body.oid.get());
        if opcode != Opcode::WriteObj
            || oid.kind() != Some(ObjectKind::Data)
            || !shared.rng.one_in(2)
        {
            return;
        }
        let mut store = shared.store();
        let part = &payload[..shared.rng.up_to(payload.len())];
        if store.may_write(oid).is_ok() && store.has(oid) {
            store
                .write(oid, body.offset.get() as usize, part)
                .expect("it is there");
        }
    }

    async fn vdi_operation(
        &self,
        number: usize,
        opcode: Opcode,
        body: VdiRequest,
        payload: &[u8],
    ) -> Outcome {
        let shared = self.shared();
        self.awake(number).await;
        let _alone = shared.cluster_operation.lock().await;
        shared.pause().await;
        let (name, tag) = payload.split_at(payload.len().min(256));
        let (name, tag) = (unpad(name), unpad(tag));
        match opcode {
            Opcode::ReleaseVdi => done(),
            Opcode::GetVdiInfo | Opcode::LockVdi => {
                vdi(shared.store().find(name, tag, body.snapid.get())?)
            }
            Opcode::DelVdi => {
                let vid = shared.store().find(name, tag, body.snapid.get())?;
                shared.store().blank(vid);
                vdi(vid)
            }
            Opcode::NewVdi => self.new_vdi(name, body).await,
            _ => Err(ResultCode::InvalidParms),
        }
    }

    async fn new_vdi(&self, name: &[u8], body: VdiRequest) -> Outcome {
        let shared = self.shared();
        let size = body.vdi_size.get();
        let shift = match body.block_size_shift {
            0 => DEFAULT_BLOCK_SIZE_SHIFT,
            shift => shift,
        };
        let snapshot = body.snapid.get() != 0;
        let head = shared.store().find(name, b"", 0);
        match (snapshot, head) {
            (false, Ok(_)) => return Err(ResultCode::VdiExist),
            (true, Err(code)) => return Err(code),
            (true, Ok(head)) => shared.store().freeze(head),
            (false, Err(_)) => {}
        }
        let Some(base) = Vid::new(body.base_vdi_id.get()) else {
            let mut store = shared.store();
            let vid = store.make(name, size, shift, None);
            if body.store_policy == STORE_POLICY_HYPERVOLUME {
                store.make_hypervolume(vid);
            }
            return vdi(vid);
        };
        shared.pause().await;
        let mut inode = shared.store().read_base(base)?;
        // Index updates that arrive now are overwritten.
        shared.pause().await;
        let whole = shared.generation.reclaim() != Reclaim::Never;
        shared.store().write_base(base, &mut inode, snapshot, whole);
        shared.pause().await;
        vdi(shared.store().make(name, size, shift, Some((base, &inode))))
    }
}
