//! Resolves `NAME`, `NAME@TAG` and `NAME@NUMBER` to a VDI.
//!
//! ```
//! use sheepfs_vfs::resolve;
//! # use sheepfs_vfs::client::{Client, ClientConfig, NewVdi, VdiName};
//! # use sheep_embedded::{Config, Server, StoreKind};
//! # tokio::runtime::Runtime::new()?.block_on(async {
//! # let server = Server::start(Config::new(StoreKind::Memory)).await?;
//! # let client = Client::connect(ClientConfig::new(server.local_address().into())).await?;
//! # client.cluster().create_vdi(&NewVdi::new(VdiName::new("vm1")?, 8 << 20)).await?;
//!
//! let selector = resolve::resolve(&client, b"vm1").await?;
//! assert_eq!(selector.to_string(), "vm1");
//! assert!(resolve::resolve(&client, b"vm1@no-such-tag").await.is_err());
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! # })?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

use sheep_client::{Client, ClientError, VdiSelector, VdiVersion};
use sheep_proto::name::BadName;
use sheep_proto::{SnapshotTag, VdiName};

/// The name and the tag of a snapshot.
pub type NameAndTag = (VdiName, SnapshotTag);

/// Splits `NAME` or `NAME@TAG` at the last `@`. Returns the whole text as a name, and
/// name and tag if there are both: a name may contain an `@`, too.
///
/// # Errors
/// [`BadName`] when a part is too long, or not a name.
pub fn split(text: &[u8]) -> Result<(VdiName, Option<NameAndTag>), BadName> {
    let whole = VdiName::new(text)?;
    let Some(at) = text.iter().rposition(|&byte| byte == b'@') else {
        return Ok((whole, None));
    };
    let (name, tag) = (&text[..at], &text[at + 1..]);
    if name.is_empty() || tag.is_empty() {
        return Ok((whole, None));
    }
    Ok((whole, Some((VdiName::new(name)?, SnapshotTag::new(tag)?))))
}

/// The VDI that a text names: one of exactly that name before a snapshot, a tag
/// before a snapshot number.
///
/// # Errors
/// As [`Vdi::lookup`](sheep_client::Vdi::lookup), and for a name that cannot be one.
pub async fn resolve(client: &Client, text: &[u8]) -> Result<VdiSelector, ClientError> {
    let (whole, parts) = split(text)?;
    let whole = VdiSelector::working(whole);
    let absent = match client.vdi(&whole).lookup().await {
        Ok(_) => return Ok(whole),
        Err(error) => error,
    };
    match parts {
        Some(parts) if absent.is_missing_vdi() => find_snapshot(client, parts).await,
        _ => Err(absent),
    }
}

/// The snapshot that a text names; `None` when it has no tag.
///
/// # Errors
/// As [`resolve`].
pub async fn resolve_snapshot(
    client: &Client,
    text: &[u8],
) -> Result<Option<VdiSelector>, ClientError> {
    match split(text)?.1 {
        Some(parts) => find_snapshot(client, parts).await.map(Some),
        None => Ok(None),
    }
}

/// The snapshot of a name with a tag or, when none has it, with that number.
///
/// # Errors
/// As [`resolve`].
pub async fn find_snapshot(
    client: &Client,
    (name, tag): NameAndTag,
) -> Result<VdiSelector, ClientError> {
    let number = std::str::from_utf8(tag.as_bytes())
        .ok()
        .and_then(|text| text.parse().ok());
    let tagged = VdiSelector::tag(name.clone(), tag);
    match (client.vdi(&tagged).lookup().await, number) {
        (Ok(_), _) => Ok(tagged),
        (Err(error), Some(id)) if error.is_missing_version() && id != 0 => {
            let numbered = VdiSelector {
                name,
                version: VdiVersion::SnapId(id),
            };
            client.vdi(&numbered).lookup().await?;
            Ok(numbered)
        }
        (Err(error), _) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn resolve_tag_follows_last_at_sign() {
        let (whole, parts) = split(b"a@b@c").unwrap();
        assert_eq!(whole.as_bytes(), b"a@b@c");
        let (name, tag) = parts.unwrap();
        assert_eq!(
            (name.as_bytes(), tag.as_bytes()),
            (b"a@b".as_slice(), b"c".as_slice())
        );
        for text in [b"a".as_slice(), b"@a", b"a@"] {
            assert!(split(text).unwrap().1.is_none());
        }
    }

    proptest! {
        #[test]
        fn resolve_no_text_panics(text: Vec<u8>) {
            let _ = split(&text);
        }
    }
}
