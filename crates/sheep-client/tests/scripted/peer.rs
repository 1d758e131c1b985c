//! A scripted sheep on real loopback sockets.
//!
//! It reads whole frames and hands them to the test, which sends the responses.
//! Only to the first queries on a connection the peer responds by itself.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use sheep_proto::cluster::ClusterInfoHeader;
use sheep_proto::header::{ObjectRequest, RequestHeader, ResponseBody, ResponseHeader};
use sheep_proto::limits::{CACHE_INFO_LEN, CLUSTER_INFO_LEN, HEADER_LEN, MAX_PAYLOAD_LEN};
use sheep_proto::node::NodeRecord;
use sheep_proto::{Oid, Opcode, ResultCode, VdiResponse};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Mutex, mpsc, watch};
use tokio::task::JoinHandle;
use tokio_util::sync::{CancellationToken, DropGuard};
use zerocopy::{FromBytes, FromZeros, IntoBytes};

use crate::within;

/// Epoch in every response.
const EPOCH: u32 = 1;

/// How a peer is set up.
#[derive(Clone)]
pub(crate) struct Script {
    /// Where to listen; port 0 for any.
    pub(crate) address: SocketAddr,
    /// Tells one cluster from another.
    pub(crate) ctime: u64,
    /// The node list.
    pub(crate) nodes: Vec<SocketAddr>,
    /// Bytes of the receive buffer, when it shall be small.
    pub(crate) receive_buffer: Option<usize>,
    /// Whether the peer leaves the first query without a response.
    pub(crate) is_silent: bool,
    /// Its internal version, by which its generation is told.
    pub(crate) proto_ver: u8,
    /// The length of its epoch records, by which 0.8 and 0.9 are told apart.
    pub(crate) epoch_record_len: u32,
    /// Whether the cluster has an epoch.
    pub(crate) is_formatted: Arc<AtomicBool>,
    /// What it says about its object cache when it is first asked; zeros for none,
    /// nothing while its cluster waits for nodes.
    pub(crate) cache_info: Vec<u8>,
}

impl Default for Script {
    fn default() -> Self {
        Self {
            address: "127.0.0.1:0".parse().unwrap(),
            ctime: 7,
            nodes: Vec::new(),
            receive_buffer: None,
            is_silent: false,
            proto_ver: 0x0a,
            epoch_record_len: 48,
            is_formatted: Arc::new(AtomicBool::new(true)),
            cache_info: vec![0; CACHE_INFO_LEN],
        }
    }
}

/// A running peer; see [`Peer::stop`].
pub(crate) struct Peer {
    pub(crate) address: SocketAddr,
    requests: mpsc::Receiver<Received>,
    reading: watch::Sender<bool>,
    open: Arc<AtomicUsize>,
    accepted: Arc<AtomicUsize>,
    accepting: JoinHandle<()>,
    stop: DropGuard,
}

/// A request as it arrived.
pub(crate) struct Received {
    pub(crate) header: RequestHeader,
    pub(crate) payload: Vec<u8>,
    pub(crate) wire: Arc<Wire>,
}

/// The sending side of a connection.
pub(crate) struct Wire {
    /// Counts the connections of a peer from 0.
    pub(crate) number: usize,
    socket: Mutex<OwnedWriteHalf>,
    close: CancellationToken,
}

impl Peer {
    pub(crate) async fn start(script: Script) -> Self {
        let socket = socket2::Socket::new(
            socket2::Domain::for_address(script.address),
            socket2::Type::STREAM.nonblocking(),
            None,
        )
        .unwrap();
        socket.set_reuse_address(true).unwrap();
        if let Some(size) = script.receive_buffer {
            socket.set_recv_buffer_size(size).unwrap();
        }
        socket.bind(&script.address.into()).unwrap();
        socket.listen(64).unwrap();
        let listener = TcpListener::from_std(socket.into()).unwrap();
        let address = listener.local_addr().unwrap();

        let (forward, requests) = mpsc::channel(4096);
        let reading = watch::Sender::new(true);
        let open = Arc::new(AtomicUsize::new(0));
        let accepted = Arc::new(AtomicUsize::new(0));
        let stop = CancellationToken::new();
        let accept = accept(
            listener,
            Arc::new(script),
            forward,
            reading.subscribe(),
            [Arc::clone(&open), Arc::clone(&accepted)],
            stop.clone(),
        );
        let accept = stop.clone().run_until_cancelled_owned(accept);
        let accepting = tokio::spawn(async move { accept.await.unwrap_or_default() });
        Self {
            address,
            requests,
            reading,
            open,
            accepted,
            accepting,
            stop: stop.drop_guard(),
        }
    }

    /// Closes the listener and every connection; returns when nothing listens
    /// at the address.
    pub(crate) async fn stop(self) -> SocketAddr {
        drop(self.stop);
        within(self.accepting).await.unwrap();
        self.address
    }

    /// The next request on any connection.
    pub(crate) async fn request(&mut self) -> Received {
        within(self.requests.recv()).await.expect("the peer runs")
    }

    /// A request that has arrived already.
    pub(crate) fn arrived(&mut self) -> Option<Received> {
        self.requests.try_recv().ok()
    }

    /// Stops reading from every connection, or goes on.
    pub(crate) fn set_reading(&self, reading: bool) {
        self.reading.send_replace(reading);
    }

    /// Connections there have been.
    pub(crate) fn accepted(&self) -> usize {
        self.accepted.load(Ordering::SeqCst)
    }

    /// Connections that are open now.
    pub(crate) fn open(&self) -> usize {
        self.open.load(Ordering::SeqCst)
    }
}

async fn accept(
    listener: TcpListener,
    script: Arc<Script>,
    forward: mpsc::Sender<Received>,
    reading: watch::Receiver<bool>,
    [open, accepted]: [Arc<AtomicUsize>; 2],
    stop: CancellationToken,
) {
    for number in 0.. {
        let (stream, _from) = listener.accept().await.unwrap();
        let (reader, writer) = TcpStream::into_split(stream);
        let wire = Arc::new(Wire {
            number,
            socket: Mutex::new(writer),
            close: stop.child_token(),
        });
        let serve = serve(
            reader,
            Arc::clone(&wire),
            Arc::clone(&script),
            forward.clone(),
            reading.clone(),
        );
        let open = Arc::clone(&open);
        open.fetch_add(1, Ordering::SeqCst);
        accepted.fetch_add(1, Ordering::SeqCst);
        tokio::spawn(async move {
            wire.close.run_until_cancelled(serve).await;
            wire.shut_down().await;
            open.fetch_sub(1, Ordering::SeqCst);
        });
    }
}

/// Reads frames until the client closes.
async fn serve(
    mut socket: OwnedReadHalf,
    wire: Arc<Wire>,
    script: Arc<Script>,
    forward: mpsc::Sender<Received>,
    mut reading: watch::Receiver<bool>,
) {
    let (mut detected, mut told_cache) = (false, false);
    loop {
        let mut header = [0; HEADER_LEN];
        if reading.wait_for(|&reading| reading).await.is_err()
            || socket.read_exact(&mut header).await.is_err()
        {
            return;
        }
        let header = RequestHeader::read_from_bytes(&header).unwrap();
        assert!(
            Opcode::try_from(header.opcode).is_ok()
                && header.payload_len() as usize <= MAX_PAYLOAD_LEN,
            "the client sent something that is no header: {header:?}"
        );
        let mut payload = vec![0; header.payload_len() as usize];
        if socket.read_exact(&mut payload).await.is_err() {
            return;
        }
        let request = Received {
            header,
            payload,
            wire: Arc::clone(&wire),
        };
        if !detected && request.opcode() == Opcode::StatCluster {
            if !script.is_silent {
                detected = request.answer_probe(&script).await;
            }
        } else if !told_cache && request.opcode() == Opcode::GetCacheInfo {
            told_cache = true;
            match &script.cache_info[..] {
                [] => request.respond(ResultCode::WaitForJoin, &[]).await,
                info => request.answer(info).await,
            }
        } else if request.opcode() != Opcode::ClusterInfo {
            if forward.send(request).await.is_err() {
                return;
            }
        } else if !script.is_silent {
            request.answer(&membership(&script)).await;
        }
    }
}

fn membership(script: &Script) -> Vec<u8> {
    let mut header = ClusterInfoHeader::new_zeroed();
    header.ctime = script.ctime.into();
    header.nr_nodes = u16::try_from(script.nodes.len()).unwrap().into();
    let mut payload = header.as_bytes().to_vec();
    for &node in &script.nodes {
        payload.extend_from_slice(NodeRecord::new(node, 128, 0, 0).as_bytes());
    }
    assert!(payload.len() <= CLUSTER_INFO_LEN);
    payload
}

impl Received {
    pub(crate) fn opcode(&self) -> Opcode {
        Opcode::try_from(self.header.opcode).unwrap()
    }

    /// The byte offset that a request for an object names.
    pub(crate) fn offset(&self) -> u32 {
        ObjectRequest::from(self.header.tail).offset.get()
    }

    /// The object that a request for one names.
    pub(crate) fn oid(&self) -> Oid {
        Oid::from_raw(ObjectRequest::from(self.header.tail).oid.get())
    }

    /// Answers with the VID of a VDI.
    pub(crate) async fn answer_vid(&self, vid: u32) {
        let body = ResponseBody::Vdi(VdiResponse {
            result: u32::from(ResultCode::Success).into(),
            vdi_id: vid.into(),
            ..VdiResponse::default()
        });
        let header = ResponseHeader::answer(&self.header, EPOCH, 0, body);
        self.wire.send(header.as_bytes()).await;
    }

    /// A success header that announces `len` bytes.
    pub(crate) fn success(&self, len: usize) -> ResponseHeader {
        self.response(ResultCode::Success, len)
    }

    pub(crate) fn response(&self, code: ResultCode, len: usize) -> ResponseHeader {
        let len = u32::try_from(len).unwrap();
        ResponseHeader::answer(&self.header, EPOCH, len, ResponseBody::result(code))
    }

    /// Answers a question for the generation; true when that was the last one.
    async fn answer_probe(&self, script: &Script) -> bool {
        if self.header.proto_ver != script.proto_ver {
            self.respond(ResultCode::VerMismatch, &[]).await;
            return false;
        }
        if !script.is_formatted.load(Ordering::SeqCst) {
            self.answer_unformatted().await;
            return false;
        }
        let fits = self.header.data_length.get() >= script.epoch_record_len;
        let len = if fits { script.epoch_record_len } else { 0 };
        self.answer(&vec![0; usize::try_from(len).unwrap()]).await;
        fits
    }

    /// Answers as a cluster without an epoch does.
    pub(crate) async fn answer_unformatted(&self) {
        let body = ResponseBody::result(ResultCode::WaitForFormat);
        let header = ResponseHeader::answer(&self.header, 0, 0, body);
        self.wire.send(header.as_bytes()).await;
    }

    pub(crate) async fn answer(&self, payload: &[u8]) {
        self.respond(ResultCode::Success, payload).await;
    }

    pub(crate) async fn respond(&self, code: ResultCode, payload: &[u8]) {
        let header = self.response(code, payload.len());
        self.wire.send(&[header.as_bytes(), payload].concat()).await;
    }
}

impl Wire {
    /// Sends any bytes. A client that has disconnected is no failure.
    pub(crate) async fn send(&self, bytes: &[u8]) {
        let mut socket = self.socket.lock().await;
        drop(socket.write_all(bytes).await);
    }

    /// Closes this connection.
    pub(crate) fn close(&self) {
        self.close.cancel();
    }

    async fn shut_down(&self) {
        drop(self.socket.lock().await.shutdown().await);
    }
}
