//! Options, right and wrong.

use sheep_nbd::DeviceExports;

use super::TestServer;
use super::device::TestDevice;
use super::raw_client::*;

fn server() -> TestServer<DeviceExports<TestDevice>> {
    TestServer::start([("disk", TestDevice::new(5000))])
}

#[tokio::test]
async fn option_unknown_is_refused_as_unsupported() {
    let server = server();
    let mut client = server.connect().await;
    for option in [0, 4, 5000] {
        assert_eq!(client.outcome(option, b"any data").await, ERR_UNSUP);
    }
    assert_eq!(client.go("disk").await.0, 5000);
}

#[tokio::test]
async fn option_with_wrong_data_is_refused_as_invalid() {
    let server = server();
    let mut client = server.connect().await;
    for option in [OPT_LIST, OPT_STRUCTURED_REPLY, OPT_EXTENDED_HEADERS] {
        assert_eq!(client.outcome(option, b"x").await, ERR_INVALID);
    }
    let mut long_name = info_data("disk");
    long_name[3] = 200;
    assert_eq!(client.outcome(OPT_GO, &long_name).await, ERR_INVALID);
    assert_eq!(client.outcome(OPT_GO, b"").await, ERR_INVALID);
    assert_eq!(client.go("disk").await.0, 5000);
}

#[tokio::test]
async fn option_too_long_is_refused_as_too_big() {
    let server = server();
    let mut client = server.connect().await;
    let long = vec![b'x'; 1 << 20];
    assert_eq!(client.outcome(OPT_GO, &long).await, ERR_TOO_BIG);
    let name = "n".repeat(5000);
    assert_eq!(client.outcome(OPT_GO, &info_data(&name)).await, ERR_TOO_BIG);
    assert_eq!(client.go("disk").await.0, 5000);
}

#[tokio::test]
async fn list_names_every_export() {
    let devices = [("disk", TestDevice::new(1)), ("other", TestDevice::new(2))];
    let server = TestServer::start(devices);
    let mut client = server.connect().await;
    let replies = client.ask(OPT_LIST, b"").await;
    let expected = [
        (REP_SERVER, b"\0\0\0\x04disk".to_vec()),
        (REP_SERVER, b"\0\0\0\x05other".to_vec()),
        (REP_ACK, Vec::new()),
    ];
    assert_eq!(replies, expected);
}

#[tokio::test]
async fn export_missing_is_refused_as_unknown() {
    let server = server();
    let mut client = server.connect().await;
    for option in [OPT_GO, OPT_INFO] {
        let replies = client.ask(option, &info_data("no\u{1}pe")).await;
        let text = b"there is no export 'no\\x01pe'".to_vec();
        assert_eq!(replies, [(ERR_UNKNOWN, text)]);
    }
    assert_eq!(client.go("disk").await.0, 5000);
}

#[tokio::test]
async fn export_name_empty_selects_the_only_export() {
    let mut client = server().connect().await;
    assert_eq!(client.go("").await.0, 5000);

    let devices = [("disk", TestDevice::new(1)), ("other", TestDevice::new(2))];
    let several = TestServer::start(devices);
    let mut client = several.connect().await;
    let (kind, text) = client.ask(OPT_GO, &info_data("")).await.pop().unwrap();
    assert_eq!(kind, ERR_UNKNOWN);
    let text = String::from_utf8(text).unwrap();
    assert_eq!(
        text,
        "there is no default export: there are 2 exports, so name one"
    );
}

#[tokio::test]
async fn info_and_go_describe_export_alike() {
    let server = server();
    let mut client = server.connect().await;
    client.structured().await;
    let info = client.ask(OPT_INFO, &info_data("disk")).await;
    let go = client.ask(OPT_GO, &info_data("disk")).await;
    assert_eq!(info, go);
    // HAS_FLAGS, FLUSH, FUA, TRIM, WRITE_ZEROES, DF, MULTI_CONN, CACHE, FAST_ZERO
    assert_eq!(export_info(&go), (5000, 0b1101_1110_1101));
}

#[tokio::test]
async fn export_name_starts_transmission_or_closes_connection() {
    let server = server();
    let mut client = server.connect().await;
    client.option(OPT_EXPORT_NAME, b"disk").await;
    assert_eq!(client.u64().await, 5000);
    client.receive(2).await;
    assert_eq!(client.read(0, 512).await, [1; 512]);

    // An old client that wants its padding.
    let mut client = RawClient::greeted(&server.socket).await;
    client.send(&1u32.to_be_bytes()).await;
    client.option(OPT_EXPORT_NAME, b"disk").await;
    assert_eq!(client.receive(134).await[10..], [0; 124]);
    assert_eq!(client.read(512, 512).await, [2; 512]);

    let mut client = server.connect().await;
    client.option(OPT_EXPORT_NAME, b"nope").await;
    assert!(client.is_closed().await);
}

#[tokio::test]
async fn abort_is_acknowledged() {
    let mut client = server().connect().await;
    assert_eq!(client.outcome(OPT_ABORT, b"whatever").await, REP_ACK);
    assert!(client.is_closed().await);
}

#[tokio::test]
async fn contexts_need_structured_replies_and_export() {
    let server = server();
    let mut client = server.connect().await;
    let data = context_data("disk", &["base:allocation"]);
    for option in [OPT_SET_META_CONTEXT, OPT_LIST_META_CONTEXT] {
        assert_eq!(client.outcome(option, &data).await, ERR_INVALID);
    }
    client.structured().await;
    let nowhere = context_data("nope", &["base:allocation"]);
    assert_eq!(
        client.outcome(OPT_SET_META_CONTEXT, &nowhere).await,
        ERR_UNKNOWN
    );
    assert_eq!(client.outcome(OPT_SET_META_CONTEXT, &data).await, REP_ACK);
}

#[tokio::test]
async fn context_wildcards_list_but_select_none() {
    let server = server();
    let mut client = server.connect().await;
    client.structured().await;
    let allocation = vec![(0, "base:allocation".to_owned())];
    for queries in [&[][..], &["base:"], &["base:", "base:allocation"]] {
        let replies = client
            .ask(OPT_LIST_META_CONTEXT, &context_data("disk", queries))
            .await;
        assert_eq!(contexts(replies), allocation, "{queries:?}");
    }
    for queries in [&[][..], &["base:"], &["x:y"], &["nocolon"]] {
        assert!(
            client.select("disk", queries).await.is_empty(),
            "{queries:?}"
        );
    }
    assert_eq!(
        client.select("disk", &["x:y", "base:allocation"]).await,
        allocation
    );
}

#[tokio::test]
async fn contexts_of_last_selection_replace_earlier_ones() {
    let devices = [
        ("disk", TestDevice::new(512)),
        ("other", TestDevice::new(512)),
    ];
    let server = TestServer::start(devices);
    let mut client = server.connect().await;
    client.structured().await;
    client.select("other", &["base:allocation"]).await;
    client.go("disk").await;
    assert_eq!(
        client.error_of((BLOCK_STATUS, 0), 0, 512, b"").await,
        EINVAL
    );

    let mut client = server.connect().await;
    client.structured().await;
    client.select("disk", &["base:allocation"]).await;
    client.select("disk", &[]).await;
    client.go("disk").await;
    assert_eq!(
        client.error_of((BLOCK_STATUS, 0), 0, 512, b"").await,
        EINVAL
    );
}

#[tokio::test]
async fn extended_headers_cannot_be_revoked() {
    let server = server();
    let mut client = server.connect().await;
    client.structured().await;
    client.extended().await;
    assert_eq!(
        client.outcome(OPT_STRUCTURED_REPLY, b"").await,
        ERR_EXT_HEADER_REQD
    );
    client.option(OPT_EXPORT_NAME, b"disk").await;
    assert!(client.is_closed().await);
}

#[tokio::test]
async fn list_leaves_out_names_that_are_no_text() {
    let names = [&b"disk"[..], b"\xff"];
    let server = TestServer::with_names(names.map(|name| (name, TestDevice::new(512))));
    let mut client = server.connect().await;
    let replies = client.ask(OPT_LIST, b"").await;
    let kinds: Vec<_> = replies.iter().map(|(kind, _)| *kind).collect();
    assert_eq!(kinds, [REP_SERVER, REP_ACK]);
    // Who knows its name can use it.
    let data = b"\0\0\0\x01\xff\0\0";
    assert_eq!(client.outcome(OPT_GO, data).await, REP_ACK);
}
