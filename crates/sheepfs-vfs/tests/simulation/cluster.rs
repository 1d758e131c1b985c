//! Simulated sheep: they share a store, are slow, die and restart.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use sheep_client::unstable::{BoxFuture, ByteStream, Connector, WriteHalf as _};
use sheep_proto::cluster::{ClusterInfoHeader, EpochRecordHeader};
use sheep_proto::limits::HEADER_LEN;
use sheep_proto::node::NodeRecord;
use sheep_proto::{Generation, RequestHeader, ResponseBody, ResponseHeader};
use tokio::io::AsyncReadExt as _;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use zerocopy::{FromBytes as _, FromZeros as _, IntoBytes as _};

use crate::locked;
use crate::network::{Pipe, Receiver, Sender};
use crate::operations::Answer;
use crate::sim_rng::SimRng;
use crate::store::Store;

/// When the cluster was formatted.
const CTIME: u64 = 7;

/// The cluster. Clones are the same one.
#[derive(Clone)]
pub(crate) struct Cluster(Arc<Shared>);

/// State that all sheep share.
pub(crate) struct Shared {
    pub(crate) rng: SimRng,
    pub(crate) generation: Generation,
    store: Mutex<Store>,
    /// Cluster operations run one after another.
    pub(crate) cluster_operation: tokio::sync::Mutex<()>,
    sheep: Vec<Sheep>,
    /// Sheep without a process.
    ended: Mutex<Vec<usize>>,
    /// Preallocated objects: creates of more than a few cells.
    pub(crate) preallocated: AtomicU64,
    /// Longest time that a sheep usually takes for each step of a request.
    pub(crate) slowest: Duration,
}

/// A sheep and the host it is on.
struct Sheep {
    address: SocketAddr,
    /// Cancelled when the process dies; `None` while there is none.
    process: Mutex<Option<CancellationToken>>,
    connections: Mutex<Vec<Wires>>,
    stopped: AtomicBool,
    goes_on: Notify,
}

/// Both directions of a connection.
struct Wires {
    pipes: [Arc<Pipe>; 2],
    client: usize,
}

impl std::fmt::Debug for Cluster {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Cluster")
    }
}

impl Cluster {
    pub(crate) fn start(rng: SimRng, sheep: u8, generation: Generation) -> Self {
        let slowest = Duration::from_micros([200, 3_000, 50_000][rng.up_to(2)]);
        Self(Arc::new(Shared {
            rng,
            generation,
            store: Mutex::default(),
            cluster_operation: tokio::sync::Mutex::default(),
            sheep: (1..=sheep)
                .map(|number| Sheep {
                    address: SocketAddr::from(([10, 0, 0, number], 7000)),
                    process: Mutex::new(Some(CancellationToken::new())),
                    connections: Mutex::default(),
                    stopped: AtomicBool::new(false),
                    goes_on: Notify::new(),
                })
                .collect(),
            ended: Mutex::default(),
            preallocated: AtomicU64::new(0),
            slowest,
        }))
    }

    pub(crate) fn shared(&self) -> &Shared {
        &self.0
    }

    pub(crate) fn addresses(&self) -> Vec<SocketAddr> {
        self.0.sheep.iter().map(|sheep| sheep.address).collect()
    }

    /// Ends a sheep as `kill -9` does. Requests it had not executed are lost, or
    /// have run in part.
    pub(crate) fn kill(&self, number: usize) {
        let sheep = &self.0.sheep[number];
        let process = locked(&sheep.process).take();
        if let Some(process) = process {
            self.0.rng.note(("kill", number));
            process.cancel();
            self.cut(number, |_| true);
        }
    }

    /// Starts a dead sheep again.
    pub(crate) fn restart(&self, number: usize) {
        let mut process = locked(&self.0.sheep[number].process);
        if process.is_none() {
            self.0.rng.note(("restart", number));
            *process = Some(CancellationToken::new());
        }
    }

    /// As SIGSTOP and SIGCONT: connections stay open without responses.
    pub(crate) fn stop(&self, number: usize, stopped: bool) {
        self.0.rng.note(("stop", number, stopped));
        let sheep = &self.0.sheep[number];
        sheep.stopped.store(stopped, Ordering::Relaxed);
        sheep.goes_on.notify_waiters();
    }

    /// Resets connections of a sheep that stays alive.
    pub(crate) fn cut(&self, number: usize, which: impl Fn(usize) -> bool) {
        let sheep = &self.0.sheep[number];
        let mut connections = locked(&sheep.connections);
        connections.retain(|wires| {
            let cut = which(wires.client);
            if cut {
                wires.pipes.iter().for_each(|pipe| pipe.reset());
            }
            !cut && !wires.pipes[0].is_reset()
        });
    }

    /// Ends a client as `kill -9` does: its connections are reset, and nothing
    /// that is left of it opens others.
    pub(crate) fn end_client(&self, client: usize) {
        locked(&self.0.ended).push(client);
        (0..self.0.sheep.len()).for_each(|number| self.cut(number, |whose| whose == client));
    }

    /// How a client numbered `client` reaches the sheep.
    pub(crate) fn network(&self, client: usize) -> Arc<dyn Connector> {
        Arc::new(ClientNetwork {
            cluster: self.clone(),
            client,
        })
    }

    fn connect(&self, peer: SocketAddr, client: usize) -> Option<ByteStream> {
        let ended = locked(&self.0.ended);
        if ended.contains(&client) {
            return None;
        }
        let (number, sheep) = (0..)
            .zip(&self.0.sheep)
            .find(|(_, sheep)| sheep.address == peer)?;
        let process = locked(&sheep.process).clone()?;
        let (there, back) = (Arc::new(Pipe::default()), Arc::new(Pipe::default()));
        locked(&sheep.connections).push(Wires {
            pipes: [Arc::clone(&there), Arc::clone(&back)],
            client,
        });
        let rng = &self.0.rng;
        let answers = Sender::new(Arc::clone(&back), Arc::clone(&there), rng.clone());
        let requests = Receiver {
            pipe: Arc::clone(&there),
        };
        let serve = self
            .clone()
            .serve(number, process.clone(), requests, Arc::new(answers));
        tokio::spawn(process.run_until_cancelled_owned(serve));
        Some(ByteStream {
            reader: Box::new(Receiver {
                pipe: Arc::clone(&back),
            }),
            writer: Box::new(Sender::new(there, back, rng.clone())),
        })
    }

    /// Reads one request after the other and runs each on its own.
    async fn serve(
        self,
        number: usize,
        process: CancellationToken,
        mut requests: Receiver,
        answers: Arc<Sender>,
    ) {
        loop {
            let mut header = [0; HEADER_LEN];
            if requests.read_exact(&mut header).await.is_err() {
                break;
            }
            let header = RequestHeader::read_from_bytes(&header).expect("48 bytes");
            let mut payload = vec![0; header.payload_len() as usize];
            if requests.read_exact(&mut payload).await.is_err() {
                break;
            }
            self.awake(number).await;
            let request = self.clone().request(
                number,
                process.clone(),
                header,
                payload,
                Arc::clone(&answers),
            );
            tokio::spawn(request);
        }
        answers.shut_down();
    }

    async fn request(
        self,
        number: usize,
        process: CancellationToken,
        header: RequestHeader,
        payload: Vec<u8>,
        answers: Arc<Sender>,
    ) {
        let answer = self.run(number, &process, &header, &payload).await;
        let Some(Answer {
            code,
            body,
            payload,
        }) = answer
        else {
            return;
        };
        let finish = async {
            self.0.pause().await;
            self.awake(number).await;
        };
        if process.run_until_cancelled(finish).await.is_none() {
            return;
        }
        let body = body.unwrap_or_else(|| ResponseBody::result(code));
        let len = u32::try_from(payload.len()).expect("a small payload");
        let header = ResponseHeader::answer(&header, 1, len, body);
        answers.send([header.as_bytes(), &payload].concat());
    }

    /// Waits while the sheep is stopped.
    pub(crate) async fn awake(&self, number: usize) {
        let sheep = &self.0.sheep[number];
        loop {
            let goes_on = sheep.goes_on.notified();
            if !sheep.stopped.load(Ordering::Relaxed) {
                return;
            }
            goes_on.await;
        }
    }

    /// The membership as every sheep reports it.
    pub(crate) fn membership(&self) -> Vec<u8> {
        let mut header = ClusterInfoHeader::new_zeroed();
        header.ctime = CTIME.into();
        header.nr_nodes = u16::try_from(self.0.sheep.len()).expect("few sheep").into();
        let header = self.0.generation.cluster_info_bytes(header);
        [header.as_bytes(), &self.node_list()].concat()
    }

    /// The records of all sheep.
    pub(crate) fn node_list(&self) -> Vec<u8> {
        let mut payload = Vec::new();
        for sheep in &self.0.sheep {
            let node = NodeRecord::new(sheep.address, 128, 0, 0);
            self.0.generation.push_node(&node, &mut payload);
        }
        payload
    }

    /// The only epoch, without its nodes, if there is room for it.
    pub(crate) fn epoch(&self, slots: usize, room: usize) -> Vec<u8> {
        let mut payload = Vec::new();
        if self.0.generation.epoch_record_len(slots) <= room {
            let mut header = EpochRecordHeader::new_zeroed();
            (header.ctime, header.epoch) = (CTIME.into(), 1.into());
            let generation = self.0.generation;
            generation.push_epoch(&header, &[], slots, &mut payload);
        }
        payload
    }
}

impl Shared {
    pub(crate) fn store(&self) -> MutexGuard<'_, Store> {
        locked(&self.store)
    }

    /// A step of a request, which takes its time.
    pub(crate) fn pause(&self) -> impl Future<Output = ()> + use<> {
        let longest = match self.rng.one_in(50) {
            true => self.slowest * 10,
            false => self.slowest,
        };
        tokio::time::sleep(self.rng.pause(longest))
    }
}

#[derive(Debug)]
struct ClientNetwork {
    cluster: Cluster,
    client: usize,
}

impl Connector for ClientNetwork {
    fn connect(&self, peer: SocketAddr) -> BoxFuture<'_, io::Result<ByteStream>> {
        Box::pin(async move {
            tokio::time::sleep(self.cluster.0.rng.latency()).await;
            self.cluster
                .connect(peer, self.client)
                .ok_or_else(|| io::ErrorKind::ConnectionRefused.into())
        })
    }
}
