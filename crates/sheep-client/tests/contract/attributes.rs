//! Keys and values attached to names.

use sheep_client::ClientError;
use sheep_proto::ResultCode;

use crate::{MIB, assert_refused, for_each_backend, refusal, tag, working};

#[tokio::test]
async fn attribute_keeps_last_value_until_removed() {
    for_each_backend(async |fixture| {
        let client = &fixture.client;
        // An attribute that was never set has no value.
        let (name, _vid) = fixture.volume("v", MIB).await;
        assert_eq!(
            client.vdi(&working(&name)).attribute(b"key").await.unwrap(),
            None
        );
        // Each value replaces the one before, from empty to the longest one.
        for value in [&b"first"[..], b"", &[0xff; 65_536]] {
            client
                .vdi(&working(&name))
                .set_attribute(b"key", value)
                .await
                .unwrap();
            let found = client.vdi(&working(&name)).attribute(b"key").await.unwrap();
            assert_eq!(found.as_deref(), Some(value));
        }
        // Removing one attribute leaves the other.
        client
            .vdi(&working(&name))
            .set_attribute(b"other", b"o")
            .await
            .unwrap();
        client
            .vdi(&working(&name))
            .remove_attribute(b"key")
            .await
            .unwrap();
        assert_eq!(
            client.vdi(&working(&name)).attribute(b"key").await.unwrap(),
            None
        );
        assert_eq!(
            refusal(client.vdi(&working(&name)).remove_attribute(b"key").await),
            ResultCode::NoObj
        );
        let other = client
            .vdi(&working(&name))
            .attribute(b"other")
            .await
            .unwrap();
        assert_eq!(other.as_deref(), Some(&b"o"[..]));
    })
    .await;
}

#[tokio::test]
async fn attribute_belongs_to_name_and_survives_snapshot() {
    for_each_backend(async |fixture| {
        let client = &fixture.client;
        let (name, _vid) = fixture.volume("v", MIB).await;
        client
            .vdi(&working(&name))
            .set_attribute(b"key", b"value")
            .await
            .unwrap();
        client
            .vdi(&working(&name))
            .snapshot(&tag("t"))
            .await
            .unwrap();
        let found = client.vdi(&working(&name)).attribute(b"key").await.unwrap();
        assert_eq!(found.as_deref(), Some(&b"value"[..]));
    })
    .await;
}

#[tokio::test]
async fn attribute_with_unknown_name_or_key_is_refused() {
    for_each_backend(async |fixture| {
        let client = &fixture.client;
        let absent = fixture.name("absent");
        assert_eq!(
            refusal(client.vdi(&working(&absent)).attribute(b"key").await),
            ResultCode::NoVdi
        );
        let (name, _vid) = fixture.volume("v", MIB).await;
        assert_refused!(
            client.vdi(&working(&name)).attribute(b"").await,
            ClientError::Attribute(_)
        );
        assert_refused!(
            client
                .vdi(&working(&name))
                .set_attribute(&[b'k'; 256], b"")
                .await,
            ClientError::Attribute(_)
        );
        assert_refused!(
            client
                .vdi(&working(&name))
                .set_attribute(b"k", &[0; 65_537])
                .await,
            ClientError::Attribute(_)
        );
    })
    .await;
}
