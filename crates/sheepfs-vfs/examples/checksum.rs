//! The digest of any block device: of a volume of a cluster, without the parts that
//! take no space, or of one in memory, to try it.
//!
//! ```sh
//! cargo run --example checksum -- 127.0.0.1:7000 vm1@before-upgrade
//! cargo run --example checksum -- memory
//! ```

use std::sync::Arc;

use anyhow::Context as _;
use sha2::{Digest as _, Sha256};
use sheepfs_vfs::client::{Client, ClientConfig};
use sheepfs_vfs::volume::MemoryDevice;
use sheepfs_vfs::{BlockDevice, Volume, VolumeOptions, resolve};

/// Bytes read at once.
const BLOCK: u64 = 1 << 20;

/// Reads a device from its first byte to its last.
async fn checksum<D: BlockDevice>(device: &Arc<D>) -> anyhow::Result<String> {
    let zeros = vec![0; usize::try_from(BLOCK)?];
    let mut digest = Sha256::new();
    let mut at = 0;
    while at < device.size() {
        let extent = device.block_status(at).await?;
        while at < extent.end {
            let len = (extent.end - at).min(BLOCK);
            if extent.allocated {
                let bytes = device.read_at(at, u32::try_from(len)?).await?;
                anyhow::ensure!(!bytes.is_empty(), "the device became smaller");
                digest.update(&bytes);
                at += bytes.len() as u64;
            } else {
                digest.update(&zeros[..usize::try_from(len)?]);
                at += len;
            }
        }
    }
    let digest = digest.finalize();
    Ok(digest.iter().map(|byte| format!("{byte:02x}")).collect())
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let digest = match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["memory"] => checksum(&MemoryDevice::new(vec![7; 3_000_000])).await?,
        [address, name] => {
            let config = ClientConfig::new(address.parse().context("no address of a sheep")?);
            let client = Client::connect(config).await?;
            let selector = resolve::resolve(&client, name.as_bytes()).await?;
            let options = VolumeOptions::default()
                .with_read_only(true)
                .with_lock(false);
            checksum(&Volume::open(client, selector, options).await?).await?
        }
        _ => anyhow::bail!("usage: checksum memory | checksum HOST:PORT NAME[@TAG]"),
    };
    println!("{digest}");
    Ok(())
}
