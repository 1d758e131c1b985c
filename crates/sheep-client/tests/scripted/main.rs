//! The client against a scripted peer: responses in any order, protocol
//! violations, stalls, and connections that die.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on says where")]

mod admission;
mod error_mapping;
mod generations;
mod in_flight_tokens;
mod malformed_response;
mod object_cache;
mod old_vdis;
mod panics;
mod peer;
mod reconnect;
mod responses;
mod slots;
mod split_io;
mod stall;
mod timeouts;

use std::collections::HashSet;
use std::future::Future;
use std::time::Duration;

use sheep_client::{Client, ClientConfig, ClientError};
use sheep_proto::{ObjectIndex, Oid, Vid};

use crate::peer::{Peer, Script};

/// Longest time that anything in these tests takes, on a busy machine.
const DEADLINE: Duration = Duration::from_secs(30);

/// Waits, but not for ever.
async fn within<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(DEADLINE, future)
        .await
        .expect("this ends within the deadline")
}

/// Waits until something is true.
async fn until(mut is_so: impl FnMut() -> bool) {
    within(async {
        while !is_so() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    })
    .await;
}

fn config(peer: &Peer, connections: usize) -> ClientConfig {
    let mut config = ClientConfig::new(peer.address.into());
    config.connections = connections;
    config
}

/// How many connections as many reads at once are sent on.
async fn connections_in_use(peer: &mut Peer, client: &Client, reads: usize) -> usize {
    let callers: Vec<_> = (0..reads).map(|_| read(client, 0, 1)).collect();
    let mut used = HashSet::new();
    let mut requests = Vec::new();
    for _ in 0..reads {
        let request = peer.request().await;
        used.insert(request.wire.number);
        requests.push(request);
    }
    for request in requests {
        request.answer(&[0]).await;
    }
    for caller in callers {
        within(caller).await.unwrap().unwrap();
    }
    used.len()
}

/// A peer and a client with that many connections to it, all open.
async fn connected(script: Script, connections: usize) -> (Peer, Client) {
    let mut peer = Peer::start(script).await;
    let client = within(Client::connect(config(&peer, connections)))
        .await
        .unwrap();
    until(|| peer.open() == connections).await;
    while connections > 1 && connections_in_use(&mut peer, &client, connections).await < connections
    {
        // A connection is open before the client has asked what the sheep is.
        tokio::task::yield_now().await;
    }
    (peer, client)
}

/// Data object 0 of some VDI.
fn object() -> Oid {
    Oid::data(Vid::new(0x76_d396).unwrap(), ObjectIndex(0))
}

/// Reads in a task of its own; the `offset` identifies the request.
fn read(
    client: &Client,
    offset: u32,
    len: u32,
) -> tokio::task::JoinHandle<Result<bytes::Bytes, ClientError>> {
    let client = client.clone();
    tokio::spawn(async move { within(client.objects().read(object(), offset, len)).await })
}
