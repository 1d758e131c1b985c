//! Copies a volume to a file. What was never written stays a hole.
//!
//! ```text
//! cargo run -p sheep-client --example copy_volume -- HOST[:PORT] NAME[@TAG] FILE
//! ```
//!
//! Copy a snapshot when someone may be writing to the volume: the objects are
//! read one after the other, and only a snapshot does not change in between.

use std::fs::File;
use std::os::unix::fs::FileExt as _;

use anyhow::Context as _;
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use sheep_client::{
    Client, ClientConfig, GatewayAddress, ObjectIndex, Oid, SnapshotTag, VdiInfo, VdiName,
    VdiSelector, Vid,
};

/// Reads in flight at the same time.
const PARALLEL: usize = 16;
/// Most bytes of one read.
const READ_LEN: u64 = 1 << 20;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [address, volume, path] = &arguments[..] else {
        anyhow::bail!("usage: copy_volume HOST[:PORT] NAME[@TAG] FILE");
    };
    let address: GatewayAddress = address.parse()?;
    let selector = match volume.rsplit_once('@') {
        Some((name, tag)) => VdiSelector::tag(VdiName::new(name)?, SnapshotTag::new(tag)?),
        None => VdiSelector::working(VdiName::new(volume)?),
    };

    let client = Client::connect(ClientConfig::new(address)).await?;
    let vdi = client
        .vdi(&selector)
        .stat()
        .await
        .with_context(|| format!("cannot find {selector}"))?;
    let file = File::create(path).with_context(|| format!("cannot create {path}"))?;
    file.set_len(vdi.size)?;
    let copied = copy(&client, &vdi, &file).await?;
    file.sync_all()?;
    println!("{copied} of {} bytes copied, the rest are holes", vdi.size);
    Ok(())
}

/// Copies every object that exists; returns the bytes copied.
async fn copy(client: &Client, vdi: &VdiInfo, file: &File) -> anyhow::Result<u64> {
    let mut objects = Vec::new();
    client
        .index(vdi)
        .for_each_slot(|index, owner| objects.push((index, owner)))
        .await?;
    let parts = objects
        .into_iter()
        .flat_map(|(index, owner)| parts(vdi, index, owner));
    stream::iter(parts)
        .map(|part| async move {
            let data = client
                .objects()
                .read(part.oid, part.offset, part.len)
                .await?;
            file.write_all_at(&data, part.at)?;
            anyhow::Ok(u64::from(part.len))
        })
        .buffer_unordered(PARALLEL)
        .try_fold(0, |sum, len| async move { Ok(sum + len) })
        .await
}

/// A part of an object.
struct Part {
    oid: Oid,
    /// Bytes from the start of the object.
    offset: u32,
    len: u32,
    /// Bytes from the start of the volume.
    at: u64,
}

/// Splits an object into reads that end where the volume ends.
fn parts(vdi: &VdiInfo, index: ObjectIndex, owner: Vid) -> impl Iterator<Item = Part> {
    let start = u64::from(index.0) * vdi.object_size();
    let len = vdi.object_size().min(vdi.size - start);
    (0..len.div_ceil(READ_LEN)).map(move |number| {
        let offset = number * READ_LEN;
        Part {
            oid: Oid::data(owner, index),
            offset: u32::try_from(offset).expect("an object has at most 2 GiB"),
            len: u32::try_from(READ_LEN.min(len - offset)).expect("at most 1 MiB"),
            at: start + offset,
        }
    })
}
