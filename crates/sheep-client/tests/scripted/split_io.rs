//! Reads and writes that are split into several requests.

use std::time::Duration;

use sheep_client::{Client, ClientError};
use sheep_proto::ResultCode;
use zerocopy::IntoBytes as _;

use crate::peer::{Peer, Received, Script};
use crate::{config, connected, object, read, within};

/// A range that is split into four, between blocks of 4 KiB.
const START: u32 = 5000;
const LEN: u32 = 4 * (448 << 10);
const PARTS: [(u32, u32); 4] = [
    (START, 457_848),
    (462_848, 458_752),
    (921_600, 458_752),
    (1_380_352, 459_656),
];

fn content() -> Vec<u8> {
    (0u32..)
        .flat_map(u32::to_le_bytes)
        .take(LEN as usize)
        .collect()
}

/// The part of [`content`] that a request is about.
fn part(request: &Received) -> Vec<u8> {
    let (offset, len) = PARTS
        .into_iter()
        .find(|&(offset, _)| offset == request.offset())
        .expect("one of the parts");
    let from = (offset - START) as usize;
    content()[from..from + len as usize].to_vec()
}

async fn requests(peer: &mut Peer) -> Vec<Received> {
    let mut all = Vec::new();
    for _ in PARTS {
        all.push(peer.request().await);
    }
    all.sort_unstable_by_key(Received::offset);
    all
}

fn write(client: &Client) -> tokio::task::JoinHandle<Result<(), ClientError>> {
    let client = client.clone();
    let data = content().into();
    tokio::spawn(async move { within(client.objects().write(object(), START, data)).await })
}

#[tokio::test]
async fn split_read_is_joined_whatever_the_response_order() {
    let (mut peer, client) = connected(Script::default(), 2).await;
    let reading = read(&client, START, LEN);
    let requests = requests(&mut peer).await;
    for (request, (offset, len)) in requests.iter().zip(PARTS) {
        assert_eq!(
            (request.offset(), request.header.data_length.get()),
            (offset, len)
        );
    }
    for number in [2, 0, 3, 1] {
        assert!(!reading.is_finished());
        requests[number].answer(&part(&requests[number])).await;
    }
    assert_eq!(reading.await.unwrap().unwrap(), content());
}

#[tokio::test]
async fn split_read_is_retried_after_a_partial_response() {
    let (mut peer, client) = connected(Script::default(), 1).await;
    let reading = read(&client, START, LEN);
    let first = requests(&mut peer).await;
    first[1].answer(&part(&first[1])).await;
    let payload = part(&first[2]);
    let wire = &first[2].wire;
    wire.send(first[2].success(payload.len()).as_bytes()).await;
    wire.send(&payload[..payload.len() / 2]).await;
    // Not before the client has begun to read it.
    tokio::time::sleep(Duration::from_millis(50)).await;
    wire.close();
    for _ in 1..PARTS.len() {
        let again = peer.request().await;
        again.answer(&part(&again)).await;
    }
    assert_eq!(reading.await.unwrap().unwrap(), content());
}

#[tokio::test]
async fn split_write_completes_with_its_last_request() {
    let (mut peer, client) = connected(Script::default(), 2).await;
    let writing = write(&client);
    let requests = requests(&mut peer).await;
    for number in [3, 1, 0, 2] {
        tokio::time::sleep(Duration::from_millis(5)).await;
        assert!(!writing.is_finished());
        assert_eq!(requests[number].payload, part(&requests[number]));
        requests[number].answer(&[]).await;
    }
    writing.await.unwrap().unwrap();
}

#[tokio::test]
async fn split_write_refused_waits_for_the_rest() {
    let (mut peer, client) = connected(Script::default(), 2).await;
    let writing = write(&client);
    let requests = requests(&mut peer).await;
    requests[1].respond(ResultCode::ReadOnly, &[]).await;
    for number in [0, 2, 3] {
        tokio::time::sleep(Duration::from_millis(5)).await;
        assert!(!writing.is_finished());
        requests[number].answer(&[]).await;
    }
    let error = writing.await.unwrap().unwrap_err();
    assert_eq!(error.code(), Some(ResultCode::ReadOnly));
}

#[tokio::test]
async fn split_write_reports_timeout_rather_than_refusal() {
    for silent in 0..PARTS.len() {
        let mut peer = Peer::start(Script::default()).await;
        let mut config = config(&peer, 2);
        config.retry_for = Duration::from_millis(100);
        let client = within(Client::connect(config)).await.unwrap();
        let writing = write(&client);
        for (number, request) in requests(&mut peer).await.iter().enumerate() {
            if number != silent {
                request.respond(ResultCode::ReadOnly, &[]).await;
            }
        }
        let error = writing.await.unwrap().unwrap_err();
        assert!(matches!(error, ClientError::Unreachable { .. }), "{error}");
    }
}
