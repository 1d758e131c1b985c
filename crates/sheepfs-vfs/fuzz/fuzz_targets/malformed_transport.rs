//! A transport with responses that come from the fuzzer.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::BytesMut;
use sheep_client::unstable::{BoxFuture, Completion, Request, Response, Transport};
use sheep_client::{Client, ClientError, GatewayAddress};
use sheep_proto::{Generation, ResponseBody, ResponseHeader, ResultCode};
use sheepfs_vfs::{Tree, TreeConfig};

/// Longest time that an operation may take, in simulated time.
const LIMIT: Duration = Duration::from_secs(24 * 3600);
/// Responses before every request is refused.
const MAX_RESPONSES: usize = 64;

/// Runs `work` on a tree over a transport that responds with `responses`.
pub fn run<F: Future<Output = ()>>(responses: &[u8], work: impl FnOnce(Arc<Tree>) -> F) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .expect("a runtime");
    runtime.block_on(async {
        let transport = MalformedTransport(Mutex::new((responses.to_vec(), 0)));
        let config = TreeConfig::default();
        let tree = Tree::new(Client::with_transport(Arc::new(transport)), config);
        tokio::time::timeout(LIMIT, work(tree))
            .await
            .expect("every operation ends");
    });
}

/// Bytes for further responses, and the number of those given.
#[derive(Debug)]
struct MalformedTransport(Mutex<(Vec<u8>, usize)>);

impl MalformedTransport {
    fn answer(&self, request: &Request) -> Response {
        let mut state = self.0.lock().expect("no code panics while it holds this lock");
        let (left, given) = &mut *state;
        *given += 1;
        let head: Vec<u8> = left.drain(..left.len().min(36)).collect();
        let code = match head.first() {
            Some(&code) if *given <= MAX_RESPONSES => ResultCode::from(u32::from(code)),
            _ => ResultCode::Eio,
        };
        let mut tail = [0; 32];
        let known = head.len().saturating_sub(4).min(28);
        tail[4..4 + known].copy_from_slice(&head[head.len() - known..]);
        tail[..4].copy_from_slice(&u32::from(code).to_le_bytes());
        // As many bytes as requested, or fewer: the input, then zeros.
        let want = request.max_response_len() as usize;
        let short = head.get(1).is_some_and(|&byte| byte == 0xff);
        let take = want.min(left.len()).min(8192);
        let mut payload: Vec<u8> = left.drain(..take).collect();
        if !short {
            payload.resize(want, 0);
        }
        let len = u32::try_from(payload.len()).expect("as was asked for");
        let mut header =
            ResponseHeader::answer(&request.header(Generation::V1_0), 1, len, ResponseBody::result(code));
        header.tail = tail;
        Response {
            operation: request.operation(),
            header,
            payload: BytesMut::from(&payload[..]),
        }
    }
}

impl Transport for MalformedTransport {
    fn submit(&self, request: Request, done: Completion) {
        done(Ok(self.answer(&request)));
    }

    fn submit_to(&self, _node: SocketAddr, request: Request, done: Completion) {
        done(Ok(self.answer(&request)));
    }

    fn address(&self) -> GatewayAddress {
        SocketAddr::from(([127, 0, 0, 1], 7000)).into()
    }

    fn generation(&self, _timeout: Duration) -> BoxFuture<'_, Result<Generation, ClientError>> {
        Box::pin(std::future::ready(Ok(Generation::V1_0)))
    }

    fn switch_gateway(&self, _address: GatewayAddress) -> BoxFuture<'_, Result<(), ClientError>> {
        Box::pin(async { Ok(()) })
    }
}
